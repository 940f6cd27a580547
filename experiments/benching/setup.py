"""What a bench is asked: settings, checked objects, the methods to measure, the prompts to continue."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field, TypeAdapter

from experiments import identity
from experiments.arms import Context, Shares, derive
from experiments.config import Job, results_folder
from experiments.config import build as build_run
from experiments.errors import UserError
from experiments.loading import load_engine
from experiments.measure import Prompt
from experiments.plan import read_prompts, surroundings
from experiments.probing.setup import compose_tasks
from experiments.prompting import open_prompting
from experiments.resolve import resolve_method
from experiments.tasks.base import Split
from viasd.drafting import FixedLength
from viasd.engine import Dtype, Engine
from viasd.method import Method, MethodSpec
from viasd.models import common_vocabulary, context_length
from viasd.spec import spec

SPLIT: Split = "calibration"
TWINS = {"vanilla": "generate", "sd": "assisted"}  # our loop -> the library's that does the same
OF_A_RUN = ("pair", "method", "engine", "seed", "results_dir", "debug")  # what a bench shares with a run


@spec
class BenchSettings:
    """The scalars of a bench (conf/bench.yaml says what each means)."""

    methods: list[str | dict[str, str]]
    tasks: Annotated[list[str], Field(min_length=1)] | None
    prompts: Annotated[int, Field(ge=1)]
    new_tokens: Annotated[int, Field(ge=2)]
    repeats: Annotated[int, Field(ge=1, le=100)]
    exact_prompts: Annotated[int, Field(ge=0)]
    contexts: list[Annotated[int, Field(ge=2)]]
    step_repeats: Annotated[int, Field(ge=1)]
    copy_mib: Annotated[int, Field(ge=1)]
    startup_repeats: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    results_dir: str | None
    debug: bool

    @property
    def results(self) -> Path:
        return results_folder(self.results_dir)


@dataclass(frozen=True)
class BenchJob:
    """One bench, checked but for the prompts. `jobs` are the runs that it comes to, by task; `arms` its methods."""

    settings: BenchSettings
    jobs: dict[str, Job]
    arms: dict[str, Method]
    notices: list[str]
    composed: dict[str, Any]

    @property
    def run(self) -> Job:
        """One of the runs, for what they share: pair, engine, method."""
        return next(iter(self.jobs.values()))

    @property
    def draft_length(self) -> int | None:
        """Tokens per draft of sd; None where the pair has no draft model."""
        stop = self.arms["sd"].stop if "sd" in self.arms else None
        return stop.length if isinstance(stop, FixedLength) else None


def build(config: DictConfig) -> BenchJob:
    """Check and build everything, before any model is loaded."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in BenchSettings.__dataclass_fields__}
    settings = TypeAdapter(BenchSettings).validate_python(scalars, strict=False)
    run = compose(config_name="config", overrides=["track=none"])
    with open_dict(run):
        run.update({name: config[name] for name in OF_A_RUN})
    base = replace(build_run(run), composed=composed)
    arms, notices = derive_arms(base, settings)
    jobs = {
        name: replace(base, task=replace(task, max_new_tokens=settings.new_tokens))
        for name, task in compose_tasks(settings.tasks, base.pair).items()
    }
    return BenchJob(settings, jobs, arms, notices, composed)


