"""How often a round waits for an accelerator: what would be a read by the host, counted on a CPU."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.adasd import JsVerifier
from baselines.controls import CoinMix, Unverified
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

PROMPT = [5, 6, 7, 8]
ATEN = torch.ops.aten
# Whose results have a size that depends on values, or are such a value: on CUDA the host waits for them.
WAITING = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN._unique2}
WAITING |= {ATEN.item, ATEN.is_nonzero}  # as the first one shows in inference mode
READS = ("tolist", "numpy", "__array__", "cpu")  # what no operation shows on a CPU


class HostReads(TorchDispatchMode):
    """Counts reads of a tensor's values by the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads = 0
        self.rounds: list[int] = []
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self._reading(getattr(torch.Tensor, name)))

    def _reading(self, method: Any) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            known = self.reads
            result = method(*args, **kwargs)
            self.reads = known + 1  # also where it shows as an operation
            return result

        return read

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function.overloadpacket in (ATEN.index, ATEN.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.reads += function.overloadpacket in WAITING or by_mask
        return function(*args, **(kwargs or {}))

    def __call__(self, event: str) -> None:
        if event == "round":
            self.rounds.append(self.reads)
        self.reads = 0


class Draws(SeededDraws):
    """Coins of the host are read from tensors that never were on a device: here they are not tensors."""

    def __init__(self) -> None:
        super().__init__(0, "a")
        self._chance = random.Random(0)

    def coin(self, probability: float) -> bool:
        return self._chance.random() < probability


def via_sd(gate: Any, **settings: Any) -> Method:
    verifier = Hierarchical(gate=gate, slim=SlimView(mask=[0, 2, 3]), **settings)
    return Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=4), verifier=verifier)


def drafting(verifier: Any) -> Method:
    return Method(name="drafting", drafter=DraftModel(), stop=FixedLength(length=4), verifier=verifier)


GATE = RandomGate(keep=0.4, rewrite=0.3, escalate=0.3)
# method, most reads of a round
METHODS = {
    "vanilla": (Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier()), 1),
    "sd": (drafting(RuleVerifier()), 1),
    "via_sd": (via_sd(RatioGate()), 2),
    "via_sd, often escalated": (via_sd(GATE), 2),
    "via_sd, forced": (via_sd(GATE, max_pending=2), 2),
    "draft_only": (drafting(Unverified()), 1),
    "coin_mix": (drafting(CoinMix(p=0.5)), 1),
    "adasd_verify_only": (drafting(JsVerifier()), 1),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", METHODS)
def test_reads_of_a_round(
    tiny: ModelFactory, variant: ModelFactory, monkeypatch: pytest.MonkeyPatch, name: str, temperature: float
) -> None:
    target = tiny("llama")
    method, most = METHODS[name]
    decoder = method.open(Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64))
    decode = Decode(Sampling(temperature=temperature), 50)
    with HostReads(monkeypatch) as reads:
        decoder.generate(PROMPT, decode, Draws(), watch=reads)
    assert max(reads.rounds) == most, reads.rounds
    if most == 2:
        assert min(reads.rounds) == 1  # the target was idle, or had nothing to ask of the slim verifier


def test_truncated_rows_are_made_without_the_host(tiny: ModelFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    method, _ = METHODS["sd"]
    decoder = method.open(Engine({"target": tiny("llama"), "draft": tiny("llama", seed=1)}, VOCABULARY, 64))
    decode = Decode(Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05), 30)
    with HostReads(monkeypatch) as reads:
        decoder.generate(PROMPT, decode, Draws(), watch=reads)
    assert set(reads.rounds) == {1}


@pytest.mark.parametrize("inference", [False, True])
def test_the_counter_sees_every_way_to_read(monkeypatch: pytest.MonkeyPatch, inference: bool) -> None:
    with torch.inference_mode(inference):
        read_in_every_way(monkeypatch)


def read_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(6)
    ways = (
        lambda: values.tolist(),
        lambda: values[2].item(),
        lambda: bool(values[2] > 1),
        lambda: int(values[2]),
        lambda: float(values[2]),
        lambda: values[values > 2],
        lambda: values.float()[values[2]],
        lambda: values.nonzero(),
        lambda: values.numpy(),
        lambda: [0, 1, 2][values[2]],
    )
    with HostReads(monkeypatch) as reads:
        for place, way in enumerate(ways):
            reads("prefilled")
            way()
            assert reads.reads == 1, place
