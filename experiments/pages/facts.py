"""What was compared, where, and by whose files: run.json as lines of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.choosing.candidates import largest_shortfall
from experiments.choosing.knobs import read_knobs
from experiments.frontier import Arms
from experiments.pages.cells import best, number
from experiments.pages.runs import Reported
from experiments.paper.agreement import FEW
from experiments.text_tables import Numbers

NEAR = 0.01  # shortfall of the second key figure
PLAIN = 160  # characters up to which a list stays one line


def facts(runs: Sequence[Reported]) -> dict[str, str]:
    """The lines at the head of a comparison; what its runs share is told once."""
    identity = runs[0].run.identity
    temperature = runs[0].run.temperature
    days = sorted({one.written for one in runs})
    return {
        "pair": str(identity.get("pair", {}).get("name")),
        "tasks": ", ".join(one.run.task for one in runs),
        "decoding": "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}",
        "device": str(identity.get("device")),
        "dtype, threads": f"{identity.get('dtype')}, {identity.get('threads')}",
        "engine": str(identity.get("mode", "eager")),
        "versions": ", ".join(f"{name} {value}" for name, value in identity.get("versions", {}).items()),
        "code": str(identity.get("code_hash")),
        "seed, repeats": f"{identity.get('seed')}, {identity.get('repeats')}",
        "written": " to ".join(days if len(days) < 2 else [days[0], days[-1]]),
    }


@dataclass(frozen=True)
class KeyFigure:
    """`figure` of an arm, `of`: over what, with its interval; `doubt`: why it may be none, empty where it is sure."""

    title: str
    figure: str
    arm: str
    of: str
    doubt: str


def key_figures(summary: Mapping[str, Numbers], place: Sequence[Arms], methods: Mapping[str, Any]) -> list[KeyFigure]:
    """What a reader asks first. Controls and vanilla are no answers. `methods`: the arms of a run's identity.

    An arm is within a bound on the shortfall by the rule of `experiments.choosing`.
    """
    worst = {arm: largest_shortfall(place, arm, read_knobs(methods[arm])) for arm in place[0]}
    asked: tuple[tuple[str, str, float, str], ...] = (
        ("fastest without a shortfall", "speedup", 0.0, "over vanilla"),
        (f"fastest within {NEAR:.0%} shortfall", "speedup", NEAR, "over vanilla"),
        ("most over the free frontier", "speedup_over_coin", float("inf"), "over a coin of its fidelity"),
    )
    told = []
    for title, metric, most, of in asked:
        arm = best(summary, list(worst), metric, lambda name, most=most: worst[name] <= most)  # type: ignore[misc]
        if arm is not None:
            found = number(summary[arm], metric)
            doubt = unsure(summary[arm][metric], min(len(arms[arm].timed.rows) for arms in place))
            told.append(KeyFigure(title, f"{found.text}\u00d7", arm, f"{of} {found.interval}".strip(), doubt))
    return told


def unsure(ratio: float | Mapping[str, float], timed: int) -> str:
    """Why a ratio of speeds may be 1 after all. `timed`: prompts of the task that has the fewest."""
    told = []
    if timed < FEW:
        told.append(f"{timed} timed prompt{'s' * (timed != 1)} of a task")
    if isinstance(ratio, Mapping) and ratio["low"] <= 1 <= ratio["high"]:
        told.append("the interval holds 1")
    return f"not sure: {', '.join(told)}" if told else ""


def provenance(one: Reported) -> dict[str, dict[str, str]]:
    """run.json by sections, each a mapping of keys (dots lead inwards) to texts."""
    record = dict(one.record)
    identity = dict(record.pop("identity", {}))
    starts = record.pop("provenance", [])
    config = record.pop("config", {})
    arms = identity.pop("arms", {})
    record.pop("notices", None)
    sections = {"run": flatten({**record, "written": one.written}), "identity": flatten(identity)}
    sections |= {f"start {place}": flatten(start) for place, start in enumerate(starts, 1)}
    sections |= {f"arm {name}": flatten(arm) for name, arm in arms.items()}
    return {**sections, **({"configuration": flatten(config)} if config else {})}


def flatten(content: Any, prefix: str = "") -> dict[str, str]:
    """Nested content by its paths; short lists stay one line."""
    if isinstance(content, Mapping) and content:
        inner = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in content.items()]
        return {path: text for one in inner for path, text in one.items()}
    if isinstance(content, list) and content:
        line = json.dumps(content, ensure_ascii=False)
        if len(line) > PLAIN:
            return flatten(dict(enumerate(content)), prefix)
        return {prefix: line}
    return {prefix: content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}
