"""The work of a probe: who it is, and everything that is measured."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from experiments import identity
from experiments.arms import vanilla
from experiments.costs import WARM_UPS, CostCurve
from experiments.errors import UserError
from experiments.loading import WORTH_A_BAR, describe
from experiments.probing.agreement import force
from experiments.probing.bounds import bounds
from experiments.probing.costs import measure_costs
from experiments.probing.predict import predicted_methods, replay_all
from experiments.probing.setup import ProbeJob, Prompt, read_prompts
from experiments.probing.summary import (
    Sample,
    Seen,
    best,
    break_even,
    summarize_agreement,
    summarize_costs,
    summarize_positions,
    summarize_predictions,
)
from experiments.probing.vocabulary import Alignment, align
from experiments.prompting import open_prompting
from experiments.threads import count_threads
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.models import common_vocabulary, context_length, weights_bytes
from viasd.sampling import Sampling

SCHEMA_VERSION = 1
NOT_ASKED = ("tasks", "results_dir", "debug")  # tasks are told in full


@dataclass(frozen=True)
class Plan:
    """What is settled before a model is loaded. `context`: tokens in the cache when steps are timed."""

    alignment: dict[str, Alignment]
    prompts: list[Prompt]
    context: int
    identity: dict[str, Any]

    @property
    def probe_id(self) -> str:
        return identity.digest(self.identity)

    @property
    def headline(self) -> str:
        who = self.identity
        return f"prompts: {len(self.prompts)}; {who['device']}, {who['dtype']}, {who['threads']} threads"


def settle(job: ProbeJob) -> Plan:
    """Check the vocabularies, read the prompts, name the probe."""
    common_vocabulary(job.pair)  # refuses a pair whose ids disagree
    device = resolve_device(job.engine.device)
    threads = count_threads(job.pair, job.engine, job.settings.results)
    torch.set_num_threads(threads)
    prompts = read_prompts(job.pair, job.tasks, job.settings, open_prompting(job.pair), Sampling())
    settings = {name: value for name, value in asdict(job.settings).items() if name not in NOT_ASKED}
    who = {
        "settings": settings,
        "method": describe(job.method),
        "tasks": describe(job.tasks),
        "prompts": identity.digest([prompt.ids for prompt in prompts]),
        "models": identity.pair_identity(job.pair),
        "views": [asdict(view) for view in job.views],
        "device": identity.device_name(device),
        "dtype": str(resolve_dtype(job.engine.dtype, device)).removeprefix("torch."),
        "threads": threads,
        "mode": job.engine.mode,
        "versions": identity.versions(),
        "code_hash": identity.code_hash(),
    }
    return Plan(align(job.pair), prompts, timing_context(job), who)


def timing_context(job: ProbeJob) -> int:
    """The context asked for, or as much as the models read beside the longest step."""
    reads = min(context_length(job.pair.path(role)) for role in job.pair.models)
    longest = job.settings.timed_lengths[-1]
    if longest >= reads:
        raise UserError(f"fed_lengths: {longest}: the models of pair {job.pair.name} read {reads}; accepted: less")
    return min(job.settings.context, reads - longest)


def measure(job: ProbeJob, plan: Plan) -> dict[str, Any]:
    """Run the models, and return what probe.json holds."""
    engine = load_engine(job, plan)
    cycles = WARM_UPS + job.settings.repeats
    # A cycle of all steps takes about as long as a prompt under all readers, so that one bar can count both.
    with tqdm(total=cycles + len(plan.prompts), desc="probe", unit="step", leave=False, disable=None) as bar:
        costs = measure_costs(engine, job, plan.context, bar.update)
        seen = observe(engine, job, plan.prompts, bar)
    return {
        "schema_version": SCHEMA_VERSION,
        "probe_id": plan.probe_id,
        "pair": job.pair.name,
        "method": job.method.name,
        "view": job.view.name,
        "split": job.settings.split,
        "prompts": job.settings.prompts,
        "repeats": job.settings.repeats,
        "device": plan.identity["device"],
        "dtype": plan.identity["dtype"],
        "threads": plan.identity["threads"],
        "config": job.composed,
        "identity": plan.identity,
        "provenance": identity.provenance(engine.device),
        "notices": job.notices,
        "vocabulary": {role: asdict(entry) for role, entry in plan.alignment.items()},
        **summarize(job, costs, seen, plan.context),
    }


def observe(engine: Engine, job: ProbeJob, prompts: list[Prompt], bar: tqdm) -> list[Seen]:
    """Every prompt under every reader, and replayed; of its rows nothing is kept, as they may be large."""
    decoder, methods = vanilla().open(engine), predicted_methods(job)
    seen = []
    for prompt in prompts:
        forced = force(engine, job, decoder, prompt)
        replays = {**replay_all(methods, forced, job.settings.seed), **bounds(engine, job, forced)}
        seen.append(Seen(prompt.task, forced.length, forced.distances, forced.sureness, replays))
        bar.update()
    return seen


def summarize(job: ProbeJob, costs: dict[str, CostCurve], seen: list[Seen], context: int) -> dict[str, Any]:
    """The measured parts of probe.json."""
    sample = Sample(seen, job.settings.seed)
    predicted = summarize_predictions(sample, job, costs)
    fastest = best(predicted, job.method.name)
    return {
        "outputs": {
            task: {"prompts": len(group), "tokens": sum(one.tokens for one in group)}
            for task, group in sample.tasks.items()
        },
        "costs": summarize_costs(costs, context),
        "agreement": summarize_agreement(sample, job),
        "positions": summarize_positions(seen),
        "predicted": predicted,
        "break_even": None if fastest is None else break_even(seen, job, costs, fastest["draft_length"]),
    }


def load_engine(job: ProbeJob, plan: Plan) -> Engine:
    """The pair's models, with caches for the longest prompt and its output, and for the longest timed step."""
    from transformers.utils import logging as library

    if not sys.stderr.isatty() or weights_bytes(job.pair.path("target")) < WORTH_A_BAR:
        library.disable_progress_bar()
    longest = max(len(prompt.ids) + prompt.decode.max_new_tokens for prompt in plan.prompts)
    slots = max(longest, plan.context + job.settings.timed_lengths[-1])
    engine = job.engine
    return Engine.load(job.pair, list(job.pair.models), engine.device, engine.dtype, slots, engine.mode)
