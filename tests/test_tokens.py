"""Ids of prompts are stored once, and a tokenizer is loaded only for what is not stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import tokens
from experiments.tokens import open_tokenizer

WHO: dict[str, Any] = {"pair": {"models": {"target": "a1"}}, "versions": {"tokenizers": "1"}, "chat": False}
TEXTS = ["one two", "", "one two"]


class Loads:
    """In the place of `open_prompting`: counts, and gives each word's length."""

    count = 0

    def __call__(self, pair: Any) -> Any:
        self.count += 1
        return Words()


class Words:
    eos_token_id = 9

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[len(word) for word in text.split()])


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    made = Loads()
    monkeypatch.setattr(tokens, "open_prompting", made)
    return made


def open_one(results: Path, texts: list[str] = TEXTS, who: Any = WHO, may_store: bool = True) -> Any:
    return open_tokenizer(None, texts, who, results, may_store)  # type: ignore[arg-type]


def test_stored_ids_need_no_tokenizer_and_all_else_loads_it_once(loads: Loads, tmp_path: Path) -> None:
    first = open_one(tmp_path)
    assert [first(text).input_ids for text in TEXTS] == [[3, 3], [], [3, 3]] and loads.count == 1
    again = open_one(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [[3, 3], [], [3, 3]] and loads.count == 1
    again("one two").input_ids.append(7)  # a caller's list is its own
    assert again("one two").input_ids == [3, 3] and loads.count == 1
    assert again("four").input_ids == [4] and again.eos_token_id == 9 and loads.count == 2
    with pytest.raises(AttributeError):
        _ = again.no_such_thing


@pytest.mark.parametrize(
    ("texts", "who"),
    [
        (["one two", "three"], WHO),
        (TEXTS, {**WHO, "pair": {"models": {"target": "b2"}}}),
        (TEXTS, {**WHO, "versions": {"tokenizers": "2"}}),
        (TEXTS, {**WHO, "chat": True}),
    ],
)
def test_other_texts_files_or_libraries_are_tokenized_anew(
    loads: Loads, tmp_path: Path, texts: list[str], who: Any
) -> None:
    open_one(tmp_path)
    open_one(tmp_path, texts, who)
    assert loads.count == 2


def test_nothing_is_stored_where_that_is_not_allowed(loads: Loads, tmp_path: Path) -> None:
    open_one(tmp_path, may_store=False)
    assert list(tmp_path.iterdir()) == [] and loads.count == 1
