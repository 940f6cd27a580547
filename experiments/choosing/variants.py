"""Settings nobody measured, predicted from measured arms: another draft length, another slim view, a threshold between.

An arm's acceptance by position, its escalations and what a round commits beside kept tokens stay as they were; the last
position's acceptance goes on beyond it. Another view changes the cost of the slim pass, and the shortfall in proportion
to how often the view disagrees with the target. All of this is an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from operator import mul

from experiments.choosing.candidates import Candidate, Measured
from experiments.choosing.cost_model import Content, CostModel, prices, view_of
from experiments.comparison import Arm
from experiments.costs import CostCurve
from experiments.probing.summary import MEAN, number
from viasd.geometry import round_cost

LONGEST = 16  # drafted tokens


@dataclass(frozen=True)
class Rounds:
    """An arm's rounds on one task. `acceptance` by position; the others per round, `target_fed` per call."""

    acceptance: Sequence[float]
    extra: float  # committed tokens beside the kept ones
    escalated: float
    target_fed: float

    def reached(self, length: int) -> float:
        """Positions that are judged in a round of so many drafted tokens."""
        return 1 + sum(self._kept_up_to(length)[:-1])

    def tokens(self, length: int) -> float:
        """Committed tokens of a round of so many drafted tokens."""
        return sum(self._kept_up_to(length)) + self.extra

    def escalates(self, length: int, own: int) -> float:
        """Probability that a round runs the target, if every judged position is as likely to as at length `own`."""
        if self.escalated >= 1:
            return 1.0
        return float(1 - (1 - self.escalated) ** (self.reached(length) / self.reached(own)))

    def _kept_up_to(self, length: int) -> list[float]:
        shares = [self.acceptance[min(i, len(self.acceptance) - 1)] for i in range(length)]
        return list(accumulate(shares, mul))


@dataclass(frozen=True)
class Variant:
    """A measured arm with one key changed. `over_sd` is predicted, and `worst`: the largest shortfall to expect."""

    arm: str
    changes: Mapping[str, float]
    over_sd: float
    worst: float

    def __str__(self) -> str:
        changed = ", ".join(f"{key}={value:g}" for key, value in self.changes.items())
        return f"{self.arm} with {changed}: {self.over_sd:.2f} of sd's speed at a shortfall of at most {self.worst:.4f}"


def read_rounds(arm: Arm) -> Rounds | None:
    """None for an arm that judges nothing, or drafts trees."""
    rows = arm.detail.rows
    rounds = sum(row.rounds for row in rows)
    longest = max((len(row.judged_at) for row in rows), default=0)
    judged = [sum(row.judged_at[i] for row in rows if i < len(row.judged_at)) for i in range(longest)]
    kept = [sum(row.accepted_at[i] for row in rows if i < len(row.accepted_at)) for i in range(longest)]
    acceptance = [k / j for k, j in zip(kept, judged, strict=True) if j]
    if not acceptance or not rounds or any(row.nodes for row in rows):
        return None
    calls, fed = (
        sum(counts.get("target", 0) for counts in of) for of in ([r.calls for r in rows], [r.fed for r in rows])
    )
    committed = sum(row.new_tokens for row in rows) / rounds
    drafted = sum(accumulate(acceptance, mul))
    return Rounds(acceptance, committed - drafted, min(1.0, calls / rounds), fed / max(1, calls))


def predict(measured: Measured, probe: Content, model: CostModel, bound: float) -> list[Variant]:
    """Within the bound the best variant of each arm by each key, the fastest first."""
    found = []
    for one in measured.candidates:
        if one.knobs.draft_length is not None:
            found += lengths(one, measured, probe, model) + views(one, measured, probe, model)
    found += thresholds(measured)
    best: dict[tuple[str, ...], Variant] = {}
    for variant in sorted(found, key=lambda variant: -variant.over_sd):
        if variant.worst <= bound:
            best.setdefault((variant.arm, *variant.changes), variant)
    return list(best.values())


