"""AdaSD's stop rule: where it ends a block, what it learns from, and what it remembers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.adasd_stop import EntropyStop, OnlineMean
from viasd.blocks import DraftedBlock, cut_block
from viasd.decode import Draft, Verdict
from viasd.sampling import Sampling, process

WARM = Sampling(temperature=0.5)
LOGITS = torch.tensor([[4.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)


def nats(rows: Tensor) -> list[float]:
    return [-sum(p * math.log(p) for p in row if p > 0) for row in rows.tolist()]


RAW, PROCESSED = nats(LOGITS.softmax(-1)), nats(process(LOGITS, WARM))


def state(temperature: float = 0.5) -> Any:
    return SimpleNamespace(greedy=temperature == 0, finish_reason=None)


def draft(logits: Tensor | None = LOGITS) -> Draft:
    return Draft.chain(torch.zeros(4, dtype=torch.long), process(LOGITS, WARM), logits)


def verdict(kept: int, judged: int, labels: list[bool] | None = None) -> Verdict:
    return Verdict([0] * (kept + 1), ["target"] * (kept + 1), kept, tiers=["target"] * judged, labels=labels)


def opened(temperature: float = 0.5, **options: Any) -> Any:
    stop: Any = EntropyStop(**options).open_stop()
    stop.begin(state(temperature))
    return stop


def threshold(stop: Any) -> float | None:
    return stop.adaptive().get("threshold")


def test_without_a_rejection_there_is_no_test() -> None:
    stop = opened()
    assert (stop.limit(state()), stop.trip, stop.adaptive()) == (20, None, {})
    stop.observe(state(), draft(), verdict(4, 4))
    assert stop.trip is None
    stop.observe(state(), draft(), verdict(2, 3))
    assert stop.trip is stop and threshold(stop) == pytest.approx(RAW[2])
    assert opened(start=0.4, cap=7).adaptive() == {"threshold": 0.4} and opened(cap=7).limit(state()) == 7


def test_the_mean_of_rejected_rows() -> None:
    stop = opened()
    for kept, judged in ((2, 3), (0, 1), (4, 4), (3, 4)):
        stop.observe(state(), draft(), verdict(kept, judged))
    assert threshold(stop) == pytest.approx((RAW[2] + RAW[0] + RAW[3]) / 3)


def test_a_start_gives_way_to_what_is_learned() -> None:
    stop = opened(start=0.1)
    stop.observe(state(), draft(), verdict(1, 2))
    assert threshold(stop) == pytest.approx(RAW[1])


def test_labels_of_the_verifier_come_first() -> None:
    """Also where nothing was replaced, and also behind the last judged token."""
    stop = opened()
    stop.observe(state(), draft(), verdict(2, 3, labels=[True, False, True, False]))
    assert threshold(stop) == pytest.approx((RAW[1] + RAW[3]) / 2)
    stop.observe(state(), draft(), verdict(0, 1, labels=[]))
    assert threshold(stop) == pytest.approx((RAW[1] + RAW[3]) / 2)


def test_what_is_drafted_behind_the_end_of_a_text_does_not_count() -> None:
    stop, ended = opened(), state()
    ended.finish_reason, ended.rounds = "eos", [SimpleNamespace(judged=2)]
    stop.observe(ended, draft(), verdict(2, 3))
    assert stop.trip is None
    stop.observe(ended, draft(), verdict(1, 2))
    assert threshold(stop) == pytest.approx(RAW[1])


@pytest.mark.parametrize(
    ("rows", "temperature", "logits", "expected"),
    [
        ("raw", 0.5, LOGITS, RAW),
        ("processed", 0.5, LOGITS, PROCESSED),
        ("processed", 0, LOGITS, RAW),  # one-hot rows have no entropy
        ("raw", 0.5, None, PROCESSED),  # a drafter without rows of its own
    ],
)
def test_which_rows(rows: str, temperature: float, logits: Tensor | None, expected: list[float]) -> None:
    stop = opened(temperature, rows=rows)
    stop.observe(state(temperature), draft(logits), verdict(1, 2))
    assert threshold(stop) == pytest.approx(expected[1])
    if logits is not None:
        tripped = stop.trips(0, torch.zeros(4, dtype=torch.long), LOGITS, Sampling(temperature=temperature))
        assert tripped.tolist() == [one > expected[1] for one in expected] == [False, False, True, False]


@pytest.mark.parametrize(("keep", "length"), [(True, 3), (False, 2)])
def test_the_token_that_trips_is_kept_or_dropped(keep: bool, length: int) -> None:
    stop = opened(start=(RAW[1] + RAW[2]) / 2, keep_tripping=keep)
    block = DraftedBlock(torch.zeros(4, dtype=torch.long), process(LOGITS, WARM), LOGITS)
    assert cut_block(block, WARM, stop.trip).tokens.shape == (length,)


@pytest.mark.parametrize("memory", ["request", "run"])
def test_memory_outlives_a_request_only_if_asked_for(memory: str) -> None:
    stop = opened(memory=memory, decay=0.5)
    fresh = stop.memory()
    for kept in (0, 1):
        stop.observe(state(), draft(), verdict(kept, kept + 1))
    learned = pytest.approx((0.5 * RAW[0] + RAW[1]) / 1.5)
    known = stop.memory()
    assert threshold(stop) == learned
    stop.begin(state())
    assert threshold(stop) == (learned if memory == "run" else None)
    stop.restore(fresh)
    assert stop.trip is None
    stop.restore(known)
    assert threshold(stop) == (learned if memory == "run" else None)
    assert (known == {}) == (memory == "request")


def test_online_mean() -> None:
    mean = OnlineMean()
    assert mean.value is None
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == 3.0 and OnlineMean(**mean.memory()).value == 3.0


@pytest.mark.parametrize(
    ("key", "value"), [("cap", 0), ("cap", 65), ("start", -1), ("decay", 0), ("decay", 1.1), ("rows", "both"), ("x", 1)]
)
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        EntropyStop(**{key: value})  # type: ignore[arg-type]
