"""Training drafters: the optimizer, and one step on a batch, by one process or several."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.eagle.losses import StepSums
from baselines.eagle.recipes import Recipe, Source
from baselines.eagle.ttt import Batch
from viasd.spec import spec

Positive = Annotated[float, Field(gt=0)]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


@spec
class OptimizerSpec:
    """AdamW, or Muon for the matrices of layers and fc beside it; a linear warm-up, then a cosine to `last_rate` of the
    peak.

    betas and clipping at 0.5 as in the papers of EAGLE. `clip`: by `norm` (EAGLE-3's trainers), by `value` as the code
    of EAGLE-1 does, or `none`. `warm_up`: share of all steps. `matrices`: Muon is ours; its updates are scaled to the
    size of AdamW's. `beside`: the rate of what AdamW moves beside Muon (norms, embeddings, a head's own head), as part
    of the others'.
    """

    rate: Positive
    matrices: Literal["adamw", "muon"] = "adamw"
    beside: Annotated[float, Field(gt=0, le=1)] = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.015
    last_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Literal["norm", "value", "none"] = "norm"
    clip_at: Positive = 0.5

    def open(self, drafter: nn.Module) -> list[torch.optim.Optimizer]:
        """The optimizers of a drafter's parameters."""
        named = list(drafter.named_parameters())
        inner = [one for name, one in named if one.ndim == 2 and ("layers." in name or name == "fc.weight")]
        matrices = inner if self.matrices == "muon" else []
        chosen = set(map(id, matrices))
        rest = [one for _, one in named if id(one) not in chosen]
        opened: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=self.rate, betas=self.betas, weight_decay=self.weight_decay)
        ]
        opened[0].param_groups[0]["share"] = self.beside if matrices else 1.0
        if matrices:
            opened.append(
                torch.optim.Muon(matrices, lr=self.rate, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        return opened

    def factor(self, step: int, steps: int) -> float:
        """The part of the peak rate that step `step` of `steps` has."""
        warm = max(1, round(self.warm_up * steps))
        if step < warm:
            return (step + 1) / warm
        share = (step - warm) / max(1, steps - warm)
        return self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Measured:
    """What one step of training saw: the total loss, and loss and agreement by step of the unrolled head."""

    total: float
    losses: list[float]
    agreements: list[float]

    @classmethod
    def of(cls, sums: Sequence[StepSums], weights: Sequence[float], reduce: Reduce) -> Measured:
        rows = [torch.stack([one.loss.detach().double(), one.places, one.judged, one.agreed]) for one in sums]
        table = reduce(torch.stack(rows)).tolist()
        losses = [loss / max(1.0, places) for loss, places, _, _ in table]
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return cls(total, losses, [agreed / max(1.0, judged) for _, _, judged, agreed in table])


def cast(drafter: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same drafter with parameters of this type. Rotary frequencies stay precise, as where models are loaded."""
    for parameter in drafter.parameters():
        parameter.data = parameter.data.to(dtype)
    return drafter


class Trainer:
    """A drafter in training: all that changes from step to step.

    `reduce` sums over processes, each of which sees its own part of the step's documents: the sums of losses and
    gradients are those of one process that sees them all. In `bfloat16` a copy of the drafter computes, and its
    gradients move the drafter itself, which stays in float32. (Paths are drawn by each process for its own documents:
    with them the sums are the same in law.)
    """

    def __init__(
        self, drafter: nn.Module, recipe: Recipe, source: Source, optimizer: OptimizerSpec, steps: int, reduce: Reduce
    ) -> None:
        self.drafter, self.recipe, self.source, self.spec, self.steps = drafter, recipe, source, optimizer, steps
        self.step = 0
        self._reduce, self._weights = reduce, recipe.weights
        self._worker = drafter
        self.optimizers = optimizer.open(drafter)

    def compute_in(self, dtype: torch.dtype) -> None:
        """From now on products and gradients are of this type."""
        same = next(self.drafter.parameters()).dtype == dtype
        self._worker = self.drafter if same else cast(copy.deepcopy(self.drafter), dtype)

    def update(self, batch: Batch) -> Measured:
        """One step on this process's part of its documents."""
        self._hand_out()
        sums = self.recipe.measure(self._worker, batch, self.source)
        places = self._reduce(torch.stack([one.places for one in sums])).clamp(min=1)
        shares = [weight * one.loss / count for weight, one, count in zip(self._weights, sums, places, strict=True)]
        torch.stack(shares).sum().backward()
        self._gather()
        if self.spec.clip == "norm":
            nn.utils.clip_grad_norm_(self.drafter.parameters(), self.spec.clip_at)
        elif self.spec.clip == "value":
            nn.utils.clip_grad_value_(self.drafter.parameters(), self.spec.clip_at)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                rate = self.spec.rate * group.get("share", 1.0)
                group["lr"] = rate * self.spec.factor(self.step, self.steps)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return Measured.of(sums, self._weights, self._reduce)

    @torch.no_grad()
    def look(self, batch: Batch) -> Measured:
        """Losses and agreement on other documents."""
        self._hand_out()
        return Measured.of(self.recipe.measure(self._worker, batch, self.source), self._weights, self._reduce)

    @torch.no_grad()
    def _hand_out(self) -> None:
        if self._worker is not self.drafter:
            for own, computing in zip(self.drafter.parameters(), self._worker.parameters(), strict=True):
                computing.copy_(own)

    def _gather(self) -> None:
        """The gradients of all processes, summed in the drafter's own type."""
        own, computing = list(self.drafter.parameters()), list(self._worker.parameters())
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in computing]
        flat = self._reduce(torch.cat([grad.to(own[0].dtype).flatten() for grad in found]))
        for one, part in zip(own, flat.split([one.numel() for one in own]), strict=True):
            one.grad = part.view_as(one)
        if self._worker is not self.drafter:
            self._worker.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"drafter": self.drafter.state_dict(), "optimizers": optimizers, "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.drafter.load_state_dict(state["drafter"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step = state["step"]
