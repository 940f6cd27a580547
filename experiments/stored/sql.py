"""SQL over stored runs: DuckDB reads rows.jsonl and summary.json where they lie; nothing is copied or kept.

`runs`: one line for each run; `rows`: one for each stored row that holds, without its long columns; `summary`: run_id,
arm, metric, value, low, high. Only single SELECT statements are run, and no other file can be reached from them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.entry import results_folder
from experiments.errors import UserError
from experiments.records import PER_REPEAT, Row
from experiments.stored.catalog import Entry
from experiments.stored.frames import HEAVY, problems, runs_frame, select
from experiments.stored.schema import LATER

if TYPE_CHECKING:
    import pandas as pd

RUNS = {
    "run_id": "VARCHAR", "state": "VARCHAR", "method": "VARCHAR", "arms": "VARCHAR[]", "task": "VARCHAR",
    "pair": "VARCHAR", "status": "VARCHAR", "device": "VARCHAR", "dtype": "VARCHAR", "threads": "BIGINT",
    "mode": "VARCHAR", "code_hash": "VARCHAR", "temperature": "DOUBLE", "seed": "BIGINT", "repeats": "BIGINT",
    "limit": "BIGINT", "quality_limit": "BIGINT", "started": "TIMESTAMP", "commit": "VARCHAR", "examples": "BIGINT",
    "measured": "TIMESTAMP",
}  # fmt: skip
TYPES = {
    "str": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "list[int]": "BIGINT[]", "list[float]": "DOUBLE[]",
    "dict[str, int]": "MAP(VARCHAR, BIGINT)", "dict[str, float]": "MAP(VARCHAR, DOUBLE)",
}  # fmt: skip
ATTEMPTS = 3  # a file may go away between the look at the folder and its reading

# The rules of `RunFolder.read_rows`: the last line of each (example, arm) holds, unless its arm remembers and an
# example before it was measured again, later, and left something else to remember.
ROWS = """
CREATE OR REPLACE VIEW rows AS
WITH lines AS (
    SELECT string_split(filename, '/')[-2] AS run_id, {light}, memory::VARCHAR AS memory, row_number() OVER () AS line
    FROM {source}
    WHERE example_id IS NOT NULL
), attempts AS (
    SELECT *, lag(memory) OVER of_row AS before, row_number() OVER of_row AS attempt, lead(line) OVER of_row AS replaced
    FROM lines
    WINDOW of_row AS (PARTITION BY run_id, arm, example_id ORDER BY line)
), again AS (
    SELECT run_id, arm, index, line FROM attempts WHERE attempt > 1 AND memory IS DISTINCT FROM before
)
SELECT {names} FROM attempts
WHERE replaced IS NULL AND NOT EXISTS (
    SELECT 1 FROM again
    WHERE again.run_id = attempts.run_id AND again.arm = attempts.arm
        AND again.index < attempts.index AND again.line > attempts.line
)
"""
SUMMARY = """
CREATE OR REPLACE VIEW summary AS
WITH arms AS (
    SELECT string_split(filename, '/')[-2] AS run_id,
        unnest(map_entries(CAST(json_extract(content, '$.arms') AS MAP(VARCHAR, MAP(VARCHAR, JSON))))) AS arm
    FROM {source}
), metrics AS (
    SELECT run_id, arm.key AS arm, unnest(map_entries(arm.value)) AS metric FROM arms
)
SELECT run_id, arm, metric.key AS metric,
    CASE WHEN json_type(metric.value) = 'OBJECT' THEN metric.value ->> '$.value' ELSE metric.value ->> '$' END::DOUBLE
        AS value,
    (metric.value ->> '$.low')::DOUBLE AS low, (metric.value ->> '$.high')::DOUBLE AS high
FROM metrics
"""


def query(sql: str, results: str | Path | None = None) -> pd.DataFrame:
    """See `experiments.stored.query`."""
    try:
        import duckdb
    except ImportError:
        raise UserError("sql: duckdb is not installed; accepted after: pip install 'viasd[sql]'") from None
    statement = _only_select(duckdb, sql)
    for attempt in range(ATTEMPTS):
        found = select(results, {})
        try:
            return _answer(duckdb, statement, results_folder(results) / "runs", found)
        except duckdb.IOException as error:
            if attempt == ATTEMPTS - 1:
                raise _mistake(error) from error
        except duckdb.Error as error:
            raise _mistake(error) from error
    raise AssertionError


def _only_select(duckdb: Any, sql: str) -> str:
    """The one statement of a text. Raises UserError where there are several, or one that does more than read."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _mistake(error) from error
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        raise UserError(f"sql: {', '.join(kinds) or 'nothing'}; accepted: one SELECT over runs, rows, summary")
    return str(statements[0].query)


def _mistake(error: Exception) -> UserError:
    """The first line of an error of DuckDB, which draws an arrow to the place in further ones."""
    text, _, drawn = str(error).partition("\nLINE ")
    return UserError(f"sql: {' '.join(text.split())}{f' (line {drawn.splitlines()[0]})' if drawn else ''}")


