"""The choice itself: the fastest measured arm within the bound, if it beats sd for sure; what to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.choosing.candidates import Candidate, Measured, measure
from experiments.choosing.cost_model import Content, CostModel, fit
from experiments.choosing.variants import Variant, predict
from experiments.errors import UserError
from experiments.frontier import verdict
from experiments.frontier_report import interval
from experiments.paper.agreement import FEW
from experiments.probing.summary import MEAN as OVER_TASKS
from experiments.probing.summary import number
from experiments.statistics import detectable_ratio
from experiments.tables import StoredRun
from experiments.text_tables import ABSENT, Cells

NEXT = 4  # variants that are worth a measurement, at most


@dataclass(frozen=True)
class Choice:
    """`recommended`: None where nothing is to be recommended over sd. `best`: the fastest arm within the bound.

    `few`: the timed prompts of a task are too few to recommend anything by.

    `sure`: share of the bootstrap replicates in which `best` is faster than sd and within the bound; None where one
    prompt gives none. `picked`: share in which it is the fastest of all within the bound.
    """

    bound: float
    measured: Measured
    best: Candidate
    recommended: Candidate | None
    few: bool
    sure: float | None
    picked: float | None
    model: CostModel | None
    variants: list[Variant]


def choose(runs: Sequence[StoredRun], bound: float, probe: Content | None = None, task: str | None = None) -> Choice:
    """Choose among the arms of these runs at a shortfall of at most `bound` (0: lossless methods alone).

    `probe`: the content of a probe.json of this pair, from which the cost model is fitted; None: no variants. `task`:
    for this one alone. Raises UserError for a bound outside [0, 1], for a probe of another pair, and as `measure` does.
    """
    if not 0 <= bound <= 1:
        raise UserError(f"bound={bound}: accepted: a share of tokens from 0 to 1")
    measured = measure(runs, task)
    if probe is not None and probe["pair"] != (name := runs[0].identity["pair"]["name"]):
        raise UserError(f"probe of pair {probe['pair']}: the runs are of pair {name}; accepted: a probe of that")
    fitting = [one for one in measured.candidates if one.fits(bound)]
    best = max(fitting, key=lambda one: one.over_sd.value, default=measured.baseline)
    over = best.over_sd.estimate()
    wins = best is not measured.baseline and over is not None and over.low is not None and over.low > 1
    few = measured.timed < FEW
    sure, picked = replicated(measured, best, bound)
    model = None if probe is None else fit(measured, probe)
    variants = [] if model is None or probe is None else predict(measured, probe, model, bound)
    lead = best.over_sd.value
    return Choice(
        bound=bound,
        measured=measured,
        best=best,
        recommended=best if wins and not few else None,
        few=few,
        sure=sure,
        picked=picked,
        model=model,
        variants=[one for one in variants if one.over_sd > lead][:NEXT],
    )


def replicated(measured: Measured, best: Candidate, bound: float) -> tuple[float | None, float | None]:
    """How often the choice holds when prompts are drawn anew: better than sd within the bound, and the best of all.

    Speed and shortfall are resampled independently of each other, each paired across arms. An arm that does not fit
    the bound fits in no replicate: few losses say little of it. A lossless one that fits does in every one.
    """
    speeds = np.stack([one.over_sd.replicates for one in measured.candidates])  # [arms, replicates]
    short = np.stack([one.shortfall.replicates for one in measured.candidates])
    if not speeds.size or speeds.shape != short.shape:
        return None, None
    fitting, lossless = (
        np.array(flags)[:, None]
        for flags in zip(*((one.fits(bound), one.knobs.lossless) for one in measured.candidates), strict=True)
    )
    fits = fitting & ((short <= bound) | lossless)
    own = measured.candidates.index(best)
    fastest = np.where(fits & np.isfinite(speeds), speeds, -np.inf).argmax(axis=0)
    return float(np.mean(fits[own] & (speeds[own] > 1))), float(np.mean(fastest == own))


def explain(choice: Choice) -> str:
    """The choice in words: what, how sure, and what is not known."""
    best, baseline = choice.best, choice.measured.baseline
    speed = interval(best.over_sd, 2)
    if choice.recommended is None:
        lines = [
            f"Nothing is to be recommended over sd at a shortfall of at most {choice.bound:g}: use {baseline.arm} "
            f"({baseline.knobs})."
        ]
        lines += [_too_few(choice.measured.timed)] * choice.few
        if best is not baseline:
            least = None if choice.few else detectable_ratio(best.over_sd)
            found = "" if least is None else f"; this many prompts would find {least:.2f}"
            lines.append(f"The fastest within the bound is {best.arm}: {speed} of its speed, so undecided{found}.")
    else:
        lines = [
            f"Recommended at a shortfall of at most {choice.bound:g}: {best.arm} ({best.knobs}).",
            f"Speed over {baseline.arm}, the fastest sd: {speed}. Shortfall: {interval(best.shortfall, 4)}.",
        ]
    if best is not baseline:
        lines += _doubts(choice)
    return "\n".join(lines + _what_next(choice))


def _too_few(timed: int) -> str:
    told = f"{timed} prompt{'s' * (timed != 1)} of a task {'was' if timed == 1 else 'were'} timed"
    return f"Too few prompts to recommend anything by: {told}, and intervals of fewer than {FEW} are too short."


def _doubts(choice: Choice) -> list[str]:
    best, lines = choice.best, []
    if choice.sure is not None and choice.picked is not None and not choice.few:
        lines.append(
            f"In {choice.sure:.0%} of resamples of the prompts it is faster than sd and within the bound, in "
            f"{choice.picked:.0%} the fastest of {len(choice.measured.candidates)} arms within it: it was chosen on "
            "these prompts, which flatters it."
        )
    if best.quality_delta is not None and best.quality_delta.high is not None and best.quality_delta.high < 0:
        lines.append(f"The task's quality falls: {best.quality_delta.value:+.3f}, and the interval excludes 0.")
    if verdict(best.over_coin) == "below":
        lines.append("A coin between sd and unread drafting is faster at this fidelity: its judgment is worth nothing.")
    return lines


def _what_next(choice: Choice) -> list[str]:
    if choice.model is None:
        return ["No probe was given: nothing is said of settings that were not measured."]
    model = choice.model
    lines = [
        f"Cost model: {model.scale:.2f} x isolated calls + {1e3 * model.per_round:.2f} ms per round; of an arm it has "
        f"not seen it misses {model.typical_error:.0%} in the median of {len(model.errors)}."
    ]
    if not choice.variants:
        return [*lines, "It predicts no faster setting within the bound."]
    return [*lines, "Predicted to be faster within the bound, to be measured before they are used:"] + [
        f"- {variant}" for variant in choice.variants
    ]


def cells(choice: Choice) -> Cells:
    """All candidates as a table, the fastest first."""
    header = ["arm", "knobs", "over sd", "shortfall", "at most", "fits", "quality", "over coin"]
    rows = sorted(choice.measured.candidates, key=lambda one: -one.over_sd.value)
    return [header, *([
        one.arm, str(one.knobs), interval(one.over_sd, 2), interval(one.shortfall, 4), f"{one.worst:.4f}",
        "yes" if one.fits(choice.bound) else "no",
        ABSENT if one.quality_delta is None else f"{one.quality_delta.value:+.3f}",
        ABSENT if one.over_coin is None else f"{one.over_coin.value:.2f}",
    ] for one in rows)]  # fmt: skip


def probed_lengths(probe: Content, model: CostModel) -> Cells:
    """The probe's predictions for sd and its method by draft length, with the time per round of the fitted model."""
    table = [["arm", "drafts of", "tokens/s, predicted"]]
    for entry in probe["predicted"]:
        if entry["draft_length"] and entry["arm"] in ("sd", probe["method"]):
            speed, rounds = (number(entry[name][OVER_TASKS]) for name in ("tokens_per_second", "tokens_per_round"))
            table.append([entry["arm"], str(entry["draft_length"]), f"{1 / model.seconds(1 / speed, 1 / rounds):.0f}"])
    return table
