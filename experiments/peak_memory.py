"""What an arm needs of memory: its readers' parameters and caches, and what an accelerator allocates above them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from viasd.decode import Speculative
from viasd.reader import Reader


class DevicePeak:
    """Bytes that an accelerator had allocated at the most inside, above what it had before (`above`); 0 on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before, self.above = device, 0, 0

    def __enter__(self) -> DevicePeak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.above = torch.cuda.max_memory_allocated(self._device) - self._before


def memory_of(decoder: Speculative) -> int:
    """Bytes of an arm's distinct parameters and caches; a cache is made by the first forward and has none before it."""
    parameters: dict[int, int] = {}
    caches: dict[int, int] = {}
    for reader in decoder.readers.opened():
        assert isinstance(reader, Reader)
        for tensor in reader.model.parameters():
            parameters[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        caches[id(reader.cache)] = reader.cache.memory_bytes
    return sum(parameters.values()) + sum(caches.values())


def memory_of_arms(
    arms: Mapping[str, Speculative], peaks: Mapping[str, int], before: Mapping[str, float], device: torch.device
) -> dict[str, float]:
    """Bytes by arm: parameters, caches and the highest peak above them, of this start or of one `before`.

    On an accelerator an arm without a measured peak is left out: it would seem to need less than it does.
    """
    known = {name: decoder for name, decoder in arms.items() if name in peaks or device.type != "cuda"}
    now = {name: float(memory_of(decoder) + peaks.get(name, 0)) for name, decoder in known.items()}
    return {**before, **{name: max(value, before.get(name, 0.0)) for name, value in now.items()}}
