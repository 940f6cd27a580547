"""Stop rules: the lengths they give, what they remember, and that the output law stays the target's."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from doubles import Tables, enumerate_paths, largest_difference, law_of

from baselines.stops import HeuristicLength
from viasd.decode import Draft, Verdict
from viasd.drafting import DraftModel, FixedLength
from viasd.method import Method
from viasd.sampling import Sampling
from viasd.verification import RuleVerifier

TOKENS = 3


def told(drafted: int, kept: int) -> tuple[Draft, Verdict]:
    """A block and how much of it was kept."""
    tokens = torch.zeros(drafted, dtype=torch.long)
    return Draft.chain(tokens, torch.zeros(drafted, 3)), Verdict([0] * (kept + 1), ["draft"] * (kept + 1), kept)


def lengths(rule: HeuristicLength, *blocks: tuple[int, int]) -> list[int]:
    """The limits a rule gives before each block (drafted, kept) and after the last."""
    stop, found = rule.open_stop(), []
    stop.begin(None)  # type: ignore[arg-type]
    for drafted, kept in blocks:
        found.append(stop.limit(None))  # type: ignore[arg-type]
        stop.observe(None, *told(drafted, kept))  # type: ignore[arg-type]
    return [*found, stop.limit(None)]  # type: ignore[arg-type]


def test_heuristic_adds_two_or_takes_one() -> None:
    assert lengths(HeuristicLength(), (5, 5), (7, 7), (9, 8), (8, 0)) == [5, 7, 9, 8, 7]
    assert lengths(HeuristicLength(start=2), (2, 0), (1, 0), (1, 0), (1, 1)) == [2, 1, 1, 1, 3]


def test_a_block_shorter_than_asked_for_and_kept_is_kept_whole() -> None:
    assert lengths(HeuristicLength(), (3, 3), (2, 1)) == [5, 7, 6]


@pytest.mark.parametrize("memory", ["request", "run"])
def test_memory_outlives_a_request_only_if_asked_for(memory: Literal["request", "run"]) -> None:
    stop = HeuristicLength(memory=memory).open_stop()
    stop.begin(None)  # type: ignore[arg-type]
    known = stop.memory()
    stop.observe(None, *told(5, 5))  # type: ignore[arg-type]
    stop.begin(None)  # type: ignore[arg-type]
    assert stop.limit(None) == (7 if memory == "run" else 5)  # type: ignore[arg-type]
    assert (known, stop.memory()) == (({"length": 5}, {"length": 7}) if memory == "run" else ({}, {}))
    stop.restore(known)
    assert stop.limit(None) == 5 and stop.memory() == known  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", ["request", "run"])
def test_the_output_law_is_the_targets(memory: Literal["request", "run"]) -> None:
    tables, sampling = Tables(3), Sampling(temperature=0.7)

    def law(stop: FixedLength | HeuristicLength) -> dict[tuple[int, ...], float]:
        method = Method(name="m", drafter=DraftModel(), stop=stop, verifier=RuleVerifier())
        return law_of(iter(list(enumerate_paths(method, tables, sampling, TOKENS))))

    assert largest_difference(law(HeuristicLength(start=1, memory=memory)), law(FixedLength(length=0))) < 1e-9


@pytest.mark.parametrize(("key", "value"), [("start", 0), ("start", 65), ("memory", "forever"), ("begin", 5)])
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        HeuristicLength(**{key: value})  # type: ignore[arg-type]
