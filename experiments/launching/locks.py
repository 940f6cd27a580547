"""A device for oneself while something is timed, and who else is at work on this host.

Locks are files that the operating system releases when a process dies, in a folder of this host: $VIASD_LOCKS, else one
of the temporary folder, for each user their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from experiments.errors import UserError

if TYPE_CHECKING:
    import torch

VARIABLE = "VIASD_LOCKS"
POLL = 0.2  # seconds between two looks at a lock that somebody else holds
VISIBLE = "CUDA_VISIBLE_DEVICES"
_HELD: dict[str, FileLock] = {}  # by device: this process's


def shared_folder() -> Path:
    """A folder that all jobs of this host see: the temporary one may be each job's own."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def lock_folder() -> Path:
    """Where the locks of this host are. Raises UserError where it cannot be made."""
    told = os.environ.get(VARIABLE)
    folder = Path(told).expanduser() if told else shared_folder() / f"viasd-locks-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{VARIABLE}={folder}: cannot be made ({error.strerror}); accepted: a folder of this host"
        ) from error
    return folder


def device_names(device: torch.device, several: bool = False) -> list[str]:
    """What is locked for a device: `cpu`, or the ids of the accelerators in use (`several`: all visible ones)."""
    if device.type != "cuda":
        return [device.type]
    names = visible_gpus() or [f"cuda-{os.environ.get(VISIBLE) or 'all'}"]
    return sorted(names) if several else [names[device.index or 0]]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, in its order. CUDA is not started for it."""
    everything = host_gpus()
    told = os.environ.get(VISIBLE)
    if told is None:
        return everything
    asked = [part.strip() for part in told.split(",") if part.strip()]
    known = [everything[int(one)] if one.isdigit() and int(one) < len(everything) else one for one in asked]
    return [next((whole for whole in everything if whole.startswith(one)), one) for one in known]


def host_gpus() -> list[str]:
    """Ids of all GPUs of this host; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in told.splitlines() if line.strip()]


@contextmanager
def alone_on(devices: Sequence[str], what: str, quiet_for: str | None = None) -> Iterator[None]:
    """Be the only process that times anything on these devices; wait for it with one line that says who is there.

    A process that has a device has it: within, it is not asked for again. `quiet_for`: a sweep whose own jobs may wait
    for each other without a word.
    """
    with ExitStack() as stack:
        for device in sorted(set(devices) - _HELD.keys()):
            stack.enter_context(_one(device, what, quiet_for))
        yield


@contextmanager
def _one(device: str, what: str, quiet_for: str | None) -> Iterator[None]:
    path = lock_folder() / f"device_{re.sub(r'[^A-Za-z0-9_.-]', '-', device)}.lock"
    lock, note = FileLock(path), path.with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(note)
        if quiet_for is None or holder.get("sweep") != quiet_for:
            who = f"{holder.get('what', 'another job')} (process {holder.get('process', '?')})"
            print(
                f"waiting for {device}: {who} is timed there since {holder.get('since', '?')}; "
                "timing=off waits for nobody and measures no speed",
                file=sys.stderr,
                flush=True,
            )
        lock.acquire(poll_interval=POLL)
    try:
        told = {"what": what, "process": os.getpid(), "since": time.strftime("%H:%M:%S"), "sweep": quiet_for}
        with suppress(OSError):
            note.write_text(json.dumps(told), encoding="utf-8")
        _HELD[device] = lock
        yield
    finally:
        _HELD.pop(device, None)
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _read(path: Path) -> dict[str, object]:
    """A note, or nothing where there is none or it is half written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Presence:
    """This job among those of the host. It tells whether it is at work: who waits disturbs nobody."""

    path: Path

    def tell(self, at_work: bool) -> None:
        """Say whether this job is at work from now on."""
        beside = self.path.with_suffix(".tmp")
        with suppress(OSError):  # a full disk: no run is to fail for that
            beside.write_text(json.dumps({"at_work": at_work}), encoding="utf-8")
            beside.replace(self.path)

    def others(self) -> int:
        """How many other jobs of this host are at work now. What dead processes left is removed."""
        found = 0
        for note in self.path.parent.glob("*.json"):
            if note != self.path and not _is_dead(note):
                found += bool(_read(note).get("at_work"))
        return found


@contextmanager
def presence() -> Iterator[Presence]:
    """Be one of the jobs of this host that others can count."""
    folder = lock_folder() / "jobs"
    folder.mkdir(exist_ok=True)
    note = folder / f"{os.getpid()}-{uuid.uuid4().hex}.json"  # containers may share the folder and the number
    lock = FileLock(note.with_suffix(".lock"))
    lock.acquire()  # before the note is there: a note without a lock is of a dead process
    mine = Presence(note)
    try:
        mine.tell(True)
        yield mine
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            note.with_suffix(".lock").unlink(missing_ok=True)


def _is_dead(note: Path) -> bool:
    """Whether the process of a note has ended; then its files are removed."""
    lock = FileLock(note.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    with suppress(OSError):
        note.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        note.with_suffix(".lock").unlink(missing_ok=True)
    return True
