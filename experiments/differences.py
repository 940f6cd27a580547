"""What two runs of the same work do differently: rows of the same (example, arm) side by side. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

from experiments.comparison import (
    DETAIL_SEED,
    TIMED_SEED,
    Sample,
    clocked_tokens,
    decode_seconds,
    has_quality,
    loss,
    loss_tokens,
    quality,
)
from experiments.records import Row, is_reading
from experiments.statistics import Estimate, Resamples

ABSENT = "absent"  # stands for what one side has not
IDS = "token_ids"
COLUMNS = {one.name: str(one.type) for one in fields(Row) if one.name not in ("example_id", "arm", "error")}
COMPARED = [name for name in COLUMNS if name != IDS and not is_reading(name)]
COUNTS = [name for name in COMPARED if COLUMNS[name].startswith(("int", "list[int]", "dict"))]
WORK = ("task", "pair", "sampling")  # parts of a run's identity that must agree

Rows = dict[tuple[str, str], Row]  # by example and arm


@dataclass(frozen=True)
class Difference:
    """A value that is not the same on both sides, by its dotted key."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        a, b = (one if isinstance(one, str) and one.isprintable() else repr(one) for one in (self.a, self.b))
        return f"{self.key} A {a}, B {b}"


@dataclass(frozen=True)
class Checked:
    """An example of an arm that succeeded in both runs, and where its rows differ."""

    a: Row
    b: Row
    token: int | None  # first position at which the ids differ
    counts: list[Difference]
    others: list[str]  # columns that are neither ids nor counts nor seconds, such as texts and losses

    @property
    def differs(self) -> bool:
        """Whether ids or counts do; the other columns follow from ids, or from a model's rounding."""
        return self.token is not None or bool(self.counts)


@dataclass(frozen=True)
class Comparison:
    """The rows of two runs by example and arm, and what came of those that both hold."""

    a: Rows
    b: Rows
    checked: list[Checked]
    failed: dict[str, list[Row]]  # error rows by the side that alone failed: A, B

    @property
    def same(self) -> bool:
        """Whether nothing that both hold differs."""
        return not any(one.differs for one in self.checked) and not any(self.failed.values())

    @property
    def arms(self) -> dict[str, list[Checked]]:
        """What was checked, by arm."""
        return {
            arm: [one for one in self.checked if one.a.arm == arm] for arm in {one.a.arm: None for one in self.checked}
        }


@dataclass(frozen=True)
class Numbers:
    """What an arm gained or lost from A to B, on the examples that both runs hold."""

    timed: int
    speed: Estimate | None  # A's decode seconds per token over B's
    quality: Estimate | None  # B's minus A's
    fidelity: Estimate | None  # B's minus A's


def compare_rows(a: Sequence[Row], b: Sequence[Row]) -> Comparison:
    """Put the rows of two runs side by side."""
    left, right = ({(row.example_id, row.arm): row for row in rows} for rows in (a, b))
    both = [(row, right[key]) for key, row in left.items() if key in right]
    return Comparison(
        a=left,
        b=right,
        checked=[check(one, other) for one, other in both if one.error is None and other.error is None],
        failed={
            "A": [one for one, other in both if one.error is not None and other.error is None],
            "B": [other for one, other in both if one.error is None and other.error is not None],
        },
    )


def check(a: Row, b: Row) -> Checked:
    """Compare two rows of the same example and arm."""
    counts = [one for name in COUNTS for one in unequal({name: getattr(a, name)}, {name: getattr(b, name)})]
    others = [name for name in COMPARED if name not in COUNTS and getattr(a, name) != getattr(b, name)]
    pairs = enumerate(zip_longest(a.token_ids, b.token_ids))
    return Checked(a, b, next((place for place, (one, other) in pairs if one != other), None), counts, others)


def unequal(a: Any, b: Any) -> list[Difference]:
    """The leaves of two nested values that differ."""
    left, right = flatten(a), flatten(b)
    keys = [*left, *(key for key in right if key not in left)]
    found = (Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys)
    return [one for one in found if one.a != one.b]


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and sequences by dotted key."""
    if not isinstance(value, Mapping | list | tuple):
        return {key: value}
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {name: leaf for part, inner in items for name, leaf in flatten(inner, f"{key}.{part}".lstrip(".")).items()}


def other_work(a: Mapping[str, Any], b: Mapping[str, Any], mix: Collection[str] = ()) -> list[Difference]:
    """What makes two runs, by their identities, different work: their rows cannot be the same.

    A setting that only one of them knows, or the place of a class, is what a refactor may change. `mix` names parts
    that may differ, as the pair where another draft model must not change what a lossless arm writes.
    """
    parts = [part for part in WORK if part not in mix]
    known = {part: [name for name in a[part] if name in b[part] and name != "_target_"] for part in parts}
    left, right = ({part: {name: side[part][name] for name in known[part]} for part in parts} for side in (a, b))
    return unequal(left, right)


def circumstances(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """All in which two identities of the same work differ: code, device, versions, settings of the arms both have."""
    shared = [arm for arm in a["arms"] if arm in b["arms"]]

    def known(side: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in side.items() if key not in ("order", "arms")}
        return {**rest, "arms": {arm: side["arms"][arm] for arm in shared}}

    return unequal(known(a), known(b))


def numbers(checked: Sequence[Checked]) -> Numbers:
    """Speed, quality and fidelity of one arm, each resampled in pairs."""
    timed = [one for one in checked if one.a.decode_seconds and one.b.decode_seconds]
    a, b = _samples(timed, TIMED_SEED)
    speed = a.ratio(decode_seconds, clocked_tokens) / b.ratio(decode_seconds, clocked_tokens)
    a, b = _samples(checked, DETAIL_SEED)
    gained, kept = b.minus(a, quality, has_quality), a.minus(b, loss, loss_tokens)
    return Numbers(len(timed), speed.estimate(), gained.estimate(), kept.estimate())


def _samples(checked: Sequence[Checked], seed: int) -> tuple[Sample, Sample]:
    resamples = Resamples.draw(len(checked), seed)
    return Sample([one.a for one in checked], resamples), Sample([one.b for one in checked], resamples)
