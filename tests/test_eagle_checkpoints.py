"""Published heads: which keys and sizes each format has, what trainers mean by them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_heads import (
    CONFIG,
    FIRST,
    FIRST_SIZES,
    IDS,
    LAYERED_SIZES,
    OPTIMIZER_CONFIG,
    SPECULATORS_CONFIG,
    TARGET,
    THIRD,
    THIRD_CONFIG,
    THIRD_SIZES,
    make,
    publish,
    read,
    read_optimizer,
    read_speculators,
    read_third,
)
from torch import Tensor

from baselines.eagle.checkpoints import assemble, load_head, read_head
from baselines.eagle.fields import LLAMA, QWEN3, Reading, TargetSizes, flatten
from baselines.eagle.formats import Format, HeadError, check_sizes, detect, expected_sizes
from baselines.eagle.head import HeadShape
from baselines.eagle.published import read_shape

# --- keys and sizes -----------------------------------------------------------------------------------------------

VICUNA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
VICUNA_SIZES = {
    "embed_tokens.weight": (32000, 5120),
    "fc.weight": (5120, 10240),
    "fc.bias": (5120,),
    "layers.0.self_attn.q_proj.weight": (5120, 5120),
    "layers.0.self_attn.k_proj.weight": (5120, 5120),
    "layers.0.self_attn.v_proj.weight": (5120, 5120),
    "layers.0.self_attn.o_proj.weight": (5120, 5120),
    "layers.0.mlp.gate_proj.weight": (13824, 5120),
    "layers.0.mlp.up_proj.weight": (13824, 5120),
    "layers.0.mlp.down_proj.weight": (5120, 13824),
    "layers.0.post_attention_layernorm.weight": (5120,),
}
LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
}
LLAMA_SIZES = {
    "midlayer.self_attn.q_proj.weight": (4096, 8192),
    "midlayer.self_attn.k_proj.weight": (1024, 8192),
    "midlayer.self_attn.v_proj.weight": (1024, 8192),
    "midlayer.self_attn.o_proj.weight": (4096, 4096),
    "midlayer.mlp.gate_proj.weight": (14336, 4096),
    "midlayer.mlp.up_proj.weight": (14336, 4096),
    "midlayer.mlp.down_proj.weight": (4096, 14336),
    "midlayer.hidden_norm.weight": (4096,),
    "midlayer.input_layernorm.weight": (4096,),
    "midlayer.post_attention_layernorm.weight": (4096,),
    "fc.weight": (4096, 12288),
    "norm.weight": (4096,),
    "lm_head.weight": (32000, 4096),
    "d2t": (32000,),
    "t2d": (128256,),
}
LAYERED_LLAMA = {key.replace("midlayer.", "layers.0."): size for key, size in LLAMA_SIZES.items()}
LLAMA_8B, VICUNA_13B = TargetSizes(4096, 128256, 32), TargetSizes(5120, 32000, 40)


@pytest.mark.parametrize(
    ("config", "sizes", "target", "found"),
    [
        (VICUNA_CONFIG, VICUNA_SIZES, VICUNA_13B, "safeailab-1"),
        (LLAMA_CONFIG, LLAMA_SIZES, LLAMA_8B, "safeailab-3"),
        ({"speculators_model_type": "eagle3", "draft_vocab_size": 32000, "transformer_layer_config": LLAMA_CONFIG},)
        + (LAYERED_LLAMA, LLAMA_8B, "speculators"),
        (LLAMA_CONFIG, LAYERED_LLAMA, LLAMA_8B, "model-optimizer"),
    ],
)
def test_published_sizes(
    config: dict[str, Any], sizes: dict[str, tuple[int, ...]], target: TargetSizes, found: Format
) -> None:
    """Heads in their real size: what the config makes is exactly what the checkpoint holds."""
    fields, _ = flatten(config)
    assert detect(config, sizes, fields["hidden_size"]) == found
    shape = read_shape(Reading(fields, sizes, target), found)
    optional = {"embed_tokens.weight": (32000, 5120)} if found == "safeailab-1" else {}
    assert expected_sizes(shape, found) == {key: size for key, size in sizes.items() if key not in optional}
    assert shape.rope == {"rope_type": "default", "rope_theta": 10000.0} and shape.head_dim == 128
    assert (shape.kv_heads, shape.fc_bias) == ((40, True) if found == "safeailab-1" else (8, False))


@pytest.mark.parametrize(
    ("config", "sizes", "shape", "found"),
    [
        (CONFIG, FIRST_SIZES, FIRST, "safeailab-1"),
        (THIRD_CONFIG, THIRD_SIZES, THIRD, "safeailab-3"),
        (SPECULATORS_CONFIG, LAYERED_SIZES, THIRD, "speculators"),
        (OPTIMIZER_CONFIG, LAYERED_SIZES, THIRD, "model-optimizer"),
    ],
)
def test_each_format(
    config: dict[str, Any], sizes: dict[str, tuple[int, ...]], shape: HeadShape, found: Format, tmp_path: Path
) -> None:
    tensors = make(sizes)
    loaded = read_head(publish(tmp_path / "head", config, tensors), TARGET)
    assert (loaded.format, loaded.head.shape, loaded.notices) == (found, shape, ())
    entries = loaded.head.state_dict()
    assert entries.keys() == {key.replace("midlayer.", "layers.0.") for key in sizes}
    for key, tensor in tensors.items():
        assert torch.equal(entries[key.replace("midlayer.", "layers.0.")], tensor), key
    if shape.version == 3:
        assert loaded.head.draft_ids().tolist() == IDS.tolist()


def test_the_embedding_of_an_eagle_1_file_is_not_read_and_that_of_eagle_3_is() -> None:
    first = read(CONFIG, {**FIRST_SIZES, "embed_tokens.weight": (40, 16)})
    assert first.head.embed_tokens is None and not first.head.shape.own_embedding
    with pytest.raises(HeadError, match=r"embed_tokens.weight is \[40, 8\], not \[40, 16\]"):
        read(CONFIG, {**FIRST_SIZES, "embed_tokens.weight": (40, 8)})
    third = read(THIRD_CONFIG, {**THIRD_SIZES, "embed_tokens.weight": (40, 16)})
    assert third.head.embed_tokens.weight.shape == (40, 16) and third.head.shape == replace(THIRD, own_embedding=True)


def test_a_narrow_head_needs_its_own_embedding() -> None:
    wide, changed = TargetSizes(20, 40, 12), {"target_hidden_size": 20}
    sizes = {**THIRD_SIZES, "fc.weight": (16, 60), "embed_tokens.weight": (40, 16)}
    shape = read(THIRD_CONFIG, sizes, wide, **changed).head.shape
    assert shape == replace(THIRD, target_width=20, own_embedding=True)
    del sizes["embed_tokens.weight"]
    with pytest.raises(HeadError, match=r"keys 1 missing: embed_tokens.weight"):
        read(THIRD_CONFIG, sizes, wide, **changed)


def test_options_of_eagle_3() -> None:
    norms = {f"fc_norm.{index}.weight": (16,) for index in range(3)}
    assert read(THIRD_CONFIG, {**THIRD_SIZES, **norms}, fc_norm=True).head.shape == replace(THIRD, fc_norm=True)
    joined = read(SPECULATORS_CONFIG, {**LAYERED_SIZES, "input_norm.weight": (48,)}, norm_before_fc=True)
    assert joined.head.shape == replace(THIRD, norm_before_fc=True)
    biases = {f"midlayer.self_attn.{name}_proj.bias": (size,) for name, size in (("q", 16), ("k", 8), ("v", 8))}
    assert read(THIRD_CONFIG, {**THIRD_SIZES, **biases}).head.shape == replace(THIRD, qkv_bias=True)
    with pytest.raises(HeadError, match="fc_norm=true and norm_before_fc=true"):
        read_speculators(fc_norm=True, norm_before_fc=True)
    with pytest.raises(HeadError, match=r"1 unexpected: fc_norm.0.weight"):
        read(THIRD_CONFIG, {**THIRD_SIZES, "fc_norm.0.weight": (16,)})
    with pytest.raises(HeadError, match=r"norm_before_fc=True .* accepted in this format: false"):
        read_third(norm_before_fc=True)


def test_speculators_layers_of_qwen3() -> None:
    """What equals the class's default is not saved: of Qwen-3, head_dim 128 and 32 key heads."""
    import transformers

    for kind, defaults in (("llama", LLAMA), ("qwen3", QWEN3)):
        config = transformers.AutoConfig.for_model(kind)
        assert {key: getattr(config, key) for key in defaults} == defaults
    layer = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    layer |= {"model_type": "qwen3", "num_attention_heads": 32}
    heads = {"q_proj.weight": (4096, 32), "k_proj.weight": (4096, 32), "v_proj.weight": (4096, 32)}
    heads |= {"o_proj.weight": (16, 4096), "q_norm.weight": (128,), "k_norm.weight": (128,)}
    sizes = {**LAYERED_SIZES, **{f"layers.0.self_attn.{key}": size for key, size in heads.items()}}
    shape = read(SPECULATORS_CONFIG, sizes, transformer_layer_config=layer).head.shape
    assert shape == replace(THIRD, heads=32, kv_heads=32, head_dim=128, query_key_norm=True)
    with pytest.raises(HeadError, match=r"model_type=gemma: accepted: llama, qwen3"):
        read_speculators(transformer_layer_config={**layer, "model_type": "gemma"})


