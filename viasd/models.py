"""Load a pair of causal LMs, build slim views, align vocabularies."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from viasd.hub import MAIN, HubError, fetch_model, fetch_texts, is_hub_id, weight_files
from viasd.pretrained import LoadingError, Quantization, loading_options
from viasd.spec import spec

if TYPE_CHECKING:
    import torch

PACKAGE_PREFIX = "viasd://"


class PairError(ValueError):
    """A pair that cannot be used: the message names the role, the value and what is accepted."""


@spec
class About:
    """What a reader wants to know of a pair. Nothing of it decides anything, and it is no part of a run's identity.

    By role: `parameters`, those of input and output embeddings among them (`embedding_parameters`, which quantization
    leaves alone), and `kv_bytes_per_token`, bytes of keys and values of one token in 16 bits. `dtype` is what the
    weights are published in, `skip_ratio` the recommended one, and `run` says whether the pair was ever measured.
    """

    licence: str = ""
    gated: bool = False
    dtype: str = ""
    parameters: dict[str, int] = Field(default_factory=dict)
    embedding_parameters: dict[str, int] = Field(default_factory=dict)
    kv_bytes_per_token: dict[str, int] = Field(default_factory=dict)
    skip_ratio: float | None = None
    run: bool = False
    note: str = ""


def _drop_null(models: Any) -> Any:
    return {role: name for role, name in models.items() if name is not None} if isinstance(models, dict) else models


@spec
class Pair:
    """The models of a comparison by role, and the searched masks that belong to its target.

    `models` maps a role (`target` is required, `draft` is the usual second) to a folder of a `transformers` causal LM;
    `viasd://` names a folder of the installed package; a name that is no folder is one of a hub (organization/model),
    in the revision (branch, tag or commit) that `revisions` gives it, and comes from the hub's cache or is downloaded
    when it is first needed. `masks` are JSON files written by scripts/search_mask.py, `gates` those of
    scripts/train_gate.py. `heads` maps a name to what drafts from the target's own features (EAGLE): a folder, or a
    name on a hub. A role whose name is null is left out.

    Weights are safetensors unless `allow_pickle`; no code of a model's repository runs unless `trust_remote_code`.
    `device_map: auto` spreads the target over all devices (for targets that one cannot hold), `quantization` by role
    loads weights in 8 or 4 bits (bitsandbytes); both run forwards through the library's modules. `chat` says whether
    prompts go through the tokenizer's chat template; `auto`: where it has one.
    """

    name: Annotated[str, Field(min_length=1)]
    models: Annotated[dict[str, str], BeforeValidator(_drop_null)]
    revisions: dict[str, str | None] = Field(default_factory=dict)
    masks: list[str] = Field(default_factory=list)
    gates: list[str] = Field(default_factory=list)
    heads: dict[str, str] = Field(default_factory=dict)
    allow_pickle: bool = False
    trust_remote_code: bool = False
    device_map: Literal["auto"] | None = None
    quantization: dict[str, Quantization | None] = Field(default_factory=dict)
    chat: Literal["auto", "plain", "chat"] = "auto"
    about: About = Field(default_factory=About)

    def path(self, role: str, weights: bool = True) -> Path:
        """Folder of a role's model; without `weights`, of its configuration and tokenizer alone where it is on a hub.

        Raises PairError when the pair lacks the role, or there is no such model to be had.
        """
        if role not in self.models:
            raise PairError(f"pair {self.name!r} has no model for role {role!r}; it has: {sorted(self.models)}")
        name = self.models[role]
        path = locate(name)
        if (path / "config.json").is_file():
            return path
        if path.is_dir() or not is_hub_id(name):
            raise PairError(
                f"pair.models.{role}={name}: no model there; accepted: a folder with config.json and "
                "safetensors, viasd://<folder of the package>, or organization/model of a hub"
            )
        revision, code = self.revisions.get(role) or MAIN, self.trust_remote_code
        try:
            if not weights:
                return fetch_texts(name, revision, code)
            return fetch_model(name, revision, self.allow_pickle, code)
        except HubError as error:
            raise PairError(f"pair.models.{role}={name}: {error}") from error


def locate(name: str) -> Path:
    """A path as given, or a file of the installed package for names that begin with viasd://."""
    if name.startswith(PACKAGE_PREFIX):
        return Path(str(resources.files("viasd"))) / name.removeprefix(PACKAGE_PREFIX)
    return Path(name).expanduser()


