"""Readers of stored runs: whatever the schema version of a file, its content is brought to the current one.

run.json states its version. A line of rows.jsonl does not: it has the version of the newest column in it, so a run
that was begun under one version and goes on under the next holds lines of both, each read as what it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from experiments.errors import UserError, near
from experiments.records import SCHEMA_VERSION, Row

Content = dict[str, Any]

COLUMNS = frozenset(field.name for field in dataclasses.fields(Row))
# Columns that older lines lack, with what stands for them: of the course of version 1, and of version 2.
LATER: Content = {
    "unclocked": 0, "nodes": 0, "parallel_seconds": None, "predicted_seconds": None,
    "measured_at": None, "turn": 0, "waited_seconds": [], "joules": [],
}  # fmt: skip
NEWEST_COLUMN = {2: "measured_at"}  # by version: a line with it is at least of that version


@dataclass(frozen=True)
class Upgrade:
    """From one version to the next: both change a content in place."""

    run: Callable[[Content], None]
    row: Callable[[Content], None]


def _run_2(content: Content) -> None:
    """Version 2 adds to run.json what can be empty: starts have their time, an ended run has `rows`."""
    content.setdefault("provenance", [])
    content.setdefault("notices", [])


def _row_2(content: Content) -> None:
    """Version 2 adds when, in which turn and how undisturbed a row was measured, and the energy.

    Version 1 gained columns while it lasted: its first lines lack them.
    """
    for name, value in LATER.items():
        content.setdefault(name, copy(value))


UPGRADES = {1: Upgrade(_run_2, _row_2)}


def upgrade_run(content: Content, where: str) -> Content:
    """The content of a run.json in the current version. Raises UserError for a version that is not known."""
    version = content.get("schema_version", 1)
    if version not in range(1, SCHEMA_VERSION + 1):
        raise UserError(
            f"{where}: schema_version={version!r}: not known here; accepted: 1 to {SCHEMA_VERSION} (a newer version of "
            "this project wrote it: update)"
        )
    for step in range(version, SCHEMA_VERSION):
        UPGRADES[step].run(content)
    return {**content, "schema_version": SCHEMA_VERSION}


def read_row(line: str, where: str) -> Row:
    """A line of rows.jsonl, whatever its version. `where`: file and line number, for the error.

    Raises UserError for what is no JSON object, and for a column too many or too few.
    """
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({error}); accepted: one JSON object a line") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: {type(content).__name__} {line[:40]}; accepted: one JSON object a line")
    for step in range(row_version(content), SCHEMA_VERSION):
        UPGRADES[step].row(content)
    if content.keys() != COLUMNS:
        for name in content:
            if name not in COLUMNS:
                raise UserError(f"{where}: column {name!r}: not known in schema {SCHEMA_VERSION}{near(name, COLUMNS)}")
        missing = ", ".join(sorted(COLUMNS - content.keys()))
        raise UserError(f"{where}: without {missing}; accepted: every column of schema {SCHEMA_VERSION}")
    return Row(**content)


def row_version(content: Content) -> int:
    """The schema version of a line."""
    return max((version for version, column in NEWEST_COLUMN.items() if column in content), default=1)
