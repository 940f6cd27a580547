"""Wider networks compute the same, cost what their size says, and are refused where they cannot."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call
from conftest import VOCABULARY, build_model
from hydra import compose, initialize_config_dir
from test_forward import rows
from test_models import saved_pair
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.utils import logging as library_logging

from experiments import run
from experiments.config import CHECKOUT, make
from experiments.identity import model_hash
from experiments.pairs import WidePair, pair_folder
from viasd.engine import Engine, Mode
from viasd.models import Pair, PairError, load_model, make_view, read_mask
from viasd.widening import (
    SCALES,
    WRITERS,
    Widths,
    outline,
    own_widths,
    parameter_count,
    widened,
    widths,
    widths_at,
)

IDS = torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "ungrouped": {"num_key_value_heads": 4},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
}
TARGETS = {
    "12x256": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 12, "num_attention_heads": 4},
    "16x224": {"hidden_size": 224, "intermediate_size": 608, "num_hidden_layers": 16, "num_attention_heads": 4},
}
DRAFT = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_source(shape: str = "grouped", **settings: Any) -> Any:
    """A tiny random Llama whose norms and biases matter."""
    model = build_model("llama", **SHAPES[shape], **settings)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


def largest_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.fixture
def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in float64: the library and our fused layers compute them in float32, whatever the model's type."""

    def library(norm: Any, states: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)

    def fused(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return functional.rms_norm(states, weight.shape, weight, eps)

    monkeypatch.setattr(LlamaRMSNorm, "forward", library)
    monkeypatch.setattr("viasd.layers.normalize", fused)
    monkeypatch.setattr("viasd.forward.normalize", fused)


# --- the same function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [32, 64, 96, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("double_norms")
def test_same_logits(shape: str, residual: int) -> None:
    source = make_source(shape)
    wide = widened(source, widths_at(source.config, residual))
    assert wide.config.hidden_size == residual and wide.dtype == torch.float64
    for kept in ([0, 1, 2, 3], [0, 2, 3]):
        logits = [make_view(model, kept)(input_ids=IDS, use_cache=False).logits for model in (source, wide)]
        assert largest_gap(*logits) <= 1e-12


@pytest.mark.parametrize("mode", ["eager", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("double_norms")
def test_same_rows_on_a_cache(shape: str, mode: Mode) -> None:
    """The target's and its slim view's, with a shared cache and rewinds."""
    source = make_source(shape)
    wide = widened(source, Widths(96, 12, 64))
    for ours, theirs in zip(rows(wide, mode), rows(source, mode), strict=True):
        assert largest_gap(ours, theirs) <= 1e-12


def test_norms_of_the_library_round_to_float32() -> None:
    source = make_source()
    wide = widened(source, Widths(64, 8, 192))
    assert largest_gap(wide(IDS).logits, source(IDS).logits) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_round_no_more_than_the_source_does(dtype: torch.dtype) -> None:
    source = make_source(initializer_range=0.1)
    right = source(IDS).logits
    wide, narrow = widened(source, Widths(64, 8, 192), dtype), copy.deepcopy(source).to(dtype)
    assert wide.dtype == dtype
    errors = [float((model(IDS).logits - right).pow(2).mean().sqrt()) for model in (wide, narrow)]
    assert 0 < errors[0] < 2 * errors[1]


def test_heads_stay_in_their_group() -> None:
    """Query heads 0, 1 read the first keys and 2, 3 the second; with 6 to a group, 0, 1 and 6, 7 are the old ones."""
    source = make_source()
    wide = widened(source, Widths(96, 12, 64))
    new, old = (
        model.model.layers[0].self_attn.q_proj.weight.view(-1, 8, model.config.hidden_size) for model in (wide, source)
    )
    assert torch.equal(new[[0, 1, 6, 7], :, :32], old)


def test_source_is_left_alone() -> None:
    source = make_source("tied")
    before = copy.deepcopy(source)
    wide = widened(source, Widths(64, 8, 192))
    assert all(torch.equal(weight, before.get_parameter(name)) for name, weight in source.named_parameters())
    assert source.config.tie_word_embeddings and not wide.config.tie_word_embeddings
    assert not any(weight.requires_grad for weight in wide.parameters()) and not wide.training


# --- what is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_what_must_be_zero_is_zero(shape: str, dtype: torch.dtype) -> None:
    source = make_source(shape)
    wide = widened(source, Widths(96, 12, 128), dtype)
    assert {name for name, _ in wide.named_parameters()} - {name for name, _ in source.named_parameters()} <= {
        "lm_head.weight"
    }
    for name, weight in wide.named_parameters():
        old, writes = source.get_parameter(name), name.split(".")[-2] in WRITERS
        added = weight.numel() - old.numel()
        zeros = int((weight == 0).sum()) - int((old == 0).sum())  # the embedding of the padding mark
        assert zeros == (added if writes else 0), name
        if added > 1000 and not writes:  # of the size of initial weights, like what was there
            assert float(weight.double().std()) == pytest.approx(source.config.initializer_range, rel=0.15), name
        assert bool(weight.isfinite().all())


def test_seeds() -> None:
    source = make_source()
    first, again, other = (widened(source, Widths(64, 8, 192), seed=seed) for seed in (3, 3, 4))
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
        assert torch.equal(weight, other.get_parameter(name)) == (name.split(".")[-2] in WRITERS), name
    assert largest_gap(first(IDS).logits, other(IDS).logits) < 1e-3


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("target", TARGETS)
def test_scales(target: str, scale: str) -> None:
    """Parameters within 5% and the shape of a Llama, on the meta device."""
    config, draft = (LlamaConfig(vocab_size=1280, **shape) for shape in (TARGETS[target], DRAFT))
    share = parameter_count(draft) / parameter_count(config)
    for one, parameters in ((config, SCALES[scale]), (draft, round(share * SCALES[scale]))):
        size = widths(one, parameters)
        model = outline(one, size)
        assert all(weight.is_meta for weight in model.parameters())
        assert model.num_parameters() == parameter_count(one, size) == pytest.approx(parameters, rel=0.05)
        assert size.residual == size.heads * one.head_dim and size.heads % one.num_key_value_heads == 0
        assert size.units % 64 == 0 and 2.4 < size.units / size.residual < 3
        assert model.config.num_key_value_heads == one.num_key_value_heads


def test_widths_of_a_given_residual_stream() -> None:
    config = LlamaConfig(vocab_size=1280, **TARGETS["16x224"])
    assert widths_at(config, 224) == own_widths(config)
    assert widths_at(config, 1792) == Widths(1792, 32, 4864)
    assert widths_at(config, 256) == Widths(256, 4, 704)


def test_refusals() -> None:
    config = make_source().config
    own = parameter_count(config)
    with pytest.raises(PairError, match=rf"widening to {own - 1} parameters; .* at least {own}"):
        widths(config, own - 1)
    with pytest.raises(PairError, match=r"widening to 16 channels; .* at least 32"):
        widths_at(config, 16)
    with pytest.raises(PairError, match=r"widening to 33 channels; .* a multiple of 4 or of a larger multiple of 2"):
        widths_at(config, 33)
    with pytest.raises(PairError, match=r"widening to Widths\(residual=64, heads=2, .*at least Widths\(residual=32"):
        widened(make_source(), Widths(64, 2, 64))
    for family in ("mistral", "qwen2"):
        with pytest.raises(PairError, match=f"type {family} cannot be widened; accepted: llama"):
            widths(build_model(family).config, 10**6)


# --- the script ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The module under test; scripts are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "scripts")
        library_logging.disable_progress_bar()
        return importlib.import_module("widen_pair")


@pytest.fixture
def source(tmp_path: Path, script: ModuleType) -> Path:
    """A pair of tiny models with two masks, one of them for another model."""
    folder = tmp_path / "source"
    saved_pair(folder, make_source(), make_source(layers=1))
    (folder / "masks").mkdir()
    for name, owner in (("right", model_hash(folder / "target")), ("wrong", "0" * 16)):
        mask = {"kept": [0, 2, 3], "agreement": 0.9, "target_hash": owner}
        (folder / "masks" / f"{name}.json").write_text(json.dumps(mask))
    return folder


Called = tuple[int, str, str]


def widen(capsys: pytest.CaptureFixture[str], script: ModuleType, source: Path, out: Path, *typed: str) -> Called:
    """Exit code, output and errors of the script, for 64 channels in float64."""
    options = [*([] if "--width" in typed else ["--width", "64"]), "--dtype", "float64", *typed]
    return call(capsys, script.main, "--source", str(source), "--out", str(out), *options)


def test_script(capsys: pytest.CaptureFixture[str], script: ModuleType, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs" / "wide"
    code, told, errors = widen(capsys, script, source, out, "--check")
    assert (code, errors) == (0, "")
    assert "target: 4 layers x 64, 8 heads, 192 units: " in told and "1.000 of the choices are the same" in told
    assert "mask wrong.json is left out" in told
    assert sorted(path.name for path in out.iterdir()) == ["draft", "masks", "target"]
    assert [path.name for path in out.parent.iterdir()] == ["wide"]
    pair = Pair(name="wide", models={role: str(out / role) for role in ("target", "draft")})
    for role, layers in (("target", 4), ("draft", 1)):
        model = load_model(pair, role, torch.float64, torch.device("cpu"))
        assert model.config.num_hidden_layers == layers and model.config.hidden_size > 32
        assert largest_gap(model(IDS).logits, make_source(layers=layers)(IDS).logits) < 1e-3
        for path in (source / role).glob("tokenizer*"):
            assert (out / role / path.name).read_bytes() == path.read_bytes()
    assert Engine.load(pair, ("target", "draft"), "cpu", "float64", 8).vocabulary == 20
    assert read_mask(str(out / "masks" / "right.json"), model_hash(out / "target"), 4) == [0, 2, 3]
    assert [path.name for path in (out / "masks").iterdir()] == ["right.json"]


def test_script_replaces_a_pair_only_when_told(
    capsys: pytest.CaptureFixture[str], script: ModuleType, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "wide"
    (out / "target").mkdir(parents=True)
    (out / "target" / "old.txt").touch()
    (out / "notes.txt").touch()
    code, _, errors = widen(capsys, script, source, out)
    assert code == 2 and errors.startswith(f"error: --out={out}: is there and not empty") and "--force" in errors
    assert (out / "target" / "old.txt").exists()
    assert widen(capsys, script, source, out, "--force")[0] == 0
    assert not (out / "target" / "old.txt").exists() and (out / "target" / "config.json").exists()
    assert (out / "notes.txt").exists(), "only folders of a pair may go"


def test_script_refuses(
    capsys: pytest.CaptureFixture[str],
    script: ModuleType,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with one line, and without leaving anything behind."""
    out, other = tmp_path / "wide", tmp_path / "other"
    saved_pair(other, build_model("mistral"), make_source(layers=1))
    refused = [
        (widen(capsys, script, source, source, "--force"), "that is the pair to widen"),
        (widen(capsys, script, source, out, "--width", "16"), "widening to 16 channels"),
        (widen(capsys, script, other, out), "a model of type mistral cannot be widened"),
        (widen(capsys, script, tmp_path / "nowhere", out), "nowhere/target: no model there"),
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    refused.append((widen(capsys, script, source, out), "GB free"))
    for (code, _, errors), part in refused:
        (line,) = errors.splitlines()
        assert code == 2 and line.startswith("error: ") and part in line, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "source"]


def test_script_writes_nothing_that_fails_its_check(
    capsys: pytest.CaptureFixture[str],
    script: ModuleType,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(*arguments: Any) -> Any:
        model = widened(*arguments)
        model.model.layers[1].mlp.down_proj.weight[0, 40] = 1
        return model

    monkeypatch.setattr(script, "widened", wrong)
    code, _, errors = widen(capsys, script, source, tmp_path / "pairs" / "wide", "--check")
    assert code == 1 and "computes something else" in errors
    assert not list((tmp_path / "pairs").iterdir())


# --- the configuration --------------------------------------------------------------------------------------------


def compose_pair(*overrides: str) -> Any:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        return make(compose("config", ["pair=reference_wide", *overrides])["pair"], "pair")


def test_wide_pair_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIASD_RESULTS", raising=False)
    pair = compose_pair()
    assert isinstance(pair, WidePair) and pair.name == "reference_1b"
    assert pair.models["target"] == str(CHECKOUT / "results" / "pairs" / "reference_1b" / "target")
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    assert compose_pair("pair.scale=7b").models["draft"] == str(tmp_path / "pairs" / "reference_7b" / "draft")
    pair = compose_pair("pair.scale=3b", f"pair.folder={tmp_path}", "+pair.models.draft=elsewhere")
    assert pair.name == "reference_3b"
    assert pair.models == {"target": str(tmp_path / "reference_3b" / "target"), "draft": "elsewhere"}


def test_wide_pair_that_was_made(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "reference_1b")
    pair = compose_pair(f"pair.folder={tmp_path}")
    assert pair.path("draft") == pair_folder("1b", str(tmp_path)) / "draft"
    assert [Path(mask).name for mask in pair.masks] == ["right.json", "wrong.json"]


def test_wide_pair_that_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType
) -> None:
    """One line with a command that makes it where it was looked for."""
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    code, out, errors = call(capsys, run.main, "pair=reference_wide", "pair.scale=3b", "track=none")
    (line,) = errors.splitlines()
    assert code == 2 and out == "" and line.startswith("error: pair.scale=3b: ")
    command = line.partition("python scripts/widen_pair.py ")[2].split()
    options = script.parse(command)
    assert options.scale == "3b" and options.out == tmp_path / "pairs" / "reference_3b"
    assert script.parse(["--scale", "3b"]).out == options.out
    code, _, errors = call(capsys, run.main, "pair=reference_wide", "pair.scale=2b", "track=none")
    assert code == 2 and errors.startswith("error: pair.scale='2b': ") and "'7b'" in errors
