"""What a tuning is asked: settings, checked objects, the knobs of every method, the training prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter

from experiments import identity
from experiments.arms import check_roles, check_sampling, vanilla
from experiments.config import EngineSpec, Job, make, results_folder
from experiments.config import build as build_run
from experiments.errors import UserError, near
from experiments.loading import describe, load_engine
from experiments.measure import Prompt
from experiments.plan import describe_task, read_prompts, surroundings
from experiments.probing.setup import compose_tasks
from experiments.prompting import open_prompting
from experiments.tasks.base import Example, Split
from experiments.tuning.space import Knob, check_corners, parse_space, spaces
from viasd.engine import Engine
from viasd.method import Method, tree_nodes
from viasd.models import Pair
from viasd.sampling import Sampling
from viasd.spec import spec

SPLIT: Split = "train"  # what is chosen on a test split says nothing about it afterwards

TREE_NODES = "drafter.tree.nodes"


@spec
class TuneSettings:
    """The scalars of a tuning (conf/tune.yaml says what each means)."""

    also: list[str]
    tasks: Annotated[list[str], Field(min_length=1)] | None
    trials: Annotated[int, Field(ge=1)]
    prompts: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    min_fidelity: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0)]
    out: Annotated[str, Field(min_length=1)] | None
    results_dir: str | None
    debug: bool

    @property
    def results(self) -> Path:
        return results_folder(self.results_dir)


@dataclass(frozen=True)
class Tuned:
    """A method with its knobs. `composed` is its configuration, which settings are applied to."""

    method: Method
    composed: Any
    knobs: list[Knob]


@dataclass(frozen=True)
class TuneJob:
    """One tuning, checked but for the prompts. `jobs` are the runs that its trials come to, by task."""

    settings: TuneSettings
    pair: Pair
    tuned: dict[str, Tuned]
    jobs: dict[str, Job]
    composed: dict[str, Any]


def build(config: DictConfig) -> TuneJob:
    """Check and build everything, before any model is loaded."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in TuneSettings.__dataclass_fields__}
    settings = TypeAdapter(TuneSettings).validate_python(scalars, strict=False)
    kinds = {"pair": Pair, "method": Method, "decode": Sampling, "engine": EngineSpec}
    made = {name: make(config[name], name) for name in kinds}
    for name, kind in kinds.items():
        if not isinstance(made[name], kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    others = [name for name in settings.also if name != made["method"].name]
    nodes = {made["method"].name: config, **{name: _compose(name) for name in others}}
    tuned = {name: _tuned(node, made["pair"]) for name, node in nodes.items()}
    check_sampling({name: one.method for name, one in tuned.items()}, made["decode"])
    base = replace(build_run(compose(config_name="config", overrides=["track=none"])), composed=composed)
    base = replace(base, **{"sampling" if name == "decode" else name: made[name] for name in kinds})
    limits = replace(base.settings, limit=settings.prompts, seed=settings.seed, results_dir=settings.results_dir)
    base = replace(base, settings=limits)
    jobs = {}
    for name, task in compose_tasks(settings.tasks, made["pair"]).items():
        jobs[name] = replace(base, task=replace(task, max_new_tokens=settings.max_new_tokens or task.max_new_tokens))
    return TuneJob(settings, made["pair"], tuned, jobs, composed)


def _compose(name: str) -> DictConfig:
    """The configuration of another method that is tuned, with its own knobs and nobody's overrides."""
    if name not in spaces():
        raise UserError(f"also: {name!r} has no knobs in conf/tune_space{near(name, spaces())}")
    return compose(config_name="tune", overrides=[f"method={name}"])


def _tuned(config: DictConfig, pair: Pair) -> Tuned:
    method = make(config["method"], "method")
    check_roles(method, pair)
    space = OmegaConf.to_container(config["space"], resolve=True) if config.get("space") else None
    knobs = parse_space(space, method)  # type: ignore[arg-type]
    composed = OmegaConf.to_container(config["method"], resolve=True)
    check_corners(knobs, composed, method.name, pair)
    return Tuned(method, composed, knobs)


@dataclass(frozen=True)
class TunePlan:
    """A tuning with its prompts read, and who it is."""

    job: TuneJob
    tune_id: str
    identity: dict[str, Any]
    tokenizer: Any
    prompts: dict[str, list[Prompt]]  # by task

    def open_engine(self) -> Engine:
        """The models that the methods run, with room for the longest prompt, its output, and the largest tree."""
        roles = frozenset[str]().union(*(one.method.roles for one in self.job.tuned.values()), vanilla().roles)
        longest = {name: max(len(prompt.ids) for prompt in prompts) for name, prompts in self.prompts.items()}
        task = max(longest, key=lambda name: longest[name] + self.job.jobs[name].task.max_new_tokens)
        sizes = [knob.high for one in self.job.tuned.values() for knob in one.knobs if knob.name == TREE_NODES]
        nodes = max([*sizes, *(tree_nodes(one.method) for one in self.job.tuned.values())])
        return load_engine(self.job.jobs[task], roles, longest[task], nodes)


def settle(job: TuneJob) -> TunePlan:
    """Read the prompts and name the tuning. `trials` is not part of its name: more of them go on from the others."""
    tokenizer = open_prompting(job.pair)
    settings, first = job.settings, next(iter(job.jobs.values()))
    prompts, tasks = {}, {}
    for name, one in job.jobs.items():
        examples, prompts[name] = _read(name, one, tokenizer)
        tasks[name] = describe_task(one.task, examples)
    content = {
        "methods": {
            name: {"method": describe(one.method), "space": describe(one.knobs)} for name, one in job.tuned.items()
        },
        "tasks": tasks,
        "sampling": describe(first.sampling),
        "min_fidelity": settings.min_fidelity,
        "seed": settings.seed,
        "drawing": {"code": _drawing_code(), **identity.versions(("optuna",))},
        **surroundings(first),
    }
    return TunePlan(job, identity.digest(content), content, tokenizer, prompts)


def _drawing_code() -> str:
    """Hash of the sources that decide what a trial is, beside those that the hash of all measuring code covers."""
    here = Path(__file__).parent
    files = [here / name for name in ("search.py", "space.py", "trial.py")]
    files += [here.parent / name for name in ("comparison.py", "statistics.py")]
    return identity.digest({path.name: path.read_text(encoding="utf-8") for path in files})


def _read(name: str, job: Job, tokenizer: Any) -> tuple[list[Example], list[Prompt]]:
    """The training prompts of a task. Raises UserError where it has too few, or where they leave no room to answer."""
    try:
        examples = job.task.examples(SPLIT, job.settings.limit)
    except ValueError as error:
        raise UserError(f"prompts={job.settings.limit}: task {name}: {error}") from error
    try:
        return examples, read_prompts(job, examples, tokenizer)[0]
    except UserError as error:  # it names keys of a run, which a tuning has not
        raise UserError(
            f"max_new_tokens={job.task.max_new_tokens}: a prompt of task {name} leaves less room than that in the "
            f"models of pair {job.pair.name}; accepted: a smaller number"
        ) from error
