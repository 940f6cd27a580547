"""Speculative cascades (Narasimhan et al., 2405.19261): a deferral rule says whose row the output follows."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.rules.rows import GateRows, gate_rows, top_set, total_variation
from viasd.rules import Lossless, RowPairs, RuleRows
from viasd.spec import spec

Alpha = Annotated[float, Field(allow_inf_nan=False)]


@spec
class Cascade:
    """The law is the target's row where the rule defers, the draft row elsewhere; it never looks at the drafted token.

    `defer`, with H in nats and TV of the processed rows:
    chow: max draft < 1 - alpha; chow_log: H(draft) > alpha; diff: max draft < max target - alpha;
    opt: max draft < max target - alpha TV (2607.08690, Eq. 11-12); opt_log: H(draft) > H(target) + alpha TV.
    All but opt are second-hand, not checked against the paper. A smaller alpha defers more: below 0 chow and chow_log,
    up to -1 diff defer everywhere and are exact; opt and opt_log come as close as one likes (-1e9).

    `gate_rows`: the rows that maxima and entropies are taken from; raw (the default, the paper mode of a public
    reproduction) is before temperature and truncation, and what is used at temperature 0. The paper leaves the bonus
    open: it is the target's, as the law would need a further drafter row.
    """

    defer: Literal["chow", "chow_log", "diff", "opt", "opt_log"] = "opt"
    alpha: Alpha = 0.0
    gate_rows: GateRows = "raw"

    @property
    def lossless(self) -> bool:
        if self.defer in ("opt", "opt_log"):
            return False
        return self.alpha <= -1 if self.defer == "diff" else self.alpha < 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        if self.lossless:
            return Lossless().rows(pairs)
        law = torch.where(self._defers(pairs), pairs.judge[:-1], pairs.draft)
        return RuleRows(law, law, pairs.judge[-1])

    def _defers(self, pairs: RowPairs) -> Tensor:
        """Whether [n, 1] the target's row is followed."""
        target, draft = gate_rows(pairs, self.gate_rows)
        if self.defer == "chow":
            return _largest(draft) < 1 - self.alpha
        if self.defer == "chow_log":
            return _entropy(draft) > self.alpha
        if self.defer == "diff":
            return _largest(draft) < _largest(target) - self.alpha
        price = self.alpha * total_variation(pairs.judge[:-1], pairs.draft)
        if self.defer == "opt":
            return _largest(draft) < _largest(target) - price
        return _entropy(draft) > _entropy(target) + price


@spec
class TokenCascade:
    """The law is draft(v) where v is good enough; what the draft has elsewhere is spread by the target's row over all.

    `defer`, the tokens that are not good enough: v1: draft(v) < max target - alpha; v2: target(v) < max target - alpha;
    v3: target(v) < (1 - alpha) max target (2607.08690, Eq. 15). v1 and v2 are second-hand, not checked against the
    paper. v2 and v3 at alpha 0 are not exact: they keep the draft's probability of the target's first choice. Below 0
    v2 and v3, up to -1 v1 defer on all tokens and are exact. At temperature 0 a drafted token that is good enough
    stays, any other becomes the target's first choice.

    `gate_rows` and the bonus: as in Cascade.
    """

    defer: Literal["v1", "v2", "v3"] = "v3"
    alpha: Alpha = 0.35
    gate_rows: GateRows = "raw"

    @property
    def lossless(self) -> bool:
        return self.alpha <= -1 if self.defer == "v1" else self.alpha < 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        if self.lossless:
            return Lossless().rows(pairs)
        good = self._good(pairs)
        spread = (pairs.draft * ~good).sum(-1, keepdim=True)
        law = pairs.draft * good + spread * pairs.judge[:-1]
        return RuleRows(law, law, pairs.judge[-1])

    def _good(self, pairs: RowPairs) -> Tensor:
        """The tokens [n, V] whose draft probability stays."""
        if self.defer == "v3":
            return top_set(pairs, 1 - self.alpha, self.gate_rows)[:-1]
        target, draft = gate_rows(pairs, self.gate_rows)
        return (draft if self.defer == "v1" else target) >= _largest(target) - self.alpha


def _largest(rows: Tensor) -> Tensor:
    return rows.amax(-1, keepdim=True)


def _entropy(rows: Tensor) -> Tensor:
    """In nats: [n, 1]."""
    return torch.special.entr(rows).sum(-1, keepdim=True)
