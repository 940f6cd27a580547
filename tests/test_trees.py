"""Trees: laws by enumeration over the real loop, the shapes that are grown, and greedy identity on real models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from doubles import Tables, enumerate_paths, largest_difference, law_of, spy_on
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import DECODE, NEW_TOKENS, drafts_of, reference
from test_families import PROMPT as TEXT
from test_laws import CAUGHT, EXACT, NUCLEUS, WARM
from torch import Tensor

from baselines.stops.confidence import ConfidenceLength
from baselines.tree_draft import TreeDraft
from baselines.trees import EAGLE_1, DynamicTree, StaticTree, TreeShape, choose
from viasd.decode import Decode, Draft, Generation, State
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine, Mode
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws, process
from viasd.tree_judging import TreeVerifier
from viasd.trees import CHOSEN_FOR, Acceptance, Nodes, Siblings
from viasd.verification import RuleVerifier

FORK = [[0], [1], [0, 0], [0, 1], [1, 0]]
HOOK = [[0], [1], [0, 0]]
VANILLA = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


def tree_method(tree: TreeShape, acceptance: Acceptance, length: int = 2) -> Method:
    return Method(
        name="tree",
        drafter=TreeDraft(tree=tree),
        stop=FixedLength(length=length),
        verifier=TreeVerifier(acceptance=acceptance),
    )


def distance(method: Method, sampling: Sampling, tokens: int = 3, seed: int = 0) -> float:
    """Largest difference of the loop's law from the target's."""
    tables = Tables(seed)
    found, wanted = (law_of(enumerate_paths(one, tables, sampling, tokens)) for one in (method, VANILLA))
    return largest_difference(found, wanted)


def check_tree_counts(generation: Generation, rounds: int, prompt_length: int) -> None:
    """Counts of rounds whose drafts are trees: what is drafted is a depth, and one node of each depth is judged."""
    assert len(generation.rounds) == rounds
    done = 0
    for one in generation.rounds:
        assert one.prefix == prompt_length + done
        assert one.drafted == one.judged + one.unjudged + one.discarded + one.cut
        assert one.nodes is None or one.drafted <= one.nodes
        assert one.rejected <= 1 and one.committed == len(one.sources) > 0
        assert one.judged - one.rejected <= one.committed <= one.judged - one.rejected + 1
        done += one.committed
    assert done == len(generation.token_ids)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [WARM, NUCLEUS, Sampling(temperature=0)], ids=["warm", "nucleus", "greedy"])
@pytest.mark.parametrize("acceptance", CHOSEN_FOR)
def test_law_of_static_trees(acceptance: Acceptance, sampling: Sampling) -> None:
    paths, tokens = (FORK, 3) if acceptance == "one_hot" or sampling.temperature == 0 else (HOOK, 2)
    tree = StaticTree(paths=paths, siblings=CHOSEN_FOR[acceptance])
    assert distance(tree_method(tree, acceptance), sampling, tokens) < EXACT


def test_law_of_three_tokens_drawn_without_replacement() -> None:
    tree = StaticTree(paths=[[0], [1]])
    assert distance(tree_method(tree, "without_replacement", 1), WARM) < EXACT


@pytest.mark.parametrize("nodes", [2, 4, 7])
def test_law_of_dynamic_trees(nodes: int) -> None:
    assert distance(tree_method(DynamicTree(nodes=nodes, top_k=2), "one_hot", length=3), WARM) < EXACT


def choose_the_best(logits: Tensor, count: int, siblings: Siblings, there: Tensor, state: State) -> Any:
    """The mistake: the most probable tokens, with the rows as if they had been drawn from them."""
    tokens, _ = choose(logits, count, "top_k", there, state)
    return tokens, process(logits, state.decode.sampling)


@pytest.mark.parametrize("siblings", CHOSEN_FOR.values())
@pytest.mark.parametrize("acceptance", CHOSEN_FOR)
def test_another_pairing_is_refused(
    acceptance: Acceptance, siblings: Siblings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks the law, but for `one_hot`, whose law asks nothing of how siblings came to be."""
    method = tree_method(StaticTree(paths=[[0], [1]], siblings=siblings), acceptance, 1)
    if CHOSEN_FOR[acceptance] == siblings:
        method.check(WARM)
        return
    with pytest.raises(
        ValueError, match=f"verifier.acceptance={acceptance}: the drafter chooses siblings by {siblings}"
    ):
        method.check(WARM)
    if siblings == "top_k":
        monkeypatch.setattr("baselines.trees.choose", choose_the_best)
    worst = max(distance(method, WARM, tokens=1, seed=seed) for seed in range(3))
    assert worst < EXACT if acceptance == "one_hot" else worst > CAUGHT


