"""Rotary positions of a head: what configs say about them, and the angles as transformers computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.eagle.formats import HeadError
from baselines.eagle.head import HeadShape

THETA = 10000.0  # of heads whose config has none, whatever the target's is: the official Llama-3.1-8B EAGLE-3 head
# What each type needs beside rope_theta, as transformers names it.
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters, named as transformers 5 does, from a config of any age.

    `rope_parameters` (transformers 5), else `rope_scaling` with `rope_type` or, of old, `type`, and `rope_theta` beside
    or inside; 10000 where none is stated. A theta inside wins: beside it stands a class's default in some configs
    (Model-Optimizer says so). Raises HeadError for types that are not known, or incomplete.
    """
    named = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    stated = config.get(named) or {}
    if not isinstance(stated, Mapping) or any(isinstance(value, Mapping) for value in stated.values()):
        raise HeadError(f"{named}={stated} in config.json: accepted: one set of rotary parameters for all layers")
    rope = {key: value for key, value in stated.items() if key != "type" and value is not None}
    rope["rope_type"] = stated.get("rope_type") or stated.get("type") or "default"
    theta = rope.get("rope_theta") or config.get("rope_theta") or THETA
    partial = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise HeadError(f"partial_rotary_factor={partial} in config.json: accepted: 1.0")
    check_rope(rope)
    return {**rope, "rope_theta": float(theta)}


def check_rope(rope: Mapping[str, Any]) -> None:
    """Raise HeadError for a type of scaling that is not known, or lacks a number it needs."""
    kind = rope.get("rope_type", "default")
    if kind not in NEEDED:
        raise HeadError(f"rope_type={kind}: accepted: {', '.join(NEEDED)}")
    if lacking := [key for key in NEEDED[kind] if not isinstance(rope.get(key), int | float)]:
        raise HeadError(f"rope_type={kind} without {lacking[0]}: accepted: numbers for {', '.join(NEEDED[kind])}")


def rotary(shape: HeadShape, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [max positions, 1, head_dim] of all positions, as `viasd.forward.rotations` has them.

    x * cos + x.roll(head_dim / 2) * sin rotates x. The angles are transformers' own, in float32 before the cast. A
    `dynamic` type changes nothing up to `max_positions`, where this table ends. Raises HeadError as `check_rope`.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    check_rope(shape.rope)
    config = LlamaConfig(
        hidden_size=shape.heads * shape.head_dim,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, **shape.rope},
    )
    positions = torch.arange(shape.max_positions, device=device)[None]
    table = LlamaRotaryEmbedding(config).to(device)
    cos, sin = table(torch.empty(0, dtype=dtype, device=device), positions)
    half = shape.head_dim // 2
    return cos[0][:, None], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]
