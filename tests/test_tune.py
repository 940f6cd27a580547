"""Equal tuning: knobs and their draws, the choice under a bound, and the command with its yamls."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call, check_mistake
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import run as run_module
from experiments.config import CHECKOUT, make
from experiments.errors import UserError
from experiments.tune import main
from experiments.tuning import trial as trial_module
from experiments.tuning.search import best, next_trial
from experiments.tuning.setup import Tuned
from experiments.tuning.space import Knob, apply, own_values, parse_space, resolve, spaces
from experiments.tuning.trial import Trial, TrialBench
from viasd.method import Method

pytest.importorskip("optuna")
ACCEPT, ESCALATE = "verifier.gate.accept_ratio", "verifier.gate.escalate_ratio"
GATE: dict[str, Any] = {ACCEPT: [0.3, 1.0], ESCALATE: {"share": [0, 1], "of": ACCEPT}}


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def tuned(space: dict[str, Any] | None = None, method: str = "via_sd") -> Tuned:
    """A method with its own knobs, or with others."""
    config = compose("tune", [f"method={method}"])
    made = make(config["method"], "method")
    node: Any = space or OmegaConf.to_container(config["space"])
    return Tuned(made, OmegaConf.to_container(config["method"]), parse_space(node, made))


# --- knobs --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("name", spaces())
def test_every_space_is_of_its_method(name: str) -> None:
    assert tuned(method=name).knobs


@pytest.mark.usefixtures("_hydra")
def test_knobs_nested_and_dotted() -> None:
    one = tuned({"stop": {"length": [1, 4]}, **GATE, "verifier.bonus": {"choices": ["slim", "none"]}})
    assert one.knobs == [
        Knob("stop.length", 1, 4),
        Knob(ACCEPT, 0.3, 1.0),
        Knob("verifier.bonus", choices=("slim", "none")),
        Knob(ESCALATE, 0.0, 1.0, of=ACCEPT),
    ]


WRONG = {
    "unknown field": ({"stop.size": [1, 2]}, r"stop.size: no knob 'size' in stop; accepted: length"),
    "unknown part": ({"stap.length": [1, 2]}, "no knob 'stap' in method via_sd; did you mean 'stop'"),
    "floats for an int": ({"stop.length": [1.0, 2.0]}, "two whole numbers"),
    "text for a float": ({ACCEPT: ["a", "b"]}, "two numbers"),
    "one end": ({"stop.length": [1]}, "two whole numbers"),
    "no list": ({"stop.length": None}, "two whole numbers"),
    "booleans": ({"stop.length": [False, True]}, "two whole numbers"),
    "crossed": ({"stop.length": [4, 1]}, "LOW exceeds HIGH"),
    "range of words": ({"verifier.bonus": [1, 2]}, "no number"),
    "no choices": ({"stop.length": {"choices": []}}, "accepted"),
    "share of nothing": ({ESCALATE: {"share": [0.0, 1.0], "of": ACCEPT}}, f"of={ACCEPT} is no knob"),
    "share above 1": ({**GATE, ESCALATE: {"share": [0.0, 1.5], "of": ACCEPT}}, "shares from 0 to 1"),
}


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_knobs_are_refused(what: str) -> None:
    space, words = WRONG[what]
    with pytest.raises(UserError, match=words):
        tuned(space)


@pytest.mark.usefixtures("_hydra")
def test_thresholds_never_cross() -> None:
    one, author = tuned(GATE), random.Random(0)
    for _ in range(200):
        drawn = {ACCEPT: author.uniform(0.3, 1), ESCALATE: author.choice([0.0, 1.0, author.random()])}
        setting = resolve(one.knobs, drawn)
        assert 0 <= setting[ESCALATE] <= setting[ACCEPT] <= 1
    apply(one.composed, setting, "x")


@pytest.mark.usefixtures("_hydra")
def test_the_method_as_it_stands_is_drawn_where_it_can_be() -> None:
    assert own_values(*_own({"stop.length": [1, 16]}, {})) == {"stop.length": 5}
    assert own_values(*_own({"stop.length": [1, 4]}, {})) is None
    assert own_values(*_own(GATE, {})) == {}  # null thresholds
    found = own_values(*_own(GATE, {ACCEPT: 0.8, ESCALATE: 0.2}))
    assert found == pytest.approx({ACCEPT: 0.8, ESCALATE: 0.25})


def _own(space: dict[str, Any], setting: dict[str, Any]) -> tuple[list[Knob], Method]:
    one = tuned(space)
    return one.knobs, apply(one.composed, setting, "x")


# --- the search ---------------------------------------------------------------------------------------------------


def judge(trial: Trial) -> Trial:
    """A world in which longer drafts and looser gates are faster, and looser gates less faithful."""
    length, accept = trial.setting.get("stop.length", 5), trial.setting.get(ACCEPT, 0.7)
    speed, faithful = 3 - abs(length - 6) / 8 - accept, 0.9 + accept / 10
    return dataclasses.replace(trial, relative_speed=speed, fidelity=faithful, vanilla_fidelity=1.0, seconds=1.0)


@pytest.mark.usefixtures("_hydra")
def test_what_is_drawn_follows_from_what_was_measured() -> None:
    one = tuned({"stop.length": [1, 16], **GATE})
    done: list[Trial] = []
    for number in range(15):
        trial = next_trial(one, done, 0.97, seed=0)
        assert trial == next_trial(one, list(done), 0.97, seed=0)  # as after a kill
        assert trial.number == number and (trial.setting == {}) == (number == 0)
        done.append(judge(trial))
    assert len({json.dumps(trial.setting) for trial in done}) == 15
    assert next_trial(one, done, 0.97, seed=1).drawn != next_trial(one, done, 0.97, seed=0).drawn


def test_the_fastest_feasible_mean_wins() -> None:
    def trial(number: int, length: int, speed: float, fidelity: float = 1.0, error: str | None = None) -> Trial:
        setting = {"stop.length": length}
        return Trial("sd", number, setting, setting, speed, fidelity, 1.0, error=error)

    failed = Trial("sd", 4, {"stop.length": 9}, {"stop.length": 9}, error="no memory")
    trials = [trial(0, 3, 2.0), trial(1, 4, 2.5), trial(2, 4, 1.4), trial(3, 5, 9.0, 0.98), failed]
    found = best(trials, 0.99)
    assert found is not None and found.setting == {"stop.length": 3}
    assert best(trials[3:], 0.99) is None


# --- the command --------------------------------------------------------------------------------------------------

SMALL = ["tasks=[reasoning]", "trials=3", "prompts=1", "max_new_tokens=6"]


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *SMALL, f"results_dir={results}", *overrides)


class FakeBench:
    """Measures by `judge`, without models. `calls_left` until somebody presses Ctrl-C."""

    calls_left = 1000

    def __init__(self, plan: Any) -> None:
        self.engine = SimpleNamespace(device=torch.device("cpu"))

    def measure(self, trial: Trial, method: Method) -> Trial:
        if FakeBench.calls_left == 0:
            raise KeyboardInterrupt
        FakeBench.calls_left -= 1
        return judge(trial)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "Workbench", FakeBench)
    monkeypatch.setattr(FakeBench, "calls_left", 1000)


def stored(results: Path) -> list[Trial]:
    (path,) = (results / "tuned").glob("*/trials.jsonl")
    return [Trial.from_json(line) for line in path.read_text().splitlines()]


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, "min_fidelity=0", "space.stop.length=[2,4]")
    assert code == 0, err
    (folder,) = (tmp_path / "tuned").iterdir()
    trials = stored(tmp_path)
    assert [(one.method, one.number) for one in trials] == [(m, n) for n in range(3) for m in ("via_sd", "sd")]
    assert all(one.error is None and one.tasks.keys() == {"reasoning"} for one in trials)
    for name in ("via_sd", "sd"):
        path = folder / "method" / f"{name}_tuned.yaml"
        text, found = path.read_text(), best([one for one in trials if one.method == name], 0)
        assert found is not None and f"{found.relative_speed:.3f} times vanilla's tokens/s" in text
        assert f"yaml: {path}" in out and "experiments.tune 'tasks=[reasoning]' trials=3" in text
        assert str(tmp_path) not in text
        with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
            composed = OmegaConf.to_container(compose("config", [f"method={name}"])["method"])
        assert make(OmegaConf.load(path), "method") == apply(composed, found.setting, f"{name}_tuned")
    check_use(capsys, tmp_path, folder)


def check_use(capsys: pytest.CaptureFixture[str], results: Path, folder: Path) -> None:
    """The tuned methods are found under --config-dir, as the method and as an arm."""
    typed = ["--plan", "--config-dir", str(folder), "method=via_sd_tuned", "arms=[vanilla,sd_tuned,method]"]
    code, out, err = call(capsys, run_module.main, *typed, f"results_dir={results}")
    assert code == 0, err
    assert "via_sd_tuned" in out


@pytest.mark.usefixtures("_fake")
def test_an_interrupted_tuning_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, tmp_path / "whole", "trials=6", "min_fidelity=0.9")[0] == 0
    whole = stored(tmp_path / "whole")
    FakeBench.calls_left = 5
    code, _, err = run(capsys, tmp_path, "trials=6", "min_fidelity=0.9")
    assert code == 130 and "goes on from there" in err
    assert stored(tmp_path) == whole[:5]
    (path,) = (tmp_path / "tuned").glob("*/trials.jsonl")
    assert not (path.parent / "method").exists()
    path.write_text(path.read_text() + '{"method":"sd","num')  # a process that was killed while it wrote
    FakeBench.calls_left = 1000
    assert run(capsys, tmp_path, "trials=6", "min_fidelity=0.9")[0] == 0
    assert stored(tmp_path) == whole
    code, out, _ = run(capsys, tmp_path, "trials=6", "min_fidelity=0.9")
    assert code == 0 and "nothing was measured again" in out
    assert run(capsys, tmp_path, "trials=7", "min_fidelity=0.9")[0] == 0
    assert stored(tmp_path)[:12] == whole and len(stored(tmp_path)) == 14


@pytest.mark.usefixtures("_fake")
def test_infeasible(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, tmp_path, "min_fidelity=1", f"~space.{ESCALATE}", f"space.{ACCEPT}=[0.7,0.9]")
    (line,) = err.strip().splitlines()
    assert code == 1 and "none of 3 trials of via_sd is feasible" in line and "the nearest has fidelity 0.9" in line
    assert not list((tmp_path / "tuned").glob("*/method"))


@pytest.mark.usefixtures("_fake")
def test_out_is_where_the_yamls_go(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, f"out={tmp_path / 'mine'}", "min_fidelity=0", "also=[]", "method=sd")
    assert code == 0, err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["sd_tuned.yaml"]
    assert "--config-dir" not in out and "method=sd_tuned" in out


def test_a_setting_that_fails_is_a_failed_trial(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = TrialBench._time

    def fail(self: TrialBench, row: Any, prompt: Any) -> None:
        if row.arm == "trial":
            raise MemoryError("too long")
        timed(self, row, prompt)

    monkeypatch.setattr(TrialBench, "_time", fail)
    code, out, err = run(capsys, tmp_path, "trials=1", "method=sd")
    (line,) = err.strip().splitlines()
    assert code == 1 and "none of 1 trials of sd could be measured" in line and "out of memory" in line
    assert all(one.error is not None for one in stored(tmp_path)) and "relative speed" in out


MISTAKES = {
    "+space.verifier.gate.acept_ratio=[0.1,0.2]": ["'acept_ratio'", "'accept_ratio'"],
    "space.stop.length=[0.5,2.0]": ["stop.length", "two whole numbers"],
    "space.stop.length=[1,65]": ["stop.length=65", "less than or equal to 64"],
    "space.verifier.slim.skip_ratio=[0.2,0.95]": ["skip_ratio=0.95", "at most"],
    "trials=0": ["trials=0", "greater than or equal to 1"],
    "min_fidelity=1.5": ["min_fidelity=1.5", "less than or equal to 1"],
    "method=vanilla": ["vanilla", "sd, via_sd"],
    "also=[vanilla]": ["also", "vanilla"],
    "tasks=[resoning]": ["resoning", "'reasoning'"],
    "max_new_tokens=1000": ["max_new_tokens=1000", "smaller"],
    "results_dir=/dev/null/x": ["results_dir=", "writable"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str) -> None:
    code, _, err = run(capsys, tmp_path, typed)
    check_mistake(code, err, MISTAKES[typed])


def test_without_optuna(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run(capsys, tmp_path)
    assert (code, err) == (2, "error: optuna is not installed; accepted: pip install viasd[tune]\n")
