"""One forward of a model on the slot cache: through the library's modules, or through the same layers written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from viasd.branches import is_whole

if TYPE_CHECKING:
    from viasd.kv_cache import SlotCache, Store
    from viasd.masks import MaskBank

# Decoder layers of these classes are x + attention(norm(x)), then x + mlp(norm(x)), with root-mean-square norms,
# rotary positions and a gated mlp; Qwen-2 adds biases, Qwen-3 norms of queries and keys.
PLAIN_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # angles depend on the position alone


class Forward(Protocol):
    """Reads tokens [n] into cache slots start..stop-1; returns raw logits [last, V] of the last ones, at least one."""

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor: ...


class ModuleForward:
    """The model as the library wrote it. Works for every decoder-only family."""

    def __init__(self, model: Any, cache: SlotCache, masks: MaskBank) -> None:
        self._model, self._cache, self._masks = model, cache, masks
        self._positions = torch.arange(cache.slots, device=model.device)[None]

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        self._cache.at(start, stop)
        output = self._model(
            input_ids=tokens[None],
            position_ids=self._positions[:, start:stop],
            attention_mask=self._masks.masks(start, stop),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
        )
        logits: Tensor = output.logits[0]
        return logits


class FusedForward:
    """The same sums with fewer operations: at one token a small model's time goes into starting them.

    Queries, keys and values are one product, so are the gate and the input of the mlp; residuals are added by the
    products that end a branch; a norm is one operation; angles come from a table. Weights are shared with the modules.
    """

    def __init__(self, model: Any, cache: SlotCache, masks: MaskBank, layers: list[FusedLayer]) -> None:
        base = model.get_decoder()
        self._cache, self._masks, self._layers = cache, masks, layers
        self._embed: Tensor = base.embed_tokens.weight
        self._norm, self._eps = base.norm.weight, float(base.norm.variance_epsilon)
        self._head: Tensor = model.lm_head.weight
        self._cos, self._sin = rotations(base, cache.slots + cache.spare)

    @property
    def head(self) -> Tensor:
        """Weights [V, width] of the last product."""
        return self._head

    @property
    def has_cache(self) -> bool:
        """Whether every layer has its place in the cache."""
        return all(layer.index in self._cache.keys for layer in self._layers)

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        self._cache.at(start, stop)
        masks = self._masks.by_layer_type(start, stop)
        states = functional.embedding(tokens, self._embed)
        cos, sin, store = self._cos[start:stop], self._sin[start:stop], self._cache.update
        for layer in self._layers:
            states = layer(states, cos, sin, store, masks[layer.kind])
        return self._logits(states[-last:])

    def fixed(self, tokens: Tensor, positions: Tensor, places: Tensor, stop: int) -> Tensor:
        """Logits [n, V] of tokens at `positions` [n], written to the slots `places` [n], over slots 0..stop-1.

        All of it happens on the device, whatever the positions are. The cache has to exist (any earlier forward).
        """
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        return self._logits(self._through(tokens, cos, sin, places, self._masks.at(positions, stop)))

    def _through(self, tokens: Tensor, cos: Tensor, sin: Tensor, places: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """States [n, width] behind the last layer, with cache slots on the device."""
        states = functional.embedding(tokens, self._embed)
        store = self._cache.put(places, next(iter(masks.values())).shape[-1])
        for layer in self._layers:
            states = layer(states, cos, sin, store, masks[layer.kind])
        return states

    def _logits(self, states: Tensor) -> Tensor:
        return functional.linear(normalize(states, self._norm, self._eps), self._head)


def rotations(base: Any, slots: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [slots, 1, head_dim], so that x * cos + swap_halves(x) * sin rotates x."""
    positions = torch.arange(slots, device=base.embed_tokens.weight.device)[None]
    cos, sin = base.rotary_emb(base.embed_tokens.weight[:1], positions)
    half = sin.shape[-1] // 2
    return cos[0][:, None], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]


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
    """One decoder layer on states [n, width]. Its joined weights replace the module's, which become slices of them."""

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

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, store: Store, mask: Tensor | None) -> Tensor:
        queries, keys, values = project(self.shape, self.weights, states, cos, sin)
        mixed = attend(self.shape, queries, *store(keys, values, self.index), mask)
        return finish(self.shape, self.weights, states, mixed)


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


def finish(shape: LayerShape, weights: LayerWeights, states: Tensor, mixed: Tensor) -> Tensor:
    """States behind the layer: both branches end in a product with what they began from added."""
    states = add_product(states, mixed, weights.out, weights.out_bias)
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


def obstacle(model: Any) -> str | None:
    """Why a model cannot run fused, in a few words; None where it can."""
    base = model.get_decoder()
    names = {type(layer).__name__ for layer in base.layers}
    if names - PLAIN_LAYERS:
        return f"layers of class {min(names - PLAIN_LAYERS)}"
    if not all(map(is_whole, base.layers)):
        return "layers with a branch left out"
    rotation = getattr(getattr(base, "rotary_emb", None), "rope_type", None)
    if rotation not in STATIC_ROTATIONS:
        return f"rotary positions of type {rotation}"
    parts = [part for layer in base.layers for part in linear_parts(layer)]
    unlike = {type(part).__name__ for part in [*parts, model.lm_head] if type(part) is not nn.Linear}
    if unlike:
        return f"products of class {min(unlike)}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "modules with hooks"
    return "a head with a bias" if model.lm_head.bias is not None else None


def linear_parts(layer: Any) -> list[Any]:
    """The products of a plain layer."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip
