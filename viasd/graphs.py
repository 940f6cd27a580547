"""Forwards recorded once as CUDA graphs and replayed: one launch instead of one for each operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from viasd.forward import FusedForward
    from viasd.kv_cache import SlotCache
    from viasd.masks import MaskBank

LONGEST = 32  # tokens of a recorded forward; longer ones (prefill) keep the device busy without
BUCKET = 256  # a recorded forward sees a multiple of this many slots: few graphs, and attention reads little in vain
WARM_UPS = 3  # runs before a recording, in which libraries choose their kernels

Step = Callable[[], Tensor]
Record = Callable[[Step], tuple[Callable[[], None], Tensor]]  # -> replay, and where its result lies


@dataclass(frozen=True)
class Recording:
    """A forward of fixed shape, where it reads (tokens, positions, masks), where its logits [n, V] lie."""

    tokens: Tensor
    positions: Tensor
    masks: dict[str, Tensor]
    replay: Callable[[], None]
    logits: Tensor


class GraphForward:
    """A fused forward, recorded for each number of fed tokens and each bucket of slots as they first occur."""

    def __init__(self, fused: FusedForward, cache: SlotCache, masks: MaskBank, record: Record) -> None:
        self._fused, self._cache, self._masks, self._record = fused, cache, masks, record
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._numbers = torch.arange(cache.slots, device=fused.device)

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        fed = stop - start
        if fed > LONGEST or not self._fused.has_cache:  # the first forward of all makes it
            return self._fused(tokens, start, stop, last)
        self._cache.at(start, stop)
        seen = min(-(-stop // BUCKET) * BUCKET, self._cache.slots)
        if (fed, seen) not in self._recordings:
            self._recordings[fed, seen] = self._make(tokens, start, fed, seen)
        recording = self._recordings[fed, seen]
        self._load(recording, tokens, start, fed, seen)
        recording.replay()
        return recording.logits[-last:].clone()  # the next replay writes to the same place

    def _make(self, tokens: Tensor, start: int, fed: int, seen: int) -> Recording:
        masks = {kind: mask.clone() for kind, mask in self._masks.fixed(start, fed, seen).items()}
        inputs = tokens.clone(), self._numbers[start : start + fed].clone()
        replay, logits = self._record(lambda: self._fused.fixed(*inputs, masks, seen))
        return Recording(*inputs, masks, replay, logits)

    def _load(self, recording: Recording, tokens: Tensor, start: int, fed: int, seen: int) -> None:
        recording.tokens.copy_(tokens)
        recording.positions.copy_(self._numbers[start : start + fed])
        for kind, mask in self._masks.fixed(start, fed, seen).items():
            recording.masks[kind].copy_(mask)


class CudaRecorder:
    """Records on the current CUDA device; its recordings share one pool of memory, since none run at once."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle, which torch makes with the first recording

    def __call__(self, step: Step) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = step()
        self._pool = graph.pool()
        return graph.replay, logits
