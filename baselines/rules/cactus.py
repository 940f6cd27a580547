"""Cactus: the target's row is moved toward the drafted token, as far as a bound on the divergence allows."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines.rules.rows import emitted, gate_rows
from viasd.rules import RowPairs, RuleRows
from viasd.spec import spec


@spec
class Cactus:
    """Keep x with min(1, g / draft), g = min(1, target + sqrt(2 alpha target (1 - target))) at x (2604.04987).

    A refused x is replaced from max(0, moved - draft): moved is the target's row with g at x and the rest scaled down,
    so each drafted token has a residual row of its own, and the law sums over them. Tokens that the target lacks are
    never kept. alpha = 0 is exact. The bonus is the target's.

    At temperature 0, where the formula has no knob left, a token is kept whose g on raw rows is at least the target's
    largest raw probability (ours, as the greedy form of lenience).
    """

    alpha: Annotated[float, Field(ge=0)] = 0.25

    @property
    def lossless(self) -> bool:
        return self.alpha == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        target, draft = pairs.judge[:-1], pairs.draft
        if pairs.sampling.temperature == 0:
            raw = gate_rows(pairs, "raw")[0]
            kept = (self._raised(raw) >= raw.amax(-1, keepdim=True)).to(target.dtype)
            return RuleRows(kept, target, pairs.judge[-1], law=lambda: emitted(draft, kept, target))
        raised = self._raised(target)
        scale = _scale(target, raised).gather(1, pairs.tokens[:, None])
        moved = target * scale  # but for x: its own g is less than the draft has of it, so it is never drawn again
        return RuleRows(raised, moved, pairs.judge[-1], law=lambda: _law(draft, target, raised))

    def _raised(self, target: Tensor) -> Tensor:
        return (target + (2 * self.alpha * target * (1 - target)).clamp(min=0).sqrt()).clamp(max=1)


def _scale(target: Tensor, raised: Tensor) -> Tensor:
    """What the other tokens are scaled by when a token is raised: [n, V]; 0 where there are no others."""
    return ((1 - raised) / (1 - target)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(0, 1)


def _law(draft: Tensor, target: Tensor, raised: Tensor) -> Tensor:
    """The law of a judged position, all drafted tokens summed: [n, V], without a row for each of them.

    A refused x with scale c adds refused(x) target(y) max(0, c - draft(y) / target(y)) / Z(c) to each y (x itself gets
    nothing: the draft has more of it than c target). Z(c) and the sum over x are piecewise linear, hence prefix sums
    over sorted ratios and over sorted scales; in float64, as they cancel.
    """
    d, t, g = draft.double(), target.double(), raised.double()
    refused, scale = (d - g).clamp(min=0), _scale(t, g)
    ratio = (d / t).nan_to_num(nan=2.0).clamp(max=2)  # above every scale all are alike
    ordered, order = ratio.sort(-1)
    below = torch.searchsorted(ordered, scale, right=True)  # tokens that are replaced by, for each scale
    total = scale * _prefix(t.gather(-1, order)).gather(-1, below) - _prefix(d.gather(-1, order)).gather(-1, below)
    share = (refused / torch.maximum(total, refused)).nan_to_num(nan=0.0)  # total >= refused but for rounding
    ordered, order = scale.sort(-1)
    below = torch.searchsorted(ordered, ratio, right=True)
    share = share.gather(-1, order)
    added = _suffix(share * ordered).gather(-1, below) - ratio * _suffix(share).gather(-1, below)
    return (torch.minimum(d, g) + t * added.clamp(min=0)).to(target.dtype)


def _prefix(values: Tensor) -> Tensor:
    """Sums of the first 0 ... V values: [n, V + 1]."""
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))


def _suffix(values: Tensor) -> Tensor:
    """Sums of all but the first 0 ... V values: [n, V + 1]."""
    sums = _prefix(values)
    return sums[..., -1:] - sums
