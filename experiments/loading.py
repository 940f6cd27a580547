"""What a job needs of models: the engine, when a text ends, and a method as plain data."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from experiments import identity
from experiments.config import TARGET_PREFIXES, Job
from experiments.launching.kept import KEEPER
from experiments.stopping import StopStrings
from viasd.decode import Decode
from viasd.engine import Engine
from viasd.method import MethodSpec, tree_nodes
from viasd.models import Pair, weights_bytes

WORTH_A_BAR = 2**30  # bytes of weights: what loads in a second needs no progress bar


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


def load_engine(job: Job, roles: Iterable[str], longest: int, nodes: int = 0) -> Engine:
    """The pair's models of these roles, with caches for a prompt of `longest` tokens, its output, and `nodes` of trees.

    Heads among the roles are loaded when a method opens them.
    """
    from transformers.utils import logging as library

    if not sys.stderr.isatty() or weights_bytes(job.pair.path("target")) < WORTH_A_BAR:
        library.disable_progress_bar()
    models = sorted({"target", *roles} - set(job.pair.heads))
    engine, slots = job.engine, longest + job.task.max_new_tokens + nodes
    load = partial(KEEPER.load, mode=engine.mode)
    return Engine.load(job.pair, models, engine.device, engine.dtype, slots, engine.mode, load)


def load_for(job: Job, methods: Iterable[MethodSpec], longest: int, loaded: Engine | None = None) -> Engine:
    """`load_engine` for all that these methods run; the engine that is loaded already, if it suffices."""
    methods = list(methods)
    roles = {"target"}.union(*(method.roles for method in methods))
    nodes = max(map(tree_nodes, methods), default=0)
    slots = longest + job.task.max_new_tokens + nodes
    if loaded is not None and roles - set(job.pair.heads) <= set(loaded.models) and slots <= loaded.slots:
        return loaded
    return load_engine(job, roles, longest, nodes)


def decode_settings(job: Job, tokenizer: Any) -> Decode:
    """When a text ends: at the task's length limit, an end mark, or one of the task's stop strings."""
    stop = StopStrings(tokenizer, job.task.stop_strings) if job.task.stop_strings else None
    return Decode(job.sampling, job.task.max_new_tokens, end_ids(job.pair, tokenizer), stop)


def end_ids(pair: Pair, tokenizer: Any) -> frozenset[int]:
    """The end marks: the tokenizer's, and what the target's generation_config.json adds (chat models have several)."""
    path = pair.path("target", weights=False) / "generation_config.json"
    told = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return frozenset(
        one for one in (tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])) if one is not None
    )
