"""`python -m experiments.publish`: what is measured, read, written and refused."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import call, check_mistake

from experiments import publish
from experiments.config import CHECKOUT
from experiments.paper import jobs

EXPERIMENT = """# @package _global_
defaults:
  - /sized
  - override /method: sd
  - _self_
arms: [vanilla, sd]
table_name: tiny_${limit}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      task: few,qa
"""
TASK = """
defaults: [reasoning, _self_]
name: few
test_size: 4
max_new_tokens: 4
"""
TABLE = """
defaults:
  - columns: speed
  - rows: base
  - _self_
_target_: experiments.paper.spec.Table
name: tiny
title: A tiny table
paper: VIA-SD (2606.12243) Table 2
values: [table2_qa_main]
experiment: tiny
tasks: [few]
sizes: {default: {limit: 1, quality_limit: 2}}
baseline: sd
cite: [viasd]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder for --config-dir with a small table and its experiment."""
    for group, text in (("experiment", EXPERIMENT), ("table", TABLE), ("task", TASK)):
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / f"{'few' if group == 'task' else 'tiny'}.yaml").write_text(text)
    return tmp_path / "mine"


def typed(mine: Path, *more: str) -> list[str]:
    jobs.RUNS.clear()  # as in a new process
    return [
        "--config-dir",
        str(mine),
        "table=tiny",
        f"results_dir={mine.parent / 'results'}",
        "engine.threads=1",
        *more,
    ]


def test_missing_runs_are_measured_and_stored_ones_read(
    capsys: pytest.CaptureFixture[str], mine: Path, tmp_path: Path
) -> None:
    code, out, _ = call(capsys, publish.main, *typed(mine, "--plan"))
    assert code == 0 and "few" in out and "1 jobs" in out and not (tmp_path / "results").exists()
    code, out, err = call(capsys, publish.main, *typed(mine))
    assert code == 0, err
    assert "tiny on few: measuring 2 of 2 examples in 2 arms" in out and out.count("\n") == 2
    folder = tmp_path / "results" / "published" / "reference"
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert list(first) == ["tiny.csv", "tiny.md", "tiny.tex"]
    shutil.rmtree(folder)
    code, out, _ = call(capsys, publish.main, *typed(mine))
    assert code == 0 and "measuring" not in out
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first
    lines = list(csv.DictReader(first["tiny.csv"].decode().splitlines()))
    assert {(line["task"], line["n_timed"], line["n_judged"]) for line in lines} == {("few", "1", "2")}
    code, out, _ = call(capsys, publish.main, *typed(mine, "--plan"))
    row = next(line.split() for line in out.splitlines() if line.startswith("few"))
    assert code == 0 and row[-4:] == ["2", "0", "0", "s"]


def test_a_run_that_was_extended_stays_as_published(
    capsys: pytest.CaptureFixture[str], mine: Path, tmp_path: Path
) -> None:
    """Who says no number gets all that is stored; who says one gets that many."""

    def counts(*more: str) -> tuple[str, set[tuple[str, str]]]:
        code, _, err = call(capsys, publish.main, *typed(mine, *more))
        assert code == 0, err
        text = (tmp_path / "results" / "published" / "reference" / "tiny.csv").read_text()
        return text, {(line["n_timed"], line["n_judged"]) for line in csv.DictReader(text.splitlines())}

    extended, found = counts("limit=3")
    assert found == {("3", "3")}
    assert counts() == (extended, found)
    assert counts("size=default")[1] == {("1", "2")} and counts("limit=2")[1] == {("2", "2")}
    assert counts() == (extended, found)
    assert "measuring" not in call(capsys, publish.main, *typed(mine))[1]


def test_how_ours_decodes_is_passed_on_and_kept_apart(
    capsys: pytest.CaptureFixture[str], mine: Path, tmp_path: Path
) -> None:
    code, _, err = call(capsys, publish.main, *typed(mine, "limit=1", "decode=sample"))
    assert code == 0, err
    (folder,) = (tmp_path / "results" / "published").iterdir()
    text = (folder / "tiny.md").read_text()
    assert folder.name == "reference_sample" and "temperature 1," in text and "Ours decodes at temperature 1;" in text


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["tasks=[codng]"], ["task=codng", "did you mean 'coding'"]),
        (["size=ful"], ["size=ful", "did you mean 'full'"]),
        (["limit=0"], ["limit=0"]),
        (["table=tinny"], ["table=tinny: not found", "did you mean 'tiny'"]),
        (["pair=referense"], ["pair=referense", "did you mean 'reference'"]),
        (["table.baseline=sdd"], ["baseline=sdd", "vanilla, sd"]),
        (["table.experiment=tiiny"], ["experiment=tiiny", "did you mean 'tiny'"]),
        (["table._target_=viasd.models.Pair"], ["table"]),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], mine: Path, more: list[str], named: list[str]
) -> None:
    code, _, err = call(capsys, publish.main, *typed(mine, "--plan", *more))
    check_mistake(code, err, named)


def test_help_needs_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, publish.main, "--help")
    assert (code, err) == (0, "") and "table: adasd, viasd_1" in out and "size: null" in out
    code, _, err = call(capsys, publish.main)
    check_mistake(code, err, ["table: no value", "accepted: adasd, viasd_1"])


def test_an_experiment_has_to_sweep_over_tasks(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    path = mine / "experiment" / "tiny.yaml"
    path.write_text(EXPERIMENT + "      seed: 0,1\n")
    code, _, err = call(capsys, publish.main, *typed(mine, "--plan"))
    check_mistake(code, err, ["experiment=tiny", "tasks alone"])


def test_what_cannot_be_built_yet_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that nobody trained: the table is written with the paper's values alone."""
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    code, out, err = call(capsys, publish.main, "table=vsd")
    assert code == 0, err
    assert "vsd: not measured: " in out and "python scripts/train_vsd.py comes first" in out
    text = (tmp_path / "published" / "reference" / "vsd.md").read_text()
    assert "Nothing measured: python scripts/train_vsd.py comes first." in text and "| 4.22 |" in text


