"""The target's tokenizer, loaded when it is needed, and the ids of a task's prompts, stored once they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.identity import digest
from experiments.prompting import open_prompting
from experiments.store import create_folder, read_json, replace_json
from viasd.models import Pair


class LazyTokenizer:
    """The tokenizer of a pair's target. Texts with known ids are answered without it, everything else loads it.

    Importing the library that it comes from takes longer than all that a run does which is stored already.
    """

    def __init__(self, pair: Pair, known: Mapping[str, list[int]]) -> None:
        self._pair, self._known = pair, known

    def __call__(self, text: str) -> Any:
        known = self._known.get(text)
        return self._loaded(text) if known is None else SimpleNamespace(input_ids=list(known))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaded, name)

    @cached_property
    def _loaded(self) -> Any:
        return open_prompting(self._pair)


def open_tokenizer(
    pair: Pair, texts: Sequence[str], who: Mapping[str, Any], results: Path, may_store: bool
) -> LazyTokenizer:
    """The tokenizer with the ids of these texts: stored ones of the same files and libraries, else made now.

    `who` is the surroundings of a run: its hash of the target covers the files of its tokenizer, and `chat` says
    whether the texts go through its template. Raises PairError
    for a tokenizer that cannot be loaded, UserError where ids are to be stored and cannot be.
    """
    asked = {
        "target": who["pair"]["models"]["target"],
        "versions": who["versions"],
        "chat": who["chat"],
        "texts": list(texts),
    }
    path = results / "settled" / f"prompts_{digest(asked)}.json"
    stored = read_json(path)
    if stored is not None:
        ids = [[int(number) for number in one.split()] for one in stored["ids"]]
        return LazyTokenizer(pair, dict(zip(texts, ids, strict=True)))
    tokenizer = LazyTokenizer(pair, {})
    made = [tokenizer(text).input_ids for text in texts]
    if may_store:
        create_folder(path.parent, results)
        replace_json(path, {"ids": [" ".join(map(str, one)) for one in made]})  # one line each
    return tokenizer
