"""What a probe is asked: settings, checked objects, the slim views to compare, the prompts to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from hydra import compose
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter

from experiments.config import CHECKOUT, EngineSpec, make, results_folder
from experiments.errors import UserError, near
from experiments.identity import model_hash
from experiments.prompting import speaks_chat
from experiments.resolve import resolve_mask, searched_masks, target_layers
from experiments.stopping import StopStrings
from experiments.tasks.base import Procedural, Split, Task
from viasd.decode import Decode
from viasd.drafting import DraftModel
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Branches, Pair, context_length, even_mask, name_kept, read_mask
from viasd.sampling import Sampling
from viasd.spec import spec
from viasd.verification import SlimView

Length = Annotated[int, Field(ge=1, le=1024)]
DraftLength = Annotated[int, Field(ge=1, le=64)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


@spec
class ProbeSettings:
    """The scalars of a probe (conf/probe.yaml says what each means)."""

    tasks: Annotated[list[str], Field(min_length=1)] | None
    split: Literal["calibration", "test"]
    prompts: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    context: Annotated[int, Field(ge=1)]
    fed_lengths: Annotated[list[Length], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1)]
    skip_ratios: list[Ratio]
    draft_lengths: Annotated[list[DraftLength], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    results_dir: str | None
    debug: bool

    @property
    def timed_lengths(self) -> list[int]:
        """Fed lengths in order, a single token among them: costs are told relative to a target step."""
        return sorted({1, *self.fed_lengths})

    @property
    def results(self) -> Path:
        return results_folder(self.results_dir)


@dataclass(frozen=True)
class View:
    """A slim view of the target: how its mask came about, the ratio that was asked for, the layers it keeps."""

    mask: str  # even, searched, or chosen (the method names it)
    skip_ratio: float
    kept: list[int] | Branches
    layers: int  # of the target

    @property
    def skipped(self) -> float:
        """In layers; a branch counts half."""
        if isinstance(self.kept, Branches):
            return self.layers - (len(self.kept.attention) + len(self.kept.mlp)) / 2
        return self.layers - len(self.kept)

    @property
    def name(self) -> str:
        return f"slim -{self.skipped:g} {self.mask}"


@dataclass(frozen=True)
class Prompt:
    """One prompt's ids and what the target's output to it obeys."""

    task: str
    ids: list[int]
    decode: Decode


@dataclass(frozen=True)
class ProbeJob:
    """One probe, checked and settled but for the models.

    `method` has its mask as layers; `view` is its slim view, one of `views`. `drafter` is the role that drafts, None
    where the pair has no such model.
    """

    settings: ProbeSettings
    pair: Pair
    method: Method
    engine: EngineSpec
    tasks: dict[str, Task]
    views: list[View]
    view: View
    drafter: str | None
    notices: list[str]
    composed: dict[str, Any]


def build(config: DictConfig) -> ProbeJob:
    """Check and build everything, before any model is loaded."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in ProbeSettings.__dataclass_fields__}
    settings = TypeAdapter(ProbeSettings).validate_python(scalars, strict=False)
    pair, method, engine = (make(config[name], name) for name in ("pair", "method", "engine"))
    for name, made, kind in (("pair", pair, Pair), ("method", method, Method), ("engine", engine, EngineSpec)):
        if not isinstance(made, kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    if not isinstance(method.verifier, Hierarchical) or not isinstance(method.drafter, DraftModel):
        raise UserError(f"method={method.name}: accepted: a draft model under a hierarchical verifier, as in via_sd")
    own = method.verifier.slim
    if not isinstance(own, SlimView) or method.verifier.above:
        raise UserError(
            f"method={method.name}: a probe looks at one slim view; accepted: verifier.above=[] and a SlimView"
        )
    views, view, notices = list_views(pair, own, settings.skip_ratios)
    drafter = method.drafter.role if method.drafter.role in pair.models else None
    if drafter is None:
        notices.append(f"pair {pair.name} has no {method.drafter.role} model: sd and {method.name} are not predicted")
    slim = replace(own, mask=view.kept)
    return ProbeJob(
        settings=settings,
        pair=pair,
        method=replace(method, verifier=replace(method.verifier, slim=slim)),
        engine=engine,
        tasks=compose_tasks(settings.tasks, pair),
        views=views,
        view=view,
        drafter=drafter,
        notices=notices,
        composed=composed,
    )


def task_names() -> list[str]:
    """Names of the yamls in conf/task."""
    return sorted(path.stem for path in (CHECKOUT / "conf" / "task").glob("*.yaml"))


def compose_tasks(asked: Sequence[str] | None, pair: Pair) -> dict[str, Task]:
    """Tasks by the names of their yamls, as the pair is asked; None: all that need no data.

    Raises UserError for a name that has no yaml.
    """
    known = task_names()
    if unknown := [name for name in asked or () if name not in known]:
        raise UserError(f"tasks: {unknown[0]!r} not found{near(unknown[0], known)}")
    names = dict.fromkeys(asked or filter(_is_procedural, known))
    nodes = {name: compose(config_name="config", overrides=[f"task={name}"])["task"] for name in names}
    made = {name: make(node, f"task={name}") for name, node in nodes.items()}
    return {name: task.in_chat() if speaks_chat(pair) else task for name, task in made.items()}


def _is_procedural(name: str) -> bool:
    node = OmegaConf.load(CHECKOUT / "conf" / "task" / f"{name}.yaml")
    return issubclass(get_class(OmegaConf.select(node, "_target_")), Procedural)


def list_views(pair: Pair, slim: SlimView, ratios: list[float]) -> tuple[list[View], View, list[str]]:
    """The distinct slim views, by layers skipped: even and searched masks of each ratio, and the method's own view."""
    layers, keep_ends = target_layers(pair), slim.keep_ends
    target = model_hash(pair.path("target"))
    searched = [read_mask(name, target, layers) for name in searched_masks(pair, target, slim.cache)]
    views: dict[str, View] = {}
    for ratio in sorted({*ratios, slim.skip_ratio}):
        even = even_mask(layers, ratio, keep_ends)
        if len(even) == layers:
            continue  # nothing is skipped: that is the target
        views.setdefault(name_kept(even), View("even", ratio, even, layers))
        for kept in searched:
            if isinstance(kept, list) and len(kept) == len(even):
                views.setdefault(name_kept(kept), View("searched", ratio, kept, layers))
    own, notice = resolve_mask(slim, pair)
    view = views.setdefault(name_kept(own), View("chosen", slim.skip_ratio, own, layers))
    return sorted(views.values(), key=lambda one: one.skipped), view, [notice] if notice else []


class PromptsAsked(Protocol):
    """Which prompts of each task are read, and how long an answer may be (None: as the task says)."""

    @property
    def split(self) -> Split: ...
    @property
    def prompts(self) -> int: ...
    @property
    def max_new_tokens(self) -> int | None: ...


def read_prompts(
    pair: Pair, tasks: Mapping[str, Task], asked: PromptsAsked, tokenizer: Any, sampling: Sampling
) -> list[Prompt]:
    """Prompts of every task. Raises UserError where a task has too few, or they do not fit the models."""
    context = min(context_length(pair.path(role)) for role in pair.models)
    prompts = []
    for name, task in tasks.items():
        budget = asked.max_new_tokens or task.max_new_tokens
        stop = StopStrings(tokenizer, task.stop_strings) if task.stop_strings else None
        decode = Decode(sampling, budget, frozenset({tokenizer.eos_token_id}), stop)
        try:
            examples = [one for one in task.examples(asked.split, asked.prompts) if one.follows is None]  # first turns
        except ValueError as error:
            raise UserError(f"prompts={asked.prompts}: {error}") from error
        for example in examples:
            ids = tokenizer(example.prompt).input_ids
            if len(ids) + budget > context:
                raise UserError(
                    f"max_new_tokens={budget}: a prompt of task {name} has {len(ids)} tokens, the models of pair "
                    f"{pair.name} read {context}; accepted: at most {max(0, context - len(ids))}"
                )
            prompts.append(Prompt(name, ids, decode))
    return prompts
