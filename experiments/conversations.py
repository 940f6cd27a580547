"""Conversations: a later turn is asked with what vanilla answered before, so that all arms read the same prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from experiments.measure import Prompt
from experiments.prompting import cut_left, speaks_chat
from experiments.records import Row
from experiments.tasks.base import Example, Task
from experiments.tokens import LazyTokenizer
from viasd.models import Pair

ANSWERER = "vanilla"
FRAME = 16  # tokens around an answer at the most: marks of a chat template, or of two texts that meet


class NoHistory(Exception):
    """An earlier turn has no answer, so a later one cannot be asked."""


class Conversations:
    """Completes prompts from the rows of a run. `room`: tokens that a prompt may have (experiments.plan)."""

    def __init__(
        self, pair: Pair, task: Task, tokenizer: LazyTokenizer, room: int, examples: Iterable[Example]
    ) -> None:
        self._pair, self._task, self._tokenizer, self._room = pair, task, tokenizer, room
        self._examples = {example.example_id: example for example in examples}
        self._answers: dict[str, str] = {}

    def learn(self, rows: Sequence[Row]) -> None:
        """Take up what vanilla answered."""
        told = {row.example_id: row.text.strip() for row in rows if row.arm == ANSWERER and row.error is None}
        self._answers |= told

    def complete(self, prompt: Prompt) -> Prompt:
        """The prompt with what was said before it; one that does not fit loses its oldest text.

        Raises:
            NoHistory: vanilla failed on an earlier turn.
        """
        earlier = self._earlier(prompt.example)
        if not earlier:
            return prompt
        if missing := next((one for one in earlier if one.example_id not in self._answers), None):
            raise NoHistory(f"{ANSWERER} has no answer to the turn before it, example {missing.example_id}")
        exchanges = [(one.prompt, self._answers[one.example_id]) for one in earlier]
        asked = self._in_chat if speaks_chat(self._pair) else self._in_plain_text
        ids, length = asked(exchanges, prompt.example.prompt)
        return replace(prompt, ids=ids, truncated=length - len(ids))

    def _earlier(self, example: Example) -> list[Example]:
        """The turns before it, the first one first."""
        found: list[Example] = []
        while example.follows is not None:
            example = self._examples[example.follows]
            found.insert(0, example)
        return found

    def _in_plain_text(self, exchanges: Sequence[tuple[str, str]], last: str) -> tuple[list[int], int]:
        """Ids that fit, and how many there were."""
        text, *prompts = [prompt for prompt, _ in exchanges] + [last]
        for (_, answer), prompt in zip(exchanges, prompts, strict=True):
            text = self._task.go_on(text, answer, prompt)
        ids = list(self._tokenizer(text).input_ids)
        kept = cut_left(self._pair, self._tokenizer, text, ids, self._room) if len(ids) > self._room else ids
        return kept, len(ids)

    def _in_chat(self, exchanges: Sequence[tuple[str, str]], last: str) -> tuple[list[int], int]:
        """The same as messages: whole exchanges go first, then the oldest text of the last message."""
        said = [
            {"role": role, "content": text}
            for exchange in exchanges
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]
        messages = [*said, {"role": "user", "content": last}]
        ids = list(self._tokenizer.read(messages))
        length = len(ids)
        while len(ids) > self._room and len(messages) > 1:
            messages = messages[2:]
            ids = list(self._tokenizer.read(messages))
        if len(ids) > self._room:
            ids = cut_left(self._pair, self._tokenizer, last, ids, self._room)
        return ids, length


def history_bound(turns: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that stand before a turn at the most, from those of the turns before it."""
    return sum(turns) + len(turns) * (max_new_tokens + FRAME)
