"""Laws of slim verifiers that judge, and of one to three of them, over the real loop against the stated ones."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from doubles import PROMPT, VOCABULARY, Outcome, Tables, enumerate_paths, largest_difference
from test_laws import (
    CAUGHT,
    EXACT,
    IDS,
    NUCLEUS,
    ROLES,
    TOKENS,
    WARM,
    Rows,
    StatedLaw,
    bonus_law,
    check_via_sd,
    enumerated,
    gate_shares,
    method_of,
    product_law,
    recorded_law,
    regions_seen,
    via_sd,
)

from viasd import exact
from viasd.decode import Draft, Generation
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.judging import HierarchicalJudge, Ruling
from viasd.routing import Gate, RandomGate, RatioGate
from viasd.sampling import Sampling
from viasd.slim import SlimVerifier
from viasd.verification import SlimView

GREEDY = Sampling()
NARROW = Sampling(temperature=0.7, top_p=0.65)  # many rows have one token: fewer paths
SURE = DeferralGate(threshold=0.5)
JUDGE_ALL = DeferralGate(threshold=0)
MEASURES = [
    DeferralGate(measure="confidence", threshold=0.6),
    DeferralGate(measure="entropy", threshold=0.8),
    DeferralGate(measure="margin", threshold=0.3),
    DeferralGate(measure="overlap", threshold=0.6),
]
STRICT, WIDE = RatioGate(accept_ratio=0.9, escalate_ratio=0.6), RatioGate(accept_ratio=0.85, escalate_ratio=0.4)
OFTEN_UNSURE = DeferralGate(threshold=0.7)
MIXED = RandomGate(keep=0.3, rewrite=0, escalate=0.4, judge=0.3)
CHAINS: dict[str, list[Gate]] = {
    "ratios": [STRICT, WIDE],
    "ratio_deferral": [STRICT, SURE],
    "deferral_ratio": [OFTEN_UNSURE, WIDE],
    "deferrals": [OFTEN_UNSURE, SURE],
    "three": [STRICT, OFTEN_UNSURE, WIDE],
    "three_deferrals": [OFTEN_UNSURE, DeferralGate(measure="margin", threshold=0.4), SURE],
}


def tiers(gates: list[Gate], cache: str = "shared", **options: Any) -> Hierarchical:
    """Slim verifiers with these gates, the first one first."""
    slim = SlimView(mask=[0], cache=cache)  # type: ignore[arg-type]
    above = [SlimTier(gate=gate, slim=slim) for gate in gates[1:]]
    return Hierarchical(gate=gates[0], slim=slim, above=above, **options)


# --- the slim verifier as judge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pending", [1, 2, None])
@pytest.mark.parametrize("after_escalation", ["target", "slim"])
@pytest.mark.parametrize("gate", MEASURES, ids=lambda gate: gate.measure)
def test_deferral(gate: DeferralGate, after_escalation: str, max_pending: int | None) -> None:
    rules = via_sd(gate, after_escalation=after_escalation, max_pending=max_pending)
    paths = check_via_sd(rules, Tables(7), NUCLEUS, length=2)
    keep, rewrite, escalate, judge = regions_seen(paths)
    assert keep == rewrite == 0 < min(escalate, judge)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("gate", MEASURES, ids=lambda gate: gate.measure)
def test_deferral_with_patience(gate: DeferralGate, length: int) -> None:
    """A position's law depends on how many tokens before it the target has not read, and on nothing else new."""
    rules = via_sd(replace(gate, patience=1.5))
    check_via_sd(rules, Tables(4), NUCLEUS, length)
    laws = [enumerated(method_of(via_sd(one), length), Tables(4), NUCLEUS)[0] for one in (rules.gate, gate)]
    assert largest_difference(*laws) > CAUGHT


@pytest.mark.parametrize(
    ("gate", "sampling", "options"),
    [
        (SURE, WARM, {"bonus": "none"}),
        (SURE, WARM, {"bonus_min_prob": 0.5, "target_bonus": False}),
        (JUDGE_ALL, WARM, {"max_pending": 1}),
        (SURE, NUCLEUS, {"after_escalation": "slim", "max_pending": 1}),
        (JUDGE_ALL, NUCLEUS, {"after_escalation": "slim", "max_pending": 1, "bonus": "none"}),
        (JUDGE_ALL, NUCLEUS, {"after_escalation": "slim", "max_pending": 2}),
    ],
)
def test_deferral_of_three_drafted_tokens(gate: Gate, sampling: Sampling, options: dict[str, object]) -> None:
    """A refusal at a place that is forced to the target has no part in what comes behind it."""
    check_via_sd(via_sd(gate, **options), Tables(7), sampling, length=3)


