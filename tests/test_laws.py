"""Joint law of three tokens over the real decode loop, every outcome enumerated, against laws stated as set algebra."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from doubles import (
    PROMPT,
    VOCABULARY,
    BranchingDraws,
    Outcome,
    ReusedCoinDraws,
    Tables,
    enumerate_paths,
    largest_difference,
    law_of,
)
from torch import Tensor

from baselines.controls import CoinMix, CoinSlim, Unverified
from viasd import judging, slim, verification
from viasd.decode import Generation
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import Evidence, Gate, RandomGate, RatioGate
from viasd.rules import ChainVerdict, RuleRows, judge_chain
from viasd.sampling import Draws, Sampling, process
from viasd.verification import RuleVerifier, SlimView, VerifierSpec

TOKENS = 3
EXACT = 1e-9
CAUGHT = 1e-3
WARM = Sampling(temperature=0.7)  # processed rows differ from raw ones
NUCLEUS = Sampling(temperature=0.7, top_p=0.85)  # some rows lose a token: fewer paths
GATES: dict[str, Gate] = {
    "swapped": RatioGate(reading="swapped"),
    "direct": RatioGate(reading="direct"),
    "literal": RatioGate(reading="literal"),
    "accept_all": RatioGate(accept_ratio=0, escalate_ratio=0),
    "random": RandomGate(keep=0.3, rewrite=0.3, escalate=0.4),
    "random_keep_or_escalate": RandomGate(keep=0.6, rewrite=0, escalate=0.4),
}
SWAPPED = GATES["swapped"]
Law = dict[Outcome, float]
IDS = range(VOCABULARY)
ROLES = ("slim", "slim2", "slim3")  # readers of the slim verifiers, the first one first


def method_of(verifier: VerifierSpec, length: int = 2) -> Method:
    return Method(name="test", drafter=DraftModel(), stop=FixedLength(length=length), verifier=verifier)


def via_sd(gate: Gate, cache: str = "shared", **options: object) -> Hierarchical:
    return Hierarchical(gate=gate, slim=SlimView(mask=[0], cache=cache), **options)  # type: ignore[arg-type]


def enumerated(
    method: Method,
    tables: Tables,
    sampling: Sampling,
    draws_class: type[BranchingDraws] = BranchingDraws,
    tokens: int = TOKENS,
) -> tuple[Law, list[Generation]]:
    """The law of the real loop, and all its paths."""
    paths = list(enumerate_paths(method, tables, sampling, tokens, draws_class=draws_class))
    return law_of(iter(paths)), [generation for generation, _ in paths]


# --- stated laws, written without the loop ------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Processed rows of the three models, computed here in plain Python."""

    tables: Tables
    sampling: Sampling

    def of(self, role: str, prefix: Outcome) -> list[float]:
        logits = self.tables.logits(role, (*PROMPT, *prefix))
        if self.sampling.temperature == 0:
            return [float(token == logits.index(max(logits))) for token in IDS]
        weights = [math.exp(x / self.sampling.temperature) for x in logits]
        row = [weight / sum(weights) for weight in weights]
        kept, mass = set(), 0.0
        for token in sorted(IDS, key=lambda token: -row[token]):
            if mass < self.sampling.top_p:
                kept.add(token)
            mass += row[token]
        total = sum(row[token] for token in kept)
        return [row[token] / total if token in kept else 0.0 for token in IDS]


def product_law(rows: Rows, role: str, tokens: int = TOKENS) -> Law:
    """What one model alone would output."""
    law: Law = {}
    for outcome in itertools.product(IDS, repeat=tokens):
        law[outcome] = math.prod(rows.of(role, outcome[:at])[outcome[at]] for at in range(tokens))
    return law


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def surely(gate: DeferralGate, slim: list[float], draft: list[float] | None, pending: int = 0) -> bool:
    """Whether a gate lets the slim verifier judge, from raw rows of probabilities; behind a draft there is no draft."""
    first, second = sorted(slim, reverse=True)[:2]
    slack = 1.0 if gate.patience is None else 1 + pending / gate.patience
    if gate.measure == "entropy":
        return -sum(p * math.log(p) for p in slim) <= gate.threshold * slack
    smallest = gate.threshold / (gate.threshold + (1 - gate.threshold) * slack)  # odds of doubt times slack
    if gate.measure == "confidence":
        return first >= smallest
    if gate.measure == "margin" or draft is None:
        return first - second >= smallest
    return sum(map(min, slim, draft)) >= smallest


