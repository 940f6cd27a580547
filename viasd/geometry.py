"""The paper's costs between next-token rows (VIA-SD, Eq. 1-11, App. E, F): margins, divergences, cost models.

Rows are logits or log-probabilities [n, V]; both give the same, since every function takes a log-softmax first, in
float32 (float64 where either is float64). They must be full rows: the margins of truncated ones (top-k, top-p) are
infinite. -inf means probability 0. Positions are worked through in blocks, so that temporary memory depends on neither
n nor V (about 0.6 GB at most in float32; n = 4096 and V = 262144 included). All of it can be differentiated; then
autograd keeps what the blocks made. Logarithms are natural.

Names: the paper's p is the `drafter`, its q the `verifier`; in R(a||b) of the paper, b plays the drafter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**24  # of one temporary tensor: 64 MiB in float32; about nine live at once

Penalty = Callable[[Tensor], Tensor]
"""A convex non-decreasing function of log-margins, elementwise; positive margins are violated (App. F)."""


# --- penalties (App. F) -------------------------------------------------------------------------------------------


def hinge(margin: Tensor) -> Tensor:
    """max(0, z): the one the paper uses (Eq. 11)."""
    return margin.clamp(min=0)


def squared_hinge(margin: Tensor) -> Tensor:
    """max(0, z)^2."""
    return hinge(margin).square()


def huber_hinge(knee: float) -> Penalty:
    """z^2 / (2 knee) up to the knee, z - knee / 2 beyond (F.7). Raises ValueError for a knee that is not positive."""
    _check("knee", knee, 0 < knee < math.inf, "a number above 0")
    return lambda margin: torch.where(
        margin <= knee, hinge(margin).clamp(max=knee).square() / (2 * knee), margin - knee / 2
    )


def softplus(temperature: float) -> Penalty:
    """t log(1 + exp(z / t)), which is within t log 2 above the hinge. Raises ValueError for t that is not positive."""
    _check("temperature", temperature, 0 < temperature < math.inf, "a number above 0")
    return lambda margin: torch.logaddexp(margin / temperature, torch.zeros_like(margin)) * temperature


def power_hinge(power: float) -> Penalty:
    """max(0, z)^power. Raises ValueError for a power below 1, which would not be convex."""
    _check("power", power, 1 <= power < math.inf, "a number from 1")
    return lambda margin: hinge(margin).pow(power)


def exponential(temperature: float) -> Penalty:
    """max(0, exp(z / t) - 1). Raises ValueError for t that is not positive."""
    _check("temperature", temperature, 0 < temperature < math.inf, "a number above 0")
    return lambda margin: torch.expm1(hinge(margin) / temperature)


# --- margin costs (Eq. 7-11) --------------------------------------------------------------------------------------


def step_cost(
    verifier: Tensor, drafter: Tensor, alpha: float = 0.0, beta: float = 1.0, penalty: Penalty = hinge
) -> Tensor:
    """R(verifier||drafter) [n] of rows [n, V] (Eq. 9, with the hinge Eq. 11).

    The mean over the drafter's row of phi(log(1 - alpha) + log drafter - log verifier), plus the mean over the
    verifier's row of phi(log beta + log drafter - log verifier). At least 0 (with penalties that are 0 at 0 and below);
    with the hinge it is 0 iff beta drafter(v) <= verifier(v) for every v. A mean is over the ids of its row's support,
    so an id that only the drafter knows makes the first term infinite and does not count in the second (our choice for
    0 times infinity). The paper gives no values for alpha and beta: 0 and 1 are ours, the lossless ones.
    Raises ValueError unless 0 <= alpha < 1 and beta >= 1 - alpha, or where shapes differ.
    """
    _check("alpha", alpha, 0 <= alpha < 1, "0 <= alpha < 1")
    _check("beta", beta, 1 - alpha <= beta < math.inf, f"beta >= 1 - alpha = {1 - alpha:g}")
    shortfall, pressure = math.log1p(-alpha), math.log(beta)

    def cost(verifier: Tensor, drafter: Tensor) -> Tensor:
        excess = drafter - verifier
        return _mean(drafter, penalty(excess + shortfall)) + _mean(verifier, penalty(excess + pressure))

    return _by_block(cost, verifier, drafter)


def block_cost(
    verifier: Tensor, drafter: Tensor, alpha: float = 0.0, beta: float = 1.0, penalty: Penalty = hinge
) -> float:
    """C(verifier||drafter): the sum of `step_cost` over the rows' positions (Eq. 10)."""
    return float(step_cost(verifier, drafter, alpha, beta, penalty).double().sum())


def chain_benefit(chain: Sequence[Tensor], alpha: float = 0.0, beta: float = 1.0, penalty: Penalty = hinge) -> float:
    """What all models between the ends of a chain save: C(last||first) - sum of C(next||one) over its links.

    `chain`: rows [n, V] from the drafter to the full verifier. Of three models it is Eq. 7 (F.13 with another penalty):
    insert the one between iff positive. Two models have nothing between them: 0.
    Raises ValueError for less than two models.
    """
    _check("chain", f"{len(chain)} models", len(chain) >= 2, "two models or more, from the drafter to the verifier")
    links = sum(block_cost(after, before, alpha, beta, penalty) for before, after in pairwise(chain))
    return block_cost(chain[-1], chain[0], alpha, beta, penalty) - links


