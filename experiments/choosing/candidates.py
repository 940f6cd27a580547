"""The measured arms as candidates: speed over the fastest plain sd, shortfall, and how sure both are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.choosing.knobs import Knobs, read_knobs
from experiments.comparison import loss, quality_delta, shortfall, speedup, tokens_per_second
from experiments.errors import UserError
from experiments.frontier import Arms, speedup_over_coin
from experiments.frontier_report import of_arm
from experiments.metrics import find
from experiments.statistics import Estimate, Statistic
from experiments.tables import StoredRun, places

TOSSED = ("coin_mix@", "coin_slim@", "random_gate")  # controls that flip coins are what methods have to beat
RULE_OF_THREE = 3.0  # nothing found in n prompts: less than 3 / n of all prompts have it, at 95%
FEW_LOSSES = 3  # prompts with a loss; the bootstrap of fewer says little of the prompts that were not drawn


@dataclass(frozen=True)
class Candidate:
    """One arm, over the tasks. `over_sd`: its speed over the baseline's, paired. `worst`: its `largest_shortfall`."""

    arm: str
    knobs: Knobs
    speed: Estimate
    over_sd: Statistic
    shortfall: Statistic
    worst: float
    quality_delta: Estimate | None
    over_coin: Estimate | None

    def fits(self, bound: float) -> bool:
        """Whether the shortfall is within the bound, the end of its interval included."""
        return self.worst <= bound


@dataclass(frozen=True)
class Measured:
    """All candidates, the baseline (the fastest plain sd) among them."""

    baseline: Candidate
    candidates: list[Candidate]
    place: Sequence[Arms]

    @property
    def timed(self) -> int:
        """Timed prompts of the task that has the fewest; each of them is judged, too."""
        return min(arms[self.baseline.arm].timed.resamples.units for arms in self.place)


def measure(runs: Sequence[StoredRun], task: str | None = None) -> Measured:
    """The candidates of these runs; `task`: of that one instead of the mean over all.

    Raises UserError without vanilla, without plain sd, for runs that do not mix, and for an unknown task.
    """
    chosen = [run for run in runs if task is None or run.task == task]
    if not chosen:
        raise UserError(f"task={task}: accepted: {', '.join(dict.fromkeys(run.task for run in runs)) or 'none stored'}")
    place = next(iter(places(chosen).values()))  # the mean comes first
    identity = chosen[0].identity["arms"]
    knobs = {name: read_knobs(identity[name]) for name in chosen[0].arms}
    speeds = {name: of_arm(place, name, tokens_per_second) for name in knobs}
    timed = {name: speed for name, speed in speeds.items() if speed is not None and np.isfinite(speed.value)}
    plain = [name for name in timed if knobs[name].plain_sd]
    if not plain or "vanilla" not in timed:
        raise UserError(
            f"arms={', '.join(knobs)}: accepted: timed arms with vanilla and plain sd, to which a choice is compared"
        )
    baseline = max(plain, key=lambda name: timed[name].value)
    found = [_candidate(place, name, knobs[name], baseline) for name in timed if not name.startswith(TOSSED)]
    candidates = [one for one in found if one is not None]
    return Measured(next(one for one in candidates if one.arm == baseline), candidates, place)


def _candidate(place: Sequence[Arms], name: str, knobs: Knobs, baseline: str) -> Candidate | None:
    over = of_arm(place, name, lambda arm: speedup(arm, arm.arms.get(baseline)))
    short, speed = of_arm(place, name, shortfall), of_arm(place, name, tokens_per_second)
    told = None if speed is None else speed.estimate()
    if over is None or short is None or told is None or not np.isfinite(short.value):
        return None
    quality, coin = of_arm(place, name, quality_delta), of_arm(place, name, speedup_over_coin)
    return Candidate(
        arm=name,
        knobs=knobs,
        speed=told,
        over_sd=over,
        shortfall=short,
        worst=largest_shortfall(place, name, knobs),
        quality_delta=None if quality is None else quality.estimate(),
        over_coin=None if coin is None else coin.estimate(),
    )


def largest_shortfall(place: Sequence[Arms], name: str, knobs: Knobs) -> float:
    """The largest shortfall of an arm that the data still allow, which alone says whether it is within a bound.

    The upper end of the interval; of a lossy arm with losses in fewer than `FEW_LOSSES` prompts at least 3 / prompts:
    losses come together, so prompts are what is independent, and so few do not tell how much of one may be lost. Of a
    lossless arm what was measured, with the digits of the metric. Infinite where nothing is known.
    """
    short = of_arm(place, name, shortfall)
    estimate = None if short is None else short.estimate()
    if estimate is None or not np.isfinite(estimate.value):
        return np.inf
    if knobs.lossless:  # its law is the target's: what differs is rounding
        return 0.0 if estimate.high is None else max(0.0, round(estimate.value, find("shortfall").digits))
    if estimate.high is None:
        return np.inf  # one prompt tells nothing of others
    lossy = sum(len({row.example_id for row in arms[name].detail.rows if loss(row) > 0}) for arms in place)
    if lossy >= FEW_LOSSES:
        return estimate.high
    prompts = min(arms[name].detail.resamples.units for arms in place)  # it may all be on the task with the fewest
    return max(estimate.high, min(1.0, RULE_OF_THREE / (prompts * len(place))))
