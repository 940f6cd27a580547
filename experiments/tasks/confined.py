"""Run programs that a foreign model wrote, as confined as the machine allows, and say what held.

`Sandbox.open` tries once, with a program that attempts what it must not, which walls stand here; `Sandbox.run` makes
the same walls again or refuses. docs/sandbox.md says what is promised by which wall, and what is not.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache

from experiments.errors import UserError
from experiments.tasks.attempts import ATTEMPTS, GUARANTEES, POSSIBLE, trap
from experiments.tasks.sandbox import FILES, ExecutionResult, run_program
from experiments.tasks.ways import SandboxError, Way, find_ways, run_in_jail

WALLS = ("bwrap", "uid", "landlock", "read_rules", "user", "mount", "pid", "net", "ipc", "uts", "rlimits")  # in text


@dataclass(frozen=True)
class Confinement:
    """What held when it was tried (`GUARANTEES`), and by which walls. As text: `files reads by uid landlock:7 pid`.

    files: nothing outside of the program's folder can be written, changed or deleted; reads: nor read, but what Python
    itself needs; network: no connection; sockets: none to a local service either; processes: none can be started;
    signals: none reaches the caller.
    """

    held: tuple[str, ...]
    walls: tuple[str, ...]

    @property
    def confines_files(self) -> bool:
        """Whether a program can change nothing outside of its folder: the least that is asked for."""
        return "files" in self.held

    def __str__(self) -> str:
        return f"{' '.join(self.held) or 'nothing'} by {' '.join(self.walls)}"


@dataclass(frozen=True)
class Sandbox:
    """Where foreign programs run, opened by `open`.

    `guarded`: Python's own guard is up as well, whose errors name what was refused; the walls do not need it.
    """

    held: Confinement
    way: Way | None  # None: limits only
    guarded: bool = True

    @classmethod
    def open(cls, *, allow_unconfined: bool = False) -> Sandbox:
        """The most confined sandbox that this machine allows, tried at the first call of the process.

        Raises:
            UserError: files are not confined here, and `allow_unconfined` is false.
        """
        found = find_sandbox()
        if not (found.held.confines_files or allow_unconfined):
            raise UserError(
                f"task.allow_code_execution=true: files are not confined on this machine ({found.held}): install "
                "bubblewrap (apt install bubblewrap), or run it all the same with task.allow_unconfined=true"
            )
        return found

    def run(self, source: str, seconds: float = 10.0, memory_bytes: int = 2**29) -> ExecutionResult:
        """Run Python source with the standard library and say whether it reached its end.

        `seconds` bounds the program's wall-clock time, `memory_bytes` its address space. Otherwise as `run_program`.
        Can be called from several threads at a time.

        Raises:
            ValueError: `seconds` or `memory_bytes` is not positive.
            SandboxError: a wall that stood when the sandbox was opened cannot be made now.
        """
        if not seconds > 0 or not memory_bytes > 0:
            raise ValueError(f"seconds={seconds}, memory_bytes={memory_bytes}: both must be positive")
        if self.way is None:
            return run_program(source, seconds=seconds, memory_mib=math.ceil(memory_bytes / 2**20))
        walls = [name for name in self.held.walls if name not in ("bwrap", "rlimits")]
        files = FILES if self.guarded else 0
        return run_in_jail(self.way, walls, source, (seconds, memory_bytes, files))[1]


@cache
def find_sandbox() -> Sandbox:
    """Try the ways to start a program from the most confined on; the first that confines files and runs, else any."""
    best: Sandbox | None = None
    for way in find_ways():
        tried = try_way(way)
        if tried is not None and tried.held.confines_files:
            return tried
        best = best or tried
    return best or Sandbox(Confinement((), ("rlimits",)), None)


def try_way(way: Way, walls: tuple[str, ...] = ("try",)) -> Sandbox | None:
    """Run the attempts; None where a way runs no program, or not what programs need. `walls`: all that can be made."""
    with trap() as (out, port):
        source = ATTEMPTS.format(out=out, port=port, parent=os.getpid())
        try:
            made, result = run_in_jail(way, walls, source, (20.0, 2**29, 0))
        except (SandboxError, OSError):
            return None
    if not result.detail.startswith(POSSIBLE):
        return None
    possible = result.detail.removeprefix(POSSIBLE).split()
    held = tuple(name for name in GUARANTEES if name not in possible)
    made += ["rlimits", *(["bwrap"] if way.bubblewrap else [])]
    return Sandbox(Confinement(held, tuple(sorted(made, key=lambda name: WALLS.index(name.partition(":")[0])))), way)
