"""What a job comes to: masks and arms settled, examples read, the run named. Nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from baselines.hf import LibraryMethod
from experiments import identity
from experiments.arms import Context, Shares, check_roles, check_sampling, derive
from experiments.beforehand import Beforehand
from experiments.config import Job
from experiments.errors import UserError
from experiments.loading import describe, load_for
from experiments.measure import Prompt
from experiments.prompting import cut_left, speaks_chat
from experiments.resolve import resolve_method
from experiments.store import RunFolder
from experiments.tasks.base import Example, Task
from experiments.threads import count_threads
from experiments.tokens import open_tokenizer
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.method import MethodSpec
from viasd.models import Pair, context_length


@dataclasses.dataclass
class Plan:
    """A job with all that was left open settled, and who it is."""

    job: Job
    method: MethodSpec
    arms: dict[str, MethodSpec]
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

    def open_engine(self) -> Engine:
        """The models that the arms run: those loaded while planning, if they suffice."""
        return load_for(self.job, self.arms.values(), self.longest, self.engine)


def settle(job: Job, may_measure: bool = True) -> Plan:
    """Resolve masks and arms, read the examples, name the run.

    Loads models only if something has to be measured before (experiments.beforehand) that is not stored yet. Raises
    NotMeasured where it then may not.
    """
    check_roles(job.method, job.pair)
    method, notice = resolve_method(job.method, job.pair)
    who = surroundings(job)
    torch.set_num_threads(who["threads"])
    source = job.task.examples("test")
    tokenizer = open_tokenizer(job.pair, [one.prompt for one in source], who, job.settings.results, may_measure)
    everything, skipped = read_prompts(job, source, tokenizer)
    prompts = everything[: job.settings.detail_limit]
    longest = max(len(prompt.ids) for prompt in everything)  # of the whole task, so that memory does not follow limit
    before = Beforehand(job, tokenizer, longest, who, may_measure)
    told = {notice}

    def resolve(arm: MethodSpec) -> MethodSpec:
        resolved, notice = resolve_method(arm, job.pair)
        told.add(notice)
        return before.priced(resolved)

    def shares() -> Shares:
        return before.gate_shares(method)

    arms, notices = derive(job.settings.arms, Context(method, job.composed["method"], job.pair, shares, resolve))
    check_sampling(arms, job.sampling)
    notices += [*sorted(text for text in told if text), *pair_notices(job.pair), *job.task.notices()]
    notices += size_notices(job, len(source), everything, skipped)
    content: dict[str, Any] = {
        "arms": {name: describe(arm) for name, arm in arms.items()},
        "order": list(arms),
        "sampling": describe(job.sampling),
        "task": describe_task(job.task, source),
        "seed": job.settings.seed,
        "repeats": job.settings.repeats,
        **who,
    }
    if optional := optional_packages(arms.values()):
        content["optional"] = optional
        notices += [
            f"{name} is installed: it changes how arms of the library draft" for name in optional if optional[name]
        ]
    if heads := sorted({name for arm in arms.values() for name in arm.roles} & set(job.pair.heads)):
        content["heads"] = {name: identity.head_hash(job.pair, name) for name in heads}
    folder = RunFolder(job.settings.results, identity.digest(content))
    timed = min(job.settings.limit, len(prompts))
    return Plan(job, method, arms, prompts, timed, folder, content, tokenizer, before.engine, notices, longest)


def describe_task(task: Task, examples: Sequence[Example]) -> dict[str, Any]:
    """What of a task decides rows: its keys, its examples wherever they were read from, and what judges them."""
    keys = {key: value for key, value in describe(task).items() if key != "path"}
    return {**keys, "examples": identity.examples_hash(examples), "scorer": task.scorer()}


def optional_packages(arms: Iterable[MethodSpec]) -> dict[str, str | None]:
    """Versions of what no arm needs and some of the library's loops use where it is installed (None: it is not)."""
    names = {name for arm in arms if isinstance(arm, LibraryMethod) for name in arm.optional_packages}
    return identity.optional_versions(sorted(names))


def surroundings(job: Job) -> dict[str, Any]:
    """The part of a run's identity that is not asked for: models, machine, versions, code."""
    device = resolve_device(job.engine.device)
    return {
        "pair": {
            "name": job.pair.name,
            "models": identity.pair_identity(job.pair),
            **identity.loading_identity(job.pair),
        },
        "device": identity.device_name(device),
        "dtype": str(resolve_dtype(job.engine.dtype, device)).removeprefix("torch."),
        "threads": count_threads(job.pair, job.engine, job.settings.results),
        "mode": job.engine.mode,
        "chat": speaks_chat(job.pair),
        "versions": identity.versions(),
        "code_hash": identity.code_hash(),
    }


def pair_notices(pair: Pair) -> list[str]:
    """What a reader of the table must know about how models are loaded."""
    notices = [f"pair {pair.name}: the {role} model runs in {bits}" for role, bits in pair.quantization.items() if bits]
    if pair.trust_remote_code:
        notices.append(
            f"pair {pair.name}: trust_remote_code=true, code of the models' repositories runs in this process"
        )
    return notices


def size_notices(job: Job, source: int, prompts: Sequence[Prompt], skipped: int) -> list[str]:
    """What a reader of the table must know about the number of examples, and about those that were cut."""
    notices, name, usable = [], job.task.name, len(prompts)
    if cut := sum(prompt.truncated > 0 for prompt in prompts):
        notices.append(f"task {name}: {cut} of {source} test prompts are too long and lost their oldest text")
    if skipped:
        notices.append(f"task {name}: {skipped} of {source} test prompts are too long and were skipped")
    if usable < job.settings.detail_limit:
        notices.append(f"task {name} has {usable} test examples: limit={job.settings.detail_limit} takes all")
    return notices


def read_prompts(job: Job, source: Sequence[Example], tokenizer: Any) -> tuple[list[Prompt], int]:
    """The task's prompts in its order, and how many were skipped; `task.too_long` rules on those that do not fit.

    A prompt and the longest output must fit the shortest context of the pair's models. What is cut off is the oldest
    text; a begin mark stays, and of a chat all that its template adds to the user's message.

    Raises:
        UserError: a prompt is too long and is neither to be cut nor skipped, or none is left.
    """
    contexts = {role: context_length(job.pair.path(role)) for role in job.pair.models}
    role = min(contexts, key=lambda name: contexts[name])
    room = contexts[role] - job.task.max_new_tokens
    prompts: list[Prompt] = []
    too_long = 0
    for example in source:
        ids = tokenizer(example.prompt).input_ids
        excess = len(ids) - room
        if excess > 0 and (job.task.too_long == "error" or room < 2):
            raise UserError(
                f"task.max_new_tokens={job.task.max_new_tokens}: a prompt has {len(ids)} tokens, the {role} model of "
                f"pair {job.pair.name} reads {contexts[role]}; accepted: at most {max(0, contexts[role] - len(ids))}, "
                "or task.too_long=truncate_left or skip"
            )
        if excess > 0:
            too_long += 1
            if job.task.too_long == "skip":
                continue
            ids = cut_left(job.pair, tokenizer, example.prompt, ids, room)
        prompts.append(Prompt(len(prompts), example, ids, truncated=max(0, excess)))
    if not prompts:
        raise UserError(
            f"task.too_long=skip: all {too_long} prompts of task {job.task.name} have more than the {room} tokens that "
            f"max_new_tokens={job.task.max_new_tokens} leaves; accepted: truncate_left, or a smaller max_new_tokens"
        )
    return prompts, too_long if job.task.too_long == "skip" else 0
