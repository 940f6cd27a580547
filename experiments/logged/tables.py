"""Tables of a run: its rows, and what its drafts came to by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.comparison import loss, loss_tokens
from experiments.records import Row

COUNTS = ("rounds", "drafted", "judged", "rejected", "unjudged", "discarded", "cut", "target_rejected", "tie_flips")
COLUMNS = (
    "example_id", "arm", "index", "error", "prompt_tokens", "new_tokens", "finish_reason", "quality", "fidelity",
    "decode_seconds", "prefill_seconds", *COUNTS,
)  # fmt: skip
POSITIONS = ["arm", "position", "drafted", "judged", "accepted", "acceptance"]


def columns(texts: bool) -> list[str]:
    """Columns of the table of rows."""
    return [*COLUMNS, "text"] if texts else list(COLUMNS)


def table(rows: Sequence[Row], texts: bool) -> list[list[Any]]:
    """One line per row, scalars only; seconds are means over repeats."""
    return [[_value(row, name) for name in columns(texts)] for row in rows]


def _value(row: Row, name: str) -> Any:
    if name == "fidelity":
        return 1.0 - loss(row) / loss_tokens(row) if row.token_loss else None
    value = getattr(row, name)
    if isinstance(value, list):
        return sum(value) / len(value) if value else None
    return value


def positions(rows: Sequence[Row], arms: Sequence[str]) -> list[list[Any]]:
    """One line per arm and draft position: rounds that drafted, judged and kept it, and kept / judged."""
    lines: list[list[Any]] = []
    for arm in arms:
        own = [row for row in rows if row.arm == arm and row.error is None]
        for place in range(max((len(row.drafted_at) for row in own), default=0)):
            drafted, judged, accepted = (
                sum(counts[place] for row in own if place < len(counts := getattr(row, name)))
                for name in ("drafted_at", "judged_at", "accepted_at")
            )
            lines.append([arm, place, drafted, judged, accepted, accepted / judged if judged else None])
    return lines
