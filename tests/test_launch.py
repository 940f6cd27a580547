"""Sweeps: timing on and off, models that stay, failures that are told and run again, and what launchers are given."""

from __future__ import annotations

import json
import shlex
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chaos import is_installed, plain_rows
from commands import call
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

import viasd
from experiments.launching import slots, sweep
from experiments.launching.kept import KEEPER, ModelKeeper
from experiments.launching.locks import presence
from experiments.launching.report import Watch, progress, seconds_left, sweep_told
from experiments.launching.sweep import Outcome, State, Sweep, product_commands
from experiments.measure import Bench, Prompt
from experiments.records import Row
from experiments.run import main, serial
from experiments.store import RunFolder, read_json
from experiments.stored.catalog import open_entry
from experiments.stored.checks import verify
from experiments.tables import read
from viasd.models import Pair

SMALL = ["track=none", "limit=1", "task.max_new_tokens=4", "task.test_size=4", "arms=[vanilla,sd]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hydra's own folder of a sweep is made in the working directory; models do not stay beyond a test."""
    monkeypatch.chdir(tmp_path)
    yield
    KEEPER.clear()
    KEEPER.on = False


def run(capsys: pytest.CaptureFixture[str], results: Path, *typed: str) -> tuple[int, str, str]:
    return call(capsys, main, *SMALL, f"results_dir={results}", *typed)


def only_run(results: Path) -> RunFolder:
    (path,) = (results / "runs").iterdir()
    return RunFolder(results, path.name)


def test_timing_off_leaves_seconds_out_and_they_can_be_added(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """They are added beside another job here, which is told of for as long as these rows are there."""
    code, out, err = run(capsys, tmp_path, "timing=off")
    assert code == 0, err
    folder = only_run(tmp_path)
    untimed, arms = folder.read_rows(), (read_json(folder.summary_path) or {})["arms"]
    assert all(not row.decode_seconds and row.ideal_seconds is None for row in untimed)
    assert "0 timed and 1 judged" in out and not list((tmp_path / "settled").glob("costs_*"))
    assert not any("speedup" in name or "seconds" in name or "per_second" in name for name in arms["sd"])
    assert "fidelity" in arms["sd"] and arms["sd"]["n_timed"] == 0 and arms["sd"]["n_quality"] == 1
    with presence():
        code, out, err = run(capsys, tmp_path)
    assert code == 0, err
    timed, told = only_run(tmp_path).read_rows(), (read_json(folder.summary_path) or {})["arms"]
    assert "tokens_per_second" in told["sd"] and told["sd"]["fidelity"] == arms["sd"]["fidelity"]
    counts = ("token_ids", "quality", "judged", "rejected", "calls", "fed", "token_loss", "tiers", "memory")
    for before, after in zip(untimed, timed, strict=True):
        assert after.decode_seconds and all(getattr(before, name) == getattr(after, name) for name in counts)
    notice = "1 of 1 timed examples were measured while other jobs of viasd were at work on this host (up to 1 at once)"
    stored = folder.read_run() or {}
    assert (
        notice in out
        and notice in stored["notices"]
        and stored["neighbors"] == {"disturbed": [0], "most": 1, "costs": 1}
    )
    assert notice in run(capsys, tmp_path)[1]
    code, out, err = run(capsys, tmp_path, "timing=off", "quality_limit=2")  # speeds stay, and what is said of them
    assert code == 0 and notice not in out and notice in (folder.read_run() or {})["notices"], err
    check_extent(folder, timed=1, examples=2)
    folder.write_run({**(folder.read_run() or {}), "notices": ["other"]})  # as a run has it that lost it
    assert read(folder).notices[:2] == ["other", notice]


def test_seconds_of_fewer_examples_leave_the_others_in_the_summary(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for typed in (["timing=off", "quality_limit=2"], ["quality_limit=1"]):
        code, _, err = run(capsys, tmp_path, *typed, "arms=[vanilla]")
        assert code == 0, err
    check_extent(only_run(tmp_path), timed=1, examples=2)


def check_extent(folder: RunFolder, timed: int, examples: int) -> None:
    """The summary is of so many, and its rows give it."""
    entry, told = open_entry(folder), read_json(folder.summary_path) or {}
    assert told["of"] == {"timed": timed, "examples": examples} and "tokens_per_second" in told["arms"]["vanilla"]
    assert entry is not None and entry.state == "done" and verify(entry) == []


def test_one_process_loads_a_pair_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two models for two runs, whose rows and memory are those of runs that each load their own."""
    product = ["task=qa,reasoning", "arms=[vanilla,method,hf_generate]", "timing=off"]
    before = KEEPER.loads
    code, _, err = run(capsys, tmp_path / "kept", "hydra.mode=MULTIRUN", *product)
    assert code == 0, err
    assert KEEPER.loads - before == 2
    KEEPER.clear()
    KEEPER.on = False
    for task in ("reasoning", "qa"):
        run(capsys, tmp_path / "own", f"task={task}", *product[1:])
    assert KEEPER.loads - before == 6
    assert plain_rows(tmp_path / "kept") == plain_rows(tmp_path / "own")
    for path in (tmp_path / "kept" / "runs").iterdir():
        kept, own = (read_json(tmp_path / one / "runs" / path.name / "run.json") or {} for one in ("kept", "own"))
        assert kept["memory"] == own["memory"]


def test_models_go_when_another_pair_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    def load(pair: Pair, role: str, *_: object) -> torch.nn.Module:
        model = torch.nn.Linear(2, 2)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr("experiments.launching.kept.load_model", load)
    keeper, cpu, reference = ModelKeeper(), torch.device("cpu"), Path(viasd.__file__).parent / "reference"
    pair = Pair(name="one", models={role: str(reference / role) for role in ("target", "draft")})
    other = Pair(name="other", models={"target": str(reference / "draft")})

    def get(pair: Pair, mode: str = "auto") -> Any:
        return keeper.load(pair, "target", torch.float32, cpu, mode)

    assert get(pair) is not get(pair)  # until a sweep says that more jobs may come
    keeper.on = True
    first = get(pair)
    assert get(pair) is first and keeper.load(pair, "draft", torch.float32, cpu, "auto") is not first
    del first
    get(pair, "eager")  # other modules
    assert [one() is None for one in made[2:]] == [True, True, False]
    get(other)
    assert [one() is None for one in made[2:]] == [True, True, True, False]
    keeper.clear()
    assert all(one() is None for one in made)


def test_failed_jobs_are_listed_with_a_command_that_runs_just_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Bench.measure

    def unlucky(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        if self.seed == 0:
            return measure(self, prompt, timed)
        raise RuntimeError("out of luck")

    product = ["hydra.mode=MULTIRUN", "timing=off", "task=reasoning", "seed=0,1,2"]
    with monkeypatch.context() as patched:
        patched.setattr(Bench, "measure", unlucky)
        code, out, err = run(capsys, tmp_path, *product)
    assert code == 1 and len(err.strip().splitlines()) == 2
    assert "failed: seed=2: RuntimeError: out of luck" in out and "1 of 3 jobs done, 2 failed" in out
    (command,) = [line.strip() for line in out.splitlines() if line.startswith("  python -m")]
    typed = shlex.split(command)
    assert typed[:3] == ["python", "-m", "experiments.run"] and "seed=1,2" in typed and "task=reasoning" in typed
    before = {path.name for path in (tmp_path / "runs").iterdir()}
    told = {path: RunFolder(tmp_path, path).read_run() for path in before}
    code, out, err = call(capsys, main, *typed[3:])
    assert code == 0 and "2 of 2 jobs done" in out and "failed: " not in out, err
    changed = [path for path in before if RunFolder(tmp_path, path).read_run() != told[path]]
    assert len(before) == 3 and len(changed) == 2


def test_a_launcher_that_breaks_down_is_told_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    kind: Any = Plugins.instance().class_name_to_class[name]  # it imports its plugins in a way of its own
    launch = kind.launch

    def broken(self: object, jobs: list[list[str]], initial_job_idx: int) -> object:
        launch(self, jobs[:1], initial_job_idx)
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr(kind, "launch", broken)
    code, _, err = run(capsys, tmp_path, "hydra.mode=MULTIRUN", "seed=0,1,2", "timing=off")
    assert code == 1 and "2 jobs did not end" in err and "a worker was killed" in err and "goes on from there" in err


def test_ctrl_c_ends_a_sweep(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "measure", interrupted)
        code, _, err = run(capsys, tmp_path, "hydra.mode=MULTIRUN", "seed=0,1", "timing=off")
    assert code == 130 and "goes on from there" in err
    (folder,) = (tmp_path / "sweeps").iterdir()
    told = Sweep.read(folder)
    assert told is not None and [one.state for one in told.outcomes()] == ["interrupted"]


def test_plans_name_the_runs_that_a_launcher_makes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    product = ["hydra.mode=MULTIRUN", "task=reasoning,qa", "engine.threads=1"]
    _, planned, _ = run(capsys, tmp_path, "--plan", "hydra/launcher=local_joblib", "launch.jobs=1", *product)
    _, serially, _ = run(capsys, tmp_path, "--plan", "hydra/launcher=serial", *product)
    assert planned == serially and "2 jobs" in planned and not (tmp_path / "sweeps").exists()
    assert serial(["a=1", "hydra/launcher=slurm", "hydra.launcher.qos=x"]) == ["a=1", "hydra/launcher=serial"]
    assert serial(["a=1"]) == ["a=1"]


def test_a_launcher_without_its_plugin_names_the_extra(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    extras = {"local_joblib": "joblib", "local_submitit": "submitit", "slurm": "submitit", "local_ray": "ray"}
    absent = [(name, one) for name, one in extras.items() if not is_installed(one)]
    for name, extra in absent:
        code, _, err = run(capsys, tmp_path, "hydra.mode=MULTIRUN", f"hydra/launcher={name}")
        assert code == 2 and len(err.strip().splitlines()) == 1 and f"pip install -e '.[{extra}]'" in err


def test_failed_jobs_are_joined_where_they_differ_in_one_key() -> None:
    assert product_commands([["t=a", "s=0"], ["t=b", "s=0"]]) == [["s=0", "t=a,b"]]
    assert product_commands([["t=a", "s=0"]]) == [["s=0", "t=a"]]
    jobs = [["t=a", "s=0"], ["t=b", "s=0"], ["t=c", "s=1"]]
    assert product_commands(jobs) == [["s=0", "t=a,b"], ["s=1", "t=c"]]
    assert product_commands([[]]) == [[]]


def test_time_left_counts_jobs_that_measured_and_how_many_were_at_once() -> None:
    def ended(seconds: float, measured: bool) -> Outcome:
        return Outcome(0, [], "qa", "done", seconds=seconds, measured=measured)

    assert seconds_left([ended(60, True)], 3, 60) == 180
    assert seconds_left([ended(60, True), ended(60, True)], 4, 60) == 120  # two at once
    assert seconds_left([ended(60, True), ended(0.1, False)], 2, 60) == pytest.approx(120, rel=0.01)
    assert seconds_left([], 2, 60) is None


def test_jobs_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert slots.jobs_at_once(None, "auto", 0) == 8 and slots.jobs_at_once(None, 3, 0) == 2
    assert slots.jobs_at_once(4, 2, 0) == 4 and slots.threads_of_a_job("auto") == 1
    with pytest.raises(ValueError, match=r"launch.jobs=5: each takes 2 threads on 8 cores; accepted: 1 to 4"):
        slots.jobs_at_once(5, 2, 0)
    monkeypatch.setattr(slots, "visible_gpus", lambda: ["GPU-a", "GPU-b"])
    assert slots.jobs_at_once(None, 1, 1) == 2
    with pytest.raises(ValueError, match=r"launch.gpus=3"):
        slots.jobs_at_once(None, 1, 3)


def test_a_job_that_is_queued_again_is_told_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_ = Sweep(tmp_path / "sweep", 2, ["t"], 0.0, "here:1", [], [])
    sweep_.begin()
    monkeypatch.setattr("experiments.launching.report.begun", lambda: sweep_)
    watch, course = Watch(), list[tuple[State, int]]()
    course += [("running", 0), ("interrupted", 0), ("running", 0), ("done", 1), ("done", 0)]
    for state, lines in course:
        sweep_.store(Outcome(0, ["t=a"], "qa", state, run_id="0123", process="there:1"))
        watch.look()
        assert capsys.readouterr().out.count("done: t=a: run 0123") == lines
        assert "failed" not in progress(sweep_)
    (sweep_.folder / "job_0000.json").write_text("not to be read again")
    sweep_.store(Outcome(1, ["t=b"], "qa", "failed", reason="no luck", process="there:1"))
    with monkeypatch.context() as patched:
        patched.setattr("experiments.launching.report.progress", lambda _: "")
        watch.look()
    assert "failed: t=b: no luck" in capsys.readouterr().out


@pytest.mark.parametrize("elsewhere", [False, True])
def test_jobs_of_this_process_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    started: list[bool] = []
    monkeypatch.setattr(Watch, "start", lambda self: started.append(True))
    target = "hydra_plugins.x.Launcher" if elsewhere else "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    told = {"launcher": {"_target_": target}, "overrides": {"hydra": [], "task": []}, "job": {"env_set": {}}}
    config = OmegaConf.create({"results_dir": str(tmp_path), "hydra": told})
    with sweep_told():
        sweep.Announce().on_multirun_start(config)
    assert started == [True] * elsewhere


def test_words_of_a_sweep_reach_its_jobs(tmp_path: Path) -> None:
    one = Sweep(tmp_path / "it's", 2, ["t"], 0.0, "elsewhere:1", ["hydra/launcher=slurm"], ["/a b"])
    one.begin()
    assert Sweep.read(one.folder) == one and not one.is_mine and Sweep.read(tmp_path) is None
    assert sweep.quoted(r"a'b\c") == r"'a\'b\\c'"
    one.store(Outcome(3, ["t=a", "s=0"], "qa", "running"))
    assert [one.label(job) for job in one.outcomes()] == ["t=a"]
    assert json.loads((one.folder / "job_0003.json").read_text())["state"] == "running"


def test_jobs_without_a_key_can_be_run_again() -> None:
    jobs = [["task=qa", "~hydra.x", "seed=1"], ["task=qa", "~hydra.x", "seed=2"]]
    assert product_commands(jobs) == [["task=qa", "~hydra.x", "seed=1,2"]]
    assert product_commands(jobs[:1]) == [["~hydra.x", "seed=1", "task=qa"]]
