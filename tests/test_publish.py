"""`python -m experiments.publish` and `python -m experiments.claims`: what is measured, read, written and refused."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import call, check_mistake

from experiments import claims, publish
from experiments.config import CHECKOUT
from experiments.errors import UserError
from experiments.paper import jobs
from experiments.paper.contradictions import CONTRADICTIONS
from experiments.paper.ledger import Claim, Evidence, decide, ledger, look_up, read_claims, widest
from experiments.statistics import Estimate
from experiments.tables import MEAN

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
    jobs.PLANS.clear()  # as in a new process
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
    def said(target: str, *variables: str) -> str:
        told = subprocess.run(
            ["make", "-n", target, "VENV=", *variables], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
        return " ".join(told.stdout.split())

    assert "-m experiments.publish table=viasd_2" in said("table-viasd-2")
    asked = said("table-adasd", "PAIR=gemma2_2b_9b", "TASKS=qa coding", "LIMIT=8", "SIZE=full", "PLAN=1")
    assert "table=adasd pair=gemma2_2b_9b 'tasks=[qa,coding]' limit=8 size=full --plan" in asked
    assert "'table=glob(viasd_figure_5*)'" in said("figure-viasd-5")
    assert "'table=glob(*,exclude=*figure*)'" in said("tables") and "'table=glob(*figure*)'" in said("figures")
    assert "-m experiments.claims" in said("claims")


# --- the ledger ---------------------------------------------------------------------------------------------------


def store_table(results: Path, low: float = 1.2) -> None:
    (results / "tables").mkdir(parents=True, exist_ok=True)
    lines = [
        "task,arm,metric,value,low,high",
        f"{MEAN},a,speedup_over.sd,1.3,{low},1.4",
        f"{MEAN},a,rejection_rate,0.1,0.08,0.12",
        f"{MEAN},sd,rejection_rate,0.2,0.17,0.22",
        f"{MEAN},a,memory_ratio,1.03,,",
        f"{MEAN},a,n_timed,40,,",
        f"{MEAN},a,n_quality,80,,",
    ]
    (results / "tables" / "some.csv").write_text("\n".join(lines) + "\n")
    (results / "tables" / "some.md").write_text("Pair reference, temperature 0; a processor.\n")


def make_claim(evidence: Evidence, **bound: float) -> Claim:
    return Claim(paper="VIA-SD", source="abstract", claim="it is so", quantity="x", measured=[evidence], **bound)


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        ((1.3, 1.2, 1.4), "supported"),
        ((1.3, 1.0, 1.4), "undecided"),
        ((1.0, 0.9, 1.05), "contradicted"),
        ((1.3, None, None), "undecided"),
        (None, "not measured"),
    ],
)
def test_verdicts(number: tuple[float, float, float] | None, verdict: str) -> None:
    estimate = None if number is None else Estimate(*number)
    assert decide(make_claim(Evidence(table="some", arm="a", metric="m"), at_least=1.1), estimate) == verdict
    if number is not None and number[1] is not None:
        mirrored = Estimate(-number[0], -number[2], -number[1])
        assert decide(make_claim(Evidence(table="some", arm="a", metric="m"), at_most=-1.1), mirrored) == verdict


def test_the_ledger_reads_stored_tables(tmp_path: Path) -> None:
    store_table(tmp_path)
    drop = Evidence(table="some", arm="a", minus="sd", metric="rejection_rate")
    stated = [
        make_claim(Evidence(table="some", arm="a", metric="speedup_over.sd"), at_least=1.1),
        make_claim(drop, at_most=-0.1),
        make_claim(Evidence(table="some", arm="a", metric="memory_ratio"), at_most=1.04),
        make_claim(Evidence(published="viasd_2", arm="via_sd", metric="gain"), at_least=1.1),
    ]
    text = ledger(stated, tmp_path, "reference")
    assert text == ledger(stated, tmp_path, "reference")
    rows = [line for line in text.splitlines() if "it is so" in line]
    link = f"| reference, {MEAN} | 40/80 |"
    assert f"a: 1.30 [1.20, 1.40] {link} supported | [some](tables/some.csv) |" in rows[0]
    assert f"a - sd: -0.100 [-0.140, -0.050] {link} undecided |" in rows[1]
    assert f"a: 1.03 {link} supported |" in rows[2]
    assert "| not measured | viasd_2: none yet |" in rows[3]
    assert all(one.test in text and one.find().replace("|", r"\|") in text for one in CONTRADICTIONS)


def test_a_published_table_is_read_by_row_and_column(tmp_path: Path) -> None:
    folder = tmp_path / "published" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests" / "golden" / "viasd_2.csv", folder)
    found = look_up(Evidence(published="viasd_2", task="qa", arm="via_sd", metric="gain"), tmp_path, "reference")
    assert found.number is not None and found.number.low is not None and found.examples == "3/3"
    assert found.pair == "reference" and found.number.low < found.number.value


def test_the_widest_interval() -> None:
    own, base = Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.3, 0.5)
    ratio, difference = widest(own, base, is_ratio=True), widest(own, base, is_ratio=False)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.2, 1.0))
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.2, -0.4, 0.0))
    assert widest(own, Estimate(0.4), is_ratio=True).low is None


def test_a_number_that_a_table_lacks_is_named(tmp_path: Path) -> None:
    store_table(tmp_path)
    with pytest.raises(UserError, match=r"some\.csv: no mean over tasks b rejection_rate.*accepted"):
        look_up(Evidence(table="some", arm="b", metric="rejection_rate"), tmp_path, "reference")


def test_every_claim_is_well_formed_and_every_stored_number_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The tracked tables have what the claims name; all three papers and all tables that are asked for are there."""
    shutil.copytree(CHECKOUT / "results" / "tables", tmp_path / "tables")
    code, out, err = call(capsys, claims.main, "--results", str(tmp_path))
    assert code == 0, err
    text = Path(out.strip()).read_text()
    stated = read_claims()
    assert {claim.paper for claim in stated} == {"VIA-SD", "AdaSD", "VSD"}
    assert all(claim.claim in text for claim in stated)
    tables = {evidence.table for claim in stated for evidence in claim.measured if evidence.table}
    assert all(f"](tables/{name}.csv)" in text for name in tables if (tmp_path / "tables" / f"{name}.csv").exists())
