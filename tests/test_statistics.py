"""Ratios of totals and their intervals agree with hand counts, with scipy's bootstrap and with a known truth."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import Estimate, Resamples, Statistic


def ends(statistic: Statistic) -> tuple[float, float]:
    estimate = statistic.estimate()
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def test_value_is_the_ratio_of_totals() -> None:
    resamples = Resamples.draw(3)
    assert resamples.ratio([1, 2, 3], [1, 1, 10]).value == 0.5  # the mean of the three ratios would be 1.1
    assert (resamples.ratio([4, 4, 4], [1, 2, 3]) / resamples.ratio([1, 1, 1], [1, 1, 1])).value == 2.0
    assert (1.0 - resamples.ratio([1, 0, 0], [1, 1, 2])).value == 0.75
    assert resamples.difference([1, 1, 0], [2, 2, 0], [0, 1, 9], [1, 1, 9]).value == 0.0  # third example has no partner
    assert resamples.difference([0, 1, 9], [1, 1, 9], [1, 1, 0], [2, 2, 0]).value == 0.0


def test_resamples_are_a_function_of_their_arguments() -> None:
    assert np.array_equal(Resamples.draw(7).weights, Resamples.draw(7).weights)
    assert not np.array_equal(Resamples.draw(7).weights, Resamples.draw(7, seed=1).weights)
    assert Resamples.draw(7, replicates=11).weights.shape == (11, 7)
    assert (Resamples.draw(7).weights.sum(axis=1) == 7).all()


def test_weights_count_the_indices_of_the_generator() -> None:
    indices = np.random.default_rng(0).integers(0, 5, size=(2000, 5))
    column, ones = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.ones(5)
    assert np.allclose(Resamples.draw(5).ratio(column, ones).replicates, column[indices].mean(axis=1))


@pytest.mark.parametrize("examples", [0, 1])
def test_too_few_examples_have_no_interval(examples: int) -> None:
    found = Resamples.draw(examples).ratio([2.0] * examples, [4.0] * examples).estimate()
    assert found == (Estimate(0.5) if examples else None)
    assert found is None or found.to_json() == 0.5


def test_resamples_without_denominator_are_left_out() -> None:
    resamples = Resamples.draw(2)
    assert np.isnan(resamples.ratio([1, 0], [2, 0]).replicates).any()
    assert resamples.ratio([1, 0], [2, 0]).estimate() == Estimate(0.5, 0.5, 0.5)
    assert resamples.ratio([1, 1], [0, 0]).estimate() is None
    assert (resamples.ratio([1, 1], [1, 1]) / resamples.ratio([0, 0], [1, 1])).estimate() is None


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\) for resamples of 3"):
        Resamples.draw(3).ratio([1, 2], [1, 2])


def test_arms_move_together() -> None:
    resamples = Resamples.draw(30)
    seconds = np.random.default_rng(3).lognormal(size=30)
    base, same, ones = resamples.ratio(seconds, np.ones(30)), resamples.ratio(seconds * 2, np.ones(30)), np.ones(30)
    assert ends(same / base) == pytest.approx((2, 2))
    assert ends(resamples.difference(seconds + 1, ones, seconds, ones)) == pytest.approx((1, 1))


def test_json() -> None:
    assert Estimate(1.0, 0.5, 2.0).to_json() == {"value": 1.0, "low": 0.5, "high": 2.0}
    assert Estimate(1.0).to_json() == 1.0


def simulate(generator: np.random.Generator, examples: int) -> tuple[np.ndarray, ...]:
    """Seconds and tokens of two arms on the same prompts; the expected totals are 1:1 in tokens, 2:1 in seconds."""
    length = generator.lognormal(3, 0.5, examples)
    tokens, other_tokens = (length * generator.uniform(0.8, 1.2, examples) for _ in range(2))
    seconds, other_seconds = (
        0.02 * tokens * generator.uniform(0.7, 1.3, examples),
        0.01 * other_tokens * generator.uniform(0.5, 1.5, examples),
    )
    return seconds, tokens, other_seconds, other_tokens


def test_agrees_with_scipy() -> None:
    columns = simulate(np.random.default_rng(5), 25)

    def speedup(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int = -1) -> np.ndarray:
        return (a.sum(axis) / b.sum(axis)) / (c.sum(axis) / d.sum(axis))

    expected = stats.bootstrap(
        columns, speedup, paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    resamples = Resamples.draw(25, replicates=20_000)
    low, high = ends(resamples.ratio(*columns[:2]) / resamples.ratio(*columns[2:]))
    # Each end has a Monte-Carlo error of 0.005 of the width here: the bound is four times that of a difference.
    error = 0.03 * (expected.high - expected.low)
    assert abs(low - expected.low) < error and abs(high - expected.high) < error


def test_intervals_cover_the_truth() -> None:
    generator, trials, covered = np.random.default_rng(11), 500, 0
    resamples = Resamples.draw(60, replicates=500)
    for _ in range(trials):
        columns = simulate(generator, 60)
        low, high = ends(resamples.ratio(*columns[:2]) / resamples.ratio(*columns[2:]))
        covered += low <= 2.0 <= high
    assert 0.92 <= covered / trials <= 0.98  # one standard error is 0.01
