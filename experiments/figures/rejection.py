"""Rejection by method and task: a line of dots for each arm, a mark for each task and one for their mean."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.style import (
    COLUMN,
    DARK,
    GRAY,
    distances,
    in_style,
    mark,
    new_figure,
    write_caption,
    write_legend,
)
from experiments.figures.values import Place, caption, estimate, known_arms, label_of, open_runs
from experiments.statistics import Estimate
from experiments.tables import MEAN, StoredRun


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str] | None = None,
    metric: str = "rejection_rate",
    x_label: str | None = None,
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """`arms`: None: all. `metric`: another one by method and task. A cross at the left: no number.

    Raises UserError for runs that do not mix, a metric nobody knows, and where none of the arms is in the runs.
    """
    names, opened = known_arms(runs, arms), open_runs(runs, "all")
    shows = dict(sorted(opened.panels.items(), key=lambda one: one[0] == MEAN))  # the mean last, on top
    missing: list[str] = []
    with in_style():
        figure = new_figure(width, height or 1.3 + 0.2 * len(names))
        axes = figure.subplots()
        for index, (task, place) in enumerate(shows.items()):
            missing += _dots(axes, names, place, metric, (index, len(shows)), task)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set(xlabel=x_label or label_of(metric))
        write_legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=3 if width < 5 else 6, borderpad=0)
        if title:
            figure.suptitle(title)
        write_caption(figure, caption(opened, missing))
    return figure


def _dots(
    axes: Axes, names: Sequence[str], place: Place, metric: str, of: tuple[int, int], task: str
) -> list[str]:  # arms without a number
    index, count = of
    look, color = mark(index), DARK if task == MEAN else mark(index).color
    offset = 0.0 if count == 1 else 0.5 * (index / (count - 1) - 0.5)
    found: dict[int, Estimate] = {}
    missing = []
    for row, name in enumerate(names):
        number = estimate(place, name, metric)
        if number is None:
            missing.append(name)
            axes.plot(0.01, row + offset, "x", color=GRAY, markersize=3, transform=axes.get_yaxis_transform())
        else:
            found[row] = number
    if found:
        bars = list(zip(*(distances(number) for number in found.values()), strict=True))
        axes.errorbar(
            [number.value for number in found.values()], [row + offset for row in found], xerr=bars, label=task,
            color=color, marker=look.marker, linestyle="none", markersize=3.5, elinewidth=0.7,
        )  # fmt: skip
    return missing
