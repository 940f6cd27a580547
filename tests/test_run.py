"""The main job as a user types it: end to end on the embedded pair, twice, further, and wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import call

from experiments.conditions.disturbed import disturbances
from experiments.config import CHECKOUT
from experiments.measure import Bench, Prompt
from experiments.metrics import find
from experiments.records import Row, is_reading
from experiments.run import main
from experiments.store import RunFolder
from experiments.text_tables import headline_table

SMALL = ["track=none", "limit=2", "task.max_new_tokens=12", "task.test_size=6"]


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *SMALL, f"results_dir={results}", *overrides)


def only_run(results: Path) -> RunFolder:
    (path,) = (results / "runs").iterdir()
    return RunFolder(results, path.name)


def without_seconds(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as plain data, but for what a clock says."""
    plain = [{key: value for key, value in vars(row).items() if not is_reading(key)} for row in rows]
    return sorted(plain, key=lambda row: (row["example_id"], row["arm"]))


def test_main_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path)
    assert code == 0, err
    folder = only_run(tmp_path)
    rows = folder.read_rows()
    assert {row.arm for row in rows} == {"vanilla", "sd", "via_sd"} and len(rows) == 6
    for row in rows:
        assert row.error is None and row.new_tokens == len(row.token_ids) > 0
        assert len(row.decode_seconds) == 1 and row.decode_seconds[0] > 0
        assert row.drafted == row.judged + row.unjudged + row.discarded + row.cut
        assert sum(row.sources.values()) == row.new_tokens == len(row.token_loss)
    by_arm = {arm: {row.example_id: row.token_ids for row in rows if row.arm == arm} for arm in ("vanilla", "sd")}
    assert by_arm["vanilla"] == by_arm["sd"]
    summary = json.loads(folder.summary_path.read_text())
    assert summary["run_id"] == folder.run_id
    for numbers in summary["arms"].values():
        for name, entry in numbers.items():
            find(name)
            assert isinstance(entry, int | float) or set(entry) == {"value", "low", "high"}
    assert headline_table(summary["arms"], list(summary["arms"])) in out
    assert str(folder.rows_path) in out
    run_json = json.loads((folder.path / "run.json").read_text())
    assert run_json["status"] == "done" and run_json["schema_version"] == 2
    assert run_json["identity"]["versions"]["torch"]
    (start,) = run_json["provenance"]
    before, after = (start["conditions"][name] for name in ("before", "after"))
    assert before.keys() == after.keys() and before.get("uptime", 0) != after.get("uptime", 1)
    notes = disturbances("reasoning", rows, run_json["provenance"])
    assert [line.removeprefix("note: ") for line in out.splitlines() if "task reasoning: " in line] == notes


def test_second_call_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, first, _ = run(capsys, tmp_path)
    before = only_run(tmp_path).rows_path.read_bytes()
    code, second, _ = run(capsys, tmp_path)
    assert code == 0 and only_run(tmp_path).rows_path.read_bytes() == before
    table = first[first.index("metric  ") :]
    assert table in second and "nothing was measured again" in second


def test_larger_limit_goes_on_and_equals_one_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, tmp_path / "grown", "limit=1")
    run(capsys, tmp_path / "grown", "limit=3")
    run(capsys, tmp_path / "whole", "limit=3")
    grown, whole = only_run(tmp_path / "grown").read_rows(), only_run(tmp_path / "whole").read_rows()
    assert without_seconds(grown) == without_seconds(whole)


def test_cut_line_is_measured_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, tmp_path)
    folder = only_run(tmp_path)
    whole, content = folder.read_rows(), folder.rows_path.read_bytes()
    folder.rows_path.write_bytes(content[:-40])
    code, _, _ = run(capsys, tmp_path)
    assert code == 0 and without_seconds(folder.read_rows()) == without_seconds(whole)


def test_sampling_is_seeded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, tmp_path / "one", "decode=sample")
    run(capsys, tmp_path / "two", "decode=sample")
    assert without_seconds(only_run(tmp_path / "one").read_rows()) == without_seconds(
        only_run(tmp_path / "two").read_rows()
    )


