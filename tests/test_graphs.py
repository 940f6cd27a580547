"""Recorded forwards: replayed with other tokens and positions they give what a fused forward gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from torch.fx.experimental.proxy_tensor import make_fx

from viasd import graphs
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.forward import FusedForward
from viasd.graphs import LONGEST, LONGEST_BLOCK, SIZES, GraphForward, Step
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import PairError
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import SlimView

IDS = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(3))
PLAIN = ["llama", "qwen2", "qwen3", "mistral", "tied"]
KEPT = [0, 2, 3]


class Tape:
    """Records as CUDA does: the operations with the memory they touch. A number the host read stays what it was.

    `blank` ones run the step again instead, where only their number matters: quick, and blind to such numbers.
    """

    def __init__(self, blank: bool = False) -> None:
        self.recorded = self.replayed = 0
        self.blank = blank

    def __call__(self, step: Step) -> Callable[[], None]:
        step()
        tape = step if self.blank else make_fx(step)()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape()

        return replay


@pytest.fixture
def recorded() -> Callable[..., Engine]:
    """An engine on a CPU whose forwards are recorded on tape."""

    def make(models: dict[str, object], slots: int = 64, vocabulary: int = VOCABULARY) -> Engine:
        engine = Engine(models, vocabulary, slots)
        engine.record = Tape()
        return engine

    return make


def tape_of(engine: Engine) -> Tape:
    assert isinstance(engine.record, Tape)
    return engine.record


@pytest.mark.parametrize(("family", "bucket"), [*((family, 256) for family in PLAIN), ("llama", 32), ("mistral", 32)])
def test_replays_equal_fused_forwards(
    tiny: ModelFactory,
    recorded: Callable[..., Engine],
    family: str,
    bucket: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Across buckets, with rewinds to other text, of the target and of a view on its cache."""
    monkeypatch.setattr(graphs, "BUCKET", bucket)
    model, found = tiny(family), []
    for engine in (Engine({"target": model}, VOCABULARY, 60), recorded({"target": model}, 60)):
        readers = engine.readers()
        target, slim = readers.get("target"), readers.slim(KEPT, "shared")
        rows = [target.feed(IDS, 9, 0)]
        for stop in (*range(10, 30), 35, 36, 37, 42, 43, 60):
            rows += [slim.feed(IDS, stop, 1), target.feed(IDS, stop, 1)]
            if stop % 4 == 0:
                for reader in (target, slim):
                    reader.rewind(stop - 3)
                rows.append(target.feed(IDS.flip(0), stop, 3))
                for reader in (target, slim):
                    reader.rewind(stop - 3)
                rows.append(target.feed(IDS, stop, 2))
        found.append(rows)
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    tape = tape_of(engine)
    assert tape.replayed > 2 * tape.recorded > 0


def test_a_recording_serves_every_position(tiny: ModelFactory, recorded: Callable[..., Engine]) -> None:
    engine = recorded({"target": tiny("llama")})
    reader = engine.readers().get("target")
    reader.feed(IDS, 5, 0)
    for stop in range(6, 60):
        reader.feed(IDS, stop, 1)
    assert (tape_of(engine).recorded, tape_of(engine).replayed) == (1, 54)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_lengths_are_filled_up_and_what_fills_them_leaves_no_trace(
    tiny: ModelFactory, recorded: Callable[..., Engine], family: str
) -> None:
    """Every length gives the fused rows and the fused cache, up to the last slot; slots behind stay as they were."""
    engines = Engine({"target": tiny(family)}, VOCABULARY, 40), recorded({"target": tiny(family)}, 40)
    readers = [engine.readers().get("target") for engine in engines]
    for reader in readers:
        reader.feed(IDS, 40, 0)
    exact, filled = (engine.cache("target") for engine in engines)
    for fed in (*range(1, 10), 12, 13, 17, 24, 31, 32):
        for start in (5, 40 - fed):
            before = {layer: keys.clone() for layer, keys in filled.keys.items()}
            for reader in readers:
                reader.rewind(start)
            ours, theirs = (reader.feed(IDS.roll(fed), start + fed, fed) for reader in readers)
            assert ours.shape == (fed, VOCABULARY) and (ours - theirs).abs().max() < 1e-12
            for layer, keys in filled.keys.items():
                assert (keys[:, :, :40] - exact.keys[layer]).abs().max() < 1e-12
                assert torch.equal(keys[:, :, start + fed : 40], before[layer][:, :, start + fed : 40])
    assert tape_of(engines[1]).recorded == len(SIZES)


