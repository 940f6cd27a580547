"""What the jobs of a sweep tell each other and the process that started them, by files: launchers share nothing else.

A sweep has a folder below sweeps/ of the results: sweep.json, and one file for each job that was started.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from experiments.entry import GPU_ORDER, results_folder
from experiments.errors import CONFIG_DIRS, config_folders
from experiments.launching import slots

if TYPE_CHECKING:
    from experiments.plan import Plan

PREFIX = "VIASD_"  # of all our variables
IN_PROCESS = ".BasicLauncher"  # Hydra's own launcher, whose jobs run one by one where the sweep was started
VARIABLE = "VIASD_SWEEP"  # the sweep's folder, in the environment of its jobs
State = Literal["running", "done", "failed", "interrupted"]
slots.register()  # wherever a configuration is composed, this was imported: it is named there
_WANTED: list[bool] = []  # whether this process wants to hear of its jobs; not where they are only planned
_ELSEWHERE: list[Callable[[], None]] = []  # what is to begin with a sweep whose jobs run in other processes
_BEGUN: list[Sweep] = []  # by this process, which is the one that started it


@dataclass(frozen=True)
class Outcome:
    """One job: what was asked for, what became of it, and what a table over the sweep needs. `seconds` is its own time.

    `measured`: whether anything was missing. `code`: its exit code. `example_ids` are those asked for, of which the
    first `timed` are timed. `letters`: what its process, which is not the one that waits for it, has for W&B.
    """

    number: int
    overrides: list[str]
    task: str
    state: State
    seconds: float = 0.0
    measured: bool = False
    process: str = ""
    reason: str = ""
    code: int = 0
    run_id: str = ""
    results: str = ""
    table: str | None = None
    timed: int = 0
    example_ids: list[str] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)

    def ran(self, plan: Plan) -> dict[str, Any]:
        """The fields that a finished job adds."""
        return {
            "run_id": plan.folder.run_id,
            "results": str(plan.folder.results),
            "table": plan.job.settings.table_name,
            "timed": plan.timed,
            "example_ids": plan.example_ids,
        }


@dataclass(frozen=True)
class Sweep:
    """`total`: number of jobs, None where the sweeper alone knows; `varying`: the keys in which they differ.

    `began` is seconds since the epoch; `process` names the one that started the sweep; `typed`: Hydra's own overrides,
    as the user gave them.
    """

    folder: Path
    total: int | None
    varying: list[str]
    began: float
    process: str
    typed: list[str]
    config_dirs: list[str]

    @classmethod
    def read(cls, folder: Path) -> Sweep | None:
        """The sweep of a folder, or None where that could not be written."""
        try:
            return cls(folder=folder, **json.loads((folder / "sweep.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def begin(self) -> None:
        """Make the folder. What cannot be written is left out: the jobs will say so."""
        with suppress(OSError):
            self.folder.mkdir(parents=True)
            told = {name: value for name, value in asdict(self).items() if name != "folder"}
            (self.folder / "sweep.json").write_text(json.dumps(told), encoding="utf-8")

    def store(self, outcome: Outcome) -> None:
        """Write what is known of a job, whole or not at all; a full disk must not hide what the job itself says."""
        path = self._path(outcome.number)
        beside = path.with_suffix(".tmp")
        with suppress(OSError):
            beside.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
            beside.replace(path)

    def outcomes(self, but: Collection[int] = ()) -> list[Outcome]:
        """Of all jobs that were started, in their order; without those of these numbers, which are not read."""
        left_out = {self._path(number).name for number in but}
        paths = [path for path in sorted(self.folder.glob("job_*.json")) if path.name not in left_out]
        return [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def _path(self, number: int) -> Path:
        return self.folder / f"job_{number:04d}.json"

    def label(self, outcome: Outcome) -> str:
        """What a job is called: where it differs from the others."""
        own = [text for text in outcome.overrides if text.partition("=")[0] in self.varying]
        return " ".join(own or outcome.overrides) or outcome.task

    @property
    def is_mine(self) -> bool:
        """Whether this process started the sweep: then nothing works beside it."""
        return self.process == this_process()


def this_process() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def current() -> Sweep | None:
    """The sweep that the job of this process belongs to."""
    folder = os.environ.get(VARIABLE)
    return Sweep.read(Path(folder)) if folder else None


def begun() -> Sweep | None:
    """The sweep that this process started."""
    return _BEGUN[-1] if _BEGUN else None


def expect(wanted: bool, elsewhere: Callable[[], None] | None = None) -> None:
    """Another command starts in this process: whether the jobs of its sweep are to tell what becomes of them.

    `elsewhere` is called once a sweep begins whose jobs run in other processes.
    """
    _BEGUN.clear()
    _WANTED[:] = [wanted]
    _ELSEWHERE[:] = [] if elsewhere is None else [elsewhere]


class Announce(Callback):  # type: ignore[misc]
    """Called by Hydra in the process that starts a sweep: tells every job of it, wherever it runs, of its folder."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        told = environment(config)
        with read_write(config.hydra):
            config.hydra.job.env_set = told

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        told = environment(config)
        if _WANTED == [True]:
            sweep = new_sweep(config)
            sweep.begin()
            _BEGUN.append(sweep)
            if not config.hydra.launcher.get("_target_", "").endswith(IN_PROCESS):
                for begin in _ELSEWHERE:
                    begin()
            told |= {VARIABLE: str(sweep.folder), CONFIG_DIRS: os.pathsep.join(sweep.config_dirs)}
        with read_write(config.hydra), open_dict(config.hydra):
            # Jobs are composed anew from these, also in other processes and on other machines.
            config.hydra.overrides.hydra += [f"++hydra.job.env_set.{name}={quoted(at)}" for name, at in told.items()]


