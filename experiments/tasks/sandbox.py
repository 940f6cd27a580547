"""Run generated code in a process of its own, with limits.

It protects the machine from the accidents of model-written code (endless loops, memory, fork bombs, files all over
the place) and a score from a program that ends early. It is no wall against an attacker: the interpreter's own guards
can be undone by code written for that purpose, and the program can read what the user can read.
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
from typing import IO

REPORT_BYTES = 1024  # longest report of a child; its last line of a traceback is cut to fit
FILE_MIB = 4  # largest file a program may write
FILES = 64  # files and folders a program may create in all: with FILE_MIB, the disk it can use
OPEN_FILES = 64

# What the child does before and after the program. It runs in a bare interpreter, so it imports next to nothing, and it
# holds what it needs in local names, so that a program that rebinds names of a module does not change it. The limits
# are set here rather than between fork and exec, where a parent with threads may deadlock.
PRELUDE = r"""
import os, resource, sys

def run(report, cpu_seconds, memory, file_bytes, files, open_files):
    token, source = sys.stdin.buffer.read().split(b"\n", 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=False)
    os.set_inheritable(report, False)

    def limit(name, value):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            if sys.platform != "darwin" or name != "RLIMIT_AS":  # macOS has the name but refuses to set it
                raise

    limit("RLIMIT_CPU", cpu_seconds)
    limit("RLIMIT_AS", memory)
    limit("RLIMIT_FSIZE", file_bytes)
    limit("RLIMIT_NPROC", 0)
    limit("RLIMIT_NOFILE", open_files)
    limit("RLIMIT_CORE", 0)

    # RLIMIT_NPROC does not bind root, so processes are refused here as well.
    refused = frozenset((
        "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "pty.spawn",
        "os.kill", "os.killpg", "os.link", "os.symlink", "os.chown", "os.lchown",
        "resource.setrlimit", "resource.prlimit",
    ))
    refused_families = ("socket.", "ctypes.", "syslog.")
    changing = frozenset((
        "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.lchmod", "os.utime",
        "os.setxattr", "os.removexattr",
    ))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, join, fsdecode, exit_now, write = os.path.realpath, os.path.join, os.fsdecode, os._exit, os.write
    folder = realpath(os.getcwd())
    left = files

    def check_path(event, path):
        nonlocal left
        if isinstance(path, int):
            return
        path = realpath(fsdecode(path))
        if path != os.devnull and path != folder and not path.startswith(join(folder, "")):
            raise PermissionError(f"{event} outside of the program's folder is not allowed")
        left -= 1
        if left < 0:
            raise PermissionError("too many files written or changed")

    def guard(event, args):
        if event == "open":
            if args[2] & writing:
                check_path("writing", args[0])
        elif event in refused or event.startswith(refused_families):
            raise PermissionError(f"{event} is not allowed")
        elif event in changing:
            check_path(event, args[0])
            if event == "os.rename":
                check_path(event, args[1])

    def refuse(*args, **named):
        raise PermissionError("starting a process or a thread is not allowed")

    import _posixsubprocess, _thread  # not every version has an event for these ways in
    _posixsubprocess.fork_exec = refuse
    for name in ("start_new", "start_new_thread", "start_joinable_thread"):
        if hasattr(_thread, name):
            setattr(_thread, name, refuse)

    own_module = sys.modules["__main__"]  # held, so that its names live on
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    status, message = 1, b""
    sys.addaudithook(guard)
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
        status, message = 0, token
    except BaseException as error:
        name = type(error).__name__
        try:
            text = f"{name}: {error}" if str(error) else name
        except BaseException:
            text = name
        message = text[:500].replace("\n", " ").encode("utf-8", "replace")
    write(report, message + b"\n")
    exit_now(status)  # nothing that the program left behind (exit handlers, finalizers) runs any more

run(*map(int, sys.argv[1:]))
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
    except ImportError:
        raise RuntimeError(
            f"generated code runs only under resource limits, which {sys.platform} does not have: "
            "score such tasks on Linux or macOS"
        ) from None


def run_child(source: IO[bytes], folder: str, seconds: float, memory_mib: int) -> tuple[bytes | None, int]:
    """Run the prelude and the program; return the child's report (None: out of time) and its exit status."""
    deadline = time.monotonic() + seconds
    read_end, write_end = os.pipe()
    try:
        limits = (write_end, math.ceil(seconds) + 1, memory_mib * 2**20, FILE_MIB * 2**20, FILES, OPEN_FILES)
        # -P -s -S: no site packages, nothing imported from the folder. A fixed hash seed makes set order, and so
        # scores, repeatable; temporary files go to the folder that is removed.
        command = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", PRELUDE, *map(str, limits)]
        try:
            child = subprocess.Popen(
                command,
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "TMPDIR": folder},
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