def lengths(one: Candidate, measured: Measured, probe: Content, model: CostModel) -> list[Variant]:
    """The candidate at the other draft lengths up to LONGEST."""
    known, own = prices(probe, model.curves, one.knobs), one.knobs.draft_length or 0
    found = []
    for length in range(1, LONGEST + 1):
        ratio = _ratio(one, measured, model, (known, own), (known, length))
        if ratio is not None and length != own:
            changes = {"stop.length": float(length)}
            found.append(Variant(one.arm, changes, one.over_sd.value / ratio, one.worst))
    return found


def views(one: Candidate, measured: Measured, probe: Content, model: CostModel) -> list[Variant]:
    """The candidate with the probe's other slim views, where the probe knows its own."""
    own, length = view_of(probe, one.knobs), one.knobs.draft_length or 0
    entries = {name: entry for name, entry in probe["agreement"].items() if entry["view"]}
    if own is None:
        return []
    apart = {name: 1 - number(entry["agreement"][MEAN]) for name, entry in entries.items()}
    found = []
    for name, entry in entries.items():
        here, there = ({**model.curves, "slim": model.curves[view]} for view in (own, name))
        ratio = _ratio(one, measured, model, (here, length), (there, length))
        if ratio is not None and name != own and apart[own] > 0:
            changes = {"verifier.slim.skip_ratio": entry["view"]["skip_ratio"]}
            share = 0.0 if one.knobs.lossless else apart[name] / apart[own]
            found.append(Variant(one.arm, changes, one.over_sd.value / ratio, share * one.worst))
    return found


def thresholds(measured: Measured) -> list[Variant]:
    """Halfway between two candidates that differ in one threshold: both numbers are taken to be in the middle, too."""
    found = []
    for one, other in combinations(measured.candidates, 2):
        differ = [
            name
            for name in {*one.knobs.thresholds, *other.knobs.thresholds}
            if one.knobs.thresholds.get(name) != other.knobs.thresholds.get(name)
        ]
        same = all(
            getattr(one.knobs, field) == getattr(other.knobs, field)
            for field in ("gate", "draft_length", "skip_ratio", "kept", "lossless")
        )
        ends = [pair.knobs.thresholds.get(differ[0]) for pair in (one, other)] if len(differ) == 1 else []
        numbers = [end for end in ends if isinstance(end, int | float)]
        if same and one.knobs.gate is not None and len(numbers) == 2:
            over = 2 / (1 / one.over_sd.value + 1 / other.over_sd.value)  # seconds are what is mixed
            worst = (one.worst + other.worst) / 2
            found.append(Variant(one.arm, {f"verifier.gate.{differ[0]}": sum(numbers) / 2}, over, worst))
    return found


def _ratio(
    one: Candidate, measured: Measured, model: CostModel, own: tuple[Mapping[str, CostCurve], int],
    other: tuple[Mapping[str, CostCurve], int],
) -> float | None:  # fmt: skip
    """Seconds per token of the other setting over the own one's, both by the model: the mean over the tasks."""
    ratios = []
    for arms in measured.place:
        rounds = read_rounds(arms[one.arm])
        if rounds is None or "draft" not in own[0] or (one.knobs.kept is not None and "slim" not in own[0]):
            return None
        here, there = (_seconds(rounds, model, one, known, length, own[1]) for known, length in (own, other))
        ratios.append(there / here)
    return sum(ratios) / len(ratios)


def _seconds(
    rounds: Rounds, model: CostModel, one: Candidate, known: Mapping[str, CostCurve], length: int, own: int
) -> float:
    """Modelled seconds per token."""
    slim = known["slim"].seconds(length + 1) if one.knobs.kept is not None else 0.0
    # Without a slim verifier the target reads the draft; else what is pending, which grows as tokens per round do.
    fed = length + 1 if one.knobs.kept is None else rounds.target_fed * rounds.tokens(length) / rounds.tokens(own)
    forward = round_cost(
        length,
        known["draft"].seconds(1),
        slim,
        known["target"].seconds(max(1, round(fed))),
        rounds.escalates(length, own),
    )
    return model.seconds(forward, 1) / rounds.tokens(length)
