"""What a token costs, fitted to what was measured: calls at the probe's isolated costs, and the loop's time per round.

seconds = scale x forward seconds + per_round x rounds, over all arms whose calls the probe has costs of. A round of
another draft length or slim view is then priced by `viasd.geometry.round_cost` with the arm's own acceptance, relative
to the same formula at what was measured. Speeds of such variants are predictions: they say what to measure next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from experiments.choosing.candidates import Measured
from experiments.choosing.knobs import Knobs
from experiments.comparison import clocked_tokens, decode_seconds
from experiments.costs import Cost, CostCurve
from experiments.errors import UserError
from experiments.records import TRACE, Row
from experiments.statistics import Array

CALLS = TRACE.index("calls")
Content = Mapping[str, Any]  # of probe.json
Work = tuple[float, float, float]  # per token: forward seconds at isolated costs, rounds, measured seconds


@dataclass(frozen=True)
class CostModel:
    """`errors`: of each arm's seconds per token, predicted by the model that is fitted without this arm, relative."""

    curves: Mapping[str, CostCurve]
    scale: float
    per_round: float  # seconds
    errors: Mapping[str, float]

    @property
    def typical_error(self) -> float:
        """Median of the relative errors, without their signs."""
        return median(map(abs, self.errors.values())) if self.errors else float("nan")

    def seconds(self, forward: float, rounds: float) -> float:
        """Seconds of so much work."""
        return self.scale * forward + self.per_round * rounds


def read_curves(probe: Content) -> dict[str, CostCurve]:
    """The costs of a probe by model and slim view."""
    return {
        name: CostCurve({int(fed): Cost(step["median"], step["low"], step["high"]) for fed, step in steps.items()})
        for name, steps in probe["costs"]["readers"].items()
    }


def view_of(probe: Content, knobs: Knobs) -> str | None:
    """The name of the probe's view that keeps the same layers as an arm's slim verifier; None where it has none."""
    if knobs.kept is None:
        return None
    views = {name: entry["view"] for name, entry in probe["agreement"].items() if entry["view"]}
    return next((name for name, view in views.items() if view["kept"] == knobs.kept), None)


def prices(probe: Content, curves: Mapping[str, CostCurve], knobs: Knobs) -> dict[str, CostCurve]:
    """Curves by the readers' names in an arm's trace."""
    view = view_of(probe, knobs)
    return {**curves, **({"slim": curves[view]} if view is not None else {})}


def work_of(measured: Measured, arm: str, known: Mapping[str, CostCurve]) -> Work | None:
    """An arm's work per token, the mean over the tasks; None where a row has no trace or a call no cost."""
    found = []
    for arms in measured.place:
        rows = arms[arm].timed.rows
        forward = [_forward(row, known) for row in rows]
        tokens = sum(map(clocked_tokens, rows))
        if not rows or not tokens or any(seconds is None for seconds in forward):
            return None
        totals = sum(filter(None, forward)), sum(row.rounds for row in rows), sum(map(decode_seconds, rows))
        found.append([total / tokens for total in totals])
    forward_seconds, rounds, seconds = np.mean(found, axis=0).tolist()
    return forward_seconds, rounds, seconds


def _forward(row: Row, known: Mapping[str, CostCurve]) -> float | None:
    if not row.trace:
        return None
    calls = [(reader, fed) for entry in row.trace for reader, *lengths in entry[CALLS] for fed in lengths]
    if any(reader not in known for reader, _ in calls):
        return None
    return sum(known[reader].seconds(fed) for reader, fed in calls)


def fit(measured: Measured, probe: Content) -> CostModel:
    """Fit the model to the arms, whose relative errors count alike. Raises UserError for fewer than 3 priced arms."""
    curves = read_curves(probe)
    work = {
        one.arm: found
        for one in measured.candidates
        if (found := work_of(measured, one.arm, prices(probe, curves, one.knobs))) is not None
    }
    if len(work) < 3:
        raise UserError(f"probe of pair {probe['pair']}: has costs for the calls of {len(work)} arms; accepted: 3 arms")
    scale, per_round = solve(list(work.values()))
    errors = {}
    for name, (forward, rounds, seconds) in work.items():
        without = solve([other for key, other in work.items() if key != name])
        errors[name] = (without[0] * forward + without[1] * rounds) / seconds - 1
    return CostModel(curves, scale, per_round, errors)


def solve(work: Sequence[Work]) -> tuple[float, float]:
    """Scale and seconds per round, neither below 0, by least squares of relative errors."""
    columns: Array = np.array(work, dtype=np.float64)  # [arms, 3]
    inputs, ones = columns[:, :2] / columns[:, 2:], np.ones(len(columns))
    both = np.linalg.lstsq(inputs, ones, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [float(np.dot(column, ones) / np.dot(column, column)) for column in inputs.T]
    residuals = [float(np.sum((column * share - 1) ** 2)) for column, share in zip(inputs.T, alone, strict=True)]
    return (alone[0], 0.0) if residuals[0] <= residuals[1] else (0.0, alone[1])
