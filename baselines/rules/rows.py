"""What row rules share: rows that gates look at, sets of tokens, truncated rows, the law of the generic round."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from viasd.rules import RowPairs

GateRows = Literal["raw", "processed"]


def gate_rows(pairs: RowPairs, which: GateRows) -> tuple[Tensor, Tensor]:
    """Probabilities a gate looks at: the judge's [n, V] and the drafter's [n, V].

    `raw`: softmax of the logits, before temperature and truncation; of a drafter without logits, the processed rows.
    At temperature 0 always raw: a one-hot row does not say how sure a model is.
    """
    if which == "processed" and pairs.sampling.temperature > 0:
        return pairs.judge[:-1], pairs.draft
    draft = pairs.draft if pairs.draft_logits is None else pairs.draft_logits.softmax(-1)
    return pairs.judge_logits[:-1].softmax(-1), draft


def top_set(pairs: RowPairs, share: float, which: GateRows) -> Tensor:
    """Tokens with at least `share` of the judge's largest probability: [n + 1, V], bool; all of them for share <= 0.

    The set of token-specific cascades (V3) and of min-p sampling.
    """
    if share <= 0:
        return torch.ones_like(pairs.judge, dtype=torch.bool)
    if which == "processed" and pairs.sampling.temperature > 0:
        return pairs.judge >= share * pairs.judge.amax(-1, keepdim=True)
    return pairs.judge_logits >= pairs.judge_logits.amax(-1, keepdim=True) + math.log(share)


def typical_set(rows: Tensor, eps: float, delta: float) -> Tensor:
    """Tokens with a probability above min(eps, delta exp(-H)), H in nats, and the largest one: [n, V], bool.

    The set of typical acceptance (Medusa, 2401.10774) and of eta sampling (Hewitt et al. 2022).
    """
    entropy = torch.special.entr(rows).sum(-1, keepdim=True)
    threshold = (delta * (-entropy).exp()).clamp(max=eps)
    return (rows > threshold) | (rows == rows.amax(-1, keepdim=True))


def restricted(rows: Tensor, allowed: Tensor) -> Tensor:
    """Rows [n, V] on `allowed` tokens alone, which have some of the probability."""
    rows = rows * allowed
    return rows / rows.sum(-1, keepdim=True)


def one_hot(scores: Tensor) -> Tensor:
    """The first choice of each row [n, V], as a row; the lowest id among equals."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    """Half the sum of absolute differences: [n, 1]."""
    return (one - other).abs().sum(-1, keepdim=True) / 2


def emitted(draft: Tensor, reject: Tensor, residual: Tensor) -> Tensor:
    """The law [n, V] of a judged position whose rows do not depend on the drafted token.

    A token is kept with min(draft, reject); what that leaves, sum max(0, draft - reject), is drawn from
    max(0, residual - draft), or from the residual row where that is zero.
    """
    refused = (draft - reject).clamp(min=0).sum(-1, keepdim=True)
    left = (residual - draft).clamp(min=0)
    left = left.where(left.sum(-1, keepdim=True) > 0, residual)
    total = left.sum(-1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)  # 0 where nothing is ever refused
    return torch.minimum(draft, reject) + refused * left / total
