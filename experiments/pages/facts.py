"""What was compared, where, and by whose files: run.json as lines of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.metrics import find
from experiments.pages.cells import best, number
from experiments.pages.runs import Reported
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


def key_figures(summary: Mapping[str, Numbers], arms: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """What a reader asks first: title, figure, the arm it is of, and what of. Controls and vanilla are no answers."""

    digits = find("shortfall").digits

    def within(most: float) -> Callable[[Numbers], bool]:
        def fits(numbers: Numbers) -> bool:
            lost = number(numbers, "shortfall").value
            return lost is not None and round(lost, digits) <= most  # as it is shown: sampling leaves rounding noise

        return fits

    asked: tuple[tuple[str, str, Callable[[Numbers], bool], str], ...] = (
        ("fastest without a shortfall", "speedup", within(0.0), "over vanilla"),
        (f"fastest within {NEAR:.0%} shortfall", "speedup", within(NEAR), "over vanilla"),
        ("most over the free frontier", "speedup_over_coin", lambda _: True, "over a coin of its fidelity"),
    )
    told = []
    for title, metric, fits, of in asked:
        arm = best(summary, arms, metric, fits)
        if arm is not None:
            found = number(summary[arm], metric)
            told.append((title, f"{found.text}\u00d7", arm, f"{of} {found.interval}".strip()))
    return told


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
