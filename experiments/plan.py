"""What a job comes to: masks and arms settled, examples read, the run named. Nothing is measured here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from experiments import identity
from experiments.arms import Context, check_roles, derive
from experiments.config import TARGET_PREFIXES, Job
from experiments.errors import UserError
from experiments.measure import Prompt
from experiments.resolve import SHARE_PROMPTS, gate_shares, resolve_masks
from experiments.stopping import StopStrings
from experiments.store import RunFolder, create_folder, read_json, replace_json
from experiments.tasks.base import Example
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

    def open_engine(self) -> Engine:
        """The models that the arms run: those loaded while planning, if they suffice."""
        roles = frozenset[str]().union(*(arm.roles for arm in self.arms.values()))
        if self.engine is not None and roles <= set(self.engine.models):
            return self.engine
        return load_engine(self.job, roles, self.longest)


class SharesUnknown(Exception):
    """A random gate needs the gate's shares, which were never measured and may not be measured now."""


def settle(job: Job, may_measure: bool = True) -> Plan:
    """Resolve masks and arms, read the examples, name the run.

    Loads models only if a random gate needs shares that are not stored yet. Raises SharesUnknown where it then may not.
    """
    check_roles(job.method, job.pair)
    method, notice = resolve_masks(job.method, job.pair)
    who = surroundings(job)
    torch.set_num_threads(who["threads"])
    tokenizer = load_tokenizer(job.pair)
    source = job.task.examples("test")
    everything, skipped = read_prompts(job, source, tokenizer)
    prompts = everything[: job.settings.detail_limit]
    longest = max(len(prompt.ids) for prompt in everything)  # of the whole task, so that memory does not follow limit
    shares = GateShares(job, method, tokenizer, longest, who, may_measure)
    told = {notice}

    def resolve(arm: Method) -> Method:
        resolved, notice = resolve_masks(arm, job.pair)
        told.add(notice)
        return resolved

    arms, notices = derive(job.settings.arms, Context(method, job.composed["method"], job.pair, shares, resolve))
    notices += [*sorted(text for text in told if text), *size_notices(job, len(source), len(everything), skipped)]
    content = {
        "arms": {name: describe(arm) for name, arm in arms.items()},
        "order": list(arms),
        "sampling": describe(job.sampling),
        "task": {**describe(job.task), "examples": identity.examples_hash(source)},
        "seed": job.settings.seed,
        "repeats": job.settings.repeats,
        **who,
    }
    folder = RunFolder(job.settings.results, identity.digest(content))
    timed = min(job.settings.limit, len(prompts))
    return Plan(job, method, arms, prompts, timed, folder, content, tokenizer, shares.engine, notices, longest)


def surroundings(job: Job) -> dict[str, Any]:
    """The part of a run's identity that is not asked for: models, machine, versions, code."""
    device = resolve_device(job.engine.device)
    return {
        "pair": {"name": job.pair.name, "models": identity.pair_identity(job.pair)},
        "device": identity.device_name(device),
        "dtype": str(resolve_dtype(job.engine.dtype, device)).removeprefix("torch."),
        "threads": job.engine.thread_count(weights_bytes(job.pair.path("target"))),
        "mode": job.engine.mode,
        "versions": identity.versions(),
        "code_hash": identity.code_hash(),
    }


def size_notices(job: Job, source: int, usable: int, skipped: int) -> list[str]:
    """What a reader of the table must know about the number of examples."""
    notices, name = [], job.task.name
    if skipped:
        notices.append(f"task {name}: {skipped} of {source} test prompts are too long and were skipped")
    if usable < job.settings.detail_limit:
        notices.append(f"task {name} has {usable} test examples: limit={job.settings.detail_limit} takes all")
    return notices


@dataclasses.dataclass
class GateShares:
    """Measures, when asked, how often the method's gate keeps, rewrites and escalates; stored for the next time."""

    job: Job
    method: Method
    tokenizer: Any
    longest: int
    who: dict[str, Any]
    may_measure: bool
    engine: Engine | None = None  # loaded for it, of use to the run

    def __call__(self) -> tuple[float, float, float]:
        """(keep, rewrite, escalate). Raises SharesUnknown."""
        job = self.job
        problems = job.task.in_seen_wording().examples("calibration", SHARE_PROMPTS)
        calibration = [self.tokenizer(one.prompt).input_ids for one in problems]
        asked = {
            **self.who,
            "method": describe(self.method),
            "sampling": describe(job.sampling),
            "max_new_tokens": job.task.max_new_tokens,
            "stop_strings": job.task.stop_strings,
            "prompts": calibration,
            "seed": job.settings.seed,
        }
        path = job.settings.results / "settled" / f"gate_{identity.digest(asked)}.json"
        stored = read_json(path)
        if stored is None:
            if not self.may_measure:
                raise SharesUnknown
            self.engine = load_engine(job, self.method.roles, max(self.longest, *map(len, calibration)))
            decode = decode_settings(job, self.tokenizer)
            stored = {"shares": gate_shares(self.method, self.engine, calibration, decode, job.settings.seed)}
            create_folder(path.parent, job.settings.results)
            replace_json(path, stored)
        keep, rewrite, escalate = stored["shares"]
        return keep, rewrite, escalate


def read_prompts(job: Job, source: Sequence[Example], tokenizer: Any) -> tuple[list[Prompt], int]:
    """The task's prompts in its order, and how many were skipped; `task.too_long` rules on those that do not fit.

    A prompt and the longest output must fit the shortest context of the pair's models. What is cut off is the oldest
    text; a begin mark stays.

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
            ids = [ids[0], *ids[excess + 1 :]] if ids[0] == tokenizer.bos_token_id else ids[excess:]
        prompts.append(Prompt(len(prompts), example, ids, truncated=max(0, excess)))
    if not prompts:
        raise UserError(
            f"task.too_long=skip: all {too_long} prompts of task {job.task.name} have more than the {room} tokens that "
            f"max_new_tokens={job.task.max_new_tokens} leaves; accepted: truncate_left, or a smaller max_new_tokens"
        )
    return prompts, too_long if job.task.too_long == "skip" else 0


def describe(part: Any) -> Any:
    """A spec as plain data, with the name of its class: what a yaml would say. Own classes come with their source."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        own = (
            {} if type(part).__module__.startswith(TARGET_PREFIXES) else {"_source_": identity.source_hash(type(part))}
        )
        return {"_target_": f"{type(part).__module__}.{type(part).__qualname__}", **own, **fields}
    if isinstance(part, Mapping):
        return {key: describe(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [describe(value) for value in part]
    return part


def load_engine(job: Job, roles: Iterable[str], longest: int) -> Engine:
    """The pair's models of these roles, with caches for a prompt of `longest` tokens and its output."""
    from transformers.utils import logging as library

    if not sys.stderr.isatty() or weights_bytes(job.pair.path("target")) < WORTH_A_BAR:
        library.disable_progress_bar()
    slots = longest + job.task.max_new_tokens
    engine = job.engine
    return Engine.load(job.pair, sorted({"target", *roles}), engine.device, engine.dtype, slots, engine.mode)


def decode_settings(job: Job, tokenizer: Any) -> Decode:
    """When a text ends: at the task's length limit, the tokenizer's end mark, or one of the task's stop strings."""
    stop = StopStrings(tokenizer, job.task.stop_strings) if job.task.stop_strings else None
    return Decode(job.sampling, job.task.max_new_tokens, frozenset({tokenizer.eos_token_id}), stop)
