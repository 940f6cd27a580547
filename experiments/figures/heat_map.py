"""A metric on a grid: arms by two of their knobs, or arms by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from experiments.errors import UserError
from experiments.figures.style import COLUMN, in_style, mark_missing, new_figure, write_caption
from experiments.figures.values import Place, Shown, caption, estimate, known_arms, label_of, metric_of, open_runs
from experiments.statistics import Estimate
from experiments.tables import StoredRun

Cells = dict[tuple[int, int], tuple[str, Estimate | None]]  # row, column -> arm, its number
LEVEL, BOTH_SIDES = "cividis", "PuOr"  # both keep their order in gray, the second one from its middle


def draw(
    runs: Sequence[StoredRun],
    *,
    cells: Mapping[str, Mapping[str, str]] | None = None,
    arms: Mapping[str, str] | Sequence[str] | None = None,
    metric: str = "tokens_per_second",
    relative_to: str | Mapping[str, str] | None = None,
    intervals: bool = True,
    beside: str | None = None,
    digits: int | None = None,
    x_label: str | None = None,
    y_label: str | None = None,
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """Either `cells`: row's label -> {column's label: arm}, the mean over the tasks; or `arms`: row's label -> arm (or
    the arms themselves), with a column for each task and, for several, their mean.

    `relative_to`: the relative difference from that arm, or from {arm: that arm}; the colors then part at 0.
    `beside`: another metric of the same arm, as it is, in the last line of a cell. A cell without a number is hatched,
    and the caption names its arm. Raises UserError for runs that do not mix, for a metric nobody knows, for both or
    neither of `cells` and `arms`, and where no arm is in the runs.
    """
    if (cells is None) == (arms is None):
        raise UserError("cells, arms: accepted: exactly one of them")
    opened = open_runs(runs, "mean" if arms is None else "all")
    rows, columns, grid = _gridded(opened, cells, arms, metric, relative_to)
    second = {} if beside is None else _gridded(opened, cells, arms, beside, None)[2]
    with in_style():
        lines = 1 + intervals + (beside is not None)
        figure = new_figure(width, height or 1.0 + (0.14 + 0.12 * lines) * len(rows))
        axes = figure.subplots()
        places = digits if digits is not None else (2 if relative_to else metric_of(metric).digits)
        _paint(axes, grid, (len(rows), len(columns)), relative_to is not None)
        for (row, column), (_, number) in grid.items():
            _, other = second.get((row, column), ("", None))
            if number is not None:
                last = "" if other is None or beside is None else f"\n{other.value:.{metric_of(beside).digits}f}"
                _write(axes, row, column, _text(number, places, intervals, relative_to is not None) + last)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=x_label or "", ylabel=y_label or "", title=title or _title(metric, relative_to, beside))
        missing = [name for name, number in grid.values() if number is None]
        write_caption(figure, caption(opened, missing, intervals=False) + _brackets(intervals))
    return figure


def _gridded(opened: Shown, cells: Any, arms: Any, metric: str, relative_to: Any) -> tuple[list[str], list[str], Cells]:
    """Labels of rows and of columns, and the numbers."""
    if cells is not None:
        return _by_knobs(opened, cells, metric, relative_to)
    return _by_task(opened, arms or (), metric, relative_to)


def _by_knobs(
    opened: Shown, cells: Mapping[str, Mapping[str, str]], metric: str, relative_to: Any
) -> tuple[list[str], list[str], Cells]:
    known_arms(opened.runs, [name for row in cells.values() for name in row.values()])
    columns = list(dict.fromkeys(label for row in cells.values() for label in row))
    (place,) = opened.panels.values()
    grid: Cells = {}
    for at, row in enumerate(cells.values()):
        for label, name in row.items():
            grid[at, columns.index(label)] = name, _number(place, name, metric, relative_to)
    return [str(label) for label in cells], [str(label) for label in columns], grid


def _by_task(
    opened: Shown, arms: Mapping[str, str] | Sequence[str], metric: str, relative_to: Any
) -> tuple[list[str], list[str], Cells]:
    named = dict(arms) if isinstance(arms, Mapping) else {name: name for name in arms}
    known_arms(opened.runs, named.values())
    shows = opened.panels
    columns = sorted(shows, key=lambda title: len(shows[title]))  # the mean last
    grid = {
        (row, column): (name, _number(shows[title], name, metric, relative_to))
        for row, name in enumerate(named.values())
        for column, title in enumerate(columns)
    }
    return list(named), columns, grid


def _number(place: Place, name: str, metric: str, relative_to: str | Mapping[str, str] | None) -> Estimate | None:
    if isinstance(relative_to, Mapping):
        if name not in relative_to:
            raise UserError(f"relative_to: no entry for arm {name!r}; accepted: {{ARM: OTHER, ...}} for every arm")
        return estimate(place, name, metric, relative_to[name])
    return estimate(place, name, metric, relative_to)


def _paint(axes: Axes, grid: Cells, shape: tuple[int, int], both_sides: bool) -> None:
    values = np.full(shape, np.nan)
    for place, (_, number) in grid.items():
        values[place] = np.nan if number is None else number.value
    known = values[np.isfinite(values)]
    largest = max(float(np.abs(known).max(initial=0.0)), 1e-9)
    # Two colors that differ say that numbers do: a grid of equal numbers has one.
    low, high = (float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))) if known.size else (0.0, 1.0)
    norm = TwoSlopeNorm(0, -largest, largest) if both_sides else Normalize(low, high if high > low else low + 1)
    axes.imshow(values, norm=norm, cmap=BOTH_SIDES if both_sides else LEVEL, aspect="auto")
    for row in range(shape[0]):
        for column in range(shape[1]):
            if not np.isfinite(values[row, column]):
                mark_missing(axes, column - 0.5, row - 0.5, 1, 1)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _write(axes: Axes, row: int, column: int, text: str) -> None:
    (image,) = axes.images
    red, green, blue, _ = image.to_rgba(image.get_array())[row, column]  # type: ignore[arg-type]
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
    axes.text(column, row, text, ha="center", va="center", fontsize=6, color="black" if light else "white")


def _text(number: Estimate, digits: int, intervals: bool, signed: bool) -> str:
    ends = [number.value, number.low, number.high] if intervals else [number.value]
    sign = "+" if signed else ""
    value, *interval = [f"{end:{sign}.{digits}f}" for end in ends if end is not None]
    return value if len(interval) < 2 else f"{value}\n[{', '.join(interval)}]"


def _title(metric: str, relative_to: Any, beside: str | None) -> str:
    base = f" {relative_to}" if isinstance(relative_to, str) else " its base"
    told = label_of(metric) + (f", relative to{base}" if relative_to is not None else "")
    return told if beside is None else f"{told}\n(last line: {label_of(beside)})"


def _brackets(intervals: bool) -> str:
    return " Brackets: 95% bootstrap intervals over prompts." if intervals else ""
