"""What a model computed inside: the streams that entered chosen layers, and the one that left the last layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Taps:
    """Of the tokens at positions start..start+n-1: `streams` [n, width] by layer that they entered, in the layer order
    of the whole model, and `final` [n, width], what left the last layer, before the last norm.

    The library's hidden_states have the same streams, but in the last place what comes behind that norm.
    """

    start: int
    layers: Collection[int]
    streams: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None

    @property
    def stop(self) -> int:
        """The position behind the last token."""
        return self.start + self.top.shape[0]

    @property
    def top(self) -> Tensor:
        """`final`, once it is there."""
        assert self.final is not None
        return self.final

    def enter(self, layer: int, states: Tensor) -> None:
        """States [n, width] are about to enter a layer."""
        if layer in self.layers:
            self.streams[layer] = states

    def at(self, places: Tensor) -> Taps:
        """Of the tokens in these places [k] of the n alone: a path down a tree."""
        streams = {layer: states.index_select(0, places) for layer, states in self.streams.items()}
        return Taps(self.start, self.layers, streams, self.top.index_select(0, places))

    def before(self, stop: int) -> Taps:
        """Of the tokens at positions below `stop` alone."""
        count = stop - self.start
        streams = {layer: states[:count] for layer, states in self.streams.items()}
        return Taps(self.start, self.layers, streams, self.top[:count])
