"""One process loads a pair once: the jobs of a sweep that follow each other share its models, and nothing else."""

from __future__ import annotations

import gc
from typing import Any

import torch

from experiments import identity
from viasd.models import Pair, load_model


class ModelKeeper:
    """Models of one pair, type, device and mode by role; those of another one are let go before it is loaded.

    Engines are made anew for every run: caches, views, masks, recordings and what arms remember are never shared.
    """

    def __init__(self) -> None:
        self.on = False
        self.loads = 0
        self._key: Any = None
        self._models: dict[str, Any] = {}

    def load(self, pair: Pair, role: str, dtype: torch.dtype, device: torch.device, mode: str) -> Any:
        """A model of the pair: the kept one, else loaded. Raises PairError where that fails."""
        if not self.on:
            return self._load(pair, role, dtype, device)
        key = (identity.pair_identity(pair), identity.loading_identity(pair), dtype, device, mode)
        if key != self._key:
            self.clear()
            self._key = key
        if role not in self._models:
            self._models[role] = self._load(pair, role, dtype, device)
        return self._models[role]

    def clear(self) -> None:
        """Let go of all models."""
        self._key, self._models = None, {}
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _load(self, pair: Pair, role: str, dtype: torch.dtype, device: torch.device) -> Any:
        self.loads += 1
        return load_model(pair, role, dtype, device)


KEEPER = ModelKeeper()