def test_chains_and_trees_are_told_apart() -> None:
    method = replace(tree_method(DynamicTree(), "one_hot"), verifier=RuleVerifier())
    with pytest.raises(ValueError, match=r"method.verifier: RuleVerifier reads chains"):
        method.check(WARM)
    with pytest.raises(ValueError, match=r"method.stop: ConfidenceLength says how long a chain is"):
        replace(tree_method(DynamicTree(), "one_hot"), stop=ConfidenceLength()).check(WARM)


# --- shapes ---------------------------------------------------------------------------------------------------------


class OneRow:
    """A reader whose rows are handed in, by how many nodes were read before."""

    def __init__(self, rows: Tensor) -> None:
        self._rows, self._at = rows, 0
        self.passes: list[Nodes] = []

    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor:
        self._at = 1
        return self._rows[:1]

    def feed_nodes(self, ids: Tensor, stop: int, nodes: Nodes, last: int) -> Tensor:
        self.passes.append(nodes)
        start, self._at = self._at, self._at + len(nodes.tokens)
        return self._rows[start : self._at]


def grown(tree: TreeShape, rows: Tensor, deepest: int, temperature: float = 0.0) -> tuple[Draft, OneRow]:
    reader, ids = OneRow(rows), torch.zeros(4, dtype=torch.long)
    decode = Decode(Sampling(temperature=temperature), 1)
    state = SimpleNamespace(ids=ids, length=2, decode=decode, draws=SeededDraws(0, "x"), greedy=temperature == 0)
    return tree.grow(reader, state, deepest), reader


def check_shape(draft: Draft) -> None:
    """Parents first, depths one by one, visibility that of ancestors, children lists that agree with parents."""
    tree, parents = draft.tree, draft.parents.tolist()
    assert tree is not None
    for node, parent in enumerate(parents):
        assert -1 <= parent < node
        above = set() if parent < 0 else set(tree.seen[parent].nonzero()[:, 0].tolist())
        assert set(tree.seen[node].nonzero()[:, 0].tolist()) == above | {node}
        assert tree.depths[node] == len(above) + 1 <= tree.deepest
        assert node in tree.children[parent + 1].tolist()
    assert (tree.children >= 0).sum() == len(parents)


