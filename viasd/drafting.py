"""Drafters and stop rules: who proposes tokens, and how many."""

from __future__ import annotations

from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from viasd.decode import Draft, Drafter, Part, Readers, RowReader, State, StopRule
from viasd.sampling import process
from viasd.spec import spec


@runtime_checkable
class DrafterSpec(Protocol):
    """Configuration of a drafter: `roles` of the pair it needs, `open` makes it."""

    @property
    def roles(self) -> frozenset[str]: ...
    def open_drafter(self, readers: Readers) -> Drafter: ...


@runtime_checkable
class StopSpec(Protocol):
    """Configuration of a stop rule."""

    def open_stop(self) -> StopRule: ...


@spec
class NoDrafter:
    """Proposes nothing: every round is one token of the verifier (autoregressive decoding)."""

    @property
    def roles(self) -> frozenset[str]:
        return frozenset()

    def open_drafter(self, readers: Readers) -> Drafter:
        return _NoDrafter()


class _NoDrafter(Part):
    def propose(self, state: State, limit: int) -> Draft:
        return Draft.empty(state.ids.device)


@spec
class DraftModel:
    """A model of the pair drafts a chain, one token per forward, sampled as the output is."""

    role: Annotated[str, Field(min_length=1)] = "draft"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    def open_drafter(self, readers: Readers) -> Drafter:
        return ModelDrafter(readers.get(self.role))


class ModelDrafter(Part):
    """Drafts with a reader. Each row is drawn from once, and is the row that the verifier gets."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader

    def propose(self, state: State, limit: int) -> Draft:
        sampling, greedy = state.decode.sampling, state.greedy
        tokens: list[Tensor] = []
        rows: list[Tensor] = []
        for offset in range(limit):
            row = self.reader.feed(state.ids, state.length + offset, last=1)  # [1, V]
            if greedy:
                token = row.argmax(-1)  # [1]: what would be drawn; all rows are processed at once below
            else:
                row = process(row, sampling)
                token = state.draws.draw(row, "draft")
            state.stage(offset, token)
            tokens.append(token)
            rows.append(row)
        if not tokens:
            return Draft.empty(state.ids.device)
        drawn_from = torch.cat(rows)
        return Draft.chain(torch.cat(tokens), process(drawn_from, sampling) if greedy else drawn_from)


@spec
class FixedLength:
    """Always the same number of drafted tokens."""

    length: Annotated[int, Field(ge=0, le=64)] = 5

    def open_stop(self) -> StopRule:
        return _FixedLength(self.length)


class _FixedLength(Part):
    def __init__(self, length: int) -> None:
        self._length = length

    def limit(self, state: State) -> int:
        return self._length
