"""The process that tells W&B: `python -m experiments.logged.teller`, started by a run, which need not wait for it.

Messages come as lines of JSON on standard input: `open` (a letter: begin live curves), `points`, `letters` (paths of
whole letters), `list` (a file with as many such paths as there are). Each letter is answered by a line on standard
output and by a file beside the run.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Queue
from threading import Lock, Thread, Timer
from typing import Any, TypeVar

from experiments.logged import session
from experiments.logged.readback import Truncated, check_whole
from experiments.logged.session import DATA, SERVICE, TRACKED, Address
from experiments.patience import Hung, within

MODULE = "experiments.logged.teller"
NICE = 10  # what measures comes first
LIFE = 600.0  # seconds after the last message, or the last letter told, until the process ends, whatever W&B does
GIVEN = os.environ.get(DATA)
T = TypeVar("T")


class Session:
    """One run at W&B. Whatever goes wrong there ends the logging; nothing more is asked of it then."""

    def __init__(self, letter: Mapping[str, Any]) -> None:
        self.address, self.config = Address(**letter["address"]), letter["config"]
        self.error: Exception | None = None
        self._run: Any = None  # W&B's own, while it is open
        where = Path(self.address.where)
        self._attempt(session.PATIENCE, lambda: session.check_writable(where))
        self._unwritable = self.error is not None
        session.keep_near(where, GIVEN)
        self._run = self._attempt(2 * session.PATIENCE, lambda: session.open_wandb(self.address, self.config))

    @property
    def hopeless(self) -> bool:
        """Whether it failed for a reason that another try on the disk would meet again."""
        full = isinstance(self.error, OSError) and self.error.errno in (errno.ENOSPC, errno.EDQUOT)
        return full or self._unwritable or isinstance(self.error, ImportError | Truncated)

    def begin_curves(self, stored: list[dict[str, float]]) -> None:
        """The examples stored before are drawn again, unless a server has them: a log is whole by itself."""
        self._attempt(session.PATIENCE, lambda: session.begin_curves(self._run))
        if self._run is not None and not self._run.resumed:
            for points in stored:
                self.draw(points)

    def draw(self, points: Mapping[str, float]) -> None:
        """The points of one example."""
        self._attempt(session.PATIENCE, lambda: self._run.log(dict(points)))

    def tell(self, letter: Mapping[str, Any]) -> str | None:
        """All there is to tell. Returns where it is."""
        self._attempt(2 * session.PATIENCE, lambda: session.log_letter(self._run, letter))
        place = self._attempt(session.PATIENCE, lambda: session.place_of(self._run, self.address.mode))
        self.close(exit_code=0)
        return place if self.error is None else None

    def close(self, exit_code: int) -> None:
        """However the run ended. What hangs is left alone: one wait is enough."""
        run, self._run = self._run, None
        if run is None or isinstance(self.error, Hung):
            return
        try:
            place = Path(run.dir).parent
            within(3 * session.PATIENCE, lambda: session.finish_wandb(run, exit_code))
            if self.address.mode == "offline":
                check_whole(place)
        except Exception as error:
            self.error = self.error or error  # the first one is the cause

    def _attempt(self, patience: float, step: Callable[[], T]) -> T | None:
        if self.error is None:
            try:
                return within(patience, step)
            except Exception as error:  # whatever it is, the run itself is complete
                self.error = error
        return None


class Fuse:
    """Ends the process `LIFE` seconds after it was lit, or after the last thing that was done since."""

    def __init__(self) -> None:
        self._timer: Timer | None = None
        self._lock = Lock()

    def light(self) -> None:
        """From now on the time runs, from its beginning."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = Timer(LIFE, leave)
            self._timer.daemon = True
            self._timer.start()

    def renew(self) -> None:
        """Something was done: the time, if it runs, begins again."""
        if self._timer is not None:
            self.light()

    def put_out(self) -> None:
        """No end by time any more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None


FUSE = Fuse()


def messages() -> Iterator[dict[str, Any]]:
    """What comes on standard input, read in a thread so that the sender never waits for W&B."""
    queue: Queue[str | None] = Queue()

    def read() -> None:
        for line in sys.stdin:
            queue.put(line)
        FUSE.light()
        queue.put(None)

    Thread(target=read, daemon=True).start()
    while (line := queue.get()) is not None:
        with suppress(ValueError):  # a line that was cut short
            yield json.loads(line)


def tell(path: Path, mode: str | None, live: Session | None) -> tuple[dict[str, Any], bool]:
    """Tell W&B a letter, else leave the copy on disk that `wandb sync` uploads.

    Returns the answer, and whether W&B's library can still be used in this process.
    """
    letter = json.loads(path.read_text(encoding="utf-8"))
    letter["address"]["mode"] = mode or letter["address"]["mode"]
    own = live or Session(letter)
    place = own.tell(letter)
    if own.error is None:
        return answer(letter, place, None), True
    with suppress(OSError), Path(letter["log"]).open("a", encoding="utf-8") as log:
        log.write("".join(traceback.format_exception(own.error)))
    error = " ".join(f"{type(own.error).__name__}: {own.error}".split())
    if mode is not None or own.hopeless:
        return answer(letter, None, error), True
    return answer(letter, leave_copy(path, letter), error), False


def answer(letter: Mapping[str, Any], place: str | None, error: str | None) -> dict[str, Any]:
    """Where a letter went; `error` says why it did not, or not there where it was meant to."""
    return {"run_id": letter["run_id"], "digest": letter["digest"], "place": place, "error": error}


def leave_copy(path: Path, letter: Mapping[str, Any]) -> str | None:
    """Where the same letter lies offline: where an earlier try left it, else a new copy."""
    from experiments.store import read_json

    before = read_json(path.with_name(TRACKED)) or {}
    place = str(before.get("place") or "")
    lies = place.startswith(session.OFFLINE) and Path(place.removeprefix(session.OFFLINE)).is_dir()
    return place if lies and before.get("digest") == letter["digest"] else tell_offline(path)


def tell_offline(path: Path) -> str | None:
    """The same letter offline, from a fresh process, for W&B's library may be left in any state. Where it is."""
    message = json.dumps({"letters": [str(path)], "mode": "offline"}) + "\n"
    with suppress(OSError, subprocess.SubprocessError, ValueError, LookupError):
        command = [sys.executable, "-m", MODULE]
        env = {key: value for key, value in os.environ.items() if key not in (SERVICE, DATA)}
        env |= {} if GIVEN is None else {DATA: GIVEN}
        done = subprocess.run(command, input=message, stdout=subprocess.PIPE, env=env, text=True, timeout=LIFE / 4)
        place: str | None = json.loads(done.stdout)["place"]
        return place
    return None


