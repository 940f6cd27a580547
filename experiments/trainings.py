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

from experiments.comparison import Arm, seconds_per_token, tokens
from experiments.errors import UserError
from experiments.statistics import REPLICATES, Estimate, Statistic, lift, mean

Place = Sequence[Mapping[str, Arm]]  # the arms of one task, or those of all
Kinds = Mapping[str, Sequence[str]]  # arms by kind, one of each seed of training
Compared = dict[str, dict[str, Estimate | None]]  # by kind and measure
SEED = 17
NOTE = (
    "Acceptance length: committed tokens per round. Each kind: unweighted mean over its trainings and the tasks. "
    "Intervals: 95%, bootstrap over prompts and over trainings; kinds with as many trainings are paired by seed."
)


def compare_kinds(place: Place, kinds: Kinds) -> Compared:
    """Of each kind its acceptance length and tokens per second, and each of them over the first kind's."""
    base = next(iter(kinds))
    told: Compared = {}
    for kind, arms in kinds.items():
        told[kind] = {}
        for name, of in MEASURES.items():
            own, first = (_over_trainings(place, some, of) for some in (arms, kinds[base]))
            told[kind] |= {name: own.estimate(), f"{name}_ratio": (own / first).estimate()}
    return told


def check_kinds(place: Place, kinds: Kinds) -> None:
    """Raises UserError for arms that the runs lack."""
    for kind, arms in kinds.items():
        for arm in arms:
            if any(arm not in task for task in place):
                raise UserError(f"--trainings {kind}: no arm {arm}; accepted: {', '.join(place[0])}")


def markdown(compared: Compared) -> str:
    """One line for each kind."""
    base = next(iter(compared))
    lines = [
        f"| kind | acceptance length | over {base} | tokens/s | over {base} |",
        "|---|---|---|---|---|",
    ]
    for kind, told in compared.items():
        cells = [_show(told[name], digits) for name, digits in zip(told, (2, 3, 1, 3), strict=True)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_csv(path: Path, places: Mapping[str, Compared]) -> None:
    """Tidy: task, kind, metric, value, low, high."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "kind", "metric", "value", "low", "high"])
        for task, compared in places.items():
            for kind, told in compared.items():
                for name, found in told.items():
                    ends = [] if found is None else [found.value, found.low, found.high]
                    cells = ["" if end is None else f"{end:.6g}" for end in ends]
                    writer.writerow([task, kind, name, *cells, *[""] * (3 - len(cells))])


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


def _over_trainings(place: Place, arms: Sequence[str], of: Callable[[Arm], Statistic]) -> Statistic:
    """Mean over tasks and trainings; every replicate has its own prompts and its own draw of trainings."""
    each = [mean([of(task[arm]) for task in place]) for arm in arms]
    value = float(np.mean([one.value for one in each]))
    if any(one.replicates.size == 0 for one in each):
        return Statistic(value, np.zeros(0))
    table = np.stack([one.replicates for one in each], axis=1)  # [replicates, trainings]
    return Statistic(value, np.take_along_axis(table, _draws(len(arms)), axis=1).mean(axis=1))


def _draws(trainings: int) -> NDArray[np.int64]:
    """Which trainings each replicate holds [replicates, trainings]: the same for every kind with as many."""
    return np.random.default_rng([SEED, trainings]).integers(0, trainings, size=(REPLICATES, trainings))
