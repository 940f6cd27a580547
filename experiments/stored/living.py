"""Which process measures a run: a lock, and beside it a file that is touched as long as its process lives.

A lock tells the processes of one machine apart, and of several where the file system shares locks. The file `alive`
tells them apart everywhere: it names its process, and a machine that dies no longer touches it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.errors import UserError

BEAT = 60.0  # seconds between two touches: some microseconds beside what is measured
DEAD_AFTER = 600.0  # seconds without a touch
SILENT_AFTER = 2 * BEAT  # seconds without a touch, after which who waits for a process doubts that it lives
LOOK = 1.0  # seconds between two looks at a process that may be lost
PATIENCE = 0.5  # seconds for a lock: who only looks whether it is held holds it for an instant
LOCK, ALIVE = "lock", "alive"


class Busy(UserError):
    """Another process measures the run."""


@dataclass(frozen=True)
class Owner:
    """Who measures a run, as its file `alive` says. `age`: seconds since it was touched."""

    host: str
    kernel: str
    pid: int
    token: str
    age: float

    @property
    def fresh(self) -> bool:
        """Whether it was touched lately."""
        return self.age <= DEAD_AFTER

    @property
    def silent(self) -> bool:
        """Whether nothing was heard of it for long, from elsewhere, but not for so long that it is dead."""
        return not self.here and self.age > SILENT_AFTER and self.fresh

    @property
    def here(self) -> bool:
        """Whether it runs under this kernel, where a lock says all."""
        return self.kernel == kernel()


@cache
def kernel() -> str:
    """This boot of this machine: containers on it share its locks, whatever they call their hosts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def read_owner(folder: Path) -> Owner | None:
    """What `alive` says; None where there is none, or one that says nothing: it is written whole or not at all."""
    path = folder / ALIVE
    try:
        age = time.time() - path.stat().st_mtime
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        content = json.loads(text)
        return Owner(content["host"], content["kernel"], content["pid"], content["token"], age)
    except (ValueError, KeyError, TypeError):
        return None


def is_living(folder: Path) -> bool:
    """Whether a process measures the run now. Looks without waiting, and changes nothing.

    On this machine its lock has to be held, by a process that exists or was heard of lately; elsewhere the file `alive`
    has to be fresh.
    """
    owner, held = read_owner(folder), _is_held(folder / LOCK)
    if owner is None:
        return bool(held)
    if not owner.here or held is None:
        return owner.fresh
    return held and (owner.fresh or _exists(owner.pid))


def _is_held(path: Path) -> bool | None:
    """Whether somebody holds a lock; None where that cannot be known. Readers do not keep each other out."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):  # a system without flock, somebody else's file
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


class Claim:
    """This process's word that it measures a run: kept fresh by a thread, gone when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.token = folder, folder / ALIVE, uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)

    def start(self) -> None:
        """Write it down. Raises OSError where that is not possible."""
        content = {"host": platform.node(), "kernel": kernel(), "pid": os.getpid(), "token": self.token}
        beside = self.folder / f"{ALIVE}.{self.token}.tmp"
        try:
            beside.write_text(json.dumps(content), encoding="utf-8")
            beside.replace(self.path)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        self._thread.start()

    def check(self) -> None:
        """Raises Busy where another process took the run over: this one was not heard of for long.

        A file `alive` that is gone says so too: the other process may have ended since, or the run was deleted.
        """
        owner = read_owner(self.folder)
        if owner is not None and owner.token == self.token:
            return
        who = "another process, which has ended since," if owner is None else _named(owner)
        raise Busy(
            f"run {self.folder.name}: {who} took it over, as this process was not heard of for "
            f"{DEAD_AFTER:.0f} s; what it measured is stored"
            + (f" (or {self.path} was deleted)" if owner is None else "")
        )

    def end(self) -> None:
        """Take it back, unless another process has the run."""
        self._ended.set()
        self._thread.join()
        owner = read_owner(self.folder)
        if owner is not None and owner.token == self.token:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _keep_fresh(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a file system that is away for a moment
                owner = read_owner(self.folder)
                if owner is not None and owner.token == self.token:
                    os.utime(self.path)


@contextmanager
def claimed(folder: Path, patient: bool = False) -> Iterator[Claim]:
    """Be the only process that measures a run. A lock that a lost process left behind is replaced.

    `patient`: wait until it is known whether one elsewhere is lost that was not heard of lately. Raises Busy when
    another one is at it, and OSError when nothing can be written.
    """
    if patient:
        _wait_for_silent(folder)
    lock = _lock(folder)
    try:
        claim = Claim(folder)
        claim.start()
        try:
            yield claim
        finally:
            claim.end()
    finally:
        lock.release()


def _wait_for_silent(folder: Path) -> None:
    owner = read_owner(folder)
    if owner is None or not owner.silent:
        return
    print(
        f"run {folder.name}: process {_named(owner)} is measuring it and was not heard of for {owner.age:.0f} s; "
        f"waiting until it is again, or for {DEAD_AFTER - owner.age:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    while (owner := read_owner(folder)) is not None and owner.silent:
        time.sleep(LOOK)


def _lock(folder: Path) -> FileLock:
    path = folder / LOCK
    try:
        lock = _acquired(path)
    except Timeout:
        if is_living(folder):
            raise _busy(folder) from None
        path.unlink(missing_ok=True)  # whoever still holds what was there is told by `Claim.check`
        try:
            lock = _acquired(path)
        except Timeout:
            raise _busy(folder) from None
    owner = read_owner(folder)
    if owner is not None and owner.fresh and not owner.here:  # on a file system that does not share locks
        lock.release()
        raise _busy(folder)
    return lock


def _acquired(path: Path) -> FileLock:
    lock = FileLock(path, timeout=PATIENCE)
    lock.acquire()
    return lock


def _busy(folder: Path) -> Busy:
    owner, wait = read_owner(folder), "wait for it, or stop it: the same command then goes on from what it stored"
    if owner is not None and not owner.here:
        minutes = max(1, round((DEAD_AFTER - owner.age) / 60))
        wait += f" (if that machine was lost: in {minutes} min)"
    who = "another process" if owner is None else f"another process, {_named(owner)},"
    return Busy(f"run {folder.name}: {who} is measuring it in {folder.parent}; accepted: {wait}")


def _named(owner: Owner) -> str:
    return f"{owner.pid} on {owner.host}"
