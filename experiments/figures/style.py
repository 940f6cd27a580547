"""The one style of all figures: legible at 3.3 in, told apart without color, and saved as the same bytes every time."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.style import context

from experiments.errors import UserError
from experiments.figures.forms import METADATA
from experiments.statistics import Estimate

COLUMN, PAGE = 3.3, 7.0  # widths of a column and of a page of text, in
DPI = 200
# Okabe and Ito (2008), which the color-blind tell apart, without the yellow that paper swallows.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GRAY, PALE, DARK = "#888888", "#dddddd", "#222222"
# Of models: light to dark, so that they differ in gray as well, and each with its own hatch.
PARTS = {"draft": ("#e69f00", ""), "slim": ("#009e73", "///"), "target": ("#0072b2", "..."), "other": (PALE, "")}
MISSING_HATCH = "////"
CHARACTERS = 21  # of a caption, in a line of one inch
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "errorbar.capsize": 1.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.titlesize": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # outlines that every printer takes, and text that can be searched
    "svg.fonttype": "path",
    "svg.hashsalt": "viasd",  # ids in an SVG are random without one
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


@dataclass(frozen=True)
class Mark:
    """How one line or arm looks. No two of the first 63 look alike, with or without color."""

    color: str
    marker: str
    line: Any


def in_style() -> AbstractContextManager[None]:
    """Within it figures are made, drawn and saved in the project's style, whatever the user's own settings are."""
    found: AbstractContextManager[None] = context(["default", STYLE])
    return found


def mark(place: int) -> Mark:
    """The look of the line or arm at this place of its figure."""
    return Mark(COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure [in] that no global state knows of. Raises UserError for a size that cannot be drawn."""
    for key, size in (("width", width), ("height", height)):
        if not 0.5 <= size <= 60:
            raise UserError(f"{key}={size:g}: accepted: 0.5 to 60 inches")
    return Figure(figsize=(width, height))


def distances(estimate: Estimate) -> tuple[float, float]:
    """From a value down and up to the two ends of its interval; 0 where there is none."""
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return max(0.0, estimate.value - low), max(0.0, high - estimate.value)


def write_caption(figure: Figure, text: str) -> None:
    """Small print below a figure: how many prompts, where measured."""
    width = int(CHARACTERS * figure.get_figwidth())
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6, color=GRAY)


def write_legend(axes: Axes, **options: Any) -> None:
    """A legend where there is anything to tell."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**options)


def mark_missing(axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    """A hatched box where a number would be: it was not measured, or failed."""
    axes.add_patch(
        Rectangle((left, bottom), width, height, facecolor="white", edgecolor=GRAY, hatch=MISSING_HATCH, linewidth=0)
    )


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.svg, `name`.pdf and `name`.png: the same bytes for the same figure, on every day and machine
    with these versions of the libraries. Raises UserError where that is not allowed.
    """
    paths = [folder / f"{name}.{form}" for form in METADATA]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, form in zip(paths, METADATA, strict=True):
            path.write_bytes(render(figure, form))
            figure.set_layout_engine(
                "none"
            )  # the first drawing has settled it, and solving it again takes most of the time
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write {name} there ({error.strerror}); accepted: a writable folder"
        ) from error
    return paths


def render(figure: Figure, form: str = "png", dpi: int = DPI) -> bytes:
    """A figure as the bytes of a file: svg, pdf or png."""
    content = io.BytesIO()
    with in_style():
        figure.savefig(content, format=form, dpi=dpi, metadata=METADATA[form])
    return content.getvalue()


def grid(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns of that many panels."""
    columns = max(1, min(count, columns))
    return -(-count // columns), columns


def panels(figure: Figure, titles: Sequence[str], columns: int, **options: Any) -> list[Axes]:
    """One panel with a title for each name; no title where there is one panel only."""
    rows, columns = grid(len(titles), columns)
    found = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes, title in zip(found, titles, strict=False):
        axes.set_title(title if len(titles) > 1 else "")
    for axes in found[len(titles) :]:
        axes.remove()
    return found[: len(titles)]
