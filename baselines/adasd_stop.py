"""AdaSD's stop rule (2512.11280): a draft ends where its row is less sure than those of rejected tokens were.

What is known of it, and from where, is told in baselines/adasd.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from viasd.decode import Draft, Memory, Part, State, StopRule, Verdict
from viasd.gates import entropy
from viasd.sampling import Sampling, process
from viasd.spec import spec

Rows = Literal["raw", "processed"]
Lifetime = Literal["request", "run"]
Decay = Annotated[float, Field(gt=0, le=1)]


@dataclass
class OnlineMean:
    """Mean of what was added. Each value weighs `decay` times as much as the next one: with 1 all weigh the same.

    The sum may be on a device, so that adding to it waits for nothing.
    """

    decay: float = 1.0
    total: float | Tensor = 0.0
    weight: float = 0.0

    def add(self, value: float | Tensor) -> None:
        self.total = self.decay * self.total + value
        self.weight = self.decay * self.weight + 1

    @property
    def value(self) -> float | Tensor | None:
        """None before the first value."""
        return self.total / self.weight if self.weight else None

    def memory(self) -> Memory:
        return {"total": float(self.total), "weight": self.weight}


def counting(state: State, positions: int) -> int:
    """How many of a round's positions count: behind an end mark the models write what is never output."""
    return positions if state.finish_reason is None else min(positions, state.rounds[-1].judged)


@spec
class EntropyStop:
    """Draft until a row's entropy exceeds T_G, the mean entropy of the draft rows of rejected tokens; at most `cap`.

    From summaries of AdaSD: that rule and the cap of 20. Ours: rows are `raw` (temperature 1, nothing cut off, as in
    SVIP; at temperature 0 always), T_G is `start` until something was rejected (null: drafted to the cap), the token
    that trips is kept, all values weigh the same (`decay` 1), and T_G begins anew with each prompt. A token is rejected
    if the verifier labels it so, or has no labels and replaced it. The law of a lossless verifier is untouched.
    """

    cap: Annotated[int, Field(ge=1, le=64)] = 20
    rows: Rows = "raw"
    start: Annotated[float, Field(ge=0)] | None = None
    keep_tripping: bool = True
    decay: Decay = 1.0
    memory: Lifetime = "request"

    def open_stop(self) -> StopRule:
        return _EntropyStop(self)


class _EntropyStop(Part):
    row_alone = True

    def __init__(self, config: EntropyStop) -> None:
        self.config, self.keep = config, config.keep_tripping
        self._known(OnlineMean(config.decay))

    def _known(self, rejected: OnlineMean) -> None:
        """Without a threshold there is no test, which would cost a look at every row."""
        known = self.config.start if rejected.value is None else rejected.value
        self._rejected, self._threshold = rejected, math.inf if known is None else known
        self.trip = None if known is None else self

    def begin(self, state: State) -> None:
        if self.config.memory == "request":
            self._known(OnlineMean(self.config.decay))

    def limit(self, state: State) -> int:
        return self.config.cap

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        raw = self.config.rows == "raw" or sampling.temperature == 0
        return entropy(logits.softmax(-1) if raw else process(logits, sampling)) > self._threshold

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        labels = verdict.labels
        if labels is None:
            labels = [place < verdict.kept for place in range(len(verdict.tiers))]
        raw = self.config.rows == "raw" or state.greedy
        for place, accepted in enumerate(labels[: counting(state, len(labels))]):
            if not accepted:
                row = draft.logits[place].softmax(-1) if raw and draft.logits is not None else draft.rows[place]
                self._rejected.add(entropy(row[None])[0].double())
        self._known(self._rejected)

    def adaptive(self) -> dict[str, float]:
        """`threshold`: T_G in nats, once there is one."""
        return {} if self.trip is None else {"threshold": float(self._threshold)}

    def memory(self) -> Memory:
        return self._rejected.memory() if self.config.memory == "run" else {}

    def restore(self, memory: Memory) -> None:
        self._known(OnlineMean(self.config.decay, **memory))
