"""From the composed configuration to checked objects: everything a run is made of."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import Field, TypeAdapter

from experiments.entry import results_folder as results_folder  # commands find it here, too
from experiments.errors import UserError, config_folders, near
from experiments.prompting import speaks_chat
from experiments.tasks.base import Split, Task
from experiments.tracking import Tracking
from viasd.method import MethodSpec
from viasd.models import Pair
from viasd.sampling import Sampling
from viasd.spec import spec

CHECKOUT = Path(__file__).resolve().parent.parent
TARGET_PREFIXES = ("viasd.", "baselines.", "experiments.")


def share(part: float, of: float) -> float:
    """A share of a number, with four digits and never more than the number: `${share:0.5,${KEY}}` in a value."""
    return min(of, float(f"{part * of:.4g}"))


OmegaConf.register_new_resolver("share", share, replace=True)


@spec
class EngineSpec:
    """Where and how models run. `auto` dtype is float32 on a CPU, bfloat16 on CUDA; threads are CPU threads
    (`experiments.threads` says what `auto` is).

    `mode`: `eager` runs the library's modules, `fused` the same layers with fewer operations, `graphs` recordings of
    those (CUDA), `compile` the same layers compiled (on CUDA recorded too), `auto`, where a model's family is known,
    `graphs` on CUDA and `fused` on a CPU, else `eager`.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    mode: Literal["auto", "eager", "fused", "graphs", "compile"] = "auto"


@spec
class Settings:
    """The scalars of a run (conf/config.yaml says what each means)."""

    arms: Annotated[list[str | dict[str, str]], Field(min_length=1)]
    limit: Annotated[int, Field(ge=1)]
    quality_limit: Annotated[int, Field(ge=1)] | None
    repeats: Annotated[int, Field(ge=1, le=100)]
    seed: Annotated[int, Field(ge=0)]
    split: Split
    max_errors: Annotated[int, Field(ge=0)]
    timing: bool = True
    table_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None
    results_dir: str | None
    debug: bool

    @property
    def detail_limit(self) -> int:
        """Examples judged off the clock; the timed ones are the first of them."""
        return max(self.limit, self.quality_limit or 0)

    @property
    def results(self) -> Path:
        return results_folder(self.results_dir)


@dataclass(frozen=True)
class Job:
    """One run: a method with its arms on one pair and one task."""

    settings: Settings
    method: MethodSpec
    pair: Pair
    task: Task
    sampling: Sampling
    engine: EngineSpec
    tracking: Any
    composed: dict[str, Any]  # the configuration as composed, for the record


def build(config: DictConfig) -> Job:
    """Check and build everything, before any model is loaded."""
    if "sizes" in config and config["size"] not in config["sizes"]:
        raise UserError(f"size={config['size']}: not found{near(str(config['size']), config['sizes'])}")
    composed: Any = OmegaConf.to_container(config, resolve=True)
    scalars = {name: composed[name] for name in Settings.__dataclass_fields__}
    settings = TypeAdapter(Settings).validate_python(scalars, strict=False)
    made = {name: make(config[name], name) for name in ("method", "pair", "task", "decode", "engine", "track")}
    for name, kind in (
        ("method", MethodSpec),
        ("pair", Pair),
        ("task", Task),
        ("decode", Sampling),
        ("engine", EngineSpec),
        ("track", Tracking),
    ):
        if not isinstance(made[name], kind):
            raise UserError(f"{name}._target_={config[name].get('_target_')}: not a {kind.__name__}")
    return Job(
        settings=settings,
        method=made["method"],
        pair=made["pair"],
        task=made["task"].in_chat() if speaks_chat(made["pair"]) else made["task"],
        sampling=made["decode"],
        engine=made["engine"],
        tracking=made["track"],
        composed=composed,
    )