def environment(config: DictConfig) -> dict[str, str]:
    """What jobs find in their environment wherever they run: ours, the order of GPUs, what a launcher's yaml sets.

    As numbers: where Hydra sets it, the keys that yamls name are gone.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(PREFIX) or name == GPU_ORDER}
    return own | {str(name): str(value) for name, value in config.hydra.job.env_set.items()}


def new_sweep(config: DictConfig) -> Sweep:
    """The sweep that this process starts now."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    counts = count_values(config)
    return Sweep(
        folder=results_folder(config.get("results_dir")) / "sweeps" / name,
        total=None if counts is None else prod(counts.values()),
        varying=[key for key, count in (counts or {}).items() if count > 1],
        began=time.time(),
        process=this_process(),
        typed=[text for text in map(str, config.hydra.overrides.hydra) if not text.startswith("hydra.mode=")],
        config_dirs=[str(folder) for folder in config_folders()[1:]],
    )


def quoted(text: str) -> str:
    """As a string of Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def count_values(config: DictConfig) -> dict[str, int] | None:
    """How many values each key of a sweep takes; None where that is not for us to know (a range, another sweeper)."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    try:
        return {
            one.get_key_element(): len(list(one.sweep_string_iterator())) if one.is_sweep_override() else 1
            for one in OverridesParser.create().parse_overrides(texts)
        }
    except Exception:
        return None


def product_commands(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Overrides that rerun these jobs and no others: jobs that differ in one key alone are joined, as in `task=a,b`."""
    split = [{key: equals + value for key, equals, value in (text.partition("=") for text in job)} for job in jobs]
    keys = list(dict.fromkeys(key for job in split for key in job))
    valued = [key for key in keys if all(job.get(key) != "" for job in split)]  # not those that are taken out, as ~KEY
    varying = max(valued, key=lambda key: len({job.get(key) for job in split}), default="")
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for job in split:
        rest = tuple((key, value) for key, value in job.items() if key != varying)
        groups.setdefault(rest, []).append(job.get(varying, ""))
    commands = []
    for rest, values in groups.items():
        told = ",".join(value.removeprefix("=") for value in dict.fromkeys(values))
        own = [f"{varying}={told}"] if varying and values != [""] else []
        commands.append([*(f"{key}{value}" for key, value in rest), *own])
    return commands
