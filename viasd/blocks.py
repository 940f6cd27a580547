"""A drafted block: a chain of tokens by one reader, each fed on; step by step, or as one recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from viasd.sampling import Draws, Sampling, process, race, widen

if TYPE_CHECKING:
    from viasd.decode import RowReader


class DraftedBlock(NamedTuple):
    """Tokens [steps], the processed rows [steps, V] they were drawn from, and the raw logits [steps, V]."""

    tokens: Tensor
    rows: Tensor
    logits: Tensor


def draft_by_steps(
    reader: RowReader, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws
) -> DraftedBlock:
    """At least one token behind ids[stop - 1].

    Each token is put into `ids`, where the next forward finds it. Each row is drawn from once.
    """
    greedy = sampling.temperature == 0
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    rows: list[Tensor] = []
    for place in range(stop, stop + steps):
        raw = reader.feed(ids, place, last=1)  # [1, V]
        if greedy:
            token = raw.argmax(-1)  # [1]: what would be drawn; all rows are processed at once below
        else:
            rows.append(process(raw, sampling))
            token = draws.draw(rows[-1], "draft")
        ids[place : place + 1] = token
        tokens.append(token)
        logits.append(raw)
    seen = torch.cat(logits)
    return DraftedBlock(torch.cat(tokens), process(seen, sampling) if greedy else torch.cat(rows), seen)


@dataclass(frozen=True)
class BlockKind:
    """What a recorded block depends on: how many tokens, how they are chosen, among how many ids."""

    steps: int
    sampling: Sampling
    vocabulary: int

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0


class BlockMemory:
    """Where recordings of one kind of block, whatever slots they see, find their noise and leave their result."""

    def __init__(self, kind: BlockKind, like: Tensor) -> None:
        """`like`: any tensor with the model's dtype and device."""
        self.kind = kind
        logits = widen(like.new_empty(kind.steps, 1), kind.vocabulary)
        self.tokens = torch.zeros(kind.steps, dtype=torch.long, device=like.device)
        self.logits, self.rows = torch.zeros_like(logits), torch.zeros_like(logits)
        self.noise = torch.ones_like(logits)

    def choose(self, step: int, logits: Tensor) -> Tensor:
        """The token [1] of a step from the model's raw logits [1, V]; all of it stays on the device.

        It is one of the model's own ids: those that it lacks have -inf, so none needs to be replaced when it is fed.
        """
        row, at = widen(logits, self.kind.vocabulary), slice(step, step + 1)
        self.logits[at].copy_(row)
        if self.kind.greedy:
            token = row.argmax(-1)
        else:
            row = process(row, self.kind.sampling)
            self.rows[at].copy_(row)
            token = race(row, self.noise[at])
        self.tokens[at].copy_(token)
        return token

    def result(self) -> DraftedBlock:
        """What the last replay left."""
        rows = process(self.logits, self.kind.sampling) if self.kind.greedy else self.rows.clone()
        return DraftedBlock(self.tokens.clone(), rows, self.logits.clone())