def gate_shares(
    gate: Gate, tables: Tables, prefix: Outcome, role: str = "slim", drafted: bool = True, pending: int = 0
) -> list[tuple[float, float, float, float]]:
    """Per token: the probability that the gate keeps it, has it rewritten, escalates it, has it judged."""
    if isinstance(gate, RandomGate):
        return [(gate.keep, gate.rewrite, gate.escalate, gate.judge)] * VOCABULARY
    logits = tables.logits(role, (*PROMPT, *prefix))
    if isinstance(gate, DeferralGate):
        draft = softmax(tables.logits("draft", (*PROMPT, *prefix))) if drafted else None
        sure = surely(gate, softmax(logits), draft, pending)
        return [(0.0, 0.0, float(not sure), float(sure))] * VOCABULARY
    assert isinstance(gate, RatioGate)
    accept, escalate = gate.thresholds
    ratios = [math.exp(x) / math.exp(max(logits)) for x in logits]
    return [(float(r >= accept), float(escalate <= r < accept), float(r < escalate), 0.0) for r in ratios]


def mix(parts: Iterable[tuple[float, Law]]) -> Law:
    """The mixture of laws by weight."""
    law: Law = Counter()
    for weight, part in parts:
        for outcome, probability in part.items():
            law[outcome] += weight * probability
    return law


@dataclass(frozen=True)
class StatedLaw:
    """The law of via_sd as DESIGN section 3 states it: what is kept goes on in its block, the rest starts a block anew.

    `pending` counts committed tokens the target neither read nor wrote, `ran` says that it ran in this block, `level`
    who is asked first. Of the drafted token's law each slim verifier takes its part, and leaves the rest to the next.
    """

    rows: Rows
    rules: Hierarchical
    length: int
    tokens: int = TOKENS

    def block(self, prefix: Outcome = (), pending: int = 0) -> Law:
        return self.position(prefix, min(self.length, self.tokens - len(prefix)), pending, False, 0, 0)

    def position(self, prefix: Outcome, left: int, pending: int, ran: bool, level: int, ruler: int) -> Law:
        """The law of the whole text from here on; `left` drafted tokens are not ruled on, `ruler` was the last to."""
        rules, limit = self.rules, self.rules.max_pending
        if len(prefix) == self.tokens:
            return {prefix: 1.0}
        if left == 0:
            return self.block_end(prefix, pending, ran, ruler)
        draft = self.rows.of("draft", prefix)
        forced = not ran and limit is not None and pending >= limit
        if forced or (ran and rules.after_escalation == "target"):
            return mix(self.target_writes(prefix, left, 1.0, draft))
        parts: list[tuple[float, Law]] = []
        for asked in range(level, len(rules.tiers)):
            found, draft = self.slim_writes(prefix, left, pending, ran, asked, draft)
            parts += found
        if sum(draft) > 0:
            weight = sum(draft)
            parts += self.target_writes(prefix, left, weight, [share / weight for share in draft])
        return mix(parts)

    def slim_writes(
        self, prefix: Outcome, left: int, pending: int, ran: bool, asked: int, draft: list[float]
    ) -> tuple[list[tuple[float, Law]], list[float]]:
        """What one slim verifier decides of the drafted tokens that reach it (their law times the probability that they
        do), and those it escalates.
        """
        rules = self.rules
        slim = self.rows.of(ROLES[asked], prefix)
        shares = gate_shares(rules.tiers[asked].gate, self.rows.tables, prefix, ROLES[asked], pending=pending)
        waiting = 0 if ran else pending + 1  # the target's run read the whole draft
        rewritten, judged = (sum(draft[v] * shares[v][region] for v in IDS) for region in (1, 3))
        parts: list[tuple[float, Law]] = []
        for y in IDS:
            text, equal = (*prefix, y), draft[y] * shares[y][1] * slim[y]
            accepted = min(draft[y] * shares[y][3], judged * slim[y])
            first = asked if rules.after_escalation == "target" else 0
            goes_on = draft[y] * shares[y][0] + accepted
            replaced = rewritten * slim[y] - equal + judged * slim[y] - accepted
            if rules.after_equal_rewrite == "continue":
                goes_on += equal
            elif equal > 0:
                parts.append((equal, self.block(text, waiting)))
            if goes_on > 0:
                parts.append((goes_on, self.position(text, left - 1, waiting, ran, first, asked)))
            if replaced > 0:
                parts.append((replaced, self.block(text, 1 if ran else pending + 1)))
        return parts, [draft[v] * shares[v][2] for v in IDS]

    def target_writes(
        self, prefix: Outcome, left: int, weight: float, proposal: list[float]
    ) -> list[tuple[float, Law]]:
        """The target's law; min(proposal, target) of it equals the drafted token, and there the block goes on."""
        target = self.rows.of("target", prefix)
        parts: list[tuple[float, Law]] = []
        for y in IDS:
            kept = min(proposal[y], target[y])
            if kept > 0:
                goes_on = self.position((*prefix, y), left - 1, 0, True, 0, len(self.rules.tiers))
                parts.append((weight * kept, goes_on))
            if target[y] > kept:
                parts.append((weight * (target[y] - kept), self.block((*prefix, y), 0)))
        return parts

    def block_end(self, prefix: Outcome, pending: int, ran: bool, ruler: int) -> Law:
        rules, limit = self.rules, self.rules.max_pending
        if ruler == len(rules.tiers):
            if not rules.target_bonus:
                return self.block(prefix, pending)
            target = self.rows.of("target", prefix)
            return mix((target[y], self.block((*prefix, y), 0)) for y in IDS if target[y] > 0)
        if rules.bonus == "none" or (limit is not None and not ran and pending >= limit):
            return self.block(prefix, pending)
        passing = bonus_law(self.rows, rules, prefix, ruler, pending)
        parts = [(passing[y], self.block((*prefix, y), pending + 1)) for y in IDS if passing[y] > 0]
        if sum(passing) < 1:
            parts.append((1 - sum(passing), self.block(prefix, pending)))
        return mix(parts)


