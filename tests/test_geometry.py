"""The paper's costs: hand-computed values, the facts of its reference, and the places where it is wrong."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from viasd import geometry
from viasd.geometry import (
    Penalty,
    block_cost,
    chain_benefit,
    exponential,
    hinge,
    huber_hinge,
    js_divergence,
    kl_divergence,
    link_benefits,
    pinsker_bound,
    power_hinge,
    printed_token_cost,
    rejection_mass,
    rejection_probability,
    round_cost,
    softplus,
    squared_hinge,
    step_cost,
    total_variation,
)
from viasd.routing import Evidence, RatioGate

PENALTIES: dict[str, Penalty] = {
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "huber_hinge": huber_hinge(0.4),
    "softplus": softplus(0.3),
    "power_hinge": power_hinge(2.5),
    "exponential": exponential(0.7),
}


def row(*probabilities: float) -> Tensor:
    """Log-probabilities [1, V], float64."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def random_rows(seed: int, n: int = 5, vocabulary: int = 8, spread: float = 1.5) -> Tensor:
    """Logits [n, V], float64."""
    return spread * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(value: Any, expected: float, tolerance: float = 1e-12) -> bool:
    return abs(float(value) - expected) <= tolerance


# --- penalties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at", "value", "slope"),
    [
        ("hinge", -1.0, 0.0, 0.0),
        ("hinge", 0.8, 0.8, 1.0),
        ("squared_hinge", -1.0, 0.0, 0.0),
        ("squared_hinge", 0.8, 0.64, 1.6),
        ("huber_hinge", -1.0, 0.0, 0.0),
        ("huber_hinge", 0.2, 0.05, 0.5),
        ("huber_hinge", 0.8, 0.6, 1.0),
        ("softplus", -0.3, 0.3 * math.log1p(math.exp(-1)), 1 / (1 + math.e)),
        ("softplus", 0.3, 0.3 * math.log1p(math.e), math.e / (1 + math.e)),
        ("power_hinge", -1.0, 0.0, 0.0),
        ("power_hinge", 0.64, 0.8**5, 2.5 * 0.8**3),
        ("exponential", -1.0, 0.0, 0.0),
        ("exponential", 0.7, math.e - 1, math.e / 0.7),
    ],
)
def test_penalties_and_their_derivatives(name: str, at: float, value: float, slope: float) -> None:
    penalty, step = PENALTIES[name], 1e-6
    low, middle, high = penalty(torch.tensor([at - step, at, at + step], dtype=torch.float64)).tolist()
    assert near(middle, value)
    assert near((high - low) / (2 * step), slope, 1e-6)
    margin = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    assert near(torch.autograd.grad(penalty(margin), margin)[0], slope)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_convex_and_never_fall(name: str) -> None:
    margins = torch.linspace(-3, 3, 601, dtype=torch.float64)
    values = PENALTIES[name](margins)
    rises = values.diff()
    assert rises.min() >= -1e-12 and rises.diff().min() >= -1e-9 and values.min() >= 0
    assert torch.isfinite(PENALTIES[name](torch.tensor([-1e4, -1e3]))).all()


