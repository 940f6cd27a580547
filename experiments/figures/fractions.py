"""Who ruled on the judged tokens and who wrote the committed ones: stacked fractions of tiers and sources."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures.stacked import draw_stacks
from experiments.figures.style import PAGE
from experiments.figures.values import known_arms, open_runs
from experiments.tables import StoredRun

FAMILIES = {"tier_fraction.<tier>": "tiers of judged tokens", "source_fraction.<source>": "sources of committed tokens"}


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    width: float = PAGE,
    height: float | None = None,
) -> Figure:
    """`arms`: None: all. The mean over the tasks; hatched: nothing was judged, as by vanilla.

    Raises UserError for runs that do not mix, and where none of the arms is in the runs.
    """
    return draw_stacks(open_runs(runs), known_arms(runs, arms), FAMILIES, title, width, height)
