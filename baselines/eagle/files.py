"""Files of a published head: where they are, its config and its tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.eagle.formats import HeadError, name_some
from viasd.hub import MAIN, cache_folder, explain
from viasd.models import PACKAGE_PREFIX, locate

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")
INDEX, SAFE, PICKLED = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"


def find_folder(name: str) -> Path:
    """The folder of a head: one that exists, one of the package (viasd://), else the hub's, downloaded.

    From the hub come config.json and weights only, and pickled weights only where there are no safetensors. Raises
    HeadError where there is nothing, or the download fails.
    """
    folder = locate(name)
    if (folder / "config.json").is_file():
        return folder
    asked = HUB_ID.fullmatch(name)
    if folder.is_dir() or name.startswith(PACKAGE_PREFIX) or asked is None:
        raise HeadError("no config.json there")
    from huggingface_hub import snapshot_download

    kinds = (["*.safetensors", "*.safetensors.index.json"], [PICKLED])
    try:
        for weights in kinds:
            found = Path(
                snapshot_download(asked["id"], revision=asked["revision"], allow_patterns=["config.json", *weights])
            )
            if any(found.glob(weights[0])):
                break
    except Exception as error:  # the hub's client has no class of its own for all that can fail
        raise HeadError(str(explain(error, asked["revision"] or MAIN, str(cache_folder())))) from error
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises HeadError where it is missing or malformed."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise HeadError(f"config.json cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise HeadError("config.json holds no object")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as they are stored, on the CPU.

    model.safetensors, else the shards of its index, else pytorch_model.bin by the weights-only loader, which runs no
    code of the file. Raises HeadError where there are none or they cannot be read.
    """
    try:
        if (folder / SAFE).is_file():
            return read_safe(folder / SAFE)
        if (folder / INDEX).is_file():
            return read_shards(folder)
        if (folder / PICKLED).is_file():
            return read_pickled(folder / PICKLED)
    except HeadError:
        raise
    except Exception as error:  # damaged files raise what their reader happens to raise
        raise HeadError(f"its weights cannot be read: {first_line(error)}") from error
    raise HeadError(f"no weights beside config.json: {SAFE}, {INDEX} or {PICKLED}")


def read_safe(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def read_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors of the shards that an index names. Raises HeadError where they hold other keys than it says."""
    where: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    if outside := [name for name in where.values() if Path(name).name != name]:
        raise HeadError(f"{INDEX} names {outside[0]}: accepted: files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        shard = read_safe(folder / name)
        if differing := {key for key, file in where.items() if file == name} ^ shard.keys():
            raise HeadError(f"{INDEX} and {name} disagree on {name_some(differing)}")
        tensors.update(shard)
    return tensors


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise HeadError(f"{path.name} holds no dict of tensors")
    return dict(found)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
