"""What is measured before a run is stored once: whoever comes second takes what is there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.store import read_json, settle_json


def test_the_first_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert settle_json(path, {"a": 1}) == {"a": 1}
    assert settle_json(path, {"a": 2}) == {"a": 1} == read_json(path)
    assert [one.name for one in tmp_path.iterdir()] == ["costs.json"]


def test_all_that_come_at_once_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(number: int) -> dict[str, int]:
        return settle_json(tmp_path / "costs.json", {"a": number})

    with ThreadPoolExecutor(8) as pool:
        pids = iter(range(10_000, 20_000))
        monkeypatch.setattr("os.getpid", lambda: next(pids))
        found = list(pool.map(settle, range(40)))
    assert len({one["a"] for one in found}) == 1


def test_without_links_the_last_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr("os.link", link)
    path = tmp_path / "costs.json"
    assert settle_json(path, {"a": 1}) == {"a": 1}
    assert settle_json(path, {"a": 2}) == {"a": 2}
