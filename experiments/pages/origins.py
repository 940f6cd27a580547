"""What a run's rows do not hold: its prompts and references, and the tokenizer that read its tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from experiments.config import make
from experiments.errors import one_line
from experiments.identity import examples_hash
from experiments.pages.runs import Reported
from experiments.tasks.base import Example
from viasd.models import load_tokenizer

Decode = Callable[[Sequence[int]], str]
OWN = ("viasd.", "baselines.", "experiments.")  # nothing else is imported because a stored file names it


@dataclass(frozen=True)
class Origins:
    """Examples by id (none where they cannot be made again), and how ids become text (None: not known)."""

    examples: Mapping[str, Example]
    decode: Decode | None
    notices: list[str]


def read_origins(one: Reported) -> Origins:
    """The examples of a run's task and its target's tokenizer, from its configuration; no model is loaded.

    Both come from files of this machine, or not at all: where a network would be asked, the process is to be offline.
    """
    notices: list[str] = []
    examples: dict[str, Example] = {}
    decode = None
    try:
        examples = read_examples(one)
    except Exception as error:  # whatever a task of others raises, the rows can be shown without it
        notices.append(f"task {one.run.task}: prompts are not shown ({one_line(error)})")
    try:
        decode = read_decode(one)
    except Exception as error:
        notices.append(f"task {one.run.task}: tokens are not told apart ({one_line(error)})")
    return Origins(examples, decode, notices)


def read_examples(one: Reported) -> dict[str, Example]:
    """The task's examples by id. Raises ValueError where they are not those of the run."""
    examples = _examples(stored(one, "task"), bool(one.run.identity.get("chat")))
    if examples_hash(examples) != one.run.identity["task"].get("examples"):
        raise ValueError("the task has other examples now than when the run was measured")
    return {example.example_id: example for example in examples}


@cache
def _examples(task: str, chat: bool) -> list[Example]:
    made = make(OmegaConf.create(json.loads(task)), "task")
    examples: list[Example] = (made.in_chat() if chat else made).examples("test")
    return examples


def read_decode(one: Reported) -> Decode:
    """The target's tokenizer as a function. Raises ValueError, or PairError, where it cannot be had."""
    return _decode(stored(one, "pair"))


@cache
def _decode(pair: str) -> Decode:
    made = make(OmegaConf.create(json.loads(pair)), "pair")
    if made.trust_remote_code:
        raise ValueError("the tokenizer has code of its own, which a report does not run")
    tokenizer = load_tokenizer(made)

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    return decode


def stored(one: Reported, key: str) -> str:
    """A part of the run's configuration as JSON. Raises ValueError where none is stored, or a foreign one."""
    config = one.record.get("config", {}).get(key)
    if not config:
        raise ValueError(f"run.json has no {key}")
    text = json.dumps(config, sort_keys=True)
    for target in re.findall(r'"_target_": "([^"]*)"', text):
        if not target.startswith(OWN):
            raise ValueError(f"{target} is not of this project")
    return text