@torch.inference_mode()
def test_what_the_spare_slot_holds_is_never_seen(tiny: ModelFactory, recorded: Callable[..., Engine]) -> None:
    engine = recorded({"target": tiny("llama")}, 40)
    reader = engine.readers().get("target")
    reader.feed(IDS, 5, 0)
    for store in (engine.cache("target").keys, engine.cache("target").values):
        for states in store.values():
            states[:, :, 40] = torch.nan
    for stop in (6, 11, 31, 40):
        assert reader.feed(IDS, stop, 1).isfinite().all()


@torch.inference_mode()
def test_after_prepare_nothing_is_recorded(
    tiny: ModelFactory, recorded: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 16)
    engine = recorded({"target": tiny("llama", layers=1)}, 60)
    engine.record = Tape(blank=True)
    engine.readers().get("target")
    engine.prepare()
    assert tape_of(engine).recorded == 0  # no cache yet
    readers = engine.readers()
    target, slim = readers.get("target"), readers.slim([0], "shared")
    target.feed(IDS, 60, 0)
    store = engine.cache("target")
    before = [states[:, :, :60].clone() for states in (*store.keys.values(), *store.values.values())]
    engine.prepare()
    known = tape_of(engine).recorded
    assert known == 2 * 4 * len(SIZES)  # forwards, buckets
    for ours, theirs in zip(before, (*store.keys.values(), *store.values.values()), strict=True):
        assert torch.equal(ours, theirs[:, :, :60])
    engine.prepare()
    for stop in range(1, 61):
        for fed in range(1, min(stop, LONGEST) + 1):
            for reader in (target, slim):
                reader.rewind(stop - fed)
            (slim if fed % 2 else target).feed(IDS, stop, 1)
    assert tape_of(engine).recorded == known and tape_of(engine).replayed > 60


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are made for three sizes: tape is slow."""
    monkeypatch.setattr(graphs, "SIZES", (1, 2, 8))
    monkeypatch.setattr(graphs, "LONGEST", 8)
    monkeypatch.setattr(graphs, "BUCKET", 32)


SAMPLINGS = [Sampling(), Sampling(temperature=0.8), Sampling(temperature=1.0, top_k=20, top_p=0.9, min_p=0.02)]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "sampling"), [("llama", SAMPLINGS[0]), ("llama", SAMPLINGS[1]), ("mistral", SAMPLINGS[2])]
)
def test_a_block_in_one_replay_is_the_block_step_by_step(
    tiny: ModelFactory,
    recorded: Callable[..., Engine],
    few_sizes: None,
    family: str,
    sampling: Sampling,
) -> None:
    """Tokens, rows, ids, cache, counts and the streams of draws, behind one and two unread tokens, across buckets."""
    models = {"target": tiny(family, layers=2)}
    plain, engine = Engine(models, VOCABULARY, 64), recorded(models)
    found, fed = [], []
    for one in (plain, engine):
        reader, draws, ids = one.readers().get("target"), SeededDraws(0, "a"), IDS.clone()
        one.probe.look = lambda role, logits: fed.append(logits)
        reader.feed(ids, 8, 0)
        reader.draft_on(ids, 9, 5, sampling, SeededDraws(1, "other"))  # notes the kind
        one.prepare()
        replayed = tape_of(one).replayed if one is engine else 0
        outcomes = []
        for stop in range(10, 60, 3):
            reader.rewind(stop - 1 - stop % 2)
            tokens, rows, _ = reader.draft_on(ids, stop, 5, sampling, draws)
            assert torch.equal(tokens, ids[stop : stop + 5]) and reader.read == stop + 4
            outcomes.append((tokens, rows))
        store = one.cache("target")
        states = [states[:, :, :63].clone() for states in (*store.keys.values(), *store.values.values())]
        after = draws.draw(torch.ones(1, 9), "draft")
        found.append((outcomes, reader.calls, reader.fed, after, len(fed), states))
    assert tape_of(engine).replayed - replayed == 17  # one for each block
    (ours, *counts, seen, states), (theirs, *other_counts, both_seen, other_states) = found
    assert counts == other_counts and both_seen == 2 * seen
    for (tokens, rows), (other_tokens, other_rows) in zip(ours, theirs, strict=True):
        assert torch.equal(tokens, other_tokens) and (rows - other_rows).abs().max() < 1e-12
    for one, other in zip(states, other_states, strict=True):
        assert (one - other).abs().max() < 1e-12


@torch.inference_mode()
def test_which_blocks_are_replayed(tiny: ModelFactory, recorded: Callable[..., Engine], few_sizes: None) -> None:
    """Only of kinds that were known at `prepare`, behind one or two unread tokens; a watch hears of all its calls."""
    engine = recorded({"target": tiny("llama", layers=1)})
    reader, ids, told = engine.readers().get("target"), IDS.clone(), []

    @contextmanager
    def watch(role: str, *fed: int) -> Iterator[None]:
        yield
        told.append((role, *fed))

    engine.probe.watch = watch
    reader.feed(ids, 8, 0)
    for prepared in (False, True):
        for steps, stop in ((4, 9), (4, 10), (4, 11), (1, 9), (LONGEST_BLOCK + 1, 9)):
            told.clear()
            reader.rewind(8)
            reader.draft_on(ids, stop, steps, Sampling(), SeededDraws(0, "a"))
            if prepared and steps == 4 and stop < 11:
                assert told == [("target", stop - 8, 1, 1, 1)]
            else:
                assert told == [("target", stop - 8), *[("target", 1)] * (steps - 1)]
        engine.prepare()
    known = tape_of(engine).recorded
    reader.rewind(8)
    told.clear()
    reader.draft_on(ids, 9, 3, Sampling(), SeededDraws(0, "a"))  # a new kind
    assert len(told) == 3 and tape_of(engine).recorded == known


@torch.inference_mode()
@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2]], ids=["greedy", "truncated"])
@pytest.mark.parametrize("common", [VOCABULARY - 9, VOCABULARY + 9])
def test_blocks_of_models_with_other_vocabularies(
    tiny: ModelFactory, recorded: Callable[..., Engine], few_sizes: None, sampling: Sampling, common: int
) -> None:
    """Ids that a model lacks are read as its last one and never chosen; ids that the pair lacks are not chosen."""
    found = []
    for prepared in (False, True):
        engine = recorded({"target": tiny("llama", layers=1)}, vocabulary=common)
        reader, ids, draws = engine.readers().get("target"), IDS.clone() % common, SeededDraws(0, "a")
        ids[8] = common - 1
        reader.feed(ids, 8, 0)
        reader.draft_on(ids, 9, 6, sampling, SeededDraws(1, "a"))
        if prepared:
            engine.prepare()
        reader.rewind(8)
        ids[8] = common - 1
        found.append(reader.draft_on(ids, 9, 6, sampling, draws))
    (tokens, rows, logits), (others, other_rows, other_logits) = found
    assert torch.equal(tokens, others) and (rows - other_rows).abs().max() < 1e-12
    assert torch.allclose(logits, other_logits, rtol=0, atol=1e-12)
    assert rows.shape == (6, common) and tokens.max() < min(common, VOCABULARY)


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampled"])
def test_methods_write_the_same(
    tiny: ModelFactory,
    variant: ModelFactory,
    recorded: Callable[..., Engine],
    few_sizes: None,
    monkeypatch: pytest.MonkeyPatch,
    sampling: Sampling,
) -> None:
    """Fused, recorded where a forward first occurs, and prepared: the same tokens, rounds and counts."""
    monkeypatch.setattr(graphs, "BUCKET", 64)
    target = tiny("llama", layers=2)
    models = {"target": target, "draft": variant(target, "noisy")}
    gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)
    verifier = Hierarchical(gate=gate, slim=SlimView(mask=[1]))
    method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=4), verifier=verifier)
    outputs = []
    for engine in (Engine(models, VOCABULARY, 64), recorded(models)):
        decoder = method.open(engine)
        for _ in range(2):
            outputs.append(decoder.generate([5, 6, 7, 8], Decode(sampling, 40), SeededDraws(0, "a")))
            engine.prepare()
    assert outputs[0] == outputs[2] == outputs[3] and len(outputs[0].token_ids) == 40
    draft = engine.forward(models["draft"], "draft")
    assert isinstance(draft, GraphForward) and len(draft._blocks) >= 1


def test_a_cache_without_a_spare_slot_is_refused(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 8)
    fused = engine.forward(engine.model("target"), "target")
    assert isinstance(fused, FusedForward)
    with pytest.raises(ValueError, match="spare slot"):
        GraphForward(fused, engine.cache("target"), Tape())


def test_graphs_need_cuda(tiny: ModelFactory) -> None:
    with pytest.raises(PairError, match=r"engine\.mode=graphs: .* on cpu; accepted there: auto, eager, fused, compile"):
        Engine({"target": tiny("llama")}, VOCABULARY, 8, "graphs")
