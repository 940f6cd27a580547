"""Fidelity against speed as the geometry of an SVG: the coin's curve, the arms with intervals and labels, the ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.figures.frontier import FIDELITIES, FREE, TICKS, Point, coin_line, spread, stand_out
from experiments.frontier import Arms, is_free
from experiments.pages.cells import sort_of_arm
from experiments.statistics import Array, Estimate
from experiments.text_tables import Numbers

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44  # margins
NARROWEST = 0.03  # of the fidelity axis as it is spread: from 0.999 to 1
LETTER, LINE = 6.4, 13  # width of a letter and height of a line of labels
TICK_ROOM = 38  # between two ticks of the fidelity axis
# Offsets of a label's anchor from its point, nearest first.
OFFSETS = tuple((far * x, far * y) for far in (10, 20, 34) for x, y in
                ((1, -0.6), (-1, -0.6), (1, 0.8), (-1, 0.8), (0, -1.2), (0, 1.2), (1, 0), (-1, 0)))  # fmt: skip
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Spot:
    """An arm in the chart: its point, the ends of its intervals, and where its label stands, if it has one."""

    arm: str
    sort: str
    x: float
    y: float
    across: tuple[float, float]
    upright: tuple[float, float]
    label: tuple[float, float] | None
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """All of it, in the units of the SVG. `curves`: points of each coin's line, by what it joins."""

    spots: list[Spot]
    curves: dict[str, str]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    frame: Box = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


