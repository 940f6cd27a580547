"""Budget mode: the strictness of a gate follows the loss that the target's own passes show."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from viasd.decode import Memory
from viasd.spec import spec

LOOSEST = -1.0  # how far below the loosest gate the state may go, so that a long good time does not excuse a bad one


@spec
class BudgetControl:
    """Mean loss per committed token that may be (DESIGN, mode budget).

    The loss of a token: at temperature 0 whether it is not the target's argmax, above max(0, 1 - target / law); 0 where
    the target decided it. After each audited batch of n tokens x <- max(-1, x + rate (sum of losses - n `share`)), from
    x = 1, and the gate's strictness is x between 0 and 1. `memory`: whether x outlives a request.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.01
    rate: Annotated[float, Field(gt=0)] = 0.05
    memory: Literal["request", "run"] = "run"


class Controller:
    """The state x of a budget, and the tokens committed since the last audit."""

    def __init__(self, config: BudgetControl) -> None:
        self.config = config
        self._x, self._waiting = 1.0, 0

    @property
    def strictness(self) -> float:
        return min(1.0, max(0.0, self._x))

    def begin(self) -> None:
        """A request begins; the one before ended with an audit."""
        self._waiting = 0
        if self.config.memory == "request":
            self._x = 1.0

    def commit(self, tokens: int) -> None:
        """Tokens were committed."""
        self._waiting += tokens

    def audit(self, losses: float) -> None:
        """The target has seen all that was committed since the last audit; `losses` is the sum over it."""
        step = self.config.rate * (losses - self._waiting * self.config.share)
        self._x, self._waiting = max(LOOSEST, self._x + step), 0

    def memory(self) -> Memory:
        return {"x": self._x} if self.config.memory == "run" else {}

    def restore(self, memory: Memory) -> None:
        self._x = float(memory.get("x", 1.0))