def test_order_of_detection() -> None:
    midlayer = {"midlayer.mlp.up_proj.weight": (24, 16)}
    assert detect({"speculators_model_type": "eagle3"}, {**LAYERED_SIZES, **midlayer}, 16) == "speculators"
    assert detect({}, {**LAYERED_SIZES, **midlayer}, 16) == "safeailab-3"
    assert detect({}, LAYERED_SIZES, 16) == "model-optimizer" and detect({}, FIRST_SIZES, 16) == "safeailab-1"
    with pytest.raises(HeadError, match="no known format"):
        detect({}, {**FIRST_SIZES, "fc.weight": (16, 48)}, 16)


# --- strictness ---------------------------------------------------------------------------------------------------


def test_missing_and_unexpected_keys_are_named() -> None:
    sizes = {key: size for key, size in THIRD_SIZES.items() if not key.startswith("midlayer.mlp")}
    sizes |= {"extra": (1,), "midlayer.self_attn.q_norm.weight": (4,)}
    with pytest.raises(HeadError) as told:
        read(THIRD_CONFIG, sizes)
    assert str(told.value) == (
        "read as EAGLE-3 of SafeAILab or SpecForge: keys 3 missing: midlayer.mlp.down_proj.weight, "
        "midlayer.mlp.gate_proj.weight, midlayer.mlp.up_proj.weight; 2 unexpected: extra, "
        "midlayer.self_attn.q_norm.weight"
    )
    with pytest.raises(HeadError, match=r"keys 4 missing: a, b, c and 1 more; 1 unexpected: x"):
        check_sizes({"x": ()}, {"a": (), "b": (), "c": (), "d": ()}, {})


