"""The step costs of a probe: every model of the pair and every slim view, behind the same context."""

from __future__ import annotations

from collections.abc import Callable

from experiments.costs import CostCurve, open_readers, time_readers
from experiments.probing.setup import ProbeJob
from viasd.engine import Engine


def measure_costs(engine: Engine, job: ProbeJob, context: int, tick: Callable[[], object]) -> dict[str, CostCurve]:
    """Costs by role, and by name for the views. `tick` is called per cycle."""
    timed = open_readers(engine, job.drafter, {view.name: view.kept for view in job.views})
    settings = job.settings
    return time_readers(engine, timed, settings.timed_lengths, context, settings.repeats, seed=settings.seed, tick=tick)
