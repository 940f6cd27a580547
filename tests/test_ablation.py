"""scripts/train_vsd.py: arms at equal compute, stopped and gone on with, and the pair that decodes with them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from filelock import FileLock

from baselines.eagle.drafter import EagleDrafter
from experiments.config import CHECKOUT
from experiments.pairs import TrainedPair
from experiments.store import replace_json
from experiments.training import ablation
from tests.commands import call, check_mistake
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

COMMON = (
    "common=['tasks=[qa]','prompts=6','answers=given','batch=3','validate_prompts=1','draft_length=2',"
    "'max_new_tokens=12','target_dtype=float32','precision=float32','work_dir={work}','engine.threads=1']"
)
QUICK = ("steps=4", "seeds=[0]", "jobs=1", "~arms.lk", "~arms.arw", "~arms.paths")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/train_vsd.py; scripts are no package."""
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    try:
        import train_vsd
    finally:
        sys.path.remove(str(CHECKOUT / "scripts"))
    return train_vsd


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What all trainings share is made on all cores, which a process of tests must not go on with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Costs that no clock decides: the last arm's steps cost twice the first one's. The arms that were measured."""
    measured, real = [], ablation.measure_costs

    def measure(arms: dict[str, Any]) -> dict[str, float]:
        found = real(arms)
        assert found["plain"] == 1.0 and all(0.1 < one < 10 for one in found.values())
        measured.extend(arms)
        return {arm: 2.0 if arm == "vsd_style" else 1.0 for arm in arms}

    monkeypatch.setattr(ablation, "measure_costs", measure)
    return measured


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "trainings.csv").open() as file:
        return {f"{row['drafter']}_{row['arm']}_{row['seed']}": row for row in csv.DictReader(file)}


def test_arms_have_steps_of_equal_cost_and_what_is_done_is_kept(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    costs: list[str],
) -> None:
    typed = (*QUICK, COMMON.format(work=tmp_path), f"out={tmp_path / 'vsd'}")
    train, done = ablation.train, []

    def stop_after_two(one: ablation.ArmTraining) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(one.name)
        return train(one)

    monkeypatch.setattr(ablation, "train", stop_after_two)
    assert call(capsys, script.main, *typed)[0] == 130
    assert list(read_table(tmp_path / "vsd")) == ["head_plain_0", "head_vsd_style_0"]
    monkeypatch.setattr(ablation, "train", lambda one: done.append(one.name) or train(one))  # type: ignore[func-returns-value]
    code, told, error = call(capsys, script.main, *typed)
    assert code == 0, error
    rows = read_table(tmp_path / "vsd")
    assert done == ["head_plain_0", "head_vsd_style_0", "draft_plain_0", "draft_vsd_style_0"] == list(rows)
    assert [row["steps"] for row in rows.values()] == ["4", "2", "4", "2"]
    assert costs == ["plain", "vsd_style"] * 2  # measured once, though there were two starts
    weights = {name: next((tmp_path / "vsd" / name).glob("*.safetensors")).read_bytes() for name in rows}
    assert len(set(weights.values())) == 4
    assert "head_plain_0: 4 steps" in told and "(calibration)" in told

    check_that_they_decode(tmp_path / "vsd")


def check_that_they_decode(folder: Path) -> None:
    """Head and draft model by their names in the pair; the text is the target's."""
    models = {role: f"viasd://reference/{role}" for role in ("target", "draft")}
    pair = TrainedPair(name="trained", models=models, trained=str(folder))
    engine = Engine.load(pair, ["target", "draft_vsd_style_0"], "cpu", "float64", slots=40)
    head, draft = EagleDrafter(head="head_plain_0", tree=None), DraftModel(role="draft_vsd_style_0")
    texts = []
    for drafter in (NoDrafter(), head, draft):
        method = Method(name="any", drafter=drafter, stop=FixedLength(length=3), verifier=RuleVerifier())
        done = method.open(engine).generate([3, 50, 60, 70], Decode(Sampling(), 12), SeededDraws(0, "0", engine.device))
        texts.append(done.token_ids)
    assert texts[0] == texts[1] == texts[2]
    assert "head_vsd_style_0" in pair.heads and "draft_plain_0" in pair.models


def test_other_settings_are_other_trainings(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (
        *QUICK,
        COMMON.format(work=tmp_path),
        f"out={tmp_path / 'vsd'}",
        "~drafters.head",
    )
    assert call(capsys, script.main, *typed)[0] == 0
    before = read_table(tmp_path / "vsd")
    assert call(capsys, script.main, *typed, "steps=6")[0] == 0
    after = read_table(tmp_path / "vsd")
    assert [row["steps"] for row in after.values()] == ["6", "3"]
    assert all(after[name]["training_id"] != before[name]["training_id"] for name in before)


def test_two_trainings_at_once(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own; a second start meanwhile is refused, and a row beside other weights does not count."""
    out = tmp_path / "vsd"
    typed = (*QUICK, COMMON.format(work=tmp_path), f"out={out}", "~drafters.head", "jobs=2")
    assert call(capsys, script.main, *typed)[0] == 0
    rows = read_table(out)
    assert list(rows) == ["draft_plain_0", "draft_vsd_style_0"]
    with FileLock(out / "lock"):
        code, _, error = call(capsys, script.main, *typed)
        check_mistake(code, error.splitlines()[-1], ["another start is training there"])
    stale = json.loads((out / "draft_plain_0" / "ablation.json").read_text())
    replace_json(out / "draft_plain_0" / "ablation.json", {**stale, "training_id": "other", "steps": 99})
    assert call(capsys, script.main, *typed, "jobs=1")[0] == 0
    assert {name: row["training_id"] for name, row in read_table(out).items()} == {
        name: row["training_id"] for name, row in rows.items()
    }


STARTER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from experiments.training.ablation import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "starter.py").write_text(STARTER)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, tmp_path / "starter.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


MISTAKES = {
    "seeds=[]": ["seeds"],
    "jobs=many": ["jobs", "many"],
    "drafters={head: ['recipe=eagle9']}": ["drafters.head", "eagle9"],
    "arms={plain: ['recipe.los=lk']}": ["arms.plain", "recipe.los"],
    "drafters={draft: ['recipe=draft_model','start=eagle3']}": ["start=eagle3", "accepted: null"],
    "drafters={head: ['recipe=eagle3','start=eagle3','recipe.intermediate=8']}": ["start=eagle3", "intermediate"],
    "arm=3": ["arm", "no such key"],
    "+arms.wide=['batch=2']": ["arms.wide", "other settings than arm plain"],
    "+arms.long=['steps=9']": ["arms.long", "steps=9", "set by the ablation"],
    "seeds=[1,1]": ["seeds=[1, 1]", "one name"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_end_in_one_line(
    typed: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("seeds=[0]", "jobs=1", COMMON.format(work=tmp_path), f"out={tmp_path / 'vsd'}")
    code, _, error = call(capsys, script.main, *quick, typed)
    check_mistake(code, error.splitlines()[-1], MISTAKES[typed])  # behind a bar of loading weights
