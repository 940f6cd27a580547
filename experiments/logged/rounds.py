"""What the rounds of the timed rows look like: histograms, and means by place in the text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records import TRACE, Row

COUNTED = ("committed", "drafted", "judged", "accepted", "pending")  # whole numbers of each round
AT = {name: place for place, name in enumerate(TRACE)}
BINS = 32  # of numbers that are not whole
MOST_BINS = 512  # that W&B shows
FEWEST = 3  # examples that a mean over them needs
Values = dict[str, list[float]]


def histograms(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Counts and the edges between them, by `rounds/ARM/QUANTITY`; shares of time are `examples/ARM/time_share.READER`.

    Whole numbers have a bin each, around them.
    """
    return {name: histogram(values) for arm in arms for name, values in _all_values(arm, rows).items() if values}


def histogram(values: Sequence[float]) -> dict[str, list[float]]:
    """Counts by bin and the edges between bins, one more."""
    whole = all(float(value).is_integer() for value in values)
    low, high = min(values), max(values)
    if whole and high - low < MOST_BINS:
        counts, edges = np.histogram(values, bins=np.arange(low - 0.5, high + 1.5))
    else:
        counts, edges = np.histogram(values, bins=BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def by_round(rows: Sequence[Row], arms: Sequence[str], name: str) -> dict[str, list[float]]:
    """The mean of a quantity over the examples of an arm in their first round, in their second, and so on.

    As far as three examples reach: beyond that a mean shows which of them is long.
    """
    found = {}
    for arm in arms:
        rounds = [[values[name] for values in _rounds(row)] for row in _traced(arm, rows) if row.drafted]
        longest = max(map(len, rounds), default=0)
        at = [[own[place] for own in rounds if place < len(own)] for place in range(longest)]
        found[arm] = [sum(values) / len(values) for values in at if len(values) >= min(FEWEST, len(rounds))]
    return {arm: values for arm, values in found.items() if values}


def _all_values(arm: str, rows: Sequence[Row]) -> Values:
    values: Values = defaultdict(list)
    traced = _traced(arm, rows)
    drafts = any(row.drafted for row in traced)  # else all its rounds are the same
    for row in traced:
        for one in _rounds(row) if drafts else ():
            for name, value in one.items():
                values[f"rounds/{arm}/{name}"].append(value)
        for reader, share in _time_shares(row):
            values[f"examples/{arm}/time_share.{reader}"].append(share)
    return values


def _traced(arm: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.arm == arm and row.error is None and row.trace and row.decode_seconds]


def _rounds(row: Row) -> Iterator[dict[str, float]]:
    """The numbers of each round: its counts, and what adaptive parts had come to after it."""
    for one in row.trace:
        numbers = {name: one[AT[name]] for name in COUNTED if name != "accepted"}
        numbers["accepted"] = one[AT["judged"]] - one[AT["rejected"]]
        yield {**numbers, **_adaptive(one[AT["adaptive"]] if len(one) > AT["adaptive"] else None)}


def _adaptive(told: Mapping[str, Mapping[str, Any]] | None) -> dict[str, float]:
    return {f"{part}.{name}": value for part, own in (told or {}).items() for name, value in own.items()}


def _time_shares(row: Row) -> Iterator[tuple[str, float]]:
    if row.profiled_seconds:
        yield from ((reader, seconds / row.profiled_seconds) for reader, seconds in row.reader_seconds.items())
        yield "other", 1.0 - sum(row.reader_seconds.values()) / row.profiled_seconds
