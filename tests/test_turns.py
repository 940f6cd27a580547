"""Costs in turn and loops: arithmetic by hand, and what is watched and repeated of real loops."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from conftest import VOCABULARY, ModelFactory

from experiments import turns
from experiments.arms import sd, vanilla
from experiments.costs import CallCosts, Cost, CostCurve
from experiments.turns import Loop, Step, Turns, Watched, average, in_turn, merge, outside, price
from viasd.decode import Decode, Speculative
from viasd.engine import Engine
from viasd.sampling import Sampling

DECODE = Decode(Sampling(), 12)
PROMPTS = [[1, 2, 3], [4, 5, 6]]


def curve(*seconds: float) -> CostCurve:
    """Costs of 1, 2, ... tokens fed."""
    return CostCurve({fed: Cost(one, one, one) for fed, one in enumerate(seconds, 1)})


CURVES = {"draft": curve(1, 2, 3, 4), "target": curve(10, 20, 30, 40)}


# --- arithmetic ---------------------------------------------------------------------------------------------------


def test_what_is_outside_of_calls() -> None:
    """Two rounds: two draft steps 1 apart and a verdict; a block that ran as one, a verdict. One call more."""
    calls = [
        Watched("draft", (1,), 12.0, 13.0),
        Watched("draft", (1,), 14.0, 15.0),
        Watched("target", (3,), 17.0, 20.0),
        Watched("draft", (2, 1, 1), 26.0, 27.0),
        Watched("target", (3,), 28.0, 31.0),
        Watched("target", (4,), 40.0, 41.0),
    ]
    rounds, steps = outside(calls, [(0, 10.0), (3, 23.0), (5, 32.0)])
    assert rounds == [2 + 2 + 3, 3 + 1 + 1] and steps == [1.0, 0.0, 0.0]


def test_each_call_is_behind_another() -> None:
    calls: list[Step] = [("draft", 2), ("draft", 1), ("target", 3)]
    assert in_turn(calls) == [
        (("target", 3), ("draft", 2)), (("draft", 2), ("draft", 1)), (("draft", 1), ("target", 3)),
    ]  # fmt: skip
    assert in_turn([]) == []


def test_a_ratio_is_of_totals() -> None:
    samples = {("a", "b"): [(1.0, 1.0), (7.0, 3.0)], ("b", "b"): [(1.0, 2.0)]}
    assert average(samples) == {("a", "b"): 2.0, ("b", "b"): 0.5}
    more = {("a", "b"): [(4.0, 2.0), (0.0, 2.0)]}
    assert average(merge([samples, more])) == {("a", "b"): 1.5, ("b", "b"): 0.5}
    assert average(samples) == {("a", "b"): 2.0, ("b", "b"): 0.5}  # merging leaves them as they are


def test_a_price_is_of_isolated_costs_and_turns() -> None:
    calls: list[Step] = [("draft", 2), ("draft", 1), ("target", 3)]
    ratios = {("target", "draft"): 1.5, ("draft", "draft"): 1.1, ("draft", "target"): 1.2}
    assert price(calls, CURVES, ratios) == pytest.approx(2 * 1.5 + 1 * 1.1 + 30 * 1.2)
    assert price(calls, CURVES, {}) == pytest.approx(2 + 1 + 30)
    known = {("slim", "draft"): 2.0, ("draft", "draft"): 1.0}  # one behind the target was not timed
    assert price(calls, CURVES, known) == pytest.approx(2 * 1.5 + 1 + 30)


# --- of real loops ------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tiny: ModelFactory) -> Engine:
    return Engine({"target": tiny("llama"), "draft": tiny("llama", seed=1, layers=2)}, VOCABULARY, 32)


def open_turns(engine: Engine, names: dict[tuple[str, str], str] | None = None) -> Turns:
    names = names or {(arm, role): role for arm in ("vanilla", "sd") for role in ("draft", "target")}
    return Turns(engine, CallCosts("id", CURVES, names, {}, context=8))


def open_arms(engine: Engine) -> dict[str, Speculative]:
    return {"vanilla": vanilla().open(engine), "sd": sd(vanilla()).open(engine)}


def test_loops_are_watched_and_their_calls_repeated(engine: Engine) -> None:
    prices, arms = open_turns(engine), open_arms(engine)
    prices.watch_loops(arms, PROMPTS, DECODE, seed=0)
    assert engine.probe.watch is None
    assert prices.loops.keys() == {"vanilla", "sd"}
    assert prices.loops["vanilla"].per_round > 0 == prices.loops["vanilla"].per_step
    assert prices.loops["sd"].per_step > 0

    fed: list[Step] = []
    engine.probe.watch = lambda role, *counts: nullcontext(fed.extend((role, count) for count in counts))
    seen = {}
    for arm, decoder in arms.items():
        for index, prompt in enumerate(PROMPTS):
            fed.clear()
            decoder.generate(prompt, DECODE, turns.SeededDraws(0, f"{index}", engine.device), watch=lambda _: None)
        seen[arm] = {(role, min(4, count)) for role, count in fed} | {("draft", 2)}
    for arm in arms:
        fed.clear()
        prices.time(arm)
        assert set(fed) <= seen[arm] and len(fed) == (8 if arm == "vanilla" else 16)
        assert sum(map(len, prices._stretches[-1][1].values())) == len(fed) - 1  # the first call is behind nothing
    assert {arm: set(samples) for arm, samples in prices._stretches} == {
        "vanilla": {("target", "target")},
        "sd": {("draft", "draft"), ("draft", "target"), ("target", "draft")},
    }
    prices.time("unknown")
    assert len(prices._stretches) == 2
    prices.forget()
    assert not prices._stretches


def test_a_generation_takes_its_calls_and_its_loop(engine: Engine) -> None:
    prices = open_turns(engine)
    prices.loops["sd"] = Loop(per_round=0.5, per_step=0.25)
    calls = [[("draft", 1), ("draft", 1), ("target", 3)], [("draft", 2), ("target", 2)], []]
    loop = 2 * 0.5 + 1 * 0.25
    assert prices.seconds("vanilla", calls, 2) is None  # it was not watched
    assert prices.seconds("sd", calls, 2) == pytest.approx(1 + 1 + 30 + 2 + 20 + loop)  # nothing was timed
    slow, fast = (
        {("draft", "target"): [(60.0, 10.0)], ("target", "draft"): [(3.0, 1.0)]},
        {("draft", "target"): [(2.0, 1.0)]},
    )
    prices._stretches += [("far", slow)] + 6 * [("near", fast)] + [("sd", fast)]
    found = prices.seconds("sd", calls, 2)  # both judged blocks take twice their cost; a draft behind them: as far away
    assert found == pytest.approx(3 * 1 + 3 * 1 + 2 * 30 + 3 * 2 + 2 * 20 + loop)
    prices._stretches.pop(1)
    assert prices.seconds("sd", calls, 2) == pytest.approx(3 * (1 + 1 + 2) + (60 + 6 * 2) / (10 + 6) * 50 + loop)


def test_an_arm_that_fails_or_cannot_be_watched_is_not_predicted(engine: Engine) -> None:
    prices, arms = open_turns(engine), open_arms(engine)

    class Closed:
        def generate(self, *_: Any, watch: Any, **__: Any) -> None:
            for event in ("prefilled", "round"):
                watch(event)

    class Broken(Closed):
        def generate(self, *args: Any, watch: Any, **options: Any) -> None:
            watch("prefilled")
            raise RuntimeError("boom")

    all_arms: dict[str, Any] = {"broken": Broken(), **arms, "closed": Closed()}
    prices.watch_loops(all_arms, PROMPTS, DECODE, seed=0)
    assert prices.loops.keys() == {"vanilla", "sd"} and engine.probe.watch is None
    for arm in all_arms:
        prices.time(arm)
    assert [arm for arm, _ in prices._stretches] == ["vanilla", "sd"]


def test_long_calls_are_timed_at_the_longest_isolated_ones(engine: Engine) -> None:
    prices = open_turns(engine)
    prices.loops["vanilla"], prices._seen["vanilla"] = Loop(0, 0), [[("target", 1), ("target", 9)]]
    prices.time("vanilla")
    ((_, isolated),) = prices._stretches[0][1]["target", "target"]
    assert isolated == 40
