"""What a method costs beside time: memory, and the seconds until a command has something to say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from experiments.benching.setup import BenchPlan
from experiments.config import CHECKOUT
from experiments.errors import RunFailed
from experiments.launching.locks import VARIABLE as LOCKS
from experiments.peak_memory import DevicePeak, memory_of
from viasd.decode import Decode, Speculative
from viasd.engine import Engine
from viasd.sampling import Sampling, SeededDraws

TINY = ("track=none", "arms=[vanilla]", "limit=1", "task.max_new_tokens=4")  # a run that has next to nothing to do
HELP = ("--help",)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of parameters and caches by method; on CUDA also the most that torch held while each decoded."""

    held: dict[str, float]
    peak: dict[str, float]


def measure_memory(plan: BenchPlan, engine: Engine, decoders: Mapping[str, Speculative]) -> MemoryUse:
    """Once every cache is there, that is after a prompt."""
    held = {name: float(memory_of(decoder)) for name, decoder in decoders.items()}
    if engine.device.type != "cuda":
        return MemoryUse(held, {})
    return MemoryUse(held, {name: held[name] + _above(plan, engine, decoder) for name, decoder in decoders.items()})


def _above(plan: BenchPlan, engine: Engine, decoder: Speculative) -> float:
    """The most bytes on CUDA that decoding takes above what is there anyway: other models and caches do not count."""
    prompts = [prompt for own in plan.prompts.values() for prompt in own]
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    draws = SeededDraws(plan.job.settings.seed, longest.example.example_id, engine.device)
    with DevicePeak(engine.device) as peak:
        decoder.generate(longest.ids, Decode(Sampling(), plan.job.settings.new_tokens), draws)
    return float(peak.above)


def measure_startup(typed: Sequence[str], repeats: int, tick: Callable[[], object]) -> dict[str, float]:
    """Median seconds of a run that is stored already, and of --help, in processes of their own.

    `typed` says on which pair and engine. Raises RunFailed where such a run fails.
    """
    if repeats == 0:
        return {}
    seconds: dict[str, list[float]] = {"no-op run": [], "--help": []}
    with TemporaryDirectory() as folder:
        tiny = [*TINY, *typed, f"results_dir={folder}"]
        time_command(tiny)  # this one measures and stores
        tick()
        for _ in range(repeats):
            for name, arguments in (("no-op run", tiny), ("--help", HELP)):
                seconds[name].append(time_command(arguments))
                tick()
    return {name: median(own) for name, own in seconds.items()}


def time_command(arguments: Sequence[str]) -> float:
    """Seconds of one call of the main command. Raises RunFailed with its last line where it fails."""
    command = [sys.executable, "-m", "experiments.run", *arguments]
    with TemporaryDirectory() as locks:  # its own: it would wait for this process, which has the device
        environment = {**os.environ, LOCKS: locks}
        start = perf_counter()
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
        seconds = perf_counter() - start
    if done.returncode != 0:
        told = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise RunFailed(f"start-up: experiments.run {' '.join(arguments)}: {told}")
    return seconds
