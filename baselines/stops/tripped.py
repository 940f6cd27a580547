"""What stop rules with a constant limit have in common."""

from __future__ import annotations

from viasd.blocks import TripTest
from viasd.decode import Part, State


class TrippedLength(Part):
    """A constant limit, and a test that ends blocks earlier."""

    def __init__(self, limit: int, trip: TripTest) -> None:
        self._limit = limit
        self.trip = trip

    def limit(self, state: State) -> int:
        return self._limit
