"""An EAGLE head as a reader: it reads pairs of a feature of the target and the token behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from baselines.eagle.head import EagleHead, Mix
from baselines.eagle.rotary import rotary
from viasd.blocks import DraftedBlock, TripTest, draft_by_steps
from viasd.engine import Engine
from viasd.kv_cache import SlotCache
from viasd.masks import MaskBank
from viasd.models import layer_count
from viasd.reader import Reader
from viasd.sampling import Draws, Sampling, widen
from viasd.taps import Taps
from viasd.trees import Nodes


class HeadReader(Reader):
    """Reads with a head on a slot cache of its own. The pair in slot t is the feature of id t and id t + 1.

    So having read n ids it holds n - 1 pairs. The target's features come by `learn`, and at the start of a text from
    what the target's reader has tapped of the prompt. Where the target has not read, those of a slim view stand for
    them, and where there are none either, the head's own output one slot before. A pair that was read so is read again
    when a better feature is there: a slim view's is replaced by the target's alone. `feed` is one call for the pairs
    whose features are there, and one more for each that stands on the head's own output.
    """

    def __init__(self, role: str, name: str, head: EagleHead, target: Reader, engine: Engine) -> None:
        """`name`: of the head, whose cache all its readers share."""
        cache: SlotCache = engine.cache(f"head {name}")
        forward = engine.forward(target.model, "target")  # never used: all that calls it is replaced here
        super().__init__(role, target.model, cache, forward, engine.vocabulary, engine.probe)
        self.model, self._head, self._target = head, head, target
        self.name = name
        base = target.model.get_decoder()
        self._embed: Callable[[Tensor], Tensor] = head.embed_tokens or target.model.get_input_embeddings()
        self._out: Tensor = target.model.get_output_embeddings().weight.detach()
        self._norm: Any = base.norm if head.shape.version == 1 else None
        self.layers = head.shape.taps(layer_count(target.model))
        size, like = cache.slots + cache.spare, self._out
        shape = replace(head.shape, max_positions=max(size, head.shape.max_positions))
        self._cos, self._sin = rotary(shape, engine.device, like.dtype)
        self._masks = MaskBank(SimpleNamespace(), cache.slots, engine.dtype, engine.device)
        # [slot]: of the first `_given` ids; the target's of the first `_confirmed` ones, slim views' behind them
        self._features = like.new_zeros(size, head.features)
        self._confirmed = self._given = self._pretended = 0
        self._outputs = like.new_zeros(size, head.shape.width)
        self._node_outputs = like.new_zeros(0, head.shape.width)
        self._ids = head.draft_ids()

    def start(self) -> None:
        super().start()
        self._confirmed = self._given = self._pretended

    def pretend(self) -> HeadReader:
        """For timing: as if all features were the target's; they are zero."""
        self._confirmed = self._given = self._pretended = self.cache.slots
        return self

    def rewind(self, length: int) -> None:
        super().rewind(length)
        kept = max(length, self._pretended)
        self._confirmed, self._given = min(self._confirmed, kept), min(self._given, kept)

    def learn(self, taps: Taps) -> None:
        """Take the features of ids that were read, by the target or a slim view, where no better ones are known.

        Pairs that stood on others are to be read again. Features that do not join on to known ones are of no use.
        """
        known = self._confirmed if taps.whole else self._given
        if not taps.start <= known < taps.stop:
            return
        if self._norm is not None:
            features = self._norm(taps.top)
        else:
            features = torch.cat([taps.streams[layer] for layer in self.layers], dim=-1)
        self._features[known : taps.stop] = features[known - taps.start :]
        self._given = max(self._given, taps.stop)
        if taps.whole:
            self._confirmed = taps.stop
        self._read = min(self._read, known + 1)

    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor:
        """Read up to ids[:stop]; with `last` 1 the raw logits [1, V] behind it. One call, or more (see the class)."""
        if self._confirmed == 0 and self._target.tapped is not None and self._target.tapped.start == 0:
            self.learn(self._target.tapped)
        logits = self._out[:0]
        first, behind = max(self._read - 1, 0), stop - 1  # slots that are to be filled
        given = min(max(self._given, first), behind)
        if given > first:
            logits = self._run(ids, first, given, last > 0 and given == behind)
        for slot in range(given, behind):
            logits = self._run(ids, slot, slot + 1, last > 0 and slot + 1 == behind)
        self._read = stop
        return logits

    def feed_nodes(self, ids: Tensor, stop: int, nodes: Nodes, last: int) -> Tensor:
        """Nodes of a tree behind ids that are all read: raw logits [last, V]. Each stands on its parent's output."""
        if nodes.first == 0:
            self._node_outputs = self._outputs[stop - 2 : stop - 1]  # the root's comes first
        m, base = nodes.tokens.shape[0], stop - 1
        positions = nodes.depths[nodes.first :] + (base - 1)
        masks = self._masks.branched(base, base, nodes.depths, nodes.seen)
        place = base + nodes.first
        with self.charge(m):
            mix = self._mix(self._cos[positions], self._sin[positions], place, place + m, masks["all"])
            states = self._head.feed_back(self._node_outputs.index_select(0, nodes.parents + 1))
            outputs = self._head.step(self._embed(nodes.tokens), states, mix)
            logits = self._logits(outputs)
        self._node_outputs = torch.cat((self._node_outputs, outputs))
        return logits[m - last :]

    def keep(self, length: int, path: Sequence[int]) -> None:
        raise AssertionError(f"{self.role}: nodes of a head are read again with the target's features")

    def draft_on(
        self, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws, trip: TripTest | None = None
    ) -> DraftedBlock:
        return draft_by_steps(self, ids, stop, steps, sampling, draws, trip)

    def _run(self, ids: Tensor, first: int, stop: int, last: bool) -> Tensor:
        """Fill slots first..stop-1; the logits [1, V] behind them if they are wanted, else none [0, V].

        A slot without a feature is filled alone.
        """
        with self.charge(stop - first):
            if first < self._given:
                states = self._head.enter(self._features[first:stop])
            else:
                states = self._head.feed_back(self._outputs[first - 1 : first])
            mask = self._masks.by_layer_type(first, stop)["all"]
            mix = self._mix(self._cos[first:stop], self._sin[first:stop], first, stop, mask)
            outputs = self._head.step(self._embed(ids[first + 1 : stop + 1]), states, mix)
            self._outputs[first:stop] = outputs
            return self._logits(outputs[-1:] if last else outputs[:0])

    def _mix(self, cos: Tensor, sin: Tensor, start: int, stop: int, mask: Tensor | None) -> Mix:
        """Attention over the slots before `stop`; what is new goes to those from `start` on."""
        half = cos.shape[-1] // 2
        self.cache.at(start, stop)

        def turn(states: Tensor) -> Tensor:
            return torch.addcmul(states * cos, states.roll(half, -1), sin).transpose(0, 1)[None]

        def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            all_keys, all_values = self.cache.update(turn(keys), values.transpose(0, 1)[None], layer)
            mixed = functional.scaled_dot_product_attention(
                turn(queries), all_keys, all_values, attn_mask=mask, enable_gqa=queries.shape[1] != keys.shape[1]
            )
            return mixed[0].transpose(0, 1).flatten(1)

        return mix

    def _logits(self, outputs: Tensor) -> Tensor:
        """Over the common ids [n, V]; those that the head does not know have -inf."""
        logits = self._head.logits(outputs, self._out)
        if self._ids is not None:
            wide = logits.new_full((logits.shape[0], self._head.shape.vocabulary), -torch.inf)
            logits = wide.index_copy_(1, self._ids, logits)
        return widen(logits, self.vocabulary)
