"""The clocks of the measuring loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from experiments.measure import Bench, NaNLogits, NaNSearch, Profile
from viasd.reader import Probe

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


def test_the_search_for_nan_is_off_the_clock_and_names_the_reader() -> None:
    search = NaNSearch()
    search("draft", torch.zeros(2, 4))
    search.check()
    search("target", torch.tensor([[0.0, torch.nan]]))
    assert search.seconds > 0
    with pytest.raises(NaNLogits, match="reader target gave NaN logits, in 1 of its calls"):
        search.check()


def test_nan_is_the_cause_of_another_error_but_not_of_ctrl_c() -> None:
    bench = object.__new__(Bench)
    bench.engine = SimpleNamespace(probe=Probe())  # type: ignore[assignment]
    for raised, told in ((ValueError, NaNLogits), (KeyboardInterrupt, KeyboardInterrupt)):
        with pytest.raises(told), bench._looking_for_nan() as search:
            search("slim", torch.tensor([torch.nan]))
            raise raised
        assert bench.engine.probe.look is None