def main() -> None:
    """Work through the messages. Whatever happens, the process ends, and W&B's with it."""
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    live: Session | None = None
    for message in messages():
        if "open" in message:
            opening = Path(message["open"])
            letter = json.loads(opening.read_text(encoding="utf-8"))
            opening.unlink()
            live = Session(letter)
            live.begin_curves(letter["points"])
        elif "points" in message and live is not None:
            live.draw(message["points"])
        elif "letters" in message or "list" in message:
            with at_work():
                tell_all(paths_of(message), message.get("mode"), live)
            live = None
    if live is not None:
        live.close(exit_code=1)
    leave()


def paths_of(message: Mapping[str, Any]) -> list[Path]:
    """The letters that a message names, itself or in a file, which has done its work."""
    names = message.get("letters")
    if names is None:
        listed = Path(message["list"])
        names = json.loads(listed.read_text(encoding="utf-8"))
        listed.unlink(missing_ok=True)
    return [Path(name) for name in names]


@contextmanager
def at_work() -> Iterator[None]:
    """Be seen by what is timed meanwhile. Of live curves the run says so itself."""
    from experiments.errors import UserError
    from experiments.launching.locks import presence

    with ExitStack() as stack:
        with suppress(UserError, OSError):
            stack.enter_context(presence())
        yield


def leave() -> None:
    """End the process, which a thread of W&B's that hangs would keep, and W&B's own, which would end by itself later.

    The latter only on Linux, and only needed where that process is what hangs.
    """
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):
                os.kill(int(child), signal.SIGKILL)
    os._exit(0)


def tell_all(paths: Sequence[Path], mode: str | None, live: Session | None) -> None:
    """Letter by letter. Once W&B failed, the others go to the disk at once: they would only wait for the same."""
    failed: str | None = None
    for path in paths:
        if not path.is_file():  # told by another process
            continue
        if failed is None:
            told, usable = tell(path, mode, live)
            failed = None if usable else told["error"]
        else:
            letter = json.loads(path.read_text(encoding="utf-8"))
            told = answer(letter, leave_copy(path, letter), failed)
        reply(path, told, keep=mode is not None)
        FUSE.renew()
        live = None


def reply(path: Path, told: Mapping[str, Any], keep: bool) -> None:
    """Write down where a letter went and say it, if anybody still listens. The letter itself has done its work."""
    with suppress(OSError):
        if not keep:
            path.with_name(TRACKED).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            path.unlink()
    with suppress(OSError):
        os.write(1, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    main()