def bonus_law(rows: Rows, rules: Hierarchical, prefix: Outcome, ruler: int = 0, pending: int = 0) -> list[float]:
    """Per token: the probability that the slim verifier who ruled last adds it behind a kept draft."""
    slim = rows.of(ROLES[ruler], prefix)
    shares = gate_shares(rules.tiers[ruler].gate, rows.tables, prefix, ROLES[ruler], False, pending)
    return [slim[y] * (shares[y][0] + shares[y][3]) * (slim[y] >= rules.bonus_min_prob) for y in IDS]


# --- laws of the lossless methods and of the controls -------------------------------------------------------------


@pytest.mark.parametrize("sampling", [WARM, NUCLEUS], ids=["warm", "nucleus"])
@pytest.mark.parametrize(
    ("verifier", "length", "writer"),
    [
        (RuleVerifier(), 1, "target"),
        (RuleVerifier(), 2, "target"),
        (RuleVerifier(), 3, "target"),
        (CoinMix(p=1.0), 2, "target"),
        (Unverified(), 2, "draft"),
        (CoinMix(p=0.0), 2, "draft"),
        (CoinSlim(p=1.0, slim=SlimView(mask=[0])), 2, "target"),
        (CoinSlim(p=0.0, slim=SlimView(mask=[0])), 2, "slim"),
        (RuleVerifier(reader="slim", slim=SlimView(mask=[0])), 2, "slim"),
        (RuleVerifier(reader="slim", slim=SlimView(mask=[0], cache="separate")), 1, "slim"),
    ],
    ids=[
        "sd-1", "sd-2", "sd-3", "coin_mix-1.0", "draft_only", "coin_mix-0.0", "coin_slim-1.0", "coin_slim-0.0",
        "slim_only", "slim_only-separate",
    ],
)  # fmt: skip
def test_one_writer(verifier: VerifierSpec, length: int, writer: str, sampling: Sampling) -> None:
    tables = Tables(1)
    law, _ = enumerated(method_of(verifier, length), tables, sampling)
    assert largest_difference(law, product_law(Rows(tables, sampling), writer)) < EXACT


def test_vanilla() -> None:
    method = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
    law, paths = enumerated(method, Tables(1), WARM)
    assert largest_difference(law, product_law(Rows(Tables(1), WARM), "target")) < EXACT
    assert len(paths) == VOCABULARY**TOKENS


