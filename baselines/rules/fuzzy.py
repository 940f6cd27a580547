"""Fuzzy speculative decoding: the draft's row stands in for the target's wherever the two are close."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.rules.rows import GateRows, gate_rows, total_variation
from viasd.rules import RowPairs, RuleRows
from viasd.spec import spec

Divergence = Literal["js", "kl_target_draft", "kl_draft_target", "tv"]


@spec
class Fuzzy:
    """The law is draft where divergence(target, draft) <= threshold, else target (Holsman et al., ACL Findings 2025).

    `reducible` false: where the rows are close every drafted token is kept, elsewhere none is, and the target's token
    is drawn anew. true (2607.08690): elsewhere the ordinary test, which keeps more under the same law; the position
    test of BiLD as speculative cascades state it (BiLD*, 2405.19261) is this one. threshold 0 is exact.

    `gate_rows`: the rows that are compared; raw is the published code's default, and what is used at temperature 0.
    `divergence`: `js` is Jensen-Shannon (natural logarithm, at most ln 2; that code's "js_div" is another quantity, so
    its thresholds do not carry over), `kl_target_draft` KL(target || draft) in nats, `kl_draft_target` the other way,
    `tv` total variation. The bonus is the target's.
    """

    divergence: Divergence = "js"
    threshold: Annotated[float, Field(ge=0)] = 0.2
    reducible: bool = False
    gate_rows: GateRows = "raw"

    @property
    def lossless(self) -> bool:
        return self.threshold == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        target, draft = pairs.judge[:-1], pairs.draft
        apart = divergence(self.divergence, *gate_rows(pairs, self.gate_rows))
        close = (apart <= self.threshold) & (self.threshold > 0)  # equal but for rounding is not exact
        law = torch.where(close, draft, target)
        if self.reducible:
            return RuleRows(law, law, pairs.judge[-1])
        return RuleRows(draft * close, target, pairs.judge[-1], subtract=False, law=law)


def divergence(name: Divergence, target: Tensor, draft: Tensor) -> Tensor:
    """Divergence of rows [n, V] in nats (`tv` has no unit): [n, 1], at least 0."""
    if name == "tv":
        return total_variation(target, draft)
    if name == "kl_target_draft":
        return _kl(target, draft)
    if name == "kl_draft_target":
        return _kl(draft, target)
    middle = (target + draft) / 2
    return (_kl(target, middle) + _kl(draft, middle)) / 2


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) [n, 1]. What is impossible for the other counts as all but impossible.

    Otherwise a token that neither would ever write made rows infinitely far apart, once its probability underflows.
    """
    floor = torch.finfo(other.dtype).tiny
    return (torch.xlogy(one, one) - one * other.clamp(min=floor).log()).sum(-1, keepdim=True).clamp(min=0)
