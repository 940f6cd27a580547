"""One forward of a model on the slot cache: through the library's modules, or through the same layers written out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from viasd.layers import FusedLayer, normalize
from viasd.models import Kept, attention_layers, make_view, mlp_layers
from viasd.taps import Taps, entered
from viasd.trees import Branch

if TYPE_CHECKING:
    from viasd.kv_cache import SlotCache, Store
    from viasd.masks import MaskBank

# Decoder layers of these classes are x + attention(norm(x)), then x + mlp(norm(x)), with root-mean-square norms,
# rotary positions and a gated mlp; Qwen-2 adds biases, Qwen-3 norms of queries and keys.
PLAIN_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # angles depend on the position alone
LayerStep = Callable[[int, Tensor], Tensor]


class Forward(Protocol):
    """Reads tokens [n] into cache slots start..stop-1; returns raw logits [last, V] of the last ones, at least one."""

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor: ...

    def tapped(self, tokens: Tensor, start: int, stop: int, last: int, layers: Collection[int]) -> tuple[Tensor, Taps]:
        """The same, with what entered these layers."""

    def branched(
        self, tokens: Tensor, branch: Branch, last: int, layers: Collection[int] | None
    ) -> tuple[Tensor, Taps | None]:
        """The same for tokens that end with nodes of a tree; without `layers` nothing is tapped."""


class PlainForward(Forward, Protocol):
    """One that is not recorded, and so can be changed while it is in use."""

    def keeping(self, kept: Kept) -> PlainForward:
        """The forward of the view with these layers, or branches of layers, on the same cache and weights."""

    def peek(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        """Logits as of a call, but the cache stays as it is: it gives what lies before `start`."""

    def alone(self, position: int, most: int) -> LayerStep:
        """Of a whole model: a function of (layer, states [n, width]) that gives what the layer makes of each of them.

        At most `most` states at once. Each stands at `position`, and sees itself and what the cache holds before it;
        none sees another.
        """


class ModuleForward:
    """The model as the library wrote it. Works for every decoder-only family."""

    def __init__(self, model: Any, cache: SlotCache, masks: MaskBank, indices: Sequence[int] | None = None) -> None:
        """`indices`: of the model's layers in the whole model; None: it is whole."""
        self._model, self._cache, self._masks = model, cache, masks
        self._indices = range(len(model.get_decoder().layers)) if indices is None else indices
        self._positions = torch.arange(cache.slots, device=model.device)[None]

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        self._cache.at(start, stop)
        return self._run(tokens, start, stop, last, self._cache)

    def tapped(self, tokens: Tensor, start: int, stop: int, last: int, layers: Collection[int]) -> tuple[Tensor, Taps]:
        return self._tapping(lambda: self(tokens, start, stop, last), start, layers)

    def branched(
        self, tokens: Tensor, branch: Branch, last: int, layers: Collection[int] | None
    ) -> tuple[Tensor, Taps | None]:
        self._cache.at(branch.place, branch.stop)
        nodes = branch.nodes
        masks = self._masks.shaped(self._masks.branched(branch.start, branch.length, nodes.depths, nodes.seen))

        def run() -> Tensor:
            return self._output(tokens, branch.positions()[None], masks, self._cache, last)

        return (run(), None) if layers is None else self._tapping(run, branch.start, layers)

    def _tapping(self, run: Callable[[], Tensor], start: int, layers: Collection[int]) -> tuple[Tensor, Taps]:
        taps, parts = Taps(start, layers), self._model.get_decoder().layers
        noted = entered(layers, self._indices)
        hooks = [
            part.register_forward_pre_hook(_note_entering(taps, index), with_kwargs=True)
            for index, part in zip(self._indices, parts, strict=True)
            if index in noted
        ]
        hooks.append(parts[-1].register_forward_hook(_note_final(taps)))
        try:
            logits = run()
        finally:
            for hook in hooks:
                hook.remove()
        return logits, taps

    def keeping(self, kept: Kept) -> ModuleForward:
        indices = sorted({*attention_layers(kept), *mlp_layers(kept)})
        return ModuleForward(make_view(self._model, kept), self._cache, self._masks, indices)

    def peek(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        return self._run(tokens, start, stop, last, self._cache.passing(start, stop))

    def alone(self, position: int, most: int) -> LayerStep:
        base, masks = self._model.get_decoder(), self._masks.alone(position, most)
        where = self._positions[:, position : position + 1]

        def step(index: int, states: Tensor) -> Tensor:
            layer, count = base.layers[index], states.shape[0]
            places = where.expand(1, count)
            found = layer(
                states[None],
                attention_mask=masks[layer_kind(base.config, index)][None, None, :count, : position + count],
                position_ids=places,
                past_key_values=self._cache.passing(position, position + count),
                use_cache=True,
                position_embeddings=base.rotary_emb(states[None], places),
            )
            return states_of(found)

        return step

    def _run(self, tokens: Tensor, start: int, stop: int, last: int, cache: SlotCache) -> Tensor:
        return self._output(tokens, self._positions[:, start:stop], self._masks.masks(start, stop), cache, last)

    def _output(
        self, tokens: Tensor, positions: Tensor, masks: Tensor | dict[str, Tensor], cache: SlotCache, last: int
    ) -> Tensor:
        output = self._model(
            input_ids=tokens[None],
            position_ids=positions,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        logits: Tensor = output.logits[0]
        return logits


def layer_kind(config: Any, index: int) -> str:
    """The type of a layer's attention; "all" where a family names none."""
    types = getattr(config, "layer_types", None)
    return types[index] if types else "all"


def states_of(output: Any) -> Tensor:
    """The states [n, width] in what a decoder layer returns, which some releases wrap in a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states[0]


def _note_entering(taps: Taps, index: int) -> Callable[..., None]:
    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taps.enter(index, (args[0] if args else kwargs["hidden_states"])[0])

    return note


def _note_final(taps: Taps) -> Callable[..., None]:
    def note(_: Any, args: tuple[Any, ...], output: Any) -> None:
        taps.leave(states_of(output))

    return note


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
        """Whether every layer that attends has its place in the cache."""
        return all(layer.index in self._cache.keys for layer in self._layers if layer.attention)

    def keeping(self, kept: Kept) -> Self:
        attention, mlp = {*attention_layers(kept)}, {*mlp_layers(kept)}
        twin = copy.copy(self)
        twin._layers = [
            layer.keeping(layer.index in attention, layer.index in mlp)
            for layer in self._layers
            if layer.index in attention | mlp
        ]
        return twin

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        self._cache.at(start, stop)
        return self._logits(self._run(tokens, start, stop, self._cache.update)[-last:])

    def tapped(self, tokens: Tensor, start: int, stop: int, last: int, layers: Collection[int]) -> tuple[Tensor, Taps]:
        self._cache.at(start, stop)
        taps = Taps(start, layers)
        states = self._run(tokens, start, stop, self._cache.update, taps)
        return self._logits(states[-last:]), taps

    def branched(
        self, tokens: Tensor, branch: Branch, last: int, layers: Collection[int] | None
    ) -> tuple[Tensor, Taps | None]:
        self._cache.at(branch.place, branch.stop)
        nodes, positions = branch.nodes, branch.positions()
        masks = self._masks.branched(branch.start, branch.length, nodes.depths, nodes.seen)
        turns = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        taps = None if layers is None else Taps(branch.start, layers)
        states = self._pass(tokens, turns, masks, self._cache.update, taps)
        return self._logits(states[-last:]), taps

    def peek(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        return self._logits(self._run(tokens, start, stop, self._cache.beside(start))[-last:])

    def alone(self, position: int, most: int) -> LayerStep:
        masks, store = self._masks.alone(position, most), self._cache.beside(position)
        cos, sin = self._cos[position : position + 1], self._sin[position : position + 1]

        def step(index: int, states: Tensor) -> Tensor:
            layer, count = self._layers[index], states.shape[0]
            return layer(states, cos, sin, store, masks[layer.kind][:count, : position + count])

        return step

    def _run(self, tokens: Tensor, start: int, stop: int, store: Store, taps: Taps | None = None) -> Tensor:
        """States [n, width] behind the last layer."""
        turns = self._cos[start:stop], self._sin[start:stop]
        return self._pass(tokens, turns, self._masks.by_layer_type(start, stop), store, taps)

    def _pass(
        self,
        tokens: Tensor,
        turns: tuple[Tensor, Tensor],
        masks: Mapping[str, Tensor | None],
        store: Store,
        taps: Taps | None = None,
    ) -> Tensor:
        states = functional.embedding(tokens, self._embed)
        for layer in self._layers:
            if taps is not None:
                taps.enter(layer.index, states)
            states = layer(states, *turns, store, masks[layer.kind])
        if taps is not None:
            taps.leave(states)
        return states

    def fixed(self, tokens: Tensor, positions: Tensor, places: Tensor, stop: int) -> Tensor:
        """Logits [n, V] of tokens at `positions` [n], written to the slots `places` [n], over slots 0..stop-1.

        All of it happens on the device, whatever the positions are. The cache has to exist (any earlier forward).
        """
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        return self._logits(self._through(tokens, cos, sin, places, self._masks.at(positions, stop)))

    def _through(self, tokens: Tensor, cos: Tensor, sin: Tensor, places: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """States [n, width] behind the last layer, with cache slots on the device."""
        store = self._cache.put(places, next(iter(masks.values())).shape[-1])
        return self._pass(tokens, (cos, sin), masks, store)

    def _logits(self, states: Tensor) -> Tensor:
        return functional.linear(normalize(states, self._norm, self._eps), self._head)


def rotations(base: Any, slots: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [slots, 1, head_dim], so that x * cos + swap_halves(x) * sin rotates x."""
    positions = torch.arange(slots, device=base.embed_tokens.weight.device)[None]
    cos, sin = base.rotary_emb(base.embed_tokens.weight[:1], positions)
    half = sin.shape[-1] // 2
    return cos[0][:, None], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]


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
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "layers on several devices"
    return "a head with a bias" if model.lm_head.bias is not None else None


def linear_parts(layer: Any) -> list[Any]:
    """The products of a plain layer; of one with a branch left out, those that are there."""
    products = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    parts = [(getattr(layer, branch), names) for branch, names in products.items()]
    return [getattr(part, name) for part, names in parts for name in names if hasattr(part, name)]
