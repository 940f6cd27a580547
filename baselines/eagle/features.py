"""What a head is trained on: features of whole documents, by the target's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def read_target(model: Any, ids: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features [B, T, F] of documents' tokens [B, T], and states [B, T, width] behind the target's final norm.

    Features are the streams that enter the layers `taps`, joined, as heads of version 3 take them; without any, the
    states. By hooks: the last of the library's hidden states is normed, and others differ by family. Documents are
    filled up on the right, which a causal model does not look at.
    """
    decoder = model.get_decoder()
    streams: dict[int, Tensor] = {}
    hooks = [
        decoder.layers[layer].register_forward_pre_hook(_keep(streams, layer), with_kwargs=True) for layer in set(taps)
    ]
    try:
        states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return (torch.cat([streams[layer] for layer in taps], dim=-1) if taps else states), states


def _keep(streams: dict[int, Tensor], layer: int) -> Any:
    def hook(module: Any, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        streams[layer] = arguments[0] if arguments else options["hidden_states"]

    return hook
