"""A reader: one model (or view) reading one sequence. It feeds what is missing and returns the last rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from viasd.forward import Forward
    from viasd.kv_cache import SlotCache

Watch = Callable[[str, int], AbstractContextManager[Any]]


@dataclass
class Probe:
    """Where an observer hooks in: while set, `watch(role, fed tokens)` wraps every forward.

    `look(role, logits)` comes after it, outside of what `watch` wraps.
    """

    watch: Watch | None = None
    look: Callable[[str, Tensor], None] | None = None


class Reader:
    """Feeds a model on a slot cache. `read` is how many ids of the sequence its cache holds.

    `stronger` is the reader whose cache this one shares (a slim view on the target's): positions that the stronger
    one has read need no feeding, and are never overwritten. `calls` and `fed` count forwards and tokens, prefill too.
    """

    def __init__(
        self,
        role: str,
        model: Any,
        cache: SlotCache,
        forward: Forward,
        vocabulary: int,
        probe: Probe,
        stronger: Reader | None = None,
    ) -> None:
        self.role, self.model, self.cache, self.stronger = role, model, cache, stronger
        self.calls = self.fed = 0
        self._vocabulary, self._probe = vocabulary, probe
        self._read = 0
        self._known = model.get_input_embeddings().weight.shape[0]
        self._forward = forward

    @property
    def read(self) -> int:
        return self._read if self.stronger is None else max(self._read, self.stronger.read)

    def start(self) -> None:
        """Forget the sequence and the counts."""
        self._read = self.calls = self.fed = 0

    def rewind(self, length: int) -> None:
        """Only the first `length` ids are still those that were fed."""
        self._read = min(self._read, length)

    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor:
        """Read ids[read:stop] and return raw logits [last, V] of the last positions, float32 or wider.

        `ids` [capacity] are the sequence with staged drafts. Row j is the distribution after ids[stop - last + j].
        """
        start = self.read
        if stop - start < max(last, 1):
            raise AssertionError(f"{self.role}: {last} rows asked, {stop - start} ids to feed (read {start})")
        if self._probe.watch is None:
            logits = self._read_on(ids, start, stop, last)
        else:
            with self._probe.watch(self.role, stop - start):
                logits = self._read_on(ids, start, stop, last)
        if self._probe.look is not None:
            self._probe.look(self.role, logits)
        self._read = stop
        self.calls += 1
        self.fed += stop - start
        return logits

    def _read_on(self, ids: Tensor, start: int, stop: int, last: int) -> Tensor:
        tokens = ids[start:stop]
        if self._known < self._vocabulary:  # an id that this model lacks is read as its last one
            tokens = tokens.clamp(max=self._known - 1)
        return widen(self._forward(tokens, start, stop, max(last, 1)), self._vocabulary)  # 0 would mean all


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits [n, V] over the common ids: cut to `vocabulary`, -inf for ids the model lacks; float32 or wider."""
    logits = logits[:, :vocabulary]
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    missing = vocabulary - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits
