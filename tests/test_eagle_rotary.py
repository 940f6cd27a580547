"""Rotary positions of a head: the angles that transformers applies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.eagle.formats import HeadError
from baselines.eagle.head import HeadShape
from baselines.eagle.rotary import rotary

CPU = torch.device("cpu")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
TYPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3},
]


def shape_with(rope: dict[str, Any]) -> HeadShape:
    """Its head_dim is not width / heads: the table must go by head_dim."""
    sizes = {"width": 24, "target_width": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 16}
    return HeadShape(version=3, vocabulary=40, max_positions=96, rope=rope, **sizes)


@pytest.mark.parametrize("rope", TYPES, ids=lambda rope: f"{rope['rope_type']}-{rope['rope_theta']:g}")
def test_states_are_rotated_as_transformers_does(rope: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=96, rope_parameters=dict(rope))
    queries = torch.randn(1, 4, 96, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = LlamaRotaryEmbedding(config)(queries, torch.arange(96)[None])
    theirs, _ = apply_rotary_pos_emb(queries, queries, *angles)
    cos, sin = rotary(shape_with(rope), CPU, torch.float64)
    assert cos.shape == sin.shape == (96, 1, 8) and cos.dtype == torch.float64
    states = queries[0].transpose(0, 1)  # [positions, heads, head_dim]
    ours = torch.addcmul(states * cos, states.roll(4, -1), sin)
    assert torch.allclose(ours, theirs[0].transpose(0, 1), rtol=0, atol=1e-12)
    assert not torch.allclose(ours[1:], states[1:], atol=1e-2)


def test_types_and_bases_differ() -> None:
    tables = [rotary(shape_with(rope), CPU)[0] for rope in TYPES if rope["rope_type"] != "dynamic"]
    assert all(not torch.equal(one, other) for i, one in enumerate(tables) for other in tables[:i])
    dynamic, plain = (rotary(shape_with(TYPES[index]), CPU)[0] for index in (3, 0))
    assert torch.equal(dynamic, plain)  # it changes only what lies beyond max_positions


def test_the_angles_written_out() -> None:
    cos, sin = rotary(shape_with(TYPES[0]), CPU, torch.float64)
    angles = torch.arange(96.0)[:, None] * 10000.0 ** (-torch.arange(4.0) / 4)
    assert torch.allclose(cos[:, 0].float(), angles.cos().repeat(1, 2), atol=1e-4)
    assert torch.allclose(sin[:, 0].float(), torch.cat((-angles.sin(), angles.sin()), dim=-1), atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "told"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type=longrope: accepted: default, linear, dynamic, yarn"),
        ({"rope_type": "linear"}, "rope_type=linear without factor: accepted: numbers for factor"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_type=llama3 without low_freq_factor"),
    ],
)
def test_other_types_are_refused(rope: dict[str, Any], told: str) -> None:
    with pytest.raises(HeadError, match=told):
        rotary(shape_with(rope), CPU)
