"""The heads of EAGLE-1/2 and EAGLE-3: one module for decoding and for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from viasd.layers import normalize

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""What attention is: (layer, queries [.., heads, d], keys, values [.., kv heads, d]), unrotated, to [.., heads * d]."""


@dataclass(frozen=True)
class HeadShape:
    """What a head is made of.

    `version` 1 takes the token's embedding and the target's last normed state through one product, and is read by the
    target's own head (EAGLE-1 and EAGLE-2 have the same weights). 3 takes three streams of the target, joined, and has
    a head of its own over `draft_vocabulary` ids. `aux_layers`: the layers that those streams enter; None: 2, half and
    all but three (`default_layers`). `rope`: as in a config of transformers.

    Options of published heads of version 3: `fc_norm` norms each stream, `norm_before_fc` all of them as one;
    `norm_before_residual` adds the attention to the normed state; `norm_logits` norms before the head; `feed_normed`
    hands the normed state to the next step, not the plain one; `own_embedding`: not the target's.
    """

    version: Literal[1, 3]
    width: int
    target_width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    draft_vocabulary: int | None = None
    layers: int = 1
    eps: float = 1e-6
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    max_positions: int = 2048
    fc_bias: bool = False
    qkv_bias: bool = False
    query_key_norm: bool = False
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    norm_logits: bool = True
    feed_normed: bool = False
    own_embedding: bool = False
    aux_layers: tuple[int, ...] | None = None

    def taps(self, target_layers: int) -> tuple[int, ...]:
        """The target's layers whose inputs a head of version 3 takes; none for version 1."""
        if self.version == 1:
            return ()
        return self.aux_layers or default_layers(target_layers)


