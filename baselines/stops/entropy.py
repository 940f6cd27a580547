"""Stop where the draft row is flat: SVIP and AdaEDL, which differ only in how they write one bound on the entropy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.stops.tripped import TrippedLength
from viasd.decode import Draft, Memory, State, StopRule, Verdict
from viasd.sampling import Sampling
from viasd.spec import spec

Above0 = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BlockLength = Annotated[int, Field(ge=1, le=64)]


@spec
class SvipLength:
    """A block ends with the first token whose row has sqrt(scale * entropy) > threshold (SVIP, 2411.18462: c and h).

    Entropy in nats, of the raw row at temperature 1, also in greedy decoding. `scale` 0.15, `threshold` 0.3 and at most
    40 tokens are of the paper's code: more than 0.6 nats. There the token that trips stays; `keep_tripping` false is
    ours, and as lossless, since the row alone decides.
    """

    scale: Above0 = 0.15
    threshold: Annotated[float, Field(ge=0)] = 0.3
    max_length: BlockLength = 40
    keep_tripping: bool = True

    def open_stop(self) -> StopRule:
        return TrippedLength(self.max_length, EntropyTrip(self.threshold**2 / self.scale, self.keep_tripping))


@spec
class AcceptanceControl:
    """Moves a threshold so that a share `target` of the drafted tokens is kept: the controller of Draft&Verify.

    Unverified: the equations are second-hand, AdaEDL's own update rule is not known to us, and starting the average at
    `target` is ours. After a round in which the share a was kept, average <- b1 average + (1 - b1) a, then
    threshold <- b2 threshold + (1 - b2) (threshold + step if average < target else threshold - step), in [0, 1]
    (2309.08168: b1 0.5, b2 0.9, step 0.01, target 0.9).
    """

    target: Share = 0.9
    step: Above0 = 0.01
    average_weight: Share = 0.5
    threshold_weight: Share = 0.9
    memory: Literal["request", "run"] = "request"


@spec
class AdaEdlLength:
    """A block ends with the first token whose row has 1 - sqrt(scale * entropy) < threshold (AdaEDL, 2410.18351).

    The left side is the paper's lower bound on the acceptance probability. Entropy in nats of the raw row. `scale` 0.2
    is of one public implementation; the paper adapts the threshold by a rule that we have not seen, so it is fixed
    here, at a value of ours (more than 0.45 nats), or moved by `control`. At most 40 tokens: ours, as SVIP.
    """

    scale: Above0 = 0.2
    threshold: Share = 0.7
    max_length: BlockLength = 40
    keep_tripping: bool = True
    control: AcceptanceControl | None = None

    def open_stop(self) -> StopRule:
        if self.control is not None:
            return _ControlledLength(self, self.control)
        return TrippedLength(self.max_length, EntropyTrip(bound(self.threshold, self.scale), self.keep_tripping))


def bound(threshold: float, scale: float) -> float:
    """The entropy above which 1 - sqrt(scale * entropy) is below the threshold."""
    return (1 - threshold) ** 2 / scale


class EntropyTrip:
    """Trips above an entropy of the raw row, in nats."""

    row_alone = True

    def __init__(self, most: float, keep: bool) -> None:
        self.most, self.keep = most, keep

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        return torch.special.entr(logits.softmax(-1)).sum(-1) > self.most


class _ControlledLength(TrippedLength):
    """AdaEDL with a threshold that follows the share of drafted tokens that were kept."""

    def __init__(self, config: AdaEdlLength, control: AcceptanceControl) -> None:
        self._entropy = EntropyTrip(0.0, config.keep_tripping)
        super().__init__(config.max_length, self._entropy)
        self._config, self._control = config, control
        self._set(config.threshold, control.target)

    def _set(self, threshold: float, average: float) -> None:
        self._threshold, self._average = threshold, average
        self._entropy.most = bound(threshold, self._config.scale)

    def begin(self, state: State) -> None:
        if self._control.memory == "request":
            self._set(self._config.threshold, self._control.target)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        if draft.length == 0:
            return
        rule = self._control
        average = rule.average_weight * self._average + (1 - rule.average_weight) * verdict.kept / draft.length
        moved = self._threshold + (rule.step if average < rule.target else -rule.step)
        threshold = rule.threshold_weight * self._threshold + (1 - rule.threshold_weight) * moved
        self._set(min(max(threshold, 0.0), 1.0), average)

    def memory(self) -> Memory:
        return {} if self._control.memory == "request" else {"threshold": self._threshold, "average": self._average}

    def restore(self, memory: Memory) -> None:
        self._set(memory.get("threshold", self._config.threshold), memory.get("average", self._control.target))
