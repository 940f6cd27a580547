"""How a prompt is read: as plain text, or as what a user says through the chat template of the target's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.errors import UserError
from viasd.models import Pair, load_tokenizer

# Templates that know these words take them: answers come at once, and no prompt changes from day to day.
FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def speaks_chat(pair: Pair) -> bool:
    """Whether prompts go through a chat template: as the pair's `chat` says, or (`auto`) where the target has one.

    Reads files only. Raises UserError for `chat: chat` without a template.
    """
    if pair.chat == "plain":
        return False
    found = has_template(pair.path("target", weights=False))
    if pair.chat == "chat" and not found:
        raise UserError(f"pair.chat=chat: the target's tokenizer has no chat template ({pair.name}); accepted: plain")
    return found


def has_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template, in a file of its own or in the tokenizer's configuration."""
    config = folder / "tokenizer_config.json"
    own = [folder / "chat_template.jinja", folder / "chat_template.json"]
    return any(path.is_file() for path in own) or (
        config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    )


def open_prompting(pair: Pair) -> Any:
    """The target's tokenizer, which reads a prompt as the pair wants it."""
    tokenizer = load_tokenizer(pair)
    return ChatTokenizer(tokenizer) if speaks_chat(pair) else tokenizer


def cut_left(pair: Pair, tokenizer: Any, text: str, ids: Sequence[int], room: int) -> list[int]:
    """Ids of a prompt without its oldest text, so that they fit `room` tokens; a begin mark stays.

    Raises UserError where what a chat template adds to a message leaves no room.
    """
    if speaks_chat(pair):
        shortened: list[int] = tokenizer.shorten(text, room)
        return shortened
    excess = len(ids) - room
    return [ids[0], *ids[excess + 1 :]] if ids[0] == tokenizer.bos_token_id else list(ids[excess:])


class ChatTokenizer:
    """A tokenizer whose call takes a text as a user's message. All else is the tokenizer's own."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=self.read([{"role": "user", "content": text}]))

    def read(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of messages up to where the answer begins. The template writes the special tokens."""
        told = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **FIXED)
        ids: list[int] = self._tokenizer(told, add_special_tokens=False).input_ids
        return ids

    def shorten(self, text: str, room: int) -> list[int]:
        """Ids of a message that lost its oldest text to fit `room` tokens; its frame stays whole.

        Raises:
            UserError: the frame alone is longer.
        """
        words: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        ids = self(text).input_ids
        while len(ids) > room:
            if not words:
                raise UserError(
                    f"task.max_new_tokens: the chat template alone takes {len(ids)} tokens and {room} are left; "
                    "accepted: a smaller number"
                )
            words = words[len(ids) - room :]
            ids = self(self._tokenizer.decode(words)).input_ids
        return list(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
