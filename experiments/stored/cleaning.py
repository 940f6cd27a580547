"""What may be deleted from a results folder, and deleting it. Nothing outside of runs/ and settled/ is touched."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from experiments.stored.catalog import Entry, entries
from experiments.stored.filters import chosen
from experiments.stored.living import DEAD_AFTER, Busy, claimed, is_living

LEFTOVERS = ("*.tmp", "*.mine")  # names of files that are being written whole
REMOVED = ".removed"  # ends the name of a run's folder that is being deleted


@dataclass(frozen=True)
class Waste:
    """Something to delete, and why. `bytes` it takes on the disk."""

    path: Path
    why: str
    bytes: int
    run: Entry | None = None


@dataclass(frozen=True)
class Wanted:
    """Whole runs to delete: those that fit all that is given; none where nothing is."""

    filters: Mapping[str, str]
    older_than: timedelta | None = None
    other_code: bool = False

    def __bool__(self) -> bool:
        return bool(self.filters or self.older_than is not None or self.other_code)


def find_waste(results: Path, wanted: Wanted) -> list[Waste]:
    """All that may go. A run that is measured now is never among it; one that cannot be read neither."""
    found = [*_leftovers(results), *_empty_folders(results)]
    runs = list(entries(results))
    whole = _wanted_runs(runs, wanted)
    named = {run.run_id for run, _ in whole}
    empty = [(run, "stale, without a row") for run in runs if run.run_id not in named and _is_stillborn(run)]
    return [*found, *(Waste(run.folder.path, why, _size(run.folder.path), run) for run, why in [*empty, *whole])]


def _leftovers(results: Path) -> Iterator[Waste]:
    """Files of processes that were killed while they wrote them."""
    for place in (results / "runs", results / "settled"):
        for pattern in LEFTOVERS:
            depth = pattern if place.name == "settled" else f"*/{pattern}"
            for path in sorted(place.glob(depth)):
                if path.is_file() and _age(path) > DEAD_AFTER:
                    yield Waste(path, "left behind by a process that was killed", _size(path))
    for path in sorted((results / "runs").glob(f".*{REMOVED}")):
        yield Waste(path, "half deleted", _size(path))


def _empty_folders(results: Path) -> Iterator[Waste]:
    place = results / "runs"
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()) and _age(path) > DEAD_AFTER:
            yield Waste(path, "empty", 0)


def _is_stillborn(run: Entry) -> bool:
    folder = run.folder.path
    if run.problem is not None or run.state != "stale" or run.examples or not any(folder.iterdir()):
        return False
    return min(_age(path) for path in [folder, *folder.iterdir()]) > DEAD_AFTER and not folder.is_symlink()


def _wanted_runs(runs: Sequence[Entry], wanted: Wanted) -> list[tuple[Entry, str]]:
    if not wanted:
        return []
    fit = [run for run in chosen(runs, wanted.filters) if run.problem is None and not run.folder.path.is_symlink()]
    reasons = [f"{key}={value}" for key, value in wanted.filters.items()]
    if wanted.older_than is not None:
        before = datetime.now(UTC) - wanted.older_than
        fit = [run for run in fit if run.measured is not None and run.measured < before]
        reasons.append(f"older than {wanted.older_than.days} d" if wanted.older_than.days else "old")
    if wanted.other_code:
        from experiments.identity import code_hash  # waits for torch

        fit = [run for run in fit if run.value("code_hash") != code_hash()]
        reasons.append("other code")
    return [(run, ", ".join([*reasons, f"{run.examples} examples"])) for run in fit if run.state != "running"]


def delete(waste: Waste, results: Path) -> str | None:
    """Delete one thing. Returns why it stayed, None where it is gone."""
    inside = [(results / name).resolve() for name in ("runs", "settled")]
    if waste.path.is_symlink() or not any(waste.path.resolve().is_relative_to(place) for place in inside):
        return "not in runs/ or settled/ of the results"
    try:
        if waste.run is not None:
            _delete_run(waste.path)
        elif waste.path.is_dir():
            shutil.rmtree(waste.path) if waste.path.name.endswith(REMOVED) else waste.path.rmdir()
        else:
            waste.path.unlink(missing_ok=True)
    except Busy as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _delete_run(path: Path) -> None:
    """Take the run's lock, so that no process begins with it, move it out of the way and delete it."""
    if is_living(path):
        raise Busy(f"run {path.name}: a process measures it")
    gone = path.with_name(f".{path.name}.{os.getpid()}{REMOVED}")
    with claimed(path):
        path.rename(gone)
    shutil.rmtree(gone)


def _age(path: Path) -> float:
    """Seconds since it was changed; none where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of the files below a folder; links are not followed."""
    total = 0
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with suppress(OSError):
            total += one.lstat().st_size if not one.is_dir() else 0
    return total
