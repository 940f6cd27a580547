"""Gates by their definitions, in plain Python floats on random rows; shares against single decisions; refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from viasd.gates import (
    DRAFT_FEATURES,
    LARGEST,
    SLIM_FEATURES,
    DeferralGate,
    DraftProbabilityGate,
    LearnedGate,
    StrictnessGate,
    features,
    log_odds,
)
from viasd.routing import ESCALATE, JUDGE, KEEP, REWRITE, Evidence, Gate, RandomGate, RatioGate
from viasd.sampling import SeededDraws

POSITIONS, WIDTH = 150, 9
FEATURES = len(SLIM_FEATURES) + len(DRAFT_FEATURES)


def logits(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(POSITIONS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SLIM, DRAFT = logits(1), logits(1) + logits(2, 0.7)  # the draft agrees with the slim verifier now and then
SEEN, BEHIND = Evidence(SLIM, DRAFT), Evidence(SLIM)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [weight / sum(weights) for weight in weights]


SLIM_ROWS, DRAFT_ROWS = ([softmax(row) for row in rows.tolist()] for rows in (SLIM, DRAFT))


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def margin(row: list[float]) -> float:
    first, second = sorted(row)[-1], sorted(row)[-2]
    return first - second


def regions(gate: Gate, evidence: Evidence) -> list[list[int]]:
    """The region of every token at every position, one `classify` per token."""
    found = [gate.classify(evidence, torch.full((POSITIONS,), token), SeededDraws(0, "a")) for token in range(WIDTH)]
    return torch.stack(found, 1).tolist()


def check_shares(gate: Gate, evidence: Evidence) -> None:
    """A gate without chance: its shares say of every token what `classify` says."""
    shares = gate.shares(evidence)
    assert shares.shape == (4, POSITIONS, WIDTH) and shares.dtype == evidence.slim.dtype
    assert shares.sum(0).eq(1).all() and shares.amax(0).eq(1).all()
    assert shares.argmax(0).tolist() == regions(gate, evidence)
    assert gate.judges or not shares[JUDGE].any()


def by_position(sure: list[bool]) -> list[list[int]]:
    return [[JUDGE if one else ESCALATE] * WIDTH for one in sure]


# --- deferral -----------------------------------------------------------------------------------------------------

MEASURED: dict[str, list[float]] = {
    "confidence": [max(row) for row in SLIM_ROWS],
    "entropy": [-entropy(row) for row in SLIM_ROWS],
    "margin": [margin(row) for row in SLIM_ROWS],
    "overlap": [sum(map(min, slim, draft)) for slim, draft in zip(SLIM_ROWS, DRAFT_ROWS, strict=True)],
}


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("measure", MEASURED)
def test_deferral(measure: Any, threshold: float) -> None:
    gate = DeferralGate(measure=measure, threshold=threshold)
    bar = -threshold if measure == "entropy" else threshold
    assert regions(gate, SEEN) == by_position([value >= bar for value in MEASURED[measure]])
    check_shares(gate, SEEN)
    assert gate.judges
    if threshold == 0.7:
        assert 0 < gate.sure(SEEN).sum() < POSITIONS


@pytest.mark.parametrize("measure", MEASURED)
def test_deferral_behind_a_draft(measure: Any) -> None:
    """Without a draft row the measures of the slim row stay; overlap is that of the slim row alone, its margin."""
    gate = DeferralGate(measure=measure, threshold=0.4)
    values = MEASURED["margin" if measure == "overlap" else measure]
    bar = -0.4 if measure == "entropy" else 0.4
    assert regions(gate, BEHIND) == by_position([value >= bar for value in values])
    check_shares(gate, BEHIND)


@pytest.mark.parametrize("measure", MEASURED)
def test_patience_lets_more_doubt_pass(measure: Any) -> None:
    """With `patience` 4 and 2 pending tokens, position i passes what 1 + (2 + i) / 4 times the odds of doubt allow."""
    threshold = 0.4 if measure == "entropy" else 0.8
    gate = DeferralGate(measure=measure, threshold=threshold, patience=4)
    seen = dataclasses.replace(SEEN, pending=2)
    slack = [1 + (2 + place) / 4 for place in range(POSITIONS)]
    odds = (1 - threshold) / threshold
    bars = [-threshold * one if measure == "entropy" else 1 / (1 + odds * one) for one in slack]
    assert regions(gate, seen) == by_position([v >= bar for v, bar in zip(MEASURED[measure], bars, strict=True)])
    assert torch.equal(gate.sure(seen.at(3)), gate.sure(seen)[3:4])
    assert gate.sure(seen).sum() > dataclasses.replace(gate, patience=None).sure(seen).sum()


# --- set gates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_prob", [0.0, 0.2, 0.6, 1.0])
def test_draft_probability(min_prob: float) -> None:
    gate = DraftProbabilityGate(min_prob=min_prob)
    expected = [[KEEP if p >= min_prob else ESCALATE for p in row] for row in DRAFT_ROWS]
    assert regions(gate, SEEN) == expected
    check_shares(gate, SEEN)
    assert regions(gate, BEHIND) == [[ESCALATE] * WIDTH] * POSITIONS
    check_shares(gate, BEHIND)


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.6])
def test_ratio_with_a_floor(floor: float) -> None:
    gate = RatioGate(accept_ratio=0.6, escalate_ratio=0.2, floor=floor)

    def region(p: float, best: float) -> int:
        if p < floor:
            return ESCALATE
        return KEEP if p / best >= 0.6 else REWRITE if p / best >= 0.2 else ESCALATE

    expected = [[region(p, max(row)) for p in row] for row in SLIM_ROWS]
    assert {KEEP, REWRITE, ESCALATE} == set(itertools.chain(*expected)) or floor == 0.6
    assert regions(gate, SEEN) == expected == regions(gate, BEHIND)
    check_shares(gate, SEEN)


STRICTNESSES = [0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99, 1.0]


@pytest.mark.parametrize("strictness", STRICTNESSES)
def test_strictness(strictness: float) -> None:
    """Ratio up to 1/2, then the first choices with a floor; 1 keeps nothing."""

    def keeps(p: float, best: float) -> bool:
        if strictness == 1:
            return False
        if strictness <= 0.5:
            return p / best >= 2 * strictness
        return p == best and p >= 2 * strictness - 1

    gate = StrictnessGate(strictness=strictness)
    expected = [[KEEP if keeps(p, max(row)) else ESCALATE for p in row] for row in SLIM_ROWS]
    assert regions(gate, SEEN) == expected == regions(gate, BEHIND)
    check_shares(gate, SEEN)
    if strictness == 0:
        assert expected == [[KEEP] * WIDTH] * POSITIONS


def test_strictness_is_nested() -> None:
    """What a gate keeps, every looser one keeps; and each step of the ladder matters."""
    kept = [StrictnessGate(strictness=one).shares(SEEN)[KEEP] for one in STRICTNESSES]
    for looser, stricter in itertools.pairwise(kept):
        assert (stricter <= looser).all()
    counts = [int(one.sum()) for one in kept]
    assert counts[0] == POSITIONS * WIDTH and counts[-1] == 0
    assert counts == sorted(counts, reverse=True) and len(set(counts)) >= len(counts) - 1


def test_certain_token_is_escalated_only_at_strictness_one() -> None:
    certain = torch.full((POSITIONS, WIDTH), -torch.inf, dtype=torch.float64)
    certain[:, 3] = 0.0
    for strictness, region in ((0.0, KEEP), (0.5, KEEP), (0.999, KEEP), (1.0, ESCALATE)):
        assert regions(StrictnessGate(strictness=strictness), Evidence(certain))[0][3] == region


# --- chance -------------------------------------------------------------------------------------------------------


def test_random_gate_judges_with_its_share() -> None:
    gate = RandomGate(keep=0.1, rewrite=0.2, escalate=0.3, judge=0.4)
    assert gate.judges and not RandomGate(keep=0.1, rewrite=0.2, escalate=0.7).judges
    shares = gate.shares(SEEN)
    assert shares[:, 5, 4].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert (shares == shares[:, :1, :1]).all()
    many = Evidence(SLIM.repeat(200, 1))
    drawn = gate.classify(many, torch.zeros(POSITIONS * 200, dtype=torch.long), SeededDraws(0, "a"))
    assert (drawn.bincount(minlength=4) / len(drawn)).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


# --- learned ------------------------------------------------------------------------------------------------------


def plain_features(slim: list[float], draft: list[float] | None) -> list[float]:
    """The features of rows of probabilities, all positive."""

    def of_one(row: list[float]) -> list[float]:
        return [math.log(max(row) / (1 - max(row))), entropy(row)]

    first, second = sorted(slim, reverse=True)[:2]
    found = [*of_one(slim), math.log(first) - math.log(second)]
    if draft is not None:
        ours, theirs = slim.index(first), draft.index(max(draft))
        found += [*of_one(draft), float(ours == theirs)]
        found += [math.log(slim[theirs]) - math.log(first), math.log(draft[ours]) - math.log(max(draft))]
    return found


def test_features() -> None:
    expected = [plain_features(slim, draft) for slim, draft in zip(SLIM_ROWS, DRAFT_ROWS, strict=True)]
    found = features(SEEN)
    assert found.shape == (POSITIONS, FEATURES)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    behind = features(BEHIND)
    assert behind.shape == (POSITIONS, len(SLIM_FEATURES))
    assert torch.equal(behind, found[:, : len(SLIM_FEATURES)])
    assert {0.0, 1.0} == set(found[:, 5].tolist())


def linear(row: list[float], weights: list[float]) -> float:
    return weights[0] + sum(weight * value for weight, value in zip(weights[1:], row, strict=True))


WEIGHTS = {
    "agree": [0.5, 0.7, -0.4, 0.2, 0.1, -0.1, 0.8, 0.05, 0.05],
    "target_top": [0.8, 0.01, -0.05, 0.01, 0.02, 0.0, 0.1, 0.01, 0.0],
    "distance": [0.4, -0.03, 0.1, -0.02, 0.0, 0.05, -0.2, 0.0, -0.01],
}
BONUS_WEIGHTS = {"agree": [1.0, 0.5, -0.3, 0.1], "target_top": [0.8, 0.02, 0.0, 0.01], "distance": [0.3, 0.0, 0.1, 0.0]}


@pytest.mark.parametrize("patience", [None, 4.0])
@pytest.mark.parametrize("evidence", [SEEN, BEHIND], ids=["drafted", "behind"])
@pytest.mark.parametrize(("rule", "cost"), [("agree", 0.05), ("agree", 0.3), ("diff", 0.1), ("opt", 0.2), ("opt", 0.9)])
def test_learned(rule: Any, cost: float, evidence: Evidence, patience: float | None) -> None:
    gate = LearnedGate(rule=rule, cost=cost, weights=WEIGHTS, bonus_weights=BONUS_WEIGHTS, patience=patience)
    evidence = dataclasses.replace(evidence, pending=3)
    drafts = [None] * POSITIONS if evidence.draft is None else DRAFT_ROWS
    weights = BONUS_WEIGHTS if evidence.draft is None else WEIGHTS

    def sure(slim: list[float], draft: list[float] | None, slack: float) -> bool:
        seen = plain_features(slim, draft)
        if rule == "agree":
            return math.exp(-linear(seen, weights["agree"])) <= slack * cost / (1 - cost)
        expected, distance = (min(1, max(0, linear(seen, weights[name]))) for name in ("target_top", "distance"))
        return max(slim) >= expected - slack * cost * (distance if rule == "opt" else 1)

    slacks = [1.0 if patience is None else 1 + (3 + place) / patience for place in range(POSITIONS)]
    expected = [sure(slim, draft, slack) for slim, draft, slack in zip(SLIM_ROWS, drafts, slacks, strict=True)]
    assert patience is not None or 0 < sum(expected) < POSITIONS
    assert regions(gate, evidence) == by_position(expected)
    check_shares(gate, evidence)


def test_learned_gate_needs_its_weights_read() -> None:
    with pytest.raises(AssertionError, match="weights 'auto' were not read"):
        LearnedGate().sure(SEEN)


# --- rows with impossible and certain tokens ------------------------------------------------------------------------


def impossible() -> Evidence:
    """Rows in which tokens are impossible, one is certain, all are equal, or the models contradict each other."""
    wide = torch.zeros(6, WIDTH)
    wide[0, 3:] = -torch.inf  # what a draft model with fewer ids says
    wide[1, 1:] = -torch.inf
    wide[2, 0] = 200.0
    wide[4, 5] = 88.0
    other = wide.flip(1)
    other[5] = wide[0]
    return Evidence(wide, other)


ALL_GATES: list[Gate] = [
    RatioGate(floor=0.3),
    DraftProbabilityGate(),
    StrictnessGate(strictness=0.3),
    StrictnessGate(strictness=0.8),
    RandomGate(keep=0.2, rewrite=0.2, escalate=0.3, judge=0.3),
    *(DeferralGate(measure=measure) for measure in MEASURED),  # type: ignore[arg-type]
    *(LearnedGate(rule=rule, weights=WEIGHTS, bonus_weights=BONUS_WEIGHTS) for rule in ("agree", "diff", "opt")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_finite(dtype: torch.dtype) -> None:
    rows = impossible()
    assert rows.draft is not None
    for evidence in (Evidence(rows.slim.to(dtype), rows.draft.to(dtype)), Evidence(rows.slim.to(dtype))):
        found = features(evidence)
        assert found.isfinite().all() and found.abs().max() <= LARGEST
    assert found[1].tolist() == [LARGEST, 0.0, LARGEST]  # certain
    assert log_odds(torch.zeros(1, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("gate", ALL_GATES, ids=repr)
def test_gates_decide_on_impossible_tokens(gate: Gate) -> None:
    rows = impossible()
    for evidence in (rows, Evidence(rows.slim), rows.at(1)):
        shares = gate.shares(evidence)
        assert shares.isfinite().all()
        assert torch.allclose(shares.sum(0), torch.ones(evidence.slim.shape))
        for token in (0, WIDTH - 1):
            tokens = torch.full((evidence.slim.shape[0],), token)
            decided = gate.classify(evidence, tokens, SeededDraws(0, "a"))
            if not isinstance(gate, RandomGate):
                assert decided.tolist() == shares[:, :, token].argmax(0).tolist()


def test_evidence_at_one_place() -> None:
    one = SEEN.at(7)
    assert one.draft is not None
    assert torch.equal(one.slim, SLIM[7:8]) and torch.equal(one.draft, DRAFT[7:8])
    assert BEHIND.at(7).draft is None


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (DeferralGate, {"measure": "certainty"}, "measure"),
        (DeferralGate, {"threshold": -0.1}, "threshold"),
        (DraftProbabilityGate, {"min_prob": 1.5}, "min_prob"),
        (StrictnessGate, {"strictness": -0.1}, "strictness"),
        (StrictnessGate, {"strictness": 1.1}, "strictness"),
        (RatioGate, {"floor": 1.2}, "floor"),
        (RandomGate, {"keep": 0.5, "rewrite": 0, "escalate": 0.2, "judge": 0.2}, "keep [+] rewrite [+] escalate"),
        (RandomGate, {"keep": 0.5, "rewrite": 0, "escalate": 1, "judge": -0.5}, "judge"),
        (LearnedGate, {"rule": "chow"}, "rule"),
        (LearnedGate, {"weights": {"agree": ["x"]}}, "weights"),
        (LearnedGate, {"waits": {}}, "waits"),
    ],
)
def test_wrong_values_are_refused_by_name(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        make(**options)
