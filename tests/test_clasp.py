"""CLaSp: a programme whose state a replay gives too, near the best of all subsets, and a text that is the target's."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from test_cache import Watcher
from torch import Tensor
from torch.nn.functional import cosine_similarity

from baselines.clasp import ClaspDrafter, choose_layers, last_states
from baselines.stops import DraftExit
from viasd.decode import Decode
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import PairError
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

PROMPT = torch.randint(3, VOCABULARY, (11,), generator=torch.Generator().manual_seed(2)).tolist()
VANILLA = Method(name="v", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


class Toy:
    """Layers x + tanh(W x) on states of 16, one of which counts how many states it was given."""

    def __init__(self, seed: int, layers: int = 12, strength: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = strength * torch.randn(layers, 16, 16, generator=generator, dtype=torch.float64) / 4
        states = [torch.randn(16, generator=generator, dtype=torch.float64)]
        self.ran = 0
        for layer in range(layers):
            states.append(self(layer, states[-1][None])[0])
        self.states, self.ran = torch.stack(states), 0

    def __call__(self, layer: int, states: Tensor) -> Tensor:
        self.ran += len(states)
        return states + (states @ self.weights[layer]).tanh()

    def replay(self, kept: Any) -> Tensor:
        state = self.states[:1]
        for layer in kept:
            state = self(layer, state)
        return state[0]

    def closeness(self, kept: Any) -> float:
        return float(cosine_similarity(self.replay(kept), self.states[-1], dim=0))


def plain_programme(toy: Toy, skip: int) -> list[int]:
    """The recurrence as it is printed, cell by cell."""
    x, cells = toy.states, {(0, 0): toy.states[0]}
    skipped: dict[tuple[int, int], bool] = {}
    for i in range(1, len(x)):
        cells[i, 0], skipped[i, 0] = x[i], False
        for j in range(1, min(i, skip) + 1):
            options = {True: cells[i - 1, j - 1]}
            if (i - 1, j) in cells:
                options[False] = toy(i - 1, cells[i - 1, j][None])[0]
            close = {name: float(cosine_similarity(state, x[i], dim=0)) for name, state in options.items()}
            skipped[i, j] = len(options) == 1 or close[True] > close[False]
            cells[i, j] = options[skipped[i, j]]
    kept, j = [], skip
    for i in range(len(x) - 1, 0, -1):
        if skipped[i, j]:
            j -= 1
        else:
            kept.append(i - 1)
    return kept[::-1]


@pytest.mark.parametrize("skip", [0, 1, 3, 6, 11])
def test_the_programme_is_the_printed_one_and_its_state_a_replay(skip: int) -> None:
    for seed in range(6):
        toy = Toy(seed)
        kept, state = choose_layers(toy, toy.states, skip, range(12))
        ran = toy.ran
        assert len(kept) == 12 - skip and kept == sorted(set(kept))
        assert (state - toy.replay(kept)).abs().max() < 1e-12
        toy.ran = 0
        assert kept == plain_programme(toy, skip)
        assert ran <= toy.ran and (ran < toy.ran or skip < 2)  # cells that lead nowhere are left out


def test_it_is_near_the_best_of_all_subsets() -> None:
    """Each cell is chosen greedily, so it need not be the best."""
    for seed in range(4):
        toy = Toy(seed)
        kept, _ = choose_layers(toy, toy.states, 6, range(12))
        every = [toy.closeness(one) for one in combinations(range(12), 6)]
        best, mean, found = max(every), sum(every) / len(every), toy.closeness(kept)
        assert len(every) == math.comb(12, 6) and found <= best
        assert best - found < 0.45 * (best - mean)
        assert sum(one < found for one in every) > 0.88 * len(every)


@pytest.mark.parametrize("skip", [0, 2, 5, 10])
def test_layers_that_may_not_be_left_out_stay(skip: int) -> None:
    toy = Toy(1)
    kept, state = choose_layers(toy, toy.states, skip, range(1, 11))
    assert {0, 11} <= set(kept) and len(kept) == 12 - skip
    assert (state - toy.replay(kept)).abs().max() < 1e-12


# --- on models ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize(("family", "mode"), [(family, mode) for family in FAMILIES for mode in ("auto", "eager")])
def test_packed_states_are_a_replay_through_the_view(tiny: ModelFactory, family: str, mode: Any) -> None:
    """The cache holds the token already, which no state may see; the position lies beyond the window."""
    model, ids, position = tiny(family, exact=family == "gemma2", layers=6), torch.tensor(PROMPT + PROMPT), 14
    readers = Engine({"target": model}, VOCABULARY, 32, mode).readers()
    target, search = readers.get("target"), readers.changing(None, "search")
    target.tap(range(6))
    target.feed(ids, 12, 1)
    target.feed(ids, position + 4, 6)  # a block, of which only a part stands
    assert target.tapped is not None
    states = last_states(target.tapped.before(position + 1))
    for skip in (2, 3):
        before = {layer: keys.clone() for layer, keys in target.cache.keys.items()}
        kept, state = choose_layers(search.alone(position, skip), states, skip, range(6))
        assert all(torch.equal(keys, before[layer]) for layer, keys in target.cache.keys.items())
        others = Engine({"target": model}, VOCABULARY, 32, mode).readers()
        others.get("target").feed(ids, position, 1)
        view = others.slim(kept, "shared")
        view.tap([])
        view.feed(ids, position + 1, 1)
        assert view.tapped is not None and (view.tapped.top[0] - state).abs().max() < 1e-10


@torch.inference_mode()
def test_on_a_model_it_is_near_the_best_of_all_subsets(tiny: ModelFactory) -> None:
    model, ids = tiny("llama", layers=8, initializer_range=0.2), torch.tensor(PROMPT + PROMPT)
    readers = Engine({"target": model}, VOCABULARY, 32).readers()
    target, search = readers.get("target"), readers.changing(None, "search")
    target.tap(range(8))
    lost, above = [], []
    for position in range(12, 18):
        target.feed(ids, position + 1, 1)
        assert target.tapped is not None
        states, step = last_states(target.tapped), search.alone(position, 4)

        def closeness(kept: Any, states: Tensor = states, step: Any = step) -> float:
            state = states[:1]
            for layer in kept:
                state = step(layer, state)
            return float(cosine_similarity(state[0], states[-1], dim=0))

        kept, _ = choose_layers(step, states, 4, range(8))
        every = sorted(closeness(one) for one in combinations(range(8), 4))
        lost.append(every[-1] - closeness(kept))
        above.append(sum(one < closeness(kept) for one in every) / len(every))
    assert min(lost) > -1e-12 and sum(lost) / len(lost) < 0.05
    assert sum(above) / len(above) > 0.9


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_vanillas_and_the_cache_the_targets(tiny: ModelFactory, family: str, interval: int) -> None:
    engine = Engine({"target": tiny(family, exact=family == "gemma2")}, VOCABULARY, 64)
    decode = Decode(Sampling(), 30)
    expected = VANILLA.open(engine).generate(PROMPT, decode, SeededDraws(0, "a")).token_ids
    drafter, stop = ClaspDrafter(interval=interval), DraftExit(threshold=0.7, max_length=5, of="top")
    decoder = Method(name="clasp", drafter=drafter, stop=stop, verifier=RuleVerifier()).open(engine)
    watcher = Watcher(engine, decoder)
    watcher.readers = {"target": watcher.readers["target"]}
    for _ in range(2):
        generation = decoder.generate(PROMPT, decode, SeededDraws(0, "a"), watch=watcher)
        assert generation.token_ids == expected
        rounds = generation.rounds
        assert rounds[0].drafted == 0 and sum(round_.drafted for round_ in rounds) > 5
        due = [place for place in range(len(rounds) - 1) if place % interval == 0]
        assert generation.calls["search"] == len(due) and generation.fed["search"] == 2 * len(due)
        assert generation.calls["draft"] == generation.fed["draft"] == sum(round_.drafted for round_ in rounds)


def test_it_drafts_through_the_layers_that_it_chose(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama", layers=8)}, VOCABULARY, 64)
    drafter, stop = ClaspDrafter(interval=1, keep_ends=True), FixedLength(length=3)
    decoder = Method(name="clasp", drafter=drafter, stop=stop, verifier=RuleVerifier()).open(engine)
    shown: list[list[int]] = []
    reader: Any = decoder.drafter.reader  # type: ignore[attr-defined]
    show = reader.show
    reader.show = lambda kept: (shown.append(kept), show(kept))
    decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 40), SeededDraws(0, "a"))
    assert all(len(kept) == 4 and {0, 7} <= set(kept) for kept in shown) and len(set(map(tuple, shown))) > 2
    assert [layer.index for layer in reader._forward._layers] == shown[-1]


def test_taps_are_off_between(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    stop = FixedLength(length=2)
    decoder = Method(name="c", drafter=ClaspDrafter(interval=4), stop=stop, verifier=RuleVerifier()).open(engine)
    target: Any = decoder.readers.get("target")
    tapped: list[bool] = []
    target.tap, tap = lambda layers: (tapped.append(layers is not None), tap(layers)), target.tap
    generation = decoder.generate(PROMPT, Decode(Sampling(), 30), SeededDraws(0, "a"))
    # after the beginning, then after each round: on for the round whose states are wanted
    assert tapped == [True, *(place % 4 == 3 for place in range(len(generation.rounds)))]


def test_mistakes(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    with pytest.raises(PairError, match=r"skip_ratio=0\.9"):
        ClaspDrafter(skip_ratio=0.9).open_drafter(engine.readers())
    with pytest.raises(PairError, match="keep_ends=true"):
        ClaspDrafter(skip_ratio=0.7, keep_ends=True).open_drafter(engine.readers())
    with pytest.raises(ValueError, match="interval"):
        ClaspDrafter(interval=0)


@torch.inference_mode()
def test_the_layers_follow_from_the_last_verified_token(tiny: ModelFactory) -> None:
    """In the loop as from a fresh engine that has read as much: of the last token the target has read and kept."""
    model = tiny("llama", layers=8)
    stop = FixedLength(length=3)
    method = Method(name="c", drafter=ClaspDrafter(interval=1), stop=stop, verifier=RuleVerifier())
    decoder = method.open(Engine({"target": model}, VOCABULARY, 64))
    shown: list[list[int]] = []
    reader: Any = decoder.drafter.reader  # type: ignore[attr-defined]
    reader.show = shown.append
    generation = decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 30), SeededDraws(0, "a"))
    ids, readers = torch.tensor(PROMPT + generation.token_ids), Engine({"target": model}, VOCABULARY, 64).readers()
    target, search = readers.get("target"), readers.changing(None, "search")
    target.tap(range(8))
    assert len(shown) == len(generation.rounds) - 1 > 5
    for round_, kept in zip(generation.rounds, shown, strict=False):
        position = round_.prefix + round_.committed - 2  # the very last one is written, not read
        target.feed(ids, position + 1, 1)
        assert target.tapped is not None
        assert kept == choose_layers(search.alone(position, 4), last_states(target.tapped), 4, range(8))[0]
