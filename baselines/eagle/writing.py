"""Write a head in published formats: SafeAILab's (EAGLE-1/2, EAGLE-3) and that of speculators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.eagle.fields import OWN_KEY
from baselines.eagle.files import SAFE
from baselines.eagle.formats import Format, published_name
from baselines.eagle.head import EagleHead, HeadShape
from baselines.eagle.rotary import check_rope, read_rope

# speculators states the version that wrote a file. This one is named in public configs; the fields are those that
# eagle.md lists, newer than it.
SPECULATORS_VERSION = "0.2.0.dev11"


def write_safeailab(head: EagleHead, folder: str | Path) -> None:
    """Write model.safetensors and config.json with SafeAILab's names: version 1, or version 3 with SpecForge's fields.

    Layer ids are inputs, as SafeAILab and vLLM mean them (SGLang would take the outputs of listed ones); that and the
    meaning of `norm_output` stand under our own key. Raises ValueError for a head that the format cannot express.
    """
    shape = head.shape
    if shape.version == 1:
        config = {**plain_fields(head), "architectures": ["LlamaForCausalLM"], "bias": shape.fc_bias}
        save(head, folder, "safeailab-1", config | {"qkv_bias": shape.qkv_bias, OWN_KEY: {"version": 1}})
        return
    refuse(
        "safeailab",
        {
            "fc_bias=true": shape.fc_bias,
            "norm_before_fc=true": shape.norm_before_fc,
            "query_key_norm=true": shape.query_key_norm,
            f"layers={shape.layers}": shape.layers > 1,
            "norm_logits=false with feed_normed=true": not shape.norm_logits and shape.feed_normed,
        },
    )
    meaning = "feed_back" if shape.norm_logits else "logits"
    # A plain head is one without the field: readers that differ about it agree there.
    switched = {"norm_output": shape.feed_normed} if shape.feed_normed or not shape.norm_logits else {}
    config = {
        **plain_fields(head),
        **third_fields(shape),
        "architectures": ["LlamaForCausalLMEagle3"],
        "attention_bias": shape.qkv_bias,
        **switched,
        "eagle_config": {"use_aux_hidden_state": True, **layer_field(shape)},
        OWN_KEY: {"version": 3, "aux_layer_convention": "input", "norm_output_meaning": meaning},
    }
    save(head, folder, "safeailab-3", config)


def write_speculators(
    head: EagleHead, folder: str | Path, verifier: str, architectures: Sequence[str] = (), tokens: int = 5
) -> None:
    """Write model.safetensors and config.json of a speculators eagle3 head.

    `verifier`: name or path of the target, `architectures` its classes, `tokens` how many are proposed (5 is
    speculators' own default). Raises ValueError for a head that the format cannot express.
    """
    shape = head.shape
    refuse(
        "speculators",
        {
            "version=1": shape.version == 1,
            "fc_bias=true": shape.fc_bias,
            "norm_logits=false": not shape.norm_logits,
        },
    )
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    kind = "qwen3" if shape.query_key_norm else "llama"
    config = {
        **third_fields(shape),
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": SPECULATORS_VERSION,
        "norm_before_fc": shape.norm_before_fc,
        "norm_output": shape.feed_normed,
        "eagle_aux_hidden_state_layer_ids": None,
        **layer_field(shape),
        "torch_dtype": type_name(head),
        "transformer_layer_config": {**plain_fields(head), "model_type": kind, "attention_bias": shape.qkv_bias},
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
        OWN_KEY: {"version": 3, "aux_layer_convention": "input", "norm_output_meaning": "feed_back"},
    }
    save(head, folder, "speculators", config)


def refuse(target: str, lacking: dict[str, bool]) -> None:
    """Raise ValueError for the first option that a format has no place for."""
    for option, asked in lacking.items():
        if asked:
            raise ValueError(f"write_{target}: a head with {option} cannot be written in this format")


def plain_fields(head: EagleHead) -> dict[str, Any]:
    """The fields of a Llama config."""
    shape = head.shape
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "num_hidden_layers": shape.layers,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.eps,
        "max_position_embeddings": shape.max_positions,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": type_name(head),
        **rope_fields(shape),
    }


def third_fields(shape: HeadShape) -> dict[str, Any]:
    """What EAGLE-3 configs of both formats have."""
    return {
        "draft_vocab_size": shape.draft_vocabulary or shape.vocabulary,
        "target_hidden_size": shape.target_width,
        "fc_norm": shape.fc_norm,
        "norm_before_residual": shape.norm_before_residual,
    }


def layer_field(shape: HeadShape) -> dict[str, list[int]]:
    """The target's layers, where they are not the default ones."""
    return {} if shape.aux_layers is None else {"eagle_aux_hidden_state_layer_ids": list(shape.aux_layers)}


def rope_fields(shape: HeadShape) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which old and new readers know.

    SafeAILab's own config class takes a scaling of exactly {type, factor}, so that form is kept where it suffices.
    """
    check_rope(shape.rope)
    rope = read_rope({"rope_parameters": shape.rope})
    theta, kind = rope.pop("rope_theta"), rope["rope_type"]
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind in ("linear", "dynamic") and rope.keys() == {"rope_type", "factor"}:
        return {"rope_theta": theta, "rope_scaling": {"type": kind, "factor": float(rope["factor"])}}
    return {"rope_theta": theta, "rope_scaling": rope}


def type_name(head: EagleHead) -> str:
    """The type of the weights, as configs name it."""
    return str(head.fc.weight.dtype).removeprefix("torch.")


def save(head: EagleHead, folder: str | Path, found: Format, config: dict[str, Any]) -> None:
    """The two files, in a folder that is made where it is missing."""
    from safetensors.torch import save_file

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = {published_name(key, found): one.detach().cpu().contiguous() for key, one in head.state_dict().items()}
    save_file(tensors, place / SAFE, metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
