"""Load a pair of causal LMs, build slim views, align vocabularies."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from viasd.spec import spec

if TYPE_CHECKING:
    import torch

PACKAGE_PREFIX = "viasd://"


class PairError(ValueError):
    """A pair that cannot be used: the message names the role, the value and what is accepted."""


@spec
class Pair:
    """The models of a comparison by role, and the searched masks that belong to its target.

    `models` maps a role (`target` is required, `draft` is the usual second) to a folder of a `transformers` causal LM;
    `viasd://` names a folder of the installed package. `masks` are JSON files written by scripts/search_mask.py,
    `gates` those of scripts/train_gate.py. `heads` maps a name to what drafts from the target's own features (EAGLE): a
    folder, or a name on a hub.
    """

    name: Annotated[str, Field(min_length=1)]
    models: dict[str, str]
    masks: list[str] = Field(default_factory=list)
    gates: list[str] = Field(default_factory=list)
    heads: dict[str, str] = Field(default_factory=dict)

    def path(self, role: str) -> Path:
        """Folder of a role's model. Raises PairError when the pair lacks the role or the folder is missing."""
        if role not in self.models:
            raise PairError(f"pair {self.name!r} has no model for role {role!r}; it has: {sorted(self.models)}")
        path = locate(self.models[role])
        if not (path / "config.json").is_file():
            raise PairError(
                f"pair.models.{role}={self.models[role]}: no model there; accepted: a folder with config.json and "
                "safetensors, or viasd://<folder of the package>"
            )
        return path


def locate(name: str) -> Path:
    """A path as given, or a file of the installed package for names that begin with viasd://."""
    if name.startswith(PACKAGE_PREFIX):
        return Path(str(resources.files("viasd"))) / name.removeprefix(PACKAGE_PREFIX)
    return Path(name).expanduser()


def load_model(pair: Pair, role: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The role's model, in evaluation mode, from safetensors only."""
    from transformers import AutoModelForCausalLM  # here: importing viasd must not pay for transformers

    path = pair.path(role)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise PairError(f"pair.models.{role}={pair.models[role]}: cannot load this model: {_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def context_length(folder: Path) -> int:
    """The longest sequence a model was made for; without such an entry in its config, practically any."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return int(config.get("text_config", config).get("max_position_embeddings") or 2**31)


def weights_bytes(folder: Path) -> int:
    """Size of a model's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load_tokenizer(pair: Pair, role: str = "target") -> Any:
    """The role's tokenizer. Raises PairError when the folder holds none that can be read."""
    from transformers import AutoTokenizer

    path = pair.path(role)
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as error:
        raise PairError(
            f"pair.models.{role}={pair.models[role]}: cannot load this tokenizer: {_line(error)}"
        ) from error


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
    view, base = _shallow(model), _shallow(model.get_decoder())
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


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
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
