"""On CUDA: recorded, fused and eager forwards write the same, nothing is recorded late, and rounds wait seldom."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, build_model

from viasd import graphs
from viasd.compiled import compile_obstacle
from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.engine import Engine, Mode
from viasd.forward import FusedForward
from viasd.graphs import LONGEST, SIZES, CudaRecorder, GraphForward, Replay, Step
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Pair, common_vocabulary, load_model
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

DEVICE = os.environ.get("VIASD_TEST_DEVICE", "cuda")  # for example cuda:1
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KEPT = [0, 2, 3]
PROMPT = list(range(5, 15))
IDS = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(3))
GREEDY, SAMPLED = Sampling(), Sampling(temperature=1.0, top_k=20, top_p=0.9)
MODES: tuple[Mode, ...] = ("eager", "fused", "graphs")


class CountingRecorder(CudaRecorder):
    """Records, and counts recordings and replays."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = self.replayed = 0

    def __call__(self, step: Step) -> Replay:
        self.recorded += 1
        replay = super().__call__(step)

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted


def noisy(model: Any) -> Any:
    """A copy that agrees with the model now and then."""
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    for weight in twin.get_decoder().layers.parameters():
        weight += 0.06 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return twin


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    """Recordings are of the current device."""
    with torch.cuda.device(DEVICE):
        yield


def models(family: str = "llama") -> dict[str, Any]:
    """Made on a CPU, so that they are the same everywhere, and moved."""
    target = build_model(family)
    return {role: model.to(DEVICE) for role, model in {"target": target, "draft": noisy(target)}.items()}


def method(name: str, kept: list[int] = KEPT) -> Method:
    if name == "vanilla":
        return Method(name=name, drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
    verifier: Any = RuleVerifier()
    if name == "via_sd":
        gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)
        verifier = Hierarchical(gate=gate, slim=SlimView(mask=kept))
    return Method(name=name, drafter=DraftModel(), stop=FixedLength(length=4), verifier=verifier)


def generate(engine: Engine, one: Method, sampling: Sampling, tokens: int = 40) -> list[Generation]:
    """The same output twice: before and after everything is recorded."""
    decoder, outputs = one.open(engine), []
    for _ in range(2):
        draws = SeededDraws(0, "a", engine.device)
        outputs.append(decoder.generate(PROMPT, Decode(sampling, tokens), draws))
        engine.prepare()
    return outputs


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["vanilla", "sd", "via_sd"])
def test_every_mode_writes_the_same(name: str, sampling: Sampling) -> None:
    engines = [Engine(models(), VOCABULARY, 64, mode) for mode in MODES]
    outputs = [one for engine in engines for one in generate(engine, method(name), sampling)]
    assert all(one == outputs[0] for one in outputs) and len(outputs[0].token_ids) == 40


@pytest.mark.parametrize("name", ["vanilla", "sd", "via_sd"])
def test_the_reference_pair_in_float32(name: str) -> None:
    """Token ids alone: kernels of other shapes round otherwise, and this pair is seldom undecided."""
    pair = Pair(name="reference", models={role: f"viasd://reference/{role}" for role in ("target", "draft")})
    outputs = []
    for mode in MODES:
        loaded = {role: load_model(pair, role, torch.float32, torch.device(DEVICE)) for role in pair.models}
        kept = list(range(0, len(loaded["target"].get_decoder().layers), 2))
        engine = Engine(loaded, common_vocabulary(pair), 128, mode)
        outputs += [one.token_ids for one in generate(engine, method(name, kept), GREEDY)]
    assert all(ids == outputs[0] for ids in outputs)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "tied"])
def test_rows_of_every_length(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 32)
    found, model = [], build_model(family).to(DEVICE)
    ids = IDS.to(DEVICE)
    for mode in MODES:
        readers = Engine({"target": model}, VOCABULARY, 64, mode).readers()
        target, slim = readers.get("target"), readers.slim(KEPT, "shared")
        rows = [target.feed(ids, 64, 1)]
        for fed in range(1, LONGEST + 1):
            for stop in (31, 32, 33, 64):
                for reader in (target, slim):
                    reader.rewind(max(0, stop - fed))
                rows.append((slim if fed % 2 else target).feed(ids, stop, min(fed, stop)))
        found.append(rows)
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-10


