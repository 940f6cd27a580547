"""Offline logs read back by W&B's own messages: W&B itself does not say when a full disk cut one short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes of LevelDB's log format; W&B puts a header of its own before the first record
WHOLE = (1, 4)  # kinds of pieces that end a record


class Truncated(Exception):
    """A log that is not whole."""


def records(place: Path) -> Iterator[Any]:
    """The records of the log in a folder, as messages of W&B. Raises Truncated where the last one is cut short."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # made while it is imported
    (path,) = place.glob("*.wandb")
    content, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # no header of a piece is cut by the end of a block
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        piece = content[at + HEADER : at + HEADER + size]
        if len(piece) < size:
            raise Truncated(f"{path}: its last record is cut short")
        whole += piece
        at += HEADER + size
        if kind in WHOLE:
            yield messages.Record.FromString(whole)
            whole = b""


def check_whole(place: Path) -> None:
    """Raises Truncated for a log that does not say how the run ended."""
    if not any(record.HasField("exit") for record in records(place)):
        raise Truncated(f"{place}: the log has no end; is the disk full?")
