"""Stop where a drafted token was improbable: the default of transformers' assisted generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from baselines.stops.tripped import TrippedLength
from viasd.decode import StopRule
from viasd.sampling import Sampling, process
from viasd.spec import spec

PLAIN = Sampling(temperature=1.0)


@spec
class ConfidenceLength:
    """A block ends with the first token whose own probability is below `threshold`, and with `max_length` tokens.

    The probability is that of the drawn token under the processed scores; at temperature 0, where nothing is processed,
    under the softmax of the raw logits. Source: transformers, `ConfidenceCriteria` and the generation defaults since
    4.45 (0.4, 20, schedule "constant"). That library keeps the token that trips, and so does `keep_tripping`; dropping
    it is ours, and changes the output law above temperature 0. Its refresh of the threshold, which depends on an
    optional package, is left out.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.4
    max_length: Annotated[int, Field(ge=1, le=64)] = 20
    keep_tripping: bool = True

    def open_stop(self) -> StopRule:
        return TrippedLength(self.max_length, ConfidenceTrip(self.threshold, self.keep_tripping))


@dataclass
class ConfidenceTrip:
    """Trips below a probability of the drawn token."""

    threshold: float
    keep: bool
    row_alone: bool = False

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        rows = process(logits, PLAIN if sampling.temperature == 0 else sampling)  # [n, V]
        return rows.gather(1, tokens[:, None])[:, 0] < self.threshold
