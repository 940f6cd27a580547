"""Tables on another pair: arms that it cannot run are left out by name, equal ones share their rows, mistakes stay."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from commands import call, check_mistake

from experiments import publish
from experiments.paper import jobs

EXPERIMENT = """# @package _global_
defaults:
  - /sized
  - override /method: {method}
  - _self_
arms:
  - vanilla
  - sd
  - method
  - even: verifier.slim.mask=even
  - mid: verifier/slim=mid
  - above: verifier/above=reference_45
  - deep: verifier.slim.skip_ratio=0.7
  - wrong: {wrong}
table_name: fit_${{limit}}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      task: few
"""
TABLE = """
defaults:
  - columns: speed
  - _self_
_target_: experiments.paper.spec.Table
name: {name}
title: A tiny table
paper: VIA-SD (2606.12243) Table 5
values: [table5_intermediate_source]
experiment: {name}
tasks: [few]
sizes: {{default: {{limit: 1, quality_limit: 2}}}}
baseline: sd
cite: [viasd]
rows:
  sd: {{label: sd}}
  searched: {{label: searched, arms: [via_sd]}}
  even: {{label: even}}
  mid: {{label: mid}}
"""
TASK = "defaults: [reasoning, _self_]\nname: few\ntest_size: 4\nmax_new_tokens: 4\n"
SHALLOW = ["pair=local", "pair.models.target=viasd://reference/mid", "pair.models.draft=viasd://reference/draft"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for --config-dir: a table of VIA-SD (fit), and one whose method drafts with a head (heads)."""
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path / "results"))
    for cache in (jobs.RUNS, jobs.FITTED):
        cache.clear()
    for group in ("experiment", "table", "task"):
        (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / "task" / "few.yaml").write_text(TASK)
    for name, method in (("fit", "via_sd"), ("heads", "via_sd_eagle")):
        (tmp_path / "mine" / "table" / f"{name}.yaml").write_text(TABLE.format(name=name))
        text = EXPERIMENT.format(method=method, wrong="verifier.gate.accept_ratio=0.9")
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(text)
    return tmp_path / "mine"


def run(capsys: pytest.CaptureFixture[str], mine: Path, *more: str) -> tuple[int, str, str]:
    sweep = [f"hydra.sweep.dir={mine.parent / 'multirun'}"] if "-m" in more else []
    return call(capsys, publish.main, "--config-dir", str(mine), *more, "engine.threads=1", *sweep)


def test_what_a_pair_cannot_run_is_left_out(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    """A target of 4 layers without a model in between: no `mid`, no layers of the embedded target, no 70% skipped."""
    code, out, err = run(capsys, mine, "table=fit", *SHALLOW)
    assert code == 0, err
    (told,) = [line for line in out.splitlines() if line.startswith("fit: left out for pair local: ")]
    reasons = told.split("; ")
    assert "mid (it has no model or head 'mid')" in told and any("above (target of 4 layers" in one for one in reasons)
    assert "deep (target of 4 layers: skip_ratio=0.7" in told and not {"even", "via_sd", "wrong"} & set(told.split())
    folder = mine.parent / "results" / "published" / "local"
    lines = list(csv.DictReader((folder / "fit.csv").read_text().splitlines()))
    ours = {line["arms"]: line["value"] for line in lines if line["column"] == "speed"}
    assert float(ours["even"]) > 0 and ours["even"] == ours["via_sd"], "without searched masks they are one arm"
    assert ours["mid"] == ""
    text = (folder / "fit.md").read_text()
    assert "arms that were not run: mid." in text and "arm even equals via_sd and runs once, as via_sd." in text


def test_several_tables_go_on_without_the_one_that_a_pair_cannot_have(
    capsys: pytest.CaptureFixture[str], mine: Path
) -> None:
    code, out, err = run(capsys, mine, "-m", "table=heads,fit", *SHALLOW, "--plan")
    assert code == 0, err
    assert "heads: not made: pair local cannot run method via_sd_eagle: it has no model or head 'eagle3'" in out
    assert "1 jobs" in out
    code, _, err = run(capsys, mine, "table=heads", *SHALLOW, "--plan")
    check_mistake(code, err, ["pair local cannot run method via_sd_eagle", "'eagle3'"])


def test_a_plan_goes_on_after_a_mistake(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    broken = EXPERIMENT.format(method="via_sd", wrong="verifier.gate.accept_rato=0.9")
    (mine / "experiment" / "heads.yaml").write_text(broken)
    code, out, err = run(capsys, mine, "-m", "table=heads,fit", *SHALLOW, "--plan")
    check_mistake(code, err, ["heads: ", "accept_rato"])
    assert "1 jobs" in out


def test_on_its_own_pair_an_arm_that_cannot_run_is_a_mistake(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    unfit = EXPERIMENT.format(method="via_sd", wrong="drafter=eagle drafter.head=nobody")
    (mine / "experiment" / "fit.yaml").write_text(unfit)
    code, _, err = run(capsys, mine, "table=fit", "--plan")
    check_mistake(code, err, ["method wrong needs the role 'nobody'"])
