"""Taps: the library's hidden states, but for the last norm; free when off; a verdict carries those of what stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from test_forward import Operations
from test_graphs import Tape
from torch import Tensor

from viasd.decode import Decode, Draft, State, Verdict
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine, Mode
from viasd.method import Method
from viasd.models import Branches
from viasd.reader import Reader
from viasd.sampling import Sampling, SeededDraws
from viasd.taps import Taps
from viasd.verification import RuleVerifier

IDS = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(9))
LAYERS = range(4)
PATHS = [(family, mode) for family in FAMILIES for mode in ("auto", "eager")]


@torch.inference_mode()
def library(model: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """The library's hidden_states [layers + 1] of [n, width], and the input of its last norm.

    Of a copy: the library leaves hooks in a model that it was asked this of.
    """
    model, seen = copy.deepcopy(model), list[Tensor]()
    model.get_decoder().norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    return [state[0] for state in states], seen[0]


def open_target(model: Any, mode: Mode = "auto") -> Reader:
    return Engine({"target": model}, VOCABULARY, 48, mode).readers().get("target")


@torch.inference_mode()
@pytest.mark.parametrize(("family", "mode"), PATHS)
def test_streams_are_the_librarys_hidden_states(tiny: ModelFactory, family: str, mode: Mode) -> None:
    """On a cache, for several lengths, longer than the window; the last one is what enters the last norm."""
    model = tiny(family, exact=family == "gemma2")
    expected, final = library(model, IDS)
    reader = open_target(model, mode)
    reader.tap(LAYERS)
    reader.feed(IDS, 9, last=0)
    assert reader.tapped is None  # a prompt is not kept unless asked for
    for stop in (10, 13, 40):
        start = reader.read
        reader.feed(IDS, stop, last=1)
        taps = reader.tapped
        assert taps is not None and (taps.start, taps.stop, list(taps.streams)) == (start, stop, list(LAYERS))
        for layer in LAYERS:
            assert (taps.streams[layer] - expected[layer][start:stop]).abs().max() < 1e-10
        assert (taps.top - final[start:stop]).abs().max() < 1e-10
        assert (taps.top - expected[4][start:stop]).abs().max() > 0.1  # the trap: that is normed


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["fused", "eager"])
def test_only_what_is_asked_for_and_of_the_prompt_if_asked_for(tiny: ModelFactory, mode: Mode) -> None:
    model = tiny("llama")
    expected, final = library(model, IDS[:20])
    reader = open_target(model, mode)
    reader.tap([1, 3], prompt=True)
    reader.feed(IDS, 20, last=0)
    taps = reader.tapped
    assert taps is not None and list(taps.streams) == [1, 3] and (taps.top - final).abs().max() < 1e-10
    part = taps.before(15)
    assert (part.start, part.stop) == (0, 15) and torch.equal(part.streams[3], taps.streams[3][:15])
    assert (part.streams[3] - expected[3][:15]).abs().max() < 1e-10
    reader.tap(None)
    reader.feed(IDS, 22, last=1)
    assert reader.tapped is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["fused", "eager"])
def test_a_view_names_layers_as_the_whole_model_does(tiny: ModelFactory, mode: Mode) -> None:
    kept = Branches(attention=(0, 2), mlp=(0, 3))
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 48, mode)
    reader = engine.readers().slim(kept, "separate")
    reader.tap(LAYERS)
    reader.feed(IDS, 9, last=1)
    taps = reader.tapped
    assert taps is not None and list(taps.streams) == [0, 2, 3]
    expected, final = library(engine.view(kept), IDS[:9])
    assert (taps.top - final).abs().max() < 1e-10 and (taps.streams[3] - expected[2]).abs().max() < 1e-10


@torch.inference_mode()
def test_recorded_forwards_can_be_tapped(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 48)
    engine.record = Tape()
    reader = engine.readers().get("target")
    expected, final = library(tiny("llama"), IDS)
    for stop in (10, 11):
        reader.feed(IDS, stop, last=1)
    reader.tap(LAYERS)
    reader.feed(IDS, 14, last=1)
    assert reader.tapped is not None and (reader.tapped.top - final[11:14]).abs().max() < 1e-10
    assert (reader.tapped.streams[2] - expected[2][11:14]).abs().max() < 1e-10
    reader.tap(None)
    assert reader.feed(IDS, 15, last=1).isfinite().all() and reader.tapped is None


@torch.inference_mode()
def test_free_when_off_and_no_operation_when_on(tiny: ModelFactory) -> None:
    reader, counts = open_target(tiny("llama")), []
    reader.feed(IDS, 20, 1)
    for layers in (None, LAYERS):
        reader.tap(layers)
        reader.rewind(20)
        with Operations() as counted:
            reader.feed(IDS, 21, 1)
        counts.append(counted.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_a_verdict_carries_those_of_the_tokens_that_stand(
    tiny: ModelFactory, variant: ModelFactory, family: str
) -> None:
    target = tiny(family, exact=family == "gemma2")
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)
    method = Method(name="m", drafter=DraftModel(), stop=FixedLength(length=4), verifier=RuleVerifier())
    decoder = method.open(engine)
    found: list[tuple[Taps | None, int]] = []

    class Observer(type(decoder.drafter)):  # type: ignore[misc]
        def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
            found.append((verdict.taps, verdict.kept))

    decoder.drafter.__class__ = Observer
    prompt, decode = IDS[:5].tolist(), Decode(Sampling(temperature=1.0), 24)
    decoder.generate(prompt, decode, SeededDraws(0, "a"))
    assert found and all(taps is None for taps, _ in found)
    found.clear()
    decoder.readers.get("target").tap(LAYERS)  # type: ignore[attr-defined]
    output = decoder.generate(prompt, decode, SeededDraws(0, "a")).token_ids
    expected, final = library(target, torch.tensor(prompt + output))
    position = len(prompt) - 1
    assert {kept for _, kept in found} >= {0, 1}
    for taps, kept in found:
        assert taps is not None and (taps.start, taps.stop) == (position, position + 1 + kept)
        assert (taps.top[: len(final) - position] - final[position : taps.stop]).abs().max() < 1e-10
        assert (taps.streams[2] - expected[2][position : taps.stop]).abs().max() < 1e-10
        position = taps.stop
