"""Fused layers compiled by torch: one code for all layers of a model and of its views."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from viasd.forward import FusedForward
from viasd.graphs import LONGEST
from viasd.layers import FusedLayer, LayerWeights, add_product, attend, feed_forward, project
from viasd.models import Kept

if TYPE_CHECKING:
    from viasd.kv_cache import SlotCache
    from viasd.masks import MaskBank

Pairing = tuple[Tensor, Tensor]
# (weights, states, (cos, sin), (keys, values), places, mask) -> states; keys and values, None where the layer has no
# attention, are written to
LayerStep = Callable[[LayerWeights, Tensor, Pairing, Pairing | None, Tensor, Tensor], Tensor]


class CompiledForward(FusedForward):
    """A fused forward whose layers are compiled, for up to LONGEST tokens; longer ones (prefill) run as they are."""

    def __init__(
        self, model: Any, cache: SlotCache, masks: MaskBank, layers: list[FusedLayer], compiler: LayerCompiler
    ) -> None:
        super().__init__(model, cache, masks, layers)
        self._compiler, self._steps = compiler, [compiler.step(layer) for layer in layers]
        self._places = torch.arange(cache.slots, device=self.head.device)
        self._ready = False

    def keeping(self, kept: Kept) -> Self:
        twin = super().keeping(kept)
        twin._steps, twin._ready = [self._compiler.step(layer) for layer in twin._layers], False
        return twin

    def __call__(self, tokens: Tensor, start: int, stop: int, last: int) -> Tensor:
        fed = stop - start
        self._ready = self._ready or self.has_cache
        if fed > LONGEST or not self._ready:
            return super().__call__(tokens, start, stop, last)
        self._cache.at(start, stop)
        cos, sin = self._cos[start:stop], self._sin[start:stop]
        masks = self._masks.fixed(start, fed, stop)
        return self._logits(self._through(tokens, cos, sin, self._places[start:stop], masks)[-last:])

    def _through(self, tokens: Tensor, cos: Tensor, sin: Tensor, places: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        states = functional.embedding(tokens, self._embed)
        all_keys, all_values = self._cache.keys, self._cache.values
        for layer, step in zip(self._layers, self._steps, strict=True):
            slots = (all_keys[layer.index], all_values[layer.index]) if layer.attention else None
            states = step(layer.weights, states, (cos, sin), slots, places, masks[layer.kind])
        return states


class LayerCompiler:
    """Compiles layers that are alike once. `backend` is one of torch's; `inductor` is the one that makes code."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._steps: dict[Hashable, LayerStep] = {}

    def step(self, layer: FusedLayer) -> LayerStep:
        """The compiled layer as a function of tensors alone, shared by all layers with such shapes."""
        sizes = tuple(None if weight is None else (weight.shape, weight.dtype) for weight in layer.weights)
        key = (layer.shape[:-1], repr(layer.shape.act), sizes, layer.attention, layer.mlp)
        if key not in self._steps:
            step = layer_step(layer, f"layer_{len(self._steps)}")
            self._steps[key] = torch.compile(step, backend=self.backend, fullgraph=True)
        return self._steps[key]


def layer_step(layer: FusedLayer, name: str) -> LayerStep:
    """A layer as a function with a code object of its own.

    torch keeps what it compiled, and how often it may recompile, by code object: the models of a pair would fill one
    place together, and what is learned of the one's shapes would be held against the other's.
    """
    shape, mlp = layer.shape, layer.mlp

    def step(
        weights: LayerWeights, states: Tensor, angles: Pairing, slots: Pairing | None, places: Tensor, mask: Tensor
    ) -> Tensor:
        if slots is not None:
            queries, keys, values = project(shape, weights, states, *angles)
            stop = mask.shape[1]
            slots[0].index_copy_(2, places, keys)
            slots[1].index_copy_(2, places, values)
            mixed = attend(shape, queries, slots[0][:, :, :stop], slots[1][:, :, :stop], mask)
            states = add_product(states, mixed, weights.out, weights.out_bias)
        return feed_forward(shape, weights, states) if mlp else states

    code = step.__code__.replace(co_name=name)
    return FunctionType(code, step.__globals__, name, step.__defaults__, step.__closure__)


def compile_obstacle(device: torch.device, backend: Any) -> str | None:
    """What compiling lacks on this machine, in a few words; None where it can be done."""
    if backend != "inductor":
        return None
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch compiles for CUDA by Triton, which is not installed or does not run"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch compiles for a CPU by a C++ compiler, and there is none (g++ or clang++, or the one named by CXX)"
    return None
