"""Processing of rows against the library's logits processors, and the statistics of seeded draws."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from viasd.rules import Lossless, RowPairs, RuleRows, judge_chain
from viasd.sampling import Sampling, SeededDraws, process

SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.05),
    Sampling(temperature=1.2, min_p=0.1),
    Sampling(temperature=0.8, top_k=12, top_p=0.8, min_p=0.05),
    Sampling(temperature=0.8, top_k=1),
    Sampling(temperature=0.8, top_k=1000),
]


def rows_of_logits(count: int = 40, vocabulary: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(count, vocabulary, dtype=dtype, generator=torch.Generator().manual_seed(7))


# --- rows ---------------------------------------------------------------------------------------------------------


def processed_by_library(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after the library's own warpers, in its order."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone()).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_process_equals_the_library(sampling: Sampling, dtype: torch.dtype) -> None:
    logits = rows_of_logits(dtype=dtype)
    rows = process(logits, sampling)
    expected = processed_by_library(logits, sampling)
    assert torch.equal(rows > 0, expected > 0)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-7)
    assert rows.dtype == dtype


@pytest.mark.parametrize("sampling", [*SAMPLINGS, Sampling(temperature=0)], ids=repr)
def test_process_leaves_its_input_and_missing_ids_alone(sampling: Sampling) -> None:
    logits = rows_of_logits()
    logits[:, 3] = -torch.inf  # an id that this model lacks
    before = logits.clone()
    rows = process(logits, sampling)
    assert torch.equal(logits, before)
    assert not rows[:, 3].any()
    assert not rows.isnan().any()
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows), dtype=rows.dtype))


def test_temperature_zero_is_the_first_argmax() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -3.0, -2.0, -1.0]])
    expected = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert torch.equal(process(logits, Sampling(temperature=0, top_k=2, top_p=0.5)), expected)
    wide = torch.zeros(1, 50_000)
    wide[0, [700, 701, 49_999]] = 1
    assert process(wide, Sampling()).argmax() == 700


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("top_k", -1), ("top_p", 0), ("top_p", 1.01), ("min_p", 1), ("temperature", "warm")],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


# --- draws --------------------------------------------------------------------------------------------------------


def drawn(draws: SeededDraws, stream: str = "draft", count: int = 50) -> list[int]:
    return draws.draw(torch.ones(count, 1000), stream).tolist()  # type: ignore[arg-type]


def test_same_seed_and_example_draw_the_same() -> None:
    first, again = SeededDraws(3, "a"), SeededDraws(3, "a")
    assert drawn(first) == drawn(again)
    assert drawn(first) == drawn(again)  # as far on as that
    assert drawn(SeededDraws(3, "a")) != drawn(first)
    for other in (SeededDraws(4, "a"), SeededDraws(3, "b")):
        assert drawn(other) != drawn(SeededDraws(3, "a"))


def test_streams_do_not_touch_each_other() -> None:
    calm, busy = SeededDraws(0, "a"), SeededDraws(0, "a")
    busy.accepted_prefix(torch.ones(9), torch.ones(9))
    busy.coin(0.5)
    drawn(busy, "replacement")
    drawn(busy, "gate")
    assert drawn(calm) == drawn(busy)
    four = [drawn(SeededDraws(0, "a"), stream) for stream in ("draft", "coin", "replacement", "gate")]
    assert all(one != other for index, one in enumerate(four) for other in four[:index])


def test_draws_follow_unnormalized_rows() -> None:
    row = torch.tensor([0.0, 2.0, 0.5, 0.0, 1.5, 4.0], dtype=torch.float64)
    tokens = SeededDraws(1, "a").draw(row.expand(40_000, -1), "draft")
    seen = torch.bincount(tokens, minlength=6)
    assert seen[0] == seen[3] == 0
    possible = row > 0
    expected = row[possible] / row.sum() * len(tokens)
    assert stats.chisquare(seen[possible].numpy(), expected.numpy()).pvalue > 0.01


def test_consecutive_draws_are_independent() -> None:
    draws = SeededDraws(2, "a")
    tokens = [int(draws.draw(torch.ones(1, 3), "draft")) for _ in range(9_000)]
    table = torch.zeros(3, 3)
    for one, other in zip(tokens[::2], tokens[1::2], strict=True):
        table[one, other] += 1
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.01


def test_accepted_prefix_uses_a_coin_per_position() -> None:
    draws = SeededDraws(5, "a")
    numerators, denominators = torch.tensor([0.6, 0.5, 0.2]), torch.tensor([0.8, 0.4, 0.5])  # 0.75, 1, 0.4
    seen = [0] * 4
    for _ in range(8_000):
        seen[int(draws.accepted_prefix(numerators, denominators))] += 1
    assert seen[1] == 0  # the second position always passes
    expected = [8_000 * share for share in (0.25, 0.75 * 0.6, 0.75 * 0.4)]
    assert stats.chisquare([seen[0], seen[2], seen[3]], expected).pvalue > 0.01


def test_accepted_prefix_at_temperature_zero() -> None:
    draws = SeededDraws(0, "a")
    for _ in range(200):
        assert int(draws.accepted_prefix(torch.tensor([1.0, 1, 0, 1]), torch.ones(4))) == 2


def test_a_coin_of_zero_keeps_nothing_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert int(SeededDraws(0, "a").accepted_prefix(torch.tensor([0.1, 0.0]), torch.ones(2))) == 1


def test_certain_coins() -> None:
    draws = SeededDraws(0, "a")
    assert all(draws.coin(1.0) for _ in range(200))
    assert not any(draws.coin(0.0) for _ in range(200))
    heads = sum(draws.coin(0.3) for _ in range(5_000))
    assert stats.binomtest(heads, 5_000, 0.3).pvalue > 0.01


# --- the chain rule with seeded draws -----------------------------------------------------------------------------


def test_one_position_follows_the_judge() -> None:
    """A drafted token tested by the lossless rule leaves the judge's law (8 tokens; the joint laws are enumerated)."""
    judge, draft = process(rows_of_logits(2, 8), Sampling(temperature=0.6, top_p=0.9))
    draws, seen = SeededDraws(11, "a"), torch.zeros(8)
    both = torch.stack([judge, judge])
    rule = Lossless().rows(RowPairs(torch.zeros(1, dtype=torch.long), both, draft[None], both.log()))
    for _ in range(4_000):
        token = draws.draw(draft[None], "draft")
        verdict = judge_chain(token, draft[None], rule, draws)
        seen[token[0] if verdict.accepted == 1 else verdict.token] += 1
    possible = judge > 0
    assert not seen[~possible].any()
    expected = judge[possible] * seen.sum()
    assert stats.chisquare(seen[possible].numpy(), expected.numpy()).pvalue > 0.01


def test_residual_that_vanishes_falls_back_to_the_row() -> None:
    """Equal rows leave nothing to draw a replacement from, which can only be reached through rounding."""
    row = torch.tensor([[0.5, 0.5]])
    rule = RuleRows(reject=torch.zeros(1, 2), residual=row, bonus=torch.tensor([1.0, 0.0]))
    tokens = {int(judge_chain(torch.tensor([0]), row, rule, SeededDraws(n, "a")).token) for n in range(30)}
    assert tokens == {0, 1}


def test_the_first_accepted_of_several_uses_a_coin_for_each() -> None:
    """Places outside `where` are never it; n says that none was."""
    draws, seen = SeededDraws(0, "a"), Counter[int]()
    numerators, where = torch.tensor([0.5, 1.0, 0.25, 0.5]), torch.tensor([True, False, True, True])
    for _ in range(4000):
        seen[int(draws.first_accepted(numerators, torch.ones(4), where))] += 1
    expected = {0: 0.5, 2: 0.125, 3: 0.1875, 4: 0.1875}
    assert set(seen) == set(expected)
    for place, share in expected.items():
        assert abs(seen[place] / 4000 - share) < 0.03
