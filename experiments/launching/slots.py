"""How many jobs work at once on this host or its GPUs, and which are whose, where no scheduler rules on that."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from experiments.errors import UserError
from experiments.launching.locks import POLL, VISIBLE, lock_folder, plain, visible_gpus

SLOTS, GPUS = "VIASD_SLOTS", "VIASD_SLOT_GPUS"  # jobs at once on a host, GPUs of each; set by presets of launchers
_CLAIMED: list[FileLock] = []  # this process's slot, kept until it ends: CUDA keeps the GPUs it started with


def claim_slot(device: str = "auto") -> None:
    """Take one of the slots of this host or of its GPUs, where the launcher's preset says how many, and see its own.

    Sweeps on GPUs of their own do not wait for each other; those on the processor (`device`: cpu) share its cores.
    """
    told = os.environ.get(SLOTS, "")
    if _CLAIMED or not told:
        return
    own, waits = int(os.environ.get(GPUS) or 0), False
    gpus = visible_gpus() if own or device != "cpu" else []
    while True:
        for number in range(int(told)):
            mine = gpus[number * own : (number + 1) * own]
            if take(slot_names(number, mine, gpus)):
                if own:
                    os.environ[VISIBLE] = ",".join(mine)
                return
        if not waits:
            where = f"on {', '.join(gpus[: int(told) * max(own, 1)])}" if gpus else "of this host"
            print(f"waiting for one of {told} slots {where} (launch.jobs)", file=sys.stderr, flush=True)
            waits = True
        time.sleep(POLL)


def slot_names(number: int, mine: Sequence[str], gpus: Sequence[str]) -> list[str]:
    """What is locked for a slot: each of its own GPUs; else a place on the GPU that is used, or on the processor."""
    if mine:
        return [f"{plain(one)}_0" for one in sorted(mine)]
    return [f"{plain(gpus[0])}_{number}" if gpus else str(number)]


def take(names: Sequence[str]) -> bool:
    """Have all of these locks, or none of them."""
    taken: list[FileLock] = []
    for name in names:
        lock = FileLock(lock_folder() / f"slot_{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            for one in taken:
                one.release()
            return False
        taken.append(lock)
    _CLAIMED.extend(taken)
    return True


def jobs_at_once(jobs: int | None, threads: int | str, gpus: int) -> int:
    """How many jobs work at once: as asked for, else as many as fit. Raises UserError for more than that."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = threads_of_a_job(threads)
    room = max(1, cores // each)
    what = f"{each} threads on {cores} cores"
    if gpus:
        found = len(visible_gpus())
        room, what = min(room, found // gpus), f"{what}, {gpus} of {found} GPUs"
    if jobs is None and room:
        return room
    if jobs is None or not 1 <= jobs <= room:
        raise UserError(
            f"launch.jobs={jobs}: each takes {what}; accepted: 1 to {room}" if room else f"launch.gpus={gpus}: {what}"
        )
    return jobs


def threads_of_a_job(threads: int | str) -> int:
    """CPU threads of a job that has others beside it: `engine.threads`, else $OMP_NUM_THREADS, else 1."""
    told = str(threads) if str(threads).isdigit() else os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, int(told)) if told.strip().isdigit() else 1


def register() -> None:
    """Make known what the yamls of launchers compute."""
    known: dict[str, Any] = {
        "jobs_at_once": jobs_at_once,
        "threads_of_a_job": threads_of_a_job,
        "visible_gpus": lambda: ",".join(visible_gpus()),
        "either": lambda one, other: one or other,
    }
    for name, resolver in known.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
