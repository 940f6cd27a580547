"""Row rules over the real loop: joint laws of three tokens, enumerated, against laws stated in plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from doubles import PROMPT, Tables, enumerate_paths, largest_difference, law_of
from stated_rules import (
    EXACT_ENDS,
    LENGTH,
    NEARLY_EXACT,
    NEVER_EXACT,
    RULES,
    Row,
    bonus,
    entropy,
    js,
    recorded,
    rows_at,
    stated,
)
from test_laws import CAUGHT, EXACT, IDS, NUCLEUS, TOKENS, Law, Rows, method_of, product_law, softmax
from torch import Tensor

from baselines.rules.cactus import Cactus
from baselines.rules.cascades import Cascade, TokenCascade
from baselines.rules.fuzzy import Fuzzy
from baselines.rules.lenience import Lenience, LossySD
from baselines.rules.mixtures import Contrastive, Ensemble
from baselines.rules.truncation import Eta, MinP
from baselines.rules.typical import Typical
from viasd import verification
from viasd.decode import Generation
from viasd.drafting import FixedLength, NoDrafter
from viasd.method import Method
from viasd.rules import ChainVerdict, RowRule, RuleRows, judge_chain
from viasd.sampling import Draws, Sampling
from viasd.verification import RuleVerifier

ONE = Sampling(temperature=1.0)


def paths_of(rule: RowRule, tables: Tables, sampling: Sampling, tokens: int = TOKENS) -> list[tuple[Generation, float]]:
    return list(enumerate_paths(method_of(RuleVerifier(rule=rule), LENGTH), tables, sampling, tokens, detail=True))


@pytest.mark.parametrize(("sampling", "tokens"), [(ONE, 2), (NUCLEUS, 3)], ids=["one", "nucleus"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_law_is_the_stated_one(rule: RowRule, sampling: Sampling, tokens: int) -> None:
    rows = Rows(Tables(3), sampling)
    paths = paths_of(rule, rows.tables, sampling, tokens)
    law, expected = law_of(iter(paths)), stated(rows, rule, tokens)
    assert sum(expected.values()) == pytest.approx(1, abs=EXACT)
    assert largest_difference(law, expected) < EXACT
    assert largest_difference(law, product_law(rows, "target", tokens)) > CAUGHT and not rule.lossless
    for generation, _ in paths[:: max(1, len(paths) // 60)]:
        assert generation.laws == pytest.approx(recorded(rows, rule, generation), abs=EXACT)


@pytest.mark.parametrize("rule", EXACT_ENDS + NEARLY_EXACT + NEVER_EXACT, ids=repr)
def test_lossless_end_of_every_knob(rule: RowRule) -> None:
    rows = Rows(Tables(3), Sampling(temperature=0.7, top_p=0.9))
    law = law_of(iter(paths_of(rule, rows.tables, rows.sampling, tokens=2)))
    apart = largest_difference(law, product_law(rows, "target", 2))
    assert rule.lossless == (rule in EXACT_ENDS)
    assert apart > CAUGHT if rule in NEVER_EXACT else apart < EXACT


def test_every_rule_has_its_ends_checked() -> None:
    """A knob whose exact end is not listed above is a knob whose flag nobody checks."""
    ends = {(type(rule), getattr(rule, "defer", None)) for rule in EXACT_ENDS + NEARLY_EXACT + NEVER_EXACT}
    assert {(type(rule), getattr(rule, "defer", None)) for rule in RULES} <= ends


@pytest.mark.parametrize(
    "rule", [Lenience(l=0.6), LossySD(alpha=0.4, beta=1), LossySD(alpha=0.4, beta="normalizing")], ids=repr
)
def test_lenient_rules_refuse_the_overshoot(rule: RowRule) -> None:
    """The first drafted token is refused with probability sum max(0, draft - target / l), whatever beta is."""
    rows = Rows(Tables(3), ONE)
    t, d, _ = rows_at(rows, ())
    expected = sum(max(0.0, y - x / 0.6) for x, y in zip(t, d, strict=True))
    found = sum(weight for path, weight in paths_of(rule, rows.tables, ONE, 1) if path.rounds[0].rejected)
    assert found == pytest.approx(expected, abs=EXACT) and expected > 0.01


@pytest.mark.parametrize("rule", [MinP(p_base=0.5), Eta(eps=0.4, delta=0.9), Typical(), Lenience(l=0.5)], ids=repr)
def test_without_a_drafter_the_bonus_row_is_the_law(rule: RowRule) -> None:
    """Autoregressive decoding with the matched truncation, and no rule minds a round without drafted tokens."""
    rows = Rows(Tables(3), NUCLEUS)
    method = Method(name="m", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier(rule=rule))
    paths = list(enumerate_paths(method, rows.tables, NUCLEUS, 2, detail=True))
    expected: Law = {}
    for outcome in itertools.product(IDS, repeat=2):
        written = [(outcome[at], *rows_at(rows, outcome[:at])) for at in range(2)]
        expected[outcome] = math.prod(bonus(rule, t, raw)[token] for token, t, _, raw in written)
    assert largest_difference(law_of(iter(paths)), expected) < EXACT
    for path, _ in paths:
        assert math.prod(path.laws or ()) == pytest.approx(expected[tuple(path.token_ids)], abs=EXACT)


# --- temperature 0 ---------------------------------------------------------------------------------------------------

Keeps = Callable[[Row, Row, int], bool]  # from raw rows of target and draft model, and the drafted token
GREEDY: list[tuple[RowRule, Keeps]] = [
    (Lenience(l=0.5), lambda t, d, x: t[x] >= 0.5 * max(t)),
    (LossySD(alpha=0.5, beta="normalizing"), lambda t, d, x: t[x] >= 0.5 * max(t)),
    (LossySD(alpha=0.5, beta=1), lambda t, d, x: t[x] >= 0.5 * max(t)),
    (Cactus(alpha=0.1), lambda t, d, x: t[x] + math.sqrt(0.2 * t[x] * (1 - t[x])) >= max(t)),
    (Fuzzy(threshold=0.1), lambda t, d, x: js(t, d) <= 0.1),
    (Fuzzy(threshold=0.1, reducible=True, gate_rows="processed"), lambda t, d, x: js(t, d) <= 0.1),
    (Cascade(defer="chow", alpha=0.5), lambda t, d, x: max(d) >= 0.5),
    (Cascade(defer="chow_log", alpha=1.2), lambda t, d, x: entropy(d) <= 1.2),
    (Cascade(defer="diff", alpha=0.05), lambda t, d, x: max(d) >= max(t) - 0.05),
    (Cascade(defer="opt", alpha=0.1), lambda t, d, x: max(d) >= max(t) - 0.1),
    (Cascade(defer="opt_log", alpha=0.1, gate_rows="processed"), lambda t, d, x: entropy(d) <= entropy(t) + 0.1),
    (TokenCascade(defer="v1", alpha=0.1), lambda t, d, x: d[x] >= max(t) - 0.1),
    (TokenCascade(defer="v2", alpha=0.2), lambda t, d, x: t[x] >= max(t) - 0.2),
    (TokenCascade(defer="v3", alpha=0.5, gate_rows="processed"), lambda t, d, x: t[x] >= 0.5 * max(t)),
    *((rule, lambda t, d, x: False) for rule in (Typical(), MinP(), Eta(), *EXACT_ENDS, TokenCascade(alpha=0))),
]
MIXED: list[tuple[RowRule, Callable[[Row, Row], Row]]] = [
    (Ensemble(draft_weight=0.4), lambda t, d: [0.4 * y + 0.6 * x for x, y in zip(t, d, strict=True)]),
    (
        Contrastive(alpha=2, plausible=0.4),
        lambda t, d: [(x**3 / y**2) * (x >= 0.4 * max(t)) for x, y in zip(t, d, strict=True)],
    ),
]


def greedy_text(rule: RowRule, tables: Tables, tokens: int, choice: Callable[[Row, Row, int], int]) -> list[int]:
    """The text whose judged tokens are `choice` of raw rows and drafted token, and bonus tokens the target's first."""
    text: list[int] = []
    while len(text) < tokens:
        for place in range(LENGTH + 1):
            t, d = (softmax(tables.logits(role, (*PROMPT, *text))) for role in ("target", "draft"))
            drafted = d.index(max(d))
            text.append(choice(t, d, drafted) if place < LENGTH else t.index(max(t)))
            if len(text) == tokens or (place < LENGTH and text[-1] != drafted):
                break
    return text