def test_every_size_is_checked() -> None:
    for key, size in THIRD_SIZES.items():
        wrong = {**THIRD_SIZES, key: (size[0] + 1, *size[1:])}
        tensors = {name: torch.zeros(sizes) for name, sizes in wrong.items()}
        with pytest.raises(HeadError, match=rf"{key} is \[{size[0] + 1}"):
            assemble(THIRD_CONFIG, tensors, TARGET)


@pytest.mark.parametrize(
    ("config", "sizes", "told"),
    [
        (CONFIG, {"medusa_head.0.0.linear.weight": (16, 16)}, "this is a Medusa head"),
        (CONFIG, {"0.0.linear.weight": (16, 16)}, "this is a Medusa head"),
        (CONFIG, {**FIRST_SIZES, "embed_layernorm.weight": (16,)}, "this is a HASS-like EAGLE-1 head"),
        (CONFIG, {"fusion_fc.weight": (16, 32)}, "this is an old speculators eagle head"),
        ({**CONFIG, "speculators_model_type": "eagle"}, FIRST_SIZES, "speculators_model_type=eagle, the old format"),
        ({**CONFIG, "speculators_model_type": "mlp"}, FIRST_SIZES, "speculators_model_type=mlp"),
        ({"speculators_model_type": "eagle3"}, LAYERED_SIZES, "transformer_layer_config=None"),
        (CONFIG, {"a": (1,)}, "no known format with hidden_size=16: a"),
        ({**CONFIG, "hidden_size": 32}, FIRST_SIZES, "no known format with hidden_size=32: fc.bias, fc.weight"),
    ],
)
def test_other_heads_are_refused(config: dict[str, Any], sizes: dict[str, tuple[int, ...]], told: str) -> None:
    with pytest.raises(HeadError, match=told):
        read(config, sizes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("mlp_bias", True),
        ("quantization_config", {"bits": 4}),
        ("logit_scale", 0.5),
        ("use_sliding_window", True),
        ("layer_types", ["sliding_attention"]),
        ("num_aux_hidden_states", 4),
        ("num_attention_heads", "four"),
        ("num_key_value_heads", True),
        ("rms_norm_eps", 0),
        ("norm_before_residual", "yes"),
        ("draft_vocab_size", 41),
        ("eagle_config", {"use_aux_hidden_state": False}),
        ("eagle_config", {"use_last_layernorm": False}),
        ("viasd", {"aux_layer_convention": "inputs"}),
        ("viasd", []),
    ],
)
def test_configs_of_other_heads_are_refused(key: str, value: Any) -> None:
    shown = next(iter(value)) if isinstance(value, dict) and key != "quantization_config" else key
    with pytest.raises(HeadError, match=f"{shown}.*accepted: "):
        read_third(**{key: value})


