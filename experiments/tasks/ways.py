"""Ways to start a program's supervisor (`experiments.tasks.jail`), and what it says of a program."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import cache_from_source
from itertools import chain
from pathlib import Path
from typing import IO

from experiments.tasks.sandbox import (
    FILE_MIB,
    FILES,
    OPEN_FILES,
    ROOT,
    ExecutionResult,
    bare_interpreter,
    describe_failure,
    environment,
    kill_group,
)

DISK_BYTES = 64 * 2**20  # all files of a program together, where its folder is a file system of its own
GRACE_SECONDS = 40.0  # beyond a program's own, until its supervisor is given up
MODULES = ("__init__", "tasks/__init__", "tasks/inside", "tasks/jail", "tasks/kernel")  # what a supervisor imports


class SandboxError(RuntimeError):
    """A program could not be confined as before; it was not run."""


@dataclass(frozen=True)
class Way:
    """How programs are started: through bubblewrap or not (None), reading limited or not."""

    bubblewrap: str | None
    limit_reading: bool

    def command(self, folder: str) -> list[str]:
        """The supervisor's command, without its arguments."""
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        jail = bare_interpreter(python, "jail")
        if self.bubblewrap is None:
            return jail
        # Capabilities are for the supervisor, which makes the same walls inside and takes them from the program.
        start = [self.bubblewrap, "--die-with-parent", "--unshare-pid", "--cap-add", "ALL", "--proc", "/proc"]
        modules = [str(ROOT / "experiments" / f"{name}.py") for name in MODULES]
        compiled = [cache_from_source(path) for path in modules]
        shown = [["--ro-bind-try", path, path] for path in (*readable_paths(), python, *modules, *compiled)]
        above = [["--perms", "0755", "--dir", str(path)] for path in reversed(Path(folder).parents)]  # for all users
        bound = [*chain(*above, *shown), "--bind", folder, folder, "--chdir", folder]
        return [*start, "--dev", "/dev", *bound, "--", *jail]


def find_ways() -> list[Way]:
    """The ways that may work here, the most confined first."""
    if sys.platform != "linux":
        return []
    import_module("experiments.tasks.jail")  # so that it is compiled: supervisors leave no files
    bubblewrap = shutil.which("bwrap")
    found = [Way(bubblewrap, True)] if bubblewrap else []
    return [*found, Way(None, True), Way(None, False)]


def run_in_jail(
    way: Way, walls: Sequence[str], source: str, bounds: tuple[float, int, int]
) -> tuple[list[str], ExecutionResult]:
    """Run a program behind the walls asked for; return those made (with `["try"]`: what could be) and how it went."""
    seconds, memory, files = bounds
    token = secrets.token_hex(16)
    readable = ":".join(readable_paths()) if way.limit_reading else ""
    limits = (math.ceil(seconds) + 1, memory, FILE_MIB * 2**20, OPEN_FILES)
    with (
        tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as content,
    ):
        content.write(f"{token}\n{source}".encode(errors="replace"))
        content.seek(0)
        numbers = map(str, (seconds, *limits, files, DISK_BYTES, 4 * FILES))
        arguments = [folder, ",".join(walls), readable, *numbers]
        told = call([*way.command(folder), *arguments], folder, content, seconds + GRACE_SECONDS)
    made, status, report = (told.split(b"\n", 2) + [b"", b""])[:3]
    if not made.startswith(b"made "):
        why = made.decode(errors="replace").removeprefix("!") or "the supervisor said nothing"
        raise SandboxError(f"the program was not run, as it could not be confined: {why}")
    if report == b"report " + token.encode():
        result = ExecutionResult(True, "ok")
    else:
        text = report.removeprefix(b"report ") if report != b"timeout" else None
        result = ExecutionResult(False, describe_failure(text, int(status)))
    return [name for name in made.decode().removeprefix("made ").split(",") if name], result


def call(command: list[str], folder: str, content: IO[bytes], seconds: float) -> bytes:
    """What a supervisor prints. One that takes too long is killed with its group: it has failed."""
    child = subprocess.Popen(
        command,
        stdin=content,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
    )
    try:
        return child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return b""
    finally:
        kill_group(child)
        if child.stdout is not None:
            child.stdout.close()


@cache
def readable_paths() -> tuple[str, ...]:
    """What Python reads while a program runs: its library, the system's libraries, time zones."""
    own = (sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), sysconfig.get_config_var("LIBDIR"))
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime")
    return tuple(dict.fromkeys(str(path) for path in (*own, *system) if path and os.path.exists(path)))
