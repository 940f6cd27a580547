"""Stop rules: where they trip and what they remember, greedy identity, and that the output law stays the target's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from doubles import PROMPT, Tables, check_counts, enumerate_paths, largest_difference, law_of, spy_on

from baselines.stops import (
    AcceptanceControl,
    AdaEdlLength,
    ConfidenceLength,
    CostAwareLength,
    HeuristicLength,
    SvipLength,
)
from baselines.stops.confidence import ConfidenceTrip
from viasd.blocks import DraftedBlock, TripTest, check_trip, cut_block
from viasd.decode import Decode, Draft, Generation, Speculative, StopRule, Verdict
from viasd.drafting import DraftModel, FixedLength, StopSpec
from viasd.engine import Engine
from viasd.method import Method
from viasd.rules import Lossless
from viasd.sampling import Sampling, SeededDraws, process
from viasd.verification import RuleVerifier

TOKENS, IDS = 5, 2  # of the enumerated texts: enough rounds for a rule to change its mind
GREEDY, WARM = Sampling(), Sampling(temperature=0.7)
COSTS: dict[str, Any] = {"draft_cost": {1: 0.35}, "target_cost": {1: 1.0, 8: 1.2}}
SHORT: dict[str, Any] = {"max_length": 2}


@dataclass(frozen=True)
class GivenUp:
    """cost_aware with memory, at whose beginning drafting seems not to pay, and it may soon try it."""

    def open_stop(self) -> StopRule:
        stop = CostAwareLength(**COSTS, **SHORT, memory="run").open_stop()
        stop.restore({**stop.memory(), "gain": [-0.1, 4.0], "credit": 0.34})
        return stop


STOPS: dict[str, StopSpec] = {
    "heuristic": HeuristicLength(start=1),
    "heuristic_run": HeuristicLength(start=2, memory="run"),
    "confidence": ConfidenceLength(threshold=0.5, **SHORT),
    "svip": SvipLength(**SHORT),
    "svip_drops": SvipLength(keep_tripping=False, **SHORT),
    "adaedl": AdaEdlLength(threshold=0.65, **SHORT),
    "adaedl_drops": AdaEdlLength(threshold=0.65, keep_tripping=False, **SHORT),
    "adaedl_control": AdaEdlLength(threshold=0.65, control=AcceptanceControl(step=1.0, memory="run"), **SHORT),
    "cost_aware": CostAwareLength(**COSTS, **SHORT),
    "cost_aware_run": CostAwareLength(**COSTS, **SHORT, memory="run"),
    "given_up": GivenUp(),
}
OTHERS = {
    "none": FixedLength(length=0),
    "confidence_drops": ConfidenceLength(threshold=0.6, keep_tripping=False, **SHORT),
}
SEEDS = (8,)


def told(drafted: int, kept: int) -> tuple[Draft, Verdict]:
    """A block and how much of it was kept."""
    tokens = torch.zeros(drafted, dtype=torch.long)
    return Draft.chain(tokens, torch.zeros(drafted, 3)), Verdict([0] * (kept + 1), ["draft"] * (kept + 1), kept)


def lengths(rule: HeuristicLength, *blocks: tuple[int, int]) -> list[int]:
    """The limits a rule gives before each block (drafted, kept) and after the last."""
    stop, found = rule.open_stop(), []
    stop.begin(None)  # type: ignore[arg-type]
    for drafted, kept in blocks:
        found.append(stop.limit(None))  # type: ignore[arg-type]
        stop.observe(None, *told(drafted, kept))  # type: ignore[arg-type]
    return [*found, stop.limit(None)]  # type: ignore[arg-type]


# --- the heuristic ------------------------------------------------------------------------------------------------


def test_heuristic_adds_two_or_takes_one() -> None:
    assert lengths(HeuristicLength(), (5, 5), (7, 7), (9, 8), (8, 0)) == [5, 7, 9, 8, 7]
    assert lengths(HeuristicLength(start=2), (2, 0), (1, 0), (1, 0), (1, 1)) == [2, 1, 1, 1, 3]


def test_a_block_shorter_than_asked_for_and_kept_is_kept_whole() -> None:
    assert lengths(HeuristicLength(), (3, 3), (2, 1)) == [5, 7, 6]


@pytest.mark.parametrize("memory", ["request", "run"])
def test_memory_outlives_a_request_only_if_asked_for(memory: Literal["request", "run"]) -> None:
    stop = HeuristicLength(memory=memory).open_stop()
    stop.begin(None)  # type: ignore[arg-type]
    known = stop.memory()
    stop.observe(None, *told(5, 5))  # type: ignore[arg-type]
    stop.begin(None)  # type: ignore[arg-type]
    assert stop.limit(None) == (7 if memory == "run" else 5)  # type: ignore[arg-type]
    assert (known, stop.memory()) == (({"length": 5}, {"length": 7}) if memory == "run" else ({}, {}))
    stop.restore(known)
    assert stop.limit(None) == 5 and stop.memory() == known  # type: ignore[arg-type]


# --- trips, by hand-made rows -------------------------------------------------------------------------------------

ROWS = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [1 / 3, 1 / 3, 1 / 3]]).log()
DRAWN = torch.tensor([0, 1, 0, 2])
NATS = [-sum(p * math.log(p) for p in row if p > 0) for row in ROWS.exp().tolist()]  # 0.80, 1.03, 0.33, 1.10


def trip_of(stop: StopSpec) -> TripTest:
    trip = stop.open_stop().trip
    assert trip is not None
    return trip


def tripped(stop: StopSpec, sampling: Sampling = GREEDY) -> list[bool]:
    """Which of the hand-made tokens trip; one by one as all together."""
    trip = trip_of(stop)
    whole = trip.trips(0, DRAWN, ROWS, sampling)
    single = [trip.trips(i, DRAWN[i : i + 1], ROWS[i : i + 1], sampling) for i in range(len(DRAWN))]
    assert whole.dtype == torch.bool and torch.cat(single).tolist() == whole.tolist()
    return whole.tolist()


def test_confidence_asks_for_the_drawn_tokens_probability() -> None:
    assert tripped(ConfidenceLength(threshold=0.4)) == [False, True, False, True]
    assert tripped(ConfidenceLength(threshold=0.25)) == [False, False, False, False]
    assert tripped(ConfidenceLength(threshold=0.71)) == [True, True, False, True]


@pytest.mark.parametrize("sampling", [Sampling(temperature=2.0), Sampling(temperature=1.0, top_p=0.75)], ids=str)
def test_confidence_is_of_the_processed_scores(sampling: Sampling) -> None:
    own = process(ROWS, sampling)[torch.arange(4), DRAWN].tolist()
    plain = ROWS.exp()[torch.arange(4), DRAWN].tolist()
    assert own != pytest.approx(plain)
    for threshold in (0.25, 0.31, 0.4, 0.6, 0.72):
        assert tripped(ConfidenceLength(threshold=threshold), sampling) == [p < threshold for p in own]


def test_entropy_rules_are_one_family() -> None:
    """sqrt(c H) > h, and 1 - sqrt(g H) < lam, of the raw row whatever the sampling."""
    for sampling in (GREEDY, WARM):
        for scale, threshold in ((0.15, 0.3), (0.15, 0.36), (0.5, 0.7)):
            svip = [math.sqrt(scale * nats) > threshold for nats in NATS]
            assert tripped(SvipLength(scale=scale, threshold=threshold), sampling) == svip
            edl = [1 - math.sqrt(scale * nats) < 1 - threshold for nats in NATS]
            assert tripped(AdaEdlLength(scale=scale, threshold=1 - threshold), sampling) == edl == svip
    assert tripped(SvipLength()) == [True, True, False, True]
    assert tripped(SvipLength(threshold=0.39)) == [False, True, False, True]


def test_defaults() -> None:
    limits = {type(stop).__name__: stop.open_stop().limit(None) for stop in (ConfidenceLength(), SvipLength())}  # type: ignore[arg-type]
    assert limits == {"ConfidenceLength": 20, "SvipLength": 40}
    rules = (ConfidenceLength(), SvipLength(), AdaEdlLength(), CostAwareLength(**COSTS))
    assert all(trip_of(rule).keep for rule in rules)


def test_controlled_threshold_follows_the_share_that_is_kept() -> None:
    """average <- 0.5 average + 0.5 share; then the threshold moves by 0.1 eps towards the asked share."""
    rule = AdaEdlLength(threshold=0.5, control=AcceptanceControl(target=0.9, step=0.2, memory="run"))
    stop = rule.open_stop()
    for drafted, kept, average, threshold in (
        (4, 2, 0.7, 0.52),
        (0, 0, 0.7, 0.52),
        (4, 4, 0.85, 0.54),
        (2, 2, 0.925, 0.52),
    ):
        stop.observe(None, *told(drafted, kept))  # type: ignore[arg-type]
        assert stop.memory() == pytest.approx({"threshold": threshold, "average": average})
        nats = [1 - math.sqrt(0.2 * one) < threshold for one in NATS]
        assert stop.trip is not None and stop.trip.trips(0, DRAWN, ROWS, GREEDY).tolist() == nats
    known = stop.memory()
    stop.begin(None)  # type: ignore[arg-type]
    assert stop.memory() == known
    stop.restore({})
    assert stop.memory() == {"threshold": 0.5, "average": 0.9}


@pytest.mark.parametrize("keep", [True, False])
def test_a_block_ends_with_what_trips_or_before_it(keep: bool) -> None:
    block = DraftedBlock(DRAWN, ROWS.exp(), ROWS)
    assert len(cut_block(block, GREEDY, ConfidenceTrip(0.4, keep)).tokens) == (2 if keep else 1)
    assert len(cut_block(block, GREEDY, ConfidenceTrip(0.75, keep)).tokens) == (1 if keep else 0)
    assert len(cut_block(block, GREEDY, ConfidenceTrip(0.1, keep)).tokens) == 4


# --- dropping the token that trips --------------------------------------------------------------------------------


def method_of(stop: StopSpec) -> Method:
    return Method(name="m", drafter=DraftModel(), stop=stop, verifier=RuleVerifier())


@pytest.mark.parametrize(
    ("stop", "sampling", "allowed"),
    [
        (ConfidenceLength(keep_tripping=False), WARM, False),
        (ConfidenceLength(keep_tripping=False), GREEDY, True),
        (ConfidenceLength(), WARM, True),
        (SvipLength(keep_tripping=False), WARM, True),
        (AdaEdlLength(keep_tripping=False), WARM, True),
        (CostAwareLength(**COSTS), WARM, True),
        (FixedLength(), WARM, True),
    ],
)  # fmt: skip
def test_what_may_be_dropped_under_a_lossless_verifier(stop: StopSpec, sampling: Sampling, allowed: bool) -> None:
    tables = Tables(3)
    if allowed:
        check_trip(stop.open_stop().trip, sampling)
        assert list(enumerate_paths(method_of(stop), tables, sampling, 1))
        return
    for attempt in (
        lambda: check_trip(stop.open_stop().trip, sampling),
        lambda: list(enumerate_paths(method_of(stop), tables, sampling, 1)),
    ):
        with pytest.raises(ValueError, match=r"stop\.keep_tripping=false at decode\.temperature=0\.7.*accepted: "):
            attempt()


def test_a_lossy_verifier_may_drop_what_it_likes() -> None:
    rule = RuleVerifier(rule=Careless())
    method = replace(method_of(ConfidenceLength(keep_tripping=False)), verifier=rule)
    assert list(enumerate_paths(method, Tables(3), WARM, 1))


class Careless(Lossless):
    """The lossless rule, which does not claim to be."""

    @property
    def lossless(self) -> bool:
        return False


# --- laws ---------------------------------------------------------------------------------------------------------


class Forced:
    """A method whose decoder does not know that it ought to be lossless, so that nothing is checked."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def open(self, engine: Any) -> Speculative:
        decoder = self.method.open(engine)
        decoder.lossless = False
        return decoder


