"""The supervisor of one confined program: a bare interpreter that makes the walls, forks, waits, and ends everything.

supervisor (in the new namespaces but that of processes; the user's own rights; runs nothing foreign)
  keeper (process 1 of the pid namespace: when it ends, the kernel ends all that are left)
    program (another user, Landlock, limits, no capabilities; then the foreign source in the same interpreter)

It prints three lines: the walls that stand, how the program's process ended, and what the program reported.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

from experiments.tasks import inside, kernel

SETUP_SECONDS = 20.0
REPORT_BYTES = 1024
UNPRIVILEGED = 65534  # nobody; not used for anything else by convention
DEVICES = (("/dev/null", kernel.OF_FILE), ("/dev/zero", kernel.READ_FILE), ("/dev/urandom", kernel.READ_FILE))


class Jail:
    """What one program is to run under. `walls`: those to make, or ("try",) for all that can be made."""

    def __init__(self, arguments: list[str]) -> None:
        self.folder, walls, readable, *numbers = arguments
        self.walls = [name for name in walls.split(",") if name]
        self.readable = [path for path in readable.split(":") if path]
        self.seconds, self.limits, self.files = float(numbers[0]), [int(text) for text in numbers[1:5]], int(numbers[5])
        self.disk, self.inodes = int(numbers[6]), int(numbers[7])
        self.trying = self.walls == ["try"]
        self.made: list[str] = []
        self.rules: kernel.Ruleset | None = None
        self.changes_user = False

    def wants(self, wall: str) -> bool:
        """Whether a wall is asked for."""
        return self.trying or any(name.partition(":")[0] == wall for name in self.walls)

    def can(self, step: Callable[[], object]) -> bool:
        """Whether a step works: tried in a child, as half a wall may be worse than none. Known, but when trying."""
        if not self.trying:
            return True
        child = os.fork()
        if child == 0:
            with suppress(OSError):
                step()
                os._exit(0)
            os._exit(1)
        return os.waitpid(child, 0)[1] == 0


def prepare(jail: Jail) -> None:
    """What only the supervisor's own user may: see whether the user can change, and open what Python reads."""
    version = kernel.landlock_version()
    if version and jail.wants("landlock"):
        jail.rules = kernel.Ruleset(version, limit_reading=jail.wants("read_rules") and bool(jail.readable))
        for path in jail.readable:
            jail.rules.allow(path, kernel.READING)
        for path, rights in DEVICES:
            jail.rules.allow(path, rights)
    if os.geteuid() == 0 and jail.wants("uid"):
        jail.changes_user = jail.can(partial(give_folder, jail))
    if jail.changes_user:
        os.chown(jail.folder, UNPRIVILEGED, UNPRIVILEGED)
        # The other user may not pass where the standard library lies (/root, someone's home): it is held open.
        folders = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in sys.path if os.path.isdir(path)]
        sys.path[:] = [f"/proc/self/fd/{folder}" for folder in folders]


def give_folder(jail: Jail) -> None:
    """Let the unprivileged user have the folder, and become it; raises OSError."""
    owner = os.stat(jail.folder)
    os.chown(jail.folder, UNPRIVILEGED, UNPRIVILEGED)
    try:
        kernel.drop_user(UNPRIVILEGED)
    except OSError:
        os.chown(jail.folder, owner.st_uid, owner.st_gid)
        raise


def make_namespaces(jail: Jail) -> None:
    """Enter what namespaces there may be; root that may not makes them as the unprivileged user, which it then stays.

    The folder becomes a file system of its own there, of bounded size.
    """
    if jail.wants("mount"):
        for own_user in (False, True) if jail.trying else ("user" in jail.walls,):
            if jail.can(partial(enter, jail, own_user)):
                enter(jail, own_user)
                break
    os.chdir(jail.folder)


def enter(jail: Jail, own_user: bool) -> None:
    """Enter namespaces and mount the folder; raises OSError."""
    if own_user:
        change_user(jail)
    jail.made += kernel.unshare(own_user)
    kernel.mount_folder(jail.folder, jail.disk, jail.inodes, UNPRIVILEGED if jail.changes_user else None)


