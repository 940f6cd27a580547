"""Caches after every round against fresh prefills, cached rows against uncached ones, and views beside their target."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, WINDOW, ModelFactory
from doubles import DraftSpy, check_counts, spy_on
from test_exact import check_totals
from torch import Tensor
from transformers import DynamicCache

from baselines.controls import CoinMix, Unverified
from viasd.decode import Decode, Generation, Speculative
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine, Mode
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.kv_cache import SlotCache
from viasd.masks import BLOCK, MaskBank
from viasd.method import Method
from viasd.models import PairError, make_view
from viasd.reader import Reader
from viasd.routing import Gate, RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import PairModel, RuleVerifier, SlimView

PROMPT = torch.randint(3, VOCABULARY, (WINDOW + 3,), generator=torch.Generator().manual_seed(2)).tolist()
KEPT = [0, 2, 3]
NEW_TOKENS = 24
TOLERANCE = 1e-12
GATES: dict[str, Gate] = {
    "busy": RandomGate(keep=0.5, rewrite=0.3, escalate=0.2),
    "rare": RandomGate(keep=0.85, rewrite=0.1, escalate=0.05),  # the target sits out many rounds
    "ratio": RatioGate(accept_ratio=0.3, escalate_ratio=0.01),
}


def via_sd(gate: Gate, cache: str = "shared", **options: Any) -> Hierarchical:
    return Hierarchical(gate=gate, slim=SlimView(mask=KEPT, cache=cache), **options)  # type: ignore[arg-type]


def exact(tiny: ModelFactory, family: str) -> Any:
    """The family's model, its attention in float64 throughout (the library's Gemma-2 rounds it to float32)."""
    return tiny(family, exact=family == "gemma2")


# --- after every round --------------------------------------------------------------------------------------------


def prefill(model: Any, ids: Tensor, cache: DynamicCache | None = None) -> DynamicCache:
    """The library's own cache after reading `ids`, masks and positions left to the library."""
    cache = DynamicCache() if cache is None else cache
    if len(ids):
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return cache


def check_slots(store: SlotCache, fresh: DynamicCache, layers: list[int], start: int, stop: int) -> None:
    """Slots start..stop-1 of the given layers hold what the fresh cache holds."""
    for layer in layers:
        for ours, theirs in ((store.keys, "keys"), (store.values, "values")):
            expected = getattr(fresh.layers[layer], theirs)[:, :, start:stop]
            assert (ours[layer][:, :, start:stop] - expected).abs().max() < TOLERANCE


def layers_of(model: Any) -> list[int]:
    return [layer.self_attn.layer_idx for layer in model.get_decoder().layers]


class Watcher:
    """Compares the cache of every reader with a fresh prefill whenever a round ends."""

    def __init__(self, engine: Engine, decoder: Speculative) -> None:
        self.engine = engine
        self.spy: DraftSpy = spy_on(decoder)
        self.readers: dict[str, Any] = {reader.role: reader for reader in decoder.readers.opened()}
        self.slim_ahead = 0  # rounds after which the slim verifier had read more than the target
        self.steps = Counter[tuple[str, ...]]()  # who had read beyond whom on a shared cache

    def __call__(self, event: str) -> None:
        if event == "prefilled":
            return
        ids, length = self.spy.state.ids, self.spy.state.length
        for reader in self.readers.values():
            assert reader.read <= length - 1
            self.check(reader, ids)

    def check(self, reader: Any, ids: Tensor) -> None:
        """Behind what a stronger reader has read, a sharing view holds what it writes when it goes on from there."""
        line = [reader]
        while line[0].stronger is not None:
            line.insert(0, line[0].stronger)
        fresh, known = DynamicCache(), 0
        for one in line:
            prefill(one.model, ids[known : one.read], fresh)
            known = max(known, one.read)
        check_slots(reader.cache, fresh, layers_of(reader.model), 0, reader.read)
        if len(line) > 1 and reader.role == "slim":
            ahead = [one.role for one in line[1:] if one.read > one.stronger.read]
            self.slim_ahead += bool(ahead)
            self.steps[tuple(ahead)] += 1


