"""Row rules on rows as they come: what is drawn has the law they state, and nothing waits for the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from stated_rules import EXACT_ENDS, NEARLY_EXACT, NEVER_EXACT, RULES, distance, js, kl
from test_syncs import HostReads
from torch import Tensor

from baselines.rules.cactus import Cactus
from baselines.rules.cascades import Cascade, TokenCascade
from baselines.rules.fuzzy import Fuzzy, divergence
from baselines.rules.lenience import Lenience, LossySD, residual_scale
from baselines.rules.mixtures import Contrastive, Ensemble
from baselines.rules.rows import restricted, top_set, typical_set
from baselines.rules.truncation import Eta, MinP
from baselines.rules.typical import Typical
from viasd.rules import RowPairs, RowRule, RuleRows
from viasd.sampling import Sampling, process

WIDTH = 11
ALL = [*RULES, *EXACT_ENDS, *NEARLY_EXACT, *NEVER_EXACT]
ONE = Sampling(temperature=1.0)
SAMPLINGS = [ONE, Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=1.3, top_k=4), Sampling()]


def noise(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def difficult() -> tuple[Tensor, Tensor]:
    """Logits of judge and drafter [n, V] that agree more or less, tie, exclude each other's tokens, or are certain."""
    judge = noise(30, WIDTH, seed=1)
    draft = judge + noise(30, WIDTH, seed=2, scale=0.8)
    judge[10:20], draft[10:20] = judge[10:20].bfloat16().double(), (2 * draft[10:20]).round() / 2  # many equals
    draft[20:24, 7:] = -torch.inf  # ids the drafter lacks
    judge[22:24, :2] = -torch.inf  # ids the judge will not write
    draft[24] = judge[24]
    judge[25], draft[26] = torch.eye(WIDTH)[3] * 200, torch.eye(WIDTH)[4] * 200
    judge[27], draft[27] = torch.eye(WIDTH)[3] * 900, torch.eye(WIDTH)[4] * 900
    judge[28] = draft[29] = 0.0
    return judge, draft


def pairs_of(judge: Tensor, draft: Tensor, sampling: Sampling, tokens: Tensor | None = None) -> RowPairs:
    """Rows of n positions, and the judge's first once more behind them."""
    logits, rows = torch.cat([judge, judge[:1]]), process(draft, sampling)
    drafted = rows.argmax(-1) if tokens is None else tokens
    return RowPairs(drafted, process(logits, sampling), rows, logits, draft, sampling)


