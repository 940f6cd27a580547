"""Decode one prompt by one method, and by vanilla where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter

from experiments.arms import check_roles, check_sampling, vanilla
from experiments.beforehand import Beforehand
from experiments.config import EngineSpec, Job, Settings, make
from experiments.errors import UserError
from experiments.loading import decode_settings, load_for
from experiments.measure import Stopwatch
from experiments.plan import surroundings
from experiments.prompting import open_prompting
from experiments.resolve import resolve_method
from experiments.tasks.base import Task
from viasd.decode import Generation
from viasd.engine import Engine
from viasd.method import MethodSpec
from viasd.models import Pair, context_length
from viasd.sampling import Sampling, SeededDraws
from viasd.spec import spec

WARM_UP_TOKENS = 8
KINDS = {"method": MethodSpec, "pair": Pair, "task": Task, "decode": Sampling, "engine": EngineSpec}


@spec
class AskSettings:
    """The scalars of a question (conf/ask.yaml says what each means)."""

    max_new_tokens: Annotated[int, Field(ge=1)]
    compare: bool
    seed: Annotated[int, Field(ge=0)]
    results_dir: str | None
    debug: bool


@dataclass(frozen=True)
class Answer:
    """One method's answer. `seconds` are those of decoding, the first token's included; `sources` one per token."""

    method: str
    generation: Generation
    seconds: float
    sources: list[str]


@dataclass(frozen=True)
class Asked:
    """The answers, the method's first, with the tokenizer that reads them."""

    job: Job
    tokenizer: Any
    answers: list[Answer]
    notices: list[str]


def build(config: DictConfig) -> tuple[Job, AskSettings]:
    """Check everything before a model is loaded. The task is there for what methods may want to calibrate."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in AskSettings.__dataclass_fields__}
    asked = TypeAdapter(AskSettings).validate_python(scalars, strict=False)
    made = {name: make(config[name], name) for name in KINDS}
    for name, kind in KINDS.items():
        if not isinstance(made[name], kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    settings = Settings(
        arms=["method"],
        limit=1,
        quality_limit=None,
        repeats=1,
        seed=asked.seed,
        split="test",
        max_errors=0,
        table_name=None,
        results_dir=asked.results_dir,
        debug=asked.debug,
    )
    task = replace(made["task"], max_new_tokens=asked.max_new_tokens, stop_strings=[])
    job = Job(settings, made["method"], made["pair"], task, made["decode"], made["engine"], None, composed)
    return job, asked


def ask(config: DictConfig, prompt: str) -> Asked:
    """The answer to a prompt. Raises UserError for one that is empty, or too long for the models."""
    job, asked = build(config)
    check_roles(job.method, job.pair)
    tokenizer = open_prompting(job.pair)
    ids = list(tokenizer(prompt).input_ids)
    if not ids:
        raise UserError("the prompt has no tokens; accepted: a text")
    check_room(job, len(ids))
    resolved, notice = resolve_method(job.method, job.pair)
    who = surroundings(job)
    torch.set_num_threads(who["threads"])
    before = Beforehand(job, tokenizer, len(ids), who, may_measure=True)
    methods = [before.priced(resolved), *([vanilla()] if asked.compare else [])]
    check_sampling({one.name: one for one in methods}, job.sampling)
    engine = load_for(job, methods, len(ids), before.engine)
    answers = [decode_by(method, job, engine, ids, tokenizer) for method in methods]
    return Asked(job, tokenizer, answers, [notice] if notice else [])


def check_room(job: Job, length: int) -> None:
    """Raises UserError where prompt and answer do not fit the shortest context of the pair's models."""
    contexts = {role: context_length(job.pair.path(role, weights=False)) for role in job.pair.models}
    role = min(contexts, key=lambda name: contexts[name])
    room = contexts[role] - length
    if job.task.max_new_tokens > room:
        raise UserError(
            f"max_new_tokens={job.task.max_new_tokens}: the prompt has {length} tokens, and the {role} model of pair "
            f"{job.pair.name} reads {contexts[role]}; accepted: at most {max(0, room)}"
        )


def decode_by(method: MethodSpec, job: Job, engine: Engine, ids: list[int], tokenizer: Any) -> Answer:
    """One answer, after a few tokens that are not counted."""
    decoder, decode = method.open(engine), decode_settings(job, tokenizer)
    short = replace(decode, max_new_tokens=min(WARM_UP_TOKENS, decode.max_new_tokens))
    decoder.generate(ids, short, SeededDraws(job.settings.seed, "warm-up", engine.device))
    engine.prepare()
    watch = Stopwatch(engine.device)
    with watch:
        generation = decoder.generate(ids, decode, SeededDraws(job.settings.seed, "ask", engine.device), watch=watch)
    sources: list[str] = [source for one in generation.rounds for source in one.sources]
    if len(sources) != len(generation.token_ids):  # a loop of the library, whose every token is the target's choice
        sources = ["target"] * len(generation.token_ids)
    return Answer(method.name, generation, watch.end - watch.prefilled, sources)
