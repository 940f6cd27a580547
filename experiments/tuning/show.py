"""The outcome of a tuning as text. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.launching.neighbors import Seen
from experiments.text_tables import ABSENT, text_table
from experiments.tuning.space import told
from experiments.tuning.trial import Trial


def table(trials: Mapping[str, Sequence[Trial]], best: Mapping[str, Trial | None], min_fidelity: float) -> str:
    """One row for each method, and what its best setting is below them."""
    cells = [["method", "relative speed", "fidelity", "trials", "feasible", "failed", "seconds"]]
    for name, own in trials.items():
        chosen = best[name]
        numbers = [ABSENT, ABSENT] if chosen is None else [f"{chosen.relative_speed:.2f}", f"{chosen.fidelity:.4f}"]
        feasible = sum(trial.feasible(min_fidelity) for trial in own)
        failed = sum(trial.error is not None for trial in own)
        seconds = sum(trial.seconds for trial in own)
        cells.append([name, *numbers, str(len(own)), str(feasible), str(failed), f"{seconds:.0f}"])
    settings = [
        f"{name}: {ABSENT if one is None else told(one.setting) or 'as it stands'}" for name, one in best.items()
    ]
    disturbed = [trial for own in trials.values() for trial in own if trial.neighbors]
    count, most = sum(map(len, trials.values())), max((trial.neighbors for trial in disturbed), default=0)
    notices = [f"note: {one}" for one in Seen(most).told(f"{len(disturbed)} of {count} trials were")]
    return "\n".join([text_table(cells), *settings, *notices])


def infeasible(name: str, trials: Sequence[Trial], min_fidelity: float) -> str:
    """Why a method has no best setting."""
    measured = [trial for trial in trials if trial.error is None]
    if not measured:
        return f"none of {len(trials)} trials of {name} could be measured; the first: {trials[0].error}"
    near = max(measured, key=lambda trial: trial.fidelity or 0.0)
    return (
        f"none of {len(trials)} trials of {name} is feasible (min_fidelity={min_fidelity:g}): the nearest has fidelity "
        f"{near.fidelity:.4f}, vanilla itself {near.vanilla_fidelity:.4f}"
    )
