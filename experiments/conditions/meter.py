"""What is read at both edges of a timed pass, outside of its clock: waits for a core, energy counters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from experiments.conditions.files import ROOT, children, number, text
from experiments.conditions.gpu import open_gpu

COMPUTES = 0.1  # of the busiest thread's run time: a thread with less does not belong to the computation
Threads = dict[str, tuple[int, int]]  # by thread: nanoseconds that it ran, and that it waited for a core


@dataclass(frozen=True)
class Counter:
    """An energy counter. `read` gives microjoules, None where it fails; after `span` of them it begins again at 0."""

    name: str
    read: Callable[[], int | None]
    span: int | None = None

    def joules(self, before: int | None, after: int | None) -> float | None:
        """Energy between two readings, less than `span` apart; None where one of them failed."""
        if before is None or after is None:
            return None
        wrapped = self.span if after < before and self.span else 0
        return (after - before + wrapped) / 1e6


@dataclass(frozen=True)
class Edge:
    """The readings at one edge of a pass."""

    threads: Threads
    energy: list[int | None]


class PassMeter:
    """Reads the edges of timed passes. `root`: where /proc is, for the threads of this process."""

    def __init__(self, counters: Sequence[Counter] = (), root: Path = ROOT) -> None:
        self._counters, self._tasks = list(counters), str(root / "proc/self/task")

    def read(self) -> Edge:
        """One edge."""
        return Edge(read_threads(self._tasks), [counter.read() for counter in self._counters])

    def waited_seconds(self, before: Edge, after: Edge) -> list[float]:
        """The longest that a computing thread waited for a core; empty where the system does not tell.

        While one thread of a computation waits, the others wait for it: the longest wait is what was lost at least.
        """
        spent = {
            name: (ran - before.threads.get(name, (0, 0))[0], waited - before.threads.get(name, (0, 0))[1])
            for name, (ran, waited) in after.threads.items()
        }
        busiest = max((ran for ran, _ in spent.values()), default=0)
        if busiest <= 0:  # a kernel that does not count them tells zeros
            return []
        return [max(waited for ran, waited in spent.values() if ran >= COMPUTES * busiest) / 1e9]

    def joules(self, before: Edge, after: Edge) -> list[float]:
        """Energy of all counters together; empty where there is none, or one failed."""
        pairs = zip(self._counters, before.energy, after.energy, strict=True)
        found = [counter.joules(*ends) for counter, *ends in pairs]
        known = [one for one in found if one is not None]
        return [sum(known)] if known and len(known) == len(found) else []


def open_meter(device: torch.device, root: Path = ROOT) -> PassMeter:
    """The meter of timed passes on a device."""
    return PassMeter(energy_counters(device, root), root)


def energy_counters(device: torch.device, root: Path = ROOT) -> list[Counter]:
    """Those of the processor's packages, and of the GPU where it computes.

    Where a GPU computes and tells no energy there are none: the processor's alone would say the wrong thing.
    """
    counters = rapl_counters(root)
    if device.type != "cuda":
        return counters
    gpu = open_gpu(device)
    return [] if gpu is None or gpu.microjoules() is None else [*counters, Counter("gpu", gpu.microjoules)]


def rapl_counters(root: Path = ROOT) -> list[Counter]:
    """One for each package of the processor; none where one of them cannot be read (mostly only root may).

    Source: the powercap interface of Linux, /sys/class/powercap/intel-rapl:N, which AMD's processors have too. Domains
    inside a package (core, dram, uncore) and the platform's (psys) are left out, as they overlap.
    """
    folders = children(root / "sys/class/powercap", "intel-rapl:[0-9]*")
    packages = {text(one / "name") or "": one for one in folders if one.name.count(":") == 1}
    counters = [
        Counter(name, partial(number, one / "energy_uj"), number(one / "max_energy_range_uj"))
        for name, one in packages.items()
        if name.startswith("package")
    ]
    return counters if all(counter.read() is not None for counter in counters) else []


def read_threads(folder: str) -> Threads:
    """Run and wait times of the threads in a folder as /proc/self/task: {} where the kernel does not count them."""
    found: Threads = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    for name in names:
        try:
            with open(f"{folder}/{name}/schedstat", "rb") as file:
                ran, waited, *_ = file.read().split()
        except (OSError, ValueError):  # it has ended, or there is no such file
            continue
        found[name] = int(ran), int(waited)
    return found
