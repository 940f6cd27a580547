"""What is asked of a head: losses of single positions, and their sums over a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-6  # an acceptance rate below it has no larger loss: its logarithm would decide the batch


@dataclass(frozen=True)
class StepSums:
    """One step of the unrolled head over a batch.

    `loss`: sum over positions, with gradient. `places`: what it is divided by. `judged`: positions of answer tokens,
    of which at `agreed` the head's first choice is the target's.
    """

    loss: Tensor
    places: Tensor
    judged: Tensor
    agreed: Tensor


def restrict(logits: Tensor, draft_ids: Tensor | None) -> Tensor:
    """The target's rows [n, draft ids] on the ids that a head can draft, renormalized, of its logits [n, V].

    As published training code of EAGLE-3 has it.
    """
    return (logits if draft_ids is None else logits[:, draft_ids]).float().softmax(-1)


def cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """Soft cross entropy [n] of draft logits [n, draft ids] under the target's rows of the same shape, which sum to 1.

    The classification loss of EAGLE-1 (2401.15077) and the whole loss of EAGLE-3 (2503.01840).
    """
    logits = logits.float()
    return logits.logsumexp(-1) - (rows * logits).sum(-1)


def lk(logits: Tensor, rows: Tensor) -> Tensor:
    """-log sum min(target, draft) [n]: that of the chance that speculative sampling keeps a token (LK, 2602.23881).

    `rows` [n, draft ids]: the target's probabilities of the ids that can be drafted, not renormalized, so that the
    chance is the true one. (The source leaves the rows of a reduced vocabulary open; this choice and the floor of
    `LEAST` are ours.)
    """
    kept = torch.minimum(logits.float().softmax(-1), rows).sum(-1)
    return -kept.clamp(min=LEAST).log()


def feature_distance(outputs: Tensor, features: Tensor) -> Tensor:
    """SmoothL1 [n] between outputs and the target's features [n, width], mean over the width (EAGLE-1, 2401.15077)."""
    return functional.smooth_l1_loss(outputs.float(), features.float(), reduction="none").mean(-1)
