"""Exact mode's call rule: its means and bins by definition, what it learns, what it does with good and bad views."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from doubles import PROMPT, TableReaders, Tables
from pydantic import ValidationError
from test_laws import method_of

from viasd.calling import BINS, PRIOR, RECENT, TRIALS, Caller, Mean, WhenItPays, bins, promised
from viasd.decode import Decode, Generation
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

CHEAP = {"draft_cost": 0.02, "slim_cost": 0.2, "target_cost": 1.0}
DRAFTED = 5
GOOD_BIN = 8


def test_mean() -> None:
    mean = Mean(3.0, 4.0)
    assert mean.value == 3
    mean.add(5.0)
    assert mean.value == pytest.approx((12 * RECENT + 5) / (4 * RECENT + 1))
    mean.add(2.0, 3.0)
    assert mean.value == pytest.approx(((12 * RECENT + 5) * RECENT + 2) / ((4 * RECENT + 1) * RECENT + 3))
    for _ in range(1000):
        mean.add(7.0)
    assert mean.value == pytest.approx(7)


def test_bins_by_definition() -> None:
    """Bin j holds tokens with 1 - s in (2^-(j + 1), 2^-j]; what is surer than the last one is in it."""
    rows = 3 * torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows[:100] *= 4  # some that are nearly certain
    tokens = rows.argmax(-1).where(torch.arange(400) % 3 > 0, torch.arange(400) % 6)
    found = bins(rows, tokens).tolist()
    for row, token, place in zip(rows.tolist(), tokens.tolist(), found, strict=True):
        weights = [math.exp(x - max(row)) for x in row]
        rest = sum(weight for other, weight in enumerate(weights) if other != token) / sum(weights)
        halvings = next((j for j in range(BINS) if rest > 2.0 ** -(j + 1)), BINS - 1)
        assert place == halvings
    assert set(found) == set(range(BINS))


def test_bins_at_the_ends() -> None:
    rows = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf], [1.0, 0.0], [100.0, 0.0]])
    assert bins(rows, torch.tensor([0, 1, 0, 0])).tolist() == [BINS - 1, 0, 1, BINS - 1]


def test_a_bin_promises_its_middle_before_anything_is_seen() -> None:
    caller = Caller(WhenItPays(**CHEAP))
    for place in range(BINS):
        assert 1 - 2.0**-place < promised(place) < 1 - 2.0 ** -(place + 1)
        assert caller.promise(place) == pytest.approx(promised(place))


def test_promises_follow_the_verdicts() -> None:
    """Confirmed tokens count for their bins, the one taken back against its own, those behind it not at all."""
    caller = Caller(WhenItPays(**CHEAP))
    caller.confirmed([3, 3, 5, 7], kept=2, tokens=3, drafted=DRAFTED, asked_slim=True)
    assert caller.promise(3) == pytest.approx((PRIOR * promised(3) + 2) / (PRIOR + 2))
    assert caller.promise(5) == pytest.approx(PRIOR * promised(5) / (PRIOR + 1))
    assert caller.promise(7) == pytest.approx(promised(7))


# --- simulated rounds ---------------------------------------------------------------------------------------------


def simulate(caller: Caller, rounds: int, confirmed: float, direct: int = 3, window: int = 24) -> list[str]:
    """What the caller does when a slim block writes DRAFTED + 1 tokens, each confirmed with that probability."""
    pending: list[int] = []
    chance, did = random.Random(1), []
    for _ in range(rounds):
        if call := caller.call_now(pending, DRAFTED) or len(pending) + DRAFTED > window:
            kept = next((i for i in range(len(pending)) if chance.random() >= confirmed), len(pending))
            tokens = kept + 1 if kept < len(pending) else kept + direct
            caller.confirmed(pending, kept, tokens, DRAFTED, asked_slim=False)
            pending = []
        else:
            caller.wrote(DRAFTED + 1, DRAFTED)
            pending = pending + [GOOD_BIN] * (DRAFTED + 1)
        did.append("direct" if call else "slim")
    return did


def test_tries_both_first() -> None:
    for confirmed in (0.0, 1.0):
        did = simulate(Caller(WhenItPays(**CHEAP)), 4 * TRIALS, confirmed, window=6)
        assert min(did.count("direct"), did.count("slim")) >= TRIALS
        assert did[0] == "slim"


def test_prefers_a_perfect_slim_verifier() -> None:
    did = simulate(Caller(WhenItPays(**CHEAP)), 400, confirmed=1.0)
    later = did[100:]
    assert later.count("slim") / len(later) > 0.75  # the window of 24 tokens closes after four blocks
    caller = Caller(WhenItPays(**CHEAP))
    simulate(caller, 400, confirmed=1.0)
    assert caller.promise(GOOD_BIN) > 0.999


def test_switches_a_useless_slim_verifier_off() -> None:
    did = simulate(Caller(WhenItPays(**CHEAP)), 400, confirmed=0.0)
    assert did[50:].count("slim") < 0.05 * len(did[50:])


def test_a_dear_slim_verifier_is_not_worth_its_tokens() -> None:
    """It keeps its promises, but six of its tokens cost more than the target's three."""
    dear = WhenItPays(draft_cost=0.02, slim_cost=2.5, target_cost=1.0)
    did = simulate(Caller(dear), 400, confirmed=1.0)
    assert did[100:].count("slim") < 0.05 * len(did[100:])


