"""One run, and lists of runs, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import UserError
from experiments.stored.catalog import Entry, value_at

ABSENT = "-"
OVER_SD = "speedup_over.sd"
HEADER = ["run", "state", "task", "pair", "method", "arms", "examples", "measured", "over sd"]


def list_lines(found: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the list says of each run. `over_sd`: the method's speedup over sd, None where no summary has it."""
    return [
        {
            "run": run.run_id,
            "state": "unreadable" if run.problem is not None else run.state,
            "task": run.value("task"),
            "pair": run.value("pair"),
            "method": run.method,
            "arms": len(run.arms),
            "examples": run.examples,
            "measured": None if run.measured is None else run.measured.isoformat(timespec="minutes")[:16],
            "over_sd": over_sd(run),
        }
        for run in found
    ]


def over_sd(run: Entry) -> float | None:
    """The method's speedup over sd."""
    try:
        entry = run.summary().get(run.method or "", {}).get(OVER_SD)
    except UserError:
        return None
    return entry["value"] if isinstance(entry, Mapping) else entry


def list_cells(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The list as cells, header first."""
    return [tuple(HEADER), *(tuple(_cell(value) for value in line.values()) for line in lines)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return ABSENT if value is None else str(value)


def describe(run: Entry) -> dict[str, Any]:
    """What `show` says of a run, as plain data. Raises UserError where its files cannot be read."""
    if run.problem is not None:
        raise UserError(run.problem)
    columns = run.columns()
    measured = columns.pop("measured")
    return {
        **columns,
        "measured": None if measured is None else measured.isoformat(),
        "folder": str(run.folder.path),
        "sampling": value_at(run.content, ("identity", "sampling")),
        "versions": value_at(run.content, ("identity", "versions")),
        "models": value_at(run.content, ("identity", "pair", "models")),
        "rows": run.content.get("rows"),
        "notices": list(run.content.get("notices", [])),
        "starts": list(run.content.get("provenance", [])),
        "summary": run.summary(),
    }


def show_text(run: Entry) -> str:
    """A run: what, where, in which state, and its headline table."""
    told = describe(run)
    summary, starts, rows = told.pop("summary"), told.pop("starts"), told.pop("rows")
    notices = told.pop("notices")
    lines = [f"{name:<14} {_value(value)}" for name, value in told.items() if value is not None]
    if rows is not None:
        lines.append(f"{'rows':<14} {rows['lines']} lines, {rows['bytes']} bytes, blake2b {rows['blake2b']}")
    for start in starts:
        when, commit = start.get("started") or "unknown date", (start.get("commit") or "unknown commit")[:12]
        dirty = " with uncommitted changes" if start.get("dirty") else ""
        lines.append(
            f"{'start':<14} {when}, {commit}{dirty}, {start.get('platform')}, load {_value(start.get('load'))}"
        )
    lines += [f"{'note':<14} {notice}" for notice in notices]
    if summary:
        from experiments.text_tables import headline_table  # waits for torch

        lines += ["", headline_table(summary, list(summary))]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items() if name != "_target_")
    if isinstance(value, list):
        return ", ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in value)
    return str(value)
