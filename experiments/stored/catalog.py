"""All runs of a results folder, from run.json alone: what they are, in which state, how far."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.errors import UserError, near, one_line
from experiments.store import RunFolder, read_json
from experiments.stored.living import ALIVE, is_living

STATES = ("running", "done", "failed", "stale")
UNENDED = (None, "running", "measured")  # statuses under which a process may be at work
PATHS: dict[str, tuple[str | int, ...]] = {
    "task": ("identity", "task", "name"),
    "pair": ("identity", "pair", "name"),
    "status": ("status",),
    "device": ("identity", "device"),
    "dtype": ("identity", "dtype"),
    "threads": ("identity", "threads"),
    "mode": ("identity", "mode"),
    "code_hash": ("identity", "code_hash"),
    "temperature": ("identity", "sampling", "temperature"),
    "seed": ("identity", "seed"),
    "repeats": ("identity", "repeats"),
    "limit": ("config", "limit"),
    "quality_limit": ("config", "quality_limit"),
    "started": ("provenance", 0, "started"),
    "commit": ("provenance", -1, "commit"),
}  # columns, and where they stand in run.json
EXAMPLE = re.compile(rb'^\{"example_id":("(?:[^"\\]|\\.)*")', re.M)  # as a line begins


@dataclass(frozen=True)
class Entry:
    """A run as its folder tells it. `content` is run.json, empty where there is none that can be read.

    `problem`: why it cannot be read, in one line.
    """

    folder: RunFolder
    content: Mapping[str, Any]
    problem: str | None = None

    @property
    def run_id(self) -> str:
        return self.folder.run_id

    @cached_property
    def state(self) -> str:
        """One of STATES.

        running: a process measures it; done and failed: as it ended; stale: begun, without a process and without an
        end (killed, Ctrl-C): the same command goes on from what is stored.
        """
        status, path = self.content.get("status"), self.folder.path
        if (status in UNENDED or (path / ALIVE).exists()) and is_living(path):
            return "running"
        return status if status in ("done", "failed") else "stale"

    @property
    def arms(self) -> list[str]:
        """Their names in the run's order."""
        identity = self.content.get("identity", {})
        return list(identity.get("order") or identity.get("arms", []))

    @property
    def method(self) -> str | None:
        """The name of the method's arm: the configured one, else the first that is no baseline."""
        name = value_at(self.content, ("config", "method", "name"))
        return name or next((arm for arm in self.arms if arm not in ("vanilla", "sd")), None)

    @cached_property
    def examples(self) -> int:
        """Examples with at least one stored row."""
        if (sealed := self._seal()) is not None:
            return int(sealed["examples"])
        try:
            return len(set(EXAMPLE.findall(self.folder.rows_path.read_bytes())))
        except OSError:
            return 0

    def _seal(self) -> dict[str, Any] | None:
        """What run.json says of the rows at the end, None where any were added since."""
        rows = self.content.get("rows")
        try:
            return rows if rows is not None and self.folder.rows_path.stat().st_size == rows["bytes"] else None
        except OSError:
            return None

    @cached_property
    def measured(self) -> datetime | None:
        """When its last row was measured; where no row says so, when rows.jsonl or run.json was written."""
        said = (self._seal() or {}).get("measured_at")
        if said is not None and self.state != "running":
            return datetime.fromisoformat(said)
        for path in (self.folder.rows_path, self.folder.path / "run.json", self.folder.path):
            try:
                return datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
            except OSError:
                continue
        return None

    def value(self, name: str) -> Any:
        """A column of PATHS; None where run.json does not say it."""
        return value_at(self.content, PATHS[name])

    def columns(self) -> dict[str, Any]:
        """What the view `runs` holds of it."""
        plain = {name: self.value(name) for name in PATHS}
        own = {"run_id": self.run_id, "state": self.state, "method": self.method, "arms": self.arms}
        return {**own, **plain, "examples": self.examples, "measured": self.measured}

    def summary_content(self) -> dict[str, Any] | None:
        """summary.json, or None where there is none. Raises UserError for one that cannot be read."""
        path = self.folder.summary_path
        try:
            content = read_json(path)
            if content is not None and not all(isinstance(own, dict) for own in content["arms"].values()):
                raise UserError(f"{path}: arms without metrics")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(str(error) if isinstance(error, UserError) else f"{path}: {one_line(error)}") from error
        return content

    def summary(self) -> dict[str, dict[str, Any]]:
        """The metrics of each arm; empty where there is no summary. Raises UserError for one that cannot be read."""
        content = self.summary_content()
        return {} if content is None else content["arms"]


def value_at(content: Any, path: tuple[str | int, ...]) -> Any:
    """A value deep in JSON content; None where there is none."""
    for key in path:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return None
    return content


def entries(results: Path) -> Iterator[Entry]:
    """The runs of a results folder, by id. A folder that goes away meanwhile is left out."""
    place = results / "runs"
    names = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    for name in names:
        if not name.startswith(".") and (entry := open_entry(RunFolder(results, name))) is not None:
            yield entry


def open_entry(folder: RunFolder) -> Entry | None:
    """One run; None where there is no such folder."""
    if not folder.path.is_dir():
        return None
    try:
        content = folder.read_run()
        if content is not None and not isinstance(content.get("identity", {}), dict):
            raise UserError(f"{folder.path / 'run.json'}: identity is no object")
    except (UserError, ValueError, OSError, AttributeError) as error:
        told = str(error) if isinstance(error, UserError) else f"{folder.path / 'run.json'}: {one_line(error)}"
        return Entry(folder, {}, told)
    return Entry(folder, content or {})


def find_run(results: Path, given: str) -> Entry:
    """The run with this id, or the only one whose id begins so. Raises UserError where it is none, or not one."""
    place = results / "runs"
    known = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    found = [given] if given in known else [name for name in known if given and name.startswith(given)]
    if len(found) > 1:
        raise UserError(f"run {given}: {len(found)} runs begin so: {', '.join(found[:5])}; accepted: more of the id")
    entry = open_entry(RunFolder(results, found[0])) if found else None
    if entry is None:
        hint = near(given, known) if len(known) <= 20 else near(given, known).partition("; accepted")[0]
        raise UserError(f"run {given}: not found in {place}{hint}")
    return entry
