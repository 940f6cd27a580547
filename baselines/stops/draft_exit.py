"""Where self-speculation stops drafting: at the first token that the view itself is not sure of, by its raw row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from baselines.stops.tripped import TrippedLength
from viasd.decode import StopRule
from viasd.sampling import Sampling
from viasd.spec import spec

Of = Literal["drawn", "top"]


@spec
class DraftExit:
    """A block ends with the first token below `threshold`, which stays in it, and with `max_length` tokens.

    `of`: whose probability under the softmax of the raw logits, whatever the sampling. `drawn`: the drafted token's
    (SWIFT: 0.8, 25; Draft & Verify, public code of 2309.08168: 0.8, 8, its adaptive threshold left out). `top`: the
    largest one's (CLaSp, 2505.24196: "DET" 0.7; 8 is a third-party port's). At temperature 0 the two are one.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    max_length: Annotated[int, Field(ge=1, le=64)] = 8
    of: Of = "drawn"

    def open_stop(self) -> StopRule:
        return TrippedLength(self.max_length, UnsureTrip(self.threshold, self.of, row_alone=self.of == "top"))


@dataclass
class UnsureTrip:
    """Trips below a raw probability. `row_alone`: it looks at the row, and not at what was drawn from it."""

    threshold: float
    of: Of
    row_alone: bool
    keep: bool = True

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        rows = logits.softmax(-1)  # [n, V]
        seen = rows.amax(-1) if self.of == "top" else rows.gather(1, tokens[:, None])[:, 0]
        return seen < self.threshold
