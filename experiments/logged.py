"""What a tracker is told of a run: its configuration, numbers with their units, tables and live curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from experiments.comparison import clocked_tokens, decode_seconds, loss, loss_tokens
from experiments.metrics import find, in_order
from experiments.records import Row

LIVE_NOTICE = "tracking ran beside the measurement (track.live=true): seconds may hold some of its work"
STEP = "live/example"  # what live curves are drawn over
COUNTS = ("rounds", "drafted", "judged", "rejected", "unjudged", "discarded", "cut", "target_rejected", "tie_flips")
COLUMNS = (
    "example_id", "arm", "index", "error", "prompt_tokens", "new_tokens", "finish_reason", "quality", "fidelity",
    "decode_seconds", "prefill_seconds", *COUNTS,
)  # fmt: skip


def configuration(run: Mapping[str, Any]) -> dict[str, Any]:
    """The composed configuration and, beside it, who the run is and where it was measured last: all from run.json.

    `identity` holds code hash, device, versions and the resolved arms, `provenance` the commit and the machine of the
    last of its `starts`. `live`: whether any of its examples was measured beside live tracking.
    """
    return {
        **run["config"],
        "identity": run["identity"],
        "provenance": run["provenance"][-1],
        "starts": len(run["provenance"]),
        "notices": list(run["notices"]),
        "live": LIVE_NOTICE in run["notices"],
    }


def definitions(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Unit, direction and meaning of every metric of the summary, by full name."""
    found = {name: find(name) for name in in_order(name for numbers in summary.values() for name in numbers)}
    return {
        name: {"unit": metric.unit, "better": metric.better, "description": metric.description}
        for name, metric in found.items()
    }


def flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """`arm/metric`, and `arm/metric/low`, `arm/metric/high` where there is an interval."""
    numbers: dict[str, float] = {}
    for arm, metrics in summary.items():
        for name, entry in metrics.items():
            ends = entry if isinstance(entry, Mapping) else {"value": entry}
            for end, number in ends.items():
                numbers[f"{arm}/{name}" if end == "value" else f"{arm}/{name}/{end}"] = number
    return numbers


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


def by_example(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of one example after the other, in the run's order."""
    for _, own in groupby(sorted(rows, key=lambda row: row.index), key=lambda row: row.index):
        yield list(own)


class Curves:
    """Running tokens per second and fidelity of each arm, over its own examples so far that did not fail.

    A glance while measuring: the summary is what pairs the arms and has intervals.
    """

    def __init__(self) -> None:
        self.examples = 0
        self._sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, rows: Sequence[Row]) -> dict[str, float]:
        """Take in the rows of one example. Returns the points to draw, with their step."""
        self.examples += 1
        for row in rows:
            if row.error is None:
                sums = self._sums[row.arm]
                if row.decode_seconds:
                    sums["tokens"] += clocked_tokens(row)
                    sums["seconds"] += decode_seconds(row)
                sums["loss"] += loss(row)
                sums["known"] += loss_tokens(row)
        return {STEP: self.examples, **{f"live/{arm}/{name}": at for arm in self._sums for name, at in self._now(arm)}}

    def _now(self, arm: str) -> Iterator[tuple[str, float]]:
        sums = self._sums[arm]
        if sums["seconds"]:
            yield "tokens_per_second", sums["tokens"] / sums["seconds"]
        if sums["known"]:
            yield "fidelity", 1.0 - sums["loss"] / sums["known"]