def run_watched(
    target: Any, draft: Any, verifier: Any, seed: int = 0, length: int = 4, mid: Any = None
) -> tuple[Generation, Watcher]:
    """A sampled run with the caches checked after every round."""
    models = {"target": target, "draft": draft} | ({} if mid is None else {"mid": mid})
    engine = Engine(models, VOCABULARY, 64)
    method = Method(name="test", drafter=DraftModel(), stop=FixedLength(length=length), verifier=verifier)
    decoder = method.open(engine)
    watcher = Watcher(engine, decoder)
    decode = Decode(Sampling(temperature=1.0), NEW_TOKENS)
    generation = decoder.generate(PROMPT, decode, SeededDraws(seed, "example"), watch=watcher)
    if getattr(verifier, "mode", "lossy") == "exact":
        check_totals(generation, watcher.spy.drafts)
    else:
        check_counts(generation, watcher.spy.drafts, len(PROMPT))
    return generation, watcher


@pytest.mark.parametrize("max_pending", [1, 6, None])
@pytest.mark.parametrize("after_escalation", ["target", "slim"])
@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("gate", GATES)
def test_via_sd(
    tiny: ModelFactory, variant: ModelFactory, gate: str, cache: str, after_escalation: str, max_pending: int | None
) -> None:
    target = tiny("llama")
    verifier = via_sd(GATES[gate], cache, after_escalation=after_escalation, max_pending=max_pending)
    generation, watcher = run_watched(target, variant(target, "noisy"), verifier)
    rounds = generation.rounds
    if max_pending is not None:
        assert any(round_.escalation == "forced" for round_ in rounds) or gate == "ratio"
        assert max(round_.pending for round_ in rounds) <= max_pending
    if max_pending != 1:
        assert any(round_.escalation is None for round_ in rounds)  # the target was idle
        assert watcher.slim_ahead > 0 or cache == "separate"
    if gate == "busy":
        assert any(round_.discarded for round_ in rounds)  # something was rolled back


@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_via_sd_families(tiny: ModelFactory, variant: ModelFactory, family: str, cache: str) -> None:
    target = exact(tiny, family)
    generation, _ = run_watched(target, variant(target, "noisy"), via_sd(GATES["busy"], cache, max_pending=8), seed=1)
    assert {tier for round_ in generation.rounds for tier in round_.tiers} == {"draft", "slim", "target"}


@pytest.mark.parametrize(
    "verifier",
    [
        RuleVerifier(),
        CoinMix(p=0.4),
        Unverified(),
        RuleVerifier(reader="slim", slim=SlimView(mask=KEPT)),
        RuleVerifier(reader="slim", slim=SlimView(mask=KEPT, cache="separate")),
    ],
    ids=["sd", "coin_mix", "draft_only", "slim_only", "slim_only-separate"],
)
def test_other_verifiers(tiny: ModelFactory, variant: ModelFactory, verifier: Any) -> None:
    target = tiny("mistral")
    run_watched(target, variant(target, "noisy"), verifier)


# --- several slim verifiers, and what is taken back ----------------------------------------------------------------

NESTED = ([0], [0, 3], [0, 2, 3])
HALF = RandomGate(keep=0.35, rewrite=0.15, escalate=0.35, judge=0.15)
TIER_GATES: dict[str, Gate] = {
    "busy": HALF,
    "keep_all": RatioGate(accept_ratio=0, escalate_ratio=0),
    "deferral": DeferralGate(threshold=0.5),
}


def nested(masks: tuple[list[int], ...], gate: Gate, caches: tuple[str, ...] = ("shared",) * 3, **options: Any) -> Any:
    """Slim verifiers with one gate, the weakest first."""
    first, *above = [SlimView(mask=mask, cache=cache) for mask, cache in zip(masks, caches, strict=False)]  # type: ignore[arg-type]
    return Hierarchical(gate=gate, slim=first, above=[SlimTier(gate=gate, slim=slim) for slim in above], **options)


