"""Stacked bars: shares that sum to 1, by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.pages.cells import Cell, members, number
from experiments.text_tables import Numbers

KNOWN = ("draft", "slim", "target", "other")  # those with a pattern of their own
SPARE = 4  # patterns for what else there may be


@dataclass(frozen=True)
class Part:
    """A piece of a bar, start and width in percent; `pattern` is the name of its look."""

    key: str
    pattern: str
    start: float
    width: float


@dataclass(frozen=True)
class Bars:
    """A figure of bars. `keys`: what the parts are and their patterns; `rows`: an arm's parts and its numbers."""

    title: str
    told: str
    keys: dict[str, str]
    rows: dict[str, tuple[list[Part], list[Cell]]]


FIGURES: tuple[tuple[str, str, str], ...] = (
    ("tier_fraction.", "Tiers", "Which tier ruled on the judged tokens."),
    ("source_fraction.", "Sources", "Which model wrote the committed tokens."),
    ("time_share.", "Time", "Decode time inside each reader's forward calls; other: sampling, gates, commits."),
)


def figures(summary: Mapping[str, Numbers], arms: Sequence[str]) -> list[Bars]:
    """The figures for which there are numbers."""
    found = [_bars(summary, arms, *figure) for figure in FIGURES]
    return [figure for figure in found if figure.rows]


def _bars(summary: Mapping[str, Numbers], arms: Sequence[str], prefix: str, title: str, told: str) -> Bars:
    names = members(summary, arms, prefix)
    keys = dict(zip(names, patterns(list(names)), strict=True))
    rows = {}
    for arm in arms:
        cells = [number(summary.get(arm, {}), metric) for metric in names.values()]
        if any(cell.value is not None for cell in cells):
            rows[arm] = (_parts(keys, cells), cells)
    return Bars(title, told, keys, rows)


def patterns(keys: Sequence[str]) -> list[str]:
    """The look of each key: its own, or one of the spare ones in turn."""
    others = [key for key in keys if key not in KNOWN]
    return [key if key in KNOWN else f"spare{others.index(key) % SPARE}" for key in keys]


def _parts(keys: Mapping[str, str], cells: Sequence[Cell]) -> list[Part]:
    parts, start = [], 0.0
    for (key, pattern), cell in zip(keys.items(), cells, strict=True):
        width = 100 * max(0.0, cell.value or 0.0)  # a rest may be a little below 0
        if width:
            parts.append(Part(key, pattern, round(start, 3), round(width, 3)))
        start += width
    return parts
