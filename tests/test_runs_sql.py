"""SQL over the files: what the views hold is what Python reads, and nothing but reading is possible."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, check_mistake
from synthetic_runs import ARMS, made_row, store_run

from experiments.errors import UserError
from experiments.runs import main
from experiments.store import RunFolder
from experiments.stored import load_frame, load_rows, query
from experiments.stored.catalog import Entry


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs in a folder whose name is a pattern."""
    pytest.importorskip("duckdb")
    place = tmp_path / "it's [a] *"
    store_run(place)
    store_run(place, task="coding", status="interrupted")
    return place


def test_the_views_hold_what_python_reads(results: Path) -> None:
    runs = query("SELECT * FROM runs ORDER BY task", results)
    assert list(runs["task"]) == ["coding", "qa"] and list(runs["state"]) == ["stale", "done"]
    assert list(runs["examples"]) == [4, 4] and list(runs["limit"]) == [4, 4] and list(runs["arms"][0]) == list(ARMS)
    assert str(runs["measured"][1]) == "2026-05-04 10:00:00"
    rows = query("SELECT run_id, arm, index, fidelity, decode_seconds, text FROM rows", results)
    own = load_rows(results)[list(rows.columns)]
    order = ["run_id", "arm", "index"]
    told, read = (one.sort_values(order).values.tolist() for one in (rows, own))
    assert told == read and len(rows) == 24
    summary = query("SELECT * FROM summary WHERE metric = 'speedup'", results).set_index("arm")
    frame = load_frame(results).set_index("arm")
    for arm in ARMS:
        assert summary["value"][arm] == frame["speedup"][arm] and summary["high"][arm] == frame["speedup.high"][arm]
    counts = query("SELECT value, low FROM summary WHERE metric = 'n_timed'", results)
    assert set(counts["value"]) == {4.0} and counts["low"].isna().all()


def test_the_views_have_the_columns_of_an_entry(results: Path) -> None:
    from experiments.stored.sql import RUNS

    assert set(RUNS) == set(Entry(RunFolder(results, "x"), {}).columns())
    joined = query(
        "SELECT task, arm, avg(new_tokens) AS tokens FROM rows JOIN runs USING (run_id) "
        "WHERE tiers['target'] = 6 GROUP BY ALL ORDER BY ALL",
        results,
    )
    assert joined.values.tolist() == [[task, arm, 8.0] for task in ("coding", "qa") for arm in ("sd", "via_sd")]


def test_rows_hold_as_in_read_rows(tmp_path: Path) -> None:
    """Rows that were measured again, with arms that remember and arms that do not: both readers agree."""
    pytest.importorskip("duckdb")
    draws, again = random.Random(0), 0
    for seed in range(6):
        folder = store_run(tmp_path, [], status="running", seed=seed)
        for start in range(10):  # as runs go on: from somewhere before the first example that is missing, in order
            held = {row.index for row in folder.read_rows() if row.arm == "sd"}
            first = draws.randint(0, min(set(range(6)) - held, default=5))
            for index in range(first, draws.randint(first, 5) + 1):
                for row in (made_row("sd", index), made_row("vanilla", index)):
                    row.new_tokens = 100 * start + index  # tells them apart
                    row.memory = {"x": draws.randrange(3)} if row.arm == "sd" else {}
                    folder.append([row])
    for folder in (RunFolder(tmp_path, path.name) for path in (tmp_path / "runs").iterdir()):
        told = query(f"SELECT arm, new_tokens FROM rows WHERE run_id = '{folder.run_id}'", tmp_path)
        rows = folder.read_rows()
        assert sorted(map(tuple, told.values.tolist())) == sorted((row.arm, row.new_tokens) for row in rows)
        again += len([row for row in rows if row.arm == "vanilla"]) > len([row for row in rows if row.arm == "sd"])
    assert again > 1  # where rows of the arm that remembers no longer hold


