"""Whether a measured effect agrees with a published one. One rule, for every table.

Sign: the paper's is that of all its cells (none where they differ, or one has no effect); ours is that of our 95%
interval, and undecided where the interval holds no effect, comes from few prompts, or is none. Size: the paper's median
lies in our interval, or the two effects, on an even scale, differ by no more than a share of the paper's; else ours is
smaller or larger. A tolerance that did not shrink with the effect would let any size agree with a small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

from experiments.paper.spec import Effect
from experiments.paper.values import Claimed
from experiments.statistics import Estimate

TOLERANCE = 0.25  # share of the paper's effect: of the logarithm of a ratio, of a difference
FLOOR = {"ratio": 0.01, "difference": 0.005}  # on that scale: papers print two decimals; of a smaller effect, half
ROUNDING = 1e-9
FEW = 10  # prompts; the bootstrap of fewer is too sure of itself
Sign = Literal["same", "opposite", "undecided", "none", "no claim"]
Size = Literal["same", "smaller", "larger"]
NOTE = (
    "Agrees: `yes` has the paper's sign and size, `sign` its sign, `no` the opposite sign; `undecided`: our interval "
    f"includes 1 (of a difference: 0), or there is none (n = 1), or one of the tasks has fewer than {FEW} prompts (few "
    "prompts); `no effect`: ours, which no prompt can change, is exactly that; `none claimed`: the paper's cells have "
    "both signs, or no effect, and ours is told. Sign: all cells of the paper, our whole interval. Size: the paper's "
    "median lies in our interval, or our effect (of a ratio: its logarithm) is within 25% of the paper's."
)


@dataclass(frozen=True)
class Agreement:
    """Sign and size of our effect beside the paper's; `direction`: of ours, 0 where it is undecided, and `why`."""

    sign: Sign
    size: Size
    direction: int
    why: str = ""

    @property
    def text(self) -> str:
        """As a cell of a table."""
        if self.sign == "no claim":  # the paper's silence must not hide a loss of ours
            return f"none claimed: ours {('undecided', 'higher', 'lower')[self.direction]}{self.why}"
        if self.sign != "same":
            return {"opposite": "no", "undecided": f"undecided{self.why}", "none": "no effect"}[self.sign]
        return "yes" if self.size == "same" else f"sign ({self.size})"


def is_few(fewest: int | None) -> bool:
    """Whether the fewest prompts of any task are too few for a verdict; None: the number follows from no prompts."""
    return fewest is not None and fewest < FEW


def agree(ours: Estimate, paper: Claimed, effect: Effect, fewest: int | None = None) -> Agreement:
    """Compare an effect, a ratio or a difference, with the paper's. `fewest`: as `is_few` takes it."""
    neutral = 1.0 if effect == "ratio" else 0.0
    theirs = _direction(paper.low, paper.high, neutral)
    few = is_few(fewest)
    own = 0 if few or ours.low is None or ours.high is None else _direction(ours.low, ours.high, neutral)
    if theirs == 0:
        sign: Sign = "no claim"
    elif own == 0:
        sign = "none" if fewest is None and ours.low == ours.high == neutral else "undecided"
    else:
        sign = "same" if own == theirs else "opposite"
    return Agreement(sign, _size(ours, paper, effect), own, " (few prompts)" if few else "")


def _direction(low: float, high: float, neutral: float) -> int:
    if low > neutral + ROUNDING:
        return 1
    return -1 if high < neutral - ROUNDING else 0


def _size(ours: Estimate, paper: Claimed, effect: Effect) -> Size:
    inside = ours.low is not None and ours.high is not None and ours.low <= paper.median <= ours.high
    own, theirs = _even(ours.value, effect), _even(paper.median, effect)
    tolerance = max(TOLERANCE * abs(theirs), min(FLOOR[effect], abs(theirs) / 2))
    if inside or abs(own - theirs) <= tolerance + ROUNDING:
        return "same"
    return "larger" if abs(own) > abs(theirs) else "smaller"


def _even(value: float, effect: Effect) -> float:
    """An effect on an even scale, where none is 0."""
    if effect == "ratio":
        return log(value) if value > 0 else float("-inf")
    return value
