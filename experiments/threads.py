"""How many CPU threads a run uses where it leaves that open: what the environment says, else what is measured once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from experiments import identity
from experiments.config import EngineSpec
from experiments.costs import fill, random_ids
from experiments.launching.locks import alone_on, device_names
from experiments.store import create_folder, read_json, settle_json
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.models import Pair, weights_bytes

VARIABLE = "OMP_NUM_THREADS"
MEASURED = 2**30  # bytes of the largest target that is loaded for this; a larger one keeps all cores busy
DRAFTED, CONTEXT = 5, 64  # of the round that is timed: tokens drafted, and in the caches before it
CYCLES, SECONDS = 9, 1.0  # rounds timed with each number of threads, as far as they fit into these seconds
SLACK = 1.1  # threads wait for each other at every layer, which a shared machine punishes: more must pay


def count_threads(pair: Pair, engine: EngineSpec, results: Path) -> int:
    """The number asked for, else $OMP_NUM_THREADS, else a measured one; one where an accelerator computes.

    Measured once for a pair, type, mode, machine and code, about a second, and stored with other settled things: it is
    part of what a run is named by.
    """
    if engine.threads != "auto":
        return engine.threads
    told = os.environ.get(VARIABLE, "").partition(",")[0].strip()
    if told.isdigit() and int(told) > 0:
        return int(told)
    device = resolve_device(engine.device)
    if device.type != "cpu":
        return 1
    cores = core_count()
    if cores == 1 or weights_bytes(pair.path("target")) > MEASURED:
        return cores
    who = {
        "pair": identity.pair_identity(pair),
        "device": identity.device_name(device),
        "cores": cores,
        "dtype": str(resolve_dtype(engine.dtype, device)),
        "mode": engine.mode,
        "versions": identity.versions(),
        "code_hash": identity.code_hash(),
    }
    path = results / "settled" / f"threads_{identity.digest(who)}.json"
    stored = read_json(path)
    if stored is None:
        create_folder(path.parent, results)
        stored = settle_json(path, _measure(pair, engine, who))
    threads: int = stored["threads"]
    return threads


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(pair: Pair, engine: EngineSpec, who: Mapping[str, Any]) -> dict[str, Any]:
    roles = [role for role in ("target", "draft") if role in pair.models]
    slots = CONTEXT + DRAFTED + 1
    with alone_on(device_names(resolve_device(engine.device)), f"the number of threads for pair {pair.name}"):
        loaded = Engine.load(pair, roles, engine.device, engine.dtype, slots, engine.mode)
        seconds = time_threads(open_round(loaded), candidates(who["cores"]))
    return {"threads": fewest(seconds), "seconds": {str(count): value for count, value in seconds.items()}, **who}


def candidates(cores: int) -> list[int]:
    """1, 2, 4 and so on below the number of cores, and that number."""
    return [*(1 << power for power in range(cores.bit_length()) if 1 << power < cores), cores]


def open_round(engine: Engine) -> Callable[[], None]:
    """The forwards of one round of speculative decoding, again and again; of a target alone, one of its steps."""
    readers = engine.readers()
    target, draft = readers.get("target"), readers.get("draft") if "draft" in engine.models else None
    ids = random_ids(engine, engine.slots, seed=0)
    opened = [target] if draft is None else [target, draft]
    for reader in opened:
        fill(reader, ids, CONTEXT)

    def once() -> None:
        for reader in opened:
            reader.rewind(CONTEXT)
        if draft is not None:
            for drafted in range(DRAFTED):
                draft.feed(ids, CONTEXT + drafted + 1, last=1)
        fed = 1 if draft is None else DRAFTED + 1
        target.feed(ids, CONTEXT + fed, last=fed)

    return once


@torch.inference_mode()
def time_threads(once: Callable[[], object], counts: Sequence[int], seed: int = 0) -> dict[int, float]:
    """Median seconds of `once` by number of threads, which take turns in random order.

    Each is run twice and the second counts: the first starts threads. The number that torch had is put back.
    """
    before, started = torch.get_num_threads(), perf_counter()
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    order = random.Random(seed)
    try:
        for cycle in range(CYCLES):
            if cycle and perf_counter() - started > SECONDS:
                break
            for count in order.sample(list(counts), len(counts)):
                torch.set_num_threads(count)
                once()
                start = perf_counter()
                once()
                seconds[count].append(perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {count: median(own) for count, own in seconds.items()}


def fewest(seconds: Mapping[int, float]) -> int:
    """The fewest threads that are nearly as fast as the best number."""
    best = min(seconds.values())
    return min(count for count, value in seconds.items() if value <= SLACK * best)
