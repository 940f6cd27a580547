"""Layers with one branch left out: what a mask per sub-layer makes of a decoder layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from viasd.models import PairError, copy_module

Branch = Literal["attention", "mlp"]
NAMES = {"attention": "self_attn", "mlp": "mlp"}  # as Llama, Mistral, Qwen and Gemma call them


class NoAttention(nn.Module):
    """Adds nothing to the residual stream, and neither reads nor writes a cache."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMlp(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def leave_out(layer: Any, branch: Branch) -> Any:
    """A shallow copy of a decoder layer whose `branch` is the identity on the residual stream.

    What remains is the layer's own modules. A norm behind the branch (Gemma-2) makes zeros of zeros. Raises PairError
    for a layer whose branches have other names.
    """
    missing = sorted(name for name in NAMES.values() if name not in layer._modules)
    if missing:
        raise PairError(
            f"mask: layers of class {type(layer).__name__} have no {missing[0]}; accepted here: a mask of whole layers"
        )
    twin = copy_module(layer)
    twin._modules[NAMES[branch]] = NoAttention() if branch == "attention" else NoMlp()
    return twin
