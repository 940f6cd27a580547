"""The n-gram model: where a text goes on, what the bigram table says, what outlives a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines.ngram import Ngram, NgramModel, find_continuation


def told(prompt: list[int], output: list[int] | None = None) -> Any:
    """As much of a state as the model looks at."""
    return SimpleNamespace(ids=torch.tensor(prompt), prompt_length=len(prompt), output=output or [])


def model(prompt: list[int], output: list[int] | None = None, **settings: Any) -> NgramModel:
    """The model after a prompt and what was output behind it."""
    made = NgramModel(Ngram(**settings))
    made.begin(told(prompt))
    if output:
        made.observe(told(prompt, output), None, None)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("ids", "shortest", "start"),
    [
        ([5, 6, 7, 5, 6], 1, 2),
        ([5, 6, 7, 9, 6, 8, 5, 6], 1, 2),  # two tokens fit at 2, one token at 5: the longer suffix counts
        ([5, 6, 7, 5, 6, 8, 5, 6], 1, 5),  # of equal ones the latest
        ([5, 6, 7, 9, 6], 1, 2),
        ([5, 6, 7, 9, 6], 2, None),
        ([5, 6, 7], 1, None),
        ([5, 5], 1, 1),
        ([5, 5, 5], 2, 2),  # the place may overlap with the suffix
        ([5], 1, None),
        ([70_000, 55_300, 1, 70_000, 55_300], 2, 2),  # any id, surrogates among them
    ],
)
def test_the_longest_repeated_suffix(ids: list[int], shortest: int, start: int | None) -> None:
    assert find_continuation(ids, shortest) == start


def test_it_goes_on_as_the_text_did_and_then_as_it_has_gone_on() -> None:
    ids = [5, 6, 7, 8, 5, 6]
    assert model([1]).propose(ids, 2) == [7, 8]
    assert model([1]).propose(ids, 7) == [7, 8, 5, 6, 7, 8, 5]
    assert model([1]).propose([3, 3, 3], 4) == [3, 3, 3, 3]
    assert model([1]).propose(ids, 0) == []


def test_bigrams_say_what_most_often_followed() -> None:
    made = model([4, 7, 4, 8], [4, 8, 9], shortest_match=3)  # 4 -> 7, 8, 8; 7 -> 4; 8 -> 4, 9; 9 -> nothing
    assert made.propose([4], 3) == [8, 4, 8]  # of 4 and 9, which followed 8 once each, the one that came first
    assert made.propose([7], 2) == [4, 8]
    assert made.propose([9], 3) == made.propose([2], 3) == []
    assert model([4, 9], shortest_match=3).propose([4], 5) == [9]  # a block may end early


def test_the_output_is_learned_once() -> None:
    made = model([4, 7], [4, 8], shortest_match=9)
    made.observe(told([4, 7], [4, 8, 4, 8]), None, None)  # type: ignore[arg-type]
    assert made._followers == {4: {7: 1, 8: 2}, 7: {4: 1}, 8: {4: 1}}


@pytest.mark.parametrize("lasting", [False, True])
def test_bigrams_outlive_a_request_only_if_asked_for(lasting: bool) -> None:
    made = model([4, 7], shortest_match=9, memory="run" if lasting else "request")
    known = made.memory()
    assert known == ({"followers": {"4": {"7": 1}}} if lasting else {})
    made.begin(told([5, 8]))
    assert made.propose([4], 1) == ([7] if lasting else [])
    made.restore(known)
    assert made.propose([5], 1) == [] and made.memory() == known


@pytest.mark.parametrize(("key", "value"), [("length", 0), ("shortest_match", 0), ("memory", "ever"), ("size", 1)])
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        Ngram(**{key: value})  # type: ignore[arg-type]