def check_greedy(rule: RowRule, choice: Callable[[Row, Row, int], int]) -> int:
    """Number of texts of the real loop that are not the target's; each is the expected one."""
    differing = 0
    for seed in range(12):
        tables, tokens = Tables(seed, vocabulary=5), 6
        ((path, weight),) = enumerate_paths(
            method_of(RuleVerifier(rule=rule), LENGTH), tables, Sampling(), tokens, detail=True
        )
        assert (weight, path.laws) == (1, [1.0] * tokens)
        assert path.token_ids == greedy_text(rule, tables, tokens, choice)
        differing += path.token_ids != greedy_text(rule, tables, tokens, lambda t, d, x: t.index(max(t)))
    return differing


@pytest.mark.parametrize(("rule", "keeps"), GREEDY, ids=lambda one: repr(one) if not callable(one) else "")
def test_greedy_keeps_a_token_or_takes_the_targets_first(rule: RowRule, keeps: Keeps) -> None:
    differing = check_greedy(rule, lambda t, d, x: x if keeps(t, d, x) else t.index(max(t)))
    exact = rule.lossless or isinstance(rule, Typical | MinP | Eta) or rule == TokenCascade(alpha=0)
    assert (differing > 0) != exact


@pytest.mark.parametrize(("rule", "mixed"), MIXED, ids=lambda one: repr(one) if not callable(one) else "")
def test_greedy_takes_the_first_choice_of_a_mixture(rule: RowRule, mixed: Callable[[Row, Row], Row]) -> None:
    assert check_greedy(rule, lambda t, d, x: mixed(t, d).index(max(mixed(t, d)))) > 0


# --- the enumeration notices mistakes --------------------------------------------------------------------------------


def replaced_from_the_wrong_row(
    tokens: Tensor, draft: Tensor, rule: RuleRows, draws: Draws, bonus: bool = True
) -> ChainVerdict:
    """The mistake: where the draft's part has to be taken off the residual row it stays, and the other way round."""
    return judge_chain(
        tokens, draft, RuleRows(rule.reject, rule.residual, rule.bonus, subtract=not rule.subtract), draws
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_replacement_from_the_wrong_row_is_caught(rule: RowRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "judge_chain", replaced_from_the_wrong_row)
    rows = Rows(Tables(3), ONE)
    law = law_of(iter(paths_of(rule, rows.tables, ONE, 2)))
    assert largest_difference(law, stated(rows, rule, 2)) > CAUGHT
