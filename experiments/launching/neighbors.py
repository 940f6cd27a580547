"""Which timed examples of a run were measured while other jobs were at work on the same host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOTICE = "measured while other jobs of viasd were at work on this host"


@dataclass
class Neighbors:
    """Kept in run.json: places of the examples in the run's order, and the most other jobs seen at once."""

    disturbed: set[int] = field(default_factory=set)
    most: int = 0

    @classmethod
    def read(cls, stored: dict[str, Any] | None) -> Neighbors:
        """What the starts of a run before this one saw."""
        told = (stored or {}).get("neighbors", {})
        return cls(set(told.get("disturbed", [])), told.get("most", 0))

    def plain(self) -> dict[str, Any]:
        """What run.json says."""
        return {"disturbed": sorted(self.disturbed), "most": self.most}

    def count(self, index: int, seen: int) -> bool:
        """Note how many others were seen at the edges of an example. True where that changed what is to be stored."""
        before = self.plain()
        if seen:
            self.disturbed.add(index)
            self.most = max(self.most, seen)
        else:  # it was measured again, undisturbed
            self.disturbed.discard(index)
        return self.plain() != before

    def notice(self, timed: int) -> list[str]:
        """What a reader of the table must know, of the first `timed` examples."""
        own = sum(index < timed for index in self.disturbed)
        return [f"{own} of {timed} timed examples were {NOTICE} (up to {self.most} at once)"] if own else []
