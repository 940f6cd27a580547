"""EAGLE heads under the hierarchical verifier: slim features, what is read again as the target catches up, output."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import FAMILIES, ModelFactory, build_model
from doubles import check_counts, largest_difference, spy_on
from test_eagle import SHAPES, law_on, make_head
from test_exact import check_totals
from test_families import BUSY, DECODE, DEEP, EXACT, METHODS, MIDDLE, PROMPT, reference
from torch import Tensor
from transformers import DynamicCache

from baselines.adasd import JsVerifier
from baselines.bild import RollBack
from baselines.controls import CoinSlim
from baselines.eagle.drafter import EagleDrafter
from baselines.eagle.head import EagleHead
from baselines.eagle.reader import HeadReader
from baselines.pearl import PearlVerifier
from viasd.budget import BudgetControl
from viasd.calling import WhenItPays
from viasd.decode import Decode, Generation, Speculative
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine, Mode
from viasd.gates import DeferralGate, StrictnessGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.method import Method
from viasd.models import make_view
from viasd.reader import Reader
from viasd.routing import RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.taps import Taps
from viasd.verification import PairModel, RuleVerifier, SlimView, VerifierSpec

KEEP_ALL = RatioGate(accept_ratio=0, escalate_ratio=0)
OFTEN = RandomGate(keep=0.7, rewrite=0.1, escalate=0.1, judge=0.1)
SEPARATE = SlimView(mask=[0, 1, 3], cache="separate")
PAPER: dict[str, Any] = {
    "after_escalation": "slim",
    "after_equal_rewrite": "stop",
    "bonus": "none",
    "target_bonus": False,
    "max_pending": None,
}
VERIFIERS: dict[str, VerifierSpec] = {
    "shared": Hierarchical(gate=OFTEN, slim=DEEP),
    "paper": Hierarchical(gate=OFTEN, slim=SEPARATE, **PAPER),
    "window": Hierarchical(gate=KEEP_ALL, slim=MIDDLE, max_pending=6, bonus="none"),
    "exact": Hierarchical(gate=OFTEN, slim=DEEP, mode="exact"),
    "exact_separate": Hierarchical(gate=BUSY, slim=SEPARATE, mode="exact", target_bonus=False),
    "slim_only": RuleVerifier(reader="slim", slim=SEPARATE),
    "coin": CoinSlim(p=0.3, slim=DEEP),
}
MORE: dict[str, Hierarchical] = {
    "budget": Hierarchical(
        gate=StrictnessGate(strictness=0.5), slim=DEEP, mode="budget", max_pending=8, budget=BudgetControl(share=0.3)
    ),
    "two": Hierarchical(gate=BUSY, slim=MIDDLE, above=[SlimTier(gate=BUSY, slim=DEEP)]),
    "two_separate": Hierarchical(gate=BUSY, slim=MIDDLE, above=[SlimTier(gate=BUSY, slim=SEPARATE)], **PAPER),
    "three": replace(EXACT["three"], mode="lossy"),
    "mid": Hierarchical(gate=OFTEN, slim=PairModel()),
    "mid_below_a_view": Hierarchical(gate=BUSY, slim=PairModel(), above=[SlimTier(gate=BUSY, slim=DEEP)]),
    "exact_two": EXACT["two"],
    "exact_mid": Hierarchical(gate=BUSY, slim=PairModel(), mode="exact"),
}


def opened(
    target: Any, verifier: VerifierSpec, name: str = "eagle3", length: int = 4, mode: Mode = "auto"
) -> Speculative:
    engine = Engine({"target": target, "mid": target}, target.get_input_embeddings().weight.shape[0], 80, mode)
    engine.heads[name] = make_head(target, name)
    drafter = EagleDrafter(head=name, tree=None)
    method = Method(name="m", drafter=drafter, stop=FixedLength(length=length), verifier=verifier)
    method.check(Sampling(temperature=0.0 if isinstance(verifier, RollBack) else 1.0))
    return method.open(engine)


def head_of(decoder: Speculative) -> HeadReader:
    found: HeadReader = decoder.drafter.reader  # type: ignore[attr-defined]
    return found


# --- features ---------------------------------------------------------------------------------------------------------


def features_of(head: EagleHead, model: Any, layers: list[int], ids: Tensor, read: int, whole: Any) -> Tensor:
    """Features [n - read, F] of ids[read:] by a view with these layers, behind what the whole model makes of the rest.

    By the library's own cache and hooks on its layers: nothing of ours but the view itself.
    """
    cache, seen, final = DynamicCache(), dict[int, Tensor](), list[Tensor]()
    if read:
        whole(ids[None, :read], past_key_values=cache, use_cache=True)
    parts = list(zip(layers, model.get_decoder().layers, strict=True))
    hooks = [
        part.register_forward_pre_hook(lambda _, args, at=at: seen.__setitem__(at, args[0][0])) for at, part in parts
    ]
    hooks.append(
        model.get_decoder().norm.register_forward_hook(lambda _, args, out: final.extend((args[0][0], out[0])))
    )
    model(ids[None, read:], past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    if head.shape.version == 1:
        return final[1]
    wanted = head.shape.taps(len(whole.get_decoder().layers))
    streams = [next((seen[layer] for layer in layers if layer >= one), final[0]) for one in wanted]
    return torch.cat(streams, dim=-1)


def read_at_once(reader: HeadReader, features: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a head writes to its cache, by layer, when it reads all pairs of a text in one call, with these features."""
    head, count, store = reader._head, len(ids) - 1, list[tuple[Tensor, Tensor]]()
    cos, sin = reader._cos[:count], reader._sin[:count]

    def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        def turn(states: Tensor) -> Tensor:
            half = states.shape[-1] // 2
            return (states * cos + torch.cat((states[..., half:], states[..., :half]), -1) * sin).transpose(0, 1)

        store.append((turn(keys), values.transpose(0, 1)))
        groups = queries.shape[1] // keys.shape[1]
        all_keys, all_values = (part.repeat_interleave(groups, 0) for part in store[-1])
        scores = turn(queries) @ all_keys.transpose(1, 2) / queries.shape[-1] ** 0.5
        unseen = torch.ones(count, count, dtype=torch.bool).triu(1)
        return (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ all_values).transpose(0, 1).flatten(1)

    head.step(reader._embed(ids[1:]), head.enter(features), mix)
    return store


