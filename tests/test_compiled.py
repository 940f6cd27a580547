"""Compiled layers: the fused rows, one code for all layers and views of a model, and machines that cannot compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory, build_model

from viasd.compiled import CompiledForward, LayerCompiler, compile_obstacle
from viasd.engine import Engine, Mode
from viasd.models import PairError

IDS = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(3))
PLAIN = ["llama", "qwen2", "qwen3", "mistral", "tied"]
KEPT = [0, 2, 3]
LENGTHS = [6, 1, 2, 3, 5, 8, 4, 7, 1, 2]


class Counting:
    """A backend that runs what it is given as it is, and counts how often that is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return module.forward


def rows(engine: Engine) -> list[torch.Tensor]:
    """Rows of target, view and draft for blocks of several lengths, with rewinds."""
    readers = engine.readers()
    opened = [readers.get("target"), readers.slim(KEPT, "shared"), readers.get("draft")]
    with torch.inference_mode():
        found = [reader.feed(IDS, 20, 1) for reader in (opened[0], opened[2])]
        stop = 20
        for fed in LENGTHS:
            stop += fed
            found += [opened[place].feed(IDS, stop, fed) for place in (1, 0, 2)]
            for reader in opened:
                reader.rewind(stop - 1)
            found += [opened[place].feed(IDS.flip(0), stop, 1) for place in (1, 0, 2)]
            for reader in opened:
                reader.rewind(stop - 1)
    return found


def pair(family: str) -> dict[str, Any]:
    return {"target": build_model(family), "draft": build_model("llama", seed=1, layers=2, hidden_size=16)}


@pytest.mark.parametrize("family", PLAIN)
def test_few_compilations_serve_all_layers_views_and_lengths(family: str) -> None:
    models, backend = pair(family), Counting()
    engine = Engine(models, VOCABULARY, 64, "compile")
    engine.compiler = LayerCompiler(backend)
    for ours, theirs in zip(rows(engine), rows(Engine(models, VOCABULARY, 64, "fused")), strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    assert 0 < backend.count <= 8  # of two models: for one token, for more, and before sizes were known to change
    view = engine.forward(engine.view(KEPT), "target")
    target = engine.forward(models["target"], "target")
    assert isinstance(view, CompiledForward) and isinstance(target, CompiledForward)
    assert len({id(step) for step in (*target._steps, *view._steps)}) == 1


def test_functionalized_layers_write_the_same(tiny: ModelFactory) -> None:
    """What compilers see has no writes: torch puts them back behind the code."""
    models = pair("llama")
    engine = Engine(models, VOCABULARY, 64, "compile")
    engine.compiler = LayerCompiler("aot_eager")
    for ours, theirs in zip(rows(engine), rows(Engine(models, VOCABULARY, 64, "fused")), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.skipif(compile_obstacle(torch.device("cpu"), "inductor") is not None, reason="needs a C++ compiler")
def test_real_code() -> None:
    model, found = build_model("llama", layers=1), []
    modes: tuple[Mode, Mode] = ("compile", "fused")
    for mode in modes:
        reader = Engine({"target": model}, VOCABULARY, 32, mode).readers().get("target")
        with torch.inference_mode():
            found.append([reader.feed(IDS, 8, 1), reader.feed(IDS, 9, 1), reader.feed(IDS, 10, 1)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-10


def test_machines_that_cannot_compile_are_told_so_at_once(tiny: ModelFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    told = r"engine\.mode=compile: .* C\+\+ compiler, and there is none .*; accepted here: auto, eager, fused"
    with pytest.raises(PairError, match=told):
        Engine({"target": tiny("llama")}, VOCABULARY, 8, "compile").readers().get("target")
    with pytest.raises(PairError, match=r"engine\.mode=compile: a model of this pair has layers of class Gemma2"):
        Engine({"target": tiny("gemma2")}, VOCABULARY, 8, "compile").readers().get("target")
