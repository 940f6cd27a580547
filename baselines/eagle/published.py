"""The HeadShape of a published head, from its config and its keys."""

from __future__ import annotations

import re
from typing import Any

from baselines.eagle.fields import OWN_KEY, Reading, check_fixed
from baselines.eagle.formats import Format, HeadError
from baselines.eagle.head import HeadShape
from baselines.eagle.rotary import read_rope

# Which stream a listed layer stands for. Original code, vLLM and speculators: what enters it. Model-Optimizer hooks
# what leaves it; so does SGLang for ids that are listed, and a file does not say for which engine it was made.
CONVENTIONS: dict[Format, str] = {"safeailab-3": "input", "speculators": "input", "model-optimizer": "output"}
# What norm_output switches. speculators, vLLM, SGLang, TensorRT-LLM, and SpecForge since its pull request 879
# (September 2026): the normed state is fed back. SpecForge before: the norm before the head ("logits").
MEANINGS = ("feed_back", "logits")


def read_shape(reading: Reading, found: Format) -> HeadShape:
    """The head of a checkpoint, sizes from its config, layers and biases from its keys.

    Raises HeadError for what makes it another head than ours, and for another target than this one.
    """
    check_fixed(reading, found)
    width, target = reading.number("hidden_size"), reading.target
    heads, vocabulary = reading.number("num_attention_heads"), reading.number("vocab_size")
    target_width = width if found == "safeailab-1" else reading.number("target_hidden_size", width)
    if (target_width, vocabulary) != (target.width, target.vocabulary):
        raise HeadError(
            f"made for a target of hidden size {target_width} and vocabulary {vocabulary}, "
            f"this one has {target.width} and {target.vocabulary}"
        )
    return HeadShape(
        version=1 if found == "safeailab-1" else 3,
        width=width,
        target_width=target_width,
        heads=heads,
        kv_heads=reading.number("num_key_value_heads", heads),
        # The original code knows no head_dim; SpecForge and vLLM go by it. The sizes of the projections decide.
        head_dim=reading.number("head_dim", width // heads),
        intermediate=reading.number("intermediate_size"),
        vocabulary=vocabulary,
        layers=count_layers(reading, found),
        eps=reading.real("rms_norm_eps"),
        rope=read_rope(reading.config),
        max_positions=reading.number("max_position_embeddings"),
        qkv_bias=read_qkv_bias(reading, found),
        **(read_first(reading) if found == "safeailab-1" else read_third(reading, found)),
    )


def count_layers(reading: Reading, found: Format) -> int:
    """Layers by their keys: the config's num_hidden_layers is the target's in some published heads."""
    named = [re.match(r"layers\.(\d+)\.", key) for key in reading.sizes]
    count = 1 if found == "safeailab-3" else 1 + max((int(one[1]) for one in named if one), default=0)
    stated = reading.config.get("num_hidden_layers")
    if stated is not None and stated != count:
        reading.notices.append(f"num_hidden_layers={stated} in config.json, {count} in the weights: read with {count}")
    return count


def read_qkv_bias(reading: Reading, found: Format) -> bool:
    """Whether queries have a bias, by their keys: several trainers write attention_bias and make none."""
    prefix = "midlayer" if found == "safeailab-3" else "layers.0"
    there = f"{prefix}.self_attn.q_proj.bias" in reading.sizes
    for key in ("qkv_bias", "attention_bias"):
        if reading.config.get(key) not in (None, there):
            reading.notices.append(f"{key}={reading.config[key]} in config.json, the weights say {there}")
    return there


def read_first(reading: Reading) -> dict[str, Any]:
    """What EAGLE-1 adds: a bias of fc, which the keys decide; a config without `bias` means that there is one."""
    stated, there = reading.switch("bias", True), "fc.bias" in reading.sizes
    if stated != there:
        said = "no bias in config.json, which means true" if "bias" not in reading.config else f"bias={stated}"
        named = f"eagle_fc_bias={stated}" if reading.wrapped else said
        reading.notices.append(f"{named}, but the weights have {'an' if there else 'no'} fc.bias: read as they are")
    truncated = reading.config.get("truncated_vocab_size")
    if truncated not in (None, reading.config["vocab_size"]):
        raise HeadError(f"truncated_vocab_size={truncated} in config.json: accepted: {reading.config['vocab_size']}")
    return {"fc_bias": there}


def read_third(reading: Reading, found: Format) -> dict[str, Any]:
    """What EAGLE-3 adds: draft vocabulary, norms, the target's layers, an embedding of its own where there is one."""
    config, sizes = reading.config, reading.sizes
    draft = reading.number("draft_vocab_size", config["vocab_size"])
    if draft > config["vocab_size"]:
        raise HeadError(f"draft_vocab_size={draft} in config.json: accepted: at most {config['vocab_size']}")
    fc_norm, joined = reading.switch("fc_norm"), reading.switch("norm_before_fc")
    if fc_norm and joined:
        raise HeadError("fc_norm=true and norm_before_fc=true in config.json: accepted: one of them")
    narrow = reading.number("hidden_size") != reading.target.width
    return {
        "draft_vocabulary": None if draft == config["vocab_size"] else draft,
        "query_key_norm": found == "speculators" and config.get("model_type") == "qwen3",
        "fc_norm": fc_norm,
        "norm_before_fc": joined,
        "norm_before_residual": reading.switch("norm_before_residual"),
        "own_embedding": narrow or "embed_tokens.weight" in sizes,
        "aux_layers": read_layers(reading, found),
        **read_norm_output(reading, found),
    }


def read_norm_output(reading: Reading, found: Format) -> dict[str, bool]:
    """`norm_output` in whichever of its two meanings (`MEANINGS`) the file has; unstated, the first one, and told."""
    stated = reading.config.get("norm_output")
    meaning = reading.own("norm_output_meaning", MEANINGS[0], MEANINGS)
    if meaning == "logits":
        return {"norm_logits": reading.switch("norm_output", True)}
    unsaid = "norm_output_meaning" not in reading.config.get(OWN_KEY, {})
    if stated is not None and found == "safeailab-3" and unsaid:
        reading.notices.append(
            f"norm_output={stated} read as `normed states are fed back`; SpecForge before September 2026 meant "
            f"`norm before the head`: {OWN_KEY}.norm_output_meaning=logits in config.json says so"
        )
    return {"feed_normed": reading.switch("norm_output")}


def read_layers(reading: Reading, found: Format) -> tuple[int, ...] | None:
    """The layers of the target whose inputs are read; None: the default ones. The convention can be stated by us."""
    layers, last = reading.config.get("eagle_aux_hidden_state_layer_ids") or None, reading.target.layers - 1
    convention = reading.own("aux_layer_convention", CONVENTIONS[found], ("input", "output"))
    if layers is None:
        return None
    shift = 1 if convention == "output" else 0
    whole = isinstance(layers, list) and all(isinstance(one, int) for one in layers)
    if not whole or len(layers) != 3 or not all(0 <= one + shift <= last for one in layers):
        raise HeadError(
            f"eagle_aux_hidden_state_layer_ids={layers} (meant as {convention}s) in config.json: "
            f"accepted: three layers from {-shift} to {last - shift}"
        )
    if found != "speculators" and "aux_layer_convention" not in reading.config.get(OWN_KEY, {}):
        other = "output" if convention == "input" else "input"
        reading.notices.append(
            f"eagle_aux_hidden_state_layer_ids={layers} read as {convention}s of these layers; should acceptance be "
            f"low, try {OWN_KEY}.aux_layer_convention={other} in config.json"
        )
    return tuple(one + shift for one in layers)
