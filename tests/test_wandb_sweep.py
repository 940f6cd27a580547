"""Sweeps of W&B: what scripts/wandb_sweep.py writes is run as `wandb agent` would run it, and read back."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from experiments.config import CHECKOUT, share
from experiments.logged import post
from experiments.run import main
from experiments.tasks.base import Procedural
from tests.commands import call, check_mistake
from tests.wandb_files import logs, read_log

Run = Callable[..., tuple[int, str, str]]
QUICK = ("limit=2", "task.max_new_tokens=4", "arms=[vanilla,sd,method]")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """scripts/wandb_sweep.py; scripts are no package."""
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    yield importlib.import_module("wandb_sweep")
    sys.path.remove(str(CHECKOUT / "scripts"))


@pytest.fixture
def write(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The sweep that a command writes, without network."""

    def command(*typed: str) -> dict[str, Any]:
        path = tmp_path / "sweep.yaml"
        code, out, err = call(capsys, script.main, *typed, "--out", str(path))
        assert (code, err) == (0, "") and out == f"sweep: {path}; create it by `wandb sweep {path}`\n"
        sweep: dict[str, Any] = yaml.safe_load(path.read_text())
        return sweep

    return command


def test_the_knobs_are_those_of_the_tuning(write: Callable[..., dict[str, Any]]) -> None:
    sweep = write("method=via_sd", "task=qa", "--trials", "7", "--entity", "me", "limit=3")
    assert sweep["method"] == "bayes" and sweep["run_cap"] == 7 and sweep["entity"] == "me"
    assert sweep["metric"] == {"name": "objective", "goal": "maximize"}
    assert sweep["parameters"]["method.stop.length"] == {"distribution": "int_uniform", "min": 1, "max": 16}
    drawn = "draws.verifier.gate.escalate_ratio"
    assert sweep["parameters"][drawn] == {"distribution": "uniform", "min": 0.0, "max": 1.0}
    command = sweep["command"]
    assert command[:4] == ["${env}", "${interpreter}", "-m", "${program}"] and command[-1] == "${args_no_hyphens}"
    assert sweep["program"] == "experiments.run"
    assert {"split=train", "limit=3", "track.mode=online", "track.min_fidelity=0.99"} <= set(command)
    assert "limit=12" not in command
    value = f"${{share:${{{drawn}}},${{method.verifier.gate.accept_ratio}}}}"
    assert f"method.verifier.gate.escalate_ratio='{value}'" in command
    choices = write("method=via_sd_learned")["parameters"]["method.verifier.slim.skip_ratio"]
    assert choices == {"values": [0.6, 0.7]}
    assert share(1.0, 0.73474) == 0.7347 and share(1.0, 0.73476) == 0.73476 and share(0.5, 0.9) == 0.45


