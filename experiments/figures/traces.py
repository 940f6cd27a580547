"""What the profiled pass tells of each round: the entries of a row's trace by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import UserError, near
from experiments.figures.values import check_runs
from experiments.records import TRACE, Row
from experiments.tables import StoredRun

SOURCES = {"d": "draft", "s": "slim", "t": "target"}  # as initials in a trace


def rounds_of(row: Row) -> list[dict[str, Any]]:
    """The rounds of a row, each a mapping with the names of `records.TRACE`; entries that are left out are None."""
    return [{**dict.fromkeys(TRACE), **dict(zip(TRACE, entry, strict=False))} for entry in row.trace]


def sources_of(row: Row) -> list[str]:
    """The source of each committed token [new_tokens]."""
    initials = "".join(entry["sources"] for entry in rounds_of(row))
    return [SOURCES[initial] for initial in initials[: row.new_tokens]]


def traced(run: StoredRun, arm: str) -> list[Row]:
    """The rows of an arm that have a trace, in the run's order. Raises UserError for an unknown arm, and for none."""
    if arm not in run.arms:
        raise UserError(f"arms: no arm {arm!r}{near(arm, run.arms)}")
    found = sorted((row for row in run.rows if row.arm == arm and row.trace), key=lambda row: row.index)
    if not found:
        raise UserError(f"arms: {arm!r} has no trace; accepted: an arm that was timed and is no loop of a library")
    return found


def row_at(run: StoredRun, arm: str, example: int) -> Row:
    """The traced row of one example, counted from 0. Raises UserError where there are fewer."""
    rows = traced(run, arm)
    if not 0 <= example < len(rows):
        raise UserError(f"example={example}: {len(rows)} of arm {arm!r} have a trace; accepted: 0 to {len(rows) - 1}")
    return rows[example]


def adaptive_numbers(row: Row) -> dict[str, list[tuple[int, float]]]:
    """By `part.name`: (committed tokens so far, the number after that round), for methods that follow the text."""
    found: dict[str, list[tuple[int, float]]] = {}
    committed = 0
    for entry in rounds_of(row):
        committed += entry["committed"]
        parts: Mapping[str, Mapping[str, float]] = entry["adaptive"] or {}
        for part, numbers in parts.items():
            for name, value in numbers.items():
                found.setdefault(f"{part}.{name}", []).append((committed, value))
    return found


def task_run(runs: Sequence[StoredRun], task: str | None) -> StoredRun:
    """The run on a task; None: the first. Raises UserError where there is none."""
    check_runs(runs)
    known = {run.task: run for run in reversed(runs)}
    if task is not None and task not in known:
        raise UserError(f"task={task}: not among the runs{near(task, known)}")
    return runs[0] if task is None else known[task]
