"""What the process of a generated program does before and after the program. Imported by bare interpreters only.

It imports next to nothing, and holds what it needs in local names, so that a program that rebinds names of a module
does not change it. The guard is for accidents and for clear messages: a program written for that purpose can undo it.
"""

import os
import resource
import sys
from collections.abc import Callable
from typing import Any, NoReturn

# RLIMIT_NPROC does not bind root, so processes are refused here as well.
REFUSED = frozenset(
    (
        "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "pty.spawn",
        "os.kill", "os.killpg", "os.link", "os.symlink", "os.chown", "os.lchown",
        "resource.setrlimit", "resource.prlimit",
    )
)  # fmt: skip
REFUSED_FAMILIES = ("socket.", "ctypes.", "syslog.")
CHANGING = frozenset(
    (
        "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.lchmod", "os.utime",
        "os.setxattr", "os.removexattr",
    )
)  # fmt: skip


def set_limits(cpu_seconds: int, memory: int, file_bytes: int, open_files: int) -> None:
    """Bound seconds of CPU, bytes of address space and of a file, and open files; allow no further process."""
    limit("RLIMIT_CPU", cpu_seconds)
    limit("RLIMIT_AS", memory)
    limit("RLIMIT_FSIZE", file_bytes)
    limit("RLIMIT_NPROC", 0)
    limit("RLIMIT_NOFILE", open_files)
    limit("RLIMIT_CORE", 0)


def limit(name: str, value: int) -> None:
    """Set a limit for good. Raises OSError or ValueError where that is refused."""
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        if sys.platform != "darwin" or name != "RLIMIT_AS":  # macOS has the name but refuses to set it
            raise


def make_guard(files: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses what a program has no need of; at most `files` files may be written or changed."""
    refused, refused_families, changing = REFUSED, REFUSED_FAMILIES, CHANGING
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, join, fsdecode, null = os.path.realpath, os.path.join, os.fsdecode, os.devnull
    folder = realpath(os.getcwd())
    left = files

    def check_path(event: str, path: Any) -> None:
        nonlocal left
        if isinstance(path, int):
            return
        path = realpath(fsdecode(path))
        if path != null and path != folder and not path.startswith(join(folder, "")):
            raise PermissionError(f"{event} outside of the program's folder is not allowed")
        left -= 1
        if left < 0:
            raise PermissionError("too many files written or changed")

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if args[2] & writing:
                check_path("writing", args[0])
        elif event in refused or event.startswith(refused_families):
            raise PermissionError(f"{event} is not allowed")
        elif event in changing:
            check_path(event, args[0])
            if event == "os.rename":
                check_path(event, args[1])

    return guard


def refuse_processes() -> None:
    """Not every version has an audit event for these ways to start a process or a thread."""
    import _posixsubprocess
    import _thread

    def refuse(*args: Any, **named: Any) -> NoReturn:
        raise PermissionError("starting a process or a thread is not allowed")

    _posixsubprocess.fork_exec = refuse
    for name in ("start_new", "start_new_thread", "start_joinable_thread"):
        if hasattr(_thread, name):
            setattr(_thread, name, refuse)


def forget(kept: set[str]) -> None:
    """Leave a program the modules of a bare interpreter: no others are loaded, and none of this project's found."""
    for name in set(sys.modules) - kept - {"__main__"}:
        del sys.modules[name]


def run(report: int, token: bytes, source: bytes, files: int) -> NoReturn:
    """Run a program as the main module; write the token to `report` if it reaches its end, else one line of why not.

    `files` > 0 guards it (`make_guard`).
    """
    exit_now, write = os._exit, os.write
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    if files:
        refuse_processes()
        sys.addaudithook(make_guard(files))
    status, message = 1, b""
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


def main(kept: set[str]) -> NoReturn:
    """The whole of an unconfined program's process: token, line feed and source come by standard input."""
    report, cpu_seconds, memory, file_bytes, files, open_files = map(int, sys.argv[1:])
    token, source = sys.stdin.buffer.read().split(b"\n", 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=False)
    os.set_inheritable(report, False)
    set_limits(cpu_seconds, memory, file_bytes, open_files)
    forget(kept)
    run(report, token, source, files)