@dataclass(frozen=True)
class Scale:
    """Numbers to places along an axis, linear in `low` to `high`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, number: Array | float) -> Array:
        share = (np.asarray(number, dtype=np.float64) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass
class Taken:
    """Boxes that a label should not cover."""

    boxes: list[Box] = field(default_factory=list)

    def covered(self, box: Box) -> float:
        """Area of a box that is taken, and what of it is outside of the chart."""
        frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
        outside = (box[2] - box[0]) * (box[3] - box[1]) - shared(box, frame)
        return 4 * outside + sum(shared(box, other) for other in self.boxes)


def draw(summary: Mapping[str, Numbers], arms: Sequence[str], place: Sequence[Arms]) -> Chart | None:
    """The chart of one place; None where fewer than two arms have both a fidelity and a speed.

    `summary` has the points, as in the tables; `place` the arms that the coin's curve is made of.
    """
    points = [point for arm in arms if (point := _point(arm, summary.get(arm, {}))) is not None]
    if len(points) < 2:
        return None
    lines = {"free frontier": coin_line(place), "sd and slim_only": coin_line(place, curve="slim")}
    lines = {title: line for title, line in lines.items() if len(line[0])}
    x, y = _axes(points, lines)
    curves = {title: (x(spread(line[0])), y(np.log(line[1]))) for title, line in lines.items()}
    taken = Taken([box for line in curves.values() for box in along(*line)])
    return Chart(
        _spots(points, x, y, taken),
        {title: _path(*line) for title, line in curves.items()},
        _fidelity_ticks(x),
        _speed_ticks(y),
    )


def _point(arm: str, numbers: Numbers) -> Point | None:
    at, speed = _estimate(numbers.get("fidelity")), _estimate(numbers.get("tokens_per_second"))
    if at is None or speed is None or speed.value <= 0:
        return None
    free = is_free(arm) or is_free(arm, "slim")
    return Point(arm, at, speed, FREE if free else "")


def _estimate(entry: float | Mapping[str, float] | None) -> Estimate | None:
    if isinstance(entry, Mapping):
        return Estimate(entry["value"], entry["low"], entry["high"])
    return None if entry is None else Estimate(entry)


def _ends(estimate: Estimate) -> tuple[float, float]:
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return low, high


def _axes(points: Sequence[Point], lines: Mapping[str, tuple[Array, Array]]) -> tuple[Scale, Scale]:
    fidelities = np.concatenate([*(line[0] for line in lines.values()), *(_ends(one.fidelity) for one in points)])
    speeds = np.concatenate([*(line[1] for line in lines.values()), *(_ends(one.speed) for one in points)])
    across, upright = spread(fidelities), np.log(speeds[speeds > 0])
    wide, high = max(float(np.ptp(across)), NARROWEST), max(float(np.ptp(upright)), 0.1)
    x = Scale(across.max() - 1.04 * wide, across.max() + 0.1 * wide, LEFT, WIDTH - RIGHT)
    y = Scale(upright.min() - 0.07 * high, upright.max() + 0.07 * high, HEIGHT - BOTTOM, TOP)
    return x, y


def _path(x: Array, y: Array) -> str:
    return " ".join(f"{across:.1f},{upright:.1f}" for across, upright in zip(x, y, strict=True))


def _fidelity_ticks(x: Scale) -> list[tuple[float, str]]:
    """From the right, so that 1 is there; those that stand too close are left out."""
    ticks: list[tuple[float, str]] = []
    for value in sorted(FIDELITIES, reverse=True):
        at = round(float(x(spread(np.array(value)))), 1)
        if LEFT <= at <= WIDTH - RIGHT and (not ticks or ticks[-1][0] - at >= TICK_ROOM):
            ticks.append((at, f"{value:g}"))
    return ticks


def _speed_ticks(y: Scale) -> list[tuple[float, str]]:
    found = [(round(float(y(np.log(tick))), 1), f"{tick:g}") for tick in TICKS]
    return [tick for tick in found if TOP <= tick[0] <= HEIGHT - BOTTOM]


def _spots(points: Sequence[Point], x: Scale, y: Scale, taken: Taken) -> list[Spot]:
    named = {one.name for one in stand_out(points)}
    at = {
        one.name: (float(x(spread(np.array(one.fidelity.value)))), float(y(np.log(one.speed.value)))) for one in points
    }
    taken.boxes += [(across - 6, upright - 6, across + 6, upright + 6) for across, upright in at.values()]
    for point in points:
        (left, right), upright = x(spread(np.array(_ends(point.fidelity)))), at[point.name][1]
        taken.boxes.append((max(LEFT, float(left)), upright - 1, float(right), upright + 1))
    spots = []
    for point in points:
        across, upright = at[point.name]
        low, high = (max(end, 1e-9) for end in _ends(point.speed))
        ends = x(spread(np.array(_ends(point.fidelity))))
        label = _place(point.name, across, upright, taken) if point.name in named else None
        spots.append(
            Spot(
                arm=point.name,
                sort=sort_of_arm(point.name),
                x=round(across, 1),
                y=round(upright, 1),
                across=(round(max(LEFT, float(ends[0])), 1), round(float(ends[1]), 1)),
                upright=(round(float(y(np.log(low))), 1), round(float(y(np.log(high))), 1)),
                label=None if label is None else label[0],
                anchor="start" if label is None else label[1],
            )
        )
    return spots


def _place(text: str, x: float, y: float, taken: Taken) -> tuple[tuple[float, float], str]:
    """Where a label stands, and which of its ends: near its point and on as little else as possible."""
    tried = []
    for far, (dx, dy) in enumerate(OFFSETS):
        anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
        width, left = LETTER * len(text), x + dx
        left -= {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
        tried.append((taken.covered(box) + far, (round(x + dx, 1), round(y + dy, 1)), anchor, box))
    _, at, anchor, box = min(tried)
    taken.boxes.append(box)
    return at, anchor


def along(x: Array, y: Array) -> list[Box]:
    """Small boxes along a line."""
    steps = np.arange(0, max(1, len(x) - 1), 0.25)
    places = np.arange(len(x))
    dots = zip(np.interp(steps, places, x), np.interp(steps, places, y), strict=True)
    return [(float(across) - 2, float(upright) - 2, float(across) + 2, float(upright) + 2) for across, upright in dots]


def shared(one: Box, other: Box) -> float:
    """Common area of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