def derive_arms(base: Job, settings: BenchSettings) -> tuple[dict[str, Method], list[str]]:
    """vanilla, sd, the method and those named beside it, their masks settled, and notices."""
    told = []

    def resolve(arm: MethodSpec) -> MethodSpec:
        resolved, notice = resolve_method(arm, base.pair)
        told.append(notice)
        return resolved

    def no_shares() -> Shares:
        raise UserError("methods: random_gate: the shares of a gate are measured by a run; accepted: other controls")

    context = Context(resolve(base.method), base.composed["method"], base.pair, no_shares, resolve)
    try:
        arms, notices = derive(["vanilla", "sd", "method", *settings.methods], context)
    except UserError as error:  # it speaks of the key that names them in a run
        raise UserError(re.sub(r"^arms\b", "methods", str(error))) from error
    if taken := set(arms) & set(TWINS.values()):
        raise UserError(f"methods: {taken.pop()}: the library's loops are named {', '.join(TWINS.values())}")
    ours = {name: arm for name, arm in arms.items() if isinstance(arm, Method)}
    if other := set(arms) - set(ours):
        raise UserError(
            f"methods: {other.pop()}: a bench measures the loops of the library anyway, beside those that do the same; "
            "accepted: methods of drafter, stop rule and verifier"
        )
    return ours, notices + sorted({text for text in told if text})


@dataclass(frozen=True)
class BenchPlan:
    """A bench with its prompts read, and where it is measured.

    `reads` is the longest sequence that all models of the pair read, `vocabulary` the number of their common ids.
    """

    job: BenchJob
    prompts: dict[str, list[Prompt]]  # by task
    tokenizer: Any
    vocabulary: int
    reads: int
    identity: dict[str, Any]

    @property
    def headline(self) -> str:
        who, settings = self.identity, self.job.settings
        return (
            f"{sum(map(len, self.prompts.values()))} prompts of {', '.join(self.prompts)}, {settings.new_tokens} new "
            f"tokens, drafts of {self.job.draft_length or 0}; {who['device']}, {who['dtype']}, {who['threads']} threads"
        )

    @property
    def exact_prompts(self) -> list[Prompt]:
        """The prompts that are continued in float64, too; none where that is what the bench runs in anyway."""
        count = 0 if self.identity["dtype"] == "float64" else self.job.settings.exact_prompts
        return [prompt for own in self.prompts.values() for prompt in own[:count]]

    def open_engine(self, roles: Iterable[str], dtype: Dtype) -> Engine:
        """The models of these roles, with room for every prompt and its output."""
        run = self.job.run
        run = replace(run, engine=replace(run.engine, dtype=dtype))
        longest = max(len(prompt.ids) for prompts in self.prompts.values() for prompt in prompts)
        return load_engine(run, roles, longest)


def settle(job: BenchJob) -> BenchPlan:
    """Check the vocabularies, read the prompts, say where this is."""
    run = job.run
    vocabulary = common_vocabulary(run.pair)  # refuses a pair whose ids disagree
    who = surroundings(run)
    torch.set_num_threads(who["threads"])
    check_contexts(job)
    tokenizer = open_prompting(run.pair)
    prompts = {name: _read(name, one, job.settings.prompts, tokenizer) for name, one in job.jobs.items()}
    reads = min(context_length(run.pair.path(role)) for role in run.pair.models)
    return BenchPlan(job, prompts, tokenizer, vocabulary, reads, {**who, "prompts": _ids_hash(prompts)})


def check_contexts(job: BenchJob) -> None:
    """Raises UserError for a context that the longest step does not fit in."""
    longest = (job.draft_length or 0) + 1
    for context in job.settings.contexts:
        if context <= longest:
            raise UserError(f"contexts: {context}: steps of {longest} tokens end there; accepted: more than {longest}")


def _ids_hash(prompts: dict[str, list[Prompt]]) -> str:
    return identity.digest([prompt.ids for own in prompts.values() for prompt in own])


def _read(name: str, run: Job, count: int, tokenizer: Any) -> list[Prompt]:
    """The prompts of a task. Raises UserError where it has too few, or where they leave no room for the output."""
    try:
        examples = run.task.examples(SPLIT, count)
    except ValueError as error:
        raise UserError(f"prompts={count}: {error}") from error
    try:
        return read_prompts(run, examples, tokenizer)[0]
    except UserError as error:  # it names keys of a run, which a bench has not
        raise UserError(
            f"new_tokens={run.task.max_new_tokens}: a prompt of task {name} leaves less room than that in the models "
            f"of pair {run.pair.name}; accepted: a smaller number"
        ) from error
