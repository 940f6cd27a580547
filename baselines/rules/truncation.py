"""Matched baselines: exact speculative decoding of a truncated target, for rules whose law is a truncation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baselines.rules.rows import GateRows, restricted, top_set, typical_set
from viasd.rules import Lossless, RowPairs, RuleRows
from viasd.spec import spec


@spec
class MinP:
    """The law is the target's row on the tokens with at least `p_base` of its largest probability (min-p sampling).

    What token-specific cascades (V3) with alpha = 1 - p_base are to be compared with (2607.26627). `gate_rows` as
    there: which row the set is taken from. p_base = 0 truncates nothing. At temperature 0 the target's first choice.
    """

    p_base: Annotated[float, Field(ge=0, le=1)] = 0.65
    gate_rows: GateRows = "raw"

    @property
    def lossless(self) -> bool:
        return self.p_base == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        if self.lossless:
            return Lossless().rows(pairs)
        law = restricted(pairs.judge, top_set(pairs, self.p_base, self.gate_rows))
        return RuleRows(law[:-1], law[:-1], law[-1])


@spec
class Eta:
    """The law is the target's processed row on the tokens above min(eps, delta exp(-H)), H in nats: eta sampling.

    Source: Hewitt et al. 2022. What typical acceptance with the same eps and delta is to be compared with (2607.26627).
    The first choice always stays. eps = 0 or delta = 0 truncates nothing. At temperature 0 the target's first choice.
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 0.09
    delta: Annotated[float, Field(ge=0, le=1)] = 0.3

    @property
    def lossless(self) -> bool:
        return self.eps == 0 or self.delta == 0

    def rows(self, pairs: RowPairs) -> RuleRows:
        if self.lossless:
            return Lossless().rows(pairs)
        law = restricted(pairs.judge, typical_set(pairs.judge, self.eps, self.delta))
        return RuleRows(law[:-1], law[:-1], law[-1])
