"""From what was measured to the lines of the table: values with units, what is hoped for, what is told beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from experiments.benching.loops import at_median, same_outputs
from experiments.benching.setup import TWINS
from experiments.benching.steps import Step, Steps
from experiments.benching.usage import MemoryUse
from experiments.comparison import (
    Arm,
    Number,
    compare,
    decode_seconds,
    ideal_speedup,
    request_seconds,
    speedup,
    time_shares,
    tokens,
)
from experiments.records import Row
from experiments.statistics import Estimate, Statistic

# Hoped for; nothing fails that misses them.
OVER_LIBRARY = {"vanilla": ">= 1.25", "sd": ">= 1.40"}
OTHER = {"cpu": "<= 0.05", "cuda": "<= 0.03"}
OVER_IDEAL = {"cpu": ">= 0.93", "cuda": ">= 0.95"}
MEMORY, SAME = "<= 1.05", "= 1"
STARTUP = {"no-op run": "< 4"}
RECORDED, BANDWIDTH = ">= 3", ">= 0.75"  # on CUDA: draft steps, eager over graphs; a large target's step over a copy
LARGE = 10**10  # bytes that a step reads from which on the memory's bandwidth ought to decide: 7b in 16 bits has 14e9


@dataclass(frozen=True)
class Line:
    """One line of the table. Without a value where it could not be measured; `beside` says why, or tells more."""

    part: str
    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    target: str | None = None
    beside: str = ""


def line(part: str, name: str, unit: str, number: Number, target: str | None = None, beside: str = "") -> Line:
    """A line from a number with or without an interval."""
    found = number.estimate() if isinstance(number, Statistic) else number
    if isinstance(found, Estimate):
        return Line(part, name, unit, found.value, found.low, found.high, target, beside)
    return Line(part, name, unit, found, target=target, beside=beside)


def tokens_per_second(arm: Arm) -> Statistic:
    """Of whole requests, prefill included."""
    return arm.timed.ratio(tokens, request_seconds)


def loop_lines(
    rows: Sequence[Row], loops: Sequence[str], dtype: str, exact: Mapping[str, Sequence[bool]]
) -> list[Line]:
    """Speeds of all loops; of ours against the library's that does the same; whether both write the same.

    `exact`: by our loop, whether its outputs in float64 are the library's.
    """
    arms = compare([at_median(row) for row in rows if row.error is None], loops)
    lines = [line("loops", name, "tokens/s", tokens_per_second(arms[name])) for name in loops]
    twins = {own: twin for own, twin in TWINS.items() if own in arms}
    for own, twin in twins.items():
        ratio = tokens_per_second(arms[own]) / tokens_per_second(arms[twin])
        lines.append(line("loops", f"{own} / {twin}", "ratio", ratio, OVER_LIBRARY[own]))
    for own, twin in twins.items():
        told = {dtype: same_outputs(rows, own, twin), "float64": exact.get(own, [])}  # once where that is dtype
        lines += [_sameness(f"{own} = {twin}, {kind}", same) for kind, same in told.items() if same]
    return lines


def _sameness(name: str, same: Sequence[bool]) -> Line:
    target = SAME if name.endswith("float64") else None
    return Line("outputs", name, "share", mean(same), target=target, beside=f"{sum(same)} of {len(same)} outputs")


def harness_lines(rows: Sequence[Row], methods: Sequence[str], device: str) -> list[Line]:
    """Time outside of forwards; seconds and speedup over what isolated calls alone would give.

    `device`: cpu or cuda, where time outside is by the device's clock.
    """
    arms = compare([at_median(row) for row in rows if row.error is None], methods)
    outside, told = (other_on_device, "by the device's clock") if device == "cuda" else (other_on_host, "")
    lines = [line("harness", f"{name}: other", "share", outside(arms[name]), OTHER[device], told) for name in methods]
    lines += [
        line("harness", f"{name}: seconds / ideal", "ratio", arms[name].timed.ratio(decode_seconds, _ideal_seconds))
        for name in methods
    ]
    for name in methods:
        own, ideal = speedup(arms[name], arms[name].vanilla), ideal_speedup(arms[name])
        if name != "vanilla" and own is not None and ideal is not None:
            told = f"{own.value:.2f} of {ideal.value:.2f}"
            lines.append(line("harness", f"{name}: speedup / ideal", "ratio", own / ideal, OVER_IDEAL[device], told))
    return lines


def other_on_host(arm: Arm) -> Number:
    """Share of the profiled pass outside of forwards."""
    return time_shares(arm)["other"]


def other_on_device(arm: Arm) -> Number:
    """Share of the timed pass, which waits for the device only where it must, without a forward on the device."""
    return 1.0 - arm.timed.ratio(lambda row: sum(row.device_seconds.values()), decode_seconds)


def _ideal_seconds(row: Row) -> float:
    return row.ideal_seconds or 0.0


def step_lines(steps: Steps, reads: int) -> list[Line]:
    """Milliseconds of every step; beside it those per token, the share of the bandwidth of a copy, the other mode.

    `reads`: how many tokens the models read. A line tells of each context beyond that, whether it was timed or not.
    """
    lines = [_step_line(step, steps) for step in steps.steps]
    lines.append(line("steps", "copy", "GB/s", steps.copy_bandwidth / 1e9))
    beyond = sorted({step.context for step in steps.steps if step.context > reads})
    told = dict.fromkeys(beyond, f"cost only: the models read {reads} tokens")
    told |= dict.fromkeys(steps.unread, f"not measured: the models read {reads} tokens")
    return lines + [line("steps", f"at {context}", "ms", None, beside=text) for context, text in told.items()]


def cuda_lines(steps: Steps, drafter: str) -> list[Line]:
    """What recordings gain for a draft step, and how near a target's step comes to a copy, both at the first context.

    Without a value, and saying why, where a bench did not measure it.
    """
    first = {step.reader: step for step in reversed(steps.steps) if step.fed == 1}
    draft, target = first.get(drafter), first.get("target")
    gain = draft.other.median / draft.cost.median if draft is not None and draft.other is not None else None
    why = ""
    if gain is None or steps.modes != ("graphs", "eager"):
        gain, why = None, f"not measured: engine.mode={steps.modes[0]}" if draft else "not measured: no draft step"
    share = None if target is None else _bandwidth(target, steps)
    large = target is not None and target.read_bytes >= LARGE
    size = "not measured: no contexts" if target is None else f"{target.read_bytes / 1e9:.1f} GB a step"
    return [
        line("cuda", "draft step: eager / graphs", "ratio", gain, RECORDED, why),
        line("cuda", "vanilla step: bandwidth / copy", "ratio", share, BANDWIDTH if large else None, size),
    ]


def _bandwidth(step: Step, steps: Steps) -> float:
    return step.read_bytes / step.cost.median / steps.copy_bandwidth


def _step_line(step: Step, steps: Steps) -> Line:
    cost = step.cost
    told = [f"{1e3 * cost.median / step.fed:.2f} ms/token"] if step.fed > 1 else []
    told.append(f"{_bandwidth(step, steps):.2f} of copy")
    if step.other is not None:
        own, other = steps.modes
        told.append(f"{other}/{own} {step.other.median / cost.median:.2f}")
    name = f"{step.reader}, {step.fed} at {step.context}"
    return Line("steps", name, "ms", 1e3 * cost.median, 1e3 * cost.low, 1e3 * cost.high, beside=", ".join(told))


def memory_lines(use: MemoryUse) -> list[Line]:
    """The memory of every method over that of sd, which is vanilla's and the draft model's with its cache."""
    lines = []
    for name in use.held:
        if name in TWINS or "sd" not in use.held:
            continue
        held = f"{use.held[name] / 1e6:.1f} of {use.held['sd'] / 1e6:.1f} MB"
        lines.append(
            line("memory", f"{name} / (vanilla + draft)", "ratio", use.held[name] / use.held["sd"], MEMORY, held)
        )
        if use.peak:
            peak = f"{use.peak[name] / 1e6:.1f} of {use.peak['sd'] / 1e6:.1f} MB"
            ratio = use.peak[name] / use.peak["sd"]
            lines.append(line("memory", f"{name} / (vanilla + draft), peak", "ratio", ratio, MEMORY, peak))
    return lines


def startup_lines(seconds: Mapping[str, float]) -> list[Line]:
    """Seconds until a command is done."""
    return [line("start-up", name, "s", one, STARTUP.get(name)) for name, one in seconds.items()]
