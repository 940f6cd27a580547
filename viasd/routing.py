"""Gates: where a slim verifier keeps a drafted token, rewrites it, or escalates the position to the target."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from viasd.sampling import Draws
from viasd.spec import spec

KEEP, REWRITE, ESCALATE = 0, 1, 2
REGIONS = ("keep", "rewrite", "escalate")
Reading = Literal["swapped", "direct", "literal"]

# Thresholds (accept, escalate) of the three readings of the paper's settings alpha1 = 0.5, alpha2 = 0.3
# (reference C-02): its formulas, its figures and its text contradict each other, so a reading has a name.
READINGS: dict[str, tuple[float, float]] = {"swapped": (0.7, 0.5), "direct": (0.5, 0.3), "literal": (0.7, 0.7)}


@runtime_checkable
class Gate(Protocol):
    """Decides from raw slim logits. `shares` is the whole decision; `classify` is it at given tokens."""

    def shares(self, logits: Tensor) -> Tensor:
        """Probability [3, n, V] that a token of V drafted at a position [n, V] is kept, rewritten, escalated."""

    def classify(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Region [n] (KEEP, REWRITE, ESCALATE) of each drafted token [n], given slim logits [n, V]."""


@spec
class RatioGate:
    """The paper's gate on r = s(v) / max s, s the raw slim row (VIA-SD App. B.1-B.3).

    r >= accept_ratio keeps, escalate_ratio <= r < accept_ratio rewrites, below escalates. `reading` fills in the
    thresholds that are left null: `swapped` 0.7 / 0.5, `direct` 0.5 / 0.3, `literal` 0.7 / 0.7 (nothing is rewritten).
    """

    reading: Reading = "swapped"
    accept_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    escalate_ratio: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        accept, escalate = self.thresholds
        if escalate > accept:
            raise ValueError(f"escalate_ratio={escalate} exceeds accept_ratio={accept}; accepted: escalate <= accept")
        return self

    @property
    def thresholds(self) -> tuple[float, float]:
        """(accept, escalate), explicit values first."""
        accept, escalate = READINGS[self.reading]
        return (
            accept if self.accept_ratio is None else self.accept_ratio,
            escalate if self.escalate_ratio is None else self.escalate_ratio,
        )

    def shares(self, logits: Tensor) -> Tensor:
        region = self._region((logits - logits.amax(-1, keepdim=True)).exp())
        return torch.stack([(region == index) for index in (KEEP, REWRITE, ESCALATE)]).to(logits.dtype)

    def classify(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        return self._region((chosen - logits.amax(-1)).exp())

    def _region(self, ratio: Tensor) -> Tensor:
        accept, escalate = self.thresholds
        return (ratio < accept).long() + (ratio < escalate).long()


@spec
class RandomGate:
    """Regions drawn at random with fixed shares (keep, rewrite, escalate): a control that is blind to the token."""

    keep: Annotated[float, Field(ge=0, le=1)]
    rewrite: Annotated[float, Field(ge=0, le=1)]
    escalate: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.keep + self.rewrite + self.escalate
        if abs(total - 1) > 1e-6:
            raise ValueError(f"keep + rewrite + escalate = {total}; accepted: shares that sum to 1")
        return self

    def shares(self, logits: Tensor) -> Tensor:
        return self._row(logits)[:, None, None].expand(3, *logits.shape)

    def classify(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        return draws.draw(self._row(logits).expand(tokens.shape[0], 3), "gate")

    def _row(self, like: Tensor) -> Tensor:
        row = like.new_empty(3)  # filled in place: a tensor made from a list would be copied to the device, and wait
        for region, share in enumerate((self.keep, self.rewrite, self.escalate)):
            row[region] = share
        return row
