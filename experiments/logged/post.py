"""The side of the run: letters are written and handed to the process that tells W&B, which nobody waits for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

from experiments.logged.session import SERVICE, SWEEP, TRACKED

MODULE = "experiments.logged.teller"
SHARE = 0.01  # of a command's time, that it may wait for W&B at its end
PATIENCE_OF_AGENTS = 300.0  # seconds: the next setting of a sweep is chosen by what this one is told to have found
TELLERS: list[Teller] = []  # of live runs that ended in this process
LETTERS: list[Path] = []  # of other runs that ended in this process: told when nothing is measured any more


@dataclass
class Teller:
    """A process that tells W&B. Nothing here raises: `alive` is False once it cannot be reached."""

    letters: list[Path] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    alive: bool = False

    def __post_init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**{key: value for key, value in os.environ.items() if key != SERVICE}, "PYTHONPATH": path},
                start_new_session=True,  # neither Ctrl-C nor the end of a terminal is meant for it
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            self._done = Event()
            Thread(target=self._read, daemon=True).start()
            self.alive = True

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand it a message, unless it does not take any more."""
        if self.alive:
            line = (json.dumps(message) + "\n").encode()
            try:
                assert self._process.stdin is not None
                self.alive = os.write(self._process.stdin.fileno(), line) == len(line)
            except OSError:
                self.alive = False

    def end(self, letters: Sequence[Path]) -> None:
        """The last message: whole letters, or none. They are listed in a file: a pipe holds the paths of few."""
        self.letters += letters
        if letters and self.alive:
            listed = letters[0].with_name(f"wandb_letters.{os.getpid()}.tmp")
            try:
                listed.write_text(json.dumps([str(path) for path in letters]), encoding="utf-8")
                self.send({"list": str(listed)})
            except OSError:
                self.alive = False
        with suppress(OSError, AttributeError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def wait(self, seconds: float) -> None:
        """Until it has answered all there is to answer and ended, but not longer."""
        if self.alive:
            self._done.wait(max(0.0, seconds))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # W&B's own process may hold the other end open: no wait for the end of it
            with suppress(ValueError):
                self.answers.append(json.loads(line))
            if len(self.answers) >= len(self.letters):
                break
        self._process.wait()
        self._done.set()


def deliver(seconds: float) -> list[str]:
    """Have all that ended in this process told, and say what became of it as far as that is known.

    `seconds`: how long the command took. It waits for a small share of that; then W&B goes on by itself.
    """
    if LETTERS:
        teller = Teller()
        teller.end(list(dict.fromkeys(LETTERS)))  # one run may be asked for twice
        TELLERS.append(teller)
    patience = PATIENCE_OF_AGENTS if os.environ.get(SWEEP) else SHARE * seconds
    end = monotonic() + patience
    for teller in TELLERS:
        teller.wait(end - monotonic())
    lines = [line for teller in TELLERS for line in _lines(teller)]
    LETTERS.clear()
    TELLERS.clear()
    return lines


def _lines(teller: Teller) -> Iterator[str]:
    """What a person is told of each letter."""
    answered = {answer["run_id"]: answer for answer in teller.answers}
    for path in teller.letters:
        answer = answered.get(path.parent.name)
        if answer is not None:
            yield told(answer)
        elif teller.alive:
            yield f"wandb: goes on by itself; {path.with_name(TRACKED)} will say where it is"
        else:
            yield "wandb: not logged (its process could not be reached); the same command tries again"


def told(answer: Mapping[str, Any]) -> str:
    """One line that says where a run went or why it did not."""
    if answer["error"] is None:
        return f"wandb: {answer['place']}"
    if answer["place"] is None:
        return f"wandb: not logged ({answer['error']})"
    return f"wandb: {answer['place']} ({answer['error']})"