@pytest.mark.parametrize(
    ("gate", "length", "tokens", "options"),
    [
        (RandomGate(keep=0, rewrite=0, escalate=0.4, judge=0.6), 2, 2, {"max_pending": 1}),
        (RandomGate(keep=0, rewrite=0, escalate=0.4, judge=0.6), 2, 2, {"after_escalation": "slim"}),
        (MIXED, 1, 2, {"after_escalation": "slim", "max_pending": None}),
        (MIXED, 2, 2, {"bonus": "none", "max_pending": None}),
        (RandomGate(keep=0.2, rewrite=0.2, escalate=0.3, judge=0.3), 1, 2, {}),
        (RandomGate(keep=0.2, rewrite=0.2, escalate=0.3, judge=0.3), 2, 2, {"bonus": "none", "max_pending": 1}),
    ],
)
def test_random_judging(gate: Gate, length: int, tokens: int, options: dict[str, object]) -> None:
    check_via_sd(via_sd(gate, **options), Tables(3), NARROW, length, tokens)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("gate", MEASURES[:3], ids=lambda gate: gate.measure)
def test_deferral_alone_is_independent_of_the_draft(gate: DeferralGate, length: int) -> None:
    """Every position follows [confident] slim + [else] target, whatever drafts."""
    options = {"after_escalation": "slim", "target_bonus": False, "max_pending": None}
    tables = Tables(7)
    sampling = WARM if length == 1 else NUCLEUS
    rows = Rows(tables, sampling)
    stated = Counter[Outcome]()
    for outcome in itertools.product(IDS, repeat=TOKENS):
        sure = (gate_shares(gate, tables, outcome[:at])[0][3] == 1 for at in range(TOKENS))
        stated[outcome] = math.prod(
            rows.of("slim" if one else "target", outcome[:at])[outcome[at]] for at, one in enumerate(sure)
        )
    other = Redrafted(7)
    assert other.logits("draft", PROMPT) != tables.logits("draft", PROMPT)
    for drafting in (tables, other):
        law, _ = enumerated(method_of(via_sd(gate, "separate", **options), length), drafting, sampling)
        assert largest_difference(law, stated) < EXACT


class Redrafted(Tables):
    """The same tables with another draft model."""

    def logits(self, role: str, prefix: Any) -> list[float]:
        return super().logits("redraft" if role == "draft" else role, prefix)


