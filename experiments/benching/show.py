"""The content of a bench's JSON as one table, for a terminal and in Markdown. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.text_tables import ABSENT, Cells, markdown_table, text_table

DIGITS = {"tokens/s": 0, "ratio": 2, "share": 3, "ms": 2, "GB/s": 1, "s": 2}
PLAIN = ("ratio", "share")  # units that need not be told
NOTE = (
    "Requests are timed whole, prefill included, and end after a fixed number of tokens; medians of the repeats, 95% "
    "bootstrap intervals over prompts, paired across loops. Steps: median and quartiles; `k at n`: k tokens fed, the "
    "longest step ending at token n; of copy: bytes that a step must read per second, over what a copy reads and "
    "writes (above 1, weights come from the processor's caches). other: share of decode time outside of forwards. "
    "ideal: the same calls at isolated costs, measured before each prompt. target: what is "
    "hoped for."
)


def show(content: Mapping[str, Any]) -> str:
    """The table and what has to be known about it."""
    return "\n".join([text_table(cells(content), lead=2), *_notices(content)])


def markdown(content: Mapping[str, Any]) -> str:
    """The same for a file, with where it was measured."""
    who = content["identity"]
    versions = ", ".join(f"{name} {number}" for name, number in who["versions"].items())
    parts = [
        f"# Bench of pair {content['pair']}",
        f"{content['headline']}; mode {who['mode']}; {versions}; code {who['code_hash']}.",
        markdown_table(cells(content)),
        *_notices(content),
        NOTE,
    ]
    return "\n\n".join(parts) + "\n"


def cells(content: Mapping[str, Any]) -> Cells:
    """The table, header first."""
    rows = [
        [one["part"], one["name"], value(one), one["target"] or ABSENT, one["beside"] or ABSENT]
        for one in content["lines"]
    ]
    return [["part", "what", "value", "target", "beside it"], *rows]


def value(one: Mapping[str, Any]) -> str:
    """`1.72 [1.65, 1.79]` and the unit, without the interval where there is none, a dash if absent."""
    if one["value"] is None:
        return ABSENT
    digits, unit = DIGITS[one["unit"]], "" if one["unit"] in PLAIN else f" {one['unit']}"
    text = f"{one['value']:.{digits}f}"
    if one["low"] is not None:
        text += f" [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
    return text + unit


def _notices(content: Mapping[str, Any]) -> list[str]:
    return [f"note: {notice}" for notice in content["notices"]]
