"""The numbers behind figures: a metric of an arm over several tasks, with its interval; what a caption says of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.comparison import Number, speedup
from experiments.errors import UserError, near
from experiments.frontier import Arms
from experiments.metrics import METRICS, Metric, find
from experiments.statistics import Array, Estimate, Statistic, lift, mean
from experiments.tables import MEAN, StoredRun, places

Panels = Literal["mean", "tasks", "all"]
Place = Sequence[Arms]  # one comparison for each task that a panel is the mean of
PLAIN = ("ratio", "share", "calls/token", "tokens/token", "tokens/s", "per round", "tokens/round")  # said by the name


@dataclass(frozen=True)
class Shown:
    """Stored runs as a figure shows them: what its panels are the mean of, and the arms of each task."""

    panels: dict[str, Place]
    tasks: Mapping[str, Arms]
    runs: Sequence[StoredRun]


def open_runs(runs: Sequence[StoredRun], panels: Panels = "mean", mix: Collection[str] = ()) -> Shown:
    """`panels`: the mean over the tasks (of one task: the task), each task, or all of them, the mean first.
    `mix`: keys of experiments.comparability in which the runs may differ.

    Raises UserError for no runs, for runs that do not mix, and for other panels.
    """
    check_runs(runs)
    if panels not in ("mean", "tasks", "all"):
        raise UserError(f"panels={panels!r}: accepted: mean, tasks, all")
    found = places(runs, mix)
    tasks = {title: place[0] for title, place in found.items() if title != MEAN}
    titles = {"mean": list(found)[:1], "tasks": list(tasks), "all": list(found)}[panels]
    return Shown({title: found[title] for title in titles}, tasks, runs)


def check_runs(runs: Sequence[StoredRun]) -> None:
    """Raises UserError for no runs."""
    if not runs:
        raise UserError("runs=[]: a figure needs at least one stored run")


def metric_of(name: str) -> Metric:
    """The definition of a metric's full name. Raises UserError for a name nobody defined."""
    try:
        return find(name)
    except ValueError as error:
        raise UserError(f"metric={name!r}: not known{near(name, [metric.name for metric in METRICS])}") from error


def label_of(name: str) -> str:
    """A metric's full name as the label of an axis."""
    metric = metric_of(name)
    words = name.replace("_", " ").replace("speedup over.", "speedup over ").replace(".", ", ")
    return words if metric.unit in PLAIN else f"{words} ({metric.unit})"


def number_of(arms: Arms, name: str, metric: str) -> Number:
    """A metric of one arm on one task; None where the arm is missing, always failed, or the metric does not apply."""
    definition, arm = metric_of(metric), arms.get(name)
    if arm is None or not arm.detail.rows:
        return None
    key = definition.key(metric) or ""
    if definition.name.startswith("speedup_over."):
        return speedup(arm, arm.arms.get(key))  # the registry computes it for one other arm only
    found = definition.compute(arm)
    return found.get(key) if isinstance(found, Mapping) else found


def estimate(place: Place, name: str, metric: str, relative_to: str | None = None) -> Estimate | None:
    """The mean over the tasks, with its interval; `relative_to` another arm: the relative difference from that arm.

    None where one of the tasks has no number.
    """
    numbers = [number_of(arms, name, metric) for arms in place]
    if relative_to is not None:
        numbers = [
            _relative(own, number_of(arms, relative_to, metric)) for own, arms in zip(numbers, place, strict=True)
        ]
    return mean_of(numbers)


def mean_of(numbers: Sequence[Number]) -> Estimate | None:
    """Unweighted mean; None where one is missing or undefined."""
    statistics = [number for number in numbers if isinstance(number, Statistic)]
    if statistics and len(statistics) == len(numbers):
        return mean(statistics).estimate()
    plain = [float(number) for number in numbers if isinstance(number, int | float)]
    if not plain or len(plain) < len(numbers) or not np.isfinite(plain).all():
        return None
    return Estimate(sum(plain) / len(plain))


def _relative(own: Number, base: Number) -> Number:
    if isinstance(own, Statistic) and isinstance(base, Statistic):
        return lift(_minus_one, own / base)
    if isinstance(own, int | float) and isinstance(base, int | float) and base:
        return own / base - 1
    return None


