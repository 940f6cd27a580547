"""Isolated costs: how caches are filled, and which steps are timed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory

from experiments import costs
from viasd.engine import Engine


def test_a_cache_is_filled_in_pieces(tiny: ModelFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece at a time, from where the reader is, and to the same rows as at once."""
    monkeypatch.setattr(costs, "PIECE", 8)
    ids = torch.randint(VOCABULARY, (24,), generator=torch.Generator().manual_seed(0))
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 24, "eager")
    pieces, whole = (engine.readers().get("target") for _ in range(2))
    fed: list[int] = []
    engine.probe.watch = lambda role, count: nullcontext(fed.append(count))
    pieces.feed(ids, 3, last=1)
    costs.fill(pieces, ids, 21)
    costs.fill(pieces, ids, 21)
    assert fed == [3, 8, 8, 2]
    engine.probe.watch = None
    assert torch.allclose(pieces.feed(ids, 24, last=3), whole.feed(ids, 24, last=3), atol=1e-12)


def test_a_series_goes_on_and_back_to_its_first_place(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 32)
    timed = costs.open_readers(engine, None, {"slim": [0, 3]})
    ids = torch.zeros(17, dtype=torch.long)
    for one in timed.values():
        costs.fill(one.reader, ids, 10)
    places: dict[str, list[tuple[int, int]]] = {"target": [], "slim": []}
    for name, own in places.items():
        reader = timed[name].reader
        feed = reader.feed

        def noted(ids: Any, stop: int, last: int, reader: Any = reader, feed: Any = feed, own: Any = own) -> Any:
            own.append((reader.read, stop))
            return feed(ids, stop, last)

        reader.feed = noted  # type: ignore[method-assign]
        assert all(spent > 0 for spent in costs.time_series(engine.device, timed, name, ids, 10, 3, 5))
    assert places["target"] == places["slim"] == [(10, 13), (13, 16), (10, 13), (13, 16), (10, 13)]
