"""`python -m experiments.runs` lists, filters and shows stored runs, and says in one line what it cannot do."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, check_mistake
from synthetic_runs import DATE, made_rows, store_run

from experiments.errors import CONF
from experiments.runs import main

LISTED = ["run", "state", "task", "pair", "method", "arms", "examples", "measured", "over_sd"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three runs: two tasks, one of them also by another method on another device, later and stale."""
    store_run(tmp_path)
    store_run(tmp_path, task="coding", status="failed")
    late = made_rows(2, date="2026-09-01T10:00:00+00:00")
    store_run(tmp_path, late, status="interrupted", method="sd", device="NVIDIA H100", code_hash="ffff", seed=1)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], results: Path, *typed: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, "--results", str(results), *typed)


def listed(capsys: pytest.CaptureFixture[str], results: Path, *filters: str) -> list[tuple[str, str]]:
    """Task and state of the runs that fit."""
    code, out, err = run(capsys, results, *filters, "--json")
    assert (code, err) == (0, "")
    return sorted((line["task"], line["state"]) for line in json.loads(out))


def test_a_list_says_what_there_is(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    code, out, err = run(capsys, results)
    header, *lines = out.splitlines()
    assert (code, err) == (0, "") and header.startswith("run ") and len(lines) == 3
    assert [line for line in lines if "coding" in line and "failed" in line and "1.50" in line and "2026-05-04" in line]
    code, out, _ = run(capsys, results, "list", "--csv")
    found = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and list(found[0]) == LISTED and {one["examples"] for one in found} == {"4", "2"}
    assert {one["over_sd"] for one in found} == {"1.5", ""}


@pytest.mark.parametrize(
    ("filters", "states"),
    [
        (["task=qa"], ["done", "stale"]),
        (["task=qa,coding", "state=done,failed"], ["done", "failed"]),
        (["method=sd"], ["stale"]),
        (["arm=via_sd", "pair=reference"], ["done", "failed", "stale"]),
        (["device=h100"], ["stale"]),
        (["code=8a21"], ["done", "failed"]),
        (["since=2026-06-01", "device=Processor"], []),
        (["since=2026-05-04T09:00", "state=done"], ["done"]),
        (["state=running"], []),
    ],
)
def test_filters(capsys: pytest.CaptureFixture[str], results: Path, filters: list[str], states: list[str]) -> None:
    assert sorted(state for _, state in listed(capsys, results, *filters)) == states


def test_show_takes_the_beginning_of_an_id(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    folder = store_run(results, task="translation")
    code, out, err = run(capsys, results, "show", folder.run_id[:12])
    assert (code, err) == (0, "") and folder.run_id in out and "made up" in out and DATE in out
    assert "3.00" in out and "blake2b" in out and "8a21b10e1e969e9b" in out
    code, out, _ = run(capsys, results, "show", folder.run_id, "--json")
    told = json.loads(out)
    assert code == 0 and told["state"] == "done" and told["summary"]["sd"]["speedup"]["value"] == pytest.approx(2)
    assert told["examples"] == 4 and told["starts"][0]["commit"] == "0123456789abcdef"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["tsk=qa"], ["tsk=qa", "'task'"]),
        (["task=qaa"], ["task=qaa", "'qa'", "coding"]),
        (["state=runing"], ["state=runing", "'running'", "stale"]),
        (["since=soon"], ["since=soon", "2026-05-31", "7d"]),
        (["task=qa", "task=coding"], ["comes twice", "task=qa,coding"]),
        (["task="], ["task=", "KEY=VALUE"]),
        (["verfy"], ["verfy", "'verify'"]),
        (["show"], ["show ID"]),
        (["show", "zzz"], ["run zzz", "not found"]),
        (["show", "zzz", "--csv"], ["not found"]),
        (["verify", "abc", "task=qa"], ["ids or filters"]),
        (["--json", "--csv"], ["--json --csv"]),
        (["--sql", "SELECT 1", "task=qa"], ["WHERE"]),
        (["--yes"], ["with gc"]),
        (["gc", "--older-than", "old"], ["--older-than=old", "30d"]),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], results: Path, typed: list[str], named: list[str]) -> None:
    code, out, err = run(capsys, results, *typed)
    assert out == ""
    check_mistake(code, err, named)


def test_an_id_that_two_runs_begin_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("abc1", "abc2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    check_mistake(*run(capsys, tmp_path, "show", "abc")[::2], ["2 runs begin so", "abc1, abc2"])


def test_no_runs_are_no_mistake(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    assert call(capsys, main) == (0, f"no runs in {tmp_path / 'runs'}\n", "")
    assert call(capsys, main, "task=qa", "--json") == (0, "[]\n", "")
    assert call(capsys, main, "verify") == (0, "0 runs: nothing is wrong\n", "")
    assert call(capsys, main, "gc") == (0, "nothing to delete\n", "")


def test_a_run_that_cannot_be_read_keeps_no_other_from_the_list(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    newer, broken = store_run(results, seed=7), store_run(results, seed=8)
    newer.write_run({"schema_version": 3, "status": "done"})
    (broken.path / "run.json").write_text('{"status": "do')
    (results / "runs" / "empty").mkdir()
    code, out, err = run(capsys, results)
    assert code == 0 and len(out.splitlines()) == 1 + 3 + 3 and out.count("unreadable") == 2
    assert f"{newer.path / 'run.json'}: schema_version=3: not known here; accepted: 1 to 2" in err
    assert f"note: {broken.path / 'run.json'}: JSONDecodeError" in err and len(err.splitlines()) == 2
    check_mistake(*run(capsys, results, "show", newer.run_id)[::2], ["schema_version=3", "1 to 2"])


def test_a_list_does_not_wait_for_torch(results: Path) -> None:
    script = (
        f"import sys; sys.argv[1:] = ['--results', {str(results)!r}]; from experiments.runs import main; main();"
        "print(*[name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", script], cwd=CONF.parent, text=True)
    assert len(out.splitlines()) == 5 and out.splitlines()[-1] == ""
