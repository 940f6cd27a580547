"""`gc` tells what may go, deletes it only when asked to, and never what is measured or lies elsewhere."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from commands import call
from synthetic_runs import made_rows, store_run

from experiments.runs import main
from experiments.store import RunFolder


def gc(capsys: pytest.CaptureFixture[str], results: Path, *typed: str) -> list[str]:
    """Paths below the results that would be, or were, deleted."""
    code, out, err = call(capsys, main, "gc", "--results", str(results), "--json", *typed)
    assert (code, err) == (0, "")
    lines = json.loads(out)
    assert all(line["deleted"] is ("--yes" in typed) for line in lines)
    return sorted(str(Path(line["path"]).relative_to(results)) for line in lines)


def make_old(path: Path) -> None:
    """As if it had been written long ago."""
    for one in [*path.rglob("*"), path]:
        os.utime(one, (1e9, 1e9))


def test_leftovers_empty_folders_and_runs_without_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done, begun = store_run(tmp_path), store_run(tmp_path, [], seed=1, status="running")
    killed = store_run(tmp_path, made_rows(1), seed=2, status="running")
    settled = tmp_path / "settled"
    settled.mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    for path in (done.path / "run.7.tmp", settled / "costs.7.mine", settled / "costs.json", tmp_path / "other.tmp"):
        path.touch()
    assert gc(capsys, tmp_path) == []  # all of it is new: its process may be at work
    make_old(tmp_path)
    waste = [f"runs/{begun.run_id}", f"runs/{done.run_id}/run.7.tmp", "runs/empty", "settled/costs.7.mine"]
    assert gc(capsys, tmp_path) == sorted(waste)
    assert begun.path.exists() and (tmp_path / "runs" / "empty").exists()
    assert gc(capsys, tmp_path, "--yes") == sorted(waste)
    assert not [name for name in waste if (tmp_path / name).exists()]
    kept = [done.rows_path, killed.rows_path, settled / "costs.json", tmp_path / "other.tmp"]
    assert all(path.exists() for path in kept) and gc(capsys, tmp_path, "--yes") == []
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted([done.run_id, killed.run_id])


def test_whole_runs_by_filter_age_and_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, other = store_run(tmp_path), store_run(tmp_path, task="coding")
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    fresh = store_run(tmp_path, made_rows(2, date=now), seed=1)
    both = sorted(f"runs/{one.run_id}" for one in (old, other))
    assert gc(capsys, tmp_path, "--older-than", "1d") == both
    assert gc(capsys, tmp_path, "task=qa", "--older-than", "1d") == [f"runs/{old.run_id}"]
    assert len(gc(capsys, tmp_path, "--other-code")) == 3  # made-up code
    assert gc(capsys, tmp_path, "task=coding", "state=done", "--yes") == [f"runs/{other.run_id}"]
    assert old.path.exists() and fresh.path.exists() and not other.path.exists()


def test_never_a_running_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, empty = store_run(tmp_path, status="running"), store_run(tmp_path, [], seed=1, status="running")
    make_old(tmp_path)
    with folder.measuring(), empty.measuring():
        assert gc(capsys, tmp_path, "task=qa", "--yes") == []
        assert folder.rows_path.exists() and empty.path.exists()
    assert len(gc(capsys, tmp_path, "task=qa", "--yes")) == 2 and not folder.path.exists()


def test_a_run_that_begins_after_the_look_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store_run(tmp_path)
    with folder.measuring():
        monkeypatch.setattr("experiments.stored.cleaning._wanted_runs", wanted_anyway(folder))
        code, out, err = call(capsys, main, "gc", "--results", str(tmp_path), "task=qa", "--yes")
    assert code == 1 and "stays (" in out and "1 of 1 things could not be deleted" in err and folder.path.exists()


def wanted_anyway(folder: RunFolder) -> object:
    from experiments.stored.catalog import Entry

    return lambda runs, wanted: [(Entry(folder, {}), "task=qa")]


def test_links_and_what_they_lead_to_stay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    outside, inside = store_run(elsewhere), store_run(results, seed=1)
    (results / "runs" / outside.run_id).symlink_to(outside.path)
    (inside.path / "data").symlink_to(outside.path)
    assert gc(capsys, results, "task=qa", "--yes") == [f"runs/{inside.run_id}"]
    assert outside.rows_path.exists() and not inside.path.exists() and (results / "runs" / outside.run_id).is_symlink()


def test_what_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    code, out, _ = call(capsys, main, "gc", "--results", str(tmp_path), "task=qa")
    first, last = out.splitlines()
    assert code == 0 and first.startswith(f"would delete: {folder.path} (task=qa, 4 examples, ")
    assert last.startswith("1 things, ") and last.endswith("--yes deletes them")
    code, out, _ = call(capsys, main, "gc", "--results", str(tmp_path), "task=qa", "--yes")
    assert code == 0 and out.startswith("deleted: ") and not folder.path.exists()