@pytest.mark.parametrize(
    ("verifier", "other"),
    [
        (CoinMix(p=0.3), None),
        (CoinMix(p=0.8), None),
        (CoinSlim(p=0.3, slim=SlimView(mask=[0])), "slim"),
        (CoinSlim(p=0.8, slim=SlimView(mask=[0], cache="separate")), "slim"),
    ],
    ids=["coin_mix-0.3", "coin_mix-0.8", "coin_slim-0.3", "coin_slim-0.8-separate"],
)
def test_a_coin_per_round(verifier: CoinMix | CoinSlim, other: str | None) -> None:
    """The target judges the round, or the other one does: the slim verifier, or nobody."""
    rows, p = Rows(Tables(2), NUCLEUS), verifier.p

    def block(prefix: Outcome = ()) -> Law:
        left = min(2, TOKENS - len(prefix))
        if left == 0:
            return {prefix: 1.0}
        rest = unread(prefix, left) if other is None else judged(prefix, left, other)
        return mix([(p, judged(prefix, left, "target")), (1 - p, rest)])

    def unread(prefix: Outcome, left: int) -> Law:
        if left == 0:
            return block(prefix)
        draft = rows.of("draft", prefix)
        return mix((draft[y], unread((*prefix, y), left - 1)) for y in IDS)

    def judged(prefix: Outcome, left: int, judge: str) -> Law:
        if len(prefix) == TOKENS:
            return {prefix: 1.0}
        draft, row = rows.of("draft", prefix), rows.of(judge, prefix)
        if left == 0:
            return mix((row[y], block((*prefix, y))) for y in IDS)
        kept = [min(draft[y], row[y]) for y in IDS]
        goes_on = [(kept[y], judged((*prefix, y), left - 1, judge)) for y in IDS]
        return mix(goes_on + [(row[y] - kept[y], block((*prefix, y))) for y in IDS])

    law, _ = enumerated(method_of(verifier), rows.tables, NUCLEUS)
    assert largest_difference(law, block()) < EXACT


# --- laws of via_sd -----------------------------------------------------------------------------------------------


def check_via_sd(
    rules: Hierarchical, tables: Tables, sampling: Sampling, length: int, tokens: int = TOKENS
) -> list[Generation]:
    law, paths = enumerated(method_of(rules, length), tables, sampling, tokens=tokens)
    assert math.isclose(sum(law.values()), 1, abs_tol=EXACT)
    assert largest_difference(law, StatedLaw(Rows(tables, sampling), rules, length, tokens).block()) < EXACT
    return paths


def regions_seen(paths: list[Generation]) -> list[int]:
    rounds = [round_ for generation in paths for round_ in generation.rounds]
    return [sum(round_.regions[region] for round_ in rounds if round_.regions) for region in range(4)]


CONTROL_FLOWS = list(
    itertools.product(("slim", "none"), (True, False), ("target", "slim"), ("continue", "stop"), (1, 2, None))
)


@pytest.mark.parametrize(
    ("bonus", "target_bonus", "after_escalation", "after_equal_rewrite", "max_pending"),
    CONTROL_FLOWS,
    ids=[f"bonus_{b}-target_bonus_{t}-after_{a}-equal_{e}-pending_{m}" for b, t, a, e, m in CONTROL_FLOWS],
)
def test_via_sd_control_flow(
    bonus: str, target_bonus: bool, after_escalation: str, after_equal_rewrite: str, max_pending: int | None
) -> None:
    rules = via_sd(
        SWAPPED,
        bonus=bonus,
        target_bonus=target_bonus,
        after_escalation=after_escalation,
        after_equal_rewrite=after_equal_rewrite,
        max_pending=max_pending,
    )
    paths = check_via_sd(rules, Tables(7), NUCLEUS, length=2)
    assert min(regions_seen(paths)[:3]) > 0
    escalations = {round_.escalation for generation in paths for round_ in generation.rounds}
    assert escalations == ({None, "gate"} if max_pending is None else {None, "gate", "forced"})


PLAIN = {"bonus": "none", "target_bonus": False, "max_pending": None}


