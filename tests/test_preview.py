"""What a command would do: jobs, what of them is stored, how long the rest may take."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from experiments.preview import Preview, duration, show
from experiments.run import main

SMALL = ["track=none", "limit=2", "task.max_new_tokens=4", "task.test_size=4"]


def plan(capsys: pytest.CaptureFixture[str], results: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and standard output of one call."""
    code, out, _ = call(capsys, main, *SMALL, f"results_dir={results}", *arguments)
    return code, out


def test_a_plan_measures_nothing_and_tells_what_is_stored(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = plan(capsys, tmp_path, "--plan")
    assert code == 0 and not tmp_path.joinpath("runs").exists()
    task, method, run_id, arms, examples, stored, missing, seconds = out.splitlines()[2].split()
    assert (task, method, arms, examples, stored, missing, seconds) == ("reasoning", "via_sd", "3", "2", "0", "2", "-")
    plan(capsys, tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run_id]
    code, out = plan(capsys, tmp_path, "--plan", "limit=3")
    words = out.splitlines()[2].split()
    assert words[2:7] == [run_id, "3", "3", "2", "1"] and words[7] != "-"


def test_a_run_named_by_shares_that_nobody_measured_has_no_id_yet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out = plan(capsys, tmp_path, "--plan", "arms=[vanilla,random_gate]")
    assert code == 0 and out.splitlines()[2].split()[2] == "-" and "gate shares" in out
    plan(capsys, tmp_path, "arms=[vanilla,random_gate]")
    _, out = plan(capsys, tmp_path, "--plan", "arms=[vanilla,random_gate]")
    assert out.splitlines()[2].split()[2] == next((tmp_path / "runs").iterdir()).name


def test_a_sum_says_what_it_leaves_out() -> None:
    known, unknown = Preview("a", "sd", 2, 4, "1", 4, 90.0), Preview("b", "sd", 2, 4, "2", 4, None)
    assert "1 jobs, about 2 min" in show([known])
    assert "2 jobs, about 2 min for 1 of them, unknown for the others" in show([known, unknown])


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0, "0 s"), (59, "59 s"), (90, "2 min"), (3900, "1 h 05 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