def test_penalties_near_the_hinge() -> None:
    margins = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for temperature in (1.0, 0.3, 1e-3):
        above = softplus(temperature)(margins) - hinge(margins)
        assert above.min() >= -1e-12 and near(above.max(), temperature * math.log(2))
    for knee in (1.0, 0.3, 1e-3):
        below = hinge(margins) - huber_hinge(knee)(margins)
        assert below.min() >= 0 and below.max() <= knee / 2 + 1e-12
    assert torch.equal(power_hinge(1)(margins), hinge(margins))
    assert torch.allclose(power_hinge(2)(margins), squared_hinge(margins))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: huber_hinge(0), r"knee=0: accepted: a number above 0"),
        (lambda: softplus(-1), r"temperature=-1: accepted: a number above 0"),
        (lambda: power_hinge(0.5), r"power=0\.5: accepted: a number from 1"),
        (lambda: exponential(math.inf), r"temperature=inf: accepted: a number above 0"),
        (lambda: step_cost(row(1), row(1), alpha=1), r"alpha=1: accepted: 0 <= alpha < 1"),
        (lambda: step_cost(row(1), row(1), alpha=-0.1), r"alpha=-0\.1: accepted: 0 <= alpha < 1"),
        (lambda: step_cost(row(1), row(1), alpha=0.3, beta=0.6), r"beta=0\.6: accepted: beta >= 1 - alpha = 0\.7"),
        (lambda: step_cost(row(1), row(1), beta=math.nan), r"beta=nan: accepted"),
        (lambda: rejection_mass(row(1), row(1), 2), r"alpha=2: accepted"),
        (lambda: chain_benefit([row(1)]), r"chain=1 models: accepted: two models or more"),
        (lambda: kl_divergence(row(1), row(0.5, 0.5)), r"shapes \[1, 1\] and \[1, 2\]; accepted: twice the same"),
        (lambda: printed_token_cost(1.2, 0, 1, 1, 1), r"passed=1\.2: accepted: a share from 0 to 1"),
        (lambda: round_cost(5, 1, 1, 1, -0.1), r"escalated=-0\.1: accepted: a probability"),
        (lambda: round_cost(-1, 1, 1, 1, 0.1), r"length=-1: accepted: 0 or more"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- margin costs -------------------------------------------------------------------------------------------------


def test_cost_by_hand() -> None:
    """Only the first id is drafted too often: its margin is log(0.8 / 0.5)."""
    verifier, drafter = row(0.5, 0.5), row(0.8, 0.2)
    assert near(step_cost(verifier, drafter), (0.8 + 0.5) * math.log(1.6))
    assert near(step_cost(verifier, drafter, penalty=squared_hinge), (0.8 + 0.5) * math.log(1.6) ** 2)
    both = 0.8 * math.log(1.6 * 0.75) + 0.5 * math.log(1.6 * 0.9)
    assert near(step_cost(verifier, drafter, alpha=0.25, beta=0.9), both)
    swapped = (0.5 + 0.2) * math.log(2.5)  # the second id, where the other model is above
    assert near(step_cost(drafter, verifier), swapped)


def test_rows_may_be_logits_or_log_probabilities() -> None:
    verifier, drafter = random_rows(0), random_rows(1)
    expected = step_cost(verifier.log_softmax(-1), drafter.log_softmax(-1))
    assert torch.allclose(step_cost(verifier + 7, drafter - 3), expected, atol=1e-12)


def test_cost_is_zero_where_the_drafter_is_nowhere_above() -> None:
    """R = 0 iff beta drafter <= verifier everywhere (beta >= 1 - alpha); never below 0."""
    rows = random_rows(0, 40)
    for alpha, beta in ((0, 1), (0.5, 0.5), (0.5, 0.7), (0.2, 1)):
        assert step_cost(rows, rows, alpha, beta).abs().max() <= 1e-12
        costs = step_cost(rows, random_rows(1, 40), alpha, beta)
        within = (beta * random_rows(1, 40).softmax(-1) <= rows.softmax(-1)).all(-1)
        assert (costs >= 0).all() and torch.equal(costs <= 1e-12, within)
    close = row(0.5, 0.5), row(0.6, 0.4)
    assert near(step_cost(*close, alpha=0.2, beta=0.8), 0) and step_cost(*close) > 0  # slack below beta = 1
    assert step_cost(rows, rows, 0, 1.1).min() > 0  # beta above 1 punishes every pair


def test_cost_is_one_sided() -> None:
    """Being below the verifier is free: a row that moved mass from one id to two others is charged for those alone."""
    verifier = row(0.6, 0.2, 0.2)
    low, high = row(0.4, 0.3, 0.3), row(0.8, 0.1, 0.1)
    assert near(step_cost(verifier, low), (0.6 + 0.4) * math.log(1.5))
    assert near(step_cost(verifier, high), (0.8 + 0.6) * math.log(8 / 6))


def test_cost_is_unbounded() -> None:
    costs = [float(step_cost(row(1 - tiny, tiny), row(0.5, 0.5))) for tiny in (1e-2, 1e-10, 1e-100)]
    assert costs[0] < costs[1] < costs[2] and costs[2] > 100
    assert step_cost(row(1.0, 0.0), row(0.5, 0.5)) == math.inf
    assert near(step_cost(row(0.5, 0.5), row(1.0, 0.0)), 1.5 * math.log(2))  # an id that the drafter lacks is free
    assert near(step_cost(row(0.5, 0.5, 0.0), row(0.8, 0.2, 0.0)), 1.3 * math.log(1.6))  # one that both lack, too


def test_the_second_margin_is_never_below_the_first() -> None:
    """With beta = 1 - alpha both are the same function, and the weights alone differ."""
    verifier, drafter = random_rows(2), random_rows(3)
    p, q = drafter.softmax(-1), verifier.softmax(-1)
    margin = (math.log(0.6) + p.log() - q.log()).clamp(min=0)
    assert torch.allclose(step_cost(verifier, drafter, 0.4, 0.6), ((p + q) * margin).sum(-1), atol=1e-12)
    costs = [step_cost(verifier, drafter, 0.4, beta).sum() for beta in (0.6, 0.8, 1.0, 1.5)]
    assert all(one < other for one, other in pairwise(costs))


def test_softplus_cost_is_near_the_hinge_cost() -> None:
    """F.8: R_hinge <= R_softplus <= R_hinge + 2 t log 2; and an order of penalties is one of costs."""
    verifier, drafter = random_rows(4, 20), random_rows(5, 20)
    own = step_cost(verifier, drafter)
    for temperature in (1.0, 0.1):
        soft = step_cost(verifier, drafter, penalty=softplus(temperature))
        assert (soft >= own - 1e-12).all() and (soft <= own + 2 * temperature * math.log(2) + 1e-12).all()
    assert (step_cost(verifier, drafter, penalty=huber_hinge(0.5)) <= own + 1e-12).all()
    assert torch.allclose(step_cost(verifier, drafter, penalty=huber_hinge(1e-9)), own, atol=1e-8)


def test_block_cost_is_the_sum() -> None:
    verifier, drafter = random_rows(6), random_rows(7)
    assert near(block_cost(verifier, drafter), float(step_cost(verifier, drafter).sum()))


def test_benefit_of_an_intermediate() -> None:
    draft, middle, target = random_rows(8), random_rows(9), random_rows(10)
    by_hand = block_cost(target, draft) - block_cost(middle, draft) - block_cost(target, middle)
    assert near(chain_benefit([draft, middle, target]), by_hand)
    assert near(chain_benefit([draft, target]), 0) and link_benefits([draft, target]) == []
    assert near(chain_benefit([draft, draft, target]), 0) and near(chain_benefit([draft, target, target]), 0)
    four = [draft, middle, random_rows(11), target]
    links = sum(block_cost(after, before) for before, after in pairwise(four))
    assert near(chain_benefit(four), block_cost(target, draft) - links)
    assert len(link_benefits(four)) == 2 and near(link_benefits(four)[0], chain_benefit(four[:3]))
    squared = chain_benefit([draft, middle, target], penalty=squared_hinge)
    parts = [(target, draft, 1), (middle, draft, -1), (target, middle, -1)]
    by_hand = sum(sign * block_cost(after, before, penalty=squared_hinge) for after, before, sign in parts)
    assert near(squared, by_hand)  # F.13
    assert near(link_benefits([draft, middle, target], 0.2, 0.9)[0], chain_benefit([draft, middle, target], 0.2, 0.9))


def test_an_intermediate_on_the_way_pays_with_a_convex_penalty() -> None:
    """The geometric middle halves every margin but for its normalizer: with the squared hinge that saves cost."""
    draft, target = random_rows(12, 30), random_rows(13, 30)
    middle = (draft.log_softmax(-1) + target.log_softmax(-1)) / 2
    assert chain_benefit([draft, middle, target], penalty=squared_hinge) > 0
    assert chain_benefit([draft, random_rows(14, 30, spread=6), target], penalty=squared_hinge) < 0


# --- divergences --------------------------------------------------------------------------------------------------


def test_divergences_by_hand() -> None:
    one, other = row(0.5, 0.5), row(0.8, 0.2)
    assert near(total_variation(one, other), 0.3)
    assert near(kl_divergence(one, other), 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
    middle = row(0.65, 0.35)
    both = (float(kl_divergence(one, middle)) + float(kl_divergence(other, middle))) / 2
    assert near(js_divergence(one, other), both)
    apart = row(1.0, 0.0), row(0.0, 1.0)
    assert near(total_variation(*apart), 1) and near(js_divergence(*apart), math.log(2))
    assert kl_divergence(*apart) == math.inf and near(kl_divergence(apart[0], one), math.log(2))


def test_pinsker_bounds_the_lossless_rejection() -> None:
    draft, target = random_rows(15, 200), random_rows(16, 200)
    distance = total_variation(draft, target)
    assert (distance <= pinsker_bound(draft, target)).all() and torch.allclose(distance, total_variation(target, draft))
    assert torch.allclose(distance, rejection_mass(draft, target)) and near(pinsker_bound(draft, draft).max(), 0)
    assert torch.allclose(distance, rejection_probability(draft, target))


def test_total_variation_obeys_the_triangle_inequality_and_kl_does_not() -> None:
    """App. C: no intermediate shortens the way in total variation."""
    draft, middle, target = (random_rows(seed, 500) for seed in (17, 18, 19))
    way = total_variation(draft, middle) + total_variation(middle, target)
    assert (total_variation(draft, target) <= way + 1e-12).all()
    between = ((draft.softmax(-1) + target.softmax(-1)) / 2).log()
    assert (kl_divergence(draft, target) > kl_divergence(draft, between) + kl_divergence(between, target)).all()


# --- where the paper is wrong (reference, section 10) -------------------------------------------------------------


def test_c01_the_rejection_mass_is_not_what_the_lossy_rule_rejects() -> None:
    alphas = (0.0, 0.2, 0.5, 0.9)
    for seed in range(20):
        draft, target = random_rows(seed, 1), random_rows(seed + 100, 1)
        masses = [float(rejection_mass(draft, target, alpha)) for alpha in alphas]
        rejected = [float(rejection_probability(draft, target, alpha)) for alpha in alphas]
        assert near(masses[0], rejected[0])
        assert all(mass >= alpha - 1e-12 for mass, alpha in zip(masses, alphas, strict=True))
        assert all(a < b for a, b in pairwise(masses)) and all(a >= b for a, b in pairwise(rejected))
        assert near(rejection_mass(draft, target, 1 - 1e-9), 1, 1e-8)


def test_c04_a_kl_projection_in_the_second_argument_lengthens_the_way() -> None:
    """The paper's Eq. 5 on a segment of distributions: the sum is above, not below."""
    draft, first, last = row(0.1, 0.1, 0.8), row(0.79, 0.01, 0.20), row(0.25, 0.55, 0.20)
    shares = torch.linspace(0, 1, 5401, dtype=torch.float64)[:, None]
    segment = (first.exp() * (1 - shares) + last.exp() * shares).log()
    ways = kl_divergence(draft.expand_as(segment), segment)
    nearest = segment[ways.argmin()][None]
    assert torch.allclose(nearest.exp(), torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64), atol=1e-3)
    parts = float(kl_divergence(draft, nearest)), float(kl_divergence(nearest, first))
    assert near(parts[0], 0.832, 1e-3) and near(parts[1], 1.203, 1e-3)
    assert near(kl_divergence(draft, first), 1.133, 1e-3) and sum(parts) > float(kl_divergence(draft, first)) + 0.9


def test_c07_the_printed_gradients_lack_a_term() -> None:
    """F.9 and F.10 in the verifier's logits, against finite differences and autograd, alpha 0.1 and beta 0.95."""
    alpha, beta, penalty = 0.1, 0.95, softplus(0.5)
    drafter, logits = random_rows(20, 1), random_rows(21, 1).requires_grad_()
    found = torch.autograd.grad(step_cost(logits, drafter, alpha, beta, penalty).sum(), logits)[0][0]
    step = 1e-6
    for index in range(logits.shape[1]):
        nudge = torch.zeros_like(logits)
        nudge[0, index] = step
        costs = [float(step_cost(logits.detach() + sign * nudge, drafter, alpha, beta, penalty)) for sign in (1, -1)]
        assert near((costs[0] - costs[1]) / (2 * step), float(found[index]), 1e-7)
    p, q = drafter.softmax(-1)[0], logits.detach().softmax(-1)[0]
    margins = torch.stack([math.log(1 - alpha) + p.log() - q.log(), math.log(beta) + p.log() - q.log()])
    values, slopes = penalty(margins), (margins / 0.5).sigmoid()
    acceptance = -p * slopes[0]  # F.9
    replacement = q * (values[1] - (q * values[1]).sum()) - q * slopes[1]  # F.10
    lacking = q * (p * slopes[0]).sum() + q * (q * slopes[1]).sum()
    assert torch.allclose(acceptance + replacement + lacking, found, atol=1e-9)
    assert (acceptance + replacement - found).abs().max() > 0.05


def test_c09_mixture_weights() -> None:
    """What the algorithm writes is neither B.7 nor Eq. 14, and delta1 of B.11 is the wrong share for Eq. 14."""
    ratios = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000  # uniform: P(A), P(B), P(C) = 0.5, 0.2, 0.3
    passes, rewrites = float((ratios >= 0.5).double().mean()), float(((ratios < 0.5) & (ratios >= 0.3)).double().mean())
    kept = float((ratios >= 0.3).double().mean())
    assert near(passes / kept, 0.714, 1e-3) and near(rewrites / kept, 0.286, 1e-3)  # (ii): 0.71 against 0.29
    gate, found = RatioGate(accept_ratio=0.5, escalate_ratio=0.3), []
    for seed in range(30):
        draft, slim, target = (random_rows(seed + offset, 1, 6) for offset in (200, 300, 400))
        p, s, q = (rows.softmax(-1)[0] for rows in (draft, slim, target))
        keep, rewrite, escalate, _ = gate.shares(Evidence(slim))[:, 0]
        share = [float((p * region).sum()) for region in (keep, rewrite, escalate)]
        law = p * keep + share[1] * s + share[2] * q
        printed = share[0] * p + share[1] * s + share[2] * q  # B.7
        delta1 = share[1] / (share[0] + share[1] or 1)  # the choice that makes Eq. 14 equal to B.7
        mixture = (1 - share[2]) * ((1 - delta1) * p + delta1 * s) + share[2] * q
        assert near(law.sum(), 1) and torch.allclose(mixture, printed, atol=1e-12)
        found.append(float(total_variation(law.log()[None], printed.log()[None])))
    assert max(found) > 0.2 and sum(found) / len(found) > 0.08  # (iii)


def test_c09_the_printed_token_cost_rises_when_more_is_kept() -> None:
    """(vi): and it does not charge a slim verifier that scores what then escalates."""
    costs = [printed_token_cost(passed, 0.1, draft=0.1, slim=0.6, target=1.0) for passed in (0.0, 0.5, 1.0)]
    assert near(costs[0], 0.9 * 0.1 + 0.1) and costs[0] < costs[1] < costs[2]
    assert near(printed_token_cost(0.0, 1.0, 0.1, 0.6, 1.0), 1.0)
    assert near(round_cost(5, 0.1, 0.6, 1.0, 1.0), 2.1)
    assert near(round_cost(5, 0.1, 0.6, 1.0, 0.4, catch_up=0.05), 0.5 + 0.6 + 0.4 + 0.05)
    # Against sd, whose round is length draft + target, three tiers pay iff slim / target + P(escalate) < 1.
    assert near(round_cost(5, 0.1, 0.6, 1.0, 0.4), 5 * 0.1 + 1.0)


# --- memory and types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [step_cost, total_variation, kl_divergence, js_divergence, pinsker_bound, rejection_mass]
)
def test_blocks_change_nothing(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_rows(22, 37), random_rows(23, 37)
    whole = function(one, other)
    monkeypatch.setattr(geometry, "BLOCK_ELEMENTS", 30)  # 3 rows of 8
    assert torch.allclose(function(one, other), whole, rtol=0, atol=1e-14)
    monkeypatch.setattr(geometry, "BLOCK_ELEMENTS", 3)  # less than a row
    assert torch.allclose(function(one, other), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("function", [step_cost, js_divergence])
def test_temporary_memory_is_bounded_by_the_block(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes alive at once, counted at every operation: about nine tensors of a block, however many rows there are.

    So 2**24 elements in float32 are at most 12 * 64 MiB = 0.8 GB at any n and any V up to 2**24.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Alive(TorchDispatchMode):
        """Tracks the storages that operations make, and the most bytes that were alive."""

        def __init__(self) -> None:
            super().__init__()
            self.stores: dict[int, Any] = {}
            self.peak = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and not function.is_view:
                from torch.multiprocessing.reductions import StorageWeakRef

                store = made.untyped_storage()
                self.stores[id(store._cdata)] = (StorageWeakRef(store), store.nbytes())
            self.stores = {key: one for key, one in self.stores.items() if not one[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.stores.values()))
            return made

    monkeypatch.setattr(geometry, "BLOCK_ELEMENTS", 2**16)
    peaks = []
    for n in (64, 512):  # 64 rows of 1024 are one block
        one, other = random_rows(24, n, 1024).float(), random_rows(25, n, 1024).float()
        with Alive() as alive:
            function(one, other)
        peaks.append(alive.peak)
    block = 4 * 2**16
    assert 3 * block < peaks[0] <= 12 * block
    assert peaks[1] <= peaks[0] + 2 * block


def test_precision() -> None:
    one, other = random_rows(26), random_rows(27)
    assert step_cost(one, other).dtype == torch.float64
    assert step_cost(one.float(), other).dtype == torch.float64
    assert step_cost(one.float(), other.float()).dtype == torch.float32
    half = step_cost(one.bfloat16(), other.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, step_cost(one.bfloat16().float(), other.bfloat16().float()))
    assert torch.allclose(step_cost(one.float(), other.float()).double(), step_cost(one, other), atol=1e-5)
