"""Live curves: what is told of each example while the next one waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from experiments.comparison import clocked_tokens, decode_seconds, loss, loss_tokens
from experiments.logged.session import STEP
from experiments.records import Row


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