@cache
def enumerated(name: str, seed: int) -> list[tuple[Generation, float]]:
    method: Any = Forced(method_of({**STOPS, **OTHERS}[name]))
    return list(enumerate_paths(method, Tables(seed, vocabulary=IDS, spread=1.5), Sampling(temperature=1.0), TOKENS))


def law(name: str, seed: int) -> dict[tuple[int, ...], float]:
    return law_of(iter(enumerated(name, seed)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", STOPS)
def test_the_output_law_is_the_targets(name: str, seed: int) -> None:
    assert largest_difference(law(name, seed), law("none", seed)) < 1e-9


@pytest.mark.parametrize("name", STOPS)
def test_the_enumerated_rules_draft_more_and_less(name: str) -> None:
    """So the laws above are of rules that do something: where there is room, blocks have different lengths."""
    rounds = [one for seed in SEEDS for path, _ in enumerated(name, seed) for one in path.rounds]
    drafted = {one.drafted for one in rounds if TOKENS + len(PROMPT) - one.prefix > 1}
    assert len(drafted) > 1 and (0 in drafted) == (name.endswith("drops") or name == "given_up"), drafted


def test_a_rule_that_gave_up_drafts_nothing_and_probes_and_comes_back() -> None:
    texts = [tuple(one.drafted for one in path.rounds) for seed in SEEDS for path, _ in enumerated("given_up", seed)]
    assert any(text[:2] == (0, 1) for text in texts) and any(2 in text for text in texts)


def test_dropping_a_token_for_its_own_probability_changes_the_law() -> None:
    """What `check_trip` refuses. Kept, the same test changes nothing."""
    for seed in SEEDS:
        assert largest_difference(law("confidence_drops", seed), law("none", seed)) > 0.02
        assert largest_difference(law("confidence", seed), law("none", seed)) < 1e-9


# --- greedy identity ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def engine(request: pytest.FixtureRequest, tiny: ModelFactory, variant: ModelFactory) -> Engine:
    target = tiny(request.param)
    return Engine({"target": target, "draft": variant(target, "noisy", 0.03)}, VOCABULARY, 64)


@pytest.mark.parametrize("name", [*STOPS, "confidence_drops"])
def test_greedy_identity_in_float64(engine: Engine, name: str) -> None:
    text = [5, 9, 2, 11, 7]
    decode = Decode(GREEDY, 41)
    stop = {**STOPS, **OTHERS}[name]
    longer = replace(stop, max_length=9) if hasattr(stop, "max_length") else stop
    output = generate(engine, FixedLength(length=0), text, decode)
    assert output == generate(engine, longer, text, decode) and len(output) == 41


def generate(engine: Engine, stop: StopSpec, text: Sequence[int], decode: Decode) -> list[int]:
    decoder = method_of(stop).open(engine)
    spy = spy_on(decoder)
    generation = decoder.generate(text, decode, SeededDraws(0, "a"))
    check_counts(generation, spy.drafts, len(text))
    return generation.token_ids


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (HeuristicLength, "start", 0),
        (HeuristicLength, "start", 65),
        (HeuristicLength, "memory", "forever"),
        (HeuristicLength, "begin", 5),
        (ConfidenceLength, "threshold", 1.5),
        (ConfidenceLength, "max_length", 0),
        (ConfidenceLength, "keep_tripping", "perhaps"),
        (SvipLength, "scale", 0),
        (AdaEdlLength, "threshold", -0.1),
        (AcceptanceControl, "memory", "never"),
        (CostAwareLength, "draft_cost", {0: 1.0}),
        (CostAwareLength, "target_cost", {1: 0.0}),
        (CostAwareLength, "target_cost", {}),
    ],
)
def test_configuration_is_checked(kind: Any, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        kind(**{key: value})
