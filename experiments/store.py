"""The run folder: run.json (what was run), rows.jsonl (what was measured), summary.json (what it says)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import UserError
from experiments.records import PER_REPEAT, SCHEMA_VERSION, Row
from experiments.stored.living import Claim, claimed
from experiments.stored.schema import read_row, upgrade_run


class Line(Protocol):
    """What can be appended."""

    def to_json(self) -> str: ...


def whole_lines(content: bytes) -> list[str]:
    """The lines of a JSONL file but for a last one that is not whole yet. Texts may hold other breaks, as U+2028."""
    return [line.decode("utf-8") for line in content.split(b"\n")[:-1]]


def utc_now() -> str:
    """The date and time in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """`results/runs/<run_id>/`. Rows are appended and flushed to disk example by example; files are replaced whole."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.results, self.run_id = results, run_id
        self.path = results / "runs" / run_id
        self.rows_path = self.path / "rows.jsonl"
        self.summary_path = self.path / "summary.json"
        self.log_path = self.path / "run.log"
        self._claim: Claim | None = None  # while this process measures the run

    def create(self) -> None:
        """Make the folder. Raises UserError where that is not allowed."""
        create_folder(self.path, self.results)

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json. Raises Busy when another process took the run over."""
        self._check_claim()
        replace_json(self.path / "run.json", {"schema_version": SCHEMA_VERSION, "run_id": self.run_id, **content})

    def read_run(self) -> dict[str, Any] | None:
        """run.json in the current schema, or None when there is none. Raises UserError for a newer one."""
        content = read_json(self.path / "run.json")
        return None if content is None else upgrade_run(content, str(self.path / "run.json"))

    def write_summary(self, arms: dict[str, Any], timed: int, examples: int) -> None:
        """Write summary.json, and of how many examples, the first in the run's order, it is.

        Raises Busy when another process took the run over.
        """
        self._check_claim()
        of = {"timed": timed, "examples": examples}
        replace_json(self.summary_path, {"run_id": self.run_id, "of": of, "arms": arms})

    def sealed(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """What run.json says of the rows when a run ends: their bytes, lines and hash, examples, date of the last.

        `before`: what an earlier end said. It stands while nothing was added, and where it no longer holds, so that a
        damage of those rows stays known.
        """
        content = self.rows_path.read_bytes() if self.rows_path.exists() else b""
        if before is not None:
            of = content[: before["bytes"]]
            if len(content) == before["bytes"] or rows_hash(of) != before["blake2b"]:
                return before
        rows = self.read_rows()
        return {
            "bytes": len(content),
            "lines": content.count(b"\n"),
            "blake2b": rows_hash(content),
            "examples": len({row.example_id for row in rows}),
            "measured_at": max((row.measured_at for row in rows if row.measured_at is not None), default=None),
        }

    @contextmanager
    def measuring(self, patient: bool = False) -> Iterator[None]:
        """Be the only process that measures this run; a half-written last line of one that was killed is removed.

        What a dead process left behind keeps nobody out; `patient`: one that may be dead is waited for
        (experiments.stored.living). Raises Busy when another one measures it, and UserError when nothing can be
        written.
        """
        self.create()
        with ExitStack() as stack:
            try:
                self._claim = stack.enter_context(claimed(self.path, patient))
                self._repair()
            except OSError as error:
                raise self._not_writable(error) from error
            try:
                yield
            finally:
                self._claim = None

    def append(self, rows: Iterable[Line]) -> None:
        """Append rows so that they have reached the disk when this returns, or that none of them is there.

        Raises UserError when they cannot be written (a full disk), and Busy when another process took the run over.
        """
        self._check_claim()
        content = "".join(row.to_json() + "\n" for row in rows).encode("utf-8")
        before = self.rows_path.stat().st_size if self.rows_path.exists() else 0
        try:
            with self.rows_path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.rows_path, before)
            raise self._not_writable(error) from error

    def read_rows(self) -> list[Row]:
        """The stored rows that hold, the last one of each (example, arm); a last line that is not whole is left out.

        Where an example was measured again and its arm remembers something else after it (`memory: run`), the rows
        of the examples that follow no longer hold: they began with another memory. Raises UserError for a line that
        is none of a known schema.
        """
        content = self.rows_path.read_bytes() if self.rows_path.exists() else b""
        rows: dict[tuple[str, str], Row] = {}
        for number, line in enumerate(whole_lines(content), start=1):
            row = read_row(line, f"{self.rows_path} line {number}")
            before = rows.get((row.example_id, row.arm))
            if before is not None and before.memory != row.memory:
                rows = {key: one for key, one in rows.items() if one.arm != row.arm or one.index <= row.index}
            rows[row.example_id, row.arm] = row
        return list(rows.values())

    def _check_claim(self) -> None:
        """Nothing of another process's is overwritten. Who writes without measuring (a copy, a test) claims nothing."""
        if self._claim is not None:
            self._claim.check()

    def _repair(self) -> None:
        """Remove a last line that a kill cut short."""
        content = self.rows_path.read_bytes() if self.rows_path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.rows_path, whole)

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(
            f"results_dir={self.results}: cannot write there ({error.strerror}); what was measured before is stored; "
            "accepted: a writable folder with room"
        )


def rows_hash(content: bytes) -> str:
    """Hash of the first bytes of a rows.jsonl."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_name(text: str) -> str:
    """A name as part of a path: whatever is neither a letter, a digit nor one of `_.-` becomes a dash."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


def create_folder(path: Path, results: Path) -> None:
    """Make a folder of the results. Raises UserError where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"results_dir={results}: cannot write there ({error.strerror}); accepted: a writable folder"
        ) from error


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises UserError when it cannot be written (a full disk)."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")  # two processes may write the same file
    try:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write it ({error.strerror}); accepted: a writable folder with room") from error


def settle_json(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON file unless there is one, and read it: who measures the same at the same time gets the same numbers.

    Raises UserError when it cannot be written.
    """
    mine = path.with_suffix(f".{os.getpid()}.mine")
    replace_json(mine, content)
    try:
        os.link(mine, path)  # fails where another process was first
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        replace_json(path, content)
    finally:
        mine.unlink(missing_ok=True)
    return read_json(path) or content


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None when there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content


def select(rows: Sequence[Row], example_ids: Collection[str], timed_ids: Collection[str]) -> list[Row]:
    """Rows of these examples in the run's order; those that are not to be timed lose what their timed passes gave."""
    wanted = [row for row in rows if row.example_id in example_ids]
    for row in wanted:
        if row.example_id not in timed_ids:
            row.__dict__.update({name: [] for name in PER_REPEAT})
    return sorted(wanted, key=lambda row: row.index)


def is_complete(row: Row | None, timed: bool, repeats: int, retry: bool) -> bool:
    """Whether a stored row holds all that this run asks of it. With `retry`, an error row does not."""
    if row is None:
        return False
    if row.error is not None:
        return not retry
    return not timed or len(row.decode_seconds) >= repeats
