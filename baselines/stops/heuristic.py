"""The schedule of draft lengths that transformers' assisted generation had before its confidence test."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from viasd.decode import Draft, Memory, Part, State, StopRule, Verdict
from viasd.spec import spec


@spec
class HeuristicLength:
    """The schedule of transformers' assisted generation: two more after a block kept whole, else one less, at least 1.

    A block counts as kept whole when all tokens that were in fact drafted were kept, however many were asked for. With
    `memory: run` the length outlives the request (the library's "heuristic"), with `request` it begins anew
    ("heuristic_transient"). Source: transformers, `AssistedCandidateGenerator.update_candidate_strategy`.
    """

    start: Annotated[int, Field(ge=1, le=64)] = 5
    memory: Literal["request", "run"] = "request"

    def open_stop(self) -> StopRule:
        return _HeuristicLength(self.start, self.memory == "run")


class _HeuristicLength(Part):
    def __init__(self, start: int, lasting: bool) -> None:
        self._start = self._length = start
        self._lasting = lasting

    def begin(self, state: State) -> None:
        if not self._lasting:
            self._length = self._start

    def limit(self, state: State) -> int:
        return self._length

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        whole = verdict.kept == draft.length
        self._length = self._length + 2 if whole else max(1, self._length - 1)

    def memory(self) -> Memory:
        return {"length": self._length} if self._lasting else {}

    def restore(self, memory: Memory) -> None:
        self._length = memory.get("length", self._start)
