"""Own yamls and classes, found by --config-dir: they run, and their source is part of who the run is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from commands import call

import experiments.list
from experiments.config import CHECKOUT
from experiments.run import main
from experiments.store import RunFolder

YAML = """
defaults:
  - drafter: draft_model
  - verifier: lossless
  - _self_
_target_: viasd.method.Method
name: patient
stop:
  _target_: rules.Patient
  length: 3
"""


def documented() -> str:
    """The README's own example."""
    (code,) = re.findall(
        r"```python\n(from viasd.decode import Part.*?)```", (CHECKOUT / "README.md").read_text(), re.S
    )
    return str(code)


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and standard error of one call."""
    small = ["track=none", "limit=1", "task.max_new_tokens=12", "task.test_size=2", f"results_dir={results}"]
    code, _, err = call(capsys, main, *overrides, *small)
    return code, err


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder."""
    folder = tmp_path / "mine"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "patient.yaml").write_text(YAML)
    (folder / "rules.py").write_text(documented())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    return folder


def test_an_own_stop_rule_runs(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, typed = tmp_path / "results", ("--config-dir", str(mine), "method=patient", "arms=[vanilla,method]")
    assert run(capsys, results, *typed) == (0, "")
    (path,) = (results / "runs").iterdir()
    folder = RunFolder(results, path.name)
    (row,) = [row for row in folder.read_rows() if row.arm == "patient"]
    assert row.error is None and max(len(row.drafted_at), 0) == 3 and row.rounds > 3
    stop = (folder.read_run() or {})["identity"]["arms"]["patient"]["stop"]
    assert stop["_target_"] == "rules.Patient" and stop["length"] == 3 and len(stop["_source_"]) == 16
    (mine / "rules.py").write_text(documented() + "# changed\n")
    assert run(capsys, results, *typed) == (0, "")
    assert len(list((results / "runs").iterdir())) == 2


def test_a_class_that_is_no_spec_is_refused(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "rules.py").write_text("class Patient:\n    def __init__(self, length): raise RuntimeError\n")
    code, err = run(capsys, tmp_path / "results", "--config-dir", str(mine), "method=patient")
    assert code == 2 and "method.stop._target_=rules.Patient" in err and "viasd.spec.spec" in err


def test_own_yamls_are_listed_and_named_when_misspelled(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = run(capsys, tmp_path / "results", f"--config-dir={mine}", "method=pateint")
    assert code == 2 and "did you mean 'patient'?" in err
    code, out, _ = call(capsys, experiments.list.main, "methods", "--config-dir", str(mine))
    assert code == 0 and "patient" in out
