"""Where a job works: one of the jobs of its host, and alone on its device while it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.launching.jobs import is_worker
from experiments.launching.locks import Presence, alone_on, device_names, presence
from experiments.launching.sweep import current
from viasd.engine import Device, resolve_device

if TYPE_CHECKING:
    from experiments.config import Job
    from experiments.measure import Prompt
    from experiments.plan import Plan
    from viasd.models import Pair


@dataclass(frozen=True)
class Place:
    """A job's device, by the names of its locks, and its presence on the host."""

    devices: list[str]
    presence: Presence

    def others(self) -> int:
        """How many other jobs are at work on this host now."""
        return self.presence.others()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Have the device for oneself."""
        sweep = current()
        with alone_on(self.devices, what, sweep.folder.name if sweep else None):
            yield

    @contextmanager
    def timing(self, plan: Plan, missing: Sequence[Prompt]) -> Iterator[None]:
        """Be alone from loading to the end of measuring, if any example that is missing is timed."""
        if any(prompt.index < plan.timed for prompt in missing):
            with self.alone(f"run {plan.folder.run_id} on {plan.job.task.name}"):
                yield
        else:
            yield


@contextmanager
def alone_to_time(device: Device, pair: Pair, what: str) -> Iterator[None]:
    """The place of what is timed outside of runs, as a tuning: a neighbor of runs, and alone on its device."""
    devices = device_names(resolve_device(device), several=pair.device_map is not None)
    with presence() as mine, Place(devices, mine).alone(what):
        yield


@contextmanager
def open_place(job: Job) -> Iterator[Place]:
    """The place of a job while it works.

    A job that others work beside, and that is timed, is alone from here on: reading examples and hashing weights would
    disturb the one that is timed just now.
    """
    devices = device_names(resolve_device(job.engine.device), several=job.pair.device_map is not None)
    with presence() as mine:
        place = Place(devices, mine)
        if job.settings.timing and is_worker():
            with place.alone(f"a job on {job.task.name}"):
                yield place
        else:
            yield place
