"""The training-time test of EAGLE-3 (2503.01840): a head unrolled on a batch, computing what decoding will compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from baselines.eagle.head import EagleHead
from baselines.eagle.rotary import rotary

Embed = Callable[[Tensor], Tensor]
"""Embeddings [.., width] of ids [..]."""


@dataclass(frozen=True)
class Batch:
    """Documents, one per row, filled up on the right: no token sees what stands there.

    `ids` [B, T]; `features` [B, T, F] and `states` [B, T, width]: the target's features of the tokens, and its states
    behind the final norm. `firsts`, `stops` [B]: the place of the first answer token, and the one behind the last.
    `seed`: of what a loss draws.
    """

    ids: Tensor
    features: Tensor
    states: Tensor
    firsts: Tensor
    stops: Tensor
    seed: int = 0

    def generator(self) -> torch.Generator:
        """A fresh one, from the seed."""
        return torch.Generator(self.ids.device).manual_seed(self.seed)


@dataclass(frozen=True)
class Answers:
    """The places [n] whose target rows decide an answer token (the one behind them), and the document of each."""

    documents: Tensor
    places: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Answers:
        places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        deciding = (places >= batch.firsts[:, None] - 1) & (places < batch.stops[:, None] - 1)  # [B, T]
        return cls(*deciding.nonzero(as_tuple=True))

    def seen_from(self, step: int) -> tuple[Tensor, Tensor]:
        """Which of them [n] step `step` predicts, and from which index of their document [those].

        The pair at place t predicts token t + 2, and each step one token more: the row behind token t + 1 + step.
        """
        index = self.places - 1 - step
        seen = index >= 0
        return seen, index[seen]


@dataclass(frozen=True)
class Window:
    """The indices [B, A] of a batch that any answer token is predicted from: nothing else is unrolled."""

    index: Tensor

    @classmethod
    def of(cls, batch: Batch, steps: int) -> Window:
        first = (batch.firsts - 1 - steps).clamp(min=0)
        count = int((batch.stops - 2 - first).max().clamp(min=1))
        index = first[:, None] + torch.arange(count, device=first.device)
        return cls(index.clamp(max=batch.ids.shape[1] - 1))

    def take(self, states: Tensor) -> Tensor:
        """States [B, A, width] out of [B, T, width]."""
        return states.gather(1, self.index[..., None].expand(-1, -1, states.shape[-1]))

    def find(self, outputs: Tensor, documents: Tensor, index: Tensor) -> Tensor:
        """Outputs [n, width] of these indices [n] of these documents [n], out of [B, A, width]."""
        return outputs[documents, index - self.index[documents, 0]]


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [.., n, heads, head_dim], turned by cosines and signed sines [.., n, 1, head_dim] (`rotary`)."""
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)


@dataclass
class Unrolled:
    """The attention of an unrolled head: a `Mix`.

    Step 0 is causal attention over whole documents. A query of step k at index t stands at place t + k. It sees the
    keys of step 0 at indices up to t, and those of steps 1 to k at index t alone, as in decoding a token sees the pairs
    with true features and the drafted ones before it; all in one softmax. So later steps need dot products, no squares.
    """

    window: Window
    turn: tuple[Tensor, Tensor]  # of all places
    step: int = 0
    _first: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by layer: keys, values [B, heads, T, d]
    _later: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)  # of each step [B, heads, A, d]
    _mask: Tensor | None = None

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        places = torch.arange(keys.shape[1], device=keys.device) if self.step == 0 else self.window.index + self.step
        cos, sin = (table[places.clamp(max=table.shape[0] - 1)] for table in self.turn)  # beyond: places not judged
        groups = queries.shape[2] // keys.shape[2]
        queries, keys = rotate(queries, cos, sin).transpose(1, 2), rotate(keys, cos, sin).transpose(1, 2)
        keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values.transpose(1, 2)))
        mix = self._mix_first if self.step == 0 else self._mix_later
        mixed = mix(layer, queries, keys, values)
        return mixed.transpose(1, 2).flatten(2)

    def _mix_first(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self._first[layer] = keys, values
        dtype = queries.dtype
        if dtype == torch.bfloat16 and queries.device.type == "cpu":  # its gradient takes three times as long there
            queries, keys, values = queries.float(), keys.float(), values.float()
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).to(dtype)

    def _mix_later(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        own = self._later.setdefault(layer, [])
        own.append((keys, values))
        queries = queries * queries.shape[-1] ** -0.5
        true_keys, true_values = self._first[layer]
        if self._mask is None:
            unseen = torch.arange(true_keys.shape[2], device=keys.device) > self.window.index[..., None]  # [B, A, T]
            self._mask = torch.zeros(unseen.shape, dtype=queries.dtype, device=keys.device)
            self._mask = self._mask.masked_fill(unseen, float("-inf"))[:, None]
        scores = [queries @ true_keys.transpose(2, 3) + self._mask]
        scores += [(queries * past).sum(-1, keepdim=True) for past, _ in own]
        shares = torch.cat(scores, dim=-1).softmax(-1).to(values.dtype)  # [B, heads, A, T + step]
        known = true_keys.shape[2]
        mixed = shares[..., :known] @ true_values
        for place, (_, past) in enumerate(own):
            mixed = mixed + shares[..., known + place, None] * past
        return mixed


def unroll(head: EagleHead, batch: Batch, embed: Embed, steps: int, window: Window) -> list[Tensor]:
    """Outputs [B, A, width] of each step at the window's indices.

    Step k takes the embedding of token t + 1 + k (the true one, whatever the head would have drafted) and what the
    step before it gave at the same index. `embed`: the target's, unless the head has its own.
    """
    dtype, embed = head.fc.weight.dtype, head.embed_tokens or embed
    rows, last = window.index, batch.ids.shape[1] - 1
    mix = Unrolled(window, rotary(head.shape, batch.ids.device, dtype))
    following = torch.cat((batch.ids[:, 1:], batch.ids[:, :1]), dim=1)  # what follows the last one is not looked at
    states = head.enter(batch.features.to(dtype))
    outputs = [window.take(head.step(embed(following).to(dtype), states, mix))]
    for step in range(1, steps):
        mix.step = step
        tokens = batch.ids.gather(1, (rows + 1 + step).clamp(max=last))
        outputs.append(head.step(embed(tokens).to(dtype), head.feed_back(outputs[-1]), mix))
    return outputs
