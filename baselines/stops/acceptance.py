"""What a stop rule learns about acceptance: by the top probability of the row that a token was drawn from."""

from __future__ import annotations

from bisect import bisect_right

from viasd.decode import Memory

EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)  # of bins of a row's top probability
BIN_PRIOR = 4.0  # tokens that the prior of a bin counts for: a calibrated draft model, accepted as often as it is sure
MEAN, MEAN_PRIOR = 0.8, 10.0  # acceptance of any token before anything is seen, and how many tokens that counts for
WINDOW = 0.99  # what older tokens weigh at each token


class Fading:
    """A mean in which older values weigh less, begun with a prior."""

    def __init__(self, prior: float, weight: float, window: float) -> None:
        self._total, self._weight, self._window = prior * weight, weight, window

    def add(self, value: float, count: float = 1.0) -> None:
        """One more value: the sum over `count`."""
        self._total = self._total * self._window + value
        self._weight = self._weight * self._window + count

    @property
    def value(self) -> float:
        return self._total / self._weight

    @property
    def stored(self) -> list[float]:
        return [self._total, self._weight]

    @stored.setter
    def stored(self, sums: list[float]) -> None:
        self._total, self._weight = sums


class Acceptance:
    """The probability that a drafted token is kept if all before it were, by bin, and of any token.

    Learned from judged tokens alone. A bin has a memory of its own, so that what is rare is not forgotten.
    """

    def __init__(self) -> None:
        ends = zip((0.0, *EDGES), (*EDGES, 1.0), strict=True)
        self._bins = [Fading((low + high) / 2, BIN_PRIOR, WINDOW) for low, high in ends]
        self._all = Fading(MEAN, MEAN_PRIOR, WINDOW)

    @property
    def mean(self) -> float:
        return self._all.value

    def of(self, place: int) -> float:
        """Of the tokens in a bin."""
        return self._bins[place].value

    def add(self, place: int, kept: bool) -> None:
        """A token of this bin was judged."""
        self._bins[place].add(kept)
        self._all.add(kept)

    def memory(self) -> Memory:
        return {"bins": [one.stored for one in self._bins], "all": self._all.stored}

    def restore(self, memory: Memory) -> None:
        self._all.stored = memory["all"]
        for one, sums in zip(self._bins, memory["bins"], strict=True):
            one.stored = sums


def bin_of(top: float) -> int:
    """The bin of a row by its top probability."""
    return bisect_right(EDGES, top)
