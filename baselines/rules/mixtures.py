"""Mixtures of the two rows as the law: a weighted mean (CoS), and a contrast (speculative contrastive decoding)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines.rules.rows import gate_rows, one_hot, top_set
from viasd.rules import Lossless, RowPairs, RuleRows
from viasd.spec import spec


@spec
class Ensemble:
    """The law is w draft + (1 - w) target with w = `draft_weight`: naive CoS, an ensemble of two models (2502.01662).

    0 is exact. Papers differ on whose weight lambda is; here it is the drafter's. The bonus is the target's, as it
    needs no further drafter row (CoS itself has the models take turns). At temperature 0 the law is the first choice of
    the mean of the raw rows (ours).
    """

    draft_weight: Annotated[float, Field(ge=0, le=1)] = 0.1

    @property
    def lossless(self) -> bool:
        return self.draft_weight == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        target, draft = gate_rows(pairs, "processed")
        law = self.draft_weight * draft + (1 - self.draft_weight) * target
        law = one_hot(law) if pairs.sampling.temperature == 0 else law
        return RuleRows(law, law, pairs.judge[-1])


@spec
class Contrastive:
    """The law is softmax(z + alpha (z - y)), z the target's and y the drafter's logits (speculative contrastive).

    Source: 2607.08690, on the target's tokens after top-k and top-p; there the bonus has this law too, here it is the
    target's, as the other needs a further drafter row. alpha = 0 is exact. A token that the drafter lacks has z alone.
    At temperature 0 the law is the first choice of the contrast among the tokens with at least `plausible` of the
    target's largest raw probability (ours, after the constraint of contrastive decoding, 2210.15097, not re-checked).

    Raises ValueError for a drafter without logits of its own.
    """

    alpha: Annotated[float, Field(ge=0)] = 0.5
    plausible: Annotated[float, Field(gt=0, le=1)] = 0.1

    @property
    def lossless(self) -> bool:
        return self.alpha == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        if self.lossless:
            return Lossless().rows(pairs)
        if pairs.draft_logits is None:
            raise ValueError(
                f"verifier.rule.alpha={self.alpha}: the drafter has no logits to contrast the target's with; accepted: "
                "a model as drafter, or alpha 0"
            )
        if pairs.sampling.temperature == 0:
            law = one_hot(self._contrast(pairs, pairs.draft_logits, 1.0, top_set(pairs, self.plausible, "raw")[:-1]))
        else:
            support = pairs.judge[:-1] > 0
            law = self._contrast(pairs, pairs.draft_logits, pairs.sampling.temperature, support).softmax(-1)
        return RuleRows(law, law, pairs.judge[-1])

    def _contrast(self, pairs: RowPairs, draft_logits: Tensor, temperature: float, support: Tensor) -> Tensor:
        ours = (pairs.judge_logits[:-1] / temperature).log_softmax(-1)
        theirs = (draft_logits / temperature).log_softmax(-1)
        contrast = self.alpha * (ours - theirs).masked_fill(theirs == -torch.inf, 0.0)
        return (ours + contrast).masked_fill(~support, -torch.inf)