def test_limit_also_bounds_the_table_of_a_sweep(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["hydra.mode=MULTIRUN", "task=reasoning,coding", "arms=[vanilla,sd]", "table_name=both"]
    for limit in (2, 1):
        code, out, err = run(capsys, tmp_path, f"limit={limit}", *sweep)
        assert code == 0, err
        assert f"| {2 * limit} |" in (tmp_path / "tables" / "both.md").read_text()
    assert "mean over tasks: reasoning, coding" in out and "nothing was measured again" in out


def test_equal_arms_run_once_whatever_their_mask_was_called(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, tmp_path, "limit=1", "arms=[vanilla,via_sd,method]")
    assert code == 0, err
    assert set(json.loads(only_run(tmp_path).summary_path.read_text())["arms"]) == {"vanilla", "via_sd"}


def test_killed_run_is_done_after_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Bench.measure

    ends: list[BaseException] = [KeyboardInterrupt(), SystemExit(255)]  # Ctrl-C; submitit at a job's time limit

    def interrupted(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        if prompt.index == 1:
            raise ends[-1]
        return measure(self, prompt, timed)

    for expected in (255, 130):
        with monkeypatch.context() as patched:
            patched.setattr(Bench, "measure", interrupted)
            code, _, err = run(capsys, tmp_path, "arms=[vanilla,sd]")
        assert code == expected and ("goes on from there" in err) == (expected == 130)
        folder = only_run(tmp_path)
        told = folder.read_run() or {}
        assert told["status"] == "interrupted" and len(folder.read_rows()) == 2 and set(told["memory"])
        ends.pop()
    assert run(capsys, tmp_path, "arms=[vanilla,sd]")[0] == 0
    run_json = folder.read_run() or {}
    assert run_json["status"] == "done" and len(run_json["provenance"]) == 3 and set(run_json["memory"])


def test_untimed_examples_have_quality_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, tmp_path, "limit=1", "quality_limit=3", "arms=[vanilla,sd]")
    folder = only_run(tmp_path)
    timed = [row for row in folder.read_rows() if row.decode_seconds]
    assert {row.index for row in timed} == {0} and len(folder.read_rows()) == 6
    summary = json.loads(folder.summary_path.read_text())["arms"]["sd"]
    assert summary["n_timed"] == 1 and summary["n_quality"] == 3


def test_all_controls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = "draft_only,slim_only,accept_all,random_gate,coin_mix@0.8,via_sd_paper,lossless"
    code, out, err = run(capsys, tmp_path, "limit=1", f"arms=[vanilla,sd,method,{names}]")
    assert code == 0, err
    arms = json.loads(only_run(tmp_path).summary_path.read_text())["arms"]
    assert set(arms) == {"vanilla", "sd", "via_sd", *names.split(",")} - {"lossless"}
    assert "arm lossless equals sd" in out
    assert "rejection_rate" not in arms["draft_only"] and "rejection_rate" not in arms["vanilla"]
    assert arms["accept_all"]["rejection_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0} or (
        arms["accept_all"]["rejection_rate"] == 0.0
    )


def test_failed_example_is_a_row_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("viasd.hierarchical.HierarchicalJudge.judge", fail)
    code, _, err = run(capsys, tmp_path)
    assert code == 1 and "out of luck" in err and len(err.strip().splitlines()) == 1
    folder = only_run(tmp_path)
    broken = [row for row in folder.read_rows() if row.error]
    assert len(broken) == 2 and all(not row.decode_seconds and row.arm == "via_sd" for row in broken)
    assert "out of luck" in folder.log_path.read_text()
    assert run(capsys, tmp_path, "max_errors=2")[0] == 0


def test_jobs_of_a_sweep_that_fail_tell_of_themselves_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path / 'multirun'}", "arms=[vanilla]"]
    code, _, err = run(capsys, tmp_path, *sweep, "task=reasoning", "task.max_new_tokens=12,1000,2000")
    first, second = err.strip().splitlines()
    assert code == 2 and "reasoning: task.max_new_tokens=1000" in first and "max_new_tokens=2000" in second
    assert len(only_run(tmp_path).read_rows()) == 2


def test_module_starts_from_any_folder(tmp_path: Path) -> None:
    """The real command in a process of its own, with the results folder from the environment."""
    environment = {**os.environ, "VIASD_RESULTS": str(tmp_path / "results"), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "experiments.run", *SMALL, "limit=1", "arms=[vanilla,sd]"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "runs").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
