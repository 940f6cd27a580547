"""A reader on the target's cache whose view of the target changes while it decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from viasd.models import Kept
from viasd.reader import Probe, Reader
from viasd.sampling import widen

if TYPE_CHECKING:
    from viasd.forward import LayerStep, PlainForward


class ViewReader(Reader):
    """Reads through whatever layers, or branches of layers, it was last told to show; `model` is what it began with.

    Its forwards are not recorded: a recording would have to be made anew for each view. What it peeks at is counted,
    and wrapped by an observer, as a call of its role, and leaves no trace in the cache.
    """

    def __init__(
        self, role: str, model: Any, kept: Kept | None, whole: PlainForward, probe: Probe, stronger: Reader
    ) -> None:
        """`whole`: the forward of the target on `stronger`'s cache; `kept`: what is shown at first, None all of it."""
        first = whole if kept is None else whole.keeping(kept)
        super().__init__(role, model, stronger.cache, first, stronger.vocabulary, probe, stronger)
        self._whole = whole

    def show(self, kept: Kept) -> None:
        """From now on forwards run through these alone. What was fed before stays in the cache."""
        self._forward = self._whole.keeping(kept)

    def peek(self, kept: Kept, ids: Tensor, start: int, stop: int) -> Tensor:
        """Raw logits [n, V] of ids[start:stop] through a view, behind what the cache holds before `start`.

        The cache must hold that: `start` is at most what the target has read.
        """
        assert self.stronger is not None and start <= self.stronger.read
        tokens = self._tokens(ids, start, stop)
        with self.charge(stop - start):
            logits = self._whole.keeping(kept).peek(tokens, start, stop, stop - start)
        return widen(logits, self.vocabulary)

    def alone(self, position: int, most: int) -> LayerStep:
        """Single layers of the whole target (`viasd.forward.PlainForward.alone`), to be used inside `charge`."""
        assert self.stronger is not None and position <= self.stronger.read
        return self._whole.alone(position, most)
