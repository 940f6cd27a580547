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
from experiments.conversations import ANSWERER, Conversations, history_bound
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
    measured: bool = False  # whether anything was missing

    @property
    def example_ids(self) -> list[str]:
        return [prompt.example.example_id for prompt in self.prompts]

    def open_conversations(self) -> Conversations:
        """What completes the prompts of later turns."""
        job, examples = self.job, [prompt.example for prompt in self.prompts]
        return Conversations(job.pair, job.task, self.tokenizer, prompt_room(job)[0], examples)

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
    source = read_examples(job)
    tokenizer = open_tokenizer(job.pair, [one.prompt for one in source], who, job.settings.results, may_measure)
    everything, skipped = read_prompts(job, source, tokenizer)
    prompts = everything[: job.settings.detail_limit]
    longest = max(
        len(prompt.ids) + prompt.history for prompt in everything
    )  # of the whole task, so that memory does not follow limit
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
    check_answerer(job.task, everything, arms)
    notices += [*sorted(text for text in told if text), *pair_notices(job.pair), *job.task.notices()]
    if job.settings.split != "test":
        notices.append(f"prompts of split {job.settings.split}: good for choosing settings, not for claims")
    notices += size_notices(job, len(source), everything, skipped)
    if later := sum(prompt.example.follows is not None for prompt in prompts):
        notices.append(f"task {job.task.name}: {later} later turns are asked with {ANSWERER}'s answers before them")
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
    timed = min(job.settings.limit, len(prompts)) if job.settings.timing else 0
    return Plan(job, method, arms, prompts, timed, folder, content, tokenizer, before.engine, notices, longest)


def read_examples(job: Job) -> list[Example]:
    """The examples of the run's split in the task's order: all that are held out, of the others as many as it asks for.

    Raises UserError where the task has not so many.
    """
    split = job.settings.split
    try:
        return job.task.examples(split, job.settings.detail_limit if split == "train" else None)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"split={split}: task {job.task.name}: {error}") from error


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
    notices, name, usable, split = [], job.task.name, len(prompts), job.settings.split
    if cut := sum(prompt.truncated > 0 for prompt in prompts):
        notices.append(f"task {name}: {cut} of {source} {split} prompts are too long and lost their oldest text")
    if skipped:
        notices.append(f"task {name}: {skipped} of {source} {split} prompts are too long and were skipped")
    if usable < job.settings.detail_limit:
        notices.append(f"task {name} has {usable} {split} examples: limit={job.settings.detail_limit} takes all")
    return notices


def check_answerer(task: Task, prompts: Iterable[Prompt], arms: Iterable[str]) -> None:
    """Raises UserError for conversations without the arm whose answers they go on from."""
    if ANSWERER not in arms and any(prompt.example.follows is not None for prompt in prompts):
        raise UserError(
            f"arms={', '.join(arms)}: later turns of task {task.name} hold the answers of {ANSWERER}; accepted: arms "
            f"with {ANSWERER}, or task.turns=1"
        )


def prompt_room(job: Job) -> tuple[int, str]:
    """Tokens that a prompt may have beside the longest output, and the role of the model that says so."""
    contexts = {role: context_length(job.pair.path(role)) for role in job.pair.models}
    role = min(contexts, key=lambda name: contexts[name])
    return contexts[role] - job.task.max_new_tokens, role


def read_prompts(job: Job, source: Sequence[Example], tokenizer: Any) -> tuple[list[Prompt], int]:
    """The task's prompts in its order, and how many were skipped; `task.too_long` rules on those that do not fit.

    A prompt and the longest output must fit the shortest context of the pair's models. What is cut off is the oldest
    text; a begin mark stays, and of a chat all that its template adds to the user's message. Of a later turn it is the
    longest history possible that counts, so that nothing but the task decides what is skipped.

    Raises:
        UserError: a prompt is too long and is neither to be cut nor skipped, or none is left.
    """
    room, role = prompt_room(job)
    prompts: list[Prompt] = []
    turns: dict[str, list[int]] = {}  # tokens of each turn so far, by the last one
    too_long = 0
    for example in source:
        ids = tokenizer(example.prompt).input_ids
        earlier = turns.get(example.follows or "", [])
        turns[example.example_id] = [*earlier, len(ids)]
        length = len(ids) + history_bound(earlier, job.task.max_new_tokens)
        if length > room and (job.task.too_long == "error" or room < 2):
            raise _too_long(job, length, room, role, example)
        if length > room and job.task.too_long == "skip":
            too_long += 1
            continue
        excess = max(0, len(ids) - room)
        if excess:
            ids = cut_left(job.pair, tokenizer, example.prompt, ids, room)
        prompts.append(Prompt(len(prompts), example, ids, excess, history=min(length, room) - min(len(ids), room)))
    if not prompts:
        raise UserError(
            f"task.too_long=skip: all {too_long} prompts of task {job.task.name} have more than the {room} tokens that "
            f"max_new_tokens={job.task.max_new_tokens} leaves; accepted: truncate_left, or a smaller max_new_tokens"
        )
    return prompts, too_long


def _too_long(job: Job, length: int, room: int, role: str, example: Example) -> UserError:
    """What to do about a prompt that leaves no room for an answer."""
    answer, context = job.task.max_new_tokens, room + job.task.max_new_tokens
    later = example.follows is not None
    told = (
        f"a later turn may have {length} tokens with what is said before it"
        if later
        else f"a prompt has {length} tokens"
    )
    fits = "a smaller number" if later else f"at most {max(0, context - length)}"
    return UserError(
        f"task.max_new_tokens={answer}: {told}, the {role} model of pair {job.pair.name} reads {context}; accepted: "
        f"{fits}, or task.too_long=truncate_left or skip"
    )
