"""SWIFT: its masks and its search, scores that a view gives by other means, a cache that nothing of it touches."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from doubles import DraftSpy
from test_cache import Watcher

from baselines import swift
from baselines.stops import DraftExit
from baselines.swift import Search, SwiftDrafter, branch_space, first_mask, propose_mask
from viasd.compiled import LayerCompiler
from viasd.decode import Decode, Speculative
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Branches, PairError
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

PROMPT = torch.randint(3, VOCABULARY, (11,), generator=torch.Generator().manual_seed(2)).tolist()
VANILLA = Method(name="v", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
TOKENS = 40
HAS_OPTUNA = importlib.util.find_spec("optuna") is not None and importlib.util.find_spec("scipy") is not None


def method(verifier: Any = None, **settings: Any) -> Method:
    drafter = SwiftDrafter(**{"window": 6, "every": 0, "max_score": 1.0, **settings})
    stop = DraftExit(threshold=0.5, max_length=5)
    return Method(name="swift", drafter=drafter, stop=stop, verifier=verifier or RuleVerifier())


def search_of(decoder: Speculative) -> Search:
    drafter = decoder.drafter.drafter if isinstance(decoder.drafter, DraftSpy) else decoder.drafter
    return drafter._search  # type: ignore[attr-defined, no-any-return]


def test_masks_of_the_public_code() -> None:
    for layers, skipped in ((32, 27), (40, 34), (16, 12), (3, 0), (2, 0)):
        space = branch_space(layers, 0.45)
        assert space.skip == skipped and len(space.free) == 2 * (layers - 2)
    space = branch_space(16, 0.45)
    kept = space.kept(first_mask(space))
    assert isinstance(kept, Branches) and kept.attention == kept.mlp == (0, 2, 4, 6, 8, 10, 12, 14, 15)


def test_candidates_have_the_size_and_come_from_seed_and_number() -> None:
    rules, space = SwiftDrafter(every=0, seed=3), branch_space(16, 0.45)
    masks = [propose_mask(rules, space, Search((), count=count)) for count in range(200)]
    assert {len(mask) for mask in masks} == {12} and len(set(masks)) > 190
    assert all(set(mask) <= set(space.free) and list(mask) == sorted(set(mask)) for mask in masks)
    assert {unit for mask in masks for unit in mask} == set(space.free)
    assert masks[7] == propose_mask(rules, space, Search((5,), count=7, best=0.5))
    assert masks[7] != propose_mask(SwiftDrafter(every=0, seed=4), space, Search((), count=7))


@pytest.mark.skipif(not HAS_OPTUNA, reason="needs optuna")
def test_a_proposal_leaves_out_what_scored_well() -> None:
    """Each third candidate; scores that fall with every attention left out are followed."""
    rules, space = SwiftDrafter(every=3, max_score=1.0), branch_space(6, 0.45)
    search, means = Search(first_mask(space)), {"random": 0.0, "proposed": 0.0}
    for _ in range(15):
        which = "proposed" if (search.count + 1) % 3 == 0 else "random"
        mask = propose_mask(rules, space, search)
        assert len(mask) == space.skip == 3
        score = sum(unit % 2 for unit in mask) / len(mask)
        means[which] += score / (5 if which == "proposed" else 10)
        search.score(rules, mask, score)
    assert means["proposed"] > means["random"] and len(search.scores) == 15


def test_when_the_search_ends() -> None:
    rules = SwiftDrafter(every=0, max_score=0.8, patience=2, trials=6)
    search = Search((1,))
    assert search.score(rules, (2,), 0.0) is False and search.mask == (1,)  # not above the first one's 0
    assert search.score(rules, (3,), 0.5) and search.score(rules, (4,), 0.8) and not search.ended
    assert search.score(rules, (5,), 0.8) is False  # equal is no better
    assert not search.ended and search.score(rules, (6,), 0.9) and search.ended
    assert (search.mask, search.best, search.idle, search.count, search.scores) == ((6,), 0.9, 0, 5, [])
    for patience, trials, ends_after in ((2, 100, 3), (100, 4, 5)):
        rules, search = SwiftDrafter(every=0, patience=patience, trials=trials), Search((1,))
        count = 0
        while not search.ended:
            search.score(rules, (2,), 0.0)
            count += 1
        assert count == ends_after  # the public code ends beyond its numbers, not at them


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_vanillas_and_the_cache_the_targets(tiny: ModelFactory, family: str) -> None:
    engine = Engine({"target": tiny(family, exact=family == "gemma2")}, VOCABULARY, 64)
    decode = Decode(Sampling(), TOKENS)
    expected = VANILLA.open(engine).generate(PROMPT, decode, SeededDraws(0, "a")).token_ids
    decoder = method().open(engine)
    watcher = Watcher(engine, decoder)
    watcher.readers = {"target": watcher.readers["target"]}
    generation = decoder.generate(PROMPT, decode, SeededDraws(0, "a"), watch=watcher)
    assert generation.token_ids == expected
    search, ready = search_of(decoder), 0
    for round_ in generation.rounds[:-1]:  # a candidate after each round that ends beyond window + 1 tokens
        ready += round_.prefix - len(PROMPT) + round_.committed > 7
    assert search.count == generation.calls["search"] == ready > 10
    assert generation.fed["search"] == 6 * ready and search.best > 0
    assert generation.calls["draft"] == generation.fed["draft"] == sum(one.drafted for one in generation.rounds)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_score_is_that_of_the_view_behind_the_targets_prompt(tiny: ModelFactory, family: str) -> None:
    model = tiny(family, exact=family == "gemma2")
    engine = Engine({"target": model}, VOCABULARY, 64)
    decoder = method().open(engine)
    scored: list[tuple[Branches, float]] = []
    drafter: Any = decoder.drafter
    matchness = drafter._matchness

    def note(state: Any, kept: Branches) -> float:
        before = {layer: keys.clone() for layer, keys in engine.cache("target").keys.items()}
        scored.append((kept, matchness(state, kept)))
        assert all(torch.equal(keys, before[layer]) for layer, keys in engine.cache("target").keys.items())
        return scored[-1][1]

    drafter._matchness = note
    output = decoder.generate(PROMPT, Decode(Sampling(), TOKENS), SeededDraws(0, "a")).token_ids
    ids, first = torch.tensor(PROMPT + output), len(PROMPT)
    for kept, score in scored:
        readers = Engine({"target": model}, VOCABULARY, 64).readers()
        readers.get("target").feed(ids, first, 1)
        rows = readers.slim(kept, "shared").feed(ids, first + 6, 6)
        assert score == pytest.approx(float((rows.argmax(-1) == ids[first + 1 : first + 7]).float().mean()))
    assert len({score for _, score in scored}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["fused", "eager", "compile"])
def test_a_changing_reader_shows_what_it_is_told(tiny: ModelFactory, mode: Any) -> None:
    ids = torch.tensor(PROMPT + PROMPT)
    engine = Engine({"target": tiny("qwen3")}, VOCABULARY, 64, mode)
    engine.compiler = LayerCompiler("eager")
    views = [Branches(attention=(0, 3), mlp=(0, 1, 3)), Branches(attention=(0, 1, 2, 3), mlp=(0, 3))]
    readers = engine.readers()
    target, changing = readers.get("target"), readers.changing(views[0], "draft")
    target.feed(ids, 10, 1)
    for place in (0, 1, 0):
        fixed = readers.slim(views[place], "shared", f"slim{place}", target)
        changing.show(views[place])
        for stop in (12, 13):
            changing.rewind(10)
            fixed.rewind(10)
            expected = fixed.feed(ids, stop, 2)
            fixed.rewind(10)
            assert (changing.feed(ids, stop, 2) - expected).abs().max() < 1e-12


def test_what_outlives_a_request(tiny: ModelFactory) -> None:
    """Run: mask, score and counts go on, and come back from JSON. Request: everything begins anew."""
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    decode = Decode(Sampling(), TOKENS)
    for memory in ("request", "run"):
        decoder = method(memory=memory).open(engine)
        counts, known = [], [json.loads(json.dumps(decoder.memory()))]
        for _ in range(2):
            decoder.generate(PROMPT, decode, SeededDraws(0, "a"))
            counts.append(search_of(decoder).count)
            known.append(json.loads(json.dumps(decoder.memory())))
        found = search_of(decoder)
        assert counts[0] > 10 and (counts[1] > counts[0] if memory == "run" else counts[1] == counts[0])
        assert (known[1] != {}) == (memory == "run")
        again = method(memory=memory).open(engine)
        again.restore(known[1])
        again.generate(PROMPT, decode, SeededDraws(0, "a"))
        assert search_of(again) == found
        again.restore(known[0])
        assert search_of(again).count == 0


@pytest.mark.skipif(not HAS_OPTUNA, reason="needs optuna")
def test_proposals_while_decoding(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    decode = Decode(Sampling(), 24)
    expected = VANILLA.open(engine).generate(PROMPT, decode, SeededDraws(0, "a")).token_ids
    decoder = method(every=5, memory="run").open(engine)
    assert decoder.generate(PROMPT, decode, SeededDraws(0, "a")).token_ids == expected
    known = json.loads(json.dumps(decoder.memory()))
    assert len(known["drafter"]["scores"]) == search_of(decoder).count >= 5
    other = method(every=5, memory="run").open(engine)
    other.restore(known)
    assert search_of(other) == search_of(decoder)


def test_proposals_need_an_extra(tiny: ModelFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift.importlib.util, "find_spec", lambda name: None)
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    with pytest.raises(PairError, match=r"drafter\.every=5: .*accepted: pip install viasd\[tune\], or every=0"):
        method(every=5).open(engine)
    method(every=0).open(engine)


def test_a_slim_verifier_needs_a_cache_of_its_own(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)
    with pytest.raises(PairError, match=r"slim: .*accepted: cache=separate"):
        method(Hierarchical(gate=gate, slim=SlimView(mask=[0, 3]))).open(engine)
    own = Hierarchical(gate=gate, slim=SlimView(mask=[0, 3], cache="separate"), mode="exact", max_pending=6)
    generation = method(own).open(engine).generate(PROMPT, Decode(Sampling(), TOKENS), SeededDraws(0, "a"))
    expected = VANILLA.open(engine).generate(PROMPT, Decode(Sampling(), TOKENS), SeededDraws(0, "a"))
    assert generation.token_ids == expected.token_ids


@pytest.mark.parametrize(("key", "value"), [("window", 0), ("max_score", 1.5), ("memory", "ever"), ("skip_ratio", 1.0)])
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        SwiftDrafter(**{key: value})  # type: ignore[arg-type]
