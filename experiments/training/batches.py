"""Which documents a step sees, by seed and number alone, and what the target computed of them, online or cached."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from baselines.eagle.features import read_target
from baselines.eagle.recipes import Recipe
from baselines.eagle.ttt import Batch
from experiments.store import read_json, replace_json
from experiments.training.documents import Document

SORTED = 16  # batches whose documents are sorted by length together: less filling, and still another mix each time
CACHED = torch.bfloat16


class Order:
    """The documents of each step. Every epoch draws its own batches; a last one that would be too small is left out."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed = lengths, min(batch, len(lengths)), seed
        self._epoch = lru_cache(maxsize=1)(self._draw)

    @property
    def per_epoch(self) -> int:
        return len(self._lengths) // self._batch

    def documents(self, step: int) -> list[int]:
        """Their numbers, of a step counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        return self._epoch(epoch)[place]

    def _draw(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}:{epoch}")
        order = rng.sample(range(len(self._lengths)), self.per_epoch * self._batch)
        batches = []
        for start in range(0, len(order), SORTED * self._batch):
            group = sorted(order[start : start + SORTED * self._batch], key=lambda one: (self._lengths[one], one))
            batches += [group[place : place + self._batch] for place in range(0, len(group), self._batch)]
        rng.shuffle(batches)
        return batches


class Features(Protocol):
    """Features [T, F] and states [T, width] of documents."""

    def read(self, numbers: Sequence[int], ids: Tensor) -> tuple[Tensor, Tensor]: ...


class Online:
    """The target reads every batch."""

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        self._model, self._taps = model, taps

    def read(self, numbers: Sequence[int], ids: Tensor) -> tuple[Tensor, Tensor]:
        return read_target(self._model, ids, self._taps)


class Cached:
    """The target has read each document once, into a file of bfloat16: [tokens of all documents, F + width].

    Without taps the features are the states, which are kept alone. Writing goes on where it was interrupted.
    """

    def __init__(self, path: Path, model: Any, taps: Sequence[int], documents: Sequence[Document], batch: int) -> None:
        own = model.get_output_embeddings().weight.shape[1]
        self._split = len(taps) * own
        width = self._split + own
        starts = torch.tensor([0, *(len(one.ids) for one in documents)]).cumsum(0)
        self._starts, self._device = starts.tolist(), model.device
        path.parent.mkdir(parents=True, exist_ok=True)
        total = self._starts[-1]
        self._rows = torch.from_file(str(path), shared=True, size=total * width, dtype=CACHED).view(total, width)
        self._write(path.with_suffix(".json"), Online(model, taps), documents, batch)

    def _write(self, progress: Path, online: Online, documents: Sequence[Document], batch: int) -> None:
        done = (read_json(progress) or {"documents": 0})["documents"]
        with tqdm(total=len(documents), initial=done, desc="features", leave=False, disable=None) as bar:
            for start in range(done, len(documents), batch):
                some = documents[start : start + batch]
                features, states = online.read((), fill([one.ids for one in some]).to(self._device))
                joined = torch.cat((features, states), dim=-1) if self._split else states
                for place, one in enumerate(some):
                    rows = self._rows[self._starts[start + place] : self._starts[start + place + 1]]
                    rows.copy_(joined[place, : len(one.ids)])
                replace_json(progress, {"documents": start + len(some)})
                bar.update(len(some))

    def read(self, numbers: Sequence[int], ids: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.zeros(*ids.shape, self._rows.shape[1], dtype=CACHED)
        for place, number in enumerate(numbers):
            rows = self._rows[self._starts[number] : self._starts[number + 1]]
            found[place, : len(rows)] = rows
        found = found.to(ids.device)
        states = found[..., self._split :]
        return (found[..., : self._split] if self._split else states), states


def fill(lines: Sequence[Sequence[int]], width: int = 0) -> Tensor:
    """Ids [lines, the longest or `width`], filled up on the right with 0."""
    ids = torch.zeros(len(lines), max(width, *map(len, lines)), dtype=torch.long)
    for row, line in enumerate(lines):
        ids[row, : len(line)] = torch.tensor(line)
    return ids


class Batches:
    """The batch of a step; of several processes, this one's part of it."""

    def __init__(
        self, documents: Sequence[Document], order: Order, features: Features, recipe: Recipe, device: torch.device
    ) -> None:
        self._documents, self._order, self._features, self._recipe = documents, order, features, recipe
        self._device = device
        self.rank, self.processes, self.seed = 0, 1, 0

    def load(self, step: int) -> Batch:
        """As wide as the longest document of all processes, so that what fills it up is the same for any number."""
        numbers = self._order.documents(step)
        width = max(len(self._documents[one].ids) for one in numbers)
        own = numbers[self.rank :: self.processes]
        some = [self._documents[one] for one in own]
        ids = fill([one.ids for one in some], width).to(self._device)
        features, states = self._features.read(own, ids)
        stops = torch.tensor([len(one.ids) for one in some], device=self._device)
        firsts = torch.tensor([one.first for one in some], device=self._device)
        seed = hash((self.seed, step, self.rank))
        return Batch(ids, self._disturb(features, own, step), states, firsts, stops, seed % 2**63)

    def _disturb(self, features: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        """Features [B, T, F] with the recipe's noise, drawn by seed, step and document."""
        scales = [self._recipe.noise(len(self._documents[one].ids)) for one in numbers]
        if not any(scales):
            return features
        drawn = []
        for number, scale in zip(numbers, scales, strict=True):
            generator = torch.Generator().manual_seed(hash((self.seed, step, number)) % 2**63)
            drawn.append((torch.rand(features.shape[1:], generator=generator) * 2 - 1) * scale)
        return features + torch.stack(drawn).to(features)


def count_answers(documents: Sequence[Document], vocabulary: int) -> Tensor:
    """How often each id [vocabulary] is an answer token."""
    tokens = [token for one in documents for token in one.ids[one.first :]]
    return torch.bincount(torch.tensor(tokens), minlength=vocabulary)
