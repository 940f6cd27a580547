"""Views with one branch of a layer left out: what they compute, and that the target does not notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory, build_model
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from viasd.compiled import LayerCompiler
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine, Mode
from viasd.forward import FusedForward, ModuleForward, obstacle
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Branches, PairError, check_kept, make_view, name_kept
from viasd.routing import RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import SlimView

IDS = torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(6))
KEPT = Branches(attention=(0, 1, 3), mlp=(0, 3))  # layer 1 has no mlp, layer 2 nothing
OTHER = Branches(attention=(0, 3), mlp=(0, 1, 2, 3))
NOTHING = Branches(attention=(), mlp=(1, 2))
PLAIN = [family for family in FAMILIES if family != "gemma2"]


def zeroed(model: Any, kept: Branches) -> Any:
    """A copy in which the products that end a left-out branch are zero: it adds nothing, by other means."""
    twin = copy.deepcopy(model)
    for index, layer in enumerate(twin.get_decoder().layers):
        if index not in kept.attention:
            layer.self_attn.o_proj.weight.zero_()
        if index not in kept.mlp:
            layer.mlp.down_proj.weight.zero_()
    return twin


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS[None], use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [KEPT, OTHER], ids=["layer gone", "mlp alone"])
def test_a_left_out_branch_adds_nothing(tiny: ModelFactory, family: str, kept: Branches) -> None:
    model = tiny(family)
    before, weights = logits(model), {name: one.data_ptr() for name, one in model.named_parameters()}
    view = make_view(model, kept)
    assert (logits(view) - logits(zeroed(model, kept))).abs().max() < 1e-10
    assert (logits(view) - before).abs().max() > 0.01
    assert torch.equal(logits(model), before)  # bit for bit
    assert {name: one.data_ptr() for name, one in model.named_parameters()} == weights
    assert {one.data_ptr() for one in view.parameters()} <= set(weights.values())  # nothing was copied
    assert all(hasattr(layer.self_attn, "q_proj") and hasattr(layer.mlp, "up_proj") for layer in model.model.layers)


def test_whole_layers_as_branches(tiny: ModelFactory) -> None:
    """Layers that keep both branches are the layers themselves."""
    model = tiny("qwen2")
    view, plain = make_view(model, Branches(attention=(0, 2, 3), mlp=(0, 2, 3))), make_view(model, [0, 2, 3])
    assert torch.equal(logits(view), logits(plain))
    assert list(view.get_decoder().layers) == [model.get_decoder().layers[index] for index in (0, 2, 3)]
    assert view.get_decoder().config.layer_types == plain.get_decoder().config.layer_types


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["shared", "separate"])
def test_cached_rows_are_the_uncached_ones(tiny: ModelFactory, family: str, cache: str) -> None:
    """Alone on its cache it is the uncached view; on the target's, an earlier token is the target's to remember."""
    model = tiny(family, exact=family == "gemma2")
    readers = Engine({"target": model}, VOCABULARY, 32).readers()
    target, slim = readers.get("target"), readers.slim(OTHER, cache)
    with torch.inference_mode():
        rows = [slim.feed(IDS, 9, 1), slim.feed(IDS, 10, 1), slim.feed(IDS, 24, 14)]
        assert (torch.cat(rows) - logits(make_view(model, OTHER))[8:]).abs().max() < 1e-10
        own = target.feed(IDS, 24, 24)
        assert (own - logits(model)).abs().max() < 1e-10
        slim.rewind(9)
        assert slim.read == (24 if cache == "shared" else 9)


def rows(model: Any, mode: Mode, cache: str) -> list[Tensor]:
    """Rows of views with branches left out, of the target beside them, with rewinds and blocks of several lengths."""
    engine = Engine({"target": model}, VOCABULARY, 32, mode)
    engine.compiler = LayerCompiler("eager")
    readers = engine.readers()
    target = readers.get("target")
    views = [
        readers.slim(kept, cache, role, target) for role, kept in (("one", KEPT), ("other", OTHER), ("none", NOTHING))
    ]
    with torch.inference_mode():
        found = [target.feed(IDS, 10, 1)]
        for reader in views:
            found += [reader.feed(IDS, 12, 1), reader.feed(IDS, 13, 1), reader.feed(IDS, 20, 7)]
            for one in (target, *views):
                one.rewind(10)
        found.append(target.feed(IDS, 14, 4))
        return [*found, *(reader.feed(IDS, 24, 2) for reader in views)]


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("mode", ["fused", "compile"])
def test_rows_are_the_modules(family: str, cache: str, mode: Mode) -> None:
    model = build_model(family)
    for ours, theirs in zip(rows(model, mode, cache), rows(model, "eager", cache), strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-12


def test_biases_and_norms_of_a_left_out_branch_are_left_out() -> None:
    model = build_model("llama", attention_bias=True, mlp_bias=True)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7), dtype=weight.dtype)
    for ours, theirs in zip(rows(model, "fused", "shared"), rows(model, "eager", "shared"), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_engine(tiny: ModelFactory) -> None:
    """Views run fused on the target's weights, through modules where the target does, and are made once."""
    model = tiny("llama")
    engine = Engine({"target": model}, VOCABULARY, 32)
    view = engine.view(KEPT)
    assert engine.view(Branches(attention=(0, 1, 3), mlp=(0, 3))) is view and list(engine.views) == [KEPT]
    assert obstacle(view) is None and obstacle(model) is None
    ours, whole = engine.forward(view, "target"), engine.forward(model, "target")
    assert isinstance(ours, FusedForward) and isinstance(whole, FusedForward)
    assert [(layer.index, layer.attention, layer.mlp) for layer in ours._layers] == [
        (0, True, True),
        (1, True, False),
        (3, True, True),
    ]
    assert ours._layers[0] is whole._layers[0] and ours._layers[1].weights is whole._layers[1].weights
    assert all(layer.attention and layer.mlp for layer in whole._layers)
    gemma = Engine({"target": tiny("gemma2")}, VOCABULARY, 32)
    assert isinstance(gemma.forward(gemma.view(KEPT), "target"), ModuleForward)
    with pytest.raises(PairError, match=r"engine\.mode=fused: a model of this pair has layers of class Gemma2"):
        Engine({"target": tiny("gemma2")}, VOCABULARY, 32, "fused").readers().slim(KEPT, "shared")