def _minus_one(column: Array) -> Array:
    return column - 1


def members(place: Place, name: str, metric: str) -> list[str]:
    """The keys of a metric family that an arm has on any of the tasks, in order of first appearance."""
    found: dict[str, None] = {}
    definition = next(one for one in METRICS if one.name == metric)
    for arms in place:
        arm = arms.get(name)
        computed = definition.compute(arm) if arm is not None and arm.detail.rows else {}
        found.update(dict.fromkeys(computed if isinstance(computed, Mapping) else ()))
    return list(found)


def known_arms(runs: Sequence[StoredRun], names: Iterable[str] | None) -> list[str]:
    """The arms asked for, None: all. Raises UserError where none of them is in the runs: that is a mistyped name."""
    check_runs(runs)
    known = runs[0].arms
    asked = list(known if names is None else dict.fromkeys(names))
    if not set(asked) & set(known):
        raise UserError(f"arms: no arm {asked[0]!r}{near(asked[0], known)}" if asked else "arms=[]: accepted: a name")
    return asked


def caption(shown: Shown, missing: Iterable[str] = (), *, intervals: bool = True) -> str:
    """How many prompts of which tasks, where measured, what failed, and which arms have no number here."""
    counts = {title: _prompts(arms) for title, arms in shown.tasks.items()}
    if len(set(counts.values())) == 1:
        told = f"{', '.join(counts)}: {next(iter(counts.values()))}{' each' if len(counts) > 1 else ''}"
    else:
        told = "; ".join(f"{title}: {count}" for title, count in counts.items())
    parts = [where(shown), told]
    if intervals:
        parts.append("Bars: 95% bootstrap intervals over prompts")
    failed = {name: sum(arms[name].failed for arms in shown.tasks.values()) for name in shown.runs[0].arms}
    if any(failed.values()):
        parts.append(f"Failed examples: {', '.join(f'{name} {count}' for name, count in failed.items() if count)}")
    if absent := list(dict.fromkeys(missing)):
        parts.append(f"No number: {', '.join(absent)}")
    return ". ".join(parts) + "."


def where(shown: Shown) -> str:
    """The pair, the temperature and what they were measured on."""
    first = shown.runs[0]
    device, dtype, threads = (_all_of(shown.runs, key) for key in ("device", "dtype", "threads"))
    return (
        f"Pair {first.identity['pair']['name']}, temperature {first.temperature:g}; {device}, {dtype}, "
        f"{threads} thread(s)"
    )


def _all_of(runs: Sequence[StoredRun], key: str) -> str:
    """What the runs' identities say, each value once."""
    return ", ".join(dict.fromkeys(str(run.identity[key]) for run in runs))


def _prompts(arms: Arms) -> str:
    timed = max((len(arm.timed.rows) for arm in arms.values()), default=0)
    judged = max((len(arm.detail.rows) for arm in arms.values()), default=0)
    return f"{judged} prompts, timed" if timed == judged else f"{timed} timed, {judged} judged prompts"


def knob_of(run: StoredRun, arm: str, path: str) -> Any:
    """A key of a method as it was run, as in `stop.length`. Raises UserError where the arm has no such key."""
    node: Any = run.identity["arms"][arm]
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            accepted = ", ".join(node) if isinstance(node, Mapping) else "none"
            raise UserError(f"knob={path}: arm {arm!r} has no {part!r}; accepted: {accepted}")
        node = node[part]
    return node


def sweeps(run: StoredRun, knob: str) -> dict[str, list[str]]:
    """The arms that differ from each other in this one key of the method, as `stop.length`: a line for each group of
    two or more, by the name of its first arm, for `sweep_line`.
    """
    groups: dict[str, list[str]] = {}
    for name in run.arms:
        node = copy.deepcopy(run.identity["arms"][name])
        node.pop("name", None)
        *way, last = knob.split(".")
        holder: Any = node
        for part in way:
            holder = holder.get(part) if isinstance(holder, Mapping) else None
        if isinstance(holder, dict) and isinstance(holder.get(last), int | float):
            del holder[last]
            if last == "skip_ratio":
                holder.pop("mask", None)  # follows from the ratio
            groups.setdefault(json.dumps(node, sort_keys=True, default=str), []).append(name)
    return {names[0]: names for names in groups.values() if len(names) > 1}
