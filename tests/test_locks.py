"""Locks of this host: one process at a time, told who has it, free again when it dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from experiments.errors import UserError
from experiments.launching import slots
from experiments.launching.locks import alone_on, device_names, lock_folder, presence, visible_gpus
from experiments.launching.neighbors import Neighbors


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
    waiter = fork(lambda: hold(second))
    told: list[str] = []

    def waits() -> bool:
        told.append(capfd.readouterr().err)
        return "waiting for cpu" in "".join(told)

    until(waits)
    assert f"run 0123 (process {holder}) is timed there since" in "".join(told) and not second.exists()
    kill(holder)
    until(second.exists)
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
    assert (
        again == seen and again.notice(0) == [] and "1 of 3" in again.notice(3)[0] and "up to 2" in again.notice(3)[0]
    )
    assert again.count(1, 0) and again.notice(3) == []  # measured again, undisturbed


def test_gpus_by_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf 'GPU-aa1\\nGPU-bb2\\nGPU-cc3\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["GPU-aa1", "GPU-bb2", "GPU-cc3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-aa")
    assert visible_gpus() == ["GPU-cc3", "GPU-aa1"]
    assert device_names(torch.device("cuda")) == ["GPU-cc3"] and device_names(torch.device("cpu")) == ["cpu"]
    assert device_names(torch.device("cuda"), several=True) == ["GPU-aa1", "GPU-cc3"]


def test_each_process_has_a_slot_and_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIASD_SLOTS", "2")
    monkeypatch.setenv("VIASD_SLOT_GPUS", "1")
    monkeypatch.setattr(slots, "visible_gpus", lambda: ["GPU-a", "GPU-b"])

    def work() -> None:
        slots.claim_slot()
        slots.claim_slot()  # one is enough
        (tmp_path / f"{os.environ['CUDA_VISIBLE_DEVICES']}-{os.getpid()}").touch()

    def seen() -> list[str]:
        return sorted(path.name[:5] for path in tmp_path.glob("GPU-*"))

    processes = [fork(work) for _ in range(3)]
    until(lambda: len(seen()) == 2)
    time.sleep(0.5)
    assert seen() == ["GPU-a", "GPU-b"]
    lucky = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("GPU-*")]
    kill(lucky[0])
    until(lambda: len(seen()) == 3)
    for process in set(processes) - {lucky[0]}:
        kill(process)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "file" / "locks"))
    with pytest.raises(UserError, match=r"VIASD_LOCKS=.*cannot be made"):
        lock_folder()
