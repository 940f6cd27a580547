"""Who a run is and what it found, as W&B keeps it: configuration, tags, numbers under stable names, the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.metrics import find, in_order

LIVE_NOTICE = "tracking ran beside the measurement (track.live=true): seconds may hold some of its work"
TAG = 64  # characters that W&B takes
METHOD = "method"  # stands for the name of the run's method in the name of an objective


def configuration(run: Mapping[str, Any]) -> dict[str, Any]:
    """The composed configuration and, beside it, who the run is and where it was measured last: all from run.json.

    `identity/...` holds code hash, device, versions and the resolved arms, flat, so that each can be a column;
    `provenance` the commit and the machine of the last of its `starts`. `live`: whether any of its examples was
    measured beside live tracking.
    """
    return {
        **run["config"],
        **flatten_tree("identity", run["identity"]),
        "provenance": run["provenance"][-1],
        "starts": len(run["provenance"]),
        "notices": list(run["notices"]),
        "live": LIVE_NOTICE in run["notices"],
    }


def flatten_tree(name: str, value: Any) -> dict[str, Any]:
    """Mappings in mappings as one, names joined by slashes. Lists stay; an empty mapping leaves nothing."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: leaf for inner in value for key, leaf in flatten_tree(f"{name}/{inner}", value[inner]).items()}


def automatic_tags(run: Mapping[str, Any]) -> list[str]:
    """Pair, task, method, device, dtype and code hash, as in `pair:reference`."""
    config, who = run["config"], run["identity"]
    told = {
        "pair": config["pair"]["name"],
        "task": config["task"]["name"],
        "method": config["method"]["name"],
        "device": who["device"],
        "dtype": who["dtype"],
        "code": who["code_hash"],
    }
    return [f"{key}:{value}"[:TAG] for key, value in told.items()]


def definitions(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Unit, direction and meaning of every metric of the summary, by full name."""
    found = {name: find(name) for name in in_order(name for numbers in summary.values() for name in numbers)}
    return {
        name: {"unit": metric.unit, "better": metric.better, "description": metric.description}
        for name, metric in found.items()
    }


def flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """`arm/metric`, and `arm/metric.low`, `arm/metric.high` where there is an interval."""
    numbers: dict[str, float] = {}
    for arm, metrics in summary.items():
        for name, entry in metrics.items():
            ends = entry if isinstance(entry, Mapping) else {"value": entry}
            for end, number in ends.items():
                numbers[f"{arm}/{name}" if end == "value" else f"{arm}/{name}.{end}"] = number
    return numbers


def objective(numbers: Mapping[str, float], method: str, name: str, min_fidelity: float | None) -> float:
    """The one number of a sweep: the metric `arm/metric` where the arm's fidelity suffices.

    Below `min_fidelity` it is what the fidelity lacks, as a negative number, so that every feasible setting is better
    and a search still sees which way the bound lies. `method/...` is the run's method by whatever name. Raises
    LookupError for what the summary has not.
    """
    arm, _, metric = name.partition("/")
    arm = method if arm == METHOD else arm
    needed = [f"{arm}/{metric}", *([] if min_fidelity is None else [f"{arm}/fidelity"])]
    if missing := [one for one in needed if one not in numbers]:
        raise LookupError(f"track.objective={name}: {missing[0]} is not in the summary; accepted: ARM/METRIC of it")
    if min_fidelity is not None and numbers[needed[1]] < min_fidelity:
        return numbers[needed[1]] - min_fidelity
    return numbers[needed[0]]
