"""What a head is trained on: features of whole documents, by the target's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baselines.eagle.head import HeadShape


@torch.no_grad()
def read_target(model: Any, ids: Tensor, shape: HeadShape) -> tuple[Tensor, Tensor]:
    """Features [B, T, F] of documents' tokens [B, T] for a head of that shape, and states [B, T, width].

    States are those behind the target's final norm, which for version 1 are the features. Version 3 takes the streams
    that enter its layers, by hooks: the last of the library's hidden states is normed, and others differ by family.
    Documents are filled up on the right, which a causal model does not look at.
    """
    decoder = model.get_decoder()
    streams: dict[int, Tensor] = {}
    hooks = [
        decoder.layers[layer].register_forward_pre_hook(_keep(streams, layer), with_kwargs=True)
        for layer in set(shape.taps(len(decoder.layers)))
    ]
    try:
        states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    taps = shape.taps(len(decoder.layers))
    return (torch.cat([streams[layer] for layer in taps], dim=-1) if taps else states), states


def _keep(streams: dict[int, Tensor], layer: int) -> Any:
    def hook(module: Any, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        streams[layer] = arguments[0] if arguments else options["hidden_states"]

    return hook
