"""Fields of published configs: brought to one level, typed, and checked against what an EagleHead can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baselines.eagle.formats import Format, HeadError, Sizes

OWN_KEY = "viasd"  # of what our own files say beside the format's fields

# What a config leaves out has its class's default: SafeAILab's config and transformers' Llama have the same ones.
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}

# Fields that make another head than ours, with the values that do not.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "logit_scale": (1.0,),
    "num_aux_hidden_states": (3,),
    "quantization_config": (),
    "use_sliding_window": (False,),
    "use_aux_hidden_state": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_last_layernorm": (True,),
    "use_mtp_layernorm": (False,),
    "next_layer_regular": (True,),
    "parallel_draft_step": (1,),
    "eh_proj_before_attn": (False,),
    "return_hidden_post_norm": (False,),
}
# Switches of EAGLE-3 heads that a format has; any other one must be off.
SWITCHES: dict[Format, tuple[str, ...]] = {
    "safeailab-1": (),
    "safeailab-3": ("fc_norm", "norm_before_residual", "norm_output"),
    "speculators": ("fc_norm", "norm_before_fc", "norm_before_residual", "norm_output"),
    "model-optimizer": ("norm_before_residual",),
}


@dataclass(frozen=True)
class TargetSizes:
    """What a head must fit: the target's hidden size, rows of its embedding, number of layers."""

    width: int
    vocabulary: int
    layers: int


def target_sizes(config: Any) -> TargetSizes:
    """The sizes in a transformers config; of one with several models, those of its `text_config`."""
    text = getattr(config, "text_config", None) or config
    return TargetSizes(text.hidden_size, text.vocab_size, text.num_hidden_layers)


@dataclass
class Reading:
    """A config on its way to a shape: its fields in one level, what was stated, and what the user must be told."""

    config: dict[str, Any]
    sizes: Sizes
    target: TargetSizes
    wrapped: bool = False
    notices: list[str] = field(default_factory=list)

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number; `default` where the config has none."""
        value = default if self.config.get(key) is None else self.config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise HeadError(f"{key}={value} in config.json: accepted: a positive whole number")
        return value

    def switch(self, key: str, default: bool = False) -> bool:
        """true or false; `default` where the config has none."""
        value = default if self.config.get(key) is None else self.config[key]
        if not isinstance(value, bool):
            raise HeadError(f"{key}={value} in config.json: accepted: true, false")
        return value

    def real(self, key: str) -> float:
        """A positive number."""
        value = self.config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise HeadError(f"{key}={value} in config.json: accepted: a positive number")
        return float(value)

    def own(self, key: str, default: str, accepted: tuple[str, ...]) -> str:
        """A word of our own metadata."""
        value = self.config.get(OWN_KEY, {}).get(key, default)
        if value not in accepted:
            raise HeadError(f"{OWN_KEY}.{key}={value} in config.json: accepted: {', '.join(accepted)}")
        return str(value)


def flatten(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """All fields in one level with the defaults of their class; and whether vLLM's wrapper of EAGLE-1 was around them.

    vLLM: {"model_type": "eagle", "model": {..}}, whose own fields replace those of the model, and `eagle_fc_bias`,
    false where it is missing. speculators: `transformer_layer_config`, saved without what its class has as a default.
    Raises HeadError for a layer of another family, or none.
    """
    if not isinstance(config.get(OWN_KEY, {}), Mapping):
        raise HeadError(f"{OWN_KEY}={config[OWN_KEY]} in config.json: accepted: an object")
    if config.get("speculators_model_type") == "eagle3":
        layer = config.get("transformer_layer_config")
        if not isinstance(layer, Mapping):
            raise HeadError(f"transformer_layer_config={layer} in config.json: accepted: an object")
        kind = layer.get("model_type", "llama")
        if kind not in ("llama", "qwen3"):
            raise HeadError(f"transformer_layer_config.model_type={kind}: accepted: llama, qwen3")
        return {**(QWEN3 if kind == "qwen3" else LLAMA), **config, **layer}, False
    inner = config.get("model")
    if config.get("model_type") != "eagle" or not isinstance(inner, Mapping):
        nested = {key: value for key, value in (config.get("eagle_config") or {}).items() if value is not None}
        return {**LLAMA, **config, **nested}, False
    outer = {key: value for key, value in config.items() if key not in ("model", "model_type", "architectures")}
    return {**LLAMA, **inner, **outer, "bias": config.get("eagle_fc_bias", False)}, True


def check_fixed(reading: Reading, found: Format) -> None:
    """Raise HeadError for fields that make another head than ours."""
    config = reading.config
    for key, accepted in FIXED.items():
        value = config.get(key)
        if value is not None and value not in accepted:
            allowed = ", ".join(str(one) for one in accepted) or "none"
            raise HeadError(f"{key}={value} in config.json: accepted: {allowed}".replace("\n", " "))
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise HeadError("layer_types with sliding_attention in config.json: accepted: full_attention")
    for key in ("fc_norm", "norm_before_fc", "norm_before_residual", "norm_output"):
        if key not in SWITCHES[found] and config.get(key):
            raise HeadError(f"{key}={config[key]} in config.json: accepted in this format: false")
