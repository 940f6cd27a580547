"""Drafters that were trained several times: acceptance length and speed of one kind of training over another.

`python -m experiments.tables ... --trainings plain=plain_0,plain_1 --trainings vsd_style=vsd_style_0,vsd_style_1`
compares every kind with the first one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.comparability import cells as cells_of
from experiments.comparison import Arm, seconds_per_token, tokens
from experiments.errors import UserError
from experiments.statistics import REPLICATES, Estimate, Statistic, lift, mean

Place = Sequence[Mapping[str, Arm]]  # the arms of one task, or those of all
Kinds = Mapping[str, Sequence[str]]  # arms by kind, one of each seed of training
Compared = dict[str, dict[str, Estimate | None]]  # by kind and measure
SEED = 17
NOTE = (
    "Acceptance length: committed tokens per round. Each kind: mean over its trainings and, unweighted, over tasks; "
    "ratios are means of the tasks' ratios. Intervals: 95%, bootstrap over prompts and over trainings, whose spread is "
    "widened for their number; of three trainings they hold the truth about four times in five. Kinds with as many "
    "trainings are paired by seed; `each` has the ratio of every training to the first kind's of its seed."
)


def compare_kinds(place: Place, kinds: Kinds) -> Compared:
    """Of each kind its acceptance length and tokens per second, and each of them over the first kind's."""
    base = kinds[next(iter(kinds))]
    told: Compared = {}
    for kind, arms in kinds.items():
        told[kind] = {}
        for name, of in MEASURES.items():
            told[kind] |= {
                name: mean([_over_trainings(task, arms, of) for task in place]).estimate(),
                f"{name}_ratio": _ratio(place, arms, base, of).estimate(),
            }
    return told


def each_ratio(place: Place, kinds: Kinds, name: str) -> dict[str, list[float]]:
    """Of each kind with as many trainings as the first, the ratio of every one to that of the same seed."""
    base, of = kinds[next(iter(kinds))], MEASURES[name]
    return {
        kind: [_ratio(place, [arm], [first], of).value for arm, first in zip(arms, base, strict=True)]
        for kind, arms in kinds.items()
        if len(arms) == len(base)
    }


def check_kinds(place: Place, kinds: Kinds) -> None:
    """Raises UserError for arms that the runs lack."""
    for kind, arms in kinds.items():
        for arm in arms:
            if any(arm not in task for task in place):
                raise UserError(f"--trainings {kind}: no arm {arm}; accepted: {', '.join(place[0])}")


def markdown(place: Place, kinds: Kinds) -> str:
    """One line for each kind."""
    base, compared = next(iter(kinds)), compare_kinds(place, kinds)
    each = each_ratio(place, kinds, "acceptance_length")
    lines = [
        f"| kind | acceptance length | over {base} | each | tokens/s | over {base} |",
        "|---|---|---|---|---|---|",
    ]
    for kind, told in compared.items():
        cells = [_show(told[name], digits) for name, digits in zip(told, (2, 3, 1, 3), strict=True)]
        cells.insert(2, ", ".join(f"{one:.3f}" for one in each.get(kind, [])))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_csv(path: Path, places: Mapping[str, Compared], more: Mapping[str, Mapping[str, str]]) -> None:
    """Tidy: task, kind, metric, value, low, high, and what `experiments.comparability.columns` adds."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "kind", "metric", "value", "low", "high", *more])
        for task, compared in places.items():
            for kind, told in compared.items():
                for name, found in told.items():
                    ends = [] if found is None else [found.value, found.low, found.high]
                    cells = ["" if end is None else f"{end:.6g}" for end in ends]
                    writer.writerow([task, kind, name, *cells, *[""] * (3 - len(cells)), *cells_of(more, task)])


def _show(found: Estimate | None, digits: int) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _acceptance_length(arm: Arm) -> Statistic:
    return arm.detail.ratio(tokens, lambda row: row.rounds)


def _tokens_per_second(arm: Arm) -> Statistic:
    return lift(lambda seconds: 1 / seconds, seconds_per_token(arm))


MEASURES: dict[str, Callable[[Arm], Statistic]] = {
    "acceptance_length": _acceptance_length,
    "tokens_per_second": _tokens_per_second,
}


def _ratio(place: Place, arms: Sequence[str], base: Sequence[str], of: Callable[[Arm], Statistic]) -> Statistic:
    """Mean over tasks of one kind's statistic over another's."""
    return mean([_over_trainings(task, arms, of) / _over_trainings(task, base, of) for task in place])


def _over_trainings(task: Mapping[str, Arm], arms: Sequence[str], of: Callable[[Arm], Statistic]) -> Statistic:
    """Mean over trainings on one task; every replicate has its own prompts and its own draw of trainings.

    n trainings drawn with replacement spread by (n - 1) / n of their variance: deviations are widened by as much.
    """
    each = [of(task[arm]) for arm in arms]
    value = float(np.mean([one.value for one in each]))
    if any(one.replicates.size == 0 for one in each):
        return Statistic(value, np.zeros(0))
    table, count = np.stack([one.replicates for one in each], axis=1), len(arms)  # [replicates, trainings]
    center = table.mean(axis=1, keepdims=True)
    table = center + (table - center) * (count / max(1, count - 1)) ** 0.5
    return Statistic(value, np.take_along_axis(table, _draws(count), axis=1).mean(axis=1))


def _draws(trainings: int) -> NDArray[np.int64]:
    """Which trainings each replicate holds [replicates, trainings]: the same for every kind and task with as many."""
    return np.random.default_rng([SEED, trainings]).integers(0, trainings, size=(REPLICATES, trainings))
