"""EAGLE's drafter on real models: identity, laws, features, and what the cache of a head is fed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory, build_model
from doubles import BranchingDraws, Outcome, _next_script, largest_difference, spy_on
from test_families import DECODE, EndsWith, reference
from test_families import PROMPT as TEXT
from test_trees import check_tree_counts
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from baselines.eagle.drafter import EagleDrafter
from baselines.eagle.head import EagleHead, HeadShape
from baselines.trees import DynamicTree, StaticTree, TreeShape
from viasd.decode import Decode, Generation, Speculative
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws
from viasd.tree_judging import TreeVerifier
from viasd.trees import Acceptance
from viasd.verification import RuleVerifier

SHAPES: dict[str, dict[str, Any]] = {
    "eagle1": {"version": 1, "fc_bias": True},
    "eagle3": {"version": 3, "draft_vocabulary": 40, "aux_layers": (1, 2, 3)},
    "eagle3_options": {
        "version": 3,
        "layers": 2,
        "fc_norm": True,
        "norm_before_residual": True,
        "feed_normed": True,
        "own_embedding": True,
    },
}
TREES: dict[str, tuple[TreeShape | None, Acceptance]] = {
    "chain": (None, "one_hot"),
    "static": (StaticTree(), "without_replacement"),
    "dynamic": (DynamicTree(nodes=40, top_k=16), "one_hot"),
}


def make_head(target: Any, name: str, seed: int = 3) -> EagleHead:
    """A random head for a target; one with a reduced vocabulary knows the odd ids and some even ones."""
    config = target.config
    vocabulary = target.get_input_embeddings().weight.shape[0]
    options = dict(SHAPES[name])
    if options.get("draft_vocabulary", 0) >= vocabulary:
        options["draft_vocabulary"] = vocabulary - 1
    shape = HeadShape(
        width=config.hidden_size,
        target_width=config.hidden_size,
        heads=4,
        kv_heads=2,
        head_dim=8,
        intermediate=24,
        vocabulary=vocabulary,
        **options,
    )
    torch.manual_seed(seed)
    head = EagleHead(shape).double()
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if head.d2t is not None:
        order = sorted(range(vocabulary), key=lambda i: (i % 2 == 0, i))
        head.name_ids(torch.tensor(sorted(order[: len(head.d2t)])))
    return head.settle()


def engine_with(target: Any, name: str, slots: int = 64) -> Engine:
    engine = Engine({"target": target}, target.get_input_embeddings().weight.shape[0], slots + 40)
    engine.heads[name] = make_head(target, name)
    return engine


def method_of(name: str, tree: TreeShape | None, acceptance: Acceptance, length: int = 4) -> Method:
    verifier = RuleVerifier() if tree is None else TreeVerifier(acceptance=acceptance)
    drafter = EagleDrafter(head=name, tree=tree)
    method = Method(name="eagle", drafter=drafter, stop=FixedLength(length=length), verifier=verifier)
    method.check(Sampling(temperature=1.0))
    return method


def decoded(target: Any, name: str, how: str, decode: Decode = DECODE) -> tuple[Generation, Speculative]:
    decoder = method_of(name, *TREES[how]).open(engine_with(target, name))
    spy = spy_on(decoder)
    generation = decoder.generate(TEXT, decode, SeededDraws(0, "example"))
    check_tree_counts(generation, len(spy.drafts), len(TEXT))
    return generation, decoder


@pytest.mark.parametrize("how", TREES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_identity(tiny: ModelFactory, family: str, name: str, how: str) -> None:
    target = tiny(family)
    generation, _ = decoded(target, name, how)
    assert generation.token_ids == reference(target)
    if how == "dynamic":  # many children: some are right
        assert sum(one.judged - one.rejected for one in generation.rounds) > 0


@pytest.mark.parametrize("how", TREES)
def test_stops_inside_a_draft(tiny: ModelFactory, how: str) -> None:
    target = tiny("llama")
    full = reference(target)
    for at in (2, 5, 9):
        generation, _ = decoded(target, "eagle3", how, replace(DECODE, eos_ids=frozenset({full[at]})))
        assert generation.token_ids == full[: full.index(full[at]) + 1]
        matcher = EndsWith(full[at - 1], full[at])
        generation, _ = decoded(target, "eagle3", how, replace(DECODE, stop=matcher))
        assert matcher(generation.token_ids) and full[: len(generation.token_ids)] == generation.token_ids
    for limit in range(1, 6):
        generation, _ = decoded(target, "eagle1", how, replace(DECODE, max_new_tokens=limit))
        assert generation.token_ids == full[:limit]


# --- the law, by enumeration over the real loop ---------------------------------------------------------------------

SMALL: dict[str, tuple[TreeShape | None, Acceptance]] = {
    "chain": (None, "one_hot"),
    "static": (StaticTree(paths=[[0], [1], [0, 0]]), "without_replacement"),
    "iid": (StaticTree(paths=[[0], [1]], siblings="iid"), "iid"),
    "dynamic": (DynamicTree(nodes=4, top_k=2), "one_hot"),
}


def law_on(target: Any, method: Method, engine: Engine, tokens: int = 2) -> dict[Outcome, float]:
    """The joint law of the output on a real model of three ids."""
    decoder, law = method.open(engine), defaultdict[Outcome, float](float)
    script: list[int] | None = []
    while script is not None:
        draws = BranchingDraws(script)
        generation = decoder.generate([0, 2, 1], Decode(Sampling(temperature=0.7), tokens), draws)
        law[tuple(generation.token_ids)] += draws.weight
        script = _next_script(draws)
    return dict(law)


@pytest.mark.parametrize(
    ("family", "name", "how"),
    [
        *(("llama", name, how) for name in SHAPES for how in SMALL),
        *((family, "eagle3", "dynamic") for family in FAMILIES if family != "llama"),
        *((family, "eagle1", "static") for family in ("gemma2", "mistral")),
    ],
)
def test_sampling_law(family: str, name: str, how: str) -> None:
    target = build_model(family, vocab_size=3, initializer_range=0.2, pad_token_id=None)
    engine = engine_with(target, name)
    vanilla = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
    found = law_on(target, method_of(name, *SMALL[how], length=2), engine)
    assert largest_difference(found, law_on(target, vanilla, engine)) < 1e-9


# --- what a head computes -------------------------------------------------------------------------------------------


def from_scratch(target: Any, head: EagleHead, ids: list[int]) -> Tensor:
    """Logits [n - 1, draft ids] behind each pair of a text, without any cache, by the library's own rotation."""
    streams = target(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    if head.shape.version == 1:
        features = streams[-1][0, :-1]
    else:
        taps = head.shape.taps(len(target.get_decoder().layers))
        features = torch.cat([streams[layer][0, :-1] for layer in taps], dim=-1)
    count = len(ids) - 1
    config = type("Config", (), {})
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=8, rope_parameters=dict(head.shape.rope))
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), torch.arange(count)[None])

    def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = (part.transpose(0, 1)[None] for part in (queries, keys, values))
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return mixed[0].transpose(0, 1).flatten(1)

    embed = head.embed_tokens or target.get_input_embeddings()
    outputs = head.step(embed(torch.tensor(ids[1:])), head.enter(features), mix)
    return head.logits(outputs, target.lm_head.weight)