class Checker:
    """After each round compares the features that a head holds with those of the target and of its view, uncached.

    And the head's cache, when a draft begins, with that of a head that reads all of it at once.
    """

    def __init__(self, decoder: Speculative, target: Any, verifier: Any) -> None:
        self.reader, self.target, self.spy = head_of(decoder), target, spy_on(decoder)
        self.readers: dict[str, Reader] = {one.role: one for one in decoder.readers.opened()}  # type: ignore[misc]
        self.slim = verifier.slim
        self.view = make_view(target, self.slim.mask)
        self.slim_seen = self.again = self.begun = 0
        plain = self.reader.feed

        def feed(ids: Tensor, stop: int, last: int) -> Tensor:
            calls, first = self.reader.calls, self.reader._read - 1
            logits = plain(ids, stop, last)
            if last and stop == self.spy.state.length:
                self.begun += 1
                self.again += first < stop - 2 and self.begun > 1
                assert self.reader.calls == calls + 1  # a feature is there for each pair
                self.check_cache(ids[:stop])
            return logits

        self.reader.feed = feed  # type: ignore[method-assign]

    def __call__(self, event: str) -> None:
        if event == "prefilled":
            return
        state, reader = self.spy.state, self.reader
        read = self.readers["target"].read
        assert read <= reader._confirmed <= reader._given <= state.length
        assert reader._given >= self.readers["slim"].read
        expected = self.expected(state.ids[: reader._given])
        if reader._given:
            assert (reader._features[: reader._given] - expected).abs().max() < 1e-9
        self.slim_seen += reader._given > reader._confirmed

    def expected(self, ids: Tensor) -> Tensor:
        reader, layers = self.reader, list(range(4))
        true = features_of(reader._head, self.target, layers, ids, 0, self.target)
        read = 0 if self.slim.cache == "separate" else min(self.readers["target"].read, len(ids))
        if reader._confirmed >= len(ids):
            return true
        slim = features_of(reader._head, self.view, self.slim.mask, ids, read, self.target)
        return torch.cat((true[: reader._confirmed], slim[reader._confirmed - read :]))

    def check_cache(self, ids: Tensor) -> None:
        count = len(ids) - 1
        for layer, parts in enumerate(read_at_once(self.reader, self.expected(ids)[:count], ids)):
            found = self.reader.cache.keys[layer][0, :, :count], self.reader.cache.values[layer][0, :, :count]
            for ours, theirs in zip(found, parts, strict=True):
                assert (ours - theirs).abs().max() < 1e-9


