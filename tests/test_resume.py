"""A run that is killed, crowded or out of room loses nothing: the same command goes on from what is stored."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import chaos
import pytest
import torch
from chaos import wait
from commands import call

from experiments.errors import UserError
from experiments.measure import Bench, Prompt, describe_error
from experiments.records import Row, is_reading
from experiments.run import main
from experiments.store import RunFolder, read_json

SIZES = ["track=none", "limit=6", "task.max_new_tokens=4", "task.test_size=6"]
COMMAND = [*SIZES, "method=sd_heuristic", "arms=[via_sd,method]"]  # without memory, and with `memory: run`
KILLS, STARTS = 12, 0.15  # of kills; the share of a run before anything is stored, where a kill proves nothing


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    chaos.warm_up(COMMAND, tmp_path_factory.mktemp("warm"))


def draw_moments(dice: random.Random) -> Iterator[float]:
    """Shares of a run, from each part of it one: as many kills at independent moments would leave parts out."""
    while True:
        parts = [STARTS + (1 - STARTS) * (part + dice.random()) / KILLS for part in range(KILLS)]
        dice.shuffle(parts)
        yield from parts


def start(results: Path, *overrides: str) -> int:
    """Start the main job in a forked process, which has everything imported; return its id."""
    return chaos.start([*COMMAND, f"results_dir={results}", *overrides], Path.cwd())


def stored(results: Path) -> list[dict[str, object]]:
    """The rows of the only run, but for what a clock says."""
    (path,) = (results / "runs").iterdir()
    rows = RunFolder(results, path.name).read_rows()
    plain = [{key: value for key, value in vars(row).items() if not is_reading(key)} for row in rows]
    return sorted(plain, key=lambda row: (str(row["example_id"]), str(row["arm"])))


def summed_up(results: Path) -> dict[str, object]:
    """The summary of the only run, but for what a clock says."""
    (path,) = (results / "runs").iterdir()
    arms = (read_json(path / "summary.json") or {})["arms"]
    timeless = ("n_", "rejection", "fidelity", "quality", "peak_memory", "memory_ratio", "tokens_per_round")
    return {arm: {key: at for key, at in own.items() if key.startswith(timeless)} for arm, own in arms.items()}


def test_killed_at_random_moments_and_started_again(tmp_path: Path) -> None:
    assert wait(start(tmp_path / "first", "limit=1")) == 0  # measures the call costs, once for all
    shutil.copytree(tmp_path / "first" / "settled", tmp_path / "whole" / "settled")
    began = time.monotonic()
    assert wait(start(tmp_path / "whole")) == 0
    whole, summary, lasts = stored(tmp_path / "whole"), summed_up(tmp_path / "whole"), time.monotonic() - began
    assert "peak_memory" in str(summary)
    assert len({str(row["memory"]) for row in whole if row["arm"] == "sd_heuristic"}) > 3  # there is what to restore
    moments, kills, round_ = draw_moments(random.Random(0)), 0, 0
    while kills < KILLS:
        results = tmp_path / f"killed{round_}"
        shutil.copytree(tmp_path / "first" / "settled", results / "settled")
        while kills < KILLS:
            process = start(results)
            time.sleep(next(moments) * lasts)
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                break
            os.kill(process, signal.SIGKILL)
            assert wait(process) in (-signal.SIGKILL, 0)
            kills += 1
        else:
            assert wait(start(results)) == 0
        assert stored(results) == whole and summed_up(results) == summary
        round_ += 1


def test_of_two_starters_one_measures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert wait(start(tmp_path, "timing=off", "limit=1")) == 0
    (path,) = (tmp_path / "runs").iterdir()
    folder = RunFolder(tmp_path, path.name)
    with folder.measuring():
        assert wait(start(tmp_path, "timing=off")) == 2  # more examples than are stored, but somebody else is at it
        assert wait(start(tmp_path, "timing=off", "limit=1")) == 0  # nothing to measure
    assert wait(start(tmp_path, "timing=off")) == 0
    assert len(stored(tmp_path)) == 12


def test_a_run_whose_taker_has_ended_says_so_and_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Bench.measure

    def sleep(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        rows = measure(self, prompt, timed)
        if prompt.index == 1:
            (alive,) = tmp_path.glob("runs/*/alive")
            alive.unlink()
        return rows

    monkeypatch.setattr(Bench, "measure", sleep)
    code, _, err = call(capsys, main, *COMMAND, "timing=off", "limit=3", f"results_dir={tmp_path}")
    (path,) = (tmp_path / "runs").iterdir()
    assert code == 2 and len(err.strip().splitlines()) == 1 and f"run {path.name}" in err and "took it over" in err
    assert {row["index"] for row in stored(tmp_path)} == {0}
    assert (read_json(path / "run.json") or {})["status"] == "running" and not (path / "summary.json").exists()


def test_a_full_disk_leaves_whole_rows_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path, "run")
    with folder.measuring():
        folder.append([Row("a", "sd", 0)])

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(
            UserError, match=r"results_dir=.*No space left on device.*what was measured before is stored"
        ):
            folder.append([Row("b", "sd", 1), Row("b", "vanilla", 1)])
        monkeypatch.undo()
        assert [row.example_id for row in folder.read_rows()] == ["a"]
        folder.append([Row("c", "sd", 2)])
    assert [row.example_id for row in folder.read_rows()] == ["a", "c"]


def test_a_half_written_line_is_left_out_and_removed_by_the_next_writer(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    with folder.measuring():
        folder.append([Row("a", "sd", 0), Row("b", "sd", 1)])
    content = folder.rows_path.read_bytes()
    folder.rows_path.write_bytes(content[:-5])
    assert [row.example_id for row in folder.read_rows()] == ["a"]
    assert folder.rows_path.read_bytes() == content[:-5]  # reading changes nothing
    with folder.measuring():
        folder.append([Row("c", "sd", 2)])
    assert [row.example_id for row in folder.read_rows()] == ["a", "c"]


def test_texts_may_hold_any_character(tmp_path: Path) -> None:
    folder, texts = RunFolder(tmp_path, "run"), ["a\u2028b", "c\x85d", "e\nf\r", "\U0001f600"]
    with folder.measuring():
        folder.append([Row(str(index), "sd", index, text=text) for index, text in enumerate(texts)])
    assert [row.text for row in folder.read_rows()] == texts


def test_running_out_of_memory_says_what_to_lower() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 9"),
    ):
        assert "lower task.max_new_tokens" in describe_error(error) and "bfloat16" in describe_error(error)
    assert describe_error(RuntimeError("else")) == "RuntimeError: else"
