"""Every random draw of the project, and the processing of logits into the rows that draws are made from."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from viasd.spec import spec

Stream = Literal["draft", "coin", "replacement", "gate"]


@spec
class Sampling:
    """How a row of logits becomes a row of probabilities. Temperature 0 is argmax (lowest id among equals).

    `top_k` 0, `top_p` 1 and `min_p` 0 are off. Order: temperature, top-k, top-p, min-p (as in transformers).
    """

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0


def process(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [n, V] of logits [n, V]; the input is left as it was."""
    if sampling.temperature == 0:
        rows = torch.zeros_like(logits)
        return rows.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    scores = logits / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        share = ordered.softmax(-1)
        outside = share.cumsum(-1) - share >= sampling.top_p  # the token that crosses top_p stays
        scores = scores.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    rows = scores.softmax(-1)
    if sampling.min_p > 0:
        rows = rows * (rows >= sampling.min_p * rows.amax(-1, keepdim=True))
        rows = rows / rows.sum(-1, keepdim=True)
    return rows


def widen(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits [n, V] over the common ids: cut to `vocabulary`, -inf for ids the model lacks; float32 or wider."""
    if logits.shape[1] > vocabulary:
        logits = logits[:, :vocabulary]
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    missing = vocabulary - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits


def race(rows: Tensor, noise: Tensor) -> Tensor:
    """One token per row: [n] from unnormalized rows [n, V] and Exp(1) noise [n, V].

    An exponential race draws in proportion to the row without normalizing it.
    """
    return (rows / noise).argmax(-1)


class Draws(Protocol):
    """What the decode loop may ask of chance. The tests put a branching double in its place."""

    def draw(self, rows: Tensor, stream: Stream, where: Tensor | None = None) -> Tensor:
        """One token per row: [n] from unnormalized rows [n, V]; entries outside `where` [n] are not used."""

    def noise(self, like: Tensor, stream: Stream) -> Tensor:
        """What `draw` would use for the rows of `like` [n, V], each drawn from alone, in turn: [n, V]."""

    def accepted_prefix(self, numerators: Tensor, denominators: Tensor) -> Tensor:
        """How many leading positions pass `coin * denominator < numerator` ([] from [n]); a fresh coin for each."""

    def first_accepted(self, numerators: Tensor, denominators: Tensor, where: Tensor) -> Tensor:
        """The first place [] of n that passes such a test, n if none does; those outside `where` [n] are not tried."""

    def coin(self, probability: float) -> bool:
        """True with the given probability (a host decision)."""

    def seed(self) -> int:
        """A number to seed a generator with that is not this project's."""


class SeededDraws:
    """Draws from one generator per stream, seeded by (seed, example), advanced by use, never by position.

    A position that is judged again therefore never meets the coin it met before.
    """

    def __init__(self, seed: int, example_id: str, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._streams = {
            stream: torch.Generator(self._device).manual_seed(_seed(seed, example_id, stream))
            for stream in ("draft", "coin", "replacement", "gate")
        }
        # A decision of the host needs no device: asking one would wait for all that was queued there.
        self._host = torch.Generator().manual_seed(_seed(seed, example_id, "host"))

    def draw(self, rows: Tensor, stream: Stream, where: Tensor | None = None) -> Tensor:
        noise = torch.empty_like(rows).exponential_(generator=self._streams[stream])
        return race(rows, _positive(noise))

    def noise(self, like: Tensor, stream: Stream) -> Tensor:
        noise = torch.empty_like(like)
        for row in noise.split(1):  # one call a row: so many rows drawn one by one get the same
            row.exponential_(generator=self._streams[stream])
        return _positive(noise)

    def accepted_prefix(self, numerators: Tensor, denominators: Tensor) -> Tensor:
        coins = torch.rand(
            numerators.shape, dtype=numerators.dtype, device=self._device, generator=self._streams["coin"]
        )
        return (coins * denominators < numerators).long().cumprod(0).sum()

    def first_accepted(self, numerators: Tensor, denominators: Tensor, where: Tensor) -> Tensor:
        coins = torch.rand(
            numerators.shape, dtype=numerators.dtype, device=self._device, generator=self._streams["coin"]
        )
        return (~where | (coins * denominators >= numerators)).long().cumprod(0).sum()

    def coin(self, probability: float) -> bool:
        return torch.rand((), generator=self._host).item() < probability

    def seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self._host))


def _positive(noise: Tensor) -> Tensor:
    return noise.clamp_(min=torch.finfo(noise.dtype).tiny)  # 0 / 0 would win every argmax


def _seed(seed: int, example_id: str, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{example_id}/{stream}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
