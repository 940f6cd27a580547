"""The number of CPU threads: asked for, told by the environment, or measured once and stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory

from experiments import threads
from experiments.config import EngineSpec
from experiments.launching import locks
from experiments.threads import candidates, count_threads, fewest, open_round, time_threads
from viasd.engine import Engine
from viasd.models import Pair

PAIR = Pair(name="reference", models={role: f"viasd://reference/{role}" for role in ("target", "draft")})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Four cores and nothing in the environment; the list grows with each measurement, which finds two threads."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "core_count", lambda: 4)
    made: list[Any] = []

    def measure(pair: Pair, engine: EngineSpec, who: Any) -> dict[str, Any]:
        made.append(who)
        return {"threads": 2}

    monkeypatch.setattr(threads, "_measure", measure)
    return made


@pytest.mark.parametrize(("told", "count"), [("3", 3), ("4,2", 4), (" 5 ", 5), ("0", 2), ("many", 2), ("", 2)])
def test_the_environment_comes_before_a_measurement(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, count: int
) -> None:
    monkeypatch.setenv(threads.VARIABLE, told)
    assert count_threads(PAIR, EngineSpec(device="cpu"), tmp_path) == count
    assert len(measured) == (count == 2)
    assert count_threads(PAIR, EngineSpec(device="cpu", threads=7), tmp_path) == 7


def test_measured_once_for_a_type_a_mode_and_a_number_of_cores(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        assert count_threads(PAIR, EngineSpec(device="cpu"), tmp_path) == 2
    (path,) = (tmp_path / "settled").iterdir()
    assert len(measured) == 1 and path.name.startswith("threads_") and json.loads(path.read_text())["threads"] == 2
    count_threads(PAIR, EngineSpec(device="cpu", dtype="float64"), tmp_path)
    count_threads(PAIR, EngineSpec(device="cpu", mode="eager"), tmp_path)
    monkeypatch.setattr(threads, "core_count", lambda: 3)
    count_threads(PAIR, EngineSpec(device="cpu"), tmp_path)
    assert len(measured) == 4


def test_what_needs_no_measurement(measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "MEASURED", 1)  # larger targets take all cores
    assert count_threads(PAIR, EngineSpec(device="cpu"), tmp_path) == 4
    monkeypatch.setattr(threads, "core_count", lambda: 1)
    assert count_threads(PAIR, EngineSpec(device="cpu"), tmp_path) == 1
    monkeypatch.setattr(threads, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(threads, "core_count", lambda: 4)
    assert count_threads(PAIR, EngineSpec(device="cuda"), tmp_path) == 1
    assert measured == []


def test_candidates() -> None:
    assert [candidates(cores) for cores in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]


def test_more_threads_must_pay() -> None:
    assert fewest({1: 1.09, 2: 1.0, 4: 1.05}) == 1
    assert fewest({1: 1.2, 2: 1.08, 4: 1.0}) == 2
    assert fewest({1: 5.0, 2: 3.0, 4: 1.0}) == 4


class Clock:
    """A clock that steps move on, by what they cost with the threads that torch has then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Callable[[int, int], float]) -> None:
        self.now, self.threads, self.steps, self._cost = 0.0, 3, 0, cost
        monkeypatch.setattr(threads, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "set_num_threads", self.set_threads)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)

    def set_threads(self, count: int) -> None:
        self.threads = count

    def step(self) -> None:
        self.steps += 1
        self.now += self._cost(self.threads, self.steps)


def test_the_median_of_second_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a pair is slow; one burst, in the third pair of all, is no median."""
    clock = Clock(monkeypatch, lambda count, step: 0.01 / count + (0.05 if step == 6 else 0.004 * (step % 2)))
    assert time_threads(clock.step, [1, 2]) == pytest.approx({1: 0.01, 2: 0.005})
    assert clock.threads == 3 and clock.steps == 2 * 2 * threads.CYCLES


def test_the_seconds_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda count, _: 0.3 * count)
    assert time_threads(clock.step, [1, 2]) == pytest.approx({1: 0.3, 2: 0.6})
    assert clock.steps == 4  # one cycle, which everything gets


@pytest.mark.parametrize("roles", [("target",), ("target", "draft")])
def test_a_round_feeds_a_draft_and_its_judge(tiny: ModelFactory, roles: tuple[str, ...]) -> None:
    engine = Engine({role: tiny("llama") for role in roles}, VOCABULARY, threads.CONTEXT + threads.DRAFTED + 1)
    fed: list[tuple[str, int]] = []
    once = open_round(engine)
    engine.probe.look = lambda role, logits: fed.append((role, len(logits)))
    once()
    one = [("draft", 1)] * threads.DRAFTED + [("target", threads.DRAFTED + 1)] if len(roles) == 2 else [("target", 1)]
    assert fed == one
    once()
    assert fed == 2 * one


def test_a_real_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "core_count", lambda: 2)
    monkeypatch.setattr(threads, "candidates", lambda cores: [1])  # tests have one thread
    monkeypatch.setattr(threads, "CYCLES", 1)
    assert count_threads(PAIR, EngineSpec(device="cpu"), tmp_path) == 1
    (path,) = (tmp_path / "settled").iterdir()
    stored = json.loads(path.read_text())
    assert stored["cores"] == 2 and list(stored["seconds"]) == ["1"] and stored["seconds"]["1"] > 0


def test_models_are_loaded_where_nothing_else_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by a job that others see."""
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path))
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "core_count", lambda: 4)
    seen: list[tuple[set[str], int]] = []

    def load(*_: object) -> None:
        seen.append((set(locks._HELD), len(locks.own_presences())))
        raise MemoryError

    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(MemoryError):
        count_threads(PAIR, EngineSpec(device="cpu"), tmp_path)
    assert seen == [({"cpu"}, 1)]
