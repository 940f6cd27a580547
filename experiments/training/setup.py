"""What a training is asked: settings and checked objects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter

from baselines.eagle.recipes import HeadRecipe, Recipe
from baselines.eagle.training import OptimizerSpec
from experiments import identity
from experiments.config import CHECKOUT, EngineSpec, make, results_folder
from experiments.errors import UserError
from experiments.loading import describe
from experiments.probing.setup import compose_tasks
from experiments.tasks.base import Task
from experiments.tracking import Tracking
from viasd.models import Pair
from viasd.spec import spec

Count = Annotated[int, Field(ge=1)]
PRIVATE = ("out", "format", "work_dir", "debug", "processes", "save_every", "log_every")  # decide no weight
VALIDATION = ("validate_every", "validate_prompts", "draft_length")
SOURCES = {  # what decides weights
    "baselines": ("distill", "vsd"),
    "baselines/eagle": ("features", "head", "losses", "recipes", "rotary", "training", "ttt"),
    "experiments/training": ("answers", "batches", "documents", "subjects", "work"),
}


@spec
class TrainSettings:
    """The scalars of a training (conf/train_eagle.yaml says what each means)."""

    data: Annotated[str, Field(min_length=1)]
    tasks: Annotated[list[str], Field(min_length=1)] | None
    prompts: Count
    answers: Literal["target", "given"]
    max_new_tokens: Count | None
    answer_batch: Count
    target_dtype: Literal["float32", "bfloat16", "float64"]
    features: Literal["online", "cached"]
    start: Annotated[str, Field(min_length=1)] | None
    steps: Count
    batch: Count
    precision: Literal["float32", "bfloat16", "float64"]
    seed: Annotated[int, Field(ge=0)]
    validate_every: Count
    validate_prompts: Count
    draft_length: Annotated[int, Field(ge=1, le=32)]
    log_every: Count
    save_every: Count
    processes: Literal["auto", "plain", "accelerate"]
    out: Annotated[str, Field(min_length=1)] | None
    format: Literal["safeailab", "speculators"]
    work_dir: str | None
    debug: bool

    @property
    def work(self) -> Path:
        """Where everything is kept between steps."""
        return Path(self.work_dir).expanduser().resolve() if self.work_dir else results_folder(None) / "training"


@dataclass(frozen=True)
class TrainJob:
    """One training, checked but for its data. `tasks` are empty where a file is read."""

    settings: TrainSettings
    recipe: Recipe
    optimizer: OptimizerSpec
    pair: Pair
    engine: EngineSpec
    tracking: Tracking
    tasks: list[Task]
    composed: dict[str, Any]


def build(config: DictConfig) -> TrainJob:
    """Check and build everything, before any model is loaded."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in TrainSettings.__dataclass_fields__}
    settings = TypeAdapter(TrainSettings).validate_python(scalars, strict=False)
    kinds: dict[str, Any] = {
        "recipe": Recipe, "optimizer": OptimizerSpec, "pair": Pair, "engine": EngineSpec, "track": Tracking,
    }  # fmt: skip
    made = {name: make(config[name], name) for name in kinds}
    for name, kind in kinds.items():
        if not isinstance(made[name], kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    tasks: list[Task] = []
    if settings.data == "tasks":
        tasks = list(compose_tasks(settings.tasks, made["pair"]).values())
    elif not Path(settings.data).expanduser().is_file():
        raise UserError(f"data={settings.data}: no such file; accepted: tasks, or a file of JSON lines")
    recipe, optimizer, pair, engine, tracking = (made[name] for name in kinds)
    if settings.start is not None and not isinstance(recipe, HeadRecipe):
        raise UserError(f"start={settings.start}: a draft model begins with recipe.role of the pair; accepted: null")
    return TrainJob(settings, recipe, optimizer, pair, engine, tracking, tasks, composed)


def name_training(job: TrainJob, documents: str) -> dict[str, Any]:
    """Who a training is: what decides its weights. `documents`: hash of what is trained on."""
    own = {name: value for name, value in asdict(job.settings).items() if name not in PRIVATE + VALIDATION}
    files = [CHECKOUT / folder / f"{name}.py" for folder, names in SOURCES.items() for name in names]
    return {
        "settings": own,
        "recipe": describe(job.recipe),
        "optimizer": describe(job.optimizer),
        "target": identity.model_hash(job.pair.path("target")),
        "documents": documents,
        "versions": identity.versions(("torch", "transformers")),
        "code": identity.sources_hash(files),
    }