def test_half_lines_and_damaged_ones_are_left_out_and_told(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    one, other = (RunFolder(results, path.name) for path in sorted((results / "runs").iterdir()))
    with one.rows_path.open("a") as file:
        file.write('{"example_id":"e9","arm"')
    lines = other.rows_path.read_text().split("\n")
    other.rows_path.write_text("\n".join([lines[0], "no JSON", *lines[1:]]))
    frame = query("SELECT count(*) AS n, count(DISTINCT run_id) AS runs FROM rows", results)
    assert frame.values.tolist() == [[24, 2]]
    assert sorted(frame.attrs["skipped"]) == sorted(
        f"{folder.rows_path}: 1 lines left out, or values of them, as they cannot be read (the first: {number})"
        for folder, number in ((one, 13), (other, 2))
    )
    code, out, err = call(capsys, main, "--results", str(results), "--sql", "SELECT count(*) AS n FROM rows", "--csv")
    assert (code, out) == (0, "n\n24\n") and len(err.splitlines()) == 2 and err.startswith("note: ")
    assert query("SELECT 1 AS one FROM runs", results).attrs["skipped"] == []


def test_lines_of_schema_1_are_read(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    shutil.copytree(Path(__file__).with_name("stored_run"), tmp_path / "runs" / "stored_run")
    sql = "SELECT count(*), count(measured_at), count(unclocked), sum(new_tokens) FROM rows JOIN runs USING (run_id)"
    frame = query(sql, tmp_path)
    assert frame.attrs["skipped"] == []
    assert frame.values.tolist() == [[30, 0, 30, sum(load_rows(tmp_path)["new_tokens"])]]


def test_a_value_of_another_type_is_told(results: Path) -> None:
    (path, *_) = sorted(results.glob("runs/*/rows.jsonl"))
    path.write_text(path.read_text().replace('"judged":6', '"judged":"six"', 1))
    frame = query("SELECT sum(judged) AS judged FROM rows", results)
    assert frame["judged"][0] == 16 * 6 - 6 and f"{path}: 1 lines" in frame.attrs["skipped"][0]


def test_a_summary_that_cannot_be_read_is_told(results: Path) -> None:
    folder = store_run(results, seed=5)
    folder.summary_path.write_text('{"arms": {"sd"')
    frame = query("SELECT DISTINCT run_id FROM summary", results)
    assert len(frame) == 1 and frame.attrs["skipped"] == [f"{folder.summary_path}: left out, as it cannot be read"]


def test_empty_results(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    for view in ("runs", "rows", "summary"):
        assert len(query(f"SELECT * FROM {view}", tmp_path)) == 0
    assert len(query("SELECT * FROM runs WHERE task = 'qa' AND measured > '2026-01-01'", tmp_path)) == 0
    folder = store_run(tmp_path, [], status="running")
    folder.rows_path.touch()
    (tmp_path / "runs" / "empty").mkdir()
    assert query("SELECT count(*) AS n FROM rows", tmp_path)["n"][0] == 0
    assert query("SELECT count(*) AS n FROM runs", tmp_path)["n"][0] == 2


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("SELEC 1", ["sql: ", "SELEC"]),
        ("SELECT tusk FROM runs", ["tusk", "task"]),
        ("SELECT * FROM run", ["run", "runs"]),
        ("", ["nothing", "one SELECT"]),
        ("SELECT 1; SELECT 2", ["SELECT, SELECT", "one SELECT"]),
        ("COPY (SELECT 1) TO 'OUT/new.csv'", ["COPY", "one SELECT"]),
        ("COPY (SELECT 1) TO 'OUT/runs/new.csv'", ["COPY", "one SELECT"]),
        ("CREATE TABLE t AS SELECT 1", ["CREATE", "one SELECT"]),
        ("ATTACH 'OUT/new.db'", ["ATTACH", "one SELECT"]),
        ("SET enable_external_access = true", ["SET", "one SELECT"]),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'OUT/new.csv'", ["EXPLAIN", "one SELECT"]),
        ("SELECT * FROM read_text('OUT/secret')", ["secret"]),
        ("SELECT * FROM read_csv('/etc/passwd')", ["passwd"]),
        ("SELECT * FROM secret", ["secret"]),
        ("SELECT 'a'::INTEGER FROM rows", ["Conversion"]),
    ],
)
def test_mistakes_and_what_is_not_allowed(
    capsys: pytest.CaptureFixture[str], results: Path, sql: str, named: list[str]
) -> None:
    out = results.parent
    (out / "secret").write_text("secret")
    files = sorted(out.rglob("*"))
    typed = sql.replace("OUT/runs", str(results / "runs").replace("'", "''")).replace("OUT", str(out))
    code, printed, err = call(capsys, main, "--results", str(results), "--sql", typed)
    assert printed == "" and sorted(out.rglob("*")) == files
    check_mistake(code, err, named)


def test_forms(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    sql = ("--results", str(results), "--sql", "SELECT task, state FROM runs ORDER BY task")
    assert call(capsys, main, *sql, "--csv") == (0, "task,state\ncoding,stale\nqa,done\n", "")
    code, out, _ = call(capsys, main, *sql)
    assert code == 0 and [line.split() for line in out.splitlines()] == [
        ["task", "state"],
        ["coding", "stale"],
        ["qa", "done"],
    ]
    code, out, _ = call(capsys, main, *sql, "--json")
    assert code == 0 and '"task":"qa"' in out


def test_runs_that_cannot_be_read_are_told(results: Path) -> None:
    newer = store_run(results, seed=5)
    newer.write_run({"schema_version": 3})
    frame = query("SELECT count(DISTINCT run_id) AS n FROM rows", results)
    assert frame["n"][0] == 2 and len(frame.attrs["skipped"]) == 1 and "schema_version=3" in frame.attrs["skipped"][0]


def test_asking_while_others_write(results: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import itertools, shutil; from synthetic_runs import store_run, made_row\n"
        "folder = store_run(Path(sys.argv[1]), [], seed=9, status='running')\nprint('ready', flush=True)\n"
        "for number in itertools.count():\n"
        "    folder.append([made_row('sd', number)])\n"
        "    if number % 5 == 0: shutil.rmtree(store_run(Path(sys.argv[1]), [], seed=8, status='running').path)\n"
    )
    command = [sys.executable, "-c", script, str(results), str(Path(__file__).parent)]
    root = Path(__file__).resolve().parents[1]
    writer = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        counts = [query("SELECT count(*) AS n FROM rows JOIN runs USING (run_id)", results)["n"][0] for _ in range(4)]
    finally:
        writer.kill()
        writer.wait()
    assert all(a <= b for a, b in itertools.pairwise(counts)) and counts[0] >= 24


def test_without_duckdb(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    check_mistake(*call(capsys, main, "--results", str(tmp_path), "--sql", "SELECT 1")[::2], ["viasd[sql]"])
    with pytest.raises(UserError, match="duckdb is not installed"):
        query("SELECT 1", tmp_path)
