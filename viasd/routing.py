"""Gates: where a slim verifier keeps a drafted token, writes it itself, or escalates the position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from viasd.sampling import Draws
from viasd.spec import spec

KEEP, REWRITE, ESCALATE, JUDGE = 0, 1, 2, 3
REGIONS = ("keep", "rewrite", "escalate", "judge")
Reading = Literal["swapped", "direct", "literal"]

# Thresholds (accept, escalate) of the three readings of the paper's settings alpha1 = 0.5, alpha2 = 0.3
# (reference C-02): its formulas, its figures and its text contradict each other, so a reading has a name.
READINGS: dict[str, tuple[float, float]] = {"swapped": (0.7, 0.5), "direct": (0.5, 0.3), "literal": (0.7, 0.7)}


@dataclass(frozen=True)
class Evidence:
    """What a gate looks at: raw logits [n, V] of the slim verifier and, at drafted positions, of the drafter.

    `pending`: tokens before the first of these positions that the target has not read, and would have to.
    """

    slim: Tensor
    draft: Tensor | None = None
    pending: int = 0

    def at(self, place: int) -> Evidence:
        """That position alone."""
        here = slice(place, place + 1)
        return Evidence(self.slim[here], None if self.draft is None else self.draft[here], self.pending + place)


@runtime_checkable
class Gate(Protocol):
    """Decides from raw rows, by position and drafted token. `shares` is the whole decision, `classify` it at tokens.

    Regions: KEEP the drafted token, REWRITE it (the slim verifier draws a token), ESCALATE the position to the next
    stronger verifier, JUDGE it (the slim verifier accepts or replaces it by the lossless rule). The law of a judged
    token is the slim verifier's only if the drafted one had no part in the choice: JUDGE has one share for all tokens.
    """

    @property
    def judges(self) -> bool:
        """Whether JUDGE can occur."""

    def shares(self, evidence: Evidence) -> Tensor:
        """Probability [4, n, V] of each region for a token of V drafted at a position [n, V]."""

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        """Region [n] of each drafted token [n]."""


def one_hot(region: Tensor, like: Tensor) -> Tensor:
    """Shares [4, n, V] of regions [n, V] that are certain, in the type of `like`."""
    return torch.stack([region == index for index in range(len(REGIONS))]).to(like.dtype)


class SetGate:
    """A gate without chance: a region for each token of the vocabulary."""

    __slots__ = ()

    def regions(self, evidence: Evidence) -> Tensor:
        """Region [n, V] of every token."""
        raise NotImplementedError

    def shares(self, evidence: Evidence) -> Tensor:
        return one_hot(self.regions(evidence), evidence.slim)

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        return self.regions(evidence).gather(1, tokens[:, None])[:, 0]

    @property
    def judges(self) -> bool:
        return False


@spec
class RatioGate(SetGate):
    """The paper's gate on r = s(v) / max s, s the raw slim row (VIA-SD App. B.1-B.3), with an optional floor (ours).

    r >= accept_ratio keeps, escalate_ratio <= r < accept_ratio rewrites, below escalates. `reading` fills in the
    thresholds that are left null: `swapped` 0.7 / 0.5, `direct` 0.5 / 0.3, `literal` 0.7 / 0.7 (nothing is rewritten).
    A token whose slim probability s(v) is below `floor` is escalated whatever its ratio.
    """

    reading: Reading = "swapped"
    accept_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    escalate_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

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

    def regions(self, evidence: Evidence) -> Tensor:
        logits = evidence.slim
        region = self._region((logits - logits.amax(-1, keepdim=True)).exp())
        return region.masked_fill(logits.softmax(-1) < self.floor, ESCALATE) if self.floor > 0 else region

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        logits = evidence.slim
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        region = self._region((chosen - logits.amax(-1)).exp())
        if self.floor > 0:
            region = region.masked_fill((chosen - logits.logsumexp(-1)).exp() < self.floor, ESCALATE)
        return region

    def _region(self, ratio: Tensor) -> Tensor:
        accept, escalate = self.thresholds
        return (ratio < accept).long() + (ratio < escalate).long()


@spec
class RandomGate:
    """Regions drawn at random with fixed shares: a control that is blind to the token."""

    keep: Annotated[float, Field(ge=0, le=1)]
    rewrite: Annotated[float, Field(ge=0, le=1)]
    escalate: Annotated[float, Field(ge=0, le=1)]
    judge: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.keep + self.rewrite + self.escalate + self.judge
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"keep + rewrite + escalate + judge = {total}; accepted: shares of the regions that sum to 1"
            )
        return self

    @property
    def judges(self) -> bool:
        return self.judge > 0

    def shares(self, evidence: Evidence) -> Tensor:
        return self._row(evidence.slim)[:, None, None].expand(len(REGIONS), *evidence.slim.shape)

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        row = self._row(evidence.slim)
        row = row if self.judges else row[:JUDGE]  # a region that cannot occur draws no noise
        return draws.draw(row.expand(tokens.shape[0], -1), "gate")

    def _row(self, like: Tensor) -> Tensor:
        row = like.new_empty(
            len(REGIONS)
        )  # filled in place: one made from a list would be copied to the device, and wait
        for region, share in enumerate((self.keep, self.rewrite, self.escalate, self.judge)):
            row[region] = share
        return row
