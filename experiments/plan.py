"""What a job comes to: masks and arms settled, examples read, the run named. Nothing is measured here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import torch

from experiments import identity
from experiments.arms import check_roles, derive
from experiments.config import Job
from experiments.errors import UserError
from experiments.measure import Prompt
from experiments.resolve import SHARE_PROMPTS, gate_shares, resolve_masks
from experiments.stopping import StopStrings
from experiments.store import RunFolder
from viasd.decode import Decode
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.method import Method
from viasd.models import context_length, load_tokenizer, weights_bytes

WORTH_A_BAR = 2**30  # bytes of weights: what loads in a second needs no progress bar


@dataclasses.dataclass
class Plan:
    """A job with all that was left open settled, and who it is."""

    job: Job
    method: Method
    arms: dict[str, Method]
    prompts: list[Prompt]
    timed: int
    folder: RunFolder
    identity: dict[str, Any]
    tokenizer: Any
    engine: Engine | None
    notices: list[str]
    longest: int  # tokens of the task's longest prompt

    @property
    def example_ids(self) -> list[str]:
        return [prompt.example.example_id for prompt in self.prompts]


def settle(job: Job) -> Plan:
    """Resolve masks and arms, read the examples, name the run. Loads models only if a random gate needs its shares."""
    device = resolve_device(job.engine.device)
    check_roles(job.method, job.pair)
    method, notice = resolve_masks(job.method, job.pair)
    threads = job.engine.thread_count(weights_bytes(job.pair.path("target")))
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(job.pair)
    source = job.task.examples("test")
    everything = [Prompt(index, one, tokenizer(one.prompt).input_ids) for index, one in enumerate(source)]
    prompts = everything[: job.settings.detail_limit]
    longest = max(len(prompt.ids) for prompt in everything)  # of the whole task, so that memory does not follow limit
    check_context(job, longest)
    loaded: list[Engine] = []

    def shares() -> tuple[float, float, float]:
        calibration = [tokenizer(one.prompt).input_ids for one in job.task.examples("calibration", SHARE_PROMPTS)]
        loaded.append(load_engine(job, max(longest, *map(len, calibration))))
        return gate_shares(method, loaded[0], calibration, decode_settings(job, tokenizer), job.settings.seed)

    told = {notice}

    def resolve(arm: Method) -> Method:
        resolved, notice = resolve_masks(arm, job.pair)
        told.add(notice)
        return resolved

    arms, notices = derive(job.settings.arms, method, job.pair, shares, resolve)
    notices += sorted(text for text in told if text)
    if len(source) < job.settings.detail_limit:
        notices.append(
            f"task {job.task.name} has {len(source)} test examples: limit={job.settings.detail_limit} takes all"
        )
    content = {
        "arms": {name: describe(arm) for name, arm in arms.items()},
        "order": list(arms),
        "sampling": describe(job.sampling),
        "task": {**describe(job.task), "examples": identity.examples_hash(source)},
        "pair": {"name": job.pair.name, "models": identity.pair_identity(job.pair)},
        "seed": job.settings.seed,
        "repeats": job.settings.repeats,
        "device": identity.device_name(device),
        "dtype": str(resolve_dtype(job.engine.dtype, device)).removeprefix("torch."),
        "threads": threads,
        "versions": identity.versions(),
        "code_hash": identity.code_hash(),
    }
    folder = RunFolder(job.settings.results, identity.digest(content))
    timed = min(job.settings.limit, len(prompts))
    return Plan(
        job, method, arms, prompts, timed, folder, content, tokenizer, loaded[0] if loaded else None, notices, longest
    )


def check_context(job: Job, longest: int) -> None:
    """Raises UserError when a prompt and its output may not fit the shortest context of the pair's models."""
    for role in job.pair.models:
        context = context_length(job.pair.path(role))
        if longest + job.task.max_new_tokens > context:
            raise UserError(
                f"task.max_new_tokens={job.task.max_new_tokens}: the longest prompt has {longest} tokens, the {role} "
                f"model of pair {job.pair.name} reads {context}; accepted: at most {max(0, context - longest)}"
            )


def describe(part: Any) -> Any:
    """A spec as plain data, with the name of its class: what a yaml would say."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"_target_": f"{type(part).__module__}.{type(part).__qualname__}", **fields}
    if isinstance(part, Mapping):
        return {key: describe(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [describe(value) for value in part]
    return part


def load_engine(job: Job, longest: int) -> Engine:
    """The pair's models, with caches for a prompt of `longest` tokens and its output."""
    from transformers.utils import logging as library

    if not sys.stderr.isatty() or weights_bytes(job.pair.path("target")) < WORTH_A_BAR:
        library.disable_progress_bar()
    slots = longest + job.task.max_new_tokens
    return Engine.load(job.pair, list(job.pair.models), job.engine.device, job.engine.dtype, slots)


def decode_settings(job: Job, tokenizer: Any) -> Decode:
    stop = StopStrings(tokenizer, job.task.stop_strings) if job.task.stop_strings else None
    return Decode(job.sampling, job.task.max_new_tokens, frozenset({tokenizer.eos_token_id}), stop)