def test_a_head_of_another_target_is_refused() -> None:
    for target in (TargetSizes(16, 41, 12), TargetSizes(32, 40, 12)):
        with pytest.raises(HeadError, match="made for a target of hidden size 16 and vocabulary 40, this one has"):
            read(THIRD_CONFIG, THIRD_SIZES, target)


def test_quantized_weights_are_refused() -> None:
    tensors = make(THIRD_SIZES)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    with pytest.raises(HeadError, match=r"lm_head.weight is of type int8, not one of float64"):
        assemble(THIRD_CONFIG, tensors, TARGET)


def edited(key: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    tensors = make(THIRD_SIZES)
    return {**tensors, key: change(tensors[key].clone())}


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("d2t", lambda one: one + 1, "d2t leads to ids from 1 to 40, the target has 40"),
        ("d2t", lambda one: one - 1, "d2t leads to ids from -1 to 38"),
        ("d2t", lambda one: -torch.arange(12), "d2t leads to 1 different ids, there are 12 draft ids"),
        ("d2t", lambda one: one.index_fill(0, torch.tensor(2), 1), "d2t and t2d name different ids"),
        ("d2t", lambda one: one.double(), "d2t is of type float64, not int64"),
        ("t2d", lambda one: one.index_fill(0, torch.tensor(2), True), "t2d marks 13 ids, there are 12 draft ids"),
        ("t2d", lambda one: one.long(), "t2d is of type int64, not bool"),
    ],
)
def test_vocabulary_maps_are_checked(key: str, change: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(HeadError, match=told):
        assemble(THIRD_CONFIG, edited(key, change), TARGET)


def test_a_map_one_way_makes_the_other() -> None:
    """Model-Optimizer exports d2t alone; the other formats must have both."""
    loaded = read_optimizer()
    assert loaded.head.t2d.nonzero()[:, 0].tolist() == IDS.tolist() and int(loaded.head.t2d.sum()) == 12
    with pytest.raises(HeadError, match="keys 1 missing: t2d"):
        read(THIRD_CONFIG, {key: size for key, size in THIRD_SIZES.items() if key != "t2d"})
    with pytest.raises(HeadError, match=r"keys 1 missing: lm_head.weight"):
        read(OPTIMIZER_CONFIG, {key: size for key, size in LAYERED_SIZES.items() if key != "lm_head.weight"})


def test_the_whole_vocabulary_needs_no_maps() -> None:
    sizes = {key: size for key, size in THIRD_SIZES.items() if key not in ("d2t", "t2d")}
    sizes["lm_head.weight"] = (40, 16)
    for stated in (40, None):
        head = read(THIRD_CONFIG, sizes, draft_vocab_size=stated).head
        assert head.shape == replace(THIRD, draft_vocabulary=None) and head.draft_ids() is None
    config, tensors = {**THIRD_CONFIG, "draft_vocab_size": 40}, make(sizes)
    tensors |= {"d2t": torch.zeros(40, dtype=torch.long), "t2d": torch.ones(40, dtype=torch.bool)}
    assert assemble(config, tensors, TARGET).head.draft_ids() is None
    with pytest.raises(HeadError, match="d2t or t2d leave ids out"):
        assemble(config, {**tensors, "t2d": torch.arange(40) < 39}, TARGET)


# --- what differs between trainers (eagle.md, section 6, gotchas 1 to 9) ------------------------------------------


def test_gotcha_1_a_missing_theta_is_10000() -> None:
    assert read_third().head.shape.rope == {"rope_type": "default", "rope_theta": 10000.0}
    assert read_third(rope_theta=500000).head.shape.rope["rope_theta"] == 500000.0


def test_gotcha_2_layers_are_counted_by_their_keys() -> None:
    loaded = read_third(num_hidden_layers=40)
    assert loaded.head.shape.layers == 1
    assert loaded.notices == ("num_hidden_layers=40 in config.json, 1 in the weights: read with 1",)
    second = {
        key.replace("layers.0.", "layers.1."): (size[0], 16) if "_proj" in key and size[-1] == 32 else size
        for key, size in LAYERED_SIZES.items()
        if key.startswith("layers.0.") and "hidden_norm" not in key
    }
    deeper = read(SPECULATORS_CONFIG, {**LAYERED_SIZES, **second})
    assert deeper.head.shape == replace(THIRD, layers=2)
    with pytest.raises(HeadError, match=r"missing: layers.1.input_layernorm.weight"):
        read(SPECULATORS_CONFIG, {**LAYERED_SIZES, "layers.2.mlp.up_proj.weight": (24, 16)})


def test_gotcha_3_which_streams_layer_ids_mean() -> None:
    listed = {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}
    assert read_third().head.shape.aux_layers is None and read_third().head.shape.taps(12) == (2, 6, 9)
    original, other = read_third(eagle_config=listed), read_optimizer(eagle_config=listed)
    assert original.head.shape.aux_layers == (1, 5, 8) and other.head.shape.aux_layers == (2, 6, 9)
    assert "read as inputs of these layers" in original.notices[0] and "outputs of these" in other.notices[0]
    for convention, layers in (("input", (1, 5, 8)), ("output", (2, 6, 9))):
        for reader in (read_third, read_optimizer, read_speculators):
            stated = reader(viasd={"aux_layer_convention": convention}, **listed)
            assert stated.head.shape.aux_layers == layers and stated.notices == ()
    assert read_speculators(**listed).head.shape.aux_layers == (1, 5, 8) and read_speculators(**listed).notices == ()
    assert read_speculators(eagle_aux_hidden_state_layer_ids=None).head.shape.aux_layers is None
    for wrong in ([1, 2], [1, 2, 12], [-1, 2, 3], "1", [1, 2, "3"]):
        with pytest.raises(HeadError, match="accepted: three layers from 0 to 11"):
            read_speculators(eagle_aux_hidden_state_layer_ids=wrong)
    with pytest.raises(HeadError, match=r"\(meant as outputs\) .* accepted: three layers from -1 to 10"):
        read_optimizer(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 5, 11]})


