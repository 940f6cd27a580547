"""The clocks of the measuring loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from experiments.measure import Bench, NaNLogits, Profile, Prompt, Stopwatch
from viasd.decode import Decode
from viasd.reader import Probe
from viasd.sampling import Sampling

LOG: list[str] = []


class Event:
    """A CUDA event that notes when it is recorded; two of them are 4 ms apart."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        LOG.append("event")

    def elapsed_time(self, _: Event) -> float:
        assert LOG[-1] == "synchronize"  # else the events may not have happened yet
        return 4.0


def test_on_cuda_events_lie_inside_of_the_synchronized_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: LOG.append("synchronize"))
    LOG.clear()
    profile = Profile(torch.device("cuda"))
    for _ in range(2):
        with profile.watch("target", 6):
            LOG.append("forward")
    assert LOG == 2 * ["synchronize", "event", "forward", "event", "synchronize"]
    assert profile.device_seconds == {"target": 0.008} and profile.seconds["target"] > 0
    assert profile.rounds == [[("target", 6), ("target", 6)]]


def test_a_processor_has_one_clock() -> None:
    profile = Profile(torch.device("cpu"))
    with profile.watch("draft", 1):
        pass
    assert profile.device_seconds == {} and list(profile.seconds) == ["draft"]


def test_the_first_token_is_the_first_that_is_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provisional tokens (mode exact) may still be taken back."""
    now = [0.0]
    monkeypatch.setattr("experiments.measure.perf_counter", lambda: now[0])
    with Stopwatch(torch.device("cpu")) as watch:
        for event in ("prefilled", "provisional", "provisional", "round", "round"):
            now[0] += 1
            watch(event)
    assert (watch.start, watch.prefilled, watch.first, watch.end) == (0, 1, 4, 5)


def test_a_block_is_one_time_and_as_many_calls_as_it_holds() -> None:
    profile = Profile(torch.device("cpu"))
    with profile.watch("draft", 2, 1, 1):
        pass
    profile.end_round()
    assert profile.rounds == [[("draft", 2), ("draft", 1), ("draft", 1)], []] and list(profile.seconds) == ["draft"]


def test_warming_up_prepares_the_engine_between_two_passes() -> None:
    log: list[str] = []
    bench = object.__new__(Bench)
    bench.engine = SimpleNamespace(prepare=lambda: log.append("prepare"), device="cpu")  # type: ignore[assignment]
    bench.arms = {"a": SimpleNamespace(generate=lambda *_: log.append("decode"))}  # type: ignore[dict-item]
    bench.decode, bench.seed = Decode(Sampling(), 4), 0
    bench.warm_up([1])
    assert log == ["decode", "prepare", "decode"]


def test_turns_are_timed_on_both_sides_of_each_timed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    bench = object.__new__(Bench)
    bench.arms, bench.repeats = {"a": None, "b": None}, 2  # type: ignore[dict-item]
    bench.turns = SimpleNamespace(forget=lambda: log.append("forget"), time=lambda arm: log.append(f"turns {arm}"))  # type: ignore[assignment]
    monkeypatch.setattr(bench, "_guard", lambda row, step: step(row))
    for name in ("time", "profile", "detail"):
        monkeypatch.setattr(bench, f"_{name}", lambda row, *_, name=name: log.append(f"{name} {row.arm}"))
    prompt = Prompt(0, SimpleNamespace(example_id="x", metadata={}), [1])  # type: ignore[arg-type]
    bench.measure(prompt, timed=False)
    assert log == ["detail a", "detail b"]
    log.clear()
    bench.measure(prompt, timed=True)
    timed = [f"{what} {arm}" for arm in "abba" for what in ("turns", "time", "turns")]
    assert log == ["forget", *timed, "profile a", "profile b", "detail a", "detail b"]


def test_nan_is_told_by_its_reader_also_as_the_cause_of_another_error_but_not_of_ctrl_c() -> None:
    bench = object.__new__(Bench)
    bench.engine = SimpleNamespace(probe=Probe())  # type: ignore[assignment]
    nan = torch.tensor([[0.0, torch.nan]])

    def look(raised: type[BaseException] | None, *given: tuple[str, torch.Tensor]) -> None:
        with bench._looking_for_nan():
            for role, logits in given:
                assert bench.engine.probe.look is not None
                bench.engine.probe.look(role, logits)
            if raised is not None:
                raise raised

    look(None, ("draft", torch.zeros(2, 4)))
    for raised in (None, ValueError):
        with pytest.raises(NaNLogits, match="reader slim gave NaN logits, in 2 of its calls"):
            look(raised, ("draft", torch.zeros(1)), ("slim", nan), ("slim", nan))
    with pytest.raises(KeyboardInterrupt):
        look(KeyboardInterrupt, ("slim", nan))
    assert bench.engine.probe.look is None
