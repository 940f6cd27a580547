"""Adaptive state over time: the numbers of a method that follow the text, by the tokens that are committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.errors import UserError, near
from experiments.figures.style import COLUMN, GRAY, grid, in_style, mark, new_figure, panels, write_caption
from experiments.figures.traces import adaptive_numbers, task_run, traced
from experiments.figures.values import open_runs, where
from experiments.records import Row
from experiments.statistics import Array
from experiments.tables import StoredRun

Course = list[tuple[int, float]]  # committed tokens, the number from there on
ALIVE = 0.5  # the middle is drawn as long as this share of the examples goes on


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str],
    numbers: Sequence[str] | None = None,
    task: str | None = None,
    joined: bool = False,
    title: str | None = None,
    width: float = COLUMN,
    panel_height: float = 1.5,
) -> Figure:
    """A panel for each arm and number (`numbers`: as `verifier.strictness`, None: all), of the run on `task` (None: the
    first). Thin: the examples; thick: their median. `joined`: one example behind the other, for what outlives one.

    Raises UserError for an unknown arm, number or task, and where no arm has such numbers.
    """
    run = task_run(runs, task)
    courses = {name: _by_number(traced(run, name)) for name in arms}
    known = list(dict.fromkeys(number for of in courses.values() for number in of))
    if not known:
        raise UserError(f"arms: {', '.join(arms)} follow no text; accepted: arms with adaptive numbers")
    for name in numbers or ():
        if name not in known:
            raise UserError(f"numbers: no {name!r}{near(name, known)}")
    shows = {
        f"{arm}: {number}": course
        for arm, of in courses.items()
        for number, course in of.items()
        if numbers is None or number in numbers
    }
    columns = max(1, int(width // 3))
    with in_style():
        figure = new_figure(width, 0.7 + panel_height * grid(len(shows), columns)[0])
        for index, (axes, (label, course)) in enumerate(
            zip(panels(figure, list(shows), columns), shows.items(), strict=True)
        ):
            axes.set_title(label)
            _panel(axes, course, mark(index).color, joined)
            axes.set(xlabel="committed tokens")
        if title:
            figure.suptitle(title)
        count = max(len(course) for course in shows.values())
        told = "one behind the other" if joined else f"thin; thick: the median while {ALIVE:.0%} go on"
        write_caption(figure, f"{where(open_runs([run]))}. {run.task}: {count} examples, {told}.")
    return figure


def _by_number(rows: Sequence[Row]) -> dict[str, list[Course]]:
    found: dict[str, list[Course]] = {}
    for row in rows:
        for number, course in adaptive_numbers(row).items():
            found.setdefault(number, []).append(course)
    return found


def _panel(axes: Axes, courses: Sequence[Course], color: str, joined: bool) -> None:
    if joined:
        courses = [_join(courses)]
    for course in courses:
        x, y = zip(*course, strict=True)
        axes.step(x, y, where="post", color=color if joined else GRAY, linewidth=0.9 if joined else 0.5)
    if not joined:
        at, middle = median_course(courses)
        axes.step(at, middle, where="post", color=color, linewidth=1.8)


def _join(courses: Sequence[Course]) -> Course:
    joined, before = [], 0
    for course in courses:
        joined += [(before + tokens, value) for tokens, value in course]
        before += course[-1][0]
    return joined


def median_course(courses: Sequence[Course]) -> tuple[Array, Array]:
    """The median of step functions at every count of tokens that at least half of them reach, once all have begun."""
    ends = sorted((course[-1][0] for course in courses), reverse=True)
    first, last = max(course[0][0] for course in courses), ends[int(np.ceil(ALIVE * len(ends))) - 1]
    at = np.arange(first, last + 1)
    values = np.full((len(courses), len(at)), np.nan)
    for row, course in enumerate(courses):
        tokens, numbers = (np.array(column) for column in zip(*course, strict=True))
        reached = at <= tokens[-1]
        values[row, reached] = numbers[np.searchsorted(tokens, at[reached], side="right") - 1]
    return at.astype(float), np.nanmedian(values, axis=0) if len(at) else np.zeros(0)
