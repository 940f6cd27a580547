"""Statistics of totals over examples, with intervals from one paired bootstrap that all arms share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
IntervalKind = Literal["percentile", "bca"]
REPLICATES = 2000
COVERAGE = 95.0  # percent of the replicates between the two ends of an interval
POWER = 0.8
ROUNDING = 1e-12  # a spread below it is none
NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval; without the two ends where one example cannot give any."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> float | dict[str, float]:
        """{"value", "low", "high"}, or the plain value where there is no interval."""
        if self.low is None or self.high is None:
            return self.value
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Statistic:
    """A statistic of the data and of every resample [replicates]; nan where a denominator is 0.

    `jackknife`: its values with one unit left out [units], for each set of resamples it depends on. Arithmetic acts on
    value, replicates and jackknife alike, so the interval of a quotient comes from resampled quotients: it is never a
    quotient of two intervals.
    """

    value: float
    replicates: Array
    jackknife: Mapping[Resamples, Array] = field(default_factory=dict)

    def __truediv__(self, other: Statistic) -> Statistic:
        return lift(_divide, self, other)

    def __sub__(self, other: Statistic) -> Statistic:
        return lift(np.subtract, self, other)

    def __rsub__(self, constant: float) -> Statistic:
        return lift(lambda own: constant - own, self)

    def estimate(self, method: IntervalKind = "percentile") -> Estimate | None:
        """Value and interval; None where the value itself is undefined.

        "bca" corrects the percentiles for bias and skewness (Efron 1987). It costs a jackknife, which a statistic made
        without one lacks: ValueError.
        """
        if not np.isfinite(self.value):
            return None
        finite = self.replicates[np.isfinite(self.replicates)]
        if finite.size == 0:
            return Estimate(self.value)
        tail = (100 - COVERAGE) / 200
        tails = (tail, 1 - tail) if method == "percentile" else self._corrected(finite, tail)
        low, high = np.percentile(finite, [100 * end for end in tails])
        return Estimate(self.value, float(low), float(high))

    def _corrected(self, finite: Array, tail: float) -> tuple[float, float]:
        """The two shares of the replicates between which a BCa interval lies."""
        if not self.jackknife:
            raise ValueError("a BCa interval needs jackknife values, and this statistic has none")
        below = (np.mean(finite < self.value) + np.mean(finite <= self.value)) / 2
        # All replicates on one side would put the interval at infinity; half a replicate is the least that is known.
        bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / finite.size, 1 - 0.5 / finite.size)))
        acceleration = _acceleration(list(self.jackknife.values()))

        def moved(share: float) -> float:
            distance = bias + NORMAL.inv_cdf(share)
            return NORMAL.cdf(bias + distance / (1 - acceleration * distance))

        return moved(tail), moved(1 - tail)


def lift(function: Callable[..., Array], *statistics: Statistic) -> Statistic:
    """A function of numbers, applied to statistics. It gets arrays of one shape [k] and returns [k], elementwise.

    Without replicates where the statistics have different numbers of them: one of them has too few examples.
    """
    value = float(function(*(np.array([one.value]) for one in statistics))[0])
    same = len({one.replicates.shape for one in statistics}) == 1
    replicates = function(*(one.replicates for one in statistics)) if same else np.zeros(0)
    jackknife = {}
    for sample in dict.fromkeys(sample for one in statistics for sample in one.jackknife):
        # A statistic of other examples does not change when one of these is left out.
        columns = [one.jackknife.get(sample, np.full(sample.units, one.value)) for one in statistics]
        jackknife[sample] = function(*columns)
    return Statistic(value, replicates, jackknife)


def mean(statistics: Sequence[Statistic]) -> Statistic:
    """Unweighted; without an interval where one of them has too few examples for one."""
    return lift(lambda *columns: np.mean(columns, axis=0), *statistics)


# --- what an experiment of this size can show ---------------------------------------------------------------------


def detectable_difference(difference: Statistic) -> float | None:
    """The smallest true difference that a two-sided 5% test finds in 80% of such experiments.

    (1.96 + 0.84) standard errors, the bootstrap's: it holds for as many examples as these, paired as these are. None
    where nothing varies: examples that are all alike do not tell how unlike others can be.
    """
    return _detectable(difference.replicates)


def detectable_ratio(ratio: Statistic) -> float | None:
    """As `detectable_difference`, for a ratio: 1.05 says that 5% faster (or 1 / 1.05: slower) would be found."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _detectable(np.log(ratio.replicates))  # a ratio errs in proportion: its logarithm is the even scale
    return None if found is None else float(np.exp(found))


