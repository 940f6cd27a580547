"""Drafters and stop rules: who proposes tokens, and how many."""

from __future__ import annotations

from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from viasd.blocks import TripTest
from viasd.decode import Draft, Drafter, Part, Readers, RowReader, State, StopRule
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
    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
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

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        if limit == 0:
            return Draft.empty(state.ids.device)
        sampling = state.decode.sampling
        return Draft.chain(*self.reader.draft_on(state.ids, state.length, limit, sampling, state.draws, trip))


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