def default_layers(count: int) -> tuple[int, ...]:
    """2, half of the layers and all but three, as published EAGLE-3 code has it; of a small model, at most the last."""
    return tuple(min(max(layer, 0), count - 1) for layer in (2, count // 2, count - 3))


class Norm(nn.Module):
    """A root-mean-square norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, states: Tensor) -> Tensor:
        return normalize(states, self.weight, self.eps)


class Attention(nn.Module):
    """Projections of one layer; `inputs` is twice the width where a layer reads embedding and state side by side."""

    def __init__(self, shape: HeadShape, inputs: int) -> None:
        super().__init__()
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(inputs, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(inputs, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(inputs, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.width, bias=False)
        self.q_norm, self.k_norm = (Norm(shape.head_dim, shape.eps) if shape.query_key_norm else None for _ in range(2))
        self._sizes, self._width = (queries, keys, keys), shape.head_dim
        self._joined: tuple[Tensor, Tensor | None] | None = None

    def join(self) -> None:
        """From now on one product gives all three; for decoding, where weights stand still."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        bias = None if self.q_proj.bias is None else torch.cat([part.bias.detach() for part in parts])
        self._joined = torch.cat([part.weight.detach() for part in parts]), bias

    def forward(self, states: Tensor, layer: int, mix: Mix) -> Tensor:
        if self._joined is None:
            found: Sequence[Tensor] = [part(states) for part in (self.q_proj, self.k_proj, self.v_proj)]
        else:
            found = functional.linear(states, *self._joined).split(self._sizes, dim=-1)
        queries, keys, values = (part.unflatten(-1, (-1, self._width)) for part in found)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        mixed: Tensor = self.o_proj(mix(layer, queries, keys, values))
        return mixed


class Mlp(nn.Module):
    """The gated branch."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.width, bias=False)
        self._joined: Tensor | None = None

    def join(self) -> None:
        """As `Attention.join`."""
        self._joined = torch.cat((self.gate_proj.weight.detach(), self.up_proj.weight.detach()))

    def forward(self, states: Tensor) -> Tensor:
        if self._joined is None:
            gate, up = self.gate_proj(states), self.up_proj(states)
        else:
            gate, up = functional.linear(states, self._joined).chunk(2, dim=-1)
        found: Tensor = self.down_proj(functional.silu(gate) * up)
        return found


class HeadLayer(nn.Module):
    """One layer. The first of version 1 has no norm before attention; that of version 3 reads embedding and state."""

    def __init__(self, shape: HeadShape, index: int) -> None:
        super().__init__()
        self.index, first = index, index == 0
        self.wide = first and shape.version == 3
        self.norm_residual = shape.norm_before_residual
        self.self_attn = Attention(shape, shape.width * (2 if self.wide else 1))
        self.mlp = Mlp(shape)
        self.hidden_norm = Norm(shape.width, shape.eps) if self.wide else None
        self.input_layernorm = None if first and shape.version == 1 else Norm(shape.width, shape.eps)
        self.post_attention_layernorm = Norm(shape.width, shape.eps)

    def forward(self, embedded: Tensor, states: Tensor, mix: Mix) -> Tensor:
        """States [.., width] behind the layer; `embedded` [.., width] is looked at by a wide layer alone."""
        residual = states
        if self.hidden_norm is not None and self.input_layernorm is not None:
            normed = self.hidden_norm(states)
            residual = normed if self.norm_residual else states
            inputs = torch.cat((self.input_layernorm(embedded), normed), dim=-1)
        else:
            inputs = states if self.input_layernorm is None else self.input_layernorm(states)
        states = residual + self.self_attn(inputs, self.index, mix)
        return states + self.mlp(self.post_attention_layernorm(states))


class EagleHead(nn.Module):
    """A head. Its own weights alone are parameters: the target's embedding and head are handed in.

    Step: `enter(features)` once for features of the target, then `step(embedded, states, mix)`; what it returns is read
    by `logits`, and `feed_back` of it is the state that stands for the feature of the next token. The pair at place t
    is the feature of token t and the embedding of token t + 1; it predicts token t + 2.
    """

    d2t: Tensor | None
    t2d: Tensor | None

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        joined = 2 * shape.width if shape.version == 1 else 3 * shape.target_width
        self.fc = nn.Linear(joined, shape.width, bias=shape.fc_bias)
        self.layers = nn.ModuleList([HeadLayer(shape, index) for index in range(shape.layers)])
        own_head = shape.version == 3
        self.norm = Norm(shape.width, shape.eps) if own_head else None
        self.input_norm = Norm(joined, shape.eps) if shape.norm_before_fc else None
        self.fc_norm = nn.ModuleList([Norm(shape.target_width, shape.eps) for _ in range(3)]) if shape.fc_norm else None
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width) if shape.own_embedding else None
        draft_ids = shape.draft_vocabulary or shape.vocabulary
        self.lm_head = nn.Linear(shape.width, draft_ids, bias=False) if own_head else None
        reduced = own_head and draft_ids < shape.vocabulary
        self.register_buffer("d2t", torch.zeros(draft_ids, dtype=torch.long) if reduced else None)
        self.register_buffer("t2d", torch.arange(shape.vocabulary) < draft_ids if reduced else None)

    @property
    def features(self) -> int:
        """Width of the target's features."""
        return self.shape.width if self.shape.version == 1 else 3 * self.shape.target_width

    def enter(self, features: Tensor) -> Tensor:
        """Features [.., 3 * target width] of version 3 as states [.., width]; those of version 1 are states."""
        if self.shape.version == 1:
            return features
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            chunks = features.chunk(3, dim=-1)
            features = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], dim=-1)
        states: Tensor = self.fc(features)
        return states

    def step(self, embedded: Tensor, states: Tensor, mix: Mix) -> Tensor:
        """Output states [.., width] of tokens' embeddings and the states [.., width] of the tokens before them."""
        if self.shape.version == 1:
            states = self.fc(torch.cat((embedded, states), dim=-1))
        for layer in self.layers:
            states = layer(embedded, states, mix)
        return states

    def feed_back(self, outputs: Tensor) -> Tensor:
        """What the next step takes for a feature, of the outputs [.., width] of this one."""
        return self.norm(outputs) if self.shape.feed_normed and self.norm is not None else outputs

    def logits(self, outputs: Tensor, target_head: Tensor) -> Tensor:
        """Logits [.., draft ids] of outputs [.., width]; `target_head` [V, width] is used by version 1."""
        if self.lm_head is None or self.norm is None:
            return functional.linear(outputs, target_head)
        found: Tensor = self.lm_head(self.norm(outputs) if self.shape.norm_logits else outputs)
        return found

    def draft_ids(self) -> Tensor | None:
        """The target's id [draft ids] of each of the head's; None where they are the same."""
        return None if self.d2t is None else self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def name_ids(self, ids: Tensor) -> None:
        """Draft these ids [draft ids] of the target, ascending (d2t holds offsets, as published heads do)."""
        assert self.d2t is not None and self.t2d is not None
        self.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))
        self.t2d.zero_()
        self.t2d[ids] = True

    def settle(self) -> EagleHead:
        """For decoding: in evaluation mode, without gradients, with joined projections."""
        for part in self.modules():
            if isinstance(part, Attention | Mlp):
                part.join()
        return self.eval().requires_grad_(False)
