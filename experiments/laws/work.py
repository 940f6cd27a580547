"""The work of a comparison of laws: who it is, rows that are missing, errors of every rule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments import identity
from experiments.arms import vanilla
from experiments.config import CHECKOUT
from experiments.laws import rows as rows_module
from experiments.laws.errors import Against, Errors, Pairs, chunks, join, rule_errors
from experiments.laws.rows import Rows, RowStore, compute_rows, fill
from experiments.laws.setup import LawJob
from experiments.laws.summary import Entry, summarize
from experiments.loading import WORTH_A_BAR, describe
from experiments.probing.setup import Prompt, read_prompts
from experiments.prompting import open_prompting
from experiments.store import create_folder
from experiments.threads import count_threads
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.models import common_vocabulary, weights_bytes
from viasd.rules import RowRule
from viasd.sampling import SeededDraws

SCHEMA_VERSION = 1
UNREAD = "draft_only"  # the law of drafts that nobody judges: the other end of every rule
Judged = tuple[str, str]  # rule, judge


@dataclass(frozen=True)
class LawPlan:
    """What is settled before a model is loaded. `rows` names the stored rows, `identity` the comparison."""

    prompts: list[Prompt]
    store: RowStore
    rows: dict[str, Any]
    identity: dict[str, Any]

    @property
    def law_id(self) -> str:
        return identity.digest(self.identity)

    @property
    def headline(self) -> str:
        who, missing = self.rows, len(self.store.missing)
        stored = "all rows are stored" if not missing else f"rows of {missing} to compute"
        return f"prompts: {len(self.prompts)}, {stored}; {who['device']}, {who['dtype']}, {who['threads']} threads"


def settle(job: LawJob) -> LawPlan:
    """Check the vocabularies, read the prompts, name rows and comparison."""
    common_vocabulary(job.pair)  # refuses a pair whose ids disagree
    device = resolve_device(job.engine.device)
    threads = count_threads(job.pair, job.engine, job.settings.results)
    torch.set_num_threads(threads)
    prompts = read_prompts(job.pair, job.tasks, job.settings, open_prompting(job.pair), job.sampling)
    models = identity.pair_identity(job.pair)
    rows = {
        "prompts": identity.digest([[prompt.ids, prompt.decode.max_new_tokens] for prompt in prompts]),
        "stops": {name: task.stop_strings for name, task in job.tasks.items()},
        "sampling": describe(job.sampling),
        "models": {role: models[role] for role in job.roles},
        "drafter": job.settings.drafter,
        "slim": describe(job.slim),
        "seed": job.settings.seed,
        "device": identity.device_name(device),
        "dtype": str(resolve_dtype(job.engine.dtype, device)).removeprefix("torch."),
        "threads": threads,
        "mode": job.engine.mode,
        "versions": identity.versions(),
        "rows_hash": rows_hash(),
    }
    who = {
        "rows": rows,
        "rules": describe(job.rules),
        "against": [job.settings.lenience, job.settings.rare],
        "code_hash": identity.code_hash(),
    }
    folder = job.settings.results / "law_errors" / "rows" / identity.digest(rows)
    return LawPlan(prompts, RowStore(folder, prompts), rows, who)


def rows_hash() -> str:
    """Hash of the sources that decide rows. Those of baselines do not: a new rule finds the rows that are there."""
    return identity.sources_hash([*(CHECKOUT / "viasd").rglob("*.py"), Path(rows_module.__file__).resolve()])


def measure(job: LawJob, plan: LawPlan) -> dict[str, Any]:
    """Compute what rows are missing, and return what law_error.json holds."""
    device = resolve_device(job.engine.device)
    with tqdm(
        total=len(plan.store.missing) + len(plan.prompts), desc="law errors", unit="prompt", leave=False, disable=None
    ) as bar:
        compute_missing(job, plan, bar.update)
        found: dict[Judged, list[Errors]] = {}
        for place in range(len(plan.prompts)):
            for key, one in prompt_errors(job, plan.store.read(place, device), place).items():
                found.setdefault(key, []).append(one)
            bar.update()
    tasks = [prompt.task for prompt in plan.prompts]
    entries: list[Entry] = summarize(tasks, found, job.settings.seed)
    return {
        "schema_version": SCHEMA_VERSION,
        "law_id": plan.law_id,
        "pair": job.pair.name,
        "temperature": job.sampling.temperature,
        "split": job.settings.split,
        "prompts": job.settings.prompts,
        "lenience": job.settings.lenience,
        "rare": job.settings.rare,
        "lossless": {label: rule.lossless for label, rule in job.rules.items()},
        "entries": entries,
        "notices": job.notices,
        "config": job.composed,
        "identity": plan.identity,
        "provenance": identity.provenance(device),
    }


def compute_missing(job: LawJob, plan: LawPlan, tick: Callable[[], object]) -> None:
    """Run the models where rows are missing; nothing is loaded where all are stored."""
    if not plan.store.missing:
        return
    create_folder(plan.store.paths[0].parent, job.settings.results)
    engine = load_engine(job, plan)
    decoder, settings = vanilla().open(engine), job.settings

    def compute(prompt: Prompt) -> Rows:
        return compute_rows(engine, prompt, decoder, settings.drafter, job.slim, settings.seed)

    for _ in fill(plan.store, plan.prompts, compute):
        tick()


def load_engine(job: LawJob, plan: LawPlan) -> Engine:
    """The models whose rows are compared, with caches for the longest prompt and its answer."""
    from transformers.utils import logging as library

    if not sys.stderr.isatty() or weights_bytes(job.pair.path("target")) < WORTH_A_BAR:
        library.disable_progress_bar()
    slots = max(len(prompt.ids) + prompt.decode.max_new_tokens for prompt in plan.prompts)
    return Engine.load(job.pair, job.roles, job.engine.device, job.engine.dtype, slots, job.engine.mode)


def prompt_errors(job: LawJob, rows: Rows, place: int) -> dict[Judged, Errors]:
    """Errors at every position of one prompt, by rule and judge."""
    against = Against(job.sampling, job.settings.lenience, job.settings.rare)
    rules: dict[str, RowRule | None] = {**job.rules, UNREAD: None}
    parts: dict[Judged, list[Errors]] = {}
    draws = {judge: SeededDraws(job.settings.seed, str(place), rows["target"].device) for judge in judges(rows)}
    for chunk in chunks(rows):
        for judge in judges(rows):
            pairs = Pairs.of(chunk, judge, job.sampling, draws[judge])
            for label, rule in rules.items():
                if rule is not None or judge == "target":
                    parts.setdefault((label, judge), []).append(rule_errors(rule, pairs, against))
    return {key: join(own) for key, own in parts.items()}


def judges(rows: Rows) -> list[str]:
    """Who rules: the target, and the slim view where there is one."""
    return [role for role in ("target", "slim") if role in rows]
