"""`verify` finds each kind of damage, in one line each, and nothing in runs that are whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import call
from synthetic_runs import made_row, made_rows, store_run

from experiments.run import main as measure
from experiments.runs import main
from experiments.store import RunFolder, replace_json
from experiments.stored.catalog import open_entry
from experiments.stored.checks import broken_lines, verify


def defects(folder: RunFolder) -> list[str]:
    entry = open_entry(folder)
    assert entry is not None
    return verify(entry)


def edit_line(folder: RunFolder, number: int, **changes: Any) -> None:
    """Change a line of rows.jsonl, and seal it again: as if it had been measured so."""
    lines = folder.rows_path.read_text().split("\n")
    lines[number] = json.dumps({**json.loads(lines[number]), **changes}, ensure_ascii=False)
    folder.rows_path.write_text("\n".join(lines))
    run = folder.read_run()
    assert run is not None
    folder.write_run({**run, "rows": folder.sealed(None)})


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    replace_json(path, content)


@pytest.mark.parametrize("status", ["done", "failed", "running", "interrupted"])
def test_whole_runs_have_no_defects(tmp_path: Path, status: str) -> None:
    assert defects(store_run(tmp_path, status=status)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"drafted": 7}, "drafted and judged + unjudged + discarded + cut differ: 7, 6"),
        ({"tiers": {"target": 5}}, "judged and the sum of tiers differ: 6, 5"),
        ({"sources": {"draft": 9}}, "new_tokens and the sum of sources differ: 8, 9"),
        ({"new_tokens": 9, "sources": {}, "token_loss": []}, "new_tokens and token_ids differ: 9, 8"),
        ({"token_loss": [0.0]}, "new_tokens and token_loss differ: 8, 1"),
        ({"rejected": 7}, "target_rejected <= rejected <= judged does not hold: 0, 7, 6"),
        ({"decode_seconds": [0.0]}, "decode_seconds=[0.0]"),
        ({"decode_seconds": [1.0, 1.0]}, "decode_seconds and prefill_seconds differ: 2, 1"),
        ({"error": "out of luck"}, "an error row with tokens, seconds or rounds"),
        ({"arm": "sdd"}, "no such arm in this run"),
        ({"trace": [[6, 6, 0, 7, 0, "tttttt", "tttttt", None, []]]}, "rounds and the length of trace differ: 2, 1"),
        ({"index": 3}, "at several places of the order: 0, 3"),
        ({"judged": "six"}, "line 2: judged='six'"),
        ({"judgd": 6}, "line 2: column 'judgd'"),
    ],
)
def test_counts_and_columns(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = store_run(tmp_path)
    edit = {"number": 1, **changes}
    with suppress(ValueError):  # what cannot be read cannot be sealed
        edit_line(folder, **edit)
    assert [text for text in defects(folder) if told in text]


def test_damage_of_sealed_rows(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    content = folder.rows_path.read_bytes()
    folder.rows_path.write_bytes(content.replace(b"eight", b"Eight", 1))
    (told,) = defects(folder)
    assert "are no longer those of the end of the run" in told
    folder.rows_path.write_bytes(content[: content.rindex(b'{"example_id"')])
    assert any("but it had" in text for text in defects(folder))
    folder.rows_path.write_bytes(content + b'{"example_id":')
    assert defects(folder) == ["rows.jsonl line 13: not whole"]
    assert broken_lines(folder.rows_path) == [13]


def test_a_damaged_beginning_is_not_sealed_again(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    seal = (folder.read_run() or {})["rows"]
    assert folder.sealed(seal) is seal  # nothing was added
    folder.append([made_row("sd", 9)])
    assert folder.sealed(seal)["lines"] == 13
    folder.rows_path.write_bytes(folder.rows_path.read_bytes().replace(b"eight", b"Eight", 1))
    assert folder.sealed(seal) is seal


def test_missing_rows_and_files(tmp_path: Path) -> None:
    folder = store_run(tmp_path, made_rows(4)[:-1])
    assert "example e3: no row of arm via_sd" in defects(folder)
    folder.summary_path.unlink()
    assert "no summary.json" in defects(folder)
    (folder.path / "run.json").unlink()
    assert defects(folder) == ["no run.json"]


def test_a_summary_that_its_rows_do_not_give(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    edit_json(folder.summary_path, lambda content: content["arms"]["sd"]["speedup"].update(value=9.0))
    assert defects(folder) == ["summary.json: sd speedup=9.0, its rows give 2.0"]
    edit_json(folder.summary_path, lambda content: content["arms"].pop("sd"))
    assert defects(folder) == ["summary.json: arms vanilla, via_sd; its rows have vanilla, sd, via_sd"]
    folder.summary_path.write_text("{")
    assert len(defects(folder)) == 1 and "summary.json" in defects(folder)[0]


def test_a_metric_of_another_version_is_no_defect(tmp_path: Path) -> None:
    folder = store_run(tmp_path)

    def edit(content: dict[str, Any]) -> None:
        content["arms"]["sd"]["forgotten_metric"] = 1.0
        del content["arms"]["sd"]["quality"]

    edit_json(folder.summary_path, edit)
    assert defects(folder) == []


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    edit_json(folder.path / "run.json", lambda content: content["identity"].update(seed=5))
    (told,) = defects(folder)
    assert told.startswith("run.json: its identity belongs to run ")


def test_the_command_tells_each_defect_and_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole, broken = store_run(tmp_path), store_run(tmp_path, seed=1)
    broken.rows_path.write_bytes(broken.rows_path.read_bytes().replace(b"eight", b"Eight", 1))
    where = ("--results", str(tmp_path))
    code, out, err = call(capsys, main, *where, "verify")
    assert code == 1 and out.startswith(f"run {broken.run_id}: rows.jsonl: its first ") and len(out.splitlines()) == 1
    assert err == "error: 1 defects in 1 of 2 runs\n"
    assert call(capsys, main, *where, "verify", whole.run_id[:8]) == (0, "1 runs: nothing is wrong\n", "")
    code, out, _ = call(capsys, main, *where, "verify", "task=qa", "--json")
    assert code == 1 and [line["run"] for line in json.loads(out)] == [broken.run_id]


def test_a_measured_run_is_whole_also_after_a_smaller_limit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job = ["method=sd_heuristic", "arms=[vanilla,method]", "track=none", "task.max_new_tokens=6", "task.test_size=3"]
    for limit in ("limit=2", "limit=1"):
        code, _, err = call(capsys, measure, *job, limit, f"results_dir={tmp_path}")
        assert code == 0, err
        (path,) = (tmp_path / "runs").iterdir()
        assert defects(RunFolder(tmp_path, path.name)) == []
    content = json.loads((path / "summary.json").read_text())
    assert content["of"] == {"timed": 2, "examples": 2}
    run = json.loads((path / "run.json").read_text())
    assert run["rows"]["lines"] == 4 and run["rows"]["examples"] == 2 and run["provenance"][0]["started"]
    assert not (path / "alive").exists()