# --- one to three slim verifiers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pending", [1, None])
@pytest.mark.parametrize("after_escalation", ["target", "slim"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, after_escalation: str, max_pending: int | None) -> None:
    rules = tiers(CHAINS[name], after_escalation=after_escalation, max_pending=max_pending)
    paths = check_via_sd(rules, Tables(11), NARROW, length=2)
    assert {round_.escalation for path in paths for round_ in path.rounds} - {None}


@pytest.mark.parametrize(
    ("name", "length", "cache", "options"),
    [
        ("ratios", 3, "separate", {"bonus": "none"}),
        ("ratios", 2, "shared", {"after_equal_rewrite": "stop", "target_bonus": False}),
        ("ratio_deferral", 3, "shared", {"after_escalation": "slim", "max_pending": 1, "bonus": "none"}),
        ("deferral_ratio", 3, "shared", {"after_escalation": "slim", "max_pending": 2, "target_bonus": False}),
        ("deferrals", 3, "shared", {"bonus_min_prob": 0.8}),
        ("deferrals", 3, "separate", {"after_escalation": "slim", "max_pending": 1}),
        ("three", 1, "shared", {"max_pending": 1}),
        ("three_deferrals", 3, "separate", {"max_pending": 2}),
    ],
)
def test_control_flow_of_chains(name: str, length: int, cache: str, options: dict[str, object]) -> None:
    check_via_sd(tiers(CHAINS[name], cache, **options), Tables(11), NARROW, length)


@pytest.mark.parametrize("seed", [6, 19])
@pytest.mark.parametrize("after_escalation", ["target", "slim"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_wide_rows(name: str, after_escalation: str, seed: int) -> None:
    """Rows of three tokens, so that who is asked first behind a stronger verifier's ruling moves the law."""
    rules = tiers(CHAINS[name], after_escalation=after_escalation, bonus="none", max_pending=None)
    check_via_sd(rules, Tables(seed), WARM, length=2, tokens=2)


@pytest.mark.parametrize("after_escalation", ["target", "slim"])
def test_chain_of_random_gates(after_escalation: str) -> None:
    gates: list[Gate] = [RandomGate(keep=0.4, rewrite=0, escalate=0.6), MIXED]
    rules = tiers(gates, after_escalation=after_escalation, bonus="none", max_pending=None)
    check_via_sd(rules, Tables(3), NARROW, 1, tokens=2)


@pytest.mark.parametrize("name", CHAINS)
def test_position_law_of_a_chain(name: str) -> None:
    """sum_i (draft[C_1..C_{i-1}, A_i] + P(C_1..C_{i-1}, B_i or J_i) slim_i) + P(C_1..C_k) target, at each position."""
    gates, tables = CHAINS[name], Tables(11)
    rows = Rows(tables, WARM)

    def pi(prefix: Outcome, y: int) -> float:
        reaching, total = rows.of("draft", prefix), 0.0
        for role, gate in zip(ROLES, gates, strict=False):
            shares = gate_shares(gate, tables, prefix, role)
            total += reaching[y] * shares[y][0]
            total += sum(reaching[v] * (shares[v][1] + shares[v][3]) for v in IDS) * rows.of(role, prefix)[y]
            reaching = [reaching[v] * shares[v][2] for v in IDS]
        return total + sum(reaching) * rows.of("target", prefix)[y]

    options = {"after_escalation": "slim", "bonus": "none", "target_bonus": False, "max_pending": None}
    law, paths = enumerated(method_of(tiers(gates, **options), 1), tables, WARM)
    for outcome in itertools.product(IDS, repeat=TOKENS):
        expected = math.prod(pi(outcome[:at], outcome[at]) for at in range(TOKENS))
        assert abs(law.get(outcome, 0.0) - expected) < EXACT
    asked = {role for path in paths for role, calls in path.calls.items() if calls}
    assert asked >= {"target", *ROLES[: len(gates)]}


def test_position_law_is_of_this_draft_only_where_a_token_is_kept() -> None:
    """A chain of position gates has a law without the draft; a ratio gate in it has not."""
    options = {"after_escalation": "slim", "target_bonus": False, "max_pending": None}
    for name, free in (("deferrals", True), ("ratio_deferral", False)):
        rules = tiers(CHAINS[name], "separate", **options)
        law, other = (enumerated(method_of(rules, 2), tables, NARROW)[0] for tables in (Tables(11), Redrafted(11)))
        assert (largest_difference(law, other) < EXACT) == free


# --- temperature 0 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pending", [1, 2, None])
@pytest.mark.parametrize("after_escalation", ["target", "slim"])
@pytest.mark.parametrize("name", ["deferral", "ratio", *CHAINS])
def test_greedy(name: str, after_escalation: str, max_pending: int | None) -> None:
    """The law is a point mass, of the stated text."""
    gates = {"deferral": [SURE], "ratio": [WIDE]}.get(name) or CHAINS[name]
    seen = Counter[str | None]()
    for seed, (length, bonus) in itertools.product(range(12), ((3, "slim"), (2, "none"))):
        rules = tiers(gates, after_escalation=after_escalation, max_pending=max_pending, bonus=bonus)
        tables = Tables(seed, spread=0.7)
        law, paths = enumerated(method_of(rules, length), tables, GREEDY, tokens=6)
        stated = StatedLaw(Rows(tables, GREEDY), rules, length, 6).block()
        assert len(paths) == 1
        assert largest_difference(law, stated) < EXACT
        seen.update(source for path in paths for one in path.rounds for source in one.sources)
    assert seen["slim"] and seen["target"]


@pytest.mark.parametrize("after_escalation", ["target", "slim"])
def test_greedy_by_chance(after_escalation: str) -> None:
    """Random gates make several paths at temperature 0 too."""
    rules = via_sd(RandomGate(keep=0.3, rewrite=0.2, escalate=0.2, judge=0.3), after_escalation=after_escalation)
    paths = check_via_sd(rules, Tables(5), GREEDY, length=1)
    assert len({tuple(path.token_ids) for path in paths}) > 1


# --- recorded laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "length", "sampling", "options"),
    [
        (SURE, 1, WARM, {"max_pending": 2}),
        (SURE, 2, NUCLEUS, {"max_pending": 3}),
        (OFTEN_UNSURE, 1, WARM, {"after_escalation": "slim", "bonus_min_prob": 0.5}),
        (MIXED, 1, NARROW, {"max_pending": None}),
    ],
    ids=["deferral", "deferral_2", "deferral_after_slim", "mixed"],
)
def test_laws_recorded_of_a_judge(gate: Gate, length: int, sampling: Sampling, options: dict[str, object]) -> None:
    rules, seen = via_sd(gate, **options), set[str]()
    for seed in range(6):
        rows = Rows(Tables(seed), sampling)
        for generation, _ in enumerate_paths(method_of(rules, length), rows.tables, sampling, 1 + length, detail=True):
            assert generation.laws == pytest.approx(recorded_law(rows, rules, generation), abs=EXACT)
            seen |= sources_of(generation)
    assert seen == {"slim", "slim bonus", "target", "target bonus"} | ({"draft"} if gate is MIXED else set())


def sources_of(generation: Generation) -> set[str]:
    """Who wrote its tokens, bonuses apart."""
    rounds = generation.rounds
    judged = {source for round_ in rounds for source in round_.sources[: round_.judged]}
    return judged | {f"{source} bonus" for round_ in rounds for source in round_.sources[round_.judged :]}


def recorded_chain_law(rows: Rows, rules: Hierarchical, generation: Generation) -> list[float]:
    """The same for gates that look at positions, asked anew at each: the first sure one is the judge."""
    expected, output = [], tuple(generation.token_ids)
    for round_ in generation.rounds:
        for index, source in enumerate(round_.sources):
            at = round_.prefix - len(PROMPT) + index
            prefix, y = output[:at], output[at]
            deciders = [i for i, tier in enumerate(rules.tiers) if sure(rows, tier.gate, prefix, i)]
            if source == "target":
                expected.append(rows.of("target", prefix)[y])
            elif index < round_.judged:
                expected.append(rows.of(ROLES[deciders[0]], prefix)[y])
            else:
                last = output[: at - 1]
                ruler = next(i for i, tier in enumerate(rules.tiers) if sure(rows, tier.gate, last, i))
                passing = bonus_law(rows, rules, prefix, ruler)
                expected.append(passing[y] / sum(passing))
    return expected


def sure(rows: Rows, gate: Gate, prefix: Outcome, level: int) -> bool:
    return gate_shares(gate, rows.tables, prefix, ROLES[level])[0][3] == 1


@pytest.mark.parametrize("name", ["deferrals", "three_deferrals"])
def test_laws_recorded_of_a_chain(name: str) -> None:
    rules, seen = tiers(CHAINS[name], after_escalation="slim", max_pending=None), set[str]()
    for seed in range(10, 16):
        rows = Rows(Tables(seed), WARM)
        for generation, _ in enumerate_paths(method_of(rules, 1), rows.tables, WARM, 2, detail=True):
            assert generation.laws == pytest.approx(recorded_chain_law(rows, rules, generation), abs=EXACT)
            seen |= sources_of(generation)
    assert {"slim", "slim bonus", "target"} <= seen


@pytest.mark.parametrize(
    "gates",
    [[JUDGE_ALL], [MIXED], [RandomGate(keep=0, rewrite=0, escalate=0.5, judge=0.5)], CHAINS["deferrals"]],
    ids=["judge_all", "mixed", "half_judged", "deferrals"],
)
def test_fidelity_estimates_the_distance_from_the_target(gates: list[Gate]) -> None:
    """The mean of 1 - min(1, target / law) of the first token is the distance of its law from the target's.

    Without bias where what is left to the target does not depend on the drafted token, and by one law beside it.
    """
    tables, rules = Tables(3), tiers(gates)
    target = Rows(tables, WARM).of("target", ())
    estimate, law = 0.0, [0.0] * VOCABULARY
    for generation, weight in enumerate_paths(method_of(rules, 1), tables, WARM, max_new_tokens=1, detail=True):
        assert generation.laws is not None
        first = generation.token_ids[0]
        estimate += weight * (1 - min(1.0, target[first] / generation.laws[0]))
        law[first] += weight
    distance = sum(abs(one - other) for one, other in zip(law, target, strict=True)) / 2
    assert estimate == pytest.approx(distance, abs=EXACT)
    assert distance > 0.01


# --- the enumeration notices mistakes -----------------------------------------------------------------------------


def plain_proposals(self: HierarchicalJudge, draft: Draft, ruling: Ruling, level: int) -> torch.Tensor:
    """The mistake: the stronger verifier takes the plain draft row for the law of what was escalated to it."""
    return draft.rows[ruling.place :]


def asked_from_the_first(whole: Any) -> Any:
    """The mistake: verifiers that a stronger one's ruling had passed over count as having escalated the token."""

    def proposals(self: HierarchicalJudge, draft: Draft, ruling: Ruling, level: int) -> torch.Tensor:
        asked, ruling.start = ruling.start, 0
        try:
            return whole(self, draft, ruling, level)
        finally:
            ruling.start = asked

    return proposals


def redrawn_plainly(refused: Any) -> Any:
    """The mistake: a refused token is drawn from the judge's row instead of from what the draft leaves of it."""

    def draw(self: SlimVerifier, look: Any, state: Any, regions: Any, forced_at: int) -> None:
        chosen, proposals = state.draws.draw, look.proposals

        def from_row(rows: Any, stream: Any, where: Any = None) -> Any:
            return chosen(look.rows if rows.shape == look.rows.shape else rows, stream, where)

        state.draws.draw = from_row
        try:
            refused(self, look, state, regions, forced_at)
        finally:
            state.draws.draw = chosen
        assert look.proposals is proposals

    return draw


def one_coin(self: SlimVerifier, look: Any, state: Any, judged: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
    """The mistake: behind a first refusal nothing is tested, though another verifier may have ruled on that place."""
    at = look.tokens[:, None]
    accept = look.rows[:-1].gather(1, at)[:, 0].where(judged, 1)
    drafted = proposals.gather(1, at)[:, 0].where(judged, 0)
    return torch.arange(len(judged)) >= state.draws.accepted_prefix(accept, drafted)


@pytest.mark.parametrize(
    "name", ["judge_redraws_plainly", "plain_row_at_second_slim", "one_refusal_for_all", "asked_from_the_first"]
)
def test_mutation_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, sampling = 7, NUCLEUS
    if name == "judge_redraws_plainly":
        monkeypatch.setattr(SlimVerifier, "_draw", redrawn_plainly(SlimVerifier._draw))
        rules, length = via_sd(SURE), 2
    elif name == "one_refusal_for_all":
        monkeypatch.setattr(SlimVerifier, "_refused", one_coin)
        rules, length, seed = via_sd(JUDGE_ALL, after_escalation="slim", max_pending=1, bonus="none"), 3, 2
    elif name == "asked_from_the_first":
        monkeypatch.setattr(HierarchicalJudge, "_proposals", asked_from_the_first(HierarchicalJudge._proposals))
        rules, length, seed, sampling = tiers([STRICT, WIDE], bonus="none", max_pending=None), 2, 6, WARM
    else:
        monkeypatch.setattr(HierarchicalJudge, "_proposals", plain_proposals)
        rules, length = tiers([STRICT, JUDGE_ALL], bonus="none", max_pending=None), 2
    tables = Tables(seed)
    law, _ = enumerated(method_of(rules, length), tables, sampling)
    assert largest_difference(law, StatedLaw(Rows(tables, sampling), rules, length).block()) > CAUGHT


def test_draft_row_in_place_of_m_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """In exact mode the target tests a provisional token against the law that wrote it, not against the draft's."""
    rules = tiers([WIDE], mode="exact")
    rows = Rows(Tables(7), NUCLEUS)
    law, _ = enumerated(method_of(rules), rows.tables, NUCLEUS, tokens=2)
    assert largest_difference(law, product_law(rows, "target", 2)) < EXACT
    whole = exact.ExactJudge._guess

    def guess(self: exact.ExactJudge, state: Any, ruling: Ruling, place: int) -> Any:
        made, look = whole(self, state, ruling, place), ruling.looks[ruling.ruler]
        assert look.proposals is not None
        return made if place == look.end else replace(made, row=look.proposals[place - look.first])

    monkeypatch.setattr(exact.ExactJudge, "_guess", guess)
    law, _ = enumerated(method_of(rules), rows.tables, NUCLEUS, tokens=2)
    assert largest_difference(law, product_law(rows, "target", 2)) > CAUGHT