def test_a_point_is_run_as_an_agent_does(
    write: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice: the second time everything is stored, and told to the second run of the agent all the same."""
    pytest.importorskip("wandb")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = write(*QUICK, "task=reasoning", f"results_dir={tmp_path / 'results'}", "--min-fidelity", "0.5")
    drawn = {
        "method.stop.length": 2, "method.verifier.gate.accept_ratio": 0.81234567,
        "method.verifier.slim.skip_ratio": 0.6, "draws.verifier.gate.escalate_ratio": 0.5,
    }  # fmt: skip
    assert set(drawn) == set(sweep["parameters"])
    arguments = {name: {"value": value} for name, value in drawn.items()}
    filled = {"args_no_hyphens": create_sweep_command_args({"args": arguments})["args_no_hyphens"]}
    typed = [part for word in sweep["command"][4:] for part in filled.get(word.strip("${}"), [word])]
    split: list[str] = []
    examples = Procedural.examples
    monkeypatch.setattr(
        Procedural, "examples", lambda self, name, *more: split.append(name) or examples(self, name, *more)
    )
    for run_id in ("first", "second"):
        agent(monkeypatch, tmp_path, run_id, arguments)
        code, out, err = call(capsys, main, *typed)
        assert (code, err) == (0, "")
        assert "note: prompts of split train: good for choosing settings, not for claims" in out
    assert "test" not in split and "train" in split
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    numbers = json.loads((folder / "summary.json").read_text())["arms"]["via_sd"]
    assert numbers["fidelity"]["value"] >= 0.5
    settled = json.loads((folder / "run.json").read_text())["identity"]["arms"]["via_sd"]
    assert settled["verifier"]["gate"]["escalate_ratio"] == 0.4062 and settled["stop"]["length"] == 2
    for place, run_id in zip(logs(folder), ("first", "second"), strict=True):
        told = read_log(place)
        assert (told.run.run_id, told.run.sweep_id) == (run_id, "sweep1")
        assert told.summary["objective"] == numbers["speedup_over.sd"]["value"]
        assert {name: told.config[name] for name in drawn} == drawn
        assert told.run.display_name == f"via_sd-reasoning-{folder.name}"


def agent(monkeypatch: pytest.MonkeyPatch, folder: Path, run_id: str, arguments: dict[str, Any]) -> None:
    """The environment in which `wandb agent` starts a run (wandb_agent.Agent._command_run)."""
    parameters = folder / f"config-{run_id}.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **arguments}))
    told = {
        "SWEEP_ID": "sweep1", "RUN_ID": run_id, "SWEEP_PARAM_PATH": str(parameters), "DIR": str(folder),
        "PROJECT": "theirs", "ENTITY": "them", "MODE": "offline", "CACHE_DIR": str(folder), "CONFIG_DIR": str(folder),
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    assert post.PATIENCE_OF_AGENTS > 60 and os.environ["WANDB_MODE"] == "offline"


def test_an_agent_cannot_choose_by_held_out_prompts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    code, _, err = call(capsys, main, *QUICK, f"results_dir={tmp_path}", "track=none")
    check_mistake(code, err, ["split=test", "wandb agent", "split=train", "split=calibration"])
    code, _, err = call(capsys, main, *QUICK, f"results_dir={tmp_path}", "split=train", "seed=1,2", "-m")
    assert code == 2 and "-m: wandb agent" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["split=test"], ["split=test", "train, calibration"]),
        (["split=train,test"], ["split=train,test", "train, calibration"]),
        (["stop.length=3,5"], ["stop.length", "no such key"]),
        (["method.stop.length=3,none"], ["length", "none"]),
        (["method=vanilla"], ["method=vanilla", "no knobs"]),
        (["method=via_sd", "--search", "grid"], ["search=grid", "method.stop.length is a range", "bayes"]),
        (["length"], ["'length'", "KEY=VALUE"]),
    ],
)
def test_mistakes_are_found_before_a_sweep_is_made(
    script: ModuleType, capsys: pytest.CaptureFixture[str], typed: list[str], named: list[str]
) -> None:
    code, _, err = call(capsys, script.main, *typed, "--dry-run")
    check_mistake(code, err, named)


def test_choices_are_numbers_or_as_typed(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("method.stop.length=3,5", "method.verifier.gate.accept_ratio=0.9,null", "method/verifier/gate=ratio")
    code, out, _ = call(capsys, script.main, *typed, "split=calibration", "--dry-run")
    sweep = yaml.safe_load(out)
    assert code == 0 and sweep["method"] == "grid" and "run_cap" not in sweep
    assert sweep["parameters"] == {
        "method.stop.length": {"values": [3, 5]},
        "method.verifier.gate.accept_ratio": {"values": [0.9, "null"]},
    }
    assert "split=calibration" in sweep["command"] and "split=train" not in sweep["command"]


def test_a_sweep_that_cannot_be_created_is_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = call(capsys, script.main, "method.stop.length=3,5")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: the sweep was not created (ModuleNotFoundError") and "--out FILE" in err