def test_costs_have_no_unit() -> None:
    scaled = {name: 1000 * cost for name, cost in CHEAP.items()}
    for confirmed in (0.5, 0.9, 0.97):
        one, other = (simulate(Caller(WhenItPays(**costs)), 200, confirmed) for costs in (CHEAP, scaled))
        assert one == other


def test_the_rule_by_hand() -> None:
    """S (a + ... + a^b + a^b b - b) > rate (slim + draft block) decides, with what is known."""
    caller = Caller(WhenItPays(**CHEAP))
    simulate(caller, 60, confirmed=0.9)
    means = caller.memory()["means"]
    b, a, rate = (means[name][0] / means[name][1] for name in ("block", "kept", "rate"))
    for pending in ([], [0], [3] * 4, [GOOD_BIN] * 12):
        survive = math.prod(caller.promise(place) for place in pending)
        written = sum(a**i for i in range(1, int(b) + 1)) if b == int(b) else a * (1 - a**b) / (1 - a)
        worth = survive * (written + a**b * b - b) > rate * (0.2 + DRAFTED * 0.02)
        assert caller.call_now(pending, DRAFTED) == (not worth)
    assert caller.call_now([0] * 30, DRAFTED)  # nothing survives


# --- memory -------------------------------------------------------------------------------------------------------


def test_memory_round_trip() -> None:
    caller = Caller(WhenItPays(**CHEAP))
    simulate(caller, 80, confirmed=0.9)
    stored = json.dumps(caller.memory())
    other = Caller(caller.config)
    other.restore(json.loads(stored))
    assert json.dumps(other.memory()) == stored
    assert simulate(other, 80, confirmed=0.9) == simulate(caller, 80, confirmed=0.9)
    assert json.dumps(other.memory()) == json.dumps(caller.memory()) != stored


def test_memory_is_a_copy() -> None:
    caller = Caller(WhenItPays(**CHEAP))
    simulate(caller, 20, confirmed=0.9)
    memory = caller.memory()
    stored = json.dumps(memory)
    caller.restore(memory)
    simulate(caller, 20, confirmed=0.9)
    assert json.dumps(memory) == stored


def test_nothing_is_restored_from_nothing() -> None:
    caller, fresh = Caller(WhenItPays(**CHEAP)), Caller(WhenItPays(**CHEAP))
    simulate(caller, 20, confirmed=0.9)
    caller.begin()
    assert caller.memory() != fresh.memory()  # a run goes on
    caller.restore({})
    assert caller.memory() == fresh.memory()


