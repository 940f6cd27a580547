"""A device for oneself while something is timed, and who else is at work on this host.

Locks are files that the operating system releases when a process dies, in a folder of this host: $VIASD_LOCKS, else one
in /var/tmp or the temporary folder, for each user their own.
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
DRIVER = Path("/proc/driver/nvidia/gpus")
_HELD: dict[str, FileLock] = {}  # by device: this process's
_PRESENT: list[Presence] = []  # this process's


def shared_folder() -> Path:
    """A folder that all jobs of this host see and that outlives a logout: the temporary one may be each job's own, as
    may /dev/shm, which systemd empties when its user leaves.
    """
    lasting = Path("/var/tmp")
    return lasting if lasting.is_dir() and os.access(lasting, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


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
    """What is locked for a device: `cpu`, or the ids of the accelerators in use (`several`: all visible ones).

    Where GPUs have no ids their places take their stead, as CUDA counts them.
    """
    if device.type != "cuda":
        return [device.type]
    place, names = device.index or 0, [f"cuda-{one}" if one.isdigit() else one for one in visible_gpus()]
    if several:
        return sorted(names) or ["cuda-all"]
    return [names[place] if place < len(names) else f"cuda-{place}"]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, in its order. CUDA is not started for it.

    A place that cannot be, as -1, hides itself and all that follow it (CUDA's rule).
    """
    everything = host_gpus()
    told = os.environ.get(VISIBLE)
    if told is None:
        return everything
    found: list[str] = []
    for one in (part.strip() for part in told.split(",") if part.strip()):
        if one.isdigit() and everything:
            known = everything[int(one) : int(one) + 1]
        else:
            known = [next((whole for whole in everything if whole.startswith(one)), one)] if one != "-1" else []
        if not known:
            break
        found += known
    return found


def host_gpus() -> list[str]:
    """Ids of all GPUs of this host, in the order of their places on the bus, which commands tell CUDA to keep
    (experiments.entry); none without a driver.
    """
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return driver_gpus()
    return [line.strip() for line in told.splitlines() if line.strip()]


def driver_gpus(folder: Path = DRIVER) -> list[str]:
    """The same as the driver tells in files, for containers without its tools."""
    found: list[str] = []
    with suppress(OSError):
        for path in sorted(folder.glob("*/information")):
            found += re.findall(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found


@contextmanager
def alone_on(devices: Sequence[str], what: str, quiet_for: str | None = None) -> Iterator[None]:
    """Be the only process that times anything on these devices; wait for it with one line that says who is there.

    A process that has a device has it: within, it is not asked for again. It is one of the jobs that others count, but
    not at work while it waits. `quiet_for`: a sweep whose own jobs may wait for each other without a word.
    """
    with ExitStack() as stack:
        if not own_presences():
            stack.enter_context(presence())
        for device in sorted(set(devices) - _HELD.keys()):
            stack.enter_context(_one(device, what, quiet_for))
        yield


@contextmanager
def _one(device: str, what: str, quiet_for: str | None) -> Iterator[None]:
    path = lock_folder() / f"device_{plain(device)}.lock"
    lock, note = FileLock(path), path.with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        for one in own_presences():
            one.tell(at_work=False)
        holder = _read(note)
        if quiet_for is None or holder.get("sweep") != quiet_for:
            who = f"{holder.get('what', 'another job')} (process {holder.get('process', '?')})"
            print(
                f"waiting for {device}: {who} is timed there since {holder.get('since', '?')}; "
                "a run with timing=off waits for nobody and measures no speed",
                file=sys.stderr,
                flush=True,
            )
        lock.acquire(poll_interval=POLL)
        for one in own_presences():
            one.tell(at_work=True)
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


def plain(device: str) -> str:
    """A device's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", device)


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
        mine.tell(at_work=True)
        _PRESENT.append(mine)
        yield mine
    finally:
        with suppress(ValueError):
            _PRESENT.remove(mine)
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            note.with_suffix(".lock").unlink(missing_ok=True)


def others_at_work() -> int:
    """How many other jobs of this host are at work now, where this process is one of its jobs; else 0."""
    own = own_presences()
    return own[-1].others() if own else 0


def own_presences() -> list[Presence]:
    """Those of this process, and not of one that it was forked from."""
    return [one for one in _PRESENT if one.path.name.startswith(f"{os.getpid()}-")]


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
