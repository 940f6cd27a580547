"""What a model computed inside: the streams that entered chosen layers, and the one that left the last layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass
class Taps:
    """Of the tokens at positions start..start+n-1: `streams` [n, width] by layer that they entered, in the layer order
    of the whole model, and `final` [n, width], what left the last layer, before the last norm.

    The library's hidden_states have the same streams, but in the last place what comes behind that norm.
    Of a slim view (`whole` is false then), a skipped layer has the stream that enters the first kept layer behind it:
    what the whole model would hand to that one too. Behind the last kept layer it has what left that. (Ours: the
    VIA-SD paper says nothing of drafters that read features.)
    """

    start: int
    layers: Collection[int]
    streams: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        self._waiting = sorted(set(self.layers) - self.streams.keys(), reverse=True)  # the next one last

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
        """States [n, width] are about to enter a layer; layers come in order."""
        while self._waiting and self._waiting[-1] <= layer:
            self.streams[self._waiting.pop()] = states

    def leave(self, states: Tensor) -> None:
        """States [n, width] have left the last layer."""
        self.final = states
        while self._waiting:
            self.streams[self._waiting.pop()] = states

    def at(self, places: Tensor) -> Taps:
        """Of the tokens in these places [k] of the n alone: a path down a tree."""
        streams = {layer: states.index_select(0, places) for layer, states in self.streams.items()}
        return replace(self, streams=streams, final=self.top.index_select(0, places))

    def before(self, stop: int) -> Taps:
        """Of the tokens at positions below `stop` alone, where there are more."""
        count = stop - self.start
        streams = {layer: states[:count] for layer, states in self.streams.items()}
        return replace(self, streams=streams, final=self.top[:count])


def entered(layers: Collection[int], kept: Collection[int]) -> set[int]:
    """Of the kept layers, the first ones at or behind each of `layers`: those whose inputs stand for all of them."""
    return {min(behind) for layer in layers if (behind := [one for one in kept if one >= layer])}