def load_model(pair: Pair, role: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The role's model, in evaluation mode, loaded as the pair says. Raises PairError where that fails."""
    from transformers import AutoModelForCausalLM  # here: importing viasd must not pay for transformers

    path = pair.path(role)
    spread = pair.device_map == "auto" and role == "target"
    try:
        options = loading_options(path, dtype, device, spread, pair.quantization.get(role), pair.allow_pickle)
        model = AutoModelForCausalLM.from_pretrained(str(path), trust_remote_code=pair.trust_remote_code, **options)
    except LoadingError as error:
        raise PairError(f"pair.models.{role}={pair.models[role]}: {error}") from error
    except Exception as error:
        raise PairError(f"pair.models.{role}={pair.models[role]}: cannot load this model: {_told(error)}") from error
    if "device_map" not in options:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def context_length(folder: Path) -> int:
    """The longest sequence a model was made for; without such an entry in its config, practically any."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return int(config.get("text_config", config).get("max_position_embeddings") or 2**31)


def weights_bytes(folder: Path) -> int:
    """Size of a model's weights."""
    return sum(path.stat().st_size for path in weight_files(folder))


def load_tokenizer(pair: Pair, role: str = "target") -> Any:
    """The role's tokenizer. Raises PairError when the folder holds none that can be read."""
    from transformers import AutoTokenizer

    path = pair.path(role, weights=False)
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=pair.trust_remote_code)
    except Exception as error:
        raise PairError(
            f"pair.models.{role}={pair.models[role]}: cannot load this tokenizer: {_told(error)}"
        ) from error


def _told(error: Exception) -> str:
    """Why the library does not load something, in one line."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own repository; accepted: pair.trust_remote_code=true, where you trust that code"
    return _line(error)


def _line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def common_vocabulary(pair: Pair) -> int:
    """How many ids the target's tokenizer defines. Raises PairError when the draft's tokenizer disagrees on one."""
    target = load_tokenizer(pair).get_vocab()
    if "draft" in pair.models:
        draft = load_tokenizer(pair, "draft").get_vocab()
        named = {index: token for token, index in target.items()}
        differing = [
            token
            for token, index in draft.items()
            if target.get(token, index) != index or named.get(index, token) != token
        ]
        shared = sum(token in target for token in draft)
        if differing or shared < min(len(draft), len(target)) // 2:
            example = f", for example {differing[0]!r}" if differing else ""
            raise PairError(
                f"pair {pair.name!r}: target and draft must share token ids; {len(differing)} tokens differ and "
                f"{shared} of {len(target)} are shared{example}"
            )
    return max(target.values()) + 1


# --- slim views ---------------------------------------------------------------------------------------------------


@spec
class Branches:
    """A mask per sub-layer: the layers that keep their attention, and those that keep their mlp (as SWIFT masks)."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join([*(f"a{index}" for index in self.attention), *(f"m{index}" for index in self.mlp)])


Kept = Sequence[int] | Branches
"""What a slim view keeps: whole layers by original index, or branches of layers."""


def attention_layers(kept: Kept) -> Sequence[int]:
    """The layers whose keys and values a view reads and writes."""
    return kept.attention if isinstance(kept, Branches) else kept


def mlp_layers(kept: Kept) -> Sequence[int]:
    """The layers whose mlp a view runs."""
    return kept.mlp if isinstance(kept, Branches) else kept


def name_kept(kept: Kept) -> str:
    """What is kept, in one line."""
    return str(kept) if isinstance(kept, Branches) else " ".join(map(str, kept))


def make_view(model: Any, kept: Kept) -> Any:
    """The same model with only the layers or branches `kept` (original indices): shared modules, no copied weights.

    The model itself is untouched. Layers keep their `layer_idx`, so the view writes the model's own cache slots.
    Called without our cache it needs `use_cache=False`: the library would build a cache for the shorter list and fail.
    Raises PairError for branches of layers that are not built of `self_attn` and `mlp`.
    """
    view, base = copy_module(model), copy_module(model.get_decoder())
    indices = sorted({*kept.attention, *kept.mlp}) if isinstance(kept, Branches) else kept
    config = copy.copy(base.config)
    config.num_hidden_layers = len(indices)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in indices]
    base.config = config
    base.layers = type(base.layers)([_cut_layer(base.layers[index], index, kept) for index in indices])
    view._modules[model.base_model_prefix] = base
    return view


