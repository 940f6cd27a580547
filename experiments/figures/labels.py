"""Names beside points: each where it covers neither marks nor other names, if there is such a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments.statistics import Array

# Where a label may stand, in points from its point and nearest first: the first place that is free is taken.
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 2), (-1, 2), (1, -2), (-1, -2))
PLACES = tuple((far * x, far * y) for far in (7, 14, 24, 36, 50) for x, y in SIDES)
ALIGNED = {"left": 0.0, "center": 0.5, "right": 1.0}  # share of a label's width that is left of its anchor


@dataclass(frozen=True)
class Label:
    """A text and the data coordinates of what it names."""

    text: str
    x: float
    y: float
    color: str


def place_labels(axes: Axes, labels: Sequence[Label], canvas: FigureCanvasAgg) -> None:
    """Write the labels. The layout of the figure must be settled, without which no label has a place."""
    renderer, pixel = canvas.get_renderer(), axes.figure.dpi / 72
    legend = axes.get_legend()
    frame = np.array(axes.bbox.extents)[None]
    taken: list[Array] = [_drawn(axes, 2 * pixel)]
    if legend is not None:
        taken.append(np.array(legend.get_window_extent(renderer).extents))
    for label in labels:
        center = axes.transData.transform((label.x, label.y))
        note = axes.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points",
            fontsize=7, color=label.color, va="center",
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2},
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
    at = np.concatenate([np.zeros((0, 2)), *corners, *pieces])
    return np.hstack([at - margin, at + margin])


def _shared(boxes: Array, others: Array) -> Array:
    """Common area of each two boxes [boxes, others]; both [..., left, bottom, right, top]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)


def _side(x: float) -> str:
    """Alignment of a label that far from its point."""
    return "left" if x > 0 else "right" if x < 0 else "center"
