"""Prompt lookup: the drafts of the public code, an index that follows the text, the target's output law."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from doubles import BranchingDraws, Tables, check_counts, enumerate_paths, largest_difference, law_of, spy_on
from torch import Tensor

from baselines.lookup import Match, NgramIndex, PromptLookup, one_hot_block
from viasd.blocks import cut_block
from viasd.decode import Decode
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

SETTINGS: list[tuple[Match, bool]] = [("leftmost", False), ("leftmost", True), ("recent", False), ("recent", True)]


def scanned(ids: list[int], match: Match, full: bool, n_max: int, n_tokens: int) -> list[int]:
    """The same by looking at every place: conditions of Spec-Bench's model/pld (full), of transformers (not full)."""
    length = len(ids)
    for n in range(n_max, 0, -1):
        if n >= length:
            continue
        found = []
        for start in range(n, length):
            fits = start + n_tokens <= length and start < length - n if full else True
            if ids[start - n : start] == ids[-n:] and fits:
                found.append(start)
        if found:
            start = found[0] if match == "leftmost" else found[-1]
            return ids[start : start + n_tokens]
    return []


@pytest.mark.parametrize(("match", "full"), SETTINGS)
def test_found_are_the_places_of_a_scan(match: Match, full: bool) -> None:
    """While the text grows and shrinks."""
    chance, hits = random.Random(3), 0
    for n_max, n_tokens in ((1, 1), (2, 10), (3, 4), (3, 2), (5, 3)):
        index = NgramIndex(n_max)
        for _ in range(150):
            if chance.random() < 0.2:
                index.cut(chance.randrange(len(index.ids) + 1))
            index.extend([chance.randrange(4) for _ in range(chance.randrange(4))])
            expected = scanned(index.ids, match, full, n_max, n_tokens)
            assert index.find(match, full, n_tokens) == expected
            hits += bool(expected)
    assert hits > 300


def test_drafts_are_those_of_transformers() -> None:
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    chance, eos, hits = random.Random(4), 5, 0
    for _ in range(300):
        ids = [chance.randrange(6) for _ in range(chance.randrange(2, 30))]
        theirs = PromptLookupCandidateGenerator(
            eos_token_id=torch.tensor([eos]), num_output_tokens=4, max_matching_ngram_size=2, max_length=1000
        )
        candidates, _ = theirs.get_candidates(torch.tensor([ids]))
        assert drafted(ids, PromptLookup(n_tokens=4), eos) == candidates[0, len(ids) :].tolist()
        hits += candidates.shape[1] > len(ids)
    assert hits > 100


class Told:
    """The part of a State that the drafter looks at."""

    def __init__(self, ids: list[int], eos: int, room: int = 20) -> None:
        self.ids = torch.tensor(ids + [0] * room)
        self.prompt_length = self.length = len(ids)
        self.output: list[int] = []
        self.provisional: list[Any] = []
        self.decode = Decode(Sampling(), room, frozenset({eos}))


class Readers:
    vocabulary = 6


def drafted(ids: list[int], lookup: PromptLookup, eos: int, limit: int = 20, trip: Any = None) -> list[int]:
    state: Any = Told(ids, eos)
    drafter = lookup.open_drafter(Readers())  # type: ignore[arg-type]
    drafter.begin(state)
    draft = drafter.propose(state, limit, trip)
    found = draft.tokens.tolist()
    assert state.ids[len(ids) : len(ids) + len(found)].tolist() == found  # where the verifier reads them
    assert draft.rows.shape == (len(found), 6) and draft.logits is not None and draft.logits.shape == (len(found), 6)
    return found


def test_limits_and_the_end_mark() -> None:
    ids = [1, 2, 3, 4, 0, 3, 4, 1, 2]
    assert drafted(ids, PromptLookup(), eos=5) == [3, 4, 0, 3, 4, 1, 2]
    assert drafted(ids, PromptLookup(), eos=5, limit=3) == [3, 4, 0]
    assert drafted(ids, PromptLookup(), eos=5, limit=0) == []
    assert drafted(ids, PromptLookup(), eos=0) == [3, 4]
    assert drafted(ids, PromptLookup(), eos=3) == []
    assert drafted(ids, PromptLookup(n_max=3, full=True), eos=5) == []  # only 7 follow
    assert drafted(ids, PromptLookup(n_max=3, full=True, n_tokens=6), eos=5) == [3, 4, 0, 3, 4, 1]
    assert drafted([1, 2, 3], PromptLookup(), eos=5) == drafted([1], PromptLookup(), eos=5) == []
    assert drafted([1, 2, 0, 1, 2, 3, 1, 2], PromptLookup(match="recent"), eos=5) == [3, 1, 2]


class Unsure:
    """Trips below a probability, or above an entropy."""

    keep = True

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        rows = logits.softmax(-1)
        return (rows.gather(1, tokens[:, None])[:, 0] < 0.999) | (torch.special.entr(rows).sum(-1) > 1e-6)


