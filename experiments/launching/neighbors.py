"""What was timed while other jobs were at work on the same host: examples of a run, costs of calls, whole commands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.launching.locks import others_at_work

if TYPE_CHECKING:
    from experiments.costs import CallCosts
    from experiments.records import Row

NOTICE = "measured while other jobs of viasd were at work on this host"


@dataclass
class Seen:
    """The most other jobs that were at work at the edges of something."""

    most: int = 0

    def told(self, what: str) -> list[str]:
        """A notice where there were any. `what` was measured, as in `the bench was`."""
        return [f"{what} {NOTICE} (up to {self.most} at once)"] if self.most else []


@contextmanager
def edges() -> Iterator[Seen]:
    """Look for others before and after what is inside."""
    seen = Seen(others_at_work())
    yield seen
    seen.most = max(seen.most, others_at_work())


def price_calls(calibrate: Callable[[], CallCosts], settled: Path) -> tuple[CallCosts, Seen]:
    """Call costs, and the others that were seen when they were measured, which is stored beside them."""
    from experiments.store import read_json, replace_json

    before = set(settled.glob("costs_*"))
    with edges() as seen:
        costs = calibrate()
    note = settled / f"neighbors_{costs.cost_id}.json"
    if seen.most and set(settled.glob("costs_*")) - before:
        replace_json(note, {"most": seen.most})
    return costs, Seen((read_json(note) or {}).get("most", 0))


@dataclass
class Neighbors:
    """Kept in run.json: places of the examples in the run's order, and the most other jobs seen at once.

    `costs`: the same of its call costs.
    """

    disturbed: set[int] = field(default_factory=set)
    most: int = 0
    costs: int = 0

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> Neighbors:
        """What the starts of a run before this one saw."""
        told = (stored or {}).get("neighbors", {})
        return cls(set(told.get("disturbed", [])), told.get("most", 0), told.get("costs", 0))

    def plain(self) -> dict[str, Any]:
        """What run.json says."""
        return {"disturbed": sorted(self.disturbed), "most": self.most, "costs": self.costs}

    def count(self, index: int, seen: int) -> bool:
        """Note how many others were seen at the edges of an example. True where that changed what is to be stored."""
        before = self.plain()
        if seen:
            self.disturbed.add(index)
            self.most = max(self.most, seen)
        else:  # it was measured again, undisturbed
            self.disturbed.discard(index)
        return self.plain() != before

    def notice(self, timed: Collection[int]) -> list[str]:
        """What a reader of the table must know. `timed`: places of the examples whose seconds are in it."""
        own = len(self.disturbed.intersection(timed))
        told = Seen(self.most).told(f"{own} of {len(timed)} timed examples were") if own else []
        return [*told, *(Seen(self.costs).told("the call costs were") if timed else [])]


def timed_places(rows: Sequence[Row]) -> set[int]:
    """Places of the examples that have timed rows."""
    return {row.index for row in rows if row.decode_seconds}


def stored_notices(run: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The notices of a stored run; the one on neighbors is of the timed rows that are there, whoever wrote it last."""
    told: list[str] = run.get("notices", [])
    if "neighbors" not in run:
        return list(told)
    return [*(one for one in told if NOTICE not in one), *Neighbors.read(run).notice(timed_places(rows))]
