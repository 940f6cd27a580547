"""A drafted block: a chain of tokens by one reader, each fed on; step by step, or as one recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

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

    def first(self, length: int) -> DraftedBlock:
        """Its first tokens."""
        return DraftedBlock(self.tokens[:length], self.rows[:length], self.logits[:length])


class TripTest(Protocol):
    """Where a stop rule ends a block: the first token that trips is its last one, or without `keep` the first outside.

    Called in order, with one token at a time or with the whole block. `place` is that of the first one in its block: at
    0 a test forgets the block before. What it may look at: the drafted tokens [n], the drafter's raw logits [n, V] and
    how they are processed. It never sees the judge or what comes behind, so the output law does not depend on it; but
    a token dropped for its own sake does change the law, unless the test looks at its row alone (DESIGN section 3).
    `row_alone`: of the token that trips it looks at the row, not at what was drawn from it; `check_trip` asks for it.
    """

    keep: bool
    row_alone: bool

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        """Which of the tokens trip: [n], bool, on their device."""


def check_trip(trip: TripTest | None, sampling: Sampling) -> None:
    """Raises ValueError for a test under which no verifier can be lossless: by TV 0.13 in a trial (DESIGN section 3).

    A token that is drawn and dropped because it was improbable is not drawn from its row any more. At temperature 0
    there is nothing to draw.
    """
    if trip is None or trip.keep or trip.row_alone or sampling.temperature == 0:
        return
    raise ValueError(
        f"stop.keep_tripping=false at decode.temperature={sampling.temperature:g}: a token that is dropped for its own "
        "probability changes the output law, and the verifier is lossless; accepted: stop.keep_tripping=true, "
        "decode.temperature=0, a stop rule that looks at the row alone, a verifier that is not lossless"
    )


def cut_block(block: DraftedBlock, sampling: Sampling, trip: TripTest | None) -> DraftedBlock:
    """The part of a whole block that a trip test leaves. One read of the host."""
    if trip is None:
        return block
    tripped = trip.trips(0, block.tokens, block.logits, sampling).tolist()
    length = next((place + trip.keep for place, is_last in enumerate(tripped) if is_last), len(tripped))
    return block.first(length)


def draft_by_steps(
    reader: RowReader,
    ids: Tensor,
    stop: int,
    steps: int,
    sampling: Sampling,
    draws: Draws,
    trip: TripTest | None = None,
) -> DraftedBlock:
    """At least one token behind ids[stop - 1], and at most `steps`.

    Each token is put into `ids`, where the next forward finds it. Each row is drawn from once. On a CPU a block ends
    with its last token; elsewhere, where asking costs a wait for the device, all steps are run and then cut.
    """
    greedy = sampling.temperature == 0
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    rows: list[Tensor] = []
    now = trip if ids.device.type == "cpu" else None
    dropped = 0
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
        if now is not None and bool(now.trips(place - stop, token, raw, sampling)):
            dropped = 0 if now.keep else 1
            break
    seen = torch.cat(logits)
    block = DraftedBlock(torch.cat(tokens), process(seen, sampling) if greedy else torch.cat(rows), seen)
    return cut_block(block, sampling, trip) if now is None else block.first(len(tokens) - dropped)


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
