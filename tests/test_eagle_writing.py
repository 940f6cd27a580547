"""Heads that are written: published names, sizes and fields, and equal heads read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_heads import CONFIG, FIRST, FIRST_SIZES, IDS, LAYERED_SIZES, THIRD, THIRD_CONFIG, THIRD_SIZES
from safetensors.torch import load_file

from baselines.eagle.checkpoints import read_head
from baselines.eagle.fields import TargetSizes
from baselines.eagle.formats import Format
from baselines.eagle.head import EagleHead, HeadShape
from baselines.eagle.writing import write_safeailab, write_speculators


def build(shape: HeadShape) -> EagleHead:
    """A head with random weights, and IDS as its vocabulary where that is reduced."""
    torch.manual_seed(2)
    head = EagleHead(shape)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_()
    if head.d2t is not None:
        head.name_ids(IDS)
    return head


def same(one: EagleHead, other: EagleHead) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
BOTH: list[dict[str, Any]] = [
    {},
    {"qkv_bias": True},
    {"kv_heads": 4, "head_dim": 8, "eps": 1e-5, "max_positions": 128},
    {"rope": {"rope_type": "default", "rope_theta": 5e5}},
    {"rope": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    {"rope": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
]
THIRDS: list[dict[str, Any]] = [
    *BOTH,
    {"draft_vocabulary": None},
    {"fc_norm": True},
    {"norm_before_residual": True},
    {"feed_normed": True},
    {"own_embedding": True},
    {"target_width": 20, "own_embedding": True},
    {"aux_layers": (1, 5, 11)},
]


def check_round_trip(head: EagleHead, folder: Path, found: Format) -> None:
    loaded = read_head(str(folder), TargetSizes(head.shape.target_width, 40, 12))
    assert (loaded.format, loaded.head.shape, loaded.notices) == (found, head.shape, ())
    assert same(loaded.head, head)


@pytest.mark.parametrize("changed", [*BOTH, {"fc_bias": False}, {"layers": 2}], ids=str)
def test_round_trip_of_eagle_1(changed: dict[str, Any], tmp_path: Path) -> None:
    head = build(replace(FIRST, **changed))
    write_safeailab(head, tmp_path / "new")
    check_round_trip(head, tmp_path / "new", "safeailab-1")


@pytest.mark.parametrize("changed", [*THIRDS, {"norm_logits": False}], ids=str)
def test_round_trip_of_eagle_3(changed: dict[str, Any], tmp_path: Path) -> None:
    head = build(replace(THIRD, **changed))
    write_safeailab(head, tmp_path)
    check_round_trip(head, tmp_path, "safeailab-3")


@pytest.mark.parametrize(
    "changed", [*THIRDS, {"norm_before_fc": True}, {"layers": 3}, {"query_key_norm": True, "head_dim": 8}], ids=str
)
def test_round_trip_of_speculators(changed: dict[str, Any], tmp_path: Path) -> None:
    head = build(replace(THIRD, **changed))
    write_speculators(head, tmp_path, "someone/target", ["LlamaForCausalLM"], 7)
    check_round_trip(head, tmp_path, "speculators")


def test_written_names_and_sizes_are_the_published_ones(tmp_path: Path) -> None:
    third = build(THIRD)
    write_safeailab(build(FIRST), tmp_path / "first")
    write_safeailab(third, tmp_path / "third")
    write_speculators(third, tmp_path / "speculators", "someone/target")
    for folder, sizes in (("first", FIRST_SIZES), ("third", THIRD_SIZES), ("speculators", LAYERED_SIZES)):
        written = load_file(tmp_path / folder / "model.safetensors")
        assert {key: tuple(tensor.shape) for key, tensor in written.items()} == sizes
        if "d2t" in written:
            assert (written["d2t"] + torch.arange(12)).tolist() == IDS.tolist()
            assert written["d2t"].dtype == torch.int64 and written["t2d"].dtype == torch.bool


def test_written_configs_have_the_fields_of_their_formats(tmp_path: Path) -> None:
    write_safeailab(build(replace(FIRST, rope=BOTH[4]["rope"])), tmp_path / "first")
    first = json.loads((tmp_path / "first" / "config.json").read_text())
    assert first["bias"] is True and first["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert CONFIG.items() <= first.items()
    write_safeailab(build(THIRD), tmp_path / "third")
    third = json.loads((tmp_path / "third" / "config.json").read_text())
    assert THIRD_CONFIG.items() <= third.items() and "norm_output" not in third
    assert third["viasd"] == {"version": 3, "aux_layer_convention": "input", "norm_output_meaning": "feed_back"}
    biased = build(replace(THIRD, qkv_bias=True))
    write_safeailab(biased, tmp_path / "biased")
    write_speculators(biased, tmp_path / "layered", "someone/target")
    assert json.loads((tmp_path / "biased" / "config.json").read_text())["attention_bias"] is True
    layered = json.loads((tmp_path / "layered" / "config.json").read_text())
    assert layered["transformer_layer_config"]["attention_bias"] is True
    write_speculators(build(THIRD).half(), tmp_path / "speculators", "someone/target", ["LlamaForCausalLM"], 7)
    ours = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert ours["speculators_model_type"] == "eagle3" and ours["eagle_aux_hidden_state_layer_ids"] is None
    assert ours["torch_dtype"] == "float16" and ours["transformer_layer_config"]["hidden_size"] == 16
    assert ours["speculators_config"]["verifier"] == {
        "name_or_path": "someone/target",
        "architectures": ["LlamaForCausalLM"],
    }
    assert ours["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 7


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (replace(THIRD, norm_before_fc=True), "norm_before_fc=true"),
        (replace(THIRD, layers=2), "layers=2"),
        (replace(THIRD, query_key_norm=True), "query_key_norm=true"),
        (replace(THIRD, norm_logits=False, feed_normed=True), "norm_logits=false with feed_normed=true"),
        (replace(THIRD, fc_bias=True), "fc_bias=true"),
    ],
)
def test_what_safeailab_cannot_say_is_refused(shape: HeadShape, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"write_safeailab: a head with {told} cannot be written"):
        write_safeailab(build(shape), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("shape", "told"), [(FIRST, "version=1"), (replace(THIRD, norm_logits=False), "norm_logits=false")]
)
def test_what_speculators_cannot_say_is_refused(shape: HeadShape, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"write_speculators: a head with {told} cannot be written"):
        write_speculators(build(shape), tmp_path / "new", "someone/target")