def _cut_layer(layer: Any, index: int, kept: Kept) -> Any:
    """The layer itself, or where one of its branches is left out a shallow copy in which that branch adds nothing."""
    if not isinstance(kept, Branches) or (index in kept.attention and index in kept.mlp):
        return layer
    from viasd.branches import leave_out  # needs torch, which reading a configuration does not

    return leave_out(layer, "mlp" if index in kept.attention else "attention")


def copy_module(module: Any) -> Any:
    """A copy that shares its parts.

    Where the module is moved between devices (accelerate), its `forward` is bound to the instance: a plain copy would
    run the whole original.
    """
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if "_old_forward" in vars(module):
        twin._old_forward = MethodType(type(module).forward, twin)
        twin.forward = partial(module.forward.func, twin)
    return twin


def layer_count(model: Any) -> int:
    """Number of decoder layers."""
    return len(model.get_decoder().layers)


def skipped_count(layers: int, ratio: float) -> int:
    """How many layers a skip ratio bypasses: round(ratio x layers), half to even as Python rounds."""
    return round(ratio * layers)


def _free_layers(layers: int, keep_ends: bool) -> list[int]:
    return list(range(1, layers - 1)) if keep_ends else list(range(layers))


def even_mask(layers: int, ratio: float, keep_ends: bool = True) -> list[int]:
    """Kept layers when the skipped ones are evenly spaced among those that may be skipped."""
    free, skip = _checked(layers, ratio, keep_ends)
    step = len(free) / skip if skip else 0
    skipped = {free[int((index + 0.5) * step)] for index in range(skip)}
    return [index for index in range(layers) if index not in skipped]


def random_mask(layers: int, ratio: float, seed: int, keep_ends: bool = True) -> list[int]:
    """Kept layers when the skipped ones are drawn uniformly among those that may be skipped."""
    free, skip = _checked(layers, ratio, keep_ends)
    skipped = set(random.Random(seed).sample(free, skip))
    return [index for index in range(layers) if index not in skipped]


def early_exit_mask(layers: int, ratio: float) -> list[int]:
    """Kept layers when the last ones are skipped."""
    return list(range(layers - skipped_count(layers, ratio)))


def _checked(layers: int, ratio: float, keep_ends: bool) -> tuple[list[int], int]:
    free, skip = _free_layers(layers, keep_ends), skipped_count(layers, ratio)
    if skip > len(free):
        raise PairError(
            f"skip_ratio={ratio} skips {skip} of {layers} layers; at most {len(free)} may be skipped"
            + (" while the first and last are kept (keep_ends=true)" if keep_ends else "")
        )
    return free, skip


def read_mask(name: str, target_hash: str, layers: int) -> list[int] | Branches:
    """What a mask file keeps. Raises PairError when it is missing, malformed or made for another model."""
    path = locate(name)
    try:
        content = json.loads(path.read_text())
        found, owner = content["kept"], str(content["target_hash"])
        kept: list[int] | Branches
        if isinstance(found, dict):
            kept = Branches(attention=found["attention"], mlp=found["mlp"])
        else:
            kept = list(map(int, found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairError(
            f"mask={name}: not a readable mask file ({_line(error)}); accepted: JSON of scripts/search_mask.py"
        ) from error
    if owner != target_hash:
        raise PairError(f"mask={name}: made for the model {owner}, this target is {target_hash}")
    check_kept(kept, layers, f"mask={name}: kept=")
    return kept


def check_kept(kept: Kept, layers: int, where: str) -> None:
    """Raise PairError, its message beginning with `where`, for what no view of `layers` layers can keep."""
    lists = [kept.attention, kept.mlp] if isinstance(kept, Branches) else [kept]
    in_order = all(list(one) == sorted(set(one)) and (not one or 0 <= one[0] <= one[-1] < layers) for one in lists)
    if not in_order or not any(lists):
        raise PairError(f"{where}{kept}: accepted: ascending layer numbers from 0 to {layers - 1}")
