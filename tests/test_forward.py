"""Fused forwards: the library's rows, fewer operations, weights that are shared, and models that cannot have them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, build_model
from torch.utils._python_dispatch import TorchDispatchMode

from viasd.engine import Engine, Mode
from viasd.forward import FusedForward, ModuleForward, obstacle
from viasd.models import PairError

IDS = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(3))
PLAIN = [family for family in FAMILIES if family != "gemma2"]
KEPT = [0, 2, 3]


class Operations(TorchDispatchMode):
    """Counts what reaches the kernels, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def rows(model: Any, mode: Mode) -> list[torch.Tensor]:
    """Rows of the target and of its slim view on one cache, with rewinds, for blocks of several lengths."""
    readers = Engine({"target": model}, VOCABULARY, 64, mode).readers()
    target, slim = readers.get("target"), readers.slim(KEPT, "shared")
    with torch.inference_mode():
        found = [target.feed(IDS, 20, 1), slim.feed(IDS, 25, 5), target.feed(IDS, 26, 6)]
        for reader in (target, slim):
            reader.rewind(24)
        return [*found, target.feed(IDS, 25, 1), slim.feed(IDS, 26, 1), slim.feed(IDS, 40, 3), target.feed(IDS, 64, 39)]


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_rows_are_the_librarys(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build_model(family).to(dtype)
    assert obstacle(model) is None
    for ours, theirs in zip(rows(model, "fused"), rows(model, "eager"), strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= tolerance


def test_bfloat16_is_as_near_to_float32_as_the_library() -> None:
    """Both round, at different places: neither may be further from what they approximate."""
    model = build_model("llama")
    exact = rows(copy.deepcopy(model).float(), "eager")
    errors = {
        mode: max(
            float((a - b).abs().max()) for a, b in zip(rows(copy.deepcopy(model).bfloat16(), mode), exact, strict=True)
        )
        for mode in ("eager", "fused")
    }
    assert 0 < errors["fused"] < 1.5 * errors["eager"]


@pytest.mark.parametrize("bias", [False, True])
def test_biases_count(bias: bool) -> None:
    model = build_model("llama", attention_bias=bias, mlp_bias=bias)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7), dtype=weight.dtype)
    for ours, theirs in zip(rows(model, "fused"), rows(model, "eager"), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_fewer_operations() -> None:
    counts = {}
    for mode in ("eager", "fused"):
        reader = Engine({"target": build_model("llama").float()}, VOCABULARY, 64, mode).readers().get("target")
        with torch.inference_mode():
            reader.feed(IDS, 20, 1)
            with Operations() as counted:
                reader.feed(IDS, 21, 1)
        counts[mode] = counted.count
    assert counts["fused"] < 0.65 * counts["eager"], counts


def test_weights_are_shared_with_the_modules() -> None:
    model = build_model("qwen2")
    before = copy.deepcopy(model)
    engine = Engine({"target": model}, VOCABULARY, 64)
    forward = engine.forward(model, "target")
    assert isinstance(forward, FusedForward)
    for name, weight in before.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
    attention, layer = model.model.layers[1].self_attn, forward._layers[1]
    joined = layer.weights.qkv
    assert attention.q_proj.weight.data_ptr() == joined.data_ptr()
    assert attention.v_proj.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    view = engine.forward(engine.view(KEPT), "target")
    assert isinstance(view, FusedForward) and view._layers == [forward._layers[index] for index in KEPT]


def test_what_cannot_be_fused_runs_through_its_modules_or_is_refused() -> None:
    gemma, hooked, dynamic, quantized = (build_model(name) for name in ("gemma2", "llama", "llama", "llama"))
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    dynamic.model.rotary_emb.rope_type = "dynamic"
    quantized.model.layers[0].mlp.up_proj = type("Quantized", (torch.nn.Linear,), {})(32, 48, bias=False).double()
    for model, told in (
        (gemma, "layers of class Gemma2DecoderLayer"),
        (hooked, "modules with hooks"),
        (dynamic, "rotary positions of type dynamic"),
        (quantized, "products of class Quantized"),
    ):
        assert isinstance(Engine({"target": model}, VOCABULARY, 8).forward(model, "target"), ModuleForward)
        with pytest.raises(PairError, match=f"engine.mode=fused: .* has {told}; accepted for it: auto, eager"):
            Engine({"target": model}, VOCABULARY, 8, "fused").forward(model, "target")
