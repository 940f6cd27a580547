"""Typical acceptance (Medusa) as a rule on a chain, and the exact method that it is to be compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from baselines.rules.rows import restricted, typical_set
from viasd.rules import RowPairs, RuleRows
from viasd.spec import spec


@spec
class Typical:
    """Keep x iff target(x) > min(eps, delta exp(-H)), H the target's entropy in nats (Medusa, 2401.10774).

    Rows are processed, so at temperature 0 this is exact. What is ours, as the paper has trees of candidates whose
    first token is the target's: a refused token is replaced, and a fully kept block is followed, by a draw from the
    target's row on the same set (`replacement: typical`) or from all of it (`target`), whatever the draft row says;
    the target's first choice is always kept; the entropy has no constant in its logarithm. The law is
    draft on the set, plus what the draft has outside of it times the replacement row. No knob makes it exact.
    Defaults: eps of the published code and delta = sqrt(eps).
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 0.09
    delta: Annotated[float, Field(ge=0, le=1)] = 0.3
    replacement: Literal["typical", "target"] = "typical"

    @property
    def lossless(self) -> bool:
        return False

    def rows(self, pairs: RowPairs) -> RuleRows:
        typical, draft = typical_set(pairs.judge, self.eps, self.delta), pairs.draft
        written = pairs.judge if self.replacement == "target" else restricted(pairs.judge, typical)
        kept = draft * typical[:-1]

        def law() -> Tensor:
            return kept + (draft * ~typical[:-1]).sum(-1, keepdim=True) * written[:-1]

        return RuleRows(kept, written[:-1], written[-1], subtract=False, law=law)
