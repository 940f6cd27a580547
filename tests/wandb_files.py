"""Offline logs of W&B read back by its own protobuf messages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.logged.readback import records


def read_log(place: Path) -> SimpleNamespace:
    """What an offline log says, later records over earlier ones. Artifacts by name, with their files."""
    told = SimpleNamespace(config={}, summary={}, history=[], run=None, artifacts={}, ended=False)
    for one in records(place):
        if one.HasField("run"):
            told.run = told.run or one.run
            told.config |= {item.key: json.loads(item.value_json) for item in one.run.config.update}
        told.config |= {item.key: json.loads(item.value_json) for item in one.config.update if item.key}
        told.summary |= nested(one.summary.update)
        if one.HasField("history"):
            told.history.append(nested(one.history.item))
        if one.HasField("artifact"):
            told.artifacts[one.artifact.name] = one.artifact
        told.ended |= one.HasField("exit")
    return told


def nested(items: Any) -> dict[str, Any]:
    """Values by their key; those with keys inside keys as mappings."""
    found: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def logs(where: Path) -> list[Path]:
    """The folders of the offline logs below a run folder, the oldest first."""
    return sorted((where / "wandb").glob("offline-run-*"))


def table(place: Path, told: dict[str, Any]) -> dict[str, Any]:
    """A table that a history entry names, as it is on disk."""
    content: dict[str, Any] = json.loads((place / "files" / told["path"]).read_text())
    return content