def test_what_was_published_is_not_replaced_by_blanks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    made = tmp_path / "published" / "reference" / "vsd.md"
    made.parent.mkdir(parents=True)
    made.write_text("numbers")
    code, out, err = call(capsys, publish.main, "table=vsd")
    assert code == 0, err
    assert f"{made} stays as it is" in out and "python scripts/train_vsd.py comes first" in out
    assert [path.read_text() for path in made.parent.iterdir()] == ["numbers"]


def test_another_mistake_is_not_told_as_lacking_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    nowhere = [f"pair.models.{role}={tmp_path / 'none'}" for role in ("target", "draft")]
    code, out, err = call(capsys, publish.main, "table=vsd", "pair=local", *nowhere, "+pair.heads.eagle3=nowhere")
    check_mistake(code, err, [str(tmp_path / "none")])
    assert "comes first" not in out and not (tmp_path / "published").exists()


def test_one_table_that_fails_does_not_keep_others_from_being_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    (mine / "table" / "tiny.yaml").write_text(TABLE.replace("baseline: sd", "baseline: sdd"))
    sweep = ["-m", f"hydra.sweep.dir={tmp_path / 'multirun'}", "table=tiny,vsd"]
    code, out, err = call(capsys, publish.main, "--config-dir", str(mine), *sweep)
    check_mistake(code, err, ["tiny: table=tiny: baseline=sdd"])
    assert (tmp_path / "published" / "reference" / "vsd.md").exists() and "VSD: ablation" in out


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets() -> None:
    def said(*typed: str) -> str:
        told = subprocess.run(["make", "-n", *typed, "VENV="], cwd=CHECKOUT, capture_output=True, text=True, check=True)
        return " ".join(told.stdout.split())

    assert "-m experiments.publish table=viasd_2" in said("table-viasd-2")
    asked = said(
        "table-adasd", "PAIR=gemma2_2b_9b", "TASKS=qa coding", "LIMIT=8", "SIZE=full", "DECODE=sample", "PLAN=1"
    )
    assert "table=adasd pair=gemma2_2b_9b 'tasks=[qa,coding]' limit=8 size=full decode=sample --plan" in asked
    assert "'table=glob(viasd_figure_5*)'" in said("figure-viasd-5")
    assert "'table=glob(*,exclude=*figure*)'" in said("tables") and "'table=glob(*figure*)'" in said("figures")
    both = said("tables", "figures", "LIMIT=8")
    assert both.count("experiments.publish") == 1 and "'table=glob(*)' limit=8" in both
    assert "-m experiments.claims" in said("claims")