@pytest.mark.parametrize("gate", TIER_GATES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_exact(tiny: ModelFactory, variant: ModelFactory, family: str, gate: str) -> None:
    """Provisional tokens stand in the caches, and what the target takes back leaves nothing behind."""
    target = exact(tiny, family)
    withdrawn = provisional = 0
    for seed in range(2):
        verifier = via_sd(TIER_GATES[gate], mode="exact", max_pending=7)
        generation, watcher = run_watched(target, variant(target, "noisy"), verifier, seed)
        withdrawn += sum(round_.withdrawn for round_ in generation.rounds)
        provisional += watcher.slim_ahead
    assert withdrawn > 0 and provisional > 0


@pytest.mark.parametrize("mode", ["lossy", "lossy_after_slim", "exact"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_nested_views(tiny: ModelFactory, variant: ModelFactory, family: str, count: int, mode: str) -> None:
    target = exact(tiny, family)
    options = {"mode": mode} if "after" not in mode else {"after_escalation": "slim"}
    verifier = nested(NESTED[-count:], HALF, max_pending=9, **options)
    steps = Counter[tuple[str, ...]]()
    for seed in range(2):
        _, watcher = run_watched(target, variant(target, "noisy"), verifier, seed)
        steps += watcher.steps
        assert all(reader.calls > 0 for reader in watcher.readers.values())
        assert watcher.readers[f"slim{count}"].stronger is watcher.readers["target"]
        assert watcher.readers["slim"].stronger is watcher.readers["slim2"]
    assert len(steps) > 1  # views were ahead of one another and of the target in more than one way


@pytest.mark.parametrize(
    "caches", [("separate", "shared"), ("shared", "separate"), ("separate", "separate")], ids="-".join
)
@pytest.mark.parametrize("mode", ["lossy", "exact"])
def test_views_on_different_caches(
    tiny: ModelFactory, variant: ModelFactory, caches: tuple[str, str], mode: str
) -> None:
    """Masks that are not nested, one of the views on a cache of its own."""
    target = tiny("llama")
    verifier = nested(([0, 1, 3], [0, 2, 3]), HALF, caches, mode=mode, max_pending=9)
    _, watcher = run_watched(target, variant(target, "noisy"), verifier)
    for role, cache in zip(("slim", "slim2"), caches, strict=True):
        assert (watcher.readers[role].stronger is None) == (cache == "separate")


def test_views_on_one_cache_must_be_nested(tiny: ModelFactory, variant: ModelFactory) -> None:
    target = tiny("llama")
    with pytest.raises(PairError, match=r"slim: layer 1 is not one of the stronger slim verifier.*cache=separate"):
        run_watched(target, variant(target, "noisy"), nested(([0, 1, 3], [0, 2, 3]), HALF))
    with pytest.raises(PairError, match="slim2: layer 2 is not one of"):
        run_watched(target, variant(target, "noisy"), nested(([0], [0, 2], [0, 3]), HALF))


@pytest.mark.parametrize("mode", ["lossy", "exact"])
@pytest.mark.parametrize("view", [False, True], ids=["alone", "below_a_view"])
def test_model_of_the_pair_as_intermediate(tiny: ModelFactory, variant: ModelFactory, view: bool, mode: str) -> None:
    """An independent model between draft and target reads on its own cache, under a view's name."""
    target, mid = tiny("llama"), tiny("llama", layers=2, seed=4)
    above = [SlimTier(gate=HALF, slim=SlimView(mask=KEPT))] if view else []
    verifier = Hierarchical(gate=HALF, slim=PairModel(role="mid"), above=above, mode=mode, max_pending=9)  # type: ignore[arg-type]
    assert verifier.roles == {"target", "mid"}
    generation, watcher = run_watched(target, variant(target, "noisy"), verifier, mid=mid)
    slim = watcher.readers["slim"]
    assert slim.model is mid and slim.stronger is None and slim.calls > 0
    assert slim.cache is watcher.engine.cache("mid") is not watcher.engine.cache("target")
    assert {"target", "draft", "slim", *(["slim2"] if view else [])} == set(generation.calls)


def test_missing_model_of_the_pair_is_named(tiny: ModelFactory, variant: ModelFactory) -> None:
    target = tiny("llama")
    with pytest.raises(PairError, match="no model for role 'mid'"):
        run_watched(target, variant(target, "noisy"), Hierarchical(gate=HALF, slim=PairModel()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_early_exit(tiny: ModelFactory, variant: ModelFactory, family: str) -> None:
    """The first layers, then norm and head: nested whatever the depth."""
    target = exact(tiny, family)
    _, watcher = run_watched(target, variant(target, "noisy"), nested(([0], [0, 1, 2]), HALF, max_pending=9))
    assert layers_of(watcher.readers["slim2"].model) == [0, 1, 2]
    assert watcher.slim_ahead > 0


# --- cached rows against uncached ones ----------------------------------------------------------------------------


def reader_of(model: Any, slots: int = 160, mode: Mode = "auto") -> Reader:
    return Engine({"target": model}, VOCABULARY, slots, mode).readers().get("target")


@pytest.mark.parametrize("mode", ["eager", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_rows_equal_uncached_rows(tiny: ModelFactory, family: str, mode: Mode) -> None:
    """Chunks of every size, one beyond the prepared masks, with rewinds to other text in between."""
    model = exact(tiny, family)
    ids = torch.randint(3, VOCABULARY, (120,), generator=torch.Generator().manual_seed(3))
    expected = model(input_ids=ids[None], use_cache=False).logits[0]
    reader = reader_of(model, mode=mode)
    stop = 0
    for size in (1, BLOCK + 6, 1, 2, 5, 1, 9, 30):
        other = ids.clone()
        other[stop + 1 :] = 5  # text that is taken back
        reader.feed(other, stop + 4, last=4)
        reader.rewind(stop)
        stop += size
        rows = reader.feed(ids, stop, last=size)
        assert (rows - expected[stop - size : stop]).abs().max() < 1e-11
    assert reader.read == stop
    assert reader.fed == stop + 4 * 8


def test_feed_needs_something_to_read(tiny: ModelFactory) -> None:
    reader = reader_of(tiny("llama"))
    ids = torch.arange(10)
    reader.feed(ids, 5, last=1)
    with pytest.raises(AssertionError, match="2 rows asked, 1 ids to feed"):
        reader.feed(ids, 6, last=2)


def test_capacity_is_checked(tiny: ModelFactory) -> None:
    with pytest.raises(ValueError, match="needs 9 cache slots, the cache has 8"):
        reader_of(tiny("llama"), slots=8).feed(torch.arange(10), 9, last=1)


def test_memory_is_counted(tiny: ModelFactory) -> None:
    reader = reader_of(tiny("llama"), slots=10)
    assert reader.cache.memory_bytes == 0
    reader.feed(torch.arange(10), 3, last=1)
    assert reader.cache.memory_bytes == 2 * 4 * 2 * 10 * 8 * 8  # kinds, layers, heads, slots, head_dim, bytes


def test_unknown_attention_type_is_refused(tiny: ModelFactory) -> None:
    config = copy.copy(tiny("qwen2").config)
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ValueError, match="'chunked_attention' is not supported"):
        MaskBank(config, 8, torch.float64, torch.device("cpu"))


# --- views --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_views_leave_the_target_as_it_was(tiny: ModelFactory, family: str) -> None:
    model = exact(tiny, family)
    ids = torch.tensor([PROMPT])
    before = model(input_ids=ids, use_cache=False).logits
    slim, empty, whole = (make_view(model, kept) for kept in (KEPT, [0], [0, 1, 2, 3]))
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)
    rows = slim(input_ids=ids, use_cache=False).logits
    empty(input_ids=ids, use_cache=False)
    assert not torch.equal(rows, before)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)
    assert torch.equal(whole(input_ids=ids, use_cache=False).logits, before)  # an empty skip set is the target
    assert [layer.self_attn.layer_idx for layer in slim.model.layers] == KEPT
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_view_equals_the_model_without_those_layers(tiny: ModelFactory, family: str) -> None:
    model = exact(tiny, family)
    ids = torch.tensor([PROMPT])
    shorter = copy.deepcopy(model)
    decoder = shorter.get_decoder()
    decoder.layers = torch.nn.ModuleList([decoder.layers[index] for index in KEPT])
    decoder.config.num_hidden_layers = len(KEPT)
    if getattr(decoder.config, "layer_types", None) is not None:
        decoder.config.layer_types = [decoder.config.layer_types[index] for index in KEPT]
    expected = shorter(input_ids=ids, use_cache=False).logits
    assert torch.equal(make_view(model, KEPT)(input_ids=ids, use_cache=False).logits, expected)


def test_views_share_weights(tiny: ModelFactory) -> None:
    model = tiny("qwen3")
    view = make_view(model, KEPT)
    owned = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    shared = {weight.data_ptr() for weight in view.parameters()}
    assert shared < set(owned.values())
    kept = [name for name in owned if ".layers.1." not in name]
    assert shared == {owned[name] for name in kept}


def test_engine_makes_a_view_once(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 16)
    assert engine.view(KEPT) is engine.view(tuple(KEPT))
    assert engine.view([0, 3]) is not engine.view(KEPT)
    readers = engine.readers()
    assert readers.slim(KEPT, "shared").cache is readers.get("target").cache
    assert engine.readers().slim(KEPT, "separate").cache is not readers.get("target").cache
