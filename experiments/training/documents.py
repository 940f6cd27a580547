"""What a head is trained on: prompts of the tasks' training splits, or conversations of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.prompting import ChatTokenizer, speaks_chat
from experiments.tasks.base import Split, Task
from experiments.training.setup import TrainJob
from viasd.models import context_length

FILE_ANSWER = 512  # longest answer to a prompt of a file
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ACCEPTED = (
    'accepted: {"prompt": ..., "response": ...}, {"messages": [{"role": ..., "content": ...}]} or '
    '{"conversations": [{"from": ..., "value": ...}]}'
)


@dataclass(frozen=True)
class Prompt:
    """Ids that the target answers, the answer in the data (its end mark included), and how long one may be."""

    ids: list[int]
    given: list[int]
    longest: int


@dataclass(frozen=True)
class Document:
    """Ids of prompt and answer; `first`: place of the first answer token."""

    ids: list[int]
    first: int

    @classmethod
    def of(cls, prompt: Prompt, answer: Sequence[int]) -> Document:
        return cls([*prompt.ids, *answer], len(prompt.ids))


def read_prompts(job: TrainJob, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and others to validate with; none leaves less room than a token in the target's context.

    Of tasks, those of the training and the calibration split: never the test's. Of a file, its first ones are held out.
    """
    room = context_length(job.pair.path("target"))
    if job.tasks:
        train, held_out = (_of_tasks(job, tokenizer, split) for split in ("train", "calibration"))
    else:
        found = list(_of_file(job, tokenizer))
        held_out, train = found[: job.settings.validate_prompts], found[job.settings.validate_prompts :]
    train, held_out = ([one for one in some if len(one.ids) < room] for some in (train, held_out))
    if not train or not held_out:
        raise UserError(
            f"data={job.settings.data}: {len(train)} prompts to train on and {len(held_out)} to validate with fit into "
            f"the target's {room} tokens; accepted: at least one of each"
        )
    return train, held_out


def _of_tasks(job: TrainJob, tokenizer: Any, split: Split) -> list[Prompt]:
    settings, found = job.settings, []
    asked = ChatTokenizer(tokenizer) if speaks_chat(job.pair) else tokenizer
    for task in job.tasks:
        longest = settings.max_new_tokens or task.max_new_tokens
        examples = _examples(task, split, settings.prompts if split == "train" else settings.validate_prompts)
        prompts = [asked(one.prompt).input_ids for one in examples]
        answers = tokenizer([one.reference for one in examples], add_special_tokens=False)["input_ids"]
        end = tokenizer.eos_token_id
        found += [Prompt(ids, [*given, end], longest) for ids, given in zip(prompts, answers, strict=True)]
    return found


def _examples(task: Task, split: Split, count: int) -> list[Any]:
    try:
        return task.examples(split, count)
    except ValueError as error:
        raise UserError(f"{'prompts' if split == 'train' else 'validate_prompts'}={count}: {error}") from error


def _of_file(job: TrainJob, tokenizer: Any) -> Iterator[Prompt]:
    """A prompt for each answer in the file, everything said before it as its context."""
    settings, count = job.settings, 0
    path = Path(settings.data).expanduser()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"data={settings.data}: line {number}"
            for before, answer in turns(line, where):
                if count == settings.prompts + settings.validate_prompts:
                    return
                count += 1
                ids = _encode(before, tokenizer, where)
                given = tokenizer(answer, add_special_tokens=False)["input_ids"]
                yield Prompt(ids, [*given, tokenizer.eos_token_id], settings.max_new_tokens or FILE_ANSWER)


def turns(line: str, where: str) -> Iterator[tuple[str | list[dict[str, str]], str]]:
    """What came before each answer of a line of the file, plain text or messages, and the answer."""
    if not line.strip():
        return
    try:
        entry = json.loads(line)
        if "prompt" in entry:
            yield str(entry["prompt"]), str(entry["response"])
            return
        messages = list(map(_message, entry["messages"] if "messages" in entry else entry["conversations"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not understood ({type(error).__name__}: {error}); {ACCEPTED}") from error
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and place:
            yield messages[:place], message["content"]


def _message(entry: Mapping[str, str]) -> dict[str, str]:
    if "role" in entry:
        return {"role": entry["role"], "content": entry["content"]}
    return {"role": SPEAKERS[entry["from"]], "content": entry["value"]}


def _encode(before: str | list[dict[str, str]], tokenizer: Any, where: str) -> list[int]:
    """Ids of what came before an answer, through the chat template; a plain prompt without one as it is."""
    if not getattr(tokenizer, "chat_template", None):
        if not isinstance(before, str):
            raise UserError(f"{where}: the target's tokenizer has no chat template; accepted: prompt and response")
        plain: list[int] = tokenizer(before)["input_ids"]
        return plain
    messages = [{"role": "user", "content": before}] if isinstance(before, str) else before
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