def make(node: Any, key: str) -> Any:
    """Instantiate one group. Classes of this project may be named, and own dataclasses; nothing else can be run."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{key}={node!r}: a {key} is chosen by name, as in {key}=NAME")
    if missing := sorted(OmegaConf.missing_keys(node)):
        where = missing[0] if missing[0].startswith(f"{key}.") else f"{key}.{missing[0]}"
        raise UserError(f"{where}: no value; it has to be given, as in {where}=VALUE")
    for name, target in _targets(node, key):
        _check_class(name, target)
    return instantiate(node, _convert_="all")


def _check_class(key: str, target: str) -> None:
    """Nothing but specs can be made: of this project, of the folder of --config-dir, or of the Python path."""
    sys.path += [str(folder) for folder in config_folders()[1:] if str(folder) not in sys.path]
    try:
        own = get_object(target)
    except Exception as error:
        raise UserError(
            f"{key}._target_={target}: cannot be imported ({error}); accepted: classes of viasd, baselines or "
            "experiments, and of modules in the folder of --config-dir or on the PYTHONPATH"
        ) from error
    if not isinstance(own, type) or not is_dataclass(own):
        raise UserError(
            f"{key}._target_={target}: accepted: classes of viasd, baselines or experiments, and own classes that are "
            "dataclasses (decorate them with viasd.spec.spec)"
        )


def _targets(node: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(node, ListConfig):
        return [pair for i, one in enumerate(node) for pair in _targets(one, f"{key}.{i}")]
    if not isinstance(node, DictConfig):
        return []
    own = [(key, str(node["_target_"]))] if "_target_" in node else []
    return own + [pair for name in node for pair in _targets(node[name], f"{key}.{name!s}")]


def vary(method: Any, label: str, overrides: str) -> MethodSpec:
    """The composed method under another name with some of its keys changed, as in `stop.length=3 verifier.mode=lossy`.

    A key that is a group below conf/method takes the name of one of its yamls: `verifier/gate=deferral`; `method=NAME`
    as the first one begins with that yaml of conf/method instead. Raises UserError for what is no key=value; keys the
    method does not know fail as they do on the command line.
    """
    wrong = [text for text in overrides.split() if "=" not in text.strip("=")]
    if wrong or not overrides.split():
        raise UserError(f"arms: {label}: {overrides!r}: accepted: KEY=VALUE of the method, as in stop.length=3")
    texts = overrides.split()
    if texts[0].startswith("method="):
        method = _compose_method(texts.pop(0).partition("=")[2])
    node = OmegaConf.create(method)
    changes = [text for text in texts if not _choose_part(node, *text.split("=", 1))]
    return make(OmegaConf.merge(node, OmegaConf.from_dotlist(changes), {"name": label}), f"arms: {label}")


def _choose_part(method: DictConfig, key: str, name: str) -> bool:
    """Put a yaml of the group conf/method/KEY in its place, if there is such a group. Raises UserError for its name."""
    path = key.replace("/", ".")
    loader = GlobalHydra.instance().config_loader()
    options = _options(loader, f"method/{key}")
    if not options:
        return False
    if name not in options:
        raise UserError(f"{key}={name}: not found{near(name, options)}")
    chosen = _compose_once(loader, f"method/{key}/{name}", ())
    OmegaConf.update(method, path, copy.deepcopy(OmegaConf.select(chosen, f"method.{path}")), merge=False)
    return True


def method_names() -> list[str]:
    """Names of the yamls in conf/method, and in method/ of what `--config-dir` adds."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options("method", ObjectType.CONFIG))


def compose_method(name: str) -> MethodSpec:
    """A method by the name of its yaml in conf/method."""
    return make(_compose_method(name), f"method={name}")


def _compose_method(name: str) -> DictConfig:
    return copy.deepcopy(_compose_once(GlobalHydra.instance().config_loader(), "config", (f"method={name}",))["method"])


@lru_cache(maxsize=512)
def _compose_once(loader: ConfigLoader, config_name: str, overrides: tuple[str, ...]) -> DictConfig:
    """A composition, made once by each of Hydra's loaders: the arms of many jobs name the same parts. To be copied."""
    return compose(config_name=config_name, overrides=list(overrides))


@lru_cache(maxsize=512)
def _options(loader: ConfigLoader, group: str) -> list[str]:
    """The yamls of a group, read once by each of Hydra's loaders."""
    return loader.get_group_options(group, ObjectType.CONFIG)
