"""Decoder layers written out: the library's sums with fewer operations, whole or with one branch left out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from viasd.kv_cache import Store


def activation(module: Any) -> Callable[[Tensor], Tensor]:
    """The function of an activation module, without the module's own calls where that is one operation."""
    return functional.silu if type(module).__name__ in ("SiLU", "SiLUActivation") else module


def normalize(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A root-mean-square norm as the library computes it: in float32, whatever the model's type."""
    if weight.dtype == torch.float32:
        return functional.rms_norm(states, weight.shape, weight, eps)
    scaled = functional.rms_norm(states.float(), weight.shape, None, eps)
    return weight * scaled.to(states.dtype)


class LayerShape(NamedTuple):
    """What the layers of a model have in common."""

    queries: int  # heads
    keys: int
    width: int  # of a head
    scale: float
    eps: float
    act: Callable[[Tensor], Tensor]


class LayerWeights(NamedTuple):
    """The weights of one layer, joined; `out` and `down` transposed. What a family has not is None."""

    before: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    between: Tensor
    gated: Tensor
    gated_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FusedLayer:
    """One decoder layer on states [n, width]. Its joined weights replace the module's, which become slices of them.

    Without `attention` or without `mlp` that branch adds nothing, and neither it nor the norm before it is computed.
    """

    attention = mlp = True

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        types = getattr(attention.config, "layer_types", None)  # the model's own, which a view's may not be
        self.kind: str = types[self.index] if types else "all"
        width = attention.head_dim
        heads = attention.q_proj.out_features // width, attention.k_proj.out_features // width
        norm = layer.input_layernorm
        self.shape = LayerShape(*heads, width, attention.scaling, float(norm.variance_epsilon), activation(mlp.act_fn))
        query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        qkv, qkv_bias = join([attention.q_proj, attention.k_proj, attention.v_proj])
        gated, gated_bias = join([mlp.gate_proj, mlp.up_proj])
        self.weights = LayerWeights(
            before=norm.weight,
            qkv=qkv,
            qkv_bias=qkv_bias,
            query_norm=None if query_norm is None else query_norm.weight,
            key_norm=None if key_norm is None else key_norm.weight,
            out=attention.o_proj.weight.t(),
            out_bias=attention.o_proj.bias,
            between=layer.post_attention_layernorm.weight,
            gated=gated,
            gated_bias=gated_bias,
            down=mlp.down_proj.weight.t(),
            down_bias=mlp.down_proj.bias,
        )

    def keeping(self, attention: bool, mlp: bool) -> FusedLayer:
        """This layer, or one on the same weights with only these branches."""
        if attention and mlp:
            return self
        twin = copy.copy(self)
        twin.attention, twin.mlp = attention, mlp
        return twin

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, store: Store, mask: Tensor | None) -> Tensor:
        if self.attention:
            queries, keys, values = project(self.shape, self.weights, states, cos, sin)
            mixed = attend(self.shape, queries, *store(keys, values, self.index), mask)
            states = add_product(states, mixed, self.weights.out, self.weights.out_bias)
        return feed_forward(self.shape, self.weights, states) if self.mlp else states


def project(
    shape: LayerShape, weights: LayerWeights, states: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [1, heads, n, head_dim] of states [n, width]; the first two rotated."""
    queries, turning = shape.queries, shape.queries + shape.keys
    joined = functional.linear(normalize(states, weights.before, shape.eps), weights.qkv, weights.qkv_bias)
    joined = joined.view(states.shape[0], -1, shape.width)
    turned = joined[:, :turning]
    if weights.query_norm is not None and weights.key_norm is not None:
        normed = normalize(turned[:, :queries], weights.query_norm, shape.eps)
        turned = torch.cat((normed, normalize(turned[:, queries:], weights.key_norm, shape.eps)), dim=1)
    turned = torch.addcmul(turned * cos, turned.roll(shape.width // 2, -1), sin)
    heads = turned.transpose(0, 1)[None]
    return heads[:, :queries], heads[:, queries:], joined[:, turning:].transpose(0, 1)[None]


def attend(shape: LayerShape, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """What n queries find among all keys: [n, heads * head_dim]."""
    mixed = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=shape.scale, enable_gqa=shape.queries != shape.keys
    )
    return mixed[0].transpose(0, 1).reshape(queries.shape[2], -1)


def feed_forward(shape: LayerShape, weights: LayerWeights, states: Tensor) -> Tensor:
    """States [n, width] with what the mlp makes of them added."""
    gated = functional.linear(normalize(states, weights.between, shape.eps), weights.gated, weights.gated_bias)
    gate, up = gated.chunk(2, dim=-1)
    return add_product(states, shape.act(gate) * up, weights.down, weights.down_bias)


def add_product(residual: Tensor, inner: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """residual + inner @ weight + bias, as one product where there is no bias."""
    return torch.addmm(residual if bias is None else residual + bias, inner, weight)


def join(modules: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The weights of products of the same input, and their biases, in one piece each: the modules keep slices of it."""
    weight = torch.cat([module.weight for module in modules])
    bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
    sizes = [module.out_features for module in modules]
    for module, rows in zip(modules, weight.split(sizes), strict=True):
        module.weight = nn.Parameter(rows, requires_grad=False)
    if bias is not None:
        for module, rows in zip(modules, bias.split(sizes), strict=True):
            module.bias = nn.Parameter(rows, requires_grad=False)
    return weight, bias
