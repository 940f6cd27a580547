"""Row rules: what a judge's row and the draft row say about keeping a drafted token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from viasd.sampling import Draws, Sampling
from viasd.spec import spec


@dataclass(frozen=True)
class RowPairs:
    """What a rule may look at: the judge's rows [n + 1, V] and the drafter's [n, V], processed, and the same as logits.

    `draft_logits` is None for a drafter that has no distribution of its own. `tokens` [n] are the drafted ones,
    `sampling` is how the rows were processed: at temperature 0 they are one-hot and say nothing of what is likely.
    """

    tokens: Tensor
    judge: Tensor
    draft: Tensor
    judge_logits: Tensor
    draft_logits: Tensor | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))


@dataclass(frozen=True)
class RuleRows:
    """Rows a rule yields for n judged positions: `reject` and `residual` [n, V], `bonus` [V].

    A replacement is drawn from max(0, residual - draft); without `subtract`, from the residual row itself. `law`
    [n, V] is the law of a judged position, where that is not the residual row: a tensor, or what computes it when it
    is asked for (only passes that record laws do).
    """

    reject: Tensor
    residual: Tensor
    bonus: Tensor
    subtract: bool = True
    law: Tensor | Callable[[], Tensor] | None = None

    @property
    def laws(self) -> Tensor:
        """The law of every position [n + 1, V], the bonus last."""
        law = self.law() if callable(self.law) else self.law
        return torch.cat([self.residual if law is None else law, self.bonus[None]])


@runtime_checkable
class RowRule(Protocol):
    """Maps the rows of judge and drafter to the three rows of the generic round."""

    @property
    def lossless(self) -> bool:
        """Whether the output law is the judge's."""

    def rows(self, pairs: RowPairs) -> RuleRows:
        """The rows of this rule."""


@spec
class Lossless:
    """Reject, residual and bonus from the judge's row: the output law is the judge's (Leviathan et al., 2211.17192)."""

    @property
    def lossless(self) -> bool:
        return True

    def rows(self, pairs: RowPairs) -> RuleRows:
        return RuleRows(reject=pairs.judge[:-1], residual=pairs.judge[:-1], bonus=pairs.judge[-1])


@dataclass(frozen=True)
class ChainVerdict:
    """`accepted` [] leading tokens kept of n, and `token` []: the replacement, or the bonus when all were kept."""

    accepted: Tensor
    token: Tensor


def judge_greedy(choices: Sequence[int], drafted: Sequence[int]) -> tuple[int, int]:
    """`judge_chain` where the judge's rows are its argmax and the rule is lossless: (accepted, token behind them).

    `choices` [n + 1] are the judge's first choices, `drafted` [n] any tokens. A token the judge would not write has
    reject probability 0 and is never kept; one that it would write has 1 and always is, whatever row it was drawn from;
    and what is left of the judge's row is its first choice alone.
    """
    accepted = next((i for i, (ours, theirs) in enumerate(zip(choices, drafted, strict=False)) if ours != theirs), None)
    accepted = len(drafted) if accepted is None else accepted
    return accepted, choices[accepted]


def judge_chain(tokens: Tensor, draft: Tensor, rule: RuleRows, draws: Draws, bonus: bool = True) -> ChainVerdict:
    """The generic round on a chain (reference: 2607.08690, Algorithm 2): keep a prefix, then replace or add one.

    `tokens` [n] were drawn from exactly `draft` [n, V]. Token i is kept iff coin * draft_i(x_i) < reject_i(x_i).
    The replacement is drawn from max(0, residual - draft), or from the residual row where that is zero or the rule
    says so. Without `bonus` the token behind a fully kept chain is not to be used.
    """
    if tokens.shape[0] == 0:
        accepted = tokens.new_zeros(())
        return ChainVerdict(accepted, draws.draw(rule.bonus[None], "replacement")[0])
    at = tokens[:, None]
    accepted = draws.accepted_prefix(rule.reject.gather(1, at)[:, 0], draft.gather(1, at)[:, 0])
    stop = accepted.clamp(max=tokens.shape[0] - 1)[None]  # index_select: indexing by a scalar would wait for the host
    residual = rule.residual.index_select(0, stop)[0]
    leftover = residual
    if rule.subtract:
        leftover = (residual - draft.index_select(0, stop)[0]).clamp(min=0)
        leftover = leftover.where(leftover.sum() > 0, residual)
    full = accepted == tokens.shape[0]
    row = rule.bonus.where(full, leftover)
    where = None if bonus else ~full[None]
    return ChainVerdict(accepted, draws.draw(row[None], "replacement", where)[0])
