"""A slot-addressed key-value cache: the caller says which slots a forward writes and how many it may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

Store = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # new keys, values of a layer -> all that are seen


class SlotCache(Cache):
    """Keys and values [1, heads, slots, head_dim] per layer, allocated at a layer's first write.

    A forward is announced by `at(start, stop)`: its tokens go to slots start..stop-1 and it sees slots 0..stop-1.
    Nothing is ever cropped: a rewind is a smaller `start` next time. Layers are addressed by their original index,
    so a view with fewer layers writes the same store as its model. `spare` slots lie behind the others: recorded
    forwards write there what is not to be kept, and nothing sees them.
    """

    is_compileable = False

    def __init__(self, slots: int, spare: int = 0) -> None:
        super().__init__(layers=[])
        self.slots, self.spare = slots, spare
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._start = 0
        self._stop = 0

    def at(self, start: int, stop: int) -> None:
        """Announce the next forward: it writes slots start..stop-1. Raises ValueError beyond the capacity."""
        if stop > self.slots:
            raise ValueError(f"the sequence needs {stop} cache slots, the cache has {self.slots}")
        self._start, self._stop = start, stop

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple:
        keys = self.keys.get(layer_idx)
        if keys is None:
            keys = self.keys[layer_idx] = self._allocate(key_states)
            self.values[layer_idx] = self._allocate(value_states)
        values = self.values[layer_idx]
        keys[:, :, self._start : self._stop] = key_states
        values[:, :, self._start : self._stop] = value_states
        return keys[:, :, : self._stop], values[:, :, : self._stop]

    def gather(self, places: Tensor, start: int) -> None:
        """What stands in the slots `places` [n] stands in slots start, start + 1, .. from now on."""
        for store in (self.keys, self.values):
            for states in store.values():
                states[:, :, start : start + places.shape[0]] = states.index_select(2, places)

    def put(self, places: Tensor, stop: int) -> Store:
        """`update` with the slots on the device: `places` [n] are written, and the first `stop` are seen.

        Nothing here depends on a number that the host knows, so a recorded forward stays right for other positions.
        """

        def store(key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
            keys, values = self.keys[layer_idx], self.values[layer_idx]
            keys.index_copy_(2, places, key_states)
            values.index_copy_(2, places, value_states)
            return keys[:, :, :stop], values[:, :, :stop]

        return store

    def beside(self, start: int) -> Store:
        """`update` that keeps nothing: what is new stands behind the first `start` slots, for its own layer alone."""

        def store(key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
            keys, values = self.keys[layer_idx][:, :, :start], self.values[layer_idx][:, :, :start]
            return torch.cat((keys, key_states), dim=2), torch.cat((values, value_states), dim=2)

        return store

    def passing(self, start: int, stop: int) -> SlotCache:
        """A cache for one forward over start..stop-1 that sees this one's first `start` slots and writes nothing."""
        return _PassingCache(self, start, stop)

    def _allocate(self, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        return torch.zeros(batch, heads, self.slots + self.spare, width, dtype=states.dtype, device=states.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._stop, 0

    @property
    def is_sliding(self) -> list[bool]:  # type: ignore[override]
        return [False]

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(t.numel() * t.element_size() for store in (self.keys, self.values) for t in store.values())


class _PassingCache(SlotCache):
    def __init__(self, cache: SlotCache, start: int, stop: int) -> None:
        super().__init__(cache.slots)
        self._store = cache.beside(start)
        self.at(start, stop)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple:
        return self._store(key_states, value_states, layer_idx)
