"""Run generated code in a process of its own, with limits: for what models that we trained write.

Code of foreign models runs in `experiments.tasks.confined`. This protects the machine from the accidents of
model-written code (endless loops, memory, fork bombs, files all over the place) and a score from a program that ends
early. It is no wall against an attacker: the interpreter's own guards can be undone by code written for that purpose,
and the program can read what the user can read.
"""

from __future__ import annotations

import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

REPORT_BYTES = 1024  # longest report of a child; its last line of a traceback is cut to fit
FILE_MIB = 4  # largest file a program may write
FILES = 64  # files and folders a program may create in all: with FILE_MIB, the disk it can use
OPEN_FILES = 64

ROOT = Path(__file__).resolve().parents[2]
# A bare interpreter imports one module of this project, and forgets it before the program begins. The limits are set
# there rather than between fork and exec, where a parent with threads may deadlock.
BOOT = """
import sys
kept = set(sys.modules)
sys.path.insert(0, {root!r})
from experiments.tasks.{module} import main
del sys.path[0]
main(kept)
"""


@dataclass(frozen=True)
class ExecutionResult:
    """`passed`: the program ran to the end of its last statement without an error.

    `detail`: "ok", "timeout", the last line of the traceback, or how else the process ended.
    """

    passed: bool
    detail: str


def run_program(program: str, *, seconds: float = 2.0, memory_mib: int = 512) -> ExecutionResult:
    """Run Python source in a separate bare interpreter (standard library only) and say whether it reached its end.

    `seconds` bounds wall-clock time, the start of the interpreter (about 15 ms) included; `memory_mib` bounds address
    space. The working folder is new, empty and removed afterwards; the environment is empty, standard input too, output
    is discarded. Processes, threads, sockets, and writing outside of the folder raise `PermissionError` in the program.
    Ending early (`sys.exit(0)`, `os._exit(0)`) does not pass. Can be called from several threads at a time.

    Raises:
        ValueError: `seconds` or `memory_mib` is not positive.
        RuntimeError: the platform has no resource limits (Windows).
    """
    if not seconds > 0 or not memory_mib > 0:
        raise ValueError(f"seconds={seconds}, memory_mib={memory_mib}: both must be positive")
    require_limits()
    token = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as source,
    ):
        # A file rather than a pipe: nobody waits for a reader. The child reads the token before the program can run.
        source.write(f"{token}\n{program}".encode(errors="replace"))
        source.seek(0)
        report, status = run_child(source, folder, seconds, memory_mib)
    if report == token.encode():
        return ExecutionResult(True, "ok")
    return ExecutionResult(False, describe_failure(report, status))


def require_limits() -> None:
    """Raise RuntimeError where generated code cannot be limited."""
    try:
        import resource  # noqa: F401

        import_module("experiments.tasks.inside")  # so that it is compiled: the child leaves no files
    except ImportError:
        raise RuntimeError(
            f"generated code runs only under resource limits, which {sys.platform} does not have: "
            "score such tasks on Linux or macOS"
        ) from None


def bare_interpreter(python: str, module: str) -> list[str]:
    """The command that calls `main` of a module of this folder in an interpreter without anything else."""
    # -P -s -S: no site packages, nothing imported from the program's folder.
    return [python, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", BOOT.format(root=str(ROOT), module=module)]


def environment(folder: str) -> dict[str, str]:
    """All that a program's environment holds."""
    # A fixed hash seed makes set order, and so scores, repeatable; temporary files go to the folder that is removed.
    return {"PYTHONHASHSEED": "0", "TMPDIR": folder}


def run_child(source: IO[bytes], folder: str, seconds: float, memory_mib: int) -> tuple[bytes | None, int]:
    """Run the limits and the program; return the child's report (None: out of time) and its exit status."""
    deadline = time.monotonic() + seconds
    read_end, write_end = os.pipe()
    try:
        limits = (write_end, math.ceil(seconds) + 1, memory_mib * 2**20, FILE_MIB * 2**20, FILES, OPEN_FILES)
        try:
            child = subprocess.Popen(
                [*bare_interpreter(sys.executable, "inside"), *map(str, limits)],
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment(folder),
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        try:
            report = read_report(read_end, deadline)
        finally:
            kill_group(child)
        return report, child.returncode
    finally:
        os.close(read_end)


def read_report(pipe: int, deadline: float) -> bytes | None:
    """Read one line, or what there is when the child has closed the pipe; None when time is up first."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    report = b""
    while len(report) < REPORT_BYTES:
        milliseconds = math.ceil((deadline - time.monotonic()) * 1000)
        if milliseconds <= 0 or not poll.poll(milliseconds):
            return None
        part = os.read(pipe, REPORT_BYTES)
        report += part
        if not part or b"\n" in part:
            break
    return report.split(b"\n", 1)[0]


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads a process group, with everything that it started in the group."""
    # Before the child is waited for: until then its id, which is the group's, cannot belong to anyone else. One signal
    # is enough, as a process with a deadly signal pending cannot fork. A child that is already on its way out keeps the
    # exit status it has. (macOS answers EPERM when only the ended leader is left.)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def describe_failure(report: bytes | None, status: int) -> str:
    """Say in one line why a program did not pass."""
    if report is None or status == -signal.SIGXCPU:
        return "timeout"
    if report:
        return report.decode(errors="replace")
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended before its last statement (exit status {status})"