def emitted(rule: RowRule, pairs: RowPairs) -> Tensor:
    """The law [n, V] of the generic round, one drafted token at a time."""
    law = torch.zeros_like(pairs.draft)
    for token in range(pairs.draft.shape[1]):
        tokens = torch.full_like(pairs.tokens, token)
        found = rule.rows(dataclasses.replace(pairs, tokens=tokens))
        drafted = pairs.draft[:, token]
        kept = torch.minimum(drafted, found.reject[:, token])
        left = (found.residual - pairs.draft).clamp(min=0) if found.subtract else found.residual
        left = left.where(left.sum(-1, keepdim=True) > 0, found.residual)
        law[:, token] += kept
        refused = (drafted - kept)[:, None]  # of some tokens nothing is, and they have no row to replace them
        law += torch.where(refused > 0, refused * left / left.sum(-1, keepdim=True), 0.0)
    return law


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["one", "nucleus", "top_k", "greedy"])
@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_what_is_drawn_has_the_stated_law(rule: RowRule, sampling: Sampling) -> None:
    pairs = pairs_of(*difficult(), sampling)
    laws = rule.rows(pairs).laws
    assert torch.allclose(laws.sum(-1), torch.ones(31, dtype=torch.float64), rtol=0, atol=1e-9)
    assert torch.allclose(laws[:-1], emitted(rule, pairs), rtol=0, atol=1e-9)
    if sampling.temperature == 0:
        assert set(laws.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("rule", [rule for rule in ALL if not isinstance(rule, Contrastive)], ids=repr)
def test_a_drafter_without_logits_is_taken_at_its_rows(rule: RowRule) -> None:
    pairs = pairs_of(difficult()[0], torch.eye(WIDTH, dtype=torch.float64)[torch.arange(30) % WIDTH].log(), ONE)
    pairs = dataclasses.replace(pairs, draft_logits=None)
    assert torch.allclose(rule.rows(pairs).laws[:-1], emitted(rule, pairs), rtol=0, atol=1e-9)


def test_a_contrast_needs_logits_of_the_drafter() -> None:
    pairs = dataclasses.replace(pairs_of(*difficult(), ONE), draft_logits=None)
    with pytest.raises(ValueError, match=r"verifier.rule.alpha=0.5: the drafter has no logits .* accepted: a model"):
        Contrastive().rows(pairs)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling()], ids=["warm", "greedy"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_large_vocabulary_in_single_precision(
    rule: RowRule, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 000 ids, logits that were bfloat16: laws sum to one, nothing is read by the host, and no V x V is made."""
    judge = noise(3, 150_000, scale=2.5).bfloat16().float()
    draft = (judge + noise(3, 150_000, seed=1)).bfloat16().float()
    pairs = pairs_of(judge, draft, sampling)
    with HostReads(monkeypatch) as seen:
        found = rule.rows(pairs)
        laws = found.laws
    assert seen.reads == 0
    assert found.reject.dtype == found.residual.dtype == laws.dtype == torch.float32
    assert (laws >= 0).all() and (laws.sum(-1) - 1).abs().max() < 1e-4
    none = dataclasses.replace(
        pairs, tokens=pairs.tokens[:0], judge=pairs.judge[:1], draft=pairs.draft[:0], judge_logits=judge[:1],
        draft_logits=draft[:0],
    )  # fmt: skip
    assert rule.rows(none).laws.shape == (1, 150_000)


# --- facts of single rules -------------------------------------------------------------------------------------------


def rows_of(n: int = 400) -> tuple[Tensor, Tensor]:
    """Target and draft rows [n, V]."""
    judge = noise(n, WIDTH, seed=3)
    return judge.softmax(-1), (judge + noise(n, WIDTH, seed=4)).softmax(-1)


def ruled(rule: RowRule, target: Tensor, draft: Tensor) -> RuleRows:
    return rule.rows(pairs_of(target.log(), draft.log(), ONE))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_lenience_is_lossy_sd_with_beta_one(alpha: float) -> None:
    one, other = ruled(Lenience(l=1 - alpha), *rows_of()), ruled(LossySD(alpha=alpha, beta=1), *rows_of())
    assert torch.equal(one.reject, other.reject) and torch.equal(one.laws, other.laws)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_beta_moves_the_law_and_not_what_is_kept(alpha: float) -> None:
    target, draft = rows_of()
    one = ruled(LossySD(alpha=alpha, beta=1), target, draft)
    other = ruled(LossySD(alpha=alpha, beta="normalizing"), target, draft)
    assert torch.equal(one.reject, other.reject)
    assert (one.laws - other.laws).abs().max() > 1e-3
    law = torch.maximum(torch.minimum(draft, target / (1 - alpha)), other.residual)
    assert torch.allclose(other.laws[:-1], law, rtol=0, atol=1e-12)
    assert torch.allclose(law.sum(-1), torch.ones(400, dtype=torch.float64), rtol=0, atol=1e-12)


def test_normalizing_scale_is_at_most_one_and_solves_its_equation() -> None:
    target, draft = rows_of()
    for share in (1.0, 0.7, 0.2, 0.01):
        refused = (draft - target / share).clamp(min=0).sum(-1, keepdim=True)
        scale = residual_scale(draft, target, refused)
        assert scale.shape == (400, 1) and scale.max() <= 1
        assert torch.allclose((scale * target - draft).clamp(min=0).sum(-1, keepdim=True), refused, atol=1e-12)
        if share == 1:
            assert torch.allclose(scale, torch.ones_like(scale), rtol=0, atol=1e-12)


def test_cactus_never_keeps_what_the_target_lacks() -> None:
    target, draft = rows_of()
    target = restricted(target, target > 0.05)
    found = ruled(Cactus(alpha=100.0), target, draft)
    assert found.reject[target == 0].max() == 0 and found.reject[target > 0.05].min() > 0.9
    assert found.laws[:-1][target == 0].max() == 0


def test_divergences() -> None:
    target, draft = rows_of(50)
    plain = list(zip(target.tolist(), draft.tolist(), strict=True))
    for name, form in (
        ("js", js),
        ("kl_target_draft", kl),
        ("kl_draft_target", lambda one, other: kl(other, one)),
        ("tv", distance),
    ):
        found = divergence(name, target, draft)  # type: ignore[arg-type]
        assert found[:, 0].tolist() == pytest.approx([form(*rows) for rows in plain], abs=1e-12)
        assert divergence(name, target, target).tolist() == [[0.0]] * 50  # type: ignore[arg-type]
    apart = divergence("js", torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert apart.item() == pytest.approx(torch.tensor(2.0).log().item())


def test_a_token_that_neither_would_write_does_not_part_rows() -> None:
    one, other = torch.tensor([[1.0, 1e-30]]), torch.tensor([[1.0, 0.0]])
    assert divergence("kl_target_draft", one, other).item() < 1e-20


def test_matched_baselines_have_the_sets_of_their_rules() -> None:
    pairs = pairs_of(*difficult(), ONE)
    good = TokenCascade(defer="v3", alpha=0.4)._good(pairs)
    assert torch.equal(good, top_set(pairs, 0.6, "raw")[:-1])
    assert torch.equal(MinP(p_base=0.6).rows(pairs).laws[:-1] > 0, good & (pairs.judge[:-1] > 0))
    typical = Typical(eps=0.2, delta=0.5, replacement="typical").rows(pairs)
    exact = Eta(eps=0.2, delta=0.5).rows(pairs)
    assert torch.equal(typical.bonus, exact.bonus) and torch.equal(typical.residual, exact.residual)


def test_sets_and_gates_look_at_the_rows_they_are_told() -> None:
    pairs = pairs_of(*difficult(), Sampling(temperature=0.5))
    raw, processed = pairs.judge_logits.softmax(-1), pairs.judge
    for which, seen in (("raw", raw), ("processed", processed)):
        allowed = seen >= 0.4 * seen.amax(-1, keepdim=True)
        law = MinP(p_base=0.4, gate_rows=which).rows(pairs).laws  # type: ignore[arg-type]
        assert torch.allclose(law, restricted(processed, allowed), rtol=0, atol=1e-12)
        good = TokenCascade(alpha=0.6, gate_rows=which)._good(pairs)  # type: ignore[arg-type]
        assert torch.equal(good, allowed[:-1])
    assert (top_set(pairs, 0.4, "raw") != top_set(pairs, 0.4, "processed")).any()


@pytest.mark.parametrize("name", ["js", "kl_target_draft", "kl_draft_target", "tv"])
def test_rows_that_are_equal_but_for_rounding_are_not_exact(name: Any) -> None:
    target, _ = rows_of(50)
    draft = restricted(target * (1 + 1e-12 * noise(50, WIDTH)), target > 0)
    found = [ruled(Fuzzy(divergence=name, threshold=0, reducible=one), target, draft) for one in (False, True)]
    assert all(torch.equal(one.laws[:-1], target.log().softmax(-1)) for one in found)


def test_typical_set_is_never_empty() -> None:
    rows = torch.cat([difficult()[0].softmax(-1), torch.full((1, WIDTH), 1 / WIDTH, dtype=torch.float64)])
    for eps, delta in ((0.09, 0.3), (1.0, 1.0), (0.0, 0.0), (0.5, 1.0)):
        assert typical_set(rows, eps, delta).any(-1).all()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (Lenience, {"l": 0}, "l"),
        (Lenience, {"l": 1.1}, "l"),
        (LossySD, {"alpha": 1}, "alpha"),
        (LossySD, {"beta": "normal"}, "beta"),
        (LossySD, {"alpha": 0.3, "beta": 0.5}, "beta=0.5 with alpha=0.3; accepted: normalizing, or beta >= 1 - alpha"),
        (Cactus, {"alpha": -0.1}, "alpha"),
        (Fuzzy, {"divergence": "kl"}, "divergence"),
        (Fuzzy, {"threshold": -1}, "threshold"),
        (Fuzzy, {"gate_rows": "warm"}, "gate_rows"),
        (Ensemble, {"draft_weight": 1.1}, "draft_weight"),
        (Contrastive, {"plausible": 0}, "plausible"),
        (Typical, {"eps": -0.1}, "eps"),
        (Typical, {"replacement": "draft"}, "replacement"),
        (MinP, {"p_base": 1.1}, "p_base"),
        (Eta, {"delta": 2}, "delta"),
        (Cascade, {"defer": "bild"}, "defer"),
        (Cascade, {"alpha": float("nan")}, "alpha"),
        (TokenCascade, {"defer": "v4"}, "defer"),
        (TokenCascade, {"aplha": 0.1}, "aplha"),
    ],
)
def test_wrong_values_are_refused_by_name(make: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(**options)
