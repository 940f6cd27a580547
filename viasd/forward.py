"""One forward of a model on the slot cache: through the library's modules, or through the same layers written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self._norm = Norm(base.norm)
        self._head: Tensor = model.lm_head.weight
        self._cos, self._sin = rotations(base, cache.slots)

    @property
    def device(self) -> torch.device:
        return self._embed.device

    @property
    def has_cache(self) -> bool:
        """Whether every layer has its place in the cache."""
        return all(layer.index in self._cache.keys for layer in self._layers)

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        self._cache.at(start, stop)
        masks = self._masks.by_layer_type(start, stop)
        states = self._through(tokens, self._cos[start:stop], self._sin[start:stop], self._cache.update, masks)
        return functional.linear(self._norm(states[-last:]), self._head)

    def fixed(self, tokens: Tensor, positions: Tensor, masks: Mapping[str, Tensor], stop: int) -> Tensor:
        """Logits [n, V] of tokens at `positions` [n], over slots 0..stop-1, as far as the masks [n, stop] show them.

        All of it happens on the device, whatever the positions are. The cache has to exist (any earlier forward).
        """
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        states = self._through(tokens, cos, sin, self._cache.put(positions, stop), masks)
        return functional.linear(self._norm(states), self._head)

    def _through(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, store: Store, masks: Mapping[str, Tensor | None]
    ) -> Tensor:
        states = functional.embedding(tokens, self._embed)
        for layer in self._layers:
            states = layer(states, cos, sin, store, masks[layer.kind])
        return states


def rotations(base: Any, slots: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [slots, 1, head_dim], so that x * cos + swap_halves(x) * sin rotates x."""
    positions = torch.arange(slots, device=base.embed_tokens.weight.device)[None]
    cos, sin = base.rotary_emb(base.embed_tokens.weight[:1], positions)
    half = sin.shape[-1] // 2
    return cos[0][:, None], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]


class Norm:
    """A root-mean-square norm as the library computes it: in float32, whatever the model's type."""

    def __init__(self, module: Any) -> None:
        self._weight: Tensor = module.weight
        self._shape, self._eps = tuple(module.weight.shape), float(module.variance_epsilon)
        self._plain = module.weight.dtype == torch.float32

    def __call__(self, states: Tensor) -> Tensor:
        if self._plain:
            return functional.rms_norm(states, self._shape, self._weight, self._eps)
        scaled = functional.rms_norm(states.float(), self._shape, None, self._eps)
        return self._weight * scaled.to(states.dtype)


class FusedLayer:
    """One decoder layer on states [n, width]. Its joined weights replace the module's, which become slices of them."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        types = getattr(attention.config, "layer_types", None)  # the model's own, which a view's may not be
        self.kind: str = types[self.index] if types else "all"
        self._width: int = attention.head_dim
        self._keys = attention.k_proj.out_features // self._width
        self._queries = attention.q_proj.out_features // self._width
        self._scale: float = attention.scaling
        self._before, self._between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self._head_norms = [Norm(norm) for norm in norms if norm is not None]
        self._qkv, self._qkv_bias = join([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gated, self._gated_bias = join([mlp.gate_proj, mlp.up_proj])
        self._out, self._down = Ending(attention.o_proj), Ending(mlp.down_proj)
        self._act: Callable[[Tensor], Tensor] = mlp.act_fn

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, store: Store, mask: Tensor | None) -> Tensor:
        n, queries, keys = states.shape[0], self._queries, self._keys
        joined = functional.linear(self._before(states), self._qkv, self._qkv_bias).view(n, -1, self._width)
        turned = joined[:, : queries + keys]
        if self._head_norms:
            query_norm, key_norm = self._head_norms
            turned = torch.cat((query_norm(turned[:, :queries]), key_norm(turned[:, queries:])), dim=1)
        turned = torch.addcmul(turned * cos, turned.roll(self._width // 2, -1), sin)
        heads = turned.transpose(0, 1)[None]
        values = joined[:, queries + keys :].transpose(0, 1)[None]
        all_keys, all_values = store(heads[:, queries:], values, self.index)
        mixed = functional.scaled_dot_product_attention(
            heads[:, :queries], all_keys, all_values, attn_mask=mask, scale=self._scale, enable_gqa=queries != keys
        )
        states = self._out(mixed[0].transpose(0, 1).reshape(n, -1), states)
        gate, up = functional.linear(self._between(states), self._gated, self._gated_bias).chunk(2, dim=-1)
        return self._down(self._act(gate) * up, states)


class Ending:
    """The product at the end of a branch, with what the branch began from added."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight, self._bias = module.weight.t(), module.bias

    def __call__(self, inner: Tensor, residual: Tensor) -> Tensor:
        if self._bias is not None:
            residual = residual + self._bias
        return torch.addmm(residual, inner, self._weight)


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
