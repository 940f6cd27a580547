"""The run folder: run.json (what was run), rows.jsonl (what was measured), summary.json (what it says)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.records import SCHEMA_VERSION, Row


class RunFolder:
    """`results/runs/<run_id>/`. Rows are appended and flushed to disk example by example; files are replaced whole."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = results / "runs" / run_id
        self.rows_path = self.path / "rows.jsonl"
        self.summary_path = self.path / "summary.json"
        self.log_path = self.path / "run.log"

    def create(self) -> None:
        """Make the folder. Raises UserError where that is not allowed."""
        create_folder(self.path, results=self.path.parent.parent)

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json."""
        replace_json(self.path / "run.json", {"schema_version": SCHEMA_VERSION, "run_id": self.run_id, **content})

    def read_run(self) -> dict[str, Any] | None:
        """run.json, or None when there is none."""
        return _read(self.path / "run.json")

    def write_summary(self, arms: dict[str, Any]) -> None:
        """Write summary.json."""
        replace_json(self.summary_path, {"run_id": self.run_id, "arms": arms})

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows in one write that has reached the disk when this returns."""
        with self.rows_path.open("a", encoding="utf-8") as file:
            file.write("".join(row.to_json() + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def read_rows(self) -> list[Row]:
        """All stored rows, the last one of each (example, arm). A line cut short by a kill is removed from the file."""
        if not self.rows_path.exists():
            return []
        content = self.rows_path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.rows_path.open("r+b") as file:
                file.truncate(len(whole))
        rows = [Row.from_json(line) for line in whole.decode("utf-8").splitlines()]
        return list({(row.example_id, row.arm): row for row in rows}.values())


def create_folder(path: Path, results: Path) -> None:
    """Make a folder of the results. Raises UserError where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"results_dir={results}: cannot write there ({error.strerror}); accepted: a writable folder"
        ) from error


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    beside.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def select(rows: Sequence[Row], example_ids: Collection[str], timed_ids: Collection[str]) -> list[Row]:
    """Rows of these examples in the run's order; those that are not to be timed lose their seconds."""
    wanted = [row for row in rows if row.example_id in example_ids]
    for row in wanted:
        if row.example_id not in timed_ids:
            row.decode_seconds, row.prefill_seconds, row.first_token_seconds = [], [], []
    return sorted(wanted, key=lambda row: row.index)


def is_complete(row: Row | None, timed: bool, repeats: int, retry: bool) -> bool:
    """Whether a stored row holds all that this run asks of it. With `retry`, an error row does not."""
    if row is None:
        return False
    if row.error is not None:
        return not retry
    return not timed or len(row.decode_seconds) >= repeats
