"""Models on a hub: an id and a revision become a folder of the hub's local cache, through `huggingface_hub`."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")  # configurations and tokenizers
SAFE, PICKLED, CODE = "*.safetensors", "*.bin", "*.py"
NOT_WANTED = ("*/*", "consolidated*")  # subfolders, and a second copy of the weights that some repositories hold
HTTP_CLIENTS = ("httpx", "requests", "urllib3")  # their errors, where the hub's client does not put its own around them
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class HubError(ValueError):
    """What a hub does not give; the message says what to do, in one line."""


class HubUnreachable(HubError):
    """The hub was not asked: it is switched off or away."""


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder can be one of a hub: organization/model."""
    return HUB_ID.fullmatch(name) is not None


def fetch_texts(name: str, revision: str = MAIN, code: bool = False) -> Path:
    """Folder with configuration and tokenizer of a model, downloaded where they are missing; weights are not touched.

    `code`: its Python files, too. Raises HubError.
    """
    known = None if code else _pinned(name, revision)
    folder = known or _snapshot(name, revision, (*TEXTS, *([CODE] if code else [])), str(cache_folder()))
    if not (folder / "config.json").is_file():
        raise HubError(f"revision {revision} has no config.json; accepted: a model that transformers can load")
    return folder


def fetch_model(name: str, revision: str = MAIN, pickled: bool = False, code: bool = False) -> Path:
    """Folder with all that `transformers` needs of a model, downloaded where it is missing.

    Weights are safetensors; with `pickled` others are taken where there are none. Raises HubError.
    """
    texts = fetch_texts(name, revision, code)
    if fetched_weights(texts) and (pickled or any(texts.glob(SAFE))):
        return texts
    commit = resolved_commit(texts) or revision  # a branch may move in between
    folder = _snapshot(name, commit, (*TEXTS, SAFE), str(cache_folder()))
    if not any(folder.glob(SAFE)) and pickled:
        folder = _snapshot(name, commit, (*TEXTS, PICKLED), str(cache_folder()))
    missing = missing_weights(folder) if pickled or any(folder.glob(SAFE)) else None
    if missing is None and not is_offline():
        raise HubError(
            f"revision {revision} has no safetensors; accepted: a revision that has them, or pair.allow_pickle=true "
            "(read by the loader that runs no code of the file)"
        )
    if missing is None or missing:
        what = "its weights are" if missing is None else f"{missing[0]} is"
        advice = _ONLINE if is_offline() else "the hub cannot be reached; accepted: the same once more"
        raise HubUnreachable(f"{what} not in the hub's cache; {advice}")
    return folder


def _pinned(name: str, revision: str) -> Path | None:
    """The folder of a commit whose configuration and tokenizer are in the cache: it cannot change, nobody is asked."""
    from huggingface_hub import try_to_load_from_cache

    if not COMMIT.fullmatch(revision):
        return None
    found = try_to_load_from_cache(name, "config.json", cache_dir=cache_folder(), revision=revision)
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and any(folder.glob("tokenizer*")) else None


def weight_files(folder: Path) -> list[Path]:
    """The weights of a folder: its safetensors, else its pickled files."""
    return sorted(folder.glob(SAFE)) or sorted(folder.glob(PICKLED))


def missing_weights(folder: Path) -> list[str] | None:
    """Files that the index of a folder's weights names and that are not there; None where it has no weights at all."""
    files = weight_files(folder)
    if not files:
        return None
    kind = files[0].suffix
    for index in (folder / name for name in INDICES):
        if index.is_file() and f"{kind}.index" in index.name:
            named = set(json.loads(index.read_text())["weight_map"].values())
            return sorted(name for name in named if not (folder / name).is_file())
    return []


def fetched_weights(folder: Path) -> bool:
    """Whether all weights of a model are in its folder."""
    return missing_weights(folder) == []


def is_offline() -> bool:
    """Whether downloads are switched off (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@cache
def _snapshot(name: str, revision: str, patterns: tuple[str, ...], cache_folder: str) -> Path:
    """The snapshot with files of these names. Asked once in a process, which so sees one state of a moving branch."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(NOT_WANTED),
            cache_dir=cache_folder,
            local_files_only=is_offline(),
        )
    except Exception as error:  # the hub's client has no class of its own for all that can fail
        raise explain(error, revision, cache_folder) from error
    return Path(found)


_ONLINE = "HF_HUB_OFFLINE is set; accepted: HF_HUB_OFFLINE=0 for the download, or a folder"


def explain(error: BaseException, revision: str, cache_folder: str) -> HubError:
    """What to tell the person: why the hub gave nothing, and what to do."""
    from huggingface_hub import errors

    if any(isinstance(one, OSError) and one.errno == errno.ENOSPC for one in _causes(error)):
        return HubError(
            f"the disk of the hub's cache {cache_folder} is full ({free_bytes(Path(cache_folder)) / 1e9:.1f} GB free); "
            "accepted: free space there, or HF_HUB_CACHE=FOLDER on another disk"
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            "gated; accept the licence on the model's page of the hub, then set HF_TOKEN to a token of that account "
            "(or use `hf auth login`)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"no revision {revision!r}; accepted: a branch, a tag or a full commit hash of this model")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            "no such folder, and no such model on the hub (or a private one: HF_TOKEN); accepted: a folder with "
            "config.json, viasd://<folder of the package>, or organization/model of the hub"
        )
    missing = f"no such folder with config.json, and revision {revision} is not, or not whole, in the hub's cache"
    if is_offline():
        return HubUnreachable(f"{missing}; {_ONLINE}")
    away = isinstance(error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError)
    if away or type(error).__module__.startswith(HTTP_CLIENTS):
        return HubUnreachable(
            f"{missing}, and the hub cannot be reached; accepted: a network, HF_ENDPOINT of a mirror, or a folder"
        )
    return HubError(f"no download from the hub: {(str(error).strip() or type(error).__name__).splitlines()[0]}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is, or would be, on."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def resolved_commit(folder: Path) -> str | None:
    """The commit of a folder of the hub's cache (models--ORGANIZATION--NAME/snapshots/COMMIT); None for others."""
    parent = folder.absolute().parent
    return folder.name if parent.name == "snapshots" and parent.parent.name.startswith("models--") else None
