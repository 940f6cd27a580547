"""Lenience, mentored decoding and lossy speculative decoding: the target's row is scaled up before the test."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from baselines.rules.rows import emitted, top_set
from viasd.rules import RowPairs, RuleRows
from viasd.spec import spec


@spec
class Lenience:
    """Keep with min(1, target / (l draft)), replace by the ordinary residual (Leviathan et al., 2211.17192).

    The law (2607.26627, Eq. 10-11) is target / l where draft >= target / l, draft where target < draft <= target / l,
    and D target + (1 - D) draft below, D = refused / TV with refused = sum max(0, draft - target / l). `l` 1 is exact.
    At temperature 0 a token is kept whose raw target probability is at least `l` of the largest (second-hand, not
    checked against the paper). The bonus is the target's.
    """

    l: Annotated[float, Field(gt=0, le=1)] = 0.5  # noqa: E741 (the paper's letter)

    @property
    def lossless(self) -> bool:
        return self.l == 1

    def rows(self, pairs: RowPairs) -> RuleRows:
        return _lenient(pairs, self.l, pairs.judge[:-1])


@spec
class LossySD:
    """Keep with min(1, target / ((1 - alpha) draft)), replace from max(0, target / beta - draft) (Tran-Thien).

    Source: 2606.12243 App. A; with `beta` 1 mentored decoding as in 2607.08690, which is lenience with l = 1 - alpha.
    `beta` does not touch what is kept, only what replaces it. `normalizing` takes for each row the value, 1 or more,
    with which the law is max(min(draft, target / (1 - alpha)), target / beta); any number from 1 - alpha on is allowed.
    alpha = 0 with beta = 1 or normalizing is exact. Temperature 0 and bonus: as lenience.
    """

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.7
    beta: Annotated[float, Field(gt=0)] | Literal["normalizing"] = 1.0

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        if self.beta != "normalizing" and self.beta < 1 - self.alpha:
            raise ValueError(f"beta={self.beta} with alpha={self.alpha}; accepted: normalizing, or beta >= 1 - alpha")
        return self

    @property
    def lossless(self) -> bool:
        return self.alpha == 0 and self.beta in (1, "normalizing")

    def rows(self, pairs: RowPairs) -> RuleRows:
        target, share = pairs.judge[:-1], 1 - self.alpha
        if self.beta != "normalizing":
            return _lenient(pairs, share, target / self.beta)
        if self.alpha == 0 or pairs.sampling.temperature == 0:
            return _lenient(pairs, share, target)
        refused = (pairs.draft - target / share).clamp(min=0).sum(-1, keepdim=True)
        return _lenient(pairs, share, target * residual_scale(pairs.draft, target, refused))


def _lenient(pairs: RowPairs, share: float, residual: Tensor) -> RuleRows:
    """Rows of a rule that keeps a token with min(1, target / (share draft))."""
    target, draft = pairs.judge[:-1], pairs.draft
    if pairs.sampling.temperature == 0:
        reject = top_set(pairs, share, "raw")[:-1].to(target.dtype)
    else:
        reject = target / share
    return RuleRows(reject, residual, pairs.judge[-1], law=lambda: emitted(draft, reject, residual))


def residual_scale(draft: Tensor, target: Tensor, refused: Tensor) -> Tensor:
    """The scale s <= 1 with sum max(0, s target - draft) = refused: [n, 1] from rows [n, V] and refused [n, 1].

    The sum is linear in s between the ratios draft / target, so the right piece is found among the sorted ones.
    In float64: prefix sums over a large vocabulary would lose digits.
    """
    wide, taken, refused = target.double(), draft.double(), refused.double()
    ratio, order = (taken / wide).nan_to_num(nan=torch.inf).sort(-1)  # 0 / 0: a token that neither has
    wide, taken = wide.gather(-1, order).cumsum(-1), taken.gather(-1, order).cumsum(-1)
    piece = (torch.searchsorted(ratio * wide - taken, refused, right=True) - 1).clamp(min=0)
    scale = (refused + taken.gather(-1, piece)) / wide.gather(-1, piece)
    return scale.clamp(max=1).to(target.dtype)
