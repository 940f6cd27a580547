"""Stored runs of every schema version are read, and what is of none is named by file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import made_rows, store_run

from experiments.errors import UserError
from experiments.records import SCHEMA_VERSION, Row
from experiments.store import RunFolder
from experiments.stored.catalog import find_run
from experiments.stored.checks import verify
from experiments.stored.frames import load_rows
from experiments.stored.schema import NEWEST_COLUMN, UPGRADES, read_row
from experiments.tables import read, summaries

STORED = Path(__file__).with_name("stored_run")
OLD = ("unclocked", "nodes", "parallel_seconds", "predicted_seconds", "measured_at")  # what a first line had not


def as_schema_1(row: Row) -> dict[str, Any]:
    """A row as an old version of this project wrote it."""
    content = json.loads(row.to_json())
    return {name: value for name, value in content.items() if name not in OLD}


def test_every_older_version_has_its_upgrade_and_its_mark() -> None:
    assert sorted(UPGRADES) == list(range(1, SCHEMA_VERSION))
    assert sorted(NEWEST_COLUMN) == list(range(2, SCHEMA_VERSION + 1))


def test_the_stored_run_of_schema_1_is_read(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "runs" / "stored_run")
    line = json.loads((STORED / "rows.jsonl").read_text().splitlines()[0])
    assert "measured_at" not in line and "schema_version" not in json.loads((STORED / "run.json").read_text())
    folder = RunFolder(tmp_path, "stored_run")
    rows = folder.read_rows()
    assert len(rows) == 30 and {(row.measured_at, row.nodes) for row in rows} == {(None, 0)}
    told, arms = summaries([read(folder)])
    assert told["summarization"]["sd"]["n_quality"] == 3 and len(arms) == 10
    run = find_run(tmp_path, "stored")
    assert (run.state, run.method, run.examples, run.value("task")) == ("done", "via_sd", 3, "summarization")
    assert len(load_rows(tmp_path, {"arm": "via_sd"})) == 30
    # Trimmed by hand: neither its identity nor a summary is as it was.
    assert [text.partition(":")[0] for text in verify(run)] == ["run.json", "no summary.json"]


def test_a_run_of_schema_1_goes_on_under_schema_2(tmp_path: Path) -> None:
    """Each line is read by its own version; run.json takes the newer one when it is written again."""
    rows = made_rows(3)
    folder = store_run(tmp_path, rows, status="running")
    old = [json.dumps(as_schema_1(row)) + "\n" for row in rows[:6]]
    folder.rows_path.write_text("".join(old) + "".join(row.to_json() + "\n" for row in rows[6:]))
    path = folder.path / "run.json"
    content = json.loads(path.read_text())
    del content["schema_version"], content["provenance"]
    path.write_text(json.dumps(content))
    found = folder.read_rows()
    assert [row.measured_at is None for row in found] == [True] * 6 + [False] * 3
    assert [row.token_ids for row in found] == [row.token_ids for row in rows]
    run = folder.read_run()
    assert run is not None and run["schema_version"] == 2 and run["provenance"] == []
    folder.write_run({**run, "status": "running"})
    assert json.loads(path.read_text())["schema_version"] == 2
    assert folder.sealed(None)["measured_at"] == rows[-1].measured_at


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"judgd": 1}, "column 'judgd': not known in schema 2; did you mean 'judged'"),
        ({"tiers": None, "drop": "arm"}, "without arm; accepted: every column of schema 2"),
        ({"drop": "nodes"}, "without nodes"),  # a line of schema 2 has what lines of schema 1 may lack
    ],
)
def test_columns_too_many_and_too_few_are_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = store_run(tmp_path, made_rows(1), status="running")
    lines = folder.rows_path.read_text().split("\n")
    content = json.loads(lines[1])
    content.pop(changes.pop("drop", ""), None)
    lines[1] = json.dumps({**content, **changes})
    folder.rows_path.write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        folder.read_rows()
    assert f"{folder.rows_path} line 2: " in str(error.value) and told in str(error.value)


@pytest.mark.parametrize("line", ["{", "7", "[1]", "null", ""])
def test_what_is_no_row_is_named(line: str) -> None:
    with pytest.raises(UserError, match=r"rows line 3: .*accepted: one JSON object a line"):
        read_row(line, "rows line 3")


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_unknown_versions_of_run_json(tmp_path: Path, version: object) -> None:
    folder = store_run(tmp_path)
    folder.write_run({"schema_version": version})
    with pytest.raises(UserError, match=r"run.json: schema_version=.*: not known here; accepted: 1 to 2"):
        folder.read_run()


def test_a_row_says_all_its_columns() -> None:
    row = made_rows(1)[0]
    assert read_row(row.to_json(), "row") == row