def test_gotcha_4_default_layers_are_inputs_not_entries_behind_the_final_norm() -> None:
    assert read_third().head.shape.taps(32) == (2, 16, 29) and max(read_third().head.shape.taps(4)) < 4


def test_gotcha_5_norm_before_residual() -> None:
    for reader in (read_third, read_speculators, read_optimizer):
        assert reader(norm_before_residual=True).head.shape == replace(THIRD, norm_before_residual=True)
        assert not reader().head.shape.norm_before_residual


def test_gotcha_6_both_meanings_of_norm_output() -> None:
    assert read_speculators(norm_output=True).head.shape == replace(THIRD, feed_normed=True)
    assert read_speculators(norm_output=True).notices == () and read_speculators(norm_output=False).head.shape == THIRD
    for value, shape in ((True, replace(THIRD, feed_normed=True)), (False, THIRD)):
        unstated = read_third(norm_output=value)
        assert unstated.head.shape == shape and "norm_output_meaning=logits" in unstated.notices[0]
        stated = read_third(norm_output=value, viasd={"norm_output_meaning": "feed_back"})
        assert stated.head.shape == shape and stated.notices == ()
    logits = {"norm_output_meaning": "logits"}
    assert read_third(norm_output=False, viasd=logits).head.shape == replace(THIRD, norm_logits=False)
    assert read_third(norm_output=True, viasd=logits).head.shape == THIRD
    assert read_third(viasd=logits).head.shape == THIRD
    with pytest.raises(HeadError, match=r"norm_output=True .* accepted in this format: false"):
        read_optimizer(norm_output=True)