def change_user(jail: Jail) -> None:
    """Become the unprivileged user, where that is possible and has not happened yet."""
    if jail.changes_user:
        kernel.drop_user(UNPRIVILEGED)
        jail.changes_user = False
        jail.made.append("uid")


def confine(jail: Jail) -> None:
    """Take from the program's process what it does not need; raises OSError where a wall cannot be made."""
    inside.set_limits(*jail.limits)
    change_user(jail)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # others of the same user cannot look into it
    if jail.rules is not None:
        jail.rules.allow(".", kernel.IN_FOLDER)
        jail.rules.restrict()
        jail.made += [f"landlock:{jail.rules.version}", *(["read_rules"] if jail.rules.limits_reading else [])]
    if missing := [name for name in jail.walls if name not in jail.made and not jail.trying]:
        raise OSError(f"no longer to be had here: {', '.join(missing)}")


def run_program(jail: Jail, report: int, content: bytes, kept: set[str]) -> NoReturn:
    """The program's process. Its first line says how it is confined; the program can write no line before it."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        confine(jail)
    except BaseException as error:
        os.write(report, f"!{error}\n".encode())
        os._exit(1)
    os.write(report, f"made {','.join(jail.made)}\n".encode())
    token, source = content.split(b"\n", 1)
    inside.forget(kept)
    inside.run(report, token, source, jail.files)


def keep(jail: Jail, ends: tuple[int, int, int, int], content: bytes, kept: set[str]) -> NoReturn:
    """The keeper's process: it starts the program and says how it ended."""
    read_report, report, read_status, status = ends
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    os.close(read_report)
    os.close(read_status)
    program = os.fork()
    if program == 0:
        os.close(status)
        run_program(jail, report, content, kept)
    os.close(report)
    os.dup2(status, 1)  # it holds nothing that anyone waits for
    while True:
        ended, how = os.wait()
        if ended == program:
            os.write(status, str(os.waitstatus_to_exitcode(how)).encode())
            os._exit(0)


def supervise(jail: Jail, content: bytes, kept: set[str]) -> tuple[bytes, str, bytes | None]:
    """Run the program to its end or its time's: the walls, the exit status, the report (None: out of time)."""
    ends = (*os.pipe(), *os.pipe())
    keeper = os.fork()
    if keeper == 0:
        keep(jail, ends, content, kept)
    read_report, report, read_status, status = ends
    os.close(report)
    os.close(status)
    try:
        walls, rest = read_line(read_report, b"", time.monotonic() + SETUP_SECONDS)
        deadline = time.monotonic() + jail.seconds
        told, _ = read_line(read_report, rest, deadline)
        # One that closed its report may still run.
        ended = b"" if told else read_line(read_status, b"", deadline)[0]
    finally:
        end(keeper, "pid" in jail.made)
    late = told is None or ended is None
    return walls or b"!the program's process did not start", (ended or b"0").decode(), None if late else told


def read_line(pipe: int, start: bytes, deadline: float) -> tuple[bytes | None, bytes]:
    """Read to a line's end or the pipe's: the line, and what follows it. None when time is up first."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    text = start
    while b"\n" not in text and len(text) < REPORT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None, text
        part = os.read(pipe, REPORT_BYTES)
        text += part
        if not part:
            break
    line, _, rest = text.partition(b"\n")
    return line, rest


def end(keeper: int, own_processes: bool) -> None:
    """End the keeper and everything that came of the program, also what left its group or lost its parent."""
    with suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGKILL)
    if own_processes:
        os.waitpid(keeper, 0)  # returns when the pid namespace is empty
        return
    while True:  # orphans come to the subreaper, which this process is
        for child in children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
        except ChildProcessError:
            return


def children() -> list[int]:
    """Processes whose parent is this one."""
    found, own = [], os.getpid()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(name))
    return found


def main(kept: set[str]) -> None:
    """Entry point of the bare interpreter. `kept`: the modules that it began with."""
    content = sys.stdin.buffer.read()
    try:
        jail = Jail(sys.argv[1:])
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        prepare(jail)
        make_namespaces(jail)
        walls, status, report = supervise(jail, content, kept)
    except OSError as error:
        walls, status, report = f"!{error}".encode(), "1", None
    told = b"timeout" if report is None else b"report " + report
    sys.stdout.buffer.write(b"\n".join((walls, status.encode(), told)))
