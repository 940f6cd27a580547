"""Attention masks from positions, built once and handed out as slices, in the form each model family expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # queries up to this many take a slice of the prepared mask; longer feeds (prefill) are built when asked


class MaskBank:
    """Additive masks [1, 1, n, stop] for queries at start..stop-1 over slots 0..stop-1 (a chain: slot = position).

    A family that names a type per layer (`config.layer_types`: Gemma-2, Qwen2, Qwen3) takes a dict by type; others take
    one mask for all layers, windowed when the config has a sliding window (Mistral) [checked on both pinned versions].
    """

    def __init__(self, config: Any, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._slots, self._dtype, self._device = slots, dtype, device
        window = getattr(config, "sliding_window", None)
        layer_types = getattr(config, "layer_types", None)
        self._single = layer_types is None
        if layer_types is None:
            types = {"all": window}
        else:
            windows = {"full_attention": None, "sliding_attention": window}
            unknown = sorted(set(layer_types) - set(windows))
            if unknown:
                raise ValueError(f"attention type {unknown[0]!r} is not supported; accepted: {sorted(windows)}")
            types = {kind: windows[kind] for kind in sorted(set(layer_types))}
        self._windows = types
        # Row i of a bank, shifted to begin at column slots - start, is the mask of a query at position start + i.
        # An odd row stride: attention kernels on CUDA want aligned masks, and torch copies those whose strides are not,
        # but does not look at where a slice begins.
        columns = 2 * slots + 1
        self._banks = {kind: self._build(BLOCK, slots, columns, width) for kind, width in types.items()}
        self._numbers = torch.arange(slots, device=device)

    def _build(self, queries: int, start: int, columns: int, window: int | None) -> Tensor:
        query = torch.arange(start, start + queries, device=self._device)[:, None]
        key = torch.arange(columns, device=self._device)[None, :]
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        mask = torch.zeros(queries, columns, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~seen, torch.finfo(self._dtype).min)

    def masks(self, start: int, stop: int) -> Tensor | dict[str, Tensor]:
        """What `attention_mask` must be for a forward of positions start..stop-1."""
        return self.shaped(self._slices(start, stop))

    def by_layer_type(self, start: int, stop: int) -> dict[str, Tensor | None]:
        """Masks [n, stop] by layer type ("all" where a family names none); None where one query may see all slots."""
        if stop - start == 1 and not any(width is not None and stop > width for width in self._windows.values()):
            return dict.fromkeys(self._windows)
        return dict(self._slices(start, stop))

    def fixed(self, start: int, queries: int, stop: int) -> dict[str, Tensor]:
        """Masks [queries, stop] by layer type for queries from `start` on, over as many slots as `stop` says.

        Their shape does not depend on `start`: slots behind the last query are there and not seen.
        """
        left = self._slots - start
        return {kind: bank[:queries, left : left + stop] for kind, bank in self._banks.items()}

    def at(self, positions: Tensor, stop: int) -> dict[str, Tensor]:
        """`fixed` for queries at `positions` [n], which are on the device: made there, without a number of the host."""
        slots, query = self._numbers[:stop], positions[:, None]
        masks = {}
        for kind, window in self._windows.items():
            hidden = slots > query
            if window is not None:
                hidden = hidden | (slots <= query - window)
            empty = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            masks[kind] = empty.masked_fill_(hidden, torch.finfo(self._dtype).min)
        return masks

    def alone(self, position: int, queries: int) -> dict[str, Tensor]:
        """Masks [queries, position + queries] by layer type for queries that all stand at `position`.

        The first columns are slots 0..position-1, the others the queries' own: each sees itself, and none another.
        The first n rows and position + n columns are the masks of n queries.
        """
        own = torch.eye(queries, dtype=torch.bool, device=self._device)
        age = position - self._numbers[:position].expand(queries, position)
        masks = {}
        for kind, window in self._windows.items():
            hidden = torch.cat((torch.zeros_like(age, dtype=torch.bool) if window is None else age >= window, ~own), 1)
            empty = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            masks[kind] = empty.masked_fill_(hidden, torch.finfo(self._dtype).min)
        return masks

    def branched(self, start: int, length: int, depths: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Masks [n, length + k] by layer type: queries from `start` to length - 1, then m nodes of a tree behind them.

        `depths` [k] are of all nodes in slots length, length + 1, ..; `seen` [m, k] says which of them the last m see.
        A node of depth d stands at position length - 1 + d, and sees the text as a token there would.
        """
        m, k = seen.shape
        chain = torch.arange(start, length, device=self._device)
        query = torch.cat((chain, depths[k - m :] + (length - 1)))[:, None]
        key = torch.cat((self._numbers[:length], depths + (length - 1)))
        hidden = torch.cat((self._numbers[:length] > query, _behind(len(chain), ~seen)), dim=1)
        masks = {}
        for kind, window in self._windows.items():
            masked = hidden if window is None else hidden | (key <= query - window)
            empty = torch.zeros(masked.shape, dtype=self._dtype, device=self._device)
            masks[kind] = empty.masked_fill_(masked, torch.finfo(self._dtype).min)
        return masks

    def shaped(self, masks: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Masks [n, stop] by layer type in the form that a model of this family takes."""
        shaped = {kind: mask[None, None] for kind, mask in masks.items()}
        return shaped["all"] if self._single else shaped

    def windowed(self, start: int, stop: int, window: int) -> Tensor | dict[str, Tensor]:
        """Masks [1, 1, n, s + n] of queries start..stop-1 in windows, over all before the last one and their own.

        The first s columns are positions 0..s-1, s being where the last window begins; a query sees those before its
        window. The others are the queries' own positions; it sees those of its window up to itself.
        """
        query = torch.arange(start, stop, device=self._device)[:, None]
        begin = query - (query - start) % window
        before, own = torch.arange(int(begin[-1]), device=self._device)[None], query.T
        seen = torch.cat([before < begin, (own <= query) & (own >= begin)], dim=1)
        age = query - torch.cat([before, own], dim=1)
        shaped = {}
        for kind, width in self._windows.items():
            hidden = ~seen if width is None else ~seen | (age >= width)
            mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
            shaped[kind] = mask.masked_fill_(hidden, torch.finfo(self._dtype).min)[None, None]
        return shaped["all"] if self._single else shaped

    def _slices(self, start: int, stop: int) -> dict[str, Tensor]:
        if stop - start > BLOCK:
            return {kind: self._build(stop - start, start, stop, width) for kind, width in self._windows.items()}
        left = self._slots - start
        return {kind: bank[: stop - start, left : left + stop] for kind, bank in self._banks.items()}


def _behind(queries: int, hidden: Tensor) -> Tensor:
    """`hidden` [m, k] below so many rows for which all of it is hidden."""
    return torch.cat((hidden.new_ones(queries, hidden.shape[1]), hidden)) if queries else hidden