def test_gotcha_7_forms_of_rope_scaling() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    for given, found in (
        ({"rope_scaling": None}, {"rope_type": "default"}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"rope_type": "dynamic", "factor": 2.0}),
        ({"rope_scaling": {"rope_type": "llama3", **llama3}}, {"rope_type": "llama3", **llama3}),
        ({"rope_parameters": {"rope_type": "llama3", **llama3}}, {"rope_type": "llama3", **llama3}),
    ):
        assert read_third(**given).head.shape.rope == {**found, "rope_theta": 10000.0}
    inside = {"rope_type": "default", "rope_theta": 5e5}
    for key in ("rope_parameters", "rope_scaling"):
        assert read_third(rope_theta=10000.0, **{key: inside}).head.shape.rope == inside
    for scaling, told in (
        ({"type": "mrope"}, "rope_type=mrope: accepted: default, linear, dynamic, yarn, llama3"),
        ({"type": "linear"}, "rope_type=linear without factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "rope_type=llama3 without low_freq_factor"),
        ({"full_attention": {"rope_type": "default"}}, "one set of rotary parameters"),
    ):
        with pytest.raises(HeadError, match=told):
            read_third(rope_scaling=scaling)
    with pytest.raises(HeadError, match=r"partial_rotary_factor=0.5"):
        read_third(partial_rotary_factor=0.5)


def test_gotcha_8_half_precision_is_kept_until_cast(tmp_path: Path) -> None:
    tensors = make(THIRD_SIZES, torch.float16)
    head = load_head(publish(tmp_path / "half", THIRD_CONFIG, tensors), TARGET)
    assert {weight.dtype for weight in head.parameters()} == {torch.float16}
    cast = head.to(torch.bfloat16)
    assert {weight.dtype for weight in cast.parameters()} == {torch.bfloat16}
    assert cast.d2t.dtype == torch.int64 and cast.t2d.dtype == torch.bool
    assert torch.equal(cast.fc.weight, tensors["fc.weight"].to(torch.bfloat16))


def test_gotcha_9_head_dim() -> None:
    wide = {"q_proj.weight": (32, 32), "k_proj.weight": (16, 32), "v_proj.weight": (16, 32), "o_proj.weight": (16, 32)}
    sizes = {**THIRD_SIZES, **{f"midlayer.self_attn.{key}": size for key, size in wide.items()}}
    assert read_third().head.shape.head_dim == 4
    assert read(THIRD_CONFIG, sizes, head_dim=8).head.shape == replace(THIRD, head_dim=8)
    with pytest.raises(HeadError, match=r"4 tensors differ .*k_proj.weight is \[16, 32\], not \[8, 32\]"):
        read(THIRD_CONFIG, sizes)


def test_the_keys_decide_on_the_bias_of_eagle_1() -> None:
    bare = {key: size for key, size in FIRST_SIZES.items() if key != "fc.bias"}
    assert read(CONFIG, FIRST_SIZES).notices == read(CONFIG, bare, bias=False).notices == ()
    unsaid, wrong = read(CONFIG, bare), read(CONFIG, FIRST_SIZES, bias=False)
    assert not unsaid.head.shape.fc_bias and wrong.head.shape.fc_bias
    assert unsaid.notices == (
        "no bias in config.json, which means true, but the weights have no fc.bias: read as they are",
    )
    assert wrong.notices == ("bias=False, but the weights have an fc.bias: read as they are",)


def test_biases_of_queries_by_their_keys() -> None:
    biases = {f"layers.0.self_attn.{name}_proj.bias": (size,) for name, size in (("q", 16), ("k", 8), ("v", 8))}
    assert read(CONFIG, {**FIRST_SIZES, **biases}, qkv_bias=True).head.shape == replace(FIRST, qkv_bias=True)
    assert read_third(attention_bias=True).notices == ("attention_bias=True in config.json, the weights say False",)
    with pytest.raises(HeadError, match=r"missing: layers.0.self_attn.k_proj.bias, layers.0.self_attn.v_proj.bias"):
        read(CONFIG, {**FIRST_SIZES, "layers.0.self_attn.q_proj.bias": (16,)})


def test_the_wrapper_of_vllm() -> None:
    wrapper = {"model_type": "eagle", "model": CONFIG, "truncated_vocab_size": 40, "eagle_fc_bias": True}
    assert read(wrapper, FIRST_SIZES).head.shape == FIRST and read(wrapper, FIRST_SIZES).notices == ()
    unsaid = {key: value for key, value in wrapper.items() if key != "eagle_fc_bias"}
    for silent in (read(wrapper, FIRST_SIZES, eagle_fc_bias=False), read(unsaid, FIRST_SIZES)):
        assert silent.head.shape.fc_bias and "eagle_fc_bias=False, but the weights have an" in silent.notices[0]
    assert read(wrapper, FIRST_SIZES, num_key_value_heads=2, rope_theta=7.0).head.shape.rope["rope_theta"] == 7.0
    with pytest.raises(HeadError, match=r"truncated_vocab_size=20 .* accepted: 40"):
        read(wrapper, FIRST_SIZES, truncated_vocab_size=20)
    copied = {**FIRST_SIZES, "lm_head.weight": (40, 16)}
    assert "lm_head.weight of vLLM's wrapper is not read" in read(wrapper, copied).notices[0]
    with pytest.raises(HeadError, match=r"1 unexpected: lm_head.weight"):
        read(CONFIG, copied)


@pytest.mark.parametrize(("key", "value"), [("verifier_accept_k", 3), ("accept_tolerance", 0.5)])
def test_lossy_acceptance_is_told(key: str, value: float) -> None:
    methods = [{"proposal_type": "greedy", "verifier_accept_k": 1, "accept_tolerance": 0.0, key: value}]
    loaded = read_speculators(speculators_config={"proposal_methods": methods})
    assert loaded.notices == (f"{key}={value} ask for lossy acceptance: not followed, the method's verifier decides",)
