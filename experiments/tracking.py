"""Where a run is logged besides its folder: after the last timed pass, on request also live. Never fails a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from experiments import logged
from experiments.patience import Hung, within
from experiments.records import Row
from experiments.report import headline_cells
from experiments.store import RunFolder
from viasd.spec import spec

PATIENCE = 30.0  # seconds to wait for a server before giving up
T = TypeVar("T")
Name = Annotated[str, Field(min_length=1, max_length=128)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]


class Tracker(Protocol):
    """The tracking of one run. None of it raises.

    `complete`: whether nothing went wrong so far.
    """

    @property
    def complete(self) -> bool: ...

    def start(self, rows: Sequence[Row]) -> bool:
        """Before the first example, with the rows that are stored. Returns whether it works beside the measurement."""

    def log_example(self, rows: Sequence[Row]) -> None:
        """After the rows of an example are stored, outside of every timed pass."""

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str | None:
        """After the last timed pass. Returns a line that says where the run went or why it did not."""

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

    @property
    def complete(self) -> bool:
        return True

    def open(self, folder: RunFolder) -> Tracker:
        return self

    def start(self, rows: Sequence[Row]) -> bool:
        return False

    def log_example(self, rows: Sequence[Row]) -> None: ...

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str | None: ...

    def close(self) -> None: ...


@spec
class WandbTracking:
    """Weights & Biases: configuration, summary, and tables of the rows and the headline, under the run's own id.

    `offline` writes files that `wandb sync` uploads later, and sends nothing; `online` uploads them now. A run that is
    logged again goes on under its id: each log is whole, so the newest is the one that counts. `group`: what belongs
    together (null: the experiment, else the sweep's table, else PAIR-TASK). `dir`: the folder in which the folder
    `wandb/` is made (null: the run's own). `texts`: whether the table of rows holds the output texts. `live`: curves
    while measuring; W&B then works beside the measurement, and the run says so.
    """

    mode: Literal["offline", "online"] = "offline"
    project: Name = "viasd"
    entity: Name | None = None
    group: Name | None = None
    tags: tuple[Tag, ...] = ()
    dir: str | None = None
    texts: bool = False
    live: bool = False

    def open(self, folder: RunFolder) -> Tracker:
        return WandbRun(self, folder)


class WandbRun:
    """One run as W&B sees it. Whatever goes wrong there ends the logging and not the run; `log_run` tells it."""

    def __init__(self, tracking: WandbTracking, folder: RunFolder) -> None:
        self.tracking, self.folder = tracking, folder
        self._run: Any = None  # W&B's own, while it is open
        self._error: Exception | None = None
        self._curves = logged.Curves()

    @property
    def complete(self) -> bool:
        return self._error is None

    def start(self, rows: Sequence[Row]) -> bool:
        if not self.tracking.live:
            return False
        self._run = self._attempt(2 * PATIENCE, self._open)
        self._attempt(PATIENCE, lambda: self._begin_curves(rows))
        if self._error is not None:
            self._finish(exit_code=1)  # nothing of it stays beside the measurement, but for what hangs: it may wake up
        return self._error is None or isinstance(self._error, Hung)

    def log_example(self, rows: Sequence[Row]) -> None:
        if self._run is not None:
            points = self._curves.add(rows)
            self._attempt(PATIENCE, lambda: self._run.log(points))

    def log_run(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
        if self._run is None:
            self._run = self._attempt(2 * PATIENCE, self._open)
        place = self._attempt(PATIENCE, lambda: self._log(summary, rows))
        self._finish(exit_code=0)
        if self._error is not None:
            reason = " ".join(f"{type(self._error).__name__}: {self._error}".split())
            return f"wandb: not logged ({reason})"
        return f"wandb: {place}"

    def close(self) -> None:
        self._finish(exit_code=1)  # finished before, unless the run did not get to its end

    def _attempt(self, patience: float, step: Callable[[], T]) -> T | None:
        """Do a step of W&B's. Once anything went wrong nothing more is asked of it."""
        if self._error is None:
            try:
                return within(patience, step)
            except Exception as error:  # whatever it is, the run itself is complete
                self._error = error
        return None

    def _open(self) -> Any:
        where = Path(self.tracking.dir).expanduser() if self.tracking.dir else self.folder.path
        check_writable(where)
        config = logged.configuration(self.folder.read_run() or {})
        config["live"] = config["live"] or self.tracking.live
        group = self.tracking.group or automatic_group(config)
        return open_wandb(self.tracking, where, self.folder.run_id, group, config)

    def _begin_curves(self, rows: Sequence[Row]) -> None:
        """The examples stored before are drawn again, unless a server has them: a log is whole by itself."""
        self._run.summary.update({"live": True})
        self._run.define_metric(logged.STEP, hidden=True, summary="none")
        self._run.define_metric("live/*", step_metric=logged.STEP, summary="none")  # the summary holds final numbers
        for own in logged.by_example([row for row in rows if row.error is None]):
            points = self._curves.add(own)
            if not self._run.resumed:
                self._run.log(points)

    def _log(self, summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
        """Tell all there is to tell. Returns where it is."""
        import wandb

        run, texts = self._run, self.tracking.texts
        config = logged.configuration(self.folder.read_run() or {})
        run.config.update({**config, "metrics": logged.definitions(summary)}, allow_val_change=True)
        run.summary.update({**logged.flatten(summary), "live": config["live"]})
        header, *lines = headline_cells(summary, list(summary))
        tables = {"headline": (header, lines), "rows": (logged.columns(texts), logged.table(rows, texts))}
        run.log({name: wandb.Table(columns=[*names], data=data) for name, (names, data) in tables.items()})
        return run.url if self.tracking.mode == "online" else f"offline in {Path(run.dir).parent}"

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is None or isinstance(self._error, Hung):  # one wait is enough
            return
        try:
            within(3 * PATIENCE, lambda: finish_wandb(run, exit_code))
        except Exception as error:
            self._error = self._error or error  # the first one is the cause


def automatic_group(config: Mapping[str, Any]) -> str:
    """The experiment's name, else that of the sweep's table, else PAIR-TASK."""
    experiment = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    return str(experiment or config["table"] or f"{config['pair']['name']}-{config['task']['name']}")


def open_wandb(tracking: WandbTracking, where: Path, run_id: str, group: str, config: Mapping[str, Any]) -> Any:
    """W&B's own run under an id of ours, its files below the folder `where`. Raises whatever goes wrong there."""
    if tracking.mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send reports of its own errors
    import wandb  # slow to import, and optional for everything else

    try:
        return wandb.init(
            mode=tracking.mode,
            project=tracking.project,
            entity=tracking.entity,
            group=group,
            tags=list(tracking.tags),
            dir=str(where),
            id=run_id,
            name=run_id,
            resume="allow",
            allow_val_change=True,
            config=dict(config),
            settings=_settings(wandb),
        )
    except BaseException:
        wandb.teardown()  # or its process would stay
        raise


def _settings(wandb: Any) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        init_timeout=PATIENCE,
        login_timeout=int(PATIENCE),
        finish_timeout=2 * PATIENCE,
        finish_timeout_raises=True,
    )


def finish_wandb(run: Any, exit_code: int) -> None:
    import wandb

    try:
        run.finish(exit_code=exit_code)
    finally:
        wandb.teardown()  # waits for its process to end: files are whole, and nothing runs beside the next job


def check_writable(folder: Path) -> None:
    """W&B would go on in the system's temporary folder."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