def _answer(duckdb: Any, sql: str, place: Path, found: Sequence[Entry]) -> pd.DataFrame:
    """Ask with everything read strictly; if something cannot be read, without it, and say so."""
    readable, skipped = [entry for entry in found if entry.problem is None], problems(found)
    with duckdb.connect(":memory:") as connection:
        _confine(connection, place)
        _view_runs(connection, readable if re.search(r"\bruns\b", sql, re.I) else [])
        _view_rows(connection, readable, lenient=False)
        _view_summary(connection, readable)
        try:
            frame = connection.sql(sql).df()
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            broken = [text for entry in readable for text in _broken(entry)]
            if not broken:
                raise _mistake(error) from error
            _view_rows(connection, readable, lenient=True)
            _view_summary(connection, [entry for entry in readable if not _is_broken(entry)])
            frame, skipped = connection.sql(sql).df(), skipped + broken
    frame.attrs["skipped"] = skipped
    return frame


def _confine(connection: Any, place: Path) -> None:
    """Leave it nothing but the files below `place`: no network, no extension, no variable of Python."""
    if hasattr(os, "sched_getaffinity"):  # those that this process may use: more would wait for each other
        connection.execute(f"SET threads = {len(os.sched_getaffinity(0))}")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute(f"SET allowed_directories = [{_quoted(str(place))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _view_runs(connection: Any, found: Sequence[Entry]) -> None:
    frame = runs_frame(found)
    if len(frame):
        connection.register("entries", frame)
    columns = ", ".join(f"{_value(name, type_, bool(len(frame)))} AS {_name(name)}" for name, type_ in RUNS.items())
    connection.execute(f"CREATE VIEW runs AS SELECT {columns}" + (" FROM entries" if len(frame) else " WHERE false"))


def _value(name: str, type_: str, there: bool) -> str:
    return f"CAST({_name(name) if there else 'NULL'} AS {type_})"


def _view_rows(connection: Any, found: Sequence[Entry], lenient: bool) -> None:
    columns = {field.name: _type(str(field.type)) for field in dataclasses.fields(Row)}
    light = [name for name in columns if name not in HEAVY]
    changed = {name: f"coalesce({name}, {value})" for name, value in LATER.items() if isinstance(value, int)}
    changed |= {name: f"list_avg({name})" for name in PER_REPEAT}
    told = [f"{changed.get(name, name)} AS {name}" for name in light] + ["1 - list_avg(token_loss) AS fidelity"]
    read = {name: columns[name] for name in [*light, "token_loss", "memory"]}
    names, source = ", ".join(["run_id", *light, "fidelity"]), _source(_files(found, "rows.jsonl"), read, lenient)
    connection.execute(ROWS.format(source=source, light=", ".join(told), names=names))


def _view_summary(connection: Any, found: Sequence[Entry]) -> None:
    files = ", ".join(_quoted(str(path)) for path in _files(found, "summary.json"))
    nothing = "(SELECT NULL::VARCHAR AS filename, NULL::VARCHAR AS content WHERE false)"
    connection.execute(SUMMARY.format(source=f"read_text([{files}])" if files else nothing))


def _files(found: Sequence[Entry], name: str) -> list[Path]:
    return [path for entry in found if (path := entry.folder.path / name).is_file()]


def _source(files: Sequence[Path], columns: dict[str, str], lenient: bool) -> str:
    """A table of these columns of JSON files, and `filename`; without files an empty one of the same types."""
    if not files:
        told = ", ".join(f"CAST(NULL AS {type_}) AS {_name(name)}" for name, type_ in columns.items())
        return f"(SELECT {told}, CAST(NULL AS VARCHAR) AS filename WHERE false)"
    later = {name: type_ for name, type_ in columns.items() if name in LATER}
    always = {name: type_ for name, type_ in columns.items() if name not in LATER}
    # One reader of lines and two transformations: columns of read_json would be set up anew for each file.
    strict = "json_transform" if lenient else "json_transform_strict"
    parts = f"{_transformed(strict, always)}, {_transformed('json_transform', later)}"
    paths = ", ".join(_quoted(str(path)) for path in files)
    lines = f"read_ndjson_objects([{paths}], filename = true, ignore_errors = {str(lenient).lower()})"
    return f"(SELECT filename, {parts} FROM {lines})"


def _transformed(function: str, columns: dict[str, str]) -> str:
    return f"unnest({function}(json, {_quoted(json.dumps(columns))}))"


def _broken(entry: Entry) -> list[str]:
    """What of a run cannot be read, a sentence for each file; the last line of a run at work may be half."""
    from experiments.stored.checks import broken_lines

    told = [f"{entry.folder.summary_path}: left out, as it cannot be read"] if _is_broken(entry) else []
    for path in _files([entry], "rows.jsonl"):
        if numbers := broken_lines(path):
            what = "lines left out, or values of them, as they cannot be read"
            told.append(f"{path}: {len(numbers)} {what} (the first: {numbers[0]})")
    return told


def _is_broken(entry: Entry) -> bool:
    """Whether its summary cannot be read."""
    try:
        entry.summary()
    except UserError:
        return True
    return False


def _type(annotation: str) -> str:
    return TYPES.get(annotation.removesuffix(" | None"), "JSON")


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