@pytest.mark.parametrize(
    ("option", "values", "others"),
    [
        ("after_equal_rewrite", ("continue", "stop"), PLAIN),
        ("after_escalation", ("target", "slim"), PLAIN),
        ("target_bonus", (True, False), {}),
        ("bonus", ("slim", "none"), {"max_pending": None}),
        ("bonus_min_prob", (0.0, 0.7), {}),
        ("max_pending", (1, 2), {"after_escalation": "slim", "target_bonus": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_via_sd_where_an_option_matters(option: str, values: tuple[object, ...], others: dict[str, object]) -> None:
    """On tables with wide rows and a wide rewrite region each option moves the law, as stated."""
    gate, sampling, tables = (
        RatioGate(accept_ratio=0.85, escalate_ratio=0.4),
        Sampling(temperature=0.7, top_p=0.9),
        Tables(97),
    )
    stated = []
    for value in values:
        rules = via_sd(gate, **{**others, option: value})
        check_via_sd(rules, tables, sampling, length=2)
        stated.append(StatedLaw(Rows(tables, sampling), rules, 2).block())
    assert largest_difference(*stated) > CAUGHT


@pytest.mark.parametrize(
    ("name", "length", "cache", "options"),
    [
        ("swapped", 2, "separate", {}),
        ("swapped", 3, "shared", {"after_escalation": "slim", "max_pending": 2, "bonus": "none"}),
        ("swapped", 1, "shared", {"max_pending": 2, "bonus_min_prob": 0.6}),
        ("direct", 2, "shared", {"after_escalation": "slim", "after_equal_rewrite": "stop", "bonus": "none"}),
        ("direct", 3, "separate", {"max_pending": 1, "target_bonus": False}),
        ("literal", 2, "shared", {"max_pending": 2}),
        ("literal", 1, "separate", {"after_escalation": "slim", "target_bonus": False, "max_pending": None}),
        ("accept_all", 2, "shared", {"max_pending": None}),
        ("accept_all", 3, "shared", {"max_pending": 2, "after_escalation": "slim"}),
    ],
)
def test_via_sd_gates(name: str, length: int, cache: str, options: dict[str, object]) -> None:
    paths = check_via_sd(via_sd(GATES[name], cache, **options), Tables(3), WARM, length)
    keep, rewrite, escalate, judge = (seen > 0 for seen in regions_seen(paths))
    assert not judge
    assert keep
    assert rewrite == (name in ("swapped", "direct"))
    assert escalate == (name != "accept_all")


@pytest.mark.parametrize(
    ("name", "length", "options"),
    [
        ("random_keep_or_escalate", 1, {"max_pending": None}),
        ("random", 1, {"max_pending": 1, "after_equal_rewrite": "stop"}),
        ("random", 2, {"after_escalation": "slim", "bonus": "none", "max_pending": None}),
    ],
)
def test_via_sd_random_gate(name: str, length: int, options: dict[str, object]) -> None:
    check_via_sd(via_sd(GATES[name], **options), Tables(3), Sampling(temperature=0.7, top_p=0.65), length)


@pytest.mark.parametrize("name", ["swapped", "direct", "literal"])
@pytest.mark.parametrize("length", [1, 2])
def test_paper_control_flow_is_a_product(name: str, length: int) -> None:
    """Every position follows pi(y) = draft(y) [y in A] + P(B) slim(y) + P(C) target(y), whatever came before it."""
    options = {"after_escalation": "slim", "bonus": "none", "target_bonus": False, "max_pending": None}
    tables, gate = Tables(4), GATES[name]
    rows = Rows(tables, WARM)

    def pi(prefix: Outcome, y: int) -> float:
        draft, shares = rows.of("draft", prefix), gate_shares(gate, tables, prefix)
        rewritten, escalated = (sum(draft[v] * shares[v][region] for v in IDS) for region in (1, 2))
        kept = draft[y] * shares[y][0]
        return kept + rewritten * rows.of("slim", prefix)[y] + escalated * rows.of("target", prefix)[y]

    law, _ = enumerated(method_of(via_sd(gate, **options), length), tables, WARM)
    for outcome in itertools.product(IDS, repeat=TOKENS):
        expected = math.prod(pi(outcome[:at], outcome[at]) for at in range(TOKENS))
        assert abs(law.get(outcome, 0.0) - expected) < EXACT


# --- recorded laws and the fidelity identity ----------------------------------------------------------------------


def recorded_law(rows: Rows, rules: Hierarchical, generation: Generation) -> list[float]:
    """Per token: the target's row where it decided, else the law given that the target did not decide."""
    expected, output = [], tuple(generation.token_ids)
    for round_ in generation.rounds:
        for index, source in enumerate(round_.sources):
            at = round_.prefix - len(PROMPT) + index
            prefix, y = output[:at], output[at]
            draft, slim, shares = (
                rows.of("draft", prefix),
                rows.of("slim", prefix),
                gate_shares(rules.gate, rows.tables, prefix),
            )
            if source == "target":
                expected.append(rows.of("target", prefix)[y])
            elif index >= round_.judged:  # a slim bonus
                passing = bonus_law(rows, rules, prefix)
                expected.append(passing[y] / sum(passing))
            else:
                of_slim, escalated = (
                    sum(draft[v] * sum(shares[v][r] for r in which) for v in IDS) for which in ((1, 3), (2,))
                )
                expected.append((draft[y] * shares[y][0] + of_slim * slim[y]) / (1 - escalated))
    return expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_pending": 1},
        {"max_pending": None, "after_escalation": "slim", "after_equal_rewrite": "stop"},
        {"max_pending": 2, "bonus_min_prob": 0.5},
    ],
    ids=["pending_1", "after_slim", "bonus_min_prob"],
)
def test_laws_recorded_on_every_path(options: dict[str, object]) -> None:
    tables, rules = Tables(3), via_sd(SWAPPED, **options)
    rows, seen = Rows(tables, NUCLEUS), Counter[str]()
    for generation, _ in enumerate_paths(method_of(rules), tables, NUCLEUS, detail=True):
        assert generation.laws == pytest.approx(recorded_law(rows, rules, generation), abs=EXACT)
        seen.update(source for round_ in generation.rounds for source in round_.sources)
    assert set(seen) == {"draft", "slim", "target"}


@pytest.mark.parametrize("name", ["sd", "draft_only", "slim_only", "via_sd"])
def test_fidelity_estimates_the_distance_from_the_target(name: str) -> None:
    """The mean of 1 - min(1, target / law) over the first token is the distance of its law from the target's."""
    verifier: VerifierSpec = {
        "sd": RuleVerifier(),
        "draft_only": Unverified(),
        "slim_only": RuleVerifier(reader="slim", slim=SlimView(mask=[0])),
        "via_sd": via_sd(SWAPPED),
    }[name]
    tables = Tables(3)
    target = Rows(tables, WARM).of("target", ())
    estimate, law = 0.0, [0.0] * VOCABULARY
    for generation, weight in enumerate_paths(method_of(verifier, 1), tables, WARM, max_new_tokens=1, detail=True):
        assert generation.laws is not None
        first = generation.token_ids[0]
        estimate += weight * (1 - min(1.0, target[first] / generation.laws[0]))
        law[first] += weight
    distance = sum(abs(one - other) for one, other in zip(law, target, strict=True)) / 2
    assert estimate == pytest.approx(distance, abs=EXACT)
    assert (distance > 0.01) == (name != "sd")


# --- the enumeration notices mistakes -----------------------------------------------------------------------------


class BlindEscalation(RatioGate):
    """The mistake: the escalated position is tested with the plain draft row."""

    def shares(self, evidence: Evidence) -> Tensor:
        return torch.ones(4, *evidence.slim.shape, dtype=evidence.slim.dtype)


def raw_bonus(logits: Tensor, sampling: Sampling) -> Tensor:
    """The mistake: the row behind the draft is not processed."""
    rows = process(logits, sampling)
    rows[-1] = logits[-1].softmax(-1)
    return rows


def redrawn_from_target(
    tokens: Tensor, draft: Tensor, rule: RuleRows, draws: Draws, bonus: bool = True
) -> ChainVerdict:
    """The mistake: a refused token is replaced from the target's row instead of from what the draft leaves of it."""
    return judge_chain(tokens, draft, RuleRows(rule.reject, rule.residual + draft, rule.bonus), draws, bonus)


def mutated_difference(name: str, method: str, patch: pytest.MonkeyPatch) -> float:
    """How far a mistake moves the law from the stated one."""
    tables, gate, draws_class = Tables(7), SWAPPED, BranchingDraws
    if name == "bonus_ignores_temperature":
        for module in (verification, judging, slim):
            patch.setattr(module, "process", raw_bonus)
    elif name == "residual_is_target":
        for module in (verification, judging):
            patch.setattr(module, "judge_chain", redrawn_from_target)
    elif name == "coin_is_reused":
        draws_class = ReusedCoinDraws
    else:
        gate = BlindEscalation()
    if method == "sd":
        law, _ = enumerated(method_of(RuleVerifier()), tables, WARM, draws_class)
        return largest_difference(law, product_law(Rows(tables, WARM), "target"))
    law, _ = enumerated(method_of(via_sd(gate)), tables, NUCLEUS, draws_class)
    return largest_difference(law, StatedLaw(Rows(tables, NUCLEUS), via_sd(SWAPPED), 2).block())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bonus_ignores_temperature", "sd"),
        ("bonus_ignores_temperature", "via_sd"),
        ("plain_row_at_escalation", "via_sd"),
        ("coin_is_reused", "sd"),
        ("coin_is_reused", "via_sd"),
        ("residual_is_target", "sd"),
        ("residual_is_target", "via_sd"),
    ],
)
def test_mutation_is_caught(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mutated_difference(name, method, monkeypatch) > CAUGHT
