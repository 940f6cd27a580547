"""The decode loops of this project and of the library, measured side by side on the same models and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from baselines.hf import AssistantModel, LibraryLoop
from experiments.benching.setup import TWINS, BenchPlan
from experiments.costs import calibrate
from experiments.measure import Bench
from experiments.records import PER_REPEAT, Row
from viasd.decode import Decode, Decoder, Speculative
from viasd.engine import Engine
from viasd.sampling import Sampling, SeededDraws


def open_twins(engine: Engine, draft_length: int | None) -> dict[str, LibraryLoop]:
    """The library's loops; assisted generation where there is a draft model, which always drafts that many tokens."""
    twins = {TWINS["vanilla"]: LibraryLoop(engine)}
    if draft_length is None:
        return twins
    assistant = AssistantModel(num_assistant_tokens=draft_length, assistant_confidence_threshold=0.0)
    return {**twins, TWINS["sd"]: LibraryLoop(engine, assistant)}


def measure_loops(
    plan: BenchPlan, engine: Engine, decoders: Mapping[str, Speculative], tick: Callable[[], object]
) -> list[Row]:
    """Rows of every prompt in every loop, all repeats interleaved. `tick` is called per prompt.

    Isolated costs of calls are measured anew before every prompt: a shared machine is twice as fast in one minute as in
    another, and what a loop is compared with has to be of the same one.
    """
    settings = plan.job.settings
    arms: dict[str, Decoder] = {**decoders, **open_twins(engine, plan.job.draft_length)}
    decode = Decode(Sampling(), settings.new_tokens)
    rows: list[Row] = []
    for name, prompts in plan.prompts.items():
        task = plan.job.jobs[name].task
        bench = Bench(engine, arms, task, plan.tokenizer, decode, settings.seed, settings.repeats)
        bench.warm_up(prompts[0].ids)
        for prompt in prompts:
            with TemporaryDirectory() as folder:
                bench.costs = calibrate(engine, decoders, plan.identity, Path(folder))
            rows += bench.measure(prompt, timed=True)
            tick()
    return rows


def at_median(row: Row) -> Row:
    """The row as if each of its repeats had taken their median."""
    seconds: dict[str, Any] = {name: [median(values)] for name in PER_REPEAT if (values := getattr(row, name))}
    return dataclasses.replace(row, **seconds)


def same_outputs(rows: Sequence[Row], one: str, other: str) -> list[bool]:
    """Of every prompt that both loops continued: whether by the same ids."""
    outputs = {(row.example_id, row.arm): row.token_ids for row in rows if row.error is None}
    own = [(example_id, ids) for (example_id, arm), ids in outputs.items() if arm == one]
    return [ids == outputs[example_id, other] for example_id, ids in own if (example_id, other) in outputs]


def compare_exactly(plan: BenchPlan, loops: Sequence[str], tick: Callable[[], object]) -> dict[str, list[bool]]:
    """The same in float64, where rounding decides nothing, for the first prompts of each task: by our loop."""
    same: dict[str, list[bool]] = {name: [] for name in loops}
    if not plan.exact_prompts:
        return same
    methods = {name: plan.job.arms[name] for name in loops}
    engine = plan.open_engine({role for method in methods.values() for role in method.roles}, "float64")
    twins = open_twins(engine, plan.job.draft_length if "sd" in loops else None)
    opened: dict[str, Decoder] = {name: method.open(engine) for name, method in methods.items()}
    decode = Decode(Sampling(), plan.job.settings.new_tokens)
    for prompt in plan.exact_prompts:
        draws = SeededDraws(plan.job.settings.seed, prompt.example.example_id, engine.device)
        for name, decoder in opened.items():
            ours, theirs = (loop.generate(prompt.ids, decode, draws) for loop in (decoder, twins[TWINS[name]]))
            same[name].append(ours.token_ids == theirs.token_ids)
        tick()
    return same
