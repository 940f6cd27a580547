"""Published heads in small: keys and sizes as eagle.md lists them, configs, tensors, and readers of what is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from baselines.eagle.checkpoints import LoadedHead, assemble
from baselines.eagle.fields import TargetSizes
from baselines.eagle.head import HeadShape

TARGET = TargetSizes(width=16, vocabulary=40, layers=12)
FIRST = HeadShape(
    version=1,
    width=16,
    target_width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    intermediate=24,
    vocabulary=40,
    max_positions=64,
    fc_bias=True,
)
THIRD = replace(FIRST, version=3, fc_bias=False, draft_vocabulary=12)

# The published keys, as eagle.md lists them, with the sizes of FIRST and THIRD.
FIRST_SIZES: dict[str, tuple[int, ...]] = {
    "fc.weight": (16, 32),
    "fc.bias": (16,),
    "layers.0.self_attn.q_proj.weight": (16, 16),
    "layers.0.self_attn.k_proj.weight": (8, 16),
    "layers.0.self_attn.v_proj.weight": (8, 16),
    "layers.0.self_attn.o_proj.weight": (16, 16),
    "layers.0.mlp.gate_proj.weight": (24, 16),
    "layers.0.mlp.up_proj.weight": (24, 16),
    "layers.0.mlp.down_proj.weight": (16, 24),
    "layers.0.post_attention_layernorm.weight": (16,),
}
THIRD_SIZES: dict[str, tuple[int, ...]] = {
    "midlayer.self_attn.q_proj.weight": (16, 32),
    "midlayer.self_attn.k_proj.weight": (8, 32),
    "midlayer.self_attn.v_proj.weight": (8, 32),
    "midlayer.self_attn.o_proj.weight": (16, 16),
    "midlayer.mlp.gate_proj.weight": (24, 16),
    "midlayer.mlp.up_proj.weight": (24, 16),
    "midlayer.mlp.down_proj.weight": (16, 24),
    "midlayer.hidden_norm.weight": (16,),
    "midlayer.input_layernorm.weight": (16,),
    "midlayer.post_attention_layernorm.weight": (16,),
    "fc.weight": (16, 48),
    "norm.weight": (16,),
    "lm_head.weight": (12, 16),
    "d2t": (12,),
    "t2d": (40,),
}
LAYERED_SIZES = {key.replace("midlayer.", "layers.0."): size for key, size in THIRD_SIZES.items()}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "vocab_size": 40,
}
THIRD_CONFIG: dict[str, Any] = {**CONFIG, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 12}
SPECULATORS_CONFIG: dict[str, Any] = {
    "speculators_model_type": "eagle3",
    "speculators_version": "0.2.0.dev11",
    "draft_vocab_size": 12,
    "target_hidden_size": None,
    "transformer_layer_config": CONFIG,
    "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{"proposal_type": "greedy"}]},
}
OPTIMIZER_CONFIG: dict[str, Any] = {**THIRD_CONFIG, "eagle_config": {"use_aux_hidden_state": True}}
IDS = torch.tensor([0, 1, 4, 5, 9, 11, 12, 20, 21, 30, 38, 39])


def make(sizes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors of these sizes, and maps that name IDS."""
    draws = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(size, generator=draws).to(dtype) for key, size in sizes.items()}
    if "d2t" in tensors:
        tensors["d2t"] = IDS - torch.arange(12)
    if "t2d" in tensors:
        tensors["t2d"] = torch.zeros(40, dtype=torch.bool).index_fill(0, IDS, True)
    return tensors


def read(
    config: dict[str, Any], sizes: dict[str, tuple[int, ...]], target: TargetSizes = TARGET, **changed: Any
) -> LoadedHead:
    return assemble({**config, **changed}, make(sizes), target)


def read_third(**changed: Any) -> LoadedHead:
    return read(THIRD_CONFIG, THIRD_SIZES, **changed)


def read_speculators(**changed: Any) -> LoadedHead:
    return read(SPECULATORS_CONFIG, LAYERED_SIZES, **changed)


def read_optimizer(**changed: Any) -> LoadedHead:
    sizes = {key: size for key, size in LAYERED_SIZES.items() if key != "t2d"}
    return read(OPTIMIZER_CONFIG, sizes, **changed)


def publish(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return str(folder)
