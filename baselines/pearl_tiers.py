"""PEARL with the hierarchical verifier in the target's place, as in VIA-SD's comparison (2606.12243, Fig. 5)."""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

from pydantic import model_validator

from viasd.decode import Draft, RowReader, State, Verdict
from viasd.hierarchical import Hierarchical
from viasd.judging import HierarchicalJudge
from viasd.spec import spec


@spec
class PearlHierarchical(Hierarchical):
    """VIA-SD's verifier for drafts that go on while it works (`baselines.pearl.PearlDrafter`). Lossy, or by budget.

    It rules on the tokens that are due: those held of the block before, then the first new one, which no verifier reads
    in this round. If all of them are kept the rest of the new block is held for the next round, and there is no token
    behind them; a token that is replaced, or a rewrite that ends the round, throws it away. All else is as in
    `Hierarchical`. The paper says no more than that its verifier was added to PEARL: this is our reading.

    Run serially: tokens, calls and counts are those of the parallel method, seconds are not. On two devices a round
    would take as long as the longer of its draft steps and all its verifiers' (one device: they run in turn).
    """

    bonus: Literal["slim", "none"] = "none"
    target_bonus: bool = False

    @model_validator(mode="after")
    def _ahead(self) -> Self:
        if self.mode == "exact":
            raise ValueError("mode=exact: what is held was drafted on provisional tokens; accepted: lossy, budget")
        if self.bonus != "none" or self.target_bonus:
            key = "target_bonus=true" if self.bonus == "none" else f"bonus={self.bonus}"
            raise ValueError(
                f"{key}: behind a kept draft stands the next block; accepted: bonus=none target_bonus=false"
            )
        return self

    def _open_judge(self, target: RowReader, slims: list[RowReader]) -> HierarchicalJudge:
        return _AheadTiers(self, target, slims)


class _AheadTiers(HierarchicalJudge):
    def judge(self, state: State, draft: Draft) -> Verdict:
        """Rules on what is due. A draft that nobody wrote ahead is ruled on as a whole."""
        if draft.held is None:
            return super().judge(state, draft)
        n = draft.due
        logits = None if draft.logits is None else draft.logits[:n]
        due = dataclasses.replace(Draft.chain(draft.tokens[:n], draft.rows[:n], logits), beside=n > draft.held)
        return dataclasses.replace(super().judge(state, due), held=draft.held)
