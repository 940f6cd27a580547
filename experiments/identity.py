"""Who a run is: hashes of configuration, models, examples and code, and where it was measured."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from baselines.eagle.checkpoints import ACCEPTED
from baselines.eagle.files import find_folder
from experiments.conditions.reading import read_conditions
from experiments.config import CHECKOUT
from experiments.errors import config_folders
from experiments.tasks.base import Example
from viasd.hub import resolved_commit, weight_files
from viasd.models import Pair, PairError

# What decides rows. Reports and tables do not, and the resolved configuration is hashed itself.
MEASURING = (
    "arms.py",
    "beforehand.py",
    "conditions/meter.py",
    "conversations.py",
    "costs.py",
    "fidelity.py",
    "loading.py",
    "measure.py",
    "plan.py",
    "prompting.py",
    "records.py",
    "resolve.py",
    "stopping.py",
    "tasks",
    "tokens.py",
    "turns.py",
)
TRAINING_FILES = ("training.json", "ablation.json")  # beside weights: seconds, load, what was measured
LARGE = 2**28  # bytes of a file whose hash is worth keeping
LIBRARIES = ("torch", "transformers", "tokenizers", "rouge-score", "sacrebleu")  # models and scorers


def digest(content: Any, size: int = 8) -> str:
    """Short stable hash of JSON-able content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


@cache
def code_hash() -> str:
    """Hash of the sources that decide rows: viasd, baselines and the measuring files, uncommitted edits included."""
    files = [*(CHECKOUT / "viasd").rglob("*.py"), *(CHECKOUT / "baselines").rglob("*.py")]
    for name in MEASURING:
        place = CHECKOUT / "experiments" / name
        files += place.rglob("*.py") if place.is_dir() else [place]
    return sources_hash(files)


def sources_hash(files: Iterable[Path]) -> str:
    """Hash of source files of this project."""
    return digest({str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8") for path in sorted(files)})


@cache
def file_hash(path: Path) -> str:
    """Hash of a file's bytes. That of a large one is kept with its size and time of change, and read where they hold.

    Weights of a hub model take minutes to read, and a run that is stored already should not wait for them.
    """
    state = path.stat()
    if state.st_size < LARGE:
        return _read_hash(path)
    asked = [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino]
    place = cache_folder() / "hashes" / f"{digest(asked)}.txt"
    with suppress(OSError):
        return place.read_text(encoding="utf-8")
    found = _read_hash(path)
    with suppress(OSError):  # it is read again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        beside.write_text(found, encoding="utf-8")
        beside.replace(place)
    return found


def cache_folder() -> Path:
    """Where what can be made again is kept for a user of this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "viasd"


def _read_hash(path: Path) -> str:
    state = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def source_hash(own: type) -> str:
    """Hash of the sources of a class from outside this project: all modules of its --config-dir, else its package."""
    file = Path(inspect.getfile(own)).resolve()
    folder = file.parents[own.__module__.count(".")]
    files = {file}
    for place in (folder.resolve() for folder in config_folders()[1:]):
        if file.is_relative_to(place):
            folder, files = place, set(place.rglob("*.py"))
            break
    else:
        if "." in own.__module__:
            files |= set((folder / own.__module__.partition(".")[0]).rglob("*.py"))
    return digest({str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(files)})


def model_hash(folder: Path) -> str:
    """Hash of a model's configuration, weights, tokenizer files, and code where it comes with its own."""
    weights = {path.suffix for path in weight_files(folder)}
    return folder_hash(folder, (".json", ".model", ".txt", ".jinja", ".py", *weights))


def folder_hash(folder: Path, kinds: tuple[str, ...]) -> str:
    """Hash of the files of these kinds, without what tells how a training went: equal weights are equal models."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in kinds and path.name not in TRAINING_FILES]
    return digest({path.name: file_hash(path) for path in files})


def pair_identity(pair: Pair) -> dict[str, str]:
    """Hash of each model of the pair, by role."""
    return {role: model_hash(pair.path(role)) for role in sorted(pair.models)}


def loading_identity(pair: Pair) -> dict[str, Any]:
    """What else of a pair decides rows: how its models are loaded and prompted, where that is not as usual."""
    quantized = {role: bits for role, bits in sorted(pair.quantization.items()) if bits is not None}
    asked: dict[str, Any] = {"quantization": quantized, "device_map": pair.device_map, "chat": pair.chat}
    usual: dict[str, Any] = {"quantization": {}, "device_map": None, "chat": "auto"}
    return {key: value for key, value in asked.items() if value != usual[key]}


def snapshots(pair: Pair) -> dict[str, str]:
    """Where the models of a pair that are on a hub came from, by role: id and commit, as in org/name@0123abcd."""
    commits = {role: resolved_commit(pair.path(role)) for role in sorted(pair.models)}
    return {role: f"{pair.models[role]}@{commit}" for role, commit in commits.items() if commit is not None}


def head_hash(pair: Pair, name: str) -> str:
    """Hash of a head's configuration and weights, which are fetched if they are on a hub."""
    try:
        folder = find_folder(pair.heads[name])
    except ValueError as error:
        raise PairError(f"pair.heads.{name}={pair.heads[name]}: {error}; accepted: {ACCEPTED}") from error
    return folder_hash(folder, (".json", ".safetensors", ".bin"))


def examples_hash(examples: Iterable[Example]) -> str:
    """Hash of a task's full ordered examples."""
    return digest(
        [
            [one.example_id, one.prompt, one.reference, one.metadata, *([one.follows] if one.follows else [])]
            for one in examples
        ]
    )


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions, with the interpreter's, whose unicode tables and integers hidden tests see."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def optional_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Versions of packages that change how a library behaves where they are installed; None where one is not."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def provenance(device: torch.device) -> dict[str, Any]:
    """What is recorded beside a run and not compared."""
    content: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "platform": platform.platform(),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "conditions": {"before": read_conditions(device)},
        "versions": versions((*LIBRARIES, "hydra-core", "numpy", "datasets", "pydantic")),
    }
    if device.type == "cuda":
        content["cuda"] = torch.version.cuda
        content["capability"] = list(torch.cuda.get_device_capability(device))
    return content


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
