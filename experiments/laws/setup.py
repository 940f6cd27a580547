"""What a comparison of laws is asked: settings, checked objects, the rules and the slim view by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter

from experiments.config import EngineSpec, make, results_folder
from experiments.errors import UserError, near
from experiments.probing.setup import compose_tasks
from experiments.resolve import resolve_mask
from experiments.tasks.base import Task
from viasd.models import Pair
from viasd.rules import RowRule
from viasd.sampling import Sampling
from viasd.spec import spec
from viasd.verification import Intermediate, SlimView

RULES, SLIMS = "verifier/rule", "verifier/slim"  # groups below conf/method


@spec
class LawSettings:
    """The scalars of a comparison (conf/law_error.yaml says what each means)."""

    rules: Annotated[list[str | dict[str, str]], Field(min_length=1)] | None
    slim: str | None
    drafter: Annotated[str, Field(min_length=1)]
    tasks: Annotated[list[str], Field(min_length=1)] | None
    split: Literal["calibration", "train"]
    prompts: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] | None
    lenience: Annotated[float, Field(gt=0, le=1)]
    rare: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0)]
    results_dir: str | None
    debug: bool

    @property
    def results(self) -> Path:
        return results_folder(self.results_dir)


@dataclass(frozen=True)
class LawJob:
    """One comparison, checked but for the prompts. `rules` by label; `slim` has its mask as layers."""

    settings: LawSettings
    pair: Pair
    sampling: Sampling
    engine: EngineSpec
    tasks: dict[str, Task]
    rules: dict[str, RowRule]
    slim: Intermediate | None
    notices: list[str]
    composed: dict[str, Any]

    @property
    def roles(self) -> list[str]:
        """Models that are run."""
        return sorted({"target", self.settings.drafter} | (frozenset() if self.slim is None else self.slim.roles))


def build(config: DictConfig) -> LawJob:
    """Check and build everything, before any model is loaded."""
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in LawSettings.__dataclass_fields__}
    settings = TypeAdapter(LawSettings).validate_python(scalars, strict=False)
    kinds = {"pair": Pair, "decode": Sampling, "engine": EngineSpec}
    made = {name: make(config[name], name) for name in kinds}
    for name, kind in kinds.items():
        if not isinstance(made[name], kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    slim, notice = read_slim(settings.slim, made["pair"])
    job = LawJob(
        settings=settings,
        pair=made["pair"],
        sampling=made["decode"],
        engine=made["engine"],
        tasks=compose_tasks(settings.tasks, made["pair"]),
        rules=read_rules(settings.rules),
        slim=slim,
        notices=[notice] if notice else [],
        composed=composed,
    )
    for role in job.roles:
        made["pair"].path(role)  # a pair that lacks one is refused here
    return job


def read_rules(names: Sequence[str | Mapping[str, str]] | None) -> dict[str, RowRule]:
    """The rules by label: all yamls, or those asked for. Raises UserError for no rule, or a label used twice."""
    asked: list[tuple[str, str]] = []
    for one in part_names(RULES) if names is None else names:
        asked += [(one, one)] if isinstance(one, str) else list(one.items())
    rules: dict[str, RowRule] = {}
    for label, text in asked:
        if label in rules:
            raise UserError(
                f"rules: two are named {label!r}; accepted: labels of their own, as in {{LABEL: NAME KEY=VALUE}}"
            )
        made = make_part(RULES, text, f"rules.{label}")
        if not isinstance(made, RowRule):
            raise UserError(
                f"rules.{label}: {type(made).__name__} is no row rule; accepted: classes with lossless and rows"
            )
        rules[label] = made
    return rules


def read_slim(text: str | None, pair: Pair) -> tuple[Intermediate | None, str | None]:
    """The slim view that is named, its mask settled, and a notice where none was searched."""
    if text is None:
        return None, None
    made = make_part(SLIMS, text, "slim")
    if not isinstance(made, SlimView):
        return made, None
    kept, notice = resolve_mask(made, pair)
    return replace(made, mask=kept), notice


def part_names(group: str) -> list[str]:
    """Names of the yamls of a group below conf/method, and of what --config-dir adds."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(f"method/{group}", ObjectType.CONFIG))


def make_part(group: str, text: str, key: str) -> Any:
    """A part of a method by `NAME KEY=VALUE ...`. Raises UserError for an unknown name or what is no key=value."""
    name, *changes = text.split() or [""]
    known = part_names(group)
    if name not in known:
        raise UserError(f"{key}: {name!r} is no yaml of conf/method/{group}{near(name, known)}")
    if wrong := [one for one in changes if "=" not in one.strip("=")]:
        raise UserError(f"{key}: {wrong[0]!r}: accepted: NAME KEY=VALUE ..., as in lenience l=0.5")
    node = OmegaConf.select(compose(config_name=f"method/{group}/{name}"), f"method.{group.replace('/', '.')}")
    own = OmegaConf.create({key: OmegaConf.to_container(node)})  # where errors of a class find the key
    return make(OmegaConf.merge(own[key], OmegaConf.from_dotlist(changes)), key)
