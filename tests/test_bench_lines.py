"""The lines of the bench's table, from made-up numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.benching.steps import Step, Steps, timeable
from experiments.benching.summary import cuda_lines, harness_lines, step_lines
from experiments.costs import Cost
from experiments.records import Row


def rotated(rope_type: str | None) -> Any:
    """A model that has rotary positions of this type, or none at all."""
    base = SimpleNamespace() if rope_type is None else SimpleNamespace(rotary_emb=SimpleNamespace(rope_type=rope_type))
    return SimpleNamespace(get_decoder=lambda: base)


def test_contexts_beyond_what_is_read_need_angles_that_depend_on_the_position_alone() -> None:
    contexts = [2048, 512, 128, 512]
    assert timeable(contexts, 512, [rotated("default"), rotated("llama3")]) == [128, 512, 2048]
    for other in ("dynamic", "longrope", None):
        assert timeable(contexts, 512, [rotated("default"), rotated(other)]) == [128, 512]


def step(reader: str, fed: int, context: int, seconds: float, other: float | None = None, size: int = 10**9) -> Step:
    beside = None if other is None else Cost(other, other, other)
    return Step(reader, fed, context, Cost(seconds, seconds, seconds), beside, size)


def test_step_lines_tell_the_cost_of_a_token_and_what_is_beyond() -> None:
    steps = Steps([step("target", 6, 512, 0.012, 0.018), step("target", 1, 513, 0.01)], 4e11, ("auto", "eager"), [9000])
    six, one, copy, beyond, unread = step_lines(steps, 512)
    assert (six.name, six.value) == ("target, 6 at 512", 12.0)
    assert six.beside == "2.00 ms/token, 0.21 of copy, eager/auto 1.50" and one.beside == "0.25 of copy"
    assert copy.value == 400 and (beyond.name, beyond.value) == ("at 513", None)
    assert beyond.beside == "cost only: the models read 512 tokens"
    assert (unread.name, unread.beside) == ("at 9000", "not measured: the models read 512 tokens")


def test_cuda_lines_have_their_targets() -> None:
    taken = [
        step("target", 1, 128, 0.01, 0.02, 14 * 10**9),
        step("draft", 1, 128, 0.001, 0.004),
        step("draft", 1, 512, 1),
    ]
    recorded, bandwidth = cuda_lines(Steps(taken, 1.75e12, ("graphs", "eager"), []), "draft")
    assert (recorded.value, recorded.target, recorded.beside) == (4.0, ">= 3", "")
    assert bandwidth.value == pytest.approx(0.8) and (bandwidth.target, bandwidth.beside) == (
        ">= 0.75",
        "14.0 GB a step",
    )
    fused, small = cuda_lines(Steps([step("target", 1, 8, 1.0), *taken[1:]], 1e9, ("fused", "eager"), []), "draft")
    assert (fused.value, fused.beside) == (None, "not measured: engine.mode=fused")
    assert small.value == 1.0 and small.target is None  # a small model's step is not decided by the memory
    assert [one.value for one in cuda_lines(Steps([], 1e9, ("graphs", "eager"), []), "draft")] == [None, None]


def timed_row(arm: str, seconds: float, device: float) -> Row:
    """Ten tokens; 0.8 of a profiled second inside of forwards on the host's clock."""
    return Row(
        "1", arm, 0, new_tokens=10, decode_seconds=[seconds], prefill_seconds=[0.1], profiled_seconds=1.0,
        reader_seconds={"target": 0.8}, device_seconds={"target": device} if device else {}, ideal_seconds=seconds,
    )  # fmt: skip


def test_time_outside_is_by_the_devices_clock_on_cuda() -> None:
    found = {
        device: harness_lines(
            [timed_row("vanilla", 0.9, busy), timed_row("sd", 0.45, busy / 2)], ["vanilla", "sd"], device
        )
        for device, busy in (("cpu", 0.0), ("cuda", 0.855))
    }
    for device, share, target, ideal in (("cpu", 0.2, "<= 0.05", ">= 0.93"), ("cuda", 0.05, "<= 0.03", ">= 0.95")):
        lines = {one.name: one for one in found[device]}
        for name in ("vanilla: other", "sd: other"):
            assert lines[name].value == pytest.approx(share) and lines[name].target == target
        assert lines["sd: speedup / ideal"].value == pytest.approx(1) and lines["sd: speedup / ideal"].target == ideal