@pytest.mark.parametrize("how", ["chain", "dynamic"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_each_round_begins_with_true_features(tiny: ModelFactory, family: str, name: str, how: str) -> None:
    target = tiny(family, exact=True)
    engine = engine_with(target, name)
    decoder = method_of(name, *TREES[how]).open(engine)
    reader = decoder.drafter.reader
    seen: dict[int, Tensor] = {}
    plain = reader.feed

    def feed(ids: Tensor, stop: int, last: int) -> Tensor:
        logits = plain(ids, stop, last)
        if last and stop == decoder_state[0].length:
            seen[stop] = logits[0].clone()
        return logits

    decoder_state: list[Any] = []
    begin = decoder.begin
    decoder.begin = lambda *a, **k: decoder_state.append(begin(*a, **k)) or decoder_state[0]
    reader.feed = feed
    generation = decoder.generate(TEXT, DECODE, SeededDraws(0, "example"))
    wanted = from_scratch(target, reader.model, TEXT + generation.token_ids)
    known = reader.model.draft_ids()
    assert len(seen) == sum(one.drafted > 0 for one in generation.rounds)
    for stop, logits in seen.items():
        found = logits if known is None else logits[known]
        assert (found - wanted[stop - 2]).abs().max() < 1e-9
        if known is not None:
            assert (logits == -torch.inf).sum() == VOCABULARY - len(known)


def test_a_text_of_one_token(tiny: ModelFactory) -> None:
    """There is no pair yet: the first round drafts nothing."""
    target = tiny("llama")
    decoder = method_of("eagle3", *TREES["dynamic"]).open(engine_with(target, "eagle3"))
    generation = decoder.generate([5], DECODE, SeededDraws(0, "example"))
    wanted = target.generate(torch.tensor([[5]]), max_new_tokens=DECODE.max_new_tokens, do_sample=False)
    assert generation.token_ids == wanted[0, 1:].tolist()
    assert generation.rounds[0].drafted == 0 < generation.rounds[1].drafted


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_tree_with_one_path_is_the_chain(tiny: ModelFactory, family: str, name: str) -> None:
    """The rows behind nodes are those behind drafted tokens: same keys, places and outputs fed back."""
    target, found = tiny(family, exact=True), []
    for tree in (None, DynamicTree(nodes=4, top_k=1)):
        decoder = method_of(name, tree, "one_hot").open(engine_with(target, name))
        rows, plain = list[Tensor](), decoder.drafter.reader._logits
        decoder.drafter.reader._logits = lambda outputs, rows=rows, plain=plain: rows.append(plain(outputs)) or rows[-1]
        generation = decoder.generate(TEXT, DECODE, SeededDraws(0, "example"))
        found.append((generation.token_ids, torch.cat(rows).nan_to_num(neginf=-1.0)))
    (ids, chain), (others, tree_rows) = found
    assert ids == others and chain.shape == tree_rows.shape
    assert (chain - tree_rows).abs().max() < 1e-9