CASES = [
    *(("llama", "eagle3", "auto", verifier) for verifier in VERIFIERS),
    *(("llama", name, "eager", "shared") for name in SHAPES),
    *((family, "eagle3", "auto", "shared") for family in ("qwen3", "gemma2", "mistral")),
    *((family, "eagle1", "eager", "paper") for family in ("qwen3", "gemma2", "mistral")),
    ("qwen3", "eagle3_options", "auto", "exact"),
]


@torch.inference_mode()
@pytest.mark.parametrize(("family", "name", "mode", "verifier"), CASES)
def test_features_and_cache_after_every_round(
    tiny: ModelFactory, family: str, name: str, mode: Mode, verifier: str
) -> None:
    target = tiny(family, exact=True)
    decoder = opened(target, VERIFIERS[verifier], name, mode=mode)
    checker = Checker(decoder, target, VERIFIERS[verifier])
    decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 30), SeededDraws(3, "a"), watch=checker)
    assert checker.slim_seen > 1 and checker.begun > 3
    assert checker.again > 0 or verifier == "slim_only"  # there the target never catches up


@torch.inference_mode()
@pytest.mark.parametrize("verifier", [JsVerifier(), RollBack(), PearlVerifier()], ids=["adasd", "bild", "pearl"])
def test_other_verifiers_hand_on_the_targets_features(tiny: ModelFactory, verifier: VerifierSpec) -> None:
    target = tiny("llama", exact=True)
    decoder = opened(target, verifier)
    reader, spy, seen = head_of(decoder), spy_on(decoder), []

    def look(event: str) -> None:
        if event == "prefilled":
            return
        count, ids = reader._confirmed, spy.state.ids
        assert count >= next(one.read for one in decoder.readers.opened() if one.role == "target")
        if count:
            true = features_of(reader._head, target, list(range(4)), ids[:count], 0, target)
            assert (reader._features[:count] - true).abs().max() < 1e-9
        seen.append(count)

    decoder.generate(PROMPT, Decode(Sampling(), 20), SeededDraws(3, "a"), watch=look)
    assert len(set(seen)) > 3


# --- charges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slim", "fed"), [(MIDDLE, (4, 3)), (SEPARATE, (4, 3)), (PairModel(), (1, 1))], ids=["shared", "own", "mid"]
)
def test_pairs_are_read_again_once_the_target_has_caught_up(
    tiny: ModelFactory, slim: Any, fed: tuple[int, int]
) -> None:
    """Two drafts of four that the slim verifier keeps, then one that the target judges: all of them again, in one call.

    Behind the first draft four pairs have slim features now, behind the second one three: its first pair was read with
    one already. An independent model gives none: a round begins with one pair on the head's own output.
    """
    target = tiny("llama")
    verifier = Hierarchical(gate=KEEP_ALL, slim=slim, bonus="none", target_bonus=False, max_pending=8)
    decoder = opened(target, verifier)
    told, reader = list[tuple[int, int]](), head_of(decoder)

    def watch(event: str) -> None:
        told.append((reader.calls, reader.fed))

    generation = decoder.generate(PROMPT, Decode(Sampling(), 22), SeededDraws(0, "a"), watch=watch)
    rounds = generation.rounds
    assert [one.committed for one in rounds[:2]] == [4, 4] and rounds[2].escalation == "forced"
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(told)]
    # a draft of four: a call that begins it, and three for its own tokens but the last
    assert steps[:3] == [(4, 1 + 3), (4, fed[0] + 3), (4, fed[1] + 3)]
    own = rounds[2].judged - rounds[2].rejected
    last_read = rounds[2].rejected  # of a draft kept whole, the last token is the pair's second id alone
    again = 4 + 4 + own + last_read
    assert steps[3] == (4, again + 3) and again >= 9
    assert told[0] == (1, len(PROMPT) - 2)


