"""Where the records of a task come from: a path of the user's, a folder in $VIASD_DATA, or the Hugging Face hub."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from experiments.errors import UserError
from experiments.tasks.files import KINDS, Record, find_files, read_file
from viasd.spec import spec

DATA = "VIASD_DATA"


@spec
class Source:
    """A data set by its splits.

    `hub` is its id on the Hugging Face hub or a local folder in a hub's layout (None: it is on none), with `config` and
    `revision` (a branch, tag or commit). `test` and `train` are the hub's names of the splits that this project calls
    so; `train` is None where there is none, or where it is of no use. `shots` is the split that shots are taken from
    (None: `train`). `folder` is its name in $VIASD_DATA; a split's file there is called as the split, or as `files`
    says.
    """

    hub: str | None = None
    config: str | None = None
    revision: str = "main"
    test: str = "test"
    train: str | None = None
    shots: str | None = None
    folder: str | None = None
    files: Mapping[str, str] = Field(default_factory=dict)


def read_split(source: Source, path: str | None, split: str, limit: int | None = None) -> list[Record] | None:
    """The first `limit` records of a split (of the source's names), or all; None where a file or folder lacks it.

    `path` is what the user named instead of the source: a file, which is the test split alone, or a folder with a file
    for each split.

    Raises:
        UserError: there is no such file, it is broken, or the hub does not give the data.
    """
    if path is not None:
        return _of_path(source, Path(path).expanduser(), split, limit)
    folder = data_folder(source)
    if folder is not None:
        return _of_folder(source, folder, split, limit, f"${DATA}")
    if source.hub is None:
        raise UserError(f"the data is on no hub and was not found; accepted: {ways(source)}")
    return _of_hub(source, split, limit)


def data_folder(source: Source) -> Path | None:
    """The set's folder in $VIASD_DATA, if its test split is there."""
    root = os.environ.get(DATA)
    if not root or source.folder is None:
        return None
    folder = Path(root).expanduser() / source.folder
    return folder if _files(source, folder, source.test) else None


def ways(source: Source) -> str:
    """How to give the data by hand, for errors."""
    stems = list(dict.fromkeys([source.files.get(source.test, source.test), source.test]))
    names = " or ".join(f"{stem}{{{','.join(KINDS)}}}" for stem in stems)
    own = f", or {names} in ${DATA}/{source.folder}" if source.folder else ""
    return f"task.path=FILE (or a folder with a file for each split){own}"


def _files(source: Source, folder: Path, split: str) -> list[Path]:
    """A split's files in a folder, or where a downloaded copy of a hub's repository keeps them."""
    stems = [source.files[split], split] if split in source.files else [split]
    places = [folder, *([folder / source.config] if source.config else []), folder / "data"]
    return next((found for place in places for stem in stems if (found := find_files(place, stem))), [])


def _of_path(source: Source, path: Path, split: str, limit: int | None) -> list[Record] | None:
    if path.is_dir():
        found = _of_folder(source, path, split, limit, "task.path")
        if found is None and split == source.test:
            raise UserError(f"task.path={path}: no file of split {split!r} in this folder; accepted: {ways(source)}")
        return found
    if not path.is_file():
        raise UserError(f"task.path={path}: no such file; accepted: {ways(source)}")
    return read_file(path, "task.path", limit) if split == source.test else None


def _of_folder(source: Source, folder: Path, split: str, limit: int | None, where: str) -> list[Record] | None:
    files = _files(source, folder, split)
    records = (record for path in files for record in read_file(path, where, limit))
    return list(islice(records, limit)) if files else None


def _of_hub(source: Source, split: str, limit: int | None) -> list[Record]:
    """Records through the `datasets` library, which caches them and respects HF_HUB_OFFLINE."""
    from datasets import load_dataset

    assert source.hub is not None
    try:
        rows = load_dataset(source.hub, source.config, split=split, revision=source.revision)
        return [dict(row) for row in islice(rows, limit)]
    except Exception as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"task.source.hub={source.hub} ({split}, {source.config or 'default'}, {source.revision}): {told}; "
            f"accepted: {advise(error)}, or {ways(source)}"
        ) from error


def advise(error: Any) -> str:
    """What to do about a hub that does not give the data."""
    text = f"{type(error).__name__} {error}".lower()
    if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in text:
        return "free disk space, or HF_HOME on another disk"
    if "gated" in text or "401" in text or "403" in text:
        return "consent to the terms on the set's page with HF_TOKEN set to a token of that account"
    if "revision" in text:
        return "a branch, tag or commit of the set in task.source.revision"
    if "doesn't exist on the hub" in text or "cannot be accessed" in text:
        return "an id in task.source.hub that exists, with HF_TOKEN set where it is not public"
    if "config" in text:
        return "one of the set's configurations in task.source.config"
    if "split" in text:
        return "one of the set's splits in task.source.test or task.source.train"
    if "script" in text:
        return "task.source.revision=refs/convert/parquet, the hub's own conversion"
    return "a connection to the hub (HF_HUB_OFFLINE not set; HF_TOKEN for what is not public)"
