"""Sweeps of six jobs by the real local launchers: the runs and rows that one process makes, one job after the other.

Run: python -m pytest -m launchers tests/test_launchers.py, in environments with the plugins (docs/campaigns.md).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos import check_locks, is_installed, plain_rows

from experiments.config import CHECKOUT
from experiments.launching.sweep import Sweep

pytestmark = pytest.mark.launchers
SIX = ["-m", "track=none", "limit=2", "task.max_new_tokens=8", "task.test_size=4", "arms=[vanilla,sd]", "timing=off"]
PRODUCT = ["task=reasoning,coding,qa", "seed=0,1"]
PLUGINS = {"local_joblib": "joblib", "local_submitit": "submitit", "local_ray": "ray"}


def command(folder: Path, *typed: str) -> subprocess.Popen[str]:
    """The main job in a process of its own, as a user types it."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "experiments.run", *SIX, f"results_dir={folder}", *typed]
    pipes = subprocess.PIPE
    return subprocess.Popen(whole, cwd=folder.parent, env=environment, stdout=pipes, stderr=pipes, text=True)


def need(launcher: str) -> None:
    """Skip where the plugin is not installed."""
    extra = PLUGINS[launcher]
    if not is_installed(extra):
        pytest.skip(f"hydra-{extra}-launcher is not installed: pip install -e '.[{extra}]'")


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("serial") / "results"
    process = command(folder, *PRODUCT, "hydra/launcher=serial")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("launcher", PLUGINS)
def test_six_jobs_by_two_workers(launcher: str, one_by_one: Path, tmp_path: Path) -> None:
    need(launcher)
    began = time.monotonic()
    process = command(tmp_path / "results", *PRODUCT, f"hydra/launcher={launcher}", "launch.jobs=2")
    out, errors = process.communicate(timeout=600)
    print(f"{launcher}: {time.monotonic() - began:.0f} s")
    assert process.returncode == 0, errors
    assert "6 of 6 jobs done" in out and out.count("done: task=") == 6
    assert plain_rows(tmp_path / "results") == plain_rows(one_by_one)
    (folder,) = (tmp_path / "results" / "sweeps").iterdir()
    sweep = Sweep.read(folder)
    workers = {one.process for one in sweep.outcomes()} if sweep else set()
    assert sweep is not None and sweep.process not in workers and len(workers) >= 2
    check_locks(tmp_path / "results")


def test_jobs_of_submitit_have_the_gpus_of_their_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists three GPUs, of which the command sees two; which of them a job has, its lock says."""
    need("local_submitit")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU-aa1\\nGPU-bb2\\nGPU-cc3\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))
    typed = ["task=qa", "seed=0,1", "hydra/launcher=local_submitit", "launch.gpus=1", "launch.jobs=2"]
    process = command(tmp_path / "results", *typed, "engine.device=cpu")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert {path.name for path in (tmp_path / "locks").glob("slot_*")} == {"slot_GPU-cc3_0.lock", "slot_GPU-aa1_0.lock"}


@pytest.mark.parametrize("launcher", PLUGINS)
def test_failed_jobs_are_told_by_the_process_that_waits(launcher: str, tmp_path: Path) -> None:
    need(launcher)
    process = command(
        tmp_path / "results", "task.max_new_tokens=8,1000", "task=qa", f"hydra/launcher={launcher}", "launch.jobs=2"
    )
    out, errors = process.communicate(timeout=600)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(lines) == 1 and "task.max_new_tokens=1000" in lines[0]
    assert "failed: task.max_new_tokens=1000" in out and f"hydra/launcher={launcher}" in out.split("no others:")[1]
    assert "1 of 2 jobs done, 1 failed" in out


def test_a_killed_worker_ends_a_sweep_that_goes_on(tmp_path: Path) -> None:
    need("local_joblib")
    typed = [*PRODUCT, "hydra/launcher=local_joblib", "launch.jobs=2"]
    process = command(tmp_path / "results", *typed)
    sweep = None
    while sweep is None or not sweep.outcomes():
        assert process.poll() is None
        time.sleep(0.2)
        for folder in (tmp_path / "results").glob("sweeps/*"):
            sweep = Sweep.read(folder)
    os.kill(int(sweep.outcomes()[0].process.rpartition(":")[2]), signal.SIGKILL)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and "jobs did not end, the launcher broke down" in errors, out
    again = command(tmp_path / "results", *typed)
    out, errors = again.communicate(timeout=600)
    assert again.returncode == 0 and "6 of 6 jobs done" in out, errors
    assert len(plain_rows(tmp_path / "results")) == 6
    check_locks(tmp_path / "results")
