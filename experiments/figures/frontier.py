"""Fidelity against speed: the coin's curve as a line, the arms as labeled points with their intervals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from experiments.comparison import fidelity, seconds_per_token, tokens_per_second
from experiments.figures.labels import Label, place_labels
from experiments.figures.style import (
    DARK,
    GRAY,
    PAGE,
    distances,
    grid,
    in_style,
    mark,
    new_figure,
    panels,
    write_caption,
    write_legend,
)
from experiments.figures.values import Panels, caption, open_runs
from experiments.frontier import COINS, Arms, Curve, free_curve, is_free, settings_of
from experiments.frontier_report import Settings, of_arm
from experiments.statistics import Array, Estimate
from experiments.tables import StoredRun

COLUMNS = 2
FREE, OTHER = GRAY, DARK
LINES: dict[Curve, tuple[str, str]] = {
    "free": ("-", "free frontier (share of sd rounds)"),
    "slim": ("--", "sd and slim_only (share of sd rounds)"),
}
TICKS = [digit * 10.0**power for power in range(-1, 5) for digit in (1, 1.5, 2, 3, 5, 7)]
CROWD = 24  # of more arms in a panel, only those that stand out are named and have bars
FIDELITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


@dataclass(frozen=True)
class Point:
    """One arm of one panel."""

    name: str
    fidelity: Estimate
    speed: Estimate
    color: str
    marker: str = "o"

    @property
    def label(self) -> str:
        """A coin goes by its number, s before it for one with the slim verifier: there are many of them on a line."""
        return self.name.removeprefix(COINS["free"][0]).replace(COINS["slim"][0], "s")


def draw(
    runs: Sequence[StoredRun],
    *,
    settings: Settings | None = None,
    mix: Collection[str] = (),
    shown: Panels = "all",
    title: str | None = None,
    width: float = PAGE,
    panel_height: float = 3.2,
) -> Figure:
    """One panel for each task and for the mean over several. `settings`: method's name -> the arms that are its
    settings, in one color. `mix`: keys in which the runs may differ.
    An arm without fidelity or speed is missing, and the caption names it.

    Raises UserError for runs that do not mix, and for an unknown arm in `settings`.
    """
    opened, settings = open_runs(runs, shown, mix), dict(settings or {})
    places = opened.panels
    for place in places.values():
        for names in settings.values():
            settings_of(place[0], names)
    columns = min(COLUMNS, max(1, int(width // 3)))
    with in_style():
        figure = new_figure(width, 0.5 + panel_height * grid(len(places), columns)[0])
        canvas = FigureCanvasAgg(figure)
        told = {name: _points(place, settings) for name, place in places.items()}
        shows = panels(figure, list(places), columns)
        for axes, (name, points) in zip(shows, told.items(), strict=True):
            _panel(axes, points, places[name], settings, stand_out(points))
        if title:
            figure.suptitle(title)
        drawn = [{point.name for point in points} for points in told.values()]
        write_caption(figure, caption(opened, [name for name in runs[0].arms if not all(name in one for one in drawn)]))
        canvas.draw()  # settles the layout, without which no label has a place
        figure.set_layout_engine("none")
        for axes, points in zip(shows, told.values(), strict=True):
            labels = [Label(one.label, one.fidelity.value, one.speed.value, one.color) for one in stand_out(points)]
            place_labels(axes, labels, canvas)
    return figure


def _points(place: Sequence[Arms], settings: Settings) -> list[Point]:
    looks = {name: mark(i) for i, names in enumerate(settings.values()) for name in names}
    found = []
    for name in place[0]:
        x, y = of_arm(place, name, fidelity), of_arm(place, name, tokens_per_second)
        at, speed = (None if one is None else one.estimate() for one in (x, y))
        if at is None or speed is None:
            continue
        if any(is_free(name, curve) for curve in COINS):
            found.append(Point(name, at, speed, FREE))
        elif name in looks:
            found.append(Point(name, at, speed, looks[name].color, looks[name].marker))
        else:
            found.append(Point(name, at, speed, OTHER, "."))
    return found


def stand_out(points: Sequence[Point]) -> list[Point]:
    """The points to be named: all of a few; of a crowd the coins between sd and unread drafting, and what no other
    point but a coin beats in both fidelity and speed.
    """
    if len(points) <= CROWD:
        return list(points)
    slim = COINS["slim"][0]
    rivals = [one for one in points if one.color != FREE]

    def beaten(point: Point) -> bool:
        at, speed = point.fidelity.value, point.speed.value
        return any(one.fidelity.value >= at and one.speed.value >= speed and one.name != point.name for one in rivals)

    named = ("vanilla", "accept_all", "random_gate")
    coins = [one for one in points if one.color == FREE and not one.name.startswith(slim)]
    return [one for one in points if one in coins or one.name in named or (one in rivals and not beaten(one))]


def spread(fidelity: Array) -> Array:
    """Where fidelities stand: by the root of what is missing to 1, so that those near 1 are told apart."""
    return -np.sign(1 - fidelity) * np.sqrt(np.abs(1 - fidelity))


def gather(places: Array) -> Array:
    """The fidelities at these places."""
    return 1 + np.sign(places) * places**2


def coin_line(place: Sequence[Arms], steps: int = 25, curve: Curve = "free") -> tuple[Array, Array]:
    """Fidelity and tokens per second along a curve of coins [points]; empty where a task has none.

    Between two arms every task mixes them in the same shares, and the mean is over the tasks of what that gives.
    """
    names = [arm.name for arm in free_curve(place[0], curve)]
    names = [name for name in names if all(name in {arm.name for arm in free_curve(arms, curve)} for arms in place)]
    if len(names) < 2:
        return np.zeros(0), np.zeros(0)
    x = np.array([[fidelity(arms[name]).value for name in names] for arms in place])  # [tasks, arms]
    y = np.array([[seconds_per_token(arms[name]).value for name in names] for arms in place])
    order = np.argsort(x.mean(axis=0))
    at, knots = np.linspace(0, len(names) - 1, steps * (len(names) - 1) + 1), np.arange(len(names))
    fidelities = [np.interp(at, knots, row[order]) for row in x]
    speeds = [1 / np.interp(at, knots, row[order]) for row in y]
    return np.mean(fidelities, axis=0), np.mean(speeds, axis=0)


def _panel(
    axes: Axes, points: Sequence[Point], place: Sequence[Arms], settings: Settings, named: Sequence[Point]
) -> None:
    for curve, (style, label) in LINES.items():
        line = coin_line(place, curve=curve)
        if len(line[0]):
            axes.plot(*line, style, color=FREE, linewidth=1.5, zorder=1, label=label)
    for index, group in enumerate(settings):
        axes.plot([], [], mark(index).marker, color=mark(index).color, label=group)
    for point in points:
        x, y = point.fidelity, point.speed
        if point not in named:
            axes.plot(x.value, y.value, point.marker, markersize=3, color=point.color, alpha=0.6, zorder=2)
            continue
        axes.errorbar(
            x.value, y.value, xerr=_bar(x), yerr=_bar(y), fmt=point.marker, color=point.color, elinewidth=0.8, zorder=3,
        )  # fmt: skip
    axes.set_yscale("log")  # unread drafting is several times faster than all else
    if min((point.fidelity.value for point in points), default=1.0) < FIDELITIES[-2]:
        axes.set_xscale("function", functions=(spread, gather))
    axes.margins(x=0.1, y=0.12)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_xscale() == "function":
        left, right = axes.get_xlim()
        axes.set_xticks([tick for tick in FIDELITIES if left <= tick <= right])
        axes.tick_params(axis="x", rotation=45)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel="fidelity", ylabel="tokens/s")
    write_legend(axes, loc="lower left")


def _bar(estimate: Estimate) -> list[list[float]]:
    """As errorbar wants it for one point."""
    return [[distance] for distance in distances(estimate)]
