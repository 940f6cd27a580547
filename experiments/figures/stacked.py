"""Shares that sum to 1 as stacked bars, one for each arm, with the interval of every boundary between two parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.comparison import Number, rank
from experiments.figures.style import (
    COLUMN,
    DARK,
    PARTS,
    distances,
    in_style,
    mark,
    mark_missing,
    new_figure,
    panels,
    write_caption,
)
from experiments.figures.values import Place, Shown, caption, mean_of, members, number_of
from experiments.frontier import Arms
from experiments.statistics import Array, Estimate, Statistic, lift

Boundaries = dict[str, Estimate]  # part -> the sum of the shares up to its end


def draw_stacks(
    opened: Shown,
    names: Sequence[str],
    families: Mapping[str, str],
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """A panel for each family (metric's name with `<...>` -> what its panel is called), of the first place shown."""
    place = next(iter(opened.panels.values()))
    stacks = {
        family: {name: boundaries(place, name, family) for name in names} for family in families
    }  # an arm without shares has no boundaries
    parts = {family: _parts(of.values()) for family, of in stacks.items()}
    missing = [f"{name} ({families[family]})" for family, of in stacks.items() for name, one in of.items() if not one]
    with in_style():
        figure = new_figure(width, height or 1.2 + 0.19 * len(names))
        shows = panels(figure, list(families.values()), len(families), sharey=True)
        for axes, (family, label) in zip(shows, families.items(), strict=True):
            _stack(axes, stacks[family], parts[family])
            axes.set(xlabel=label if len(families) == 1 else "share", xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
            axes.set_yticks(range(len(names)), names)
        _legend(figure, list(dict.fromkeys(part for of in parts.values() for part in of)))
        if title:
            figure.suptitle(title)
        write_caption(figure, caption(opened, missing))
    return figure


def boundaries(place: Place, name: str, family: str) -> Boundaries:
    """Cumulated shares of an arm in the order of the parts, each resampled as a sum; {} where it has none."""
    keys = sorted(members(place, name, family), key=rank)
    found: Boundaries = {}
    for end, key in enumerate(keys, 1):
        estimate = mean_of([_sum(arms, name, family, keys[:end]) for arms in place])
        if estimate is None:
            return {}
        found[key] = estimate
    return found


def _sum(arms: Arms, name: str, family: str, keys: Sequence[str]) -> Number:
    numbers = [number_of(arms, name, _full(family, key)) for key in keys]
    own = [number for number in numbers if isinstance(number, Statistic)]  # a reader that a task never called: no share
    return lift(_total, *own) if own else None


def _total(*columns: Array) -> Array:
    return np.sum(columns, axis=0)


def _full(family: str, key: str) -> str:
    return family[: family.index("<")] + key


def _parts(stacks: Iterable[Boundaries]) -> list[str]:
    found = {part for one in stacks for part in one}
    return sorted(found, key=rank)


def _stack(axes: Axes, stacks: Mapping[str, Boundaries], parts: Sequence[str]) -> None:
    axes.grid(False)
    for row, ends in enumerate(stacks.values()):
        if not ends:
            mark_missing(axes, 0, row - 0.35, 1, 0.7)
            continue
        start = 0.0
        for place, (part, end) in enumerate(ends.items()):
            color, hatch = _look(part, parts)
            axes.barh(
                row, end.value - start, left=start, height=0.7, color=color, hatch=hatch, edgecolor="white", linewidth=0
            )
            if place < len(ends) - 1:  # the last boundary is 1
                bar = [[distance] for distance in distances(end)]
                axes.errorbar(end.value, row, xerr=bar, fmt="none", ecolor=DARK, elinewidth=0.7)
            start = end.value


def _look(part: str, parts: Sequence[str]) -> tuple[str, str]:
    """Models of every pair look alike everywhere; others by their place."""
    others = [name for name in parts if name not in PARTS]
    return PARTS[part] if part in PARTS else (mark(3 + others.index(part)).color, "xx")


def _legend(figure: Figure, parts: Sequence[str]) -> None:
    ordered = sorted(parts, key=rank)
    looks = {part: _look(part, ordered) for part in ordered}
    patches = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0, label=part)
        for part, (color, hatch) in looks.items()
    ]
    if patches:
        figure.legend(handles=patches, loc="outside upper center", ncols=len(patches))
