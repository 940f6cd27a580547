"""The hierarchical verifier of VIA-SD: slim verifiers keep, rewrite, judge or escalate what the target need not see."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from viasd.budget import BudgetControl
from viasd.calling import WhenItPays
from viasd.decode import Readers, RowReader, Verifier
from viasd.exact import ExactJudge
from viasd.gates import StrictnessGate
from viasd.judging import HierarchicalJudge
from viasd.routing import Gate
from viasd.spec import spec
from viasd.verification import Intermediate, SlimView

MAX_SLIM = 3  # with a drafter and the target that makes five tiers
Mode = Literal["lossy", "exact", "budget"]


@spec
class SlimTier:
    """A slim verifier above the first one: its view of the target, and the gate that says what it may decide."""

    gate: Gate
    slim: Intermediate = Field(default_factory=SlimView)


@spec
class Hierarchical:
    """VIA-SD's verifier: slim verifiers keep, rewrite, judge or escalate drafted tokens; the target has the last word.

    `gate`, `slim`: the first slim verifier. `above`: stronger ones, asked in turn where the one before escalates. On
    the target's cache their layers have to be nested.
    `mode`: `lossy` (the paper); `exact`: what a slim verifier wrote is provisional until the target confirms it, and
    the output law is the target's; `budget`: the gate's strictness follows the measured loss, as `budget` says.
    `after_escalation`: who judges the rest of a draft once a stronger verifier ran: that one (`target`) or, as in the
    paper, the first slim verifier (`slim`).
    `after_equal_rewrite`: whether a rewrite equal to the drafted token ends the round (`stop`, the paper) or not.
    `bonus`: a token drawn by the slim verifier behind a fully kept draft, tested by the gate and against
    `bonus_min_prob` (slim probability), or `none`. `target_bonus`: the target's bonus when it kept the last token.
    `max_pending`: the position that would leave more tokens unread by the target is forced to it (null: never).
    `calls`: in exact mode, when the target is called besides; null: by the gate and `max_pending` alone.
    """

    gate: Gate
    slim: Intermediate = Field(default_factory=SlimView)
    above: Annotated[list[SlimTier], Field(max_length=MAX_SLIM - 1)] = Field(default_factory=list)
    mode: Mode = "lossy"
    after_escalation: Literal["target", "slim"] = "target"
    after_equal_rewrite: Literal["continue", "stop"] = "continue"
    bonus: Literal["slim", "none"] = "slim"
    bonus_min_prob: Annotated[float, Field(ge=0, le=1)] = 0.0
    target_bonus: bool = True
    max_pending: Annotated[int, Field(ge=1)] | None = 64
    calls: WhenItPays | None = None
    budget: BudgetControl | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "exact" and self.after_escalation != "target":
            raise ValueError("after_escalation=slim: in mode=exact the target that ran has ruled; accepted: target")
        if self.mode != "exact" and self.calls is not None:
            raise ValueError(f"calls: mode={self.mode} has no call rule; accepted: null")
        if self.mode != "budget" and self.budget is not None:
            raise ValueError(f"budget: mode={self.mode} has none; accepted: null")
        if self.mode == "budget":
            self._check_budget()
        return self

    def _check_budget(self) -> None:
        if self.budget is None:
            raise ValueError("budget=null: mode=budget needs it; accepted: a viasd.budget.BudgetControl")
        if not isinstance(self.gate, StrictnessGate) or self.above:
            raise ValueError("gate: mode=budget sets the strictness of one gate; accepted: StrictnessGate, above=[]")
        if self.max_pending is None:
            raise ValueError("max_pending=null: mode=budget audits what is pending; accepted: a number, as 24")

    @property
    def tiers(self) -> list[SlimTier]:
        """All slim verifiers, the first one first."""
        return [SlimTier(gate=self.gate, slim=self.slim), *self.above]

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"}.union(*(tier.slim.roles for tier in self.tiers)))

    @property
    def lossless(self) -> bool:
        return self.mode == "exact"

    def open_verifier(self, readers: Readers) -> Verifier:
        target = readers.get("target")
        slims: list[RowReader] = []
        stronger: RowReader | None = None
        for place, tier in reversed(list(enumerate(self.tiers))):  # a weaker one leans on the cache of a stronger one
            stronger = tier.slim.open_reader(readers, "slim" if place == 0 else f"slim{place + 1}", stronger)
            slims.insert(0, stronger)
        return self._open_judge(target, slims)

    def _open_judge(self, target: RowReader, slims: list[RowReader]) -> HierarchicalJudge:
        judge = ExactJudge if self.mode == "exact" else HierarchicalJudge
        return judge(self, target, slims)