def test_the_tree_of_eagle_1() -> None:
    """25 nodes, 4, 8, 8, 3 and 2 by depth, 15 leaves, 5 passes of the drafter."""
    draft, reader = grown(StaticTree(), torch.randn(40, 20, dtype=torch.float64), 9)
    check_shape(draft)
    assert draft.length == 25 == len(EAGLE_1)
    assert torch.bincount(draft.tree.depths).tolist() == [0, 4, 8, 8, 3, 2]
    assert (draft.tree.children[1:] < 0).all(1).sum() == 15
    assert len(reader.passes) + 1 == 5
    shallow, _ = grown(StaticTree(), torch.randn(40, 20, dtype=torch.float64), 2)
    assert shallow.length == 12


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.integers(1, 30),
    top_k=st.integers(1, 5),
    deepest=st.integers(1, 5),
    vocabulary=st.integers(2, 6),
    ties=st.sampled_from(["none", "sure", "flat", "few"]),
    seed=st.integers(0, 99),
)
def test_dynamic_trees_hang_together(
    nodes: int, top_k: int, deepest: int, vocabulary: int, ties: str, seed: int
) -> None:
    """Also where a child's probability is 1, so that it ties with its parent; scores are the best there are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, vocabulary, generator=generator)
    if ties == "sure":
        rows[:, seed % vocabulary] = 1e4
    if ties == "flat":
        rows[:] = 0.0
    if ties == "few":
        rows[:, 1:] = -torch.inf
    draft, reader = grown(DynamicTree(nodes=nodes, top_k=top_k), rows, deepest)
    check_shape(draft)
    k = min(top_k, vocabulary)
    assert draft.length == min(nodes, k + (deepest - 1) * k * k)
    assert len(reader.passes) == deepest - 1
    for number, fed in enumerate(reader.passes, 1):
        assert fed.depths.tolist() == [depth for depth in range(1, number + 1) for _ in range(k)]
        assert fed.seen.sum(1).tolist() == [number] * k
    there = draft.tokens >= 0
    assert there.sum() == (min(deepest, nodes) if ties == "few" else draft.length)


def test_a_row_with_too_few_ids_has_fewer_children() -> None:
    rows = torch.full((40, 6), -torch.inf, dtype=torch.float64)
    rows[:, :2] = 0.0
    for siblings in CHOSEN_FOR.values():
        draft, _ = grown(StaticTree(siblings=siblings), rows, 5, temperature=1.0)
        kids = draft.tokens[draft.tree.children[0]]
        if siblings == "iid":
            assert (kids >= 0).all()
            continue
        assert sorted(kids.tolist()) == [-1, -1, 0, 1]
        gone = [node for node in range(25) if draft.tokens[draft.tree.seen[node]].min() < 0]
        assert (draft.tokens[gone] == -1).all() and len(gone) > 4


@pytest.mark.parametrize(("paths", "lacks"), [([[0], [2]], r"\[1\]"), ([[0], [1, 0]], r"\[1\]"), ([[]], "empty path")])
def test_paths_that_are_no_tree(paths: list[list[int]], lacks: str) -> None:
    with pytest.raises(ValueError, match=lacks):
        StaticTree(paths=paths)


# --- on real models -------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[TreeShape, Acceptance]] = {
    "static": (StaticTree(), "without_replacement"),
    "dynamic": (DynamicTree(nodes=12, top_k=3), "one_hot"),
}


@pytest.mark.parametrize("mode", ["eager", "auto"])
@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("agreement", ["always", "sometimes", "never"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_identity(
    tiny: ModelFactory, variant: ModelFactory, family: str, agreement: str, how: str, mode: Mode
) -> None:
    target = tiny(family)
    engine = Engine({"target": target, "draft": drafts_of(target, variant, agreement)}, VOCABULARY, 100, mode)
    decoder = tree_method(*SHAPES[how], length=4).open(engine)
    spy = spy_on(decoder)
    generation = decoder.generate(TEXT, DECODE, SeededDraws(0, "example"), detail=True)
    check_tree_counts(generation, len(spy.drafts), len(TEXT))
    assert generation.token_ids == reference(target)
    if agreement == "always":
        assert sum(one.rejected for one in generation.rounds) <= (how == "dynamic") and len(generation.rounds) <= 6
    assert generation.laws == [1.0] * NEW_TOKENS


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_the_cache_behind_a_tree_is_that_of_the_text(tiny: ModelFactory, variant: ModelFactory, family: str) -> None:
    """After each round, what the target holds equals a fresh prefill of the text, where it says it has read."""
    target = tiny(family, exact=True)
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 100)
    decoder = tree_method(DynamicTree(nodes=14, top_k=3), "one_hot", length=4).open(engine)
    state = decoder.begin(TEXT, DECODE, SeededDraws(0, "example"))
    moved = 0
    with torch.inference_mode():
        while state.finish_reason is None:
            record = decoder.round(state)
            moved += record.judged - record.rejected
            read = decoder.verifier.reader.read
            fresh = Engine({"target": target}, VOCABULARY, 100)
            reader = fresh.readers().get("target")
            reader.feed(state.ids, read, last=0)
            for layer, keys in fresh.cache("target").keys.items():
                assert (engine.cache("target").keys[layer] - keys)[:, :, :read].abs().max() < 1e-9
    assert moved > 3