def test_a_slim_view_fills_in_for_the_heads_own_outputs(tiny: ModelFactory) -> None:
    """What stands on the head's own outputs is read again with a slim view's features, then with the target's."""
    target = tiny("llama")
    reader = head_of(opened(target, VERIFIERS["paper"]))
    ids = torch.tensor(PROMPT)
    width = {layer: torch.randn(12, 32, dtype=torch.float64) for layer in reader.layers}

    def taps(start: int, stop: int, whole: bool) -> Taps:
        streams = {layer: one[start:stop] for layer, one in width.items()}
        return Taps(start, reader.layers, streams, torch.zeros(stop - start, 32), whole)

    reader.learn(taps(0, 4, True))
    reader.feed(ids, 9, last=0)
    assert (reader.calls, reader.fed, reader.read) == (5, 8, 9)  # four pairs at once, four on their own outputs
    reader.learn(taps(2, 7, False))
    assert (reader._confirmed, reader._given, reader.read) == (4, 7, 5)
    before = reader._features.clone()
    reader.learn(taps(0, 6, False))  # what is known is not replaced by a slim view's
    assert reader.read == 5 and torch.equal(before, reader._features)
    reader.feed(ids, 9, last=0)
    assert (reader.calls, reader.fed) == (5 + 2, 8 + 4)
    reader.learn(taps(3, 6, True))
    assert (reader._confirmed, reader._given, reader.read) == (6, 7, 5)
    reader.rewind(5)
    assert (reader._confirmed, reader._given, reader.read) == (5, 5, 5)
    reader.learn(taps(6, 8, False))  # a hole
    assert (reader._confirmed, reader._given) == (5, 5)
    reader.start()
    assert (reader._confirmed, reader._given) == (0, 0)


def test_features_of_tokens_that_were_taken_back_are_forgotten(tiny: ModelFactory) -> None:
    """Provisional tokens are withdrawn, and others written there: their features are those of the new text."""
    target = tiny("llama")
    verifier = Hierarchical(gate=KEEP_ALL, slim=DEEP, mode="exact", max_pending=10)
    decoder = opened(target, verifier)
    checker = Checker(decoder, target, verifier)
    with torch.inference_mode():
        generation = decoder.generate(PROMPT, DECODE, SeededDraws(0, "a"), watch=checker)
    assert sum(one.withdrawn for one in generation.rounds) > 4 and generation.token_ids == reference(target)


@torch.inference_mode()
def test_of_a_block_that_ends_the_text_no_more_is_known_than_stands(tiny: ModelFactory) -> None:
    """A provisional end of the text cuts what was kept; the target may take it back, and the text goes on."""
    target, verifier = tiny("llama"), Hierarchical(gate=KEEP_ALL, slim=DEEP, mode="exact")
    cut = 0
    for eos in (0, 24):
        decoder = opened(target, verifier)
        checker = Checker(decoder, target, verifier)
        decode = Decode(Sampling(), 8, frozenset({eos}))
        decoder.generate(PROMPT, decode, SeededDraws(0, "a"), watch=checker)
        cut += any(one.cut and not one.committed for one in checker.spy.state.rounds[:-2])
    assert cut