def test_a_request_forgets() -> None:
    caller = Caller(WhenItPays(**CHEAP, memory="request"))
    first = simulate(caller, 40, confirmed=0.0)
    assert caller.memory() == {}
    caller.begin()
    assert simulate(caller, 40, confirmed=0.0) == first
    assert simulate(caller, 40, confirmed=0.0) != first


# --- the real loop ------------------------------------------------------------------------------------------------


class Twin(Tables):
    """The slim verifier is the target (`sign` 1), or wants the least what the target wants the most (-1)."""

    sign = 1.0

    def logits(self, role: str, prefix: Sequence[int]) -> list[float]:
        if role == "slim":
            return [self.sign * x for x in super().logits("target", prefix)]
        return super().logits(role, prefix)


class Opposite(Twin):
    sign = -1.0


def outputs(tables: Tables, verifier: Any, sampling: Sampling, count: int = 12) -> list[Generation]:
    decoder = method_of(verifier, 4).open(TableReaders(tables))  # type: ignore[arg-type]
    decode = Decode(sampling, 30)
    return [decoder.generate(PROMPT, decode, SeededDraws(seed, "a")) for seed in range(count)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)], ids=["greedy", "warm"])
@pytest.mark.parametrize("tables_class", [Twin, Opposite])
def test_real_loop(tables_class: type[Twin], sampling: Sampling) -> None:
    """A perfect slim verifier saves target calls; a useless one is hardly asked once it is known."""
    tables = tables_class(3, vocabulary=6, spread=2.0)
    rules = Hierarchical(
        gate=DeferralGate(threshold=0), slim=SlimView(mask=[0]), mode="exact", calls=WhenItPays(**CHEAP), max_pending=24
    )
    ours, sd = (outputs(tables, verifier, sampling) for verifier in (rules, RuleVerifier()))
    if sampling.temperature == 0:
        assert [one.token_ids for one in ours] == [one.token_ids for one in sd]
    calls, sd_calls = (sum(one.calls["target"] for one in some[6:]) for some in (ours, sd))
    slim = sum(one.calls["slim"] for one in ours[6:])
    withdrawn = sum(round_.withdrawn for one in ours for round_ in one.rounds)
    if tables_class is Twin:
        assert withdrawn == 0
        assert calls < 0.7 * sd_calls
    else:
        assert withdrawn > 0
        assert slim < 0.1 * calls and calls < 1.15 * sd_calls


def test_memory_of_the_real_loop() -> None:
    tables = Twin(3, vocabulary=6)
    gate, slim = DeferralGate(threshold=0), SlimView(mask=[0])
    for memory in ("run", "request"):
        calls = WhenItPays(**CHEAP, memory=memory)
        rules = Hierarchical(gate=gate, slim=slim, mode="exact", calls=calls, max_pending=24)
        decoder = method_of(rules, 4).open(TableReaders(tables))  # type: ignore[arg-type]
        decode = Decode(Sampling(temperature=1.0), 30)
        decoder.generate(PROMPT, decode, SeededDraws(0, "a"))
        known = json.loads(json.dumps(decoder.memory()))
        assert bool(known) == (memory == "run")
        second = decoder.generate(PROMPT, decode, SeededDraws(1, "a"))
        decoder.restore(known)
        assert decoder.generate(PROMPT, decode, SeededDraws(1, "a")) == second


# --- refusals -----------------------------------------------------------------------------------------------------


def test_costs_are_calibrated_before_a_run() -> None:
    with pytest.raises(AssertionError, match="were not calibrated"):
        _ = WhenItPays(draft_cost=0.1, slim_cost=0.5).costs


@pytest.mark.parametrize(
    ("options", "named"),
    [({"draft_cost": 0}, "draft_cost"), ({"slim_cost": -1}, "slim_cost"), ({"memory": "never"}, "memory")],
)
def test_wrong_values_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        WhenItPays(**options)
