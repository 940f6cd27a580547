"""Which timings were disturbed, by one rule each, as notes for the footers of tables. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.conditions.gpu import SLOWED
from experiments.records import Row

SHARE = 0.02  # of a time that may be lost before it is told
LIMITING = ("power", "thermal", "board", "reliability")  # limits of a GPU that slow it while it works


def disturbances(task: str, rows: Sequence[Row], provenance: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of a run's timings must know. `provenance`: one entry for each start of the run."""
    told = [] if (text := late(rows)) is None else [text]
    for start in provenance:
        conditions = start.get("conditions", {})
        told += between(conditions.get("before", {}), conditions.get("after", {}))
    return [f"task {task}: {text}" for text in dict.fromkeys(told)]


def late(rows: Sequence[Row]) -> str | None:
    """How many timed generations waited for a core for more than `SHARE` of their seconds, and which arms most."""
    arms: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if spent := list(waits(row)):
            arms.setdefault(row.arm, []).extend(spent)
    timed = [one for own in arms.values() for one in own]
    disturbed = sum(waited > SHARE * seconds for waited, seconds in timed)
    if not disturbed:
        return None
    lost = {arm: sum(one[0] for one in own) / sum(one[1] for one in own) for arm, own in arms.items()}
    most, least = max(lost, key=lost.__getitem__), min(lost, key=lost.__getitem__)
    ends = f"{lost[most]:.1%} in {most}" + (f", the most, {lost[least]:.1%} in {least}, the least" * (most != least))
    return (
        f"{disturbed} of {len(timed)} timed generations waited for a core for more than {SHARE:.0%} of their seconds "
        f"(of all seconds: {ends})"
    )


def waits(row: Row) -> Iterator[tuple[float, float]]:
    """Seconds that each timed repeat waited for a core, and that it took, prefill included."""
    for waited, decode, prefill in zip(row.waited_seconds, row.decode_seconds, row.prefill_seconds, strict=False):
        yield waited, decode + prefill


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What happened to the machine between two readings; nothing where one is missing."""
    if not before or not after:
        return
    elapsed, stolen = grown(before, after, "uptime", "seconds"), grown(before, after, "cores", "stolen_seconds")
    wanted = stolen + grown(before, after, "cores", "busy_seconds")
    if stolen > SHARE * wanted:
        yield f"the host of this virtual machine took {stolen / wanted:.1%} of the time that the cores wanted"
    stood_still = grown(before, after, "pressure", "memory_full", "seconds")
    if stood_still > SHARE * elapsed:
        yield f"all work stood still for lack of memory, {stood_still:.1f} s"
    hot = [grown(before, after, "throttling", name) for name in ("core_throttle", "package_throttle")]
    if any(hot):
        yield f"the processor slowed down {max(hot):.0f} times because it was hot"
    yield from gpu_between(before.get("gpu", {}), after.get("gpu", {}), elapsed)


def gpu_between(before: Mapping[str, Any], after: Mapping[str, Any], elapsed: float) -> Iterator[str]:
    """The same for the GPU: limits that held its clocks down, and other processes on it."""
    reasons = {*before.get("reasons", []), *after.get("reasons", [])} & set(SLOWED)
    lost = {name: grown(before, after, "slowed_seconds", name) for name in LIMITING}
    limits = [f"{name} limit for {seconds:.1f} s" for name, seconds in lost.items() if seconds > SHARE * elapsed]
    if held := [*sorted(reasons), *limits]:
        yield f"the clocks of the GPU were held down ({', '.join(held)})"
    if others := max(before.get("other_processes", 0), after.get("other_processes", 0)):
        yield f"other processes computed on the GPU ({others})"


def grown(before: Mapping[str, Any], after: Mapping[str, Any], *keys: str) -> float:
    """How much a total has grown from one reading to the other; 0 where one of them lacks it."""
    ends: list[Any] = [before, after]
    for key in keys:
        ends = [end.get(key, {}) for end in ends]
    return 0.0 if {} in ends else max(0.0, ends[1] - ends[0])