def link_benefits(
    chain: Sequence[Tensor], alpha: float = 0.0, beta: float = 1.0, penalty: Penalty = hinge
) -> list[float]:
    """For each model between the ends, what it saves where it stands: Eq. 7 with its two neighbors as p and q."""
    triples = zip(chain, chain[1:], chain[2:], strict=False)
    return [chain_benefit(triple, alpha, beta, penalty) for triple in triples]


# --- divergences (Eq. 1-4, App. C, E) -----------------------------------------------------------------------------


def total_variation(one: Tensor, other: Tensor) -> Tensor:
    """1/2 sum |one - other| [n] (Eq. 3): the rejection probability of the lossless rule (Eq. 2, E.4)."""
    return _by_block(lambda a, b: (a.exp() - b.exp()).abs().sum(-1) / 2, one, other)


def kl_divergence(one: Tensor, other: Tensor) -> Tensor:
    """D_KL(one||other) [n] in nats (Eq. 4); infinite where `other` lacks an id that `one` has."""
    return _by_block(lambda a, b: _mean(a, a - b), one, other)


def js_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence [n] in nats, from 0 to log 2 (App. C.5)."""

    def divergence(a: Tensor, b: Tensor) -> Tensor:
        middle = torch.logaddexp(a, b) - math.log(2)
        return (_mean(a, a - middle) + _mean(b, b - middle)) / 2

    return _by_block(divergence, one, other)


def pinsker_bound(drafter: Tensor, verifier: Tensor) -> Tensor:
    """sqrt(D_KL(drafter||verifier) / 2) [n]: the lossless rejection probability is never above it (E.5)."""
    return (kl_divergence(drafter, verifier) / 2).clamp(min=0).sqrt()


def rejection_mass(drafter: Tensor, verifier: Tensor, alpha: float = 0.0) -> Tensor:
    """sum max(0, verifier - (1 - alpha) drafter) [n]: Eq. 1 as printed.

    For alpha > 0 this is not what the lossy rule rejects (reference C-01): it rises with the tolerance, and is at least
    alpha. Raises ValueError unless 0 <= alpha < 1.
    """
    _check("alpha", alpha, 0 <= alpha < 1, "0 <= alpha < 1")
    return _by_block(lambda p, q: (q.exp() - (1 - alpha) * p.exp()).clamp(min=0).sum(-1), drafter, verifier)


def rejection_probability(drafter: Tensor, verifier: Tensor, alpha: float = 0.0) -> Tensor:
    """sum max(0, drafter - verifier / (1 - alpha)) [n]: what the acceptance rule A.2 rejects; falls with alpha."""
    _check("alpha", alpha, 0 <= alpha < 1, "0 <= alpha < 1")
    return _by_block(lambda p, q: (p.exp() - q.exp() / (1 - alpha)).clamp(min=0).sum(-1), drafter, verifier)


# --- what a token costs (B.20) ------------------------------------------------------------------------------------


def printed_token_cost(passed: float, escalated: float, draft: float, slim: float, target: float) -> float:
    """(1 - escalated) [(1 - passed) draft + passed slim] + escalated target: B.20 as printed.

    `passed`, `escalated`: shares delta1, delta2 of B.11; the others are costs of one token. It charges the slim
    verifier only for tokens that pass, though it scores all, and the draft model only for the rest, though it drafts
    all; so keeping more tokens costs more (reference C-09 vi). Not to be used for predictions: see `round_cost`.
    """
    for name, share in (("passed", passed), ("escalated", escalated)):
        _check(name, share, 0 <= share <= 1, "a share from 0 to 1")
    return (1 - escalated) * ((1 - passed) * draft + passed * slim) + escalated * target


def round_cost(length: int, draft: float, slim: float, target: float, escalated: float, catch_up: float = 0.0) -> float:
    """Cost of a round: length draft + slim + escalated target + catch_up. Ours, in place of B.20.

    `draft`: one drafted token. `slim`, `target`: one call over the drafted block. `escalated`: probability that a round
    runs the target. `catch_up`: what feeding tokens adds that a reader has not seen, per round. Divided by the tokens
    that a round commits it is a cost per token. Raises ValueError for a length below 0 or no probability.
    """
    _check("length", length, length >= 0, "0 or more drafted tokens")
    _check("escalated", escalated, 0 <= escalated <= 1, "a probability from 0 to 1")
    return length * draft + slim + escalated * target + catch_up


# --- shared -------------------------------------------------------------------------------------------------------


def _by_block(function: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor) -> Tensor:
    """`function` of the log-softmax of both, [m, V] -> [m], over blocks of positions, put together to [n]."""
    if one.shape != other.shape or one.dim() != 2:
        raise ValueError(f"rows of shapes {list(one.shape)} and {list(other.shape)}; accepted: twice the same [n, V]")
    wide = torch.float64 if torch.float64 in (one.dtype, other.dtype) else torch.float32
    size = max(1, BLOCK_ELEMENTS // max(1, one.shape[1]))
    blocks = zip(one.split(size), other.split(size), strict=True)
    done = [function(a.log_softmax(-1, dtype=wide), b.log_softmax(-1, dtype=wide)) for a, b in blocks]
    return torch.cat(done)


def _mean(log_row: Tensor, values: Tensor) -> Tensor:
    """Mean [n] of values [n, V] under the rows, over their support."""
    weights = log_row.exp()
    return (weights * values).masked_fill(weights == 0, 0.0).sum(-1)


def _check(key: str, value: object, is_accepted: bool, accepted: str) -> None:
    if not is_accepted:
        raise ValueError(f"{key}={value}: accepted: {accepted}")