@torch.inference_mode()
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_blocks(sampling: Sampling) -> None:
    found, model = [], build_model("llama").to(DEVICE)
    modes: tuple[Mode, Mode] = ("fused", "graphs")
    for mode in modes:
        engine = Engine({"target": model}, VOCABULARY, 64, mode)
        engine.record = recorder = CountingRecorder() if mode == "graphs" else None
        reader, ids, draws = engine.readers().get("target"), IDS.to(DEVICE), SeededDraws(0, "a", DEVICE)
        reader.feed(ids, 8, 0)
        reader.draft_on(ids, 9, 5, sampling, SeededDraws(1, "a", DEVICE))
        engine.prepare()
        known = recorder.replayed if recorder else 0
        blocks = []
        for stop in range(9, 59):
            reader.rewind(stop - 1 - stop % 2)
            blocks.append(reader.draft_on(ids, stop, 5, sampling, draws))
        assert recorder is None or recorder.replayed - known == 50
        found.append(blocks)
    for (tokens, rows, _), (others, other_rows, _) in zip(*found, strict=True):
        assert torch.equal(tokens, others) and (rows - other_rows).abs().max() < 1e-10


@torch.inference_mode()
def test_after_prepare_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 32)
    engine = Engine(models(), VOCABULARY, 64)  # auto
    engine.record = recorder = CountingRecorder()
    decoder = method("via_sd").open(engine)
    draws = SeededDraws(0, "a", engine.device)
    decoder.generate(PROMPT, Decode(GREEDY, 40), draws)
    assert isinstance(engine.forward(engine.model("target"), "target"), GraphForward)
    store = engine.cache("target")
    before = [states[:, :, :64].clone() for states in (*store.keys.values(), *store.values.values())]
    engine.prepare()
    known = recorder.recorded
    assert known >= 3 * 2 * len(SIZES)
    for ours, theirs in zip(before, (*store.keys.values(), *store.values.values()), strict=True):
        assert torch.equal(ours, theirs[:, :, :64])
    ids = IDS.to(DEVICE)
    for reader in decoder.readers.opened():
        for fed in range(1, LONGEST + 1):
            for stop in (fed, 33, 64):
                for other in decoder.readers.opened():
                    other.rewind(max(0, stop - fed))
                reader.feed(ids, stop, 1)
    decoder.generate(PROMPT, Decode(GREEDY, 40), draws)
    assert recorder.recorded == known


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("name", "most"), [("vanilla", 1), ("sd", 1), ("via_sd", 2)])
@pytest.mark.parametrize("mode", ["fused", "graphs"])
def test_how_often_a_round_waits(mode: Mode, name: str, most: int, sampling: Sampling) -> None:
    engine = Engine(models(), VOCABULARY, 64, mode)
    generate(engine, method(name), sampling)
    waits: list[int] = []

    def count(event: str) -> None:
        if event == "round":
            waits.append(sum("synchronizing CUDA operation" in str(one.message) for one in told))
        told.clear()

    decoder = method(name).open(engine)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            decoder.generate(PROMPT, Decode(sampling, 40), SeededDraws(0, "a", engine.device), watch=count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert 1 <= max(waits) <= most, waits


@pytest.mark.parametrize("name", ["sd", "via_sd"])
def test_compiled_layers_in_recordings(name: str) -> None:
    lack = compile_obstacle(torch.device(DEVICE), "inductor")
    if lack is not None:
        pytest.skip(lack)
    outputs = [
        generate(Engine(models(), VOCABULARY, 64, mode), method(name), GREEDY)[1].token_ids
        for mode in ("fused", "compile")
    ]
    assert outputs[0] == outputs[1]


def test_what_is_not_recorded_is_fused_or_eager() -> None:
    made = models()
    assert isinstance(Engine(made, VOCABULARY, 64, "fused").forward(made["target"], "target"), FusedForward)
    gemma = build_model("gemma2").to(DEVICE)
    engine = Engine({"target": gemma}, VOCABULARY, 64)
    assert not isinstance(engine.forward(gemma, "target"), FusedForward | GraphForward)
