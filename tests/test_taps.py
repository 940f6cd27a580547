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
from transformers import DynamicCache

from viasd.decode import Decode, Draft, State, Verdict
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine, Mode
from viasd.method import Method
from viasd.models import Branches, Kept, make_view
from viasd.reader import Reader
from viasd.sampling import Sampling, SeededDraws
from viasd.taps import Taps
from viasd.trees import Nodes
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


VIEWS: dict[str, Kept] = {
    "ends": [0, 3],
    "first_half": [0, 1],  # nothing is kept behind layers 2 and 3
    "last": [3],
    "branches": Branches(attention=(0, 2), mlp=(0, 3)),
    "all": [0, 1, 2, 3],
}


def by_hand(model: Any, kept: Kept, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """For each layer of the whole model the stream that enters the first kept one from there on; and the last stream.

    The view's layers as the library runs them, without our cache; written out anew, layer by layer.
    """
    states, final = library(make_view(model, kept), ids)
    indices = sorted({*kept.attention, *kept.mlp}) if isinstance(kept, Branches) else list(kept)
    streams = {}
    for layer in LAYERS:
        behind = [place for place, index in enumerate(indices) if index >= layer]
        streams[layer] = states[behind[0]] if behind else final
    return streams, final


@torch.inference_mode()
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("family", "mode"), PATHS)
def test_a_skipped_layer_has_the_stream_into_the_next_kept_one(
    tiny: ModelFactory, family: str, mode: Mode, view: str
) -> None:
    target, kept = tiny(family, exact=family == "gemma2"), VIEWS[view]
    expected, final = by_hand(target, kept, IDS[:30])
    reader = Engine({"target": target}, VOCABULARY, 48, mode).readers().slim(kept, "separate")
    for wanted in ([2], [1, 3, 1], LAYERS, []):  # in any order, one twice
        reader.start()
        reader.tap(wanted, whole=False)
        for stop in (20, 22, 30):
            start = reader.read
            reader.feed(IDS, stop, last=1)
            taps = reader.tapped
            assert taps is not None and not taps.whole and list(taps.streams) == sorted(set(wanted))
            for layer in wanted:
                assert (taps.streams[layer] - expected[layer][start:stop]).abs().max() < 1e-10
            assert (taps.top - final[start:stop]).abs().max() < 1e-10
    assert not any(module._forward_pre_hooks for module in target.modules())


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["fused", "eager"])
def test_slim_streams_behind_what_the_target_read_and_down_a_tree(tiny: ModelFactory, mode: Mode) -> None:
    """On the target's cache they are what the view makes of the target's keys; and so for nodes of a tree."""
    target, kept = tiny("llama"), [0, 3]
    readers = Engine({"target": target}, VOCABULARY, 48, mode).readers()
    reader = readers.slim(kept, "shared")
    readers.get("target").feed(IDS, 12, last=1)
    reader.tap(LAYERS, whole=False)
    reader.feed(IDS, 20, last=1)
    cache, seen = DynamicCache(), list[Tensor]()
    target(IDS[None, :12], past_key_values=cache, use_cache=True)
    view = copy.deepcopy(make_view(target, kept))
    for layer in view.get_decoder().layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    view(IDS[None, 12:20], past_key_values=cache, use_cache=True)
    assert reader.tapped is not None and reader.tapped.start == 12
    for layer, place in ((0, 0), (1, 1), (2, 1), (3, 1)):
        assert (reader.tapped.streams[layer] - seen[place]).abs().max() < 1e-10
    chain = Nodes(IDS[20:22], torch.tensor([1, 2]), torch.tensor([[True, False], [True, True]]), torch.tensor([-1, 0]))
    reader.feed_nodes(IDS, 20, chain, last=1)
    assert reader.tapped is not None and not reader.tapped.whole
    nodes = reader.tapped.streams[1].clone()
    reader.keep(20, [])
    reader.feed(IDS, 22, last=1)
    assert (nodes - reader.tapped.streams[2]).abs().max() < 1e-10 and len(nodes) == 2


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
    streams, _ = by_hand(tiny("llama"), [0, 3], IDS[:14])
    slim = engine.readers().slim([0, 3], "separate")
    slim.feed(IDS, 12, last=1)
    slim.feed(IDS, 13, last=1)
    slim.tap([2], whole=False)
    slim.feed(IDS, 14, last=1)
    assert slim.tapped is not None and (slim.tapped.streams[2] - streams[2][13:14]).abs().max() < 1e-10
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
