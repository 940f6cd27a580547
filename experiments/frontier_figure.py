"""Fidelity against speed: the coin's curve as a line, the arms as labeled points with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from experiments.comparison import fidelity, seconds_per_token, tokens_per_second
from experiments.frontier import COINS, Arms, Curve, free_curve, is_free
from experiments.frontier_report import Settings, of_arm
from experiments.statistics import Array, Estimate

COLUMNS = 2
FREE, OTHER = "#888888", "#222222"
LINES: dict[Curve, tuple[str, str]] = {
    "free": ("-", "free frontier (share of sd rounds)"),
    "slim": ("--", "sd and slim_only (share of sd rounds)"),
}
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # one per group of settings
TICKS = [digit * 10.0**power for power in range(-1, 5) for digit in (1, 1.5, 2, 3, 5, 7)]
# Where a label may stand, in points from its point and nearest first: the first place that is free is taken.
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 2), (-1, 2), (1, -2), (-1, -2))
CROWD = 24  # of more arms in a panel, only those that stand out are named and have bars
FIDELITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
PLACES = tuple((far * x, far * y) for far in (7, 14, 24, 36, 50) for x, y in SIDES)

ALIGNED = {"left": 0.0, "center": 0.5, "right": 1.0}  # share of a label's width that is left of its anchor


@dataclass(frozen=True)
class Point:
    """One arm of one panel."""

    name: str
    fidelity: Estimate
    speed: Estimate
    color: str

    @property
    def label(self) -> str:
        """A coin goes by its number, s before it for one with the slim verifier: there are many of them on a line."""
        return self.name.removeprefix(COINS["free"][0]).replace(COINS["slim"][0], "s")


def draw(places: Mapping[str, Sequence[Arms]], settings: Settings, path: Path) -> None:
    """Write the figure as a PNG: one panel for each place (a task, or the mean over several)."""
    columns = min(COLUMNS, len(places))
    rows = ceil(len(places) / columns)
    figure = Figure(figsize=(7.5 * columns, 5.5 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    told = [(axes, _points(place, settings)) for axes, place in zip(grid, places.values(), strict=False)]
    for (axes, points), (title, place) in zip(told, places.items(), strict=True):
        _panel(axes, points, place, settings, stand_out(points))
        axes.set_title(title, fontsize="medium")
    for axes in grid[len(places) :]:
        axes.remove()
    canvas.draw()  # settles the layout, without which no label has a place
    figure.set_layout_engine("none")
    for axes, points in told:
        _label(axes, stand_out(points), canvas)
    figure.savefig(path, dpi=150)


def _points(place: Sequence[Arms], settings: Settings) -> list[Point]:
    groups = {name: COLORS[i % len(COLORS)] for i, names in enumerate(settings.values()) for name in names}
    found = []
    for name in place[0]:
        x, y = of_arm(place, name, fidelity), of_arm(place, name, tokens_per_second)
        at, speed = (None if one is None else one.estimate() for one in (x, y))
        if at is not None and speed is not None:
            found.append(
                Point(
                    name, at, speed, FREE if any(is_free(name, curve) for curve in COINS) else groups.get(name, OTHER)
                )
            )
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
    colors = dict(zip(settings, (COLORS[i % len(COLORS)] for i in range(len(settings))), strict=True))
    for group, color in colors.items():
        axes.plot([], [], "o", color=color, markersize=4, label=group)
    for point in points:
        x, y = point.fidelity, point.speed
        if point not in named:
            axes.plot(x.value, y.value, "o", markersize=3, color=point.color, alpha=0.6, zorder=2)
            continue
        axes.errorbar(
            x.value, y.value, xerr=_distances(x), yerr=_distances(y), fmt="o", markersize=4, color=point.color,
            elinewidth=0.8, capsize=1.5, zorder=3,
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
        axes.tick_params(axis="x", labelsize="small", rotation=45)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel="fidelity", ylabel="tokens/s")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower left")


def _distances(estimate: Estimate) -> list[list[float]]:
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]


def _label(axes: Axes, points: Sequence[Point], canvas: FigureCanvasAgg) -> None:
    """Names beside the points, where they cover neither marks nor other names if there is such a place."""
    renderer, pixel = canvas.get_renderer(), axes.figure.dpi / 72
    legend = axes.get_legend()
    frame = np.array(axes.bbox.extents)[None]
    taken: list[Array] = [_drawn(axes, 2 * pixel)]
    if legend is not None:
        taken.append(np.array(legend.get_window_extent(renderer).extents))
    for point in points:
        center = axes.transData.transform((point.fidelity.value, point.speed.value))
        note = axes.annotate(
            point.label, (point.fidelity.value, point.speed.value), (0, 0), textcoords="offset points",
            fontsize="small", color=point.color, va="center",
            arrowprops={"arrowstyle": "-", "color": point.color, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        width, height = Text.get_window_extent(note, renderer).size  # an annotation's own extent has its arrow in it
        lefts = np.array([center[0] + x * pixel - ALIGNED[_side(x)] * width for x, _ in PLACES])
        lows = np.array([center[1] + y * pixel - height / 2 for _, y in PLACES])
        boxes = np.stack([lefts, lows, lefts + width, lows + height], axis=1)
        covered = _shared(boxes, np.vstack(taken)).sum(axis=1) - _shared(boxes, frame)[:, 0]
        best = int(np.argmin(covered + pixel * np.hypot(*np.transpose(PLACES))))  # rather a little covered than far off
        note.set(position=PLACES[best], horizontalalignment=_side(PLACES[best][0]))
        taken.append(boxes[best])


def _drawn(axes: Axes, margin: float, steps: int = 12) -> Array:
    """Small boxes along all lines of the axes: the coin's curve, bars, caps and markers [boxes, 4 ends in pixels]."""
    paths = [line.get_path() for line in axes.lines]
    paths += [path for bars in axes.collections for path in bars.get_paths()]
    lines = [np.asarray(path.vertices) for path in paths]
    corners = [axes.transData.transform(line) for line in lines if len(line)]
    pieces = [np.linspace(one, other, steps) for line in corners for one, other in pairwise(line)]
    at = np.concatenate([*corners, *pieces])
    return np.hstack([at - margin, at + margin])


def _shared(boxes: Array, others: Array) -> Array:
    """Common area of each two boxes [boxes, others]; both [..., left, bottom, right, top]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)


def _side(x: float) -> str:
    """Alignment of a label that far from its point."""
    return "left" if x > 0 else "right" if x < 0 else "center"
