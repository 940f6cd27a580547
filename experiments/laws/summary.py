"""From errors at positions to the numbers of law_error.json: per task and their unweighted mean, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.laws.errors import MEASURES, Errors
from experiments.probing.summary import MEAN
from experiments.statistics import COVERAGE, Array, Resamples, Statistic, mean

REPLICATES = 1000
QUANTILES = {"p90": 0.9, "p99": 0.99}
WITH_QUANTILES = ("tv", "kl", "overshoot")
PIECE = 2**23  # entries of replicates x positions at a time
Entry = dict[str, Any]  # rule, judge, task, n, and of each number value, low and high


def summarize(tasks: Sequence[str], found: Mapping[tuple[str, str], Sequence[Errors]], seed: int) -> list[Entry]:
    """One entry for each rule, judge and task, the mean over the tasks first. `tasks`: of each prompt.

    Prompts are resampled, each task for itself and all rules alike.
    """
    names = list(dict.fromkeys(tasks))
    places = {name: [place for place, task in enumerate(tasks) if task == name] for name in names}
    resamples = {name: Resamples.draw(len(places[name]), seed + index, REPLICATES) for index, name in enumerate(names)}
    entries = []
    for (rule, judge), prompts in found.items():
        told = {name: task_numbers([prompts[place] for place in places[name]], resamples[name]) for name in names}
        counts = {name: sum(len(prompts[place]["tv"]) for place in places[name]) for name in names}
        if len(names) > 1:
            told = {MEAN: {key: mean([told[name][key] for name in names]) for key in told[names[0]]}, **told}
            counts = {MEAN: sum(counts.values()), **counts}
        for name, numbers in told.items():
            measured = {key: in_json(number) for key, number in numbers.items()}
            entries.append({"rule": rule, "judge": judge, "task": name, "n": counts[name], **measured})
    return entries


def task_numbers(prompts: Sequence[Errors], resamples: Resamples) -> dict[str, Statistic]:
    """Means over all positions of the prompts, their upper quantiles, and the share of positions of infinite KL.

    The mean of KL is over the positions where it is finite.
    """
    numbers: dict[str, Statistic] = {}
    prompt_of = np.repeat(np.arange(len(prompts)), [len(one["tv"]) for one in prompts])
    everything = {name: np.concatenate([one[name].numpy() for one in prompts]) for name in MEASURES}
    for name in MEASURES:
        values = everything[name]
        finite = np.isfinite(values)
        numbers[name] = resamples.ratio(
            totals(np.where(finite, values, 0.0), prompt_of, len(prompts)), totals(finite, prompt_of, len(prompts))
        )
        if name in WITH_QUANTILES:
            numbers |= {f"{name}_{key}": one for key, one in quantiles(values, prompt_of, resamples).items()}
    infinite, every = np.isinf(everything["kl"]), np.ones(len(prompt_of))
    numbers["kl_infinite"] = resamples.ratio(
        totals(infinite, prompt_of, len(prompts)), totals(every, prompt_of, len(prompts))
    )
    return numbers


def totals(values: NDArray[Any], prompt_of: NDArray[np.int64], prompts: int) -> Array:
    """Sums of values [n] by prompt [prompts]."""
    return np.asarray(np.bincount(prompt_of, weights=values.astype(np.float64), minlength=prompts), dtype=np.float64)


def quantiles(values: Array, prompt_of: NDArray[np.int64], resamples: Resamples) -> dict[str, Statistic]:
    """QUANTILES of values [n] over the positions of all prompts: the smallest one that so large a share is at most."""
    order = np.argsort(values, kind="stable")
    ordered, owner = values[order], prompt_of[order]
    point = {key: at_share(np.ones((1, len(values))), ordered, share)[0] for key, share in QUANTILES.items()}
    replicates: dict[str, list[Array]] = {key: [] for key in QUANTILES}
    size = max(1, PIECE // len(values))
    for start in range(0, len(resamples.weights), size):
        weights = resamples.weights[start : start + size, owner]
        for key, share in QUANTILES.items():
            replicates[key].append(at_share(weights, ordered, share))
    return {key: Statistic(float(point[key]), np.concatenate([np.zeros(0), *replicates[key]])) for key in QUANTILES}


def at_share(weights: Array, ordered: Array, share: float) -> Array:
    """Of ascending values [n] under weights [k, n], the first one up to which `share` of the weight lies: [k]."""
    below = weights.cumsum(axis=1)
    # The tolerance keeps a share that is met exactly from being missed by rounding.
    places = (below < (share - 1e-12) * below[:, -1:]).sum(axis=1)
    return np.asarray(ordered[np.minimum(places, len(ordered) - 1)], dtype=np.float64)


def in_json(number: Statistic) -> dict[str, Any] | float | str | None:
    """{"value", "low", "high"}, the plain value where one prompt cannot give an interval, None where it is undefined.

    What is infinite is the string "inf": JSON has no number for it.
    """
    if np.isnan(number.value):
        return None
    own = number.replicates[~np.isnan(number.replicates)]
    if own.size == 0:
        return _plain(number.value)
    tail = (100 - COVERAGE) / 2
    low, high = np.percentile(own, [tail, 100 - tail], method="inverted_cdf")  # between two values none is made up
    return {"value": _plain(number.value), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | str:
    return float(value) if np.isfinite(value) else "inf"
