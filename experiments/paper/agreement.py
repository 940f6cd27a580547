"""Whether a measured effect agrees with a published one. One rule, for every table.

Sign: the paper's is that of all its cells (none where they differ, or one has no effect); ours is that of our 95%
interval, and undecided where the interval holds no effect or there is no interval. Size: the paper's median lies in our
interval, or our value within the tolerance of that median; else ours is smaller or larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

from experiments.paper.spec import Effect
from experiments.paper.values import Claimed
from experiments.statistics import Estimate

TOLERANCE = {"ratio": 0.10, "difference": 0.02}  # of a ratio, relative; of a difference, absolute
ROUNDING = 1e-9
Sign = Literal["same", "opposite", "undecided", "no claim"]
Size = Literal["same", "smaller", "larger"]
NOTE = (
    "Agrees: `yes` has the paper's sign and size, `sign` its sign, `no` the opposite sign, `undecided` an interval of "
    "ours that holds no effect (or none: n = 1). Sign: all cells of the paper, our whole interval. Size: the paper's "
    "median lies in our interval, or our value within 10% (of a difference: 0.02) of it."
)


@dataclass(frozen=True)
class Agreement:
    """Sign and size of our effect beside the paper's."""

    sign: Sign
    size: Size

    @property
    def text(self) -> str:
        """As a cell of a table."""
        if self.sign != "same":
            return {"opposite": "no", "undecided": "undecided", "no claim": "-"}[self.sign]
        return "yes" if self.size == "same" else f"sign ({self.size})"


def agree(ours: Estimate, paper: Claimed, effect: Effect) -> Agreement:
    """Compare an effect, a ratio or a difference, with the paper's."""
    neutral = 1.0 if effect == "ratio" else 0.0
    theirs = _direction(paper.low, paper.high, neutral)
    own = 0 if ours.low is None or ours.high is None else _direction(ours.low, ours.high, neutral)
    if theirs == 0:
        sign: Sign = "no claim"
    elif own == 0:
        sign = "undecided"
    else:
        sign = "same" if own == theirs else "opposite"
    return Agreement(sign, _size(ours, paper, effect))


def _direction(low: float, high: float, neutral: float) -> int:
    if low > neutral + ROUNDING:
        return 1
    return -1 if high < neutral - ROUNDING else 0


def _size(ours: Estimate, paper: Claimed, effect: Effect) -> Size:
    inside = ours.low is not None and ours.high is not None and ours.low <= paper.median <= ours.high
    distance = ours.value / paper.median - 1 if effect == "ratio" else ours.value - paper.median
    if inside or abs(distance) <= TOLERANCE[effect] + ROUNDING:
        return "same"
    return "larger" if _strength(ours.value, effect) > _strength(paper.median, effect) else "smaller"


def _strength(value: float, effect: Effect) -> float:
    """How far an effect is from none, on an even scale."""
    if effect == "ratio":
        return abs(log(value)) if value > 0 else float("inf")
    return abs(value)
