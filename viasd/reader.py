"""A reader: one model (or view) reading one sequence. It feeds what is missing and returns the last rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from viasd.blocks import BlockKind, DraftedBlock, TripTest, cut_block, draft_by_steps
from viasd.graphs import GraphForward
from viasd.sampling import Draws, Sampling, widen
from viasd.trees import Branch, Nodes

if TYPE_CHECKING:
    from viasd.forward import Forward
    from viasd.kv_cache import SlotCache
    from viasd.taps import Taps


class Watch(Protocol):
    """Gives what wraps the calls of a reader: one of `fed` tokens, or all of a block that runs as one."""

    def __call__(self, role: str, *fed: int) -> AbstractContextManager[Any]: ...


@dataclass
class Probe:
    """Where an observer hooks in: while set, `watch(role, fed tokens)` wraps every forward.

    A block drafted in one replay is wrapped as a whole, `watch(role, fed, 1, 1, ...)`, with the choice of its tokens.
    `look(role, logits)` comes after a forward, outside of what `watch` wraps.
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
        self.vocabulary, self._probe = vocabulary, probe
        self._read = 0
        self._known = model.get_input_embeddings().weight.shape[0]
        self._forward = forward
        self.tapped: Taps | None = None
        self._layers: Collection[int] | None = None
        self._tap_prompt, self._tap_whole = False, True

    def tap(self, layers: Collection[int] | None, prompt: bool = False, whole: bool = True) -> None:
        """From now on `tapped` holds, of the last call that asked for rows, the streams entering these layers.

        And the one behind the last layer. With `prompt` also of calls that asked for none: all tokens of a long prompt
        may be much to hold. `whole`: false for a slim view. None: no more of it.
        """
        self._layers, self._tap_prompt, self._tap_whole = layers, prompt, whole
        self.tapped = None

    @property
    def read(self) -> int:
        return self._read if self.stronger is None else max(self._read, self.stronger.read)

    def start(self) -> None:
        """Forget the sequence and the counts."""
        self._read = self.calls = self.fed = 0
        self.tapped = None

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

    def feed_nodes(self, ids: Tensor, stop: int, nodes: Nodes, last: int) -> Tensor:
        """Read ids[read:stop], then nodes of a tree behind them; raw logits [last, V] of the last of all of them.

        `read` is `stop` then: what was read of a tree stays only as far as `keep` says so. What is not in the ids is
        tapped all the same.
        """
        start, behind = self.read, stop + nodes.first + nodes.tokens.shape[0]
        tokens = torch.cat((ids[start:stop], nodes.tokens))
        with self.charge(len(tokens)):
            known = self._known_ids(tokens)
            branch = Branch(start, stop, behind, nodes)
            logits, taps = self._forward.branched(known, branch, last, self._layers)
            logits = widen(logits, self.vocabulary)
        if taps is not None:
            self._note(taps)
        if self._probe.look is not None:
            self._probe.look(self.role, logits)
        self._read = stop
        return logits

    def keep(self, length: int, path: Sequence[int]) -> None:
        """Of the tree that was read behind `length` ids, these nodes stand there now, in this order."""
        if list(path) != list(range(len(path))):
            places = torch.tensor(path, dtype=torch.long) + length
            self.cache.gather(places.to(self.model.device), length)
        self._read = length + len(path)

    @contextmanager
    def charge(self, fed: int) -> Iterator[None]:
        """What happens inside is one call of this reader that feeds so many tokens."""
        with nullcontext() if self._probe.watch is None else self._probe.watch(self.role, fed):
            yield
        self.calls += 1
        self.fed += fed

    def draft_on(
        self, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws, trip: TripTest | None = None
    ) -> DraftedBlock:
        """`viasd.blocks.draft_by_steps`, in one replay where there is a recording of such a block.

        Both draw from the same stream in the same order, and count `steps` calls.
        """
        start, forward = self.read, self._forward
        if not isinstance(forward, GraphForward) or self._layers is not None:
            return draft_by_steps(self, ids, stop, steps, sampling, draws, trip)
        kind = BlockKind(steps, sampling, self.vocabulary)
        if stop <= start or not forward.has_block(kind, start, stop):
            return draft_by_steps(self, ids, stop, steps, sampling, draws, trip)
        noise = None if kind.greedy else draws.noise(forward.rows_like(kind), "draft")
        watch = self._probe.watch
        with nullcontext() if watch is None else watch(self.role, stop - start, *[1] * (steps - 1)):
            block = forward.draft(kind, self._tokens(ids, start, stop), start, stop, noise)
        if self._probe.look is not None:
            for row in block.logits.split(1):
                self._probe.look(self.role, row)
        ids[stop : stop + steps] = block.tokens
        self._read = stop + steps - 1  # the last one is chosen, not fed
        self.calls += steps
        self.fed += self._read - start
        return cut_block(block, sampling, trip)

    def _read_on(self, ids: Tensor, start: int, stop: int, last: int) -> Tensor:
        tokens, rows = self._tokens(ids, start, stop), max(last, 1)  # 0 would mean all
        if self._layers is None or not (last or self._tap_prompt):
            logits = self._forward(tokens, start, stop, rows)
        else:
            logits, taps = self._forward.tapped(tokens, start, stop, rows, self._layers)
            self._note(taps)
        return widen(logits, self.vocabulary)

    def _note(self, taps: Taps) -> None:
        taps.whole = self._tap_whole
        self.tapped = taps

    def _tokens(self, ids: Tensor, start: int, stop: int) -> Tensor:
        return self._known_ids(ids[start:stop])

    def _known_ids(self, tokens: Tensor) -> Tensor:
        """The tokens, an id that this model lacks as its last one."""
        return tokens.clamp(max=self._known - 1) if self._known < self.vocabulary else tokens
