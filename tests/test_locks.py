"""Locks of this host: one process at a time, told who has it, free again when it dies."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from experiments.entry import run_command
from experiments.errors import CONF, UserError
from experiments.launching import locks, slots
from experiments.launching.locks import (
    alone_on,
    device_names,
    driver_gpus,
    lock_folder,
    presence,
    shared_folder,
    visible_gpus,
)
from experiments.launching.neighbors import Neighbors
from experiments.launching.sweep import environment


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))


def fork(step: Callable[[], object]) -> int:
    """A process that does a step and waits to be killed."""
    process = os.fork()
    if process == 0:
        try:
            step()
            time.sleep(60)
        finally:
            os._exit(1)
    return process


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def is_free(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_who_has_a_device_is_told_and_a_dead_process_has_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entered = tmp_path / "entered"

    def hold(mark: Path) -> None:
        with alone_on(["cpu"], "run 0123"):
            mark.touch()
            time.sleep(60)

    holder = fork(lambda: hold(entered))
    until(entered.exists)
    lock, second = lock_folder() / "device_cpu.lock", tmp_path / "second"
    assert not is_free(lock)

    def wait() -> None:
        with presence():
            hold(second)

    def at_work() -> list[int]:
        notes = (lock_folder() / "jobs").glob("*.json")
        return [int(note.name.partition("-")[0]) for note in notes if json.loads(note.read_text())["at_work"]]

    assert at_work() == [holder]
    waiter = fork(wait)
    told: list[str] = []

    def waits() -> bool:
        told.append(capfd.readouterr().err)
        return "waiting for cpu" in "".join(told)

    until(waits)
    assert f"run 0123 (process {holder}) is timed there since" in "".join(told) and not second.exists()
    assert at_work() == [holder]  # who waits disturbs nobody
    kill(holder)
    until(second.exists)
    assert waiter in at_work()
    kill(waiter)
    assert is_free(lock)


def test_a_process_asks_once_for_what_it_has(tmp_path: Path) -> None:
    lock = lock_folder() / "device_cpu.lock"
    with alone_on(["cpu"], "outer"):
        with alone_on(["cpu", "GPU-a"], "inner"):
            assert not is_free(lock) and not is_free(lock_folder() / "device_GPU-a.lock")
        assert not is_free(lock) and is_free(lock_folder() / "device_GPU-a.lock")
    assert is_free(lock)


def test_jobs_of_a_host_are_counted_while_they_live_and_work(tmp_path: Path) -> None:
    def job() -> None:
        with presence():
            time.sleep(60)

    with presence() as mine:
        assert mine.others() == 0
        processes = [fork(job) for _ in range(2)]
        until(lambda: mine.others() == 2)
        kill(processes[0])
        assert mine.others() == 1
        kill(processes[1])
        assert mine.others() == 0
        assert {path.stem for path in mine.path.parent.iterdir()} == {mine.path.stem}
        with presence() as other:
            assert mine.others() == 1
            other.tell(at_work=False)  # it waits
            assert mine.others() == 0


def test_disturbed_examples_are_kept_and_forgiven() -> None:
    seen = Neighbors.read(None)
    assert not seen.count(0, 0) and seen.count(1, 2) and not seen.count(1, 1) and seen.count(5, 1)
    again = Neighbors.read({"neighbors": seen.plain()})
    (told,) = again.notice(range(3))
    assert again == seen and again.notice([]) == [] and "1 of 3" in told and "up to 2" in told
    assert again.count(1, 0) and again.notice(range(3)) == []  # measured again, undisturbed


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose driver lists three GPUs."""
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf 'GPU-aa1\\nGPU-bb2\\nGPU-cc3\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("three_gpus")
def test_gpus_by_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ["GPU-aa1", "GPU-bb2", "GPU-cc3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-aa")
    assert visible_gpus() == ["GPU-cc3", "GPU-aa1"]
    assert device_names(torch.device("cuda")) == ["GPU-cc3"] and device_names(torch.device("cpu")) == ["cpu"]
    assert device_names(torch.device("cuda"), several=True) == ["GPU-aa1", "GPU-cc3"]
    for told, seen in (("1,7,0", ["GPU-bb2"]), ("-1", []), ("", []), ("MIG-9", ["MIG-9"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert visible_gpus() == seen


def test_gpus_without_tools_or_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bus, gpu in (("0000:61:00.0", "GPU-bb2"), ("0000:07:00.0", "GPU-aa1")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t X\nIRQ: 1\nGPU UUID: \t {gpu}\nDevice Minor: 0\n")
    assert driver_gpus(tmp_path) == ["GPU-aa1", "GPU-bb2"] and driver_gpus(tmp_path / "nowhere") == []
    monkeypatch.setattr(locks, "host_gpus", lambda: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda = torch.device("cuda")
    assert device_names(cuda) == ["cuda-0"] and device_names(cuda, several=True) == ["cuda-all"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert device_names(cuda) == ["cuda-3"] and device_names(torch.device("cuda", 1)) == ["cuda-1"]


@pytest.mark.usefixtures("three_gpus")
def test_jobs_of_submitit_see_the_gpus_of_the_process_that_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    slots.register()

    def told() -> str:
        return str(OmegaConf.load(CONF / "hydra" / "launcher" / "local_submitit.yaml").job.env_set.CUDA_VISIBLE_DEVICES)

    assert told() == "GPU-aa1,GPU-bb2,GPU-cc3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert told() == "GPU-cc3"
    monkeypatch.setattr(slots, "visible_gpus", lambda: [])
    assert told() == ""  # as submitit has it


def claimants(folder: Path, *jobs: tuple[str, str, str, str]) -> list[int]:
    """Processes that claim a slot, one for each (jobs at once, GPUs of each, GPUs it sees, device)."""

    def work(told: str, own: str, visible: str, device: str) -> None:
        os.environ.update({slots.SLOTS: told, slots.GPUS: own, "CUDA_VISIBLE_DEVICES": visible})
        slots.claim_slot(device)
        slots.claim_slot(device)  # one is enough
        (folder / f"{os.environ['CUDA_VISIBLE_DEVICES']}={os.getpid()}").touch()

    return [fork(partial(work, *job)) for job in jobs]


def seen(folder: Path) -> list[str]:
    """What those that have a slot see."""
    return sorted(path.name.partition("=")[0] for path in folder.glob("*=*"))


@pytest.mark.usefixtures("three_gpus")
def test_each_process_has_a_slot_and_its_gpus(tmp_path: Path) -> None:
    processes = claimants(tmp_path, *[("2", "1", "0,1", "auto")] * 3)
    until(lambda: len(seen(tmp_path)) == 2)
    time.sleep(0.5)
    assert seen(tmp_path) == ["GPU-aa1", "GPU-bb2"]
    lucky = [int(path.name.rpartition("=")[2]) for path in tmp_path.glob("*=*")]
    kill(lucky[0])
    until(lambda: len(seen(tmp_path)) == 3)
    for process in set(processes) - {lucky[0]}:
        kill(process)


@pytest.mark.usefixtures("three_gpus")
def test_sweeps_wait_for_each_other_on_the_same_gpus_and_on_the_processor_alone(tmp_path: Path) -> None:
    def both(first: tuple[str, str, str, str], second: tuple[str, str, str, str]) -> int:
        """How many of two have a slot at once."""
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        processes = claimants(folder, first)
        until(lambda: len(seen(folder)) == 1)
        processes += claimants(folder, second)
        ends = time.monotonic() + 0.7
        while time.monotonic() < ends and len(seen(folder)) < 2:
            time.sleep(0.01)
        found = len(seen(folder))
        for process in processes:
            kill(process)
        return found

    assert both(("1", "1", "0", "auto"), ("1", "1", "GPU-cc", "auto")) == 2
    assert both(("1", "0", "0", "auto"), ("1", "0", "1", "auto")) == 2
    assert both(("1", "2", "0,1", "auto"), ("1", "2", "1,2", "auto")) == 1  # one of two GPUs in common
    assert both(("1", "0", "2", "cuda"), ("1", "1", "GPU-cc3", "auto")) == 1
    assert both(("1", "0", "0", "cpu"), ("1", "0", "1", "cpu")) == 1
    assert both(("1", "0", "", "auto"), ("1", "0", "", "auto")) == 1
    assert both(("2", "0", "0", "auto"), ("2", "0", "0", "auto")) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "file" / "locks"))
    with pytest.raises(UserError, match=r"VIASD_LOCKS=.*cannot be made"):
        lock_folder()


def test_locks_are_where_all_jobs_see_them_and_no_logout_removes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert shared_folder() == Path("/var/tmp")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert shared_folder() == Path(tempfile.gettempdir())


@pytest.mark.parametrize(("told", "kept"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_cuda_counts_gpus_as_the_locks_do(monkeypatch: pytest.MonkeyPatch, told: str | None, kept: str) -> None:
    """In every command and, wherever it runs, in every job of a sweep."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", told or "")
    if told is None:
        monkeypatch.delenv("CUDA_DEVICE_ORDER")
    seen: list[dict[str, str]] = []
    config = OmegaConf.create({"hydra": {"job": {"env_set": {}}}})
    run_command(lambda: seen.append(environment(config)))
    assert seen[0]["CUDA_DEVICE_ORDER"] == os.environ["CUDA_DEVICE_ORDER"] == kept
