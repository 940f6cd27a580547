"""Commands beside runs: whatever times has its device for itself, and whatever computes is seen by who times."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from commands import call

from experiments.costs import CallCosts
from experiments.errors import CONF
from experiments.launching import locks
from experiments.launching.locks import Presence, lock_folder, presence
from experiments.launching.neighbors import NOTICE, Neighbors, price_calls
from experiments.tuning.show import table
from experiments.tuning.trial import Trial

CPU = ["engine.device=cpu", "engine.threads=1"]
TIMES = {  # what each command does once it has its place
    "experiments.bench": "experiments.benching.work.measure",
    "experiments.probe": "experiments.probing.work.measure",
    "experiments.tune": "experiments.tuning.trial.Workbench",
}
COMPUTES = {
    "experiments.ask": "experiments.asking.work.ask",
    "experiments.law_error": "experiments.laws.work.measure",
    "train_eagle": "train_eagle.run_training",
    "train_vsd": "train_vsd.run_ablation",
}


@pytest.mark.parametrize("command", [*TIMES, *COMPUTES])
def test_the_place_of_a_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "experiments.tune":
        pytest.importorskip("optuna")
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))
    monkeypatch.syspath_prepend(str(CONF.parent / "scripts"))  # they are no package
    seen: list[tuple[set[str], int]] = []

    def look(*_: object, **__: object) -> None:
        who = Presence(lock_folder() / "jobs" / "somebody else.json")
        seen.append((set(locks._HELD), who.others()))
        raise RuntimeError("seen")

    main = import_module(command).main
    monkeypatch.setattr({**TIMES, **COMPUTES}[command], look)
    typed = [f"results_dir={tmp_path}"] if command.startswith("experiments.") else []
    prompt, own = (["What?"], []) if command.endswith("ask") else ([], CPU if command != "train_vsd" else [])
    code, _, err = call(capsys, main, *prompt, *typed, *own)
    assert code == 1 and "seen" in err
    assert seen == [({"cpu"} if command in TIMES else set(), 1)]
    assert Presence(lock_folder() / "jobs" / "somebody else.json").others() == 0 and not locks._HELD


@pytest.mark.parametrize("command", ["experiments.bench", "experiments.probe"])
def test_what_was_timed_beside_another_job_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))
    stored: list[list[str]] = []

    def keep(_: Path, content: dict[str, Any]) -> None:
        stored.append(content["notices"])
        raise RuntimeError("seen")

    main = import_module(command).main
    monkeypatch.setattr(TIMES[command], lambda *_: {"notices": ["first"], "pair": "a"})
    monkeypatch.setattr("experiments.store.replace_json", keep)
    with presence():
        call(capsys, main, f"results_dir={tmp_path}", *CPU)
    told = f"this {command.rpartition('.')[2]} was {NOTICE} (up to 1 at once)"
    assert stored == [["first", told]]


def test_trials_beside_another_job_are_told_of() -> None:
    trials = {"sd": [Trial("sd", 0, {}, {}, 1.5, 1.0, neighbors=2), Trial("sd", 1, {}, {}, 1.2, 1.0)]}
    (line,) = [line for line in table(trials, {"sd": trials["sd"][0]}, 0.9).splitlines() if "note: " in line]
    assert line == f"note: 1 of 2 trials were {NOTICE} (up to 2 at once)"


def test_call_costs_keep_what_disturbed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))

    def price(name: str) -> CallCosts:
        (tmp_path / f"costs_{name}.json").touch()
        return CallCosts(name, {}, {}, {}, 1)

    with presence(), presence():
        assert price_calls(lambda: price("a"), tmp_path)[1].most == 1
    with presence():
        assert price_calls(lambda: price("a"), tmp_path)[1].most == 1  # stored ones, as they were measured
        assert price_calls(lambda: price("b"), tmp_path)[1].most == 0
    with presence(), presence():
        assert price_calls(lambda: price("b"), tmp_path)[1].most == 0
    assert Neighbors(costs=2).notice([0]) == [f"the call costs were {NOTICE} (up to 2 at once)"]
    assert Neighbors(costs=2).notice([]) == []
