"""The work of a bench: everything that is measured, one part after the other, in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from experiments import identity
from experiments.benching.loops import compare_exactly, measure_loops, same_outputs
from experiments.benching.setup import TWINS, BenchPlan
from experiments.benching.steps import DRAFTER, Steps, find_views, measure_steps
from experiments.benching.summary import (
    cuda_lines,
    harness_lines,
    loop_lines,
    memory_lines,
    startup_lines,
    step_lines,
)
from experiments.benching.usage import MemoryUse, measure_memory, measure_startup
from experiments.costs import WARM_UPS
from experiments.records import Row
from viasd.engine import resolve_device

SCHEMA_VERSION = 1
Tick = Callable[[], object]


@dataclass(frozen=True)
class Found:
    """All that was measured. `exact`: by our loop, of each prompt, whether the library writes the same in float64."""

    rows: list[Row]
    exact: dict[str, list[bool]]
    memory: MemoryUse
    steps: Steps
    startup: dict[str, float]
    provenance: dict[str, Any]


def measure(plan: BenchPlan, typed: Sequence[str]) -> dict[str, Any]:
    """Run all parts, and return what the bench's JSON holds. `typed`: what was said of the pair and the engine."""
    settings = plan.job.settings
    prompts = sum(map(len, plan.prompts.values())) + len(plan.exact_prompts)
    cycles = (WARM_UPS + settings.step_repeats) * len(set(settings.contexts))
    starts = 1 + 2 * settings.startup_repeats if settings.startup_repeats else 0
    with tqdm(total=prompts + cycles + starts, desc="bench", unit="step", leave=False, disable=None) as bar:
        found = _run_parts(plan, typed, bar.update)
    return summarize(plan, found)


def _run_parts(plan: BenchPlan, typed: Sequence[str], tick: Tick) -> Found:
    settings, run = plan.job.settings, plan.job.run
    engine = plan.open_engine(run.pair.models, run.engine.dtype)
    decoders = {name: arm.open(engine) for name, arm in plan.job.arms.items()}
    rows = measure_loops(plan, engine, decoders, tick)
    memory, views = measure_memory(plan, engine, decoders), find_views(engine, decoders)
    models, device = engine.models, engine.device
    del engine, decoders  # its joined weights, before the next engine joins them anew
    gc.collect()
    exact = check_outputs(plan, rows, tick)
    steps = measure_steps(plan, models, views, tick)
    startup = measure_startup(typed, settings.startup_repeats, tick)
    return Found(rows, exact, memory, steps, startup, identity.provenance(device))


def check_outputs(plan: BenchPlan, rows: Sequence[Row], tick: Tick) -> dict[str, list[bool]]:
    """Whether ours and the library's loops write the same in float64, where both can continue this pair's prompts."""
    timed = {own: same_outputs(rows, own, twin) for own, twin in TWINS.items()}
    if plan.identity["dtype"] == "float64":
        return timed
    return compare_exactly(plan, [own for own, same in timed.items() if same], tick)


def summarize(plan: BenchPlan, found: Found) -> dict[str, Any]:
    """What the bench's JSON holds."""
    job, who = plan.job, plan.identity
    loops, device = list(dict.fromkeys(row.arm for row in found.rows)), resolve_device(job.run.engine.device).type
    lines = [
        *loop_lines(found.rows, loops, who["dtype"], found.exact),
        *harness_lines(found.rows, list(job.arms), device),
        *step_lines(found.steps, plan.reads),
        *(cuda_lines(found.steps, DRAFTER) if device == "cuda" else []),
        *memory_lines(found.memory),
        *startup_lines(found.startup),
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "pair": job.run.pair.name,
        "headline": plan.headline,
        "draft_length": job.draft_length,
        "lines": [asdict(one) for one in lines],
        "notices": [*job.notices, *failures(found.rows), *differences(found.exact)],
        "steps": asdict(found.steps),
        "memory": asdict(found.memory),
        "exact": found.exact,
        "seconds": seconds(found.rows),
        "config": job.composed,
        "identity": who,
        "provenance": found.provenance,
    }


def failures(rows: Sequence[Row]) -> list[str]:
    """What went wrong in each loop, the first of its errors."""
    first = {row.arm: row for row in reversed(rows) if row.error is not None}
    counts = {arm: sum(row.arm == arm and row.error is not None for row in rows) for arm in first}
    return [f"{arm} failed on {counts[arm]} prompts, which are left out: {row.error}" for arm, row in first.items()]


def differences(exact: dict[str, list[bool]]) -> list[str]:
    """Loops that do not write what the library writes, where rounding is no excuse."""
    return [
        f"{own} and {TWINS[own]} differ in float64 on {len(same) - sum(same)} of {len(same)} prompts"
        for own, same in exact.items()
        if not all(same)
    ]


def seconds(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every request by loop and example, one for each repeat."""
    told: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        both = zip(row.prefill_seconds, row.decode_seconds, strict=True)
        told.setdefault(row.arm, {})[row.example_id] = [prefill + decode for prefill, decode in both]
    return told
