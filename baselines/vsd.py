"""Variational training of drafters for acceptance, VSD-style: drafted paths, weighed by what the target would accept.

VSD (2602.05774) trains a drafter on a bound of the log chance that a drafted path stands. It samples paths, keeps those
that an oracle accepts (E-step), and maximizes a weighted likelihood with an adaptive weight for what was rejected (ARW)
and a penalty on confidence in wrong paths (CAR) (M-step). The public record gives none of the formulas; those below are
this project's, and whatever they train is called vsd_style, never VSD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines.eagle.losses import StepSums
from viasd.spec import spec

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class StepRows:
    """What a drafter says in one step of its paths, at m of the n places where answer tokens are decided.

    `logs` [m, D]: log-probabilities, with gradient; `places` [m]: which of the n; `wanted` [m]: the column of the
    target's first choice, -1 where the drafter cannot draft it.
    """

    logs: Tensor
    places: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Paths:
    """S paths from each of n contexts, of at most K tokens. A context begins at each place of an answer.

    `drawn`, of each step: tokens [m, S], and the context [m] and whether [m] there is one. `kept`, `refused`
    [n, K, S]: whether the path's token in that place is accepted, or the first that is not. `contexts`: how many have a
    first place.
    """

    drawn: list[tuple[Tensor, Tensor, Tensor]]
    kept: Tensor
    refused: Tensor
    contexts: Tensor

    @property
    def lengths(self) -> Tensor:
        """Accepted tokens [n, S] of each path."""
        return self.kept.sum(1)


@torch.no_grad()
def draw_paths(
    steps: Sequence[StepRows], documents: Tensor, followed: Tensor, count: int, generator: torch.Generator
) -> Paths:
    """E-step, first half: paths of the drafter as it is, ruled on by the target at temperature 0.

    `documents` [n]: whose answer a place belongs to; `followed` [n]: whether the target's first choice there is what
    the document has. The oracle accepts z while every token is the target's first choice. In documents that the target
    wrote, an accepted path is a piece of the document, so what the drafter says behind it is what it says there of the
    document itself, and what it would say behind a refused token decides nothing. So paths are drawn from the
    rows of the unrolled drafter, place by place, and no more is computed than for the plain loss: the same law as
    drawing each path by itself and letting the target read it. Where a document leaves the target's first choices, a
    path that follows them ends there, neither kept nor refused.
    """
    n, hits = documents.shape[0], []
    known = torch.zeros(n, len(steps), dtype=torch.bool, device=documents.device)
    drawn = []
    for step, rows in enumerate(steps):
        tokens = torch.multinomial(rows.logs.exp(), count, replacement=True, generator=generator)  # [m, S]
        starts = rows.places - step  # places are counted through all documents: so many before lies the context
        inside = (starts >= 0) & (documents[starts.clamp(min=0)] == documents[rows.places])
        known[starts[inside], step] = True
        hit = torch.zeros(n, count, dtype=torch.bool, device=documents.device)
        hit[starts[inside]] = (tokens == rows.wanted[:, None])[inside]
        hits.append(hit)
        drawn.append((tokens, starts, inside))
    for step in range(1, min(len(steps), n)):
        known[: n - step, step] &= known[: n - step, step - 1] & followed[step - 1 : n - 1]
    standing = torch.ones(n, count, dtype=torch.bool, device=documents.device)
    kept, refused = [], []
    for step, hit in enumerate(hits):
        due = standing & known[:, step, None]
        kept.append(due & hit)
        refused.append(due & ~hit)
        standing = kept[-1]
    return Paths(drawn, torch.stack(kept, 1), torch.stack(refused, 1), known[:, 0].sum())


@spec
class PathLoss:
    """The loss over paths (ours): means over contexts x, with a_s the accepted length of path s of S.

    - sum_s w_s sum_{i <= a_s} log d(z_s,i), w = softmax over s of beta a_s among paths with a_s >= 1 (0 where none is);
    + c(x) mean_s log d(first refused token of s), c(x) = `rejection` x accepted share of x's ruled tokens, the
    log-probability no lower than log(`floor`) (ARW);
    + `confidence` mean_s d(first refused token of s)^2 (CAR).
    `anchor` weighs the drafter's plain loss beside it. Values: ours, chosen on calibration prompts (docs/LOG.md).
    """

    paths: Annotated[int, Field(ge=1)] = 40
    beta: Weight = 1.0
    rejection: Weight = 0.5
    confidence: Weight = 0.2
    anchor: Weight = 0.25
    floor: Annotated[float, Field(gt=0, lt=1)] = 1e-4

    def measure(
        self, steps: Sequence[StepRows], documents: Tensor, followed: Tensor, generator: torch.Generator
    ) -> StepSums:
        """The sum over contexts, and their number; judged and agreed are the ruled and the kept tokens of paths."""
        paths = draw_paths(steps, documents, followed, self.paths, generator)
        accepted, against = self.weigh(paths)
        loss = torch.zeros((), device=documents.device)
        for step, (rows, (tokens, starts, inside)) in enumerate(zip(steps, paths.drawn, strict=True)):
            starts = starts.clamp(min=0)  # where a row belongs to no context, `inside` takes it out again
            right = rows.logs.gather(1, rows.wanted.clamp(min=0)[:, None])[:, 0]
            loss = loss - (accepted[starts, step] * inside * right).sum()
            if self.rejection or self.confidence:
                wrong = rows.logs.gather(1, tokens)  # [m, S]
                cost = against[starts, None] * wrong.clamp(min=log(self.floor))
                cost = cost + self.confidence * (2 * wrong).exp()
                loss = loss + (cost * (paths.refused[starts, step] & inside[:, None])).sum() / self.paths
        ruled = paths.kept.sum() + paths.refused.sum()
        return StepSums(loss, paths.contexts, ruled, paths.kept.sum())

    def weigh(self, paths: Paths) -> tuple[Tensor, Tensor]:
        """E-step, second half: weights [n, K] of the accepted tokens by place, and c [n] of refused ones."""
        lengths = paths.lengths
        utility = (self.beta * lengths.float()).masked_fill(lengths == 0, float("-inf"))
        weights = utility.softmax(-1).nan_to_num(0.0)  # nan: no path of this context is accepted
        kept, refused = paths.kept.sum((1, 2)).float(), paths.refused.sum((1, 2)).float()
        share = kept / (kept + refused).clamp(min=1)
        return (weights[:, None] * paths.kept).sum(-1), self.rejection * share
