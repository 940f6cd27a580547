"""Stop strings, matched on text: the decode loop itself knows token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopStrings:
    """True at the token that completes a stop string. Decodes only a tail long enough to hold the longest one."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        # A token holds at least one byte, and a character may begin before the tail: a few spare tokens.
        self._tail = max(len(text.encode()) for text in strings) + 4

    def __call__(self, output_ids: Sequence[int]) -> bool:
        text = self._tokenizer.decode(output_ids[-self._tail :], skip_special_tokens=True)
        return any(string in text for string in self._strings)


def cut_at(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [text.find(string) for string in strings if string in text]
    return text[: min(ends)] if ends else text