def test_the_view_is_tapped_and_an_independent_model_is_not(tiny: ModelFactory) -> None:
    target = tiny("llama")
    verifier = Hierarchical(gate=BUSY, slim=PairModel(), above=[SlimTier(gate=BUSY, slim=DEEP)])
    decoder = opened(target, verifier)
    decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 30), SeededDraws(0, "a"))
    tapped = {one.role: one.tapped for one in decoder.readers.opened()}
    assert tapped["target"] is not None and tapped["target"].whole
    assert tapped["slim2"] is not None and not tapped["slim2"].whole and tapped["slim"] is None
    with torch.inference_mode():
        decoder.begin(PROMPT, DECODE, SeededDraws(0, "a"))
    tapped = {one.role: one.tapped for one in decoder.readers.opened()}
    assert (
        tapped["target"] is not None and tapped["target"].stop == len(PROMPT) - 1 and tapped["slim2"] is None
    )  # the prompt's are held once


# --- output ---------------------------------------------------------------------------------------------------------


def decoded(target: Any, verifier: VerifierSpec, name: str, decode: Decode = DECODE) -> Generation:
    decoder = opened(target, verifier, name)
    spy = spy_on(decoder)
    generation = decoder.generate(PROMPT, decode, SeededDraws(0, "example"))
    if getattr(verifier, "mode", "lossy") == "exact":
        check_totals(generation, spy.drafts)
    else:
        check_counts(generation, spy.drafts, len(PROMPT))
    return generation


PRICED = replace(EXACT["judge_all"], calls=WhenItPays(draft_cost=0.1, slim_cost=0.5, target_cost=1))


@pytest.mark.parametrize("name", ["eagle1", "eagle3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_mode_writes_the_targets_greedy_text(tiny: ModelFactory, family: str, name: str) -> None:
    target = tiny(family)
    for verifier in (EXACT["judge_all"], EXACT["separate"], EXACT["three"], PRICED):
        assert decoded(target, verifier, name).token_ids == reference(target)


@pytest.mark.parametrize("how", ["via_sd", "via_sd_paper"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_that_escalates_everything_writes_it_too(tiny: ModelFactory, family: str, how: str) -> None:
    assert decoded(tiny(family), METHODS[how], "eagle3").token_ids == reference(tiny(family))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8)], ids=["greedy", "warm"])
@pytest.mark.parametrize("how", MORE)
def test_every_setting_keeps_its_counts(tiny: ModelFactory, how: str, sampling: Sampling) -> None:
    generation = decoded(tiny("llama"), MORE[how], "eagle3", Decode(sampling, 25))
    assert len(generation.token_ids) == 25 and generation.calls["slim"] > 0
    again = decoded(tiny("llama"), MORE[how], "eagle3", Decode(sampling, 25))
    assert (again.token_ids, again.calls, again.fed) == (generation.token_ids, generation.calls, generation.fed)


SLIM = SlimView(mask=[0, 3])
LAWS: dict[str, Hierarchical] = {
    "ratio": Hierarchical(gate=RatioGate(), slim=SLIM, mode="exact", bonus="none", target_bonus=False),
    "window": Hierarchical(gate=KEEP_ALL, slim=SLIM, mode="exact", max_pending=2, target_bonus=False),
    "judge": Hierarchical(gate=DeferralGate(threshold=0), slim=SLIM, mode="exact", bonus="none"),
}


@pytest.mark.parametrize(
    ("family", "name", "how"),
    [("qwen3", "eagle3", "ratio"), ("llama", "eagle1", "window"), ("llama", "eagle3", "judge")],
)
def test_sampling_law_in_exact_mode(family: str, name: str, how: str) -> None:
    target = build_model(family, vocab_size=3, initializer_range=0.2, pad_token_id=None)
    engine = Engine({"target": target}, 3, 64)
    engine.heads[name] = make_head(target, name)
    vanilla = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
    drafter = EagleDrafter(head=name, tree=None)
    length = 1 if how == "ratio" else 2  # else paths are too many
    method = Method(name="m", drafter=drafter, stop=FixedLength(length=length), verifier=LAWS[how])
    law = law_on(target, vanilla, engine)
    assert largest_difference(law_on(target, method, engine), law) < 1e-9
    lossy = replace(method, verifier=replace(LAWS[how], mode="lossy"))
    assert largest_difference(law_on(target, lossy, engine), law) > 1e-3
