"""Memory of an arm as run.json holds it: parameters, caches and the device's peak above them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call

from experiments import peak_memory
from experiments.peak_memory import DevicePeak, memory_of_arms
from experiments.run import main

JOB = ["method=via_sd", "arms=[vanilla,sd,method,{sep: 'verifier.slim.cache=separate'}]", "track=none", "limit=1"]


def stored_memory(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> dict[str, float]:
    before = set((results / "runs").glob("*/run.json"))
    small = ["task.max_new_tokens=6", "task.test_size=2", f"results_dir={results}"]
    code, _, err = call(capsys, main, *JOB, *small, *overrides)
    assert code == 0, err
    (path,) = set((results / "runs").glob("*/run.json")) - before
    memory: dict[str, float] = json.loads(path.read_text())["memory"]
    return memory


def test_caches_count_also_where_calls_are_not_priced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    timed = stored_memory(capsys, tmp_path)  # its arms are priced, which makes caches
    untimed = stored_memory(capsys, tmp_path, "seed=1", "timing=off")
    assert timed == untimed
    assert timed["vanilla"] < timed["sd"] == timed["via_sd"] < timed["sep"]  # a mask and the target's keys cost nothing
    wide = stored_memory(capsys, tmp_path, "engine.dtype=float64", "timing=off")
    assert wide["sep"] - wide["via_sd"] == 2 * (timed["sep"] - timed["via_sd"])  # it is keys and values alone


def test_the_peak_of_a_device_is_what_it_had_above_what_lived_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 130)
    with DevicePeak(torch.device("cuda")) as peak:
        assert asked == ["reset"]
    assert peak.above == 30
    with DevicePeak(torch.device("cpu")) as peak:
        pass
    assert peak.above == 0


def test_an_arm_whose_peak_is_not_known_is_left_out_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "memory_of", lambda decoder: decoder)
    arms: Any = {"vanilla": 100, "sd": 120, "via_sd": 130}
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert memory_of_arms(arms, {}, {}, cpu) == arms and memory_of_arms(arms, {}, {}, cuda) == {}  # timing=off
    first = memory_of_arms(arms, {"vanilla": 10, "sd": 40}, {}, cuda)
    assert first == {"vanilla": 110, "sd": 160}
    assert memory_of_arms(arms, {"vanilla": 15, "sd": 5}, first, cuda) == {"vanilla": 115, "sd": 160}
    assert memory_of_arms(arms, {}, first, cuda) == first  # a start that times nothing takes nothing away
