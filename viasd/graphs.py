"""Forwards recorded once as CUDA graphs and replayed: one launch instead of one for each operation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from viasd.blocks import BlockKind, BlockMemory, DraftedBlock

if TYPE_CHECKING:
    from viasd.forward import FusedForward
    from viasd.kv_cache import SlotCache
    from viasd.taps import Taps
    from viasd.trees import Branch

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # tokens of a recorded forward; other numbers are filled up to the next
LONGEST = SIZES[-1]  # longer forwards (prefill) keep the device busy without
BUCKET = 256  # a recorded forward sees a multiple of this many slots: few graphs, and attention reads little in vain
UNREAD = 2  # tokens that the first step of a recorded block may feed: the last drafted one of a kept block, and a bonus
LONGEST_BLOCK = 16  # steps of a recorded block
WARM_UPS = 2  # runs before a recording, in which libraries load and choose their kernels

Step = Callable[[], None]
Replay = Callable[[], None]
Record = Callable[[Step], Replay]  # a step reads and writes the same memory each time


class GraphForward:
    """A fused forward as recordings, one for each of SIZES and each bucket of slots; and blocks drafted in one replay.

    A recording knows no position: where its tokens begin and how many of them count are numbers on the device. Tokens
    that fill it up stand at the position of the last one that counts, write to the spare slot of the cache, which
    nothing sees, and have no row in the result. Recordings are made by `prepare`, or where a forward first needs one.
    """

    def __init__(self, fused: FusedForward, cache: SlotCache, record: Record) -> None:
        if cache.spare < 1:
            raise ValueError("recorded forwards need a cache with a spare slot")
        self._fused, self._cache, self._record = fused, cache, record
        self._ready = False
        self._replays: dict[tuple[int, int], Replay] = {}
        self._blocks: dict[tuple[BlockKind, int], Replay] = {}
        self._memories: dict[BlockKind, BlockMemory] = {}
        head = fused.head
        self._offsets = torch.arange(LONGEST, device=head.device)
        # Inputs and result of all recordings: one runs at a time, and what it gave is copied before the next one.
        self._tokens = torch.zeros(LONGEST, dtype=torch.long, device=head.device)
        self._start = torch.full((1,), cache.slots, dtype=torch.long, device=head.device)
        self._fed = torch.ones(1, dtype=torch.long, device=head.device)
        self._logits = head.new_empty(LONGEST, head.shape[0])

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        fed = stop - start
        if fed > LONGEST or not self._has_cache():  # the first forward of all makes it
            return self._fused(tokens, start, stop, last)
        self._cache.at(start, stop)
        self._load(tokens, start, fed)
        self._forward_replay(SIZES[bisect_left(SIZES, fed)], self._bucket(stop))()
        return self._logits[fed - last : fed].clone()

    def tapped(self, tokens: Tensor, start: int, stop: int, last: int, layers: Collection[int]) -> tuple[Tensor, Taps]:
        """Not recorded: a recording has no place to leave streams in."""
        return self._fused.tapped(tokens, start, stop, last, layers)

    def branched(
        self, tokens: Tensor, branch: Branch, last: int, layers: Collection[int] | None
    ) -> tuple[Tensor, Taps | None]:
        """Not recorded either: which slots a node sees is different each time."""
        return self._fused.branched(tokens, branch, last, layers)

    def has_block(self, kind: BlockKind, start: int, stop: int) -> bool:
        """Whether a block of that kind, whose first step feeds slots start..stop-1, can be drafted in one replay.

        A kind that is asked for and not known will be recorded by the next `prepare`, never at once: which blocks are
        replayed depends on what was done before it, not on the moment.
        """
        if not (1 < kind.steps <= LONGEST_BLOCK and stop - start <= UNREAD):
            return False
        if kind not in self._memories:
            self._memories[kind] = BlockMemory(kind, self._logits)
        return (kind, self._bucket(stop + kind.steps - 1)) in self._blocks

    def rows_like(self, kind: BlockKind) -> Tensor:
        """A tensor of the shape, type and device of the block's rows [steps, V]."""
        return self._memories[kind].rows

    def draft(self, kind: BlockKind, tokens: Tensor, start: int, stop: int, noise: Tensor | None) -> DraftedBlock:
        """The block that follows tokens [stop - start], in one replay. Only where `has_block` said so.

        `noise` [steps, V] is that of `Draws.noise`; None at temperature 0. The last token chosen is not fed.
        """
        behind = stop + kind.steps - 1
        self._cache.at(start, behind)
        self._load(tokens, start, stop - start)
        memory = self._memories[kind]
        if noise is not None:
            memory.noise.copy_(noise)
        self._blocks[kind, self._bucket(behind)]()
        return memory.result()

    @torch.inference_mode()
    def prepare(self) -> None:
        """Make all recordings that are still missing: every size, and every kind of block asked for, in every bucket.

        To record a forward is to run it, on tokens that write to the spare slot alone: what the cache holds stays.
        Without a cache there is nothing to do yet; it comes with the first forward.
        """
        if not self._has_cache():
            return
        self._start.fill_(self._cache.slots)
        self._fed.fill_(1)
        for seen in sorted({self._bucket(stop) for stop in range(1, self._cache.slots + 1)}):
            for size in SIZES:
                self._forward_replay(size, seen)
            for kind in self._memories:
                if (kind, seen) not in self._blocks:
                    self._blocks[kind, seen] = self._record_block(self._memories[kind], seen)

    def _has_cache(self) -> bool:
        self._ready = self._ready or self._fused.has_cache
        return self._ready

    def _bucket(self, stop: int) -> int:
        return min(-(-stop // BUCKET) * BUCKET, self._cache.slots)

    def _load(self, tokens: Tensor, start: int, fed: int) -> None:
        """Say what the next replay reads. Numbers travel with the launch: nothing waits for them."""
        self._tokens[:fed].copy_(tokens)
        self._start.fill_(start)
        self._fed.fill_(fed)

    def _forward_replay(self, size: int, seen: int) -> Replay:
        if (size, seen) not in self._replays:
            self._replays[size, seen] = self._record(lambda: self._result(self._padded(size, seen)))
        return self._replays[size, seen]

    def _record_block(self, memory: BlockMemory, seen: int) -> Replay:
        return self._record(lambda: self._block(memory, seen))

    def _result(self, logits: Tensor) -> None:
        self._logits[: logits.shape[0]].copy_(logits)

    def _padded(self, size: int, seen: int) -> Tensor:
        """Logits [size, V] of the loaded tokens; only the first `fed` count."""
        offsets = self._offsets[:size]
        positions = self._start + torch.minimum(offsets, self._fed - 1)
        places = positions.masked_fill(offsets >= self._fed, self._cache.slots)
        return self._fused.fixed(self._tokens[:size], positions, places, seen)

    def _block(self, memory: BlockMemory, seen: int) -> None:
        logits = self._padded(UNREAD, seen).index_select(0, self._fed - 1)  # [1, V]: of the last token that counts
        position = self._start + self._fed
        for step in range(memory.kind.steps):
            token = memory.choose(step, logits)
            if step + 1 < memory.kind.steps:
                place = position.clamp(max=self._cache.slots)  # beyond it only while it is recorded
                logits = self._fused.fixed(token, place, place, seen)
                position = position + 1


class CudaRecorder:
    """Records on the current CUDA device; its recordings share one pool of memory, since none run at once."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle, which torch makes with the first recording

    def __call__(self, step: Step) -> Replay:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        self._pool = graph.pool()
        return graph.replay
