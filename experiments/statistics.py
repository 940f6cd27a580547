"""Statistics of totals over examples, with intervals from one paired bootstrap that all arms share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
REPLICATES = 2000
COVERAGE = 95.0  # percent of the replicates between the two ends of an interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% percentile interval; without the two ends where one example cannot give any."""

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

    Arithmetic acts on data and resamples alike, so that a quotient or a difference of two arms is computed on the
    same resampled examples. It is never a quotient of two intervals.
    """

    value: float
    replicates: Array

    def __truediv__(self, other: Statistic) -> Statistic:
        return Statistic(float(_divide(self.value, other.value)), _divide(self.replicates, other.replicates))

    def __sub__(self, other: Statistic) -> Statistic:
        return Statistic(self.value - other.value, self.replicates - other.replicates)

    def __rsub__(self, constant: float) -> Statistic:
        return Statistic(constant - self.value, constant - self.replicates)

    def estimate(self) -> Estimate | None:
        """Value and percentile interval; None where the value itself is undefined."""
        if not np.isfinite(self.value):
            return None
        finite = self.replicates[np.isfinite(self.replicates)]
        if finite.size == 0:
            return Estimate(self.value)
        tail = (100 - COVERAGE) / 2
        low, high = np.percentile(finite, [tail, 100 - tail])
        return Estimate(self.value, float(low), float(high))


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of a number of examples, drawn once: how often each holds each example.

    `weights` [replicates, examples]. The total of a column over a resample is then a product, for any number of arms.
    With fewer than 2 examples there is nothing to resample: no replicates, hence no intervals.
    """

    weights: Array

    @classmethod
    def draw(cls, examples: int, seed: int = 0, replicates: int = REPLICATES) -> Resamples:
        """Resamples of `examples` >= 0 examples: a function of the arguments alone."""
        if examples < 2:
            return cls(np.zeros((0, examples)))
        indices = np.random.default_rng(seed).integers(0, examples, size=(replicates, examples))
        flat = indices + examples * np.arange(replicates)[:, None]
        counts = np.bincount(flat.ravel(), minlength=replicates * examples)
        return cls(counts.reshape(replicates, examples).astype(np.float64))

    @property
    def examples(self) -> int:
        return self.weights.shape[1]

    def ratio(self, numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
        """Total of the numerators over total of the denominators (both [examples])."""
        columns = np.stack([self._column(numerators), self._column(denominators)], axis=1)  # [examples, 2]
        top, bottom = columns.sum(axis=0)
        totals = self.weights @ columns  # [replicates, 2]
        return Statistic(float(_divide(top, bottom)), _divide(totals[:, 0], totals[:, 1]))

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


def _divide(top: Array | float, bottom: Array | float) -> Array:
    """top / bottom, nan where bottom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(bottom, 0), np.nan, np.divide(top, bottom))
