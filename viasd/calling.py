"""Exact mode's call rule: when to let the target confirm what slim verifiers wrote."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from viasd.decode import Memory
from viasd.spec import spec

BINS = 12  # of a token's slim probability s: halvings of 1 - s
TRIALS = 4  # rounds of each kind before the rule compares them
PRIOR = 8.0  # tokens that the prior of a bin counts for
RECENT = 0.98  # what older rounds weigh at each round
EXPLORE = 32  # rounds without the slim verifier, after which it is tried again


@spec
class WhenItPays:
    """Call the target on the draft at once, or let the slim verifier write first, by what is expected of each (ours).

    With S the probability that all provisional tokens are confirmed (the product of what the slim verifier promises for
    each, calibrated by earlier confirmations), another slim block is worth it if
    S (a + ... + a^b + a^b b - b) > rate (slim + draft block): b tokens come of a draft, whoever judges it; what the
    slim verifier writes is confirmed with probability a each; `rate` tokens per cost so far. With S = 1 this decides
    between speculative decoding and slim verification, so a useless slim verifier is switched off, but for one block
    after EXPLORE rounds without. Costs are isolated ones, in
    any unit: of a draft step, and of a slim and a target step over a block; null: calibrated before a run. No clock is
    read.
    """

    draft_cost: Annotated[float, Field(gt=0)] | None = None
    slim_cost: Annotated[float, Field(gt=0)] | None = None
    target_cost: Annotated[float, Field(gt=0)] | None = None
    memory: Literal["request", "run"] = "run"

    @property
    def costs(self) -> tuple[float, float, float]:
        """Of a draft step, a slim block, a target block."""
        costs = self.draft_cost, self.slim_cost, self.target_cost
        if None in costs:
            raise AssertionError(f"costs {costs} were not calibrated before opening")
        return costs  # type: ignore[return-value]


class Mean:
    """A mean in which older values weigh less, begun with a prior."""

    def __init__(self, prior: float, weight: float = 2.0) -> None:
        self.total, self.weight = prior * weight, weight

    def add(self, value: float, count: float = 1.0) -> None:
        self.total = self.total * RECENT + value
        self.weight = self.weight * RECENT + count

    @property
    def value(self) -> float:
        return self.total / self.weight


class Caller:
    """The rule with what it has learned."""

    def __init__(self, config: WhenItPays) -> None:
        self.config = config
        self._reset()

    def _reset(self) -> None:
        self._confirmed = [PRIOR * promised(place) for place in range(BINS)]
        self._seen = [PRIOR] * BINS
        self._block = Mean(4.0)  # tokens that come of a draft
        self._kept = Mean(0.95, 20.0)  # of them confirmed
        self._rate = Mean(2.0)  # tokens per cost of a target block
        self._rounds = {"direct": 0, "slim": 0, "unasked": 0}

    def begin(self) -> None:
        """A request begins."""
        if self.config.memory == "request":
            self._reset()

    def promise(self, place: int) -> float:
        """Probability that a token in this bin is confirmed."""
        return self._confirmed[place] / self._seen[place]

    def call_now(self, pending: Sequence[int], drafted: int) -> bool:
        """Whether the target judges this draft, given the bins of the provisional tokens."""
        direct, slim_rounds = self._rounds["direct"], self._rounds["slim"]
        if min(direct, slim_rounds) < TRIALS:
            return direct < slim_rounds
        if self._rounds["unasked"] >= EXPLORE:
            return False
        draft, slim, target = self.config.costs
        survive = prod(self.promise(place) for place in pending)
        a, b = self._kept.value, self._block.value
        written = b if a == 1 else a * (1 - a**b) / (1 - a)
        gain = survive * (written + a**b * b - b)
        return gain <= self._rate.value * (slim + drafted * draft) / target

    def wrote(self, tokens: int, drafted: int) -> None:
        """A slim block ended without the target."""
        draft, slim, target = self.config.costs
        self._rounds["slim"] += 1
        self._rounds["unasked"] = 0
        self._block.add(tokens)
        self._rate.add(0.0, (drafted * draft + slim) / target)

    def confirmed(self, pending: Sequence[int], kept: int, tokens: int, drafted: int, asked_slim: bool) -> None:
        """The target ran: it confirmed `kept` of the provisional tokens in these bins, and `tokens` were committed."""
        draft, slim, target = self.config.costs
        for place in pending[:kept]:
            self._confirmed[place] += 1
        for place in pending[: kept + 1]:
            self._seen[place] += 1
        seen = len(pending[: kept + 1])
        if seen:
            self._kept.add(min(kept, seen), seen)
        if not asked_slim:
            self._rounds["direct"] += 1
            self._rounds["unasked"] += 1
            if kept == len(pending):
                self._block.add(tokens - kept)
        self._rate.add(tokens, 1 + (drafted * draft + asked_slim * slim) / target)

    def memory(self) -> Memory:
        if self.config.memory == "request":
            return {}
        means = {name: [mean.total, mean.weight] for name, mean in self._means().items()}
        counts = {"confirmed": list(self._confirmed), "seen": list(self._seen), "rounds": dict(self._rounds)}
        return {**counts, "means": means}

    def restore(self, memory: Memory) -> None:
        self._reset()
        if not memory:
            return
        self._confirmed, self._seen = list(memory["confirmed"]), list(memory["seen"])
        self._rounds = dict(memory["rounds"])
        for name, mean in self._means().items():
            mean.total, mean.weight = memory["means"][name]

    def _means(self) -> dict[str, Mean]:
        return {"block": self._block, "kept": self._kept, "rate": self._rate}


def promised(place: int) -> float:
    """The slim probability in the middle of a bin."""
    return 1 - 2.0 ** -(place + 0.5)


def bins(rows: Tensor, tokens: Tensor) -> Tensor:
    """Bin [n] of each token [n] by its slim probability, from raw logits [n, V]."""
    chosen = (rows.gather(1, tokens[:, None])[:, 0] - rows.logsumexp(-1)).double()
    rest = (-torch.expm1(chosen)).clamp(min=2.0**-BINS)
    return (-rest.log2()).floor().clamp(0, BINS - 1).long()
