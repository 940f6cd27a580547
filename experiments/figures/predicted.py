"""Measured against predicted speed: does the cost of calls explain what was measured?"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from experiments.figures.labels import Label, place_labels
from experiments.figures.style import (
    COLUMN,
    DARK,
    GRAY,
    distances,
    grid,
    in_style,
    mark,
    new_figure,
    panels,
    write_caption,
)
from experiments.figures.values import Panels, Place, caption, estimate, known_arms, label_of, open_runs
from experiments.statistics import Estimate
from experiments.tables import StoredRun

Points = dict[str, tuple[Estimate, Estimate]]  # arm -> predicted, measured
TICKS = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]
BAND = 0.1  # the gray band: predicted within this share


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str] | None = None,
    predicted: str = "predicted_tokens_per_second",
    measured: str = "tokens_per_second",
    shown: Panels = "mean",
    title: str | None = None,
    width: float = COLUMN,
    panel_height: float = 3.0,
) -> Figure:
    """`arms`: None: all. `predicted`, `measured`: other metrics to set against each other, as `ideal_speedup` and
    `speedup`. On the line they are equal; the band is 10% around it.

    Raises UserError for runs that do not mix, a metric nobody knows, and where none of the arms is in the runs.
    """
    names, opened = known_arms(runs, arms), open_runs(runs, shown)
    told = {task: _points(place, names, predicted, measured) for task, place in opened.panels.items()}
    missing = [name for name in names if any(name not in points for points in told.values())]
    columns = max(1, int(width // 3))
    with in_style():
        figure = new_figure(width, 0.5 + panel_height * grid(len(told), columns)[0])
        canvas = FigureCanvasAgg(figure)
        shows = panels(figure, list(told), columns)
        for axes, points in zip(shows, told.values(), strict=True):
            _panel(axes, points)
            axes.set(xlabel=label_of(predicted), ylabel=label_of(measured))
        if title:
            figure.suptitle(title)
        write_caption(figure, caption(opened, missing) + f" Band: {BAND:.0%} around equal.")
        canvas.draw()  # settles the layout, without which no label has a place
        figure.set_layout_engine("none")
        for axes, points in zip(shows, told.values(), strict=True):
            place_labels(axes, [Label(name, x.value, y.value, DARK) for name, (x, y) in points.items()], canvas)
    return figure


def _points(place: Place, names: Sequence[str], predicted: str, measured: str) -> Points:
    found = {name: (estimate(place, name, predicted), estimate(place, name, measured)) for name in names}
    return {name: (x, y) for name, (x, y) in found.items() if x is not None and y is not None}


def _panel(axes: Axes, points: Points) -> None:
    for index, (x, y) in enumerate(points.values()):
        look = mark(index)
        bars = [[[distance] for distance in distances(number)] for number in (x, y)]
        axes.errorbar(x.value, y.value, xerr=bars[0], yerr=bars[1], fmt=look.marker, color=look.color, elinewidth=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if not points:
        return
    values = [number.value for both in points.values() for number in both]
    ends = [min(values) / 1.25, max(values) * 1.25]
    axes.plot(ends, ends, color=GRAY, linewidth=0.8, zorder=0)
    axes.fill_between(
        ends, [end * (1 - BAND) for end in ends], [end * (1 + BAND) for end in ends],
        color=GRAY, alpha=0.15, linewidth=0, zorder=0,
    )  # fmt: skip
    axes.set(xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([tick for tick in TICKS if ends[0] <= tick <= ends[1]])
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
