"""What the example browser reads: the answers of all runs as JSON, as many as there is room for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.pages.answers import Texts, read_answers
from experiments.pages.cells import sort_of_arm
from experiments.pages.origins import read_origins
from experiments.pages.runs import Reported
from experiments.pages.signs import visible

ROOM = 4_000_000  # characters of JSON for the answers of all runs, where nobody says how many examples


@dataclass
class Source:
    """A run whose examples are taken one by one."""

    one: Reported
    waiting: Iterator[dict[str, Any]]
    taken: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stored(self) -> int:
        return len({row.example_id for row in self.one.run.rows})


def collect(
    groups: Sequence[Sequence[Reported]], examples: int | None, room: int = ROOM
) -> tuple[dict[str, Any], list[str]]:
    """The content, and notices of what it lacks.

    Each run gives its first `examples`. None: the runs give theirs in turn until `room` is full, at least one each.
    """
    texts, notices = Texts(), []
    sources: dict[str, list[Source]] = {}
    for place, runs in enumerate(groups, 1):
        for one in runs:
            origins = read_origins(one)
            notices += origins.notices
            sources.setdefault(f"c{place}", []).append(Source(one, read_answers(one, origins, texts)))
    everything = [source for own in sources.values() for source in own]
    take(everything, texts, examples, room)
    notices += [
        f"task {source.one.run.task}: the browser holds the first {len(source.taken)} of {source.stored} examples "
        "(--examples N takes more)"
        for source in everything
        if len(source.taken) < source.stored
    ]
    content = {
        anchor: {
            "arms": [visible(arm) for arm in own[0].one.run.arms],
            "sorts": [sort_of_arm(arm) for arm in own[0].one.run.arms],
            "tasks": [{"task": visible(source.one.run.task), "examples": source.taken} for source in own],
        }
        for anchor, own in sources.items()
    }
    return {"comparisons": content, "texts": texts.pieces}, list(dict.fromkeys(notices))


def take(sources: Sequence[Source], texts: Texts, examples: int | None, room: int) -> None:
    """One example of each run in turn, until there are enough, or nothing or no room is left."""
    used, turn, left = 0, 0, list(sources)
    while left and (turn < examples if examples is not None else turn == 0 or used + texts.size < room):
        for source in list(left):
            found = next(source.waiting, None)
            if found is None:
                left.remove(source)
            else:
                source.taken.append(found)
                used += len(json.dumps(found))
        turn += 1
