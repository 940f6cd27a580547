"""From what was measured to the numbers of probe.json: per task and their unweighted mean, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from experiments.costs import CostCurve
from experiments.probing.agreement import Distance, Sureness, by_position
from experiments.probing.bounds import BOUNDS
from experiments.probing.predict import Replay
from experiments.probing.setup import ProbeJob
from experiments.statistics import Resamples, Statistic, mean

MEAN = "mean over tasks"
Key = tuple[str, int]  # arm, tokens per draft


@dataclass(frozen=True)
class Seen:
    """All that is kept of one prompt once its rows are gone."""

    task: str
    tokens: int
    distances: dict[str, Distance]
    sureness: dict[str, Sureness]
    replays: dict[Key, Replay]


class Sample:
    """The prompts of each task with their resamples; every ratio of one task is resampled alike."""

    def __init__(self, seen: Sequence[Seen], seed: int) -> None:
        self.tasks = {task: list(group) for task, group in groupby(seen, key=lambda one: one.task)}
        self._resamples = {
            task: Resamples.draw(len(group), seed + place) for place, (task, group) in enumerate(self.tasks.items())
        }

    def ratio(self, top: Callable[[Seen], float], bottom: Callable[[Seen], float]) -> dict[str, Statistic]:
        """Total over total by task, and the mean over the tasks."""
        found = {
            task: self._resamples[task].ratio([top(one) for one in group], [bottom(one) for one in group])
            for task, group in self.tasks.items()
        }
        return {**found, MEAN: mean(list(found.values()))}

    def quotient(self, one: Mapping[str, Statistic], other: Mapping[str, Statistic]) -> dict[str, Statistic]:
        """One ratio over another by task, and the mean over the tasks of these."""
        found = {task: one[task] / other[task] for task in self.tasks}
        return {**found, MEAN: mean(list(found.values()))}


def in_json(numbers: Mapping[str, Statistic]) -> dict[str, Any]:
    """Values with intervals by task; None where one is undefined."""
    estimates = {task: number.estimate() for task, number in numbers.items()}
    return {task: None if estimate is None else estimate.to_json() for task, estimate in estimates.items()}


def summarize_costs(costs: Mapping[str, CostCurve], context: int) -> dict[str, Any]:
    """Seconds by reader and fed length, and relative to a target step of one token."""
    step = costs["target"].seconds(1)
    readers = {
        name: {str(fed): {**asdict(cost), "over_target_step": cost.median / step} for fed, cost in curve.steps.items()}
        for name, curve in costs.items()
    }
    return {"context": context, "unit": "seconds", "readers": readers}


def summarize_agreement(sample: Sample, job: ProbeJob) -> dict[str, Any]:
    """Agreement, total variation and KL of every other model and view, by task."""
    views = {view.name: {**asdict(view), "skipped": view.skipped} for view in job.views}
    names = list(next(iter(sample.tasks.values()))[0].distances)
    return {
        name: {
            "view": views.get(name),
            **{
                measure: in_json(sample.ratio(_distance(name, field), _distance(name, "tokens")))
                for measure, field in (("agreement", "equal"), ("tv", "tv"), ("kl", "kl"))
            },
        }
        for name in names
    }


def _distance(name: str, field: str) -> Callable[[Seen], float]:
    return lambda one: float(getattr(one.distances[name], field))


def summarize_positions(seen: Sequence[Seen]) -> dict[str, list[dict[str, float]]]:
    """Entropy (nats) and probability of the first choice by position in the output, over the tokens of all tasks."""
    columns = ("from", "to", "tokens", "entropy", "top_probability")
    return {
        role: [dict(zip(columns, row, strict=True)) for row in by_position([one.sureness[role] for one in seen])]
        for role in seen[0].sureness
    }


def summarize_predictions(sample: Sample, job: ProbeJob, costs: Mapping[str, CostCurve]) -> list[dict[str, Any]]:
    """One entry per arm and draft length; speeds are tokens per second of forward calls alone.

    `over_sd`: over sd at the same draft length; of bounds, which have none, over sd at its best one.
    """
    prices = {**costs, "slim": costs[job.view.name]}
    keys = list(next(iter(sample.tasks.values()))[0].replays)
    speeds = {key: sample.ratio(_tokens, _seconds(key, prices)) for key in keys}
    sd = {length: number(in_json(speeds[arm, length])[MEAN]) for arm, length in keys if arm == "sd"}
    fastest = max(sd, key=lambda length: sd[length], default=0)
    beside = {key: fastest if key[0] in BOUNDS else key[1] for key in keys}  # draft length of the sd to compare with
    return [
        {
            "arm": arm,
            "draft_length": length,
            "tokens_per_second": in_json(speeds[arm, length]),
            "speedup": in_json(sample.quotient(speeds[arm, length], speeds["vanilla", 0])),
            "over_sd": in_json(sample.quotient(speeds[arm, length], speeds["sd", beside[arm, length]]))
            if beside[arm, length]
            else None,
            "tokens_per_round": in_json(sample.ratio(_tokens, _rounds((arm, length)))),
            "drafted_per_token": in_json(sample.ratio(_drafted((arm, length)), _tokens)),
            "target_calls_per_token": in_json(sample.ratio(_calls((arm, length), "target"), _tokens)),
            "escalating_rounds": in_json(sample.ratio(_escalated((arm, length)), _rounds((arm, length)))),
        }
        for arm, length in keys
    ]


def _tokens(one: Seen) -> float:
    return one.tokens


def _seconds(key: Key, prices: Mapping[str, CostCurve]) -> Callable[[Seen], float]:
    return lambda one: one.replays[key].seconds(prices)


def _rounds(key: Key) -> Callable[[Seen], float]:
    return lambda one: one.replays[key].rounds


def _drafted(key: Key) -> Callable[[Seen], float]:
    return lambda one: one.replays[key].drafted


def _calls(key: Key, role: str) -> Callable[[Seen], float]:
    return lambda one: one.replays[key].calls(role)


def _escalated(key: Key) -> Callable[[Seen], float]:
    return lambda one: one.replays[key].escalated


def break_even(seen: Sequence[Seen], job: ProbeJob, costs: Mapping[str, CostCurve], length: int) -> dict[str, float]:
    """t(slim) / t(target) + share of rounds that escalate, at one draft length, over the rounds of all tasks.

    t(slim) is the mean slim pass of the method, t(target) the mean target pass of sd at the same draft length: what a
    round saves and what it pays. Below 1 the slim verifier's pass is worth its cost, if kept tokens are as many.
    """
    prices = {**costs, "slim": costs[job.view.name]}
    ours = [one.replays[job.method.name, length] for one in seen]
    theirs = [one.replays["sd", length] for one in seen]
    slim = sum(one.seconds(prices, "slim") for one in ours) / max(1, sum(one.calls("slim") for one in ours))
    target = sum(one.seconds(prices, "target") for one in theirs) / max(1, sum(one.calls("target") for one in theirs))
    escalating = sum(one.escalated for one in ours) / sum(one.rounds for one in ours)
    return {
        "draft_length": length,
        "slim_seconds": slim,
        "target_seconds": target,
        "cost_ratio": slim / target,
        "escalating_rounds": escalating,
        "sum": slim / target + escalating,
    }


def best(predicted: Sequence[Mapping[str, Any]], arm: str) -> Mapping[str, Any] | None:
    """The arm's entry with the most tokens per second in the mean over tasks; None where it was not predicted."""
    entries = [entry for entry in predicted if entry["arm"] == arm]
    return max(entries, key=lambda entry: number(entry["tokens_per_second"][MEAN]), default=None)


def number(entry: Any) -> float:
    """The value of an entry with or without an interval."""
    return float(entry["value"] if isinstance(entry, Mapping) else entry)