@pytest.mark.parametrize("cache", ["shared", "separate"])
def test_via_sd_decodes_with_branches(tiny: ModelFactory, variant: ModelFactory, cache: Any) -> None:
    """With a gate that keeps nothing the output is the target's, and the slim view ran."""
    target = tiny("llama")
    slim = SlimView(mask=KEPT, cache=cache)
    verifier = Hierarchical(gate=RatioGate(accept_ratio=1.0, escalate_ratio=1.0), slim=slim, bonus="none")
    method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=3), verifier=verifier)
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)
    generation = method.open(engine).generate(IDS[:6].tolist(), Decode(Sampling(), 12), SeededDraws(0, "a"))
    assert len(generation.token_ids) == 12 and generation.calls["slim"] > 0
    assert engine.views.keys() == {KEPT}


def test_layers_of_other_parts() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(PairError, match=r"GPTNeoXLayer have no self_attn; accepted here: a mask of whole layers"):
        make_view(GPTNeoXForCausalLM(config), Branches(attention=(0,), mlp=(0, 1)))


def test_spec() -> None:
    made = TypeAdapter(SlimView).validate_python({"mask": {"attention": [0, 3], "mlp": [0, 1]}})
    assert made.mask == Branches(attention=(0, 3), mlp=(0, 1))
    assert hash(made.mask) == hash(Branches(attention=(0, 3), mlp=(0, 1)))
    assert name_kept(made.mask) == "a0 a3 m0 m1" and name_kept([0, 2]) == "0 2"
    with pytest.raises(ValidationError, match="atention"):
        Branches(atention=(0,), mlp=(0,))  # type: ignore[call-arg]


@pytest.mark.parametrize("kept", [((), ()), ((1, 0), (0,)), ((0,), (4,)), ((0, 0), (1,)), ((-1,), (1,))])
def test_impossible_branches(kept: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(PairError, match=r"mask=a?.*: accepted: ascending layer numbers from 0 to 3"):
        check_kept(Branches(attention=kept[0], mlp=kept[1]), 4, "mask=")
    check_kept(Branches(attention=(), mlp=(0,)), 4, "mask=")