def test_a_one_hot_row_never_trips() -> None:
    assert drafted([1, 2, 3, 4, 1, 2], PromptLookup(), eos=5, trip=Unsure()) == [3, 4, 1, 2]
    assert drafted([1, 2, 3], PromptLookup(), eos=5, trip=Unsure()) == []
    block = one_hot_block(torch.tensor([2, 0]), 3)
    assert block.rows.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert cut_block(block, Sampling(), Unsure()).tokens.tolist() == [2, 0]


def method(lookup: PromptLookup, verifier: Any = None, length: int = 10) -> Method:
    return Method(name="m", drafter=lookup, stop=FixedLength(length=length), verifier=verifier or RuleVerifier())


VANILLA = Method(name="v", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


@pytest.mark.parametrize(("match", "full"), SETTINGS)
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling(temperature=0.7, top_p=0.85)], ids=str)
def test_the_law_is_the_targets(match: Match, full: bool, sampling: Sampling) -> None:
    tables, lookup = Tables(3), PromptLookup(match=match, full=full, n_max=2, n_tokens=2 - full)
    paths = list(enumerate_paths(method(lookup), tables, sampling, 4))
    vanilla = law_of(enumerate_paths(VANILLA, tables, sampling, 4))
    assert largest_difference(law_of(iter(paths)), vanilla) < 1e-9
    assert any(round_.drafted for generation, _ in paths for round_ in generation.rounds)


class Careless(BranchingDraws):
    """The mistake: the token that was refused may be drawn again."""

    def draw(self, rows: Tensor, stream: Any, where: Tensor | None = None) -> Tensor:
        return super().draw(rows + 0.2 * rows.sum(-1, keepdim=True), stream, where)


def test_a_wrong_residual_is_seen() -> None:
    tables, sampling = Tables(3), Sampling(temperature=0.7)
    wrong = law_of(enumerate_paths(method(PromptLookup()), tables, sampling, 3, draws_class=Careless))
    assert largest_difference(wrong, law_of(enumerate_paths(VANILLA, tables, sampling, 3))) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_vanillas_without_a_draft_model(tiny: ModelFactory, family: str) -> None:
    engine = Engine({"target": tiny(family)}, VOCABULARY, 96)
    prompt, decode = [5, 6, 7, 5, 6], Decode(Sampling(), 40)
    expected = VANILLA.open(engine).generate(prompt, decode, SeededDraws(0, "a")).token_ids
    for setting in (PromptLookup(), PromptLookup(match="recent"), PromptLookup(n_max=3, n_tokens=3, full=True)):
        decoder = method(setting).open(engine)
        spy = spy_on(decoder)
        generation = decoder.generate(prompt, decode, SeededDraws(0, "a"))
        assert generation.token_ids == expected
        assert set(generation.calls) == {"target"} and generation.calls["target"] == len(generation.rounds)
        check_counts(generation, spy.drafts, len(prompt))


def test_repetition_is_drafted_and_kept(tiny: ModelFactory) -> None:
    """A target that repeats itself: far fewer calls than tokens."""
    engine = Engine({"target": tiny("llama", seed=1, initializer_range=0.02)}, VOCABULARY, 128)
    generation = method(PromptLookup()).open(engine).generate([5, 6], Decode(Sampling(), 60), SeededDraws(0, "a"))
    assert len(generation.token_ids) == 60 and generation.calls["target"] < 50


def test_provisional_tokens_that_are_taken_back_leave_the_index(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 96)
    gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)
    verifier = Hierarchical(gate=gate, slim=SlimView(mask=[0, 2, 3]), mode="exact", max_pending=6)
    decoder = method(PromptLookup(n_max=1), verifier).open(engine)
    spy, texts = spy_on(decoder), []

    def watch(event: str) -> None:
        if event != "prefilled":
            state, index = spy.state, spy.drafter._index  # type: ignore[attr-defined]
            standing = state.ids[: state.length].tolist()
            spy.drafter._follow(state)  # type: ignore[attr-defined]
            texts.append(index.ids == standing)

    generation = decoder.generate([5, 6, 5], Decode(Sampling(temperature=1.0), 40), SeededDraws(1, "a"), watch=watch)
    assert all(texts) and sum(round_.withdrawn for round_ in generation.rounds) > 0


def test_other_rules_take_an_empty_draft() -> None:
    """Rules may mix the rows of judge and drafter, so that an empty draft has as many columns."""
    state: Any = Told([1], eos=5)
    drafter = PromptLookup().open_drafter(Readers())  # type: ignore[arg-type]
    drafter.begin(state)
    draft = drafter.propose(state, 5)
    assert (torch.zeros(0, 6) + draft.rows).shape == (0, 6)


@pytest.mark.parametrize(("key", "value"), [("match", "longest"), ("n_max", 0), ("n_tokens", 0), ("full", 3)])
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        PromptLookup(**{key: value})  # type: ignore[arg-type]
