"""Where a run is logged besides its folder: after the last timed pass, on request also live. Never fails a run.

W&B itself runs in a process of its own (experiments.logged), for which a run does not wait: no network, a wrong key, a
full disk or a server that never answers cost it nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from experiments.errors import UserError
from experiments.logged.session import SWEEP, TRACKED
from viasd.spec import spec

if TYPE_CHECKING:
    from experiments.logged.curves import Curves
    from experiments.logged.post import Teller
    from experiments.records import Row
    from experiments.store import RunFolder

LETTER, OPENING = "wandb.json", "wandb_live.json"  # in the folder of a run, until they are told
Name = Annotated[str, Field(min_length=1, max_length=128)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Objective = Annotated[str, Field(pattern=r"^[^/]+/.+$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Tracker(Protocol):
    """The tracking of one run. None of it raises, none of it waits."""

    def start(self, rows: Sequence[Row]) -> bool:
        """Before the first example, with the rows that are stored. Returns whether it works beside the measurement."""

    def log_example(self, rows: Sequence[Row]) -> None:
        """After the rows of an example are stored, outside of every timed pass."""

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str | None:
        """After the last timed pass, also of a run that was stored before. Returns a line to print, if there is one."""

    def close(self) -> None:
        """However the run ended."""


@runtime_checkable
class Tracking(Protocol):
    """Configuration of trackers."""

    def open(self, folder: RunFolder) -> Tracker:
        """The tracker of a run, which does nothing yet."""


@spec
class NoTracking:
    """The run folder is all there is."""

    def open(self, folder: RunFolder) -> Tracker:
        return self

    def start(self, rows: Sequence[Row]) -> bool:
        return False

    def log_example(self, rows: Sequence[Row]) -> None: ...

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str | None: ...

    def close(self) -> None: ...


@spec
class WandbTracking:
    """Weights & Biases: configuration, summary, tables, histograms of rounds and artifacts, under the run's own id.

    `offline` writes files that `wandb sync` uploads later, and sends nothing; `online` uploads them now, and writes
    those files where that fails or $WANDB_MODE is offline. A run that is logged again goes on under its id: each log is
    whole, so the newest is the one that counts. `group`: what belongs together (null: the experiment, else the sweep's
    table, else PAIR-TASK). `dir`: the folder in which the folder `wandb/` is made (null: the run's own). `texts`:
    whether rows hold the output texts. `live`: curves while measuring; W&B then works beside the measurement, and the
    run says so. `upload_heads`: whether the files of heads are kept, and not their hash alone. `objective`: a metric,
    as in method/speedup_over.sd, that is logged as `objective`; below `min_fidelity` it is negative.
    """

    mode: Literal["offline", "online"] = "offline"
    project: Name = "viasd"
    entity: Name | None = None
    group: Name | None = None
    tags: tuple[Tag, ...] = ()
    dir: str | None = None
    texts: bool = False
    live: bool = False
    upload_heads: bool = False
    objective: Objective | None = None
    min_fidelity: Share | None = None

    def open(self, folder: RunFolder) -> Tracker:
        return WandbRun(self, folder)


class WandbRun:
    """One run as it is handed to the process that tells W&B."""

    def __init__(self, tracking: WandbTracking, folder: RunFolder) -> None:
        self.tracking, self.folder = tracking, folder
        self._teller: Teller | None = None  # of a live run
        self._curves: Curves | None = None

    def start(self, rows: Sequence[Row]) -> bool:
        from experiments.logged.curves import Curves, by_example
        from experiments.logged.letter import opening, store
        from experiments.logged.post import Teller

        if not self.tracking.live:
            return False
        try:
            letter = opening(self.tracking, self.folder, self.folder.read_run() or {}, experiment())
            self._curves = Curves()
            measured = [row for row in rows if row.error is None]
            letter["points"] = [self._curves.add(own) for own in by_example(measured)]
            path = store(letter, self.folder.path / OPENING)
        except Exception:  # whatever it is: log_run says it
            return False
        self._teller = Teller()
        self._teller.send({"open": str(path)})
        return self._teller.alive

    def log_example(self, rows: Sequence[Row]) -> None:
        if self._teller is not None and self._curves is not None:
            self._teller.send({"points": self._curves.add(rows)})

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str | None:
        from experiments.logged import post
        from experiments.logged.letter import store, write
        from experiments.store import read_json

        try:
            letter = write(self.tracking, self.folder, summary, rows, experiment())
            before = read_json(self.folder.path / TRACKED) or {}
            if before.get("digest") == letter["digest"] and before["error"] is None and SWEEP not in os.environ:
                return None
            path = store(letter, self.folder.path / LETTER)
        except Exception as error:  # whatever it is, the run itself is complete
            return f"wandb: not logged ({' '.join(f'{type(error).__name__}: {error}'.split())})"
        if self._teller is None:
            post.LETTERS.append(path)
        else:
            self._teller.end([path])
            post.TELLERS.append(self._teller)
            self._teller = None
        return None

    def close(self) -> None:
        if self._teller is not None:  # the run did not get to its end
            self._teller.end([])
            self._teller = None


def experiment() -> str | None:
    """The name of the experiment's yaml, where one was chosen."""
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    return None if chosen is None else str(chosen)


def check_sweep(split: str, many: bool) -> None:
    """What `wandb agent` may start: not on prompts that are held out for claims, nor `many` jobs at a time.

    Raises UserError for what it may not.
    """
    if SWEEP not in os.environ:
        return
    if many:
        raise UserError(f"-m: wandb agent ({SWEEP} is set) knows one run of each command; accepted: one job")
    if split == "test":
        raise UserError(
            f"split={split}: this run was started by wandb agent ({SWEEP} is set), and settings chosen on held-out "
            "prompts prove nothing; accepted: split=train, split=calibration"
        )
