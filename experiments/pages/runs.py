"""Which stored runs are reported, and which of them are one comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.comparability import IDENTICAL, mixed
from experiments.compare import few, open_run
from experiments.errors import UserError
from experiments.store import RunFolder
from experiments.tables import StoredRun

FEW = 5  # of the runs that an error names


@dataclass(frozen=True)
class Reported:
    """A stored run with all of its run.json. `written`: the day of its last row (UTC), else of the file."""

    run_id: str
    folder: Path
    run: StoredRun
    record: dict[str, Any]
    written: str


def choose(names: Sequence[str], results: Path) -> tuple[list[Reported], list[str]]:
    """The named runs, or all of the results folder, oldest first; and notices of those that are left out.

    A name is a run id, the beginning of one, or the path of a run's folder; a run counts once, however often and in
    whatever way it is named, and copies of it in other folders are told. Raises UserError for a name that fits no run
    or several, for a named run that cannot be read, and where no row is stored.
    """
    found: list[Reported] = []
    notices: list[str] = []
    for name in dict.fromkeys(whole_id(name, results) for name in names or all_runs(results)):
        try:
            one = open_reported(name, results)
        except UserError as error:
            if names:
                raise
            notices.append(f"left out: {error}")
            continue
        first = next((other for other in found if other.run_id == one.run_id), None)
        if first is not None:
            if first.folder != one.folder:
                notices.append(f"left out: {one.folder} is run {one.run_id} again, which is read from {first.folder}")
        elif one.run.rows:
            found.append(one)
        else:
            notices.append(f"left out: run {one.run_id} has no rows yet")
    if not found:
        raise UserError(f"results folder {results}: no run with rows ({'; '.join(notices) or 'none is stored'})")
    return found, notices


def all_runs(results: Path) -> list[str]:
    """Ids of the stored runs, the ones written first in front. Raises UserError where there are none."""
    files = list((results / "runs").glob("*/run.json"))
    if not files:
        raise UserError(
            f"results folder {results}: no runs; accepted: one that python -m experiments.run has written to"
        )
    return [path.parent.name for path in sorted(files, key=lambda path: (path.stat().st_mtime, path.parent.name))]


def whole_id(name: str, results: Path) -> str:
    """The id that begins so; anything else, a path for one, stays what it is. Raises UserError for several such ids."""
    if not name or os.sep in name:
        return name
    begun = sorted(
        path.parent.name for path in (results / "runs").glob("*/run.json") if path.parent.name.startswith(name)
    )
    if len(begun) > 1 and name not in begun:
        raise UserError(f"run {name}: {len(begun)} ids begin so; accepted: one of {', '.join(few(begun, FEW))}")
    return begun[0] if len(begun) == 1 else name


def open_reported(name: str, results: Path) -> Reported:
    """A stored run by its id or path. Raises UserError for one that cannot be read."""
    run = open_run(name, results)
    path = Path(name).expanduser()
    is_path = (path / "run.json").is_file()
    folder = RunFolder(results, str(path.resolve()) if is_path else name)
    file = folder.rows_path if folder.rows_path.exists() else folder.path / "run.json"
    known = [row.measured_at for row in run.rows if row.measured_at is not None]
    last = max(known, default=datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat())
    return Reported(folder.path.name, folder.path.resolve(), run, folder.read_run() or {}, last[:10])


def group(runs: Sequence[Reported]) -> list[list[Reported]]:
    """The runs by comparison: one run of each task, alike in all else that a table must not mix, arms included.

    The second run of a task (say, at another level) opens a comparison of its own.
    """
    alike: dict[str, list[list[Reported]]] = {}
    for one in runs:
        groups = alike.setdefault(kind(one), [])
        home = next((own for own in groups if all(one.run.task != other.run.task for other in own)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return [own for groups in alike.values() for own in groups]


def kind(one: Reported) -> str:
    """What the runs of one comparison share: what tables may not mix, the method as configured, and the seed."""
    return json.dumps([shared(one), seed_of(one)], sort_keys=True, default=str)


def shared(one: Reported) -> list[Any]:
    """The same without the seed."""
    return [[one.run.identity.get(key) for key in IDENTICAL], one.run.arms, one.run.settings]


def seed_of(one: Reported) -> int:
    """The seed of a run."""
    return int(one.run.identity.get("seed", 0))


def same_but_seed(one: Reported, other: Reported) -> bool:
    """Whether two runs ask the same of the same prompts, each under a seed of its own."""
    return (
        seed_of(one) != seed_of(other)
        and shared(one) == shared(other)
        and one.run.identity["task"] == other.run.identity["task"]
    )


def differing(first: StoredRun, other: StoredRun) -> list[str]:
    """In what two runs that are not one comparison differ."""
    seeds = [run.identity.get("seed", 0) for run in (first, other)]
    keys = [*mixed([first, other]), *(["arms"] if first.arms != other.arms else [])]
    keys += ["seed"] if seeds[0] != seeds[1] and "seed" not in keys else []  # of one task, a table may take several
    return keys or ["configuration"]
