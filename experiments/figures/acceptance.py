"""Acceptance by draft position: how much of a long draft is worth its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.errors import UserError
from experiments.figures.style import COLUMN, distances, in_style, mark, new_figure, write_caption, write_legend
from experiments.figures.values import Place, caption, estimate, known_arms, members, open_runs
from experiments.statistics import Estimate
from experiments.tables import StoredRun

Kind = Literal["conditional", "unconditional"]
LABELS = {"conditional": "kept of the judged", "unconditional": "kept of the drafted"}


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str] | None = None,
    kind: Kind = "conditional",
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """`arms`: None: all that judge. The mean over the tasks, positions from 1; of a position that a task never
    reached there is no mean. `kind`: over the rounds that judged a position, or over those that drafted it.

    Raises UserError for runs that do not mix, for another kind, and where none of the arms is in the runs.
    """
    if kind not in LABELS:
        raise UserError(f"kind={kind!r}: accepted: {', '.join(LABELS)}")
    names, opened = known_arms(runs, arms), open_runs(runs)
    (place,) = opened.panels.values()
    lines = {name: by_position(place, name, kind) for name in names}
    with in_style():
        figure = new_figure(width, height or 2.6)
        axes = figure.subplots()
        for index, (name, line) in enumerate((name, line) for name, line in lines.items() if line):
            look = mark(index)
            bars = list(zip(*(distances(number) for number in line.values()), strict=True))
            axes.errorbar(
                list(line), [number.value for number in line.values()], bars, label=name, color=look.color,
                marker=look.marker, linestyle=look.line, markersize=3, elinewidth=0.6,
            )  # fmt: skip
        axes.set(xlabel="draft position", ylabel=LABELS[kind])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        write_legend(axes)
        if title:
            figure.suptitle(title)
        missing = [name for name, line in lines.items() if not line] if arms is not None else []
        write_caption(figure, caption(opened, missing))
    return figure


def by_position(place: Place, name: str, kind: Kind) -> dict[int, Estimate]:
    """Acceptance by position from 1."""
    keys = members(place, name, f"acceptance.<position>.{kind}")
    found = {int(key) + 1: estimate(place, name, f"acceptance.{key}.{kind}") for key in keys}
    return {position: number for position, number in sorted(found.items()) if number is not None}
