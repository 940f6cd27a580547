"""Where the decode time goes: stacked shares of the readers' forwards, and of the loop around them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures.stacked import draw_stacks
from experiments.figures.style import COLUMN
from experiments.figures.values import known_arms, open_runs
from experiments.tables import StoredRun

FAMILIES = {"time_share.<reader>": "share of decode time"}


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """`arms`: None: all. The mean over the tasks; hatched: not timed.

    Raises UserError for runs that do not mix, and where none of the arms is in the runs.
    """
    return draw_stacks(open_runs(runs), known_arms(runs, arms), FAMILIES, title, width, height)
