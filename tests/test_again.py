"""What a second call measures again, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from experiments.measure import Bench, Prompt
from experiments.records import Row, is_reading
from experiments.run import main
from experiments.store import RunFolder
from viasd.decode import Generation, Speculative

SMALL = ["track=none", "task.max_new_tokens=12", "task.test_size=6"]
REMEMBERING = ["method=sd_heuristic", "arms=[method]"]
Run = Callable[..., tuple[int, str, RunFolder]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the main job: exit code, standard error, and the folder of the only run below `where`."""

    def typed(*overrides: str, where: str = "results") -> tuple[int, str, RunFolder]:
        results = tmp_path / where
        code, _, err = call(capsys, main, *SMALL, f"results_dir={results}", *overrides)
        (path,) = (results / "runs").iterdir()
        return code, err, RunFolder(results, path.name)

    return typed


def plain(folder: RunFolder) -> list[dict[str, object]]:
    """The rows but for what a clock says."""
    rows = [{key: at for key, at in vars(row).items() if not is_reading(key)} for row in folder.read_rows()]
    return sorted(rows, key=lambda row: str(row["example_id"]))


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`fail_once(index)`: the next example at that place fails, in every arm."""

    def prepare(index: int) -> None:
        measure, generate = Bench.measure, Speculative.generate
        at: list[int] = []

        def noted(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
            at[:] = [prompt.index]
            rows = measure(self, prompt, timed)
            if prompt.index == index:
                monkeypatch.setattr(Speculative, "generate", generate)
            return rows

        def failing(self: Speculative, *given: object, **named: object) -> Generation:
            if at == [index]:
                raise RuntimeError("out of luck")
            return generate(self, *given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(Bench, "measure", noted)
        monkeypatch.setattr(Speculative, "generate", failing)

    return prepare


@pytest.mark.parametrize("later", [["limit=5"], ["limit=2", "max_errors=0"]], ids=["same", "shorter-then-longer"])
def test_what_follows_a_changed_memory_is_measured_again(
    run: Run, fail_once: Callable[[int], None], later: list[str]
) -> None:
    """A failed example is tried again: what the arm remembers after it changes, and with it all that follows."""
    _, _, whole = run("limit=5", *REMEMBERING, where="whole")
    fail_once(1)
    code, err, folder = run("limit=5", *REMEMBERING)
    assert code == 1 and "1 examples failed" in err
    assert plain(folder) != plain(whole)
    assert run(*later, *REMEMBERING)[0] == 0
    if later != ["limit=5"]:  # else one call did all of it
        assert run("limit=5", *REMEMBERING)[0] == 0
    assert plain(folder) == plain(whole)


def test_timing_more_examples_of_an_arm_that_remembers_keeps_the_rest(run: Run) -> None:
    _, _, folder = run("limit=1", "quality_limit=4", *REMEMBERING)
    before = [row["memory"] for row in plain(folder)]
    assert run("limit=2", "quality_limit=4", *REMEMBERING)[0] == 0
    assert [row["memory"] for row in plain(folder)] == before
    assert len(folder.rows_path.read_text().splitlines()) == 4 + 1


def test_max_errors_counts_examples(run: Run, fail_once: Callable[[int], None]) -> None:
    fail_once(0)
    code, _, folder = run("limit=2", "arms=[vanilla,sd]", "max_errors=1")
    assert code == 0 and sum(row.error is not None for row in folder.read_rows()) == 2
    before = folder.rows_path.read_bytes()
    assert run("limit=2", "arms=[vanilla,sd]", "max_errors=1")[0] == 0 and folder.rows_path.read_bytes() == before


def test_a_call_without_work_leaves_a_run_that_is_being_measured_alone(run: Run) -> None:
    _, _, folder = run("limit=2", "arms=[vanilla]")
    summary, content = folder.summary_path.read_bytes(), (folder.path / "run.json").read_bytes()
    with folder.measuring():
        assert run("limit=1", "arms=[vanilla]")[0] == 0
        assert (folder.summary_path.read_bytes(), (folder.path / "run.json").read_bytes()) == (summary, content)
    assert run("limit=1", "arms=[vanilla]")[0] == 0
    assert (
        json.loads(folder.summary_path.read_text())["arms"]["vanilla"]["n_timed"] == 2
    )  # nothing of what is known of more examples is lost


def test_what_fails_before_the_first_example_is_in_its_own_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("limit=1", "arms=[vanilla]", where="other")

    def broken(*_: object) -> None:
        raise RuntimeError("no engine today")

    monkeypatch.setattr("experiments.plan.Plan.open_engine", broken)
    code, err, folder = run("limit=1", "arms=[vanilla]")
    assert code == 1 and "no engine today" in err
    assert "no engine today" in folder.log_path.read_text()


def test_a_tracker_is_handed_a_run_also_after_it_was_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was told before is for the tracker to know."""
    handed: list[int] = []

    def log_run(self: object, summary: object, rows: list[object]) -> str:
        handed.append(len(rows))
        return "tracked at home"

    monkeypatch.setattr("experiments.tracking.NoTracking.log_run", log_run)
    for limit in (1, 1, 2):
        code, _, folder = run(f"limit={limit}", "arms=[vanilla]")
        assert code == 0 and (folder.read_run() or {})["status"] == "done"
    assert handed == [1, 1, 2]


def test_who_asks_for_less_leaves_what_is_said_of_more(run: Run) -> None:
    _, _, folder = run("limit=3", "arms=[vanilla,sd]")
    before = [path.read_bytes() for path in (folder.summary_path, folder.path / "run.json")]
    for less in (["limit=2"], ["limit=3", "timing=off"]):
        code, _, _ = run("arms=[vanilla,sd]", *less)
        assert code == 0
        assert [path.read_bytes() for path in (folder.summary_path, folder.path / "run.json")] == before
    run("limit=4", "arms=[vanilla,sd]")
    assert json.loads(folder.summary_path.read_text())["of"] == {"timed": 4, "examples": 4}
