"""Recorded forwards: replayed with other tokens and positions they give what a fused forward gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from viasd import graphs
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.forward import FusedForward
from viasd.graphs import GraphForward, Step
from viasd.method import Method
from viasd.models import PairError
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import Hierarchical, SlimView

IDS = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(3))
PLAIN = ["llama", "qwen2", "qwen3", "mistral", "tied"]
KEPT = [0, 2, 3]


class Tape:
    """Records as CUDA does: the operations with the memory they touch. A number the host read stays what it was."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Step) -> tuple[Callable[[], None], Tensor]:
        tape, result = make_fx(step)(), step().clone()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            result.copy_(tape())

        return replay, result


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """An engine on a CPU whose forwards are recorded on tape."""

    def make(models: dict[str, object], slots: int = 64) -> Engine:
        engine = Engine(models, VOCABULARY, slots)
        engine.record = Tape()

        def forward(model: object, cache: str) -> GraphForward:
            fused = Engine.forward(engine, model, cache)
            assert isinstance(fused, FusedForward)
            return opened.setdefault(
                (id(model), cache), GraphForward(fused, engine.cache(cache), engine.masks(model), engine.record)
            )

        opened: dict[tuple[int, str], GraphForward] = {}
        monkeypatch.setattr(engine, "forward", forward)
        return engine

    return make


@pytest.mark.parametrize("bucket", [16, 256])
@pytest.mark.parametrize("family", PLAIN)
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
    tape = engine.record
    assert isinstance(tape, Tape) and tape.replayed > 2 * tape.recorded > 0


def test_a_recording_serves_every_position(tiny: ModelFactory, recorded: Callable[..., Engine]) -> None:
    engine = recorded({"target": tiny("llama")})
    reader = engine.readers().get("target")
    reader.feed(IDS, 5, 0)
    for stop in range(6, 60):
        reader.feed(IDS, stop, 1)
    assert isinstance(engine.record, Tape) and (engine.record.recorded, engine.record.replayed) == (1, 54)


def test_methods_write_the_same(tiny: ModelFactory, variant: ModelFactory, recorded: Callable[..., Engine]) -> None:
    target = tiny("llama")
    models = {"target": target, "draft": variant(target, "noisy")}
    gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)
    verifier = Hierarchical(gate=gate, slim=SlimView(mask=KEPT))
    method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=4), verifier=verifier)
    outputs = [
        method.open(engine).generate([5, 6, 7, 8], Decode(Sampling(), 40), SeededDraws(0, "a")).token_ids
        for engine in (Engine(models, VOCABULARY, 64), recorded(models))
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 40


def test_graphs_need_cuda(tiny: ModelFactory) -> None:
    with pytest.raises(PairError, match=r"engine\.mode=graphs: .* on cpu; accepted there: auto, eager, fused"):
        Engine({"target": tiny("llama")}, VOCABULARY, 8, "graphs")