def _detectable(replicates: Array) -> float | None:
    finite = replicates[np.isfinite(replicates)]
    error = float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0
    errors = NORMAL.inv_cdf(0.5 + COVERAGE / 200) + NORMAL.inv_cdf(POWER)
    return errors * error if error > ROUNDING else None


# --- resampling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # compared by identity: two draws with equal weights are still independent samples
class Resamples:
    """Bootstrap resamples of a number of examples, drawn once: how often each holds each unit.

    A unit is an example, or a group of examples that move together (one prompt under several seeds). `weights`
    [replicates, units]; `unit_of` [examples], the unit of each example. The total of a column over a resample is then
    a product, for any number of arms. With fewer than 2 units there is nothing to resample: no replicates, hence no
    intervals.
    """

    weights: Array
    unit_of: NDArray[np.int64]

    @classmethod
    def draw(
        cls, examples: int, seed: int = 0, replicates: int = REPLICATES, groups: Sequence[Hashable] | None = None
    ) -> Resamples:
        """Resamples of `examples` >= 0 examples: a function of the arguments alone.

        `groups` [examples]: examples of one label are drawn together; None, or all different: each for itself.
        """
        labels = range(examples) if groups is None else groups
        if len(labels) != examples:
            raise ValueError(f"{len(labels)} group labels for {examples} examples")
        places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
        unit_of, units = np.array([places[label] for label in labels], dtype=np.int64), len(places)
        if units < 2:
            return cls(np.zeros((0, units)), unit_of)
        indices = np.random.default_rng(seed).integers(0, units, size=(replicates, units))
        flat = indices + units * np.arange(replicates)[:, None]
        counts = np.bincount(flat.ravel(), minlength=replicates * units)
        return cls(counts.reshape(replicates, units).astype(np.float64), unit_of)

    @property
    def examples(self) -> int:
        return len(self.unit_of)

    @property
    def units(self) -> int:
        return self.weights.shape[1]

    def ratio(self, numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
        """Total of the numerators over total of the denominators (both [examples])."""
        columns = np.stack([self._by_unit(numerators), self._by_unit(denominators)], axis=1)  # [units, 2]
        top, bottom = columns.sum(axis=0)
        totals = self.weights @ columns  # [replicates, 2]
        left = columns.sum(axis=0) - columns  # [units, 2], totals without one unit
        jackknife = {self: _divide(left[:, 0], left[:, 1])} if self.units > 1 else {}
        return Statistic(float(_divide(top, bottom)), _divide(totals[:, 0], totals[:, 1]), jackknife)

    def difference(
        self, numerators: ArrayLike, denominators: ArrayLike, other_numerators: ArrayLike, other_denominators: ArrayLike
    ) -> Statistic:
        """Ratio of totals minus another one, over the examples where both have a denominator (all [examples])."""
        both = (self._column(denominators) != 0) & (self._column(other_denominators) != 0)
        own = self.ratio(self._column(numerators) * both, self._column(denominators) * both)
        other = self.ratio(self._column(other_numerators) * both, self._column(other_denominators) * both)
        return own - other

    def _column(self, values: ArrayLike) -> Array:
        column = np.asarray(values, dtype=np.float64)
        if column.shape != (self.examples,):
            raise ValueError(f"a column of shape {column.shape} for resamples of {self.examples} examples")
        return column

    def _by_unit(self, values: ArrayLike) -> Array:
        """Totals of each unit [units]."""
        totals = np.bincount(self.unit_of, weights=self._column(values), minlength=self.units)
        return np.asarray(totals, dtype=np.float64)


def _acceleration(jackknives: Sequence[Array]) -> float:
    """Skewness of the jackknife values, over several independent samples (Efron and Tibshirani 1993, 15.36)."""
    skewed = spread = 0.0
    for values in jackknives:
        finite = values[np.isfinite(values)]  # undefined without this unit: it says nothing about its influence
        influence = (len(finite) - 1) / max(1, len(finite)) * (np.mean(finite) - finite) if finite.size else finite
        skewed, spread = skewed + float(np.sum(influence**3)), spread + float(np.sum(influence**2))
    return skewed / (6 * spread**1.5) if spread > 0 else 0.0


def _divide(top: Array | float, bottom: Array | float) -> Array:
    """top / bottom, nan where bottom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(bottom, 0), np.nan, np.divide(top, bottom))
