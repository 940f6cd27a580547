"""Kinds of training compared over seeds: values by hand, and intervals that hold the spread of trainings."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.comparison import Arm, compare
from experiments.errors import UserError
from experiments.records import Row
from experiments.tables import parse_arms
from experiments.trainings import check_kinds, compare_kinds, each_ratio, markdown, write_csv

KINDS = {"plain": ["p0", "p1", "p2"], "new": ["n0", "n1", "n2"]}
ROUNDS = {"p0": 20, "p1": 24, "p2": 30, "n0": 15, "n1": 20, "n2": 24}


def make_arms(rounds: Mapping[str, int]) -> Mapping[str, Arm]:
    """Each of 12 examples has 120 tokens, 2 seconds for each round."""
    rows = [
        Row(f"e{place}", arm, place, new_tokens=120, rounds=count, decode_seconds=[2.0 * count])
        for arm, count in rounds.items()
        for place in range(12)
    ]
    return compare(rows, list(rounds))


def test_values_are_means_over_trainings() -> None:
    told = compare_kinds([make_arms(ROUNDS)], KINDS)
    plain, new = told["plain"], told["new"]
    assert plain["acceptance_length"] is not None and new["acceptance_length"] is not None
    assert plain["acceptance_length"].value == pytest.approx((6 + 5 + 4) / 3)
    assert new["acceptance_length"].value == pytest.approx((8 + 6 + 5) / 3)
    assert new["acceptance_length_ratio"].value == pytest.approx(19 / 15)  # type: ignore[union-attr]
    assert new["tokens_per_second"].value == pytest.approx((4 + 3 + 2.5) / 3)  # type: ignore[union-attr]
    ratio = plain["tokens_per_second_ratio"]
    assert ratio is not None and (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_intervals_hold_the_spread_of_trainings() -> None:
    """Examples are all alike here: what spreads are the trainings, paired by seed."""
    told = compare_kinds([make_arms(ROUNDS)], KINDS)["new"]
    length, ratio = told["acceptance_length"], told["acceptance_length_ratio"]
    wide, middle = (3 / 2) ** 0.5, 19 / 3  # three trainings, drawn with replacement, spread by 2/3 of their variance
    assert length is not None
    assert (length.low, length.high) == pytest.approx((middle + wide * (5 - middle), middle + wide * (8 - middle)))
    assert ratio is not None and ratio.low is not None and ratio.high is not None
    assert ratio.low < 6 / 5 < ratio.value < 8 / 6 < ratio.high


def test_a_kind_with_one_training_has_the_interval_of_its_prompts() -> None:
    told = compare_kinds([make_arms(ROUNDS)], {"plain": ["p0"], "new": ["n0"]})["new"]["acceptance_length_ratio"]
    assert told is not None and (told.low, told.value, told.high) == pytest.approx((20 / 15, 20 / 15, 20 / 15))


def test_tasks_weigh_the_same(tmp_path: Path) -> None:
    """Ratios of tasks are averaged, not totals: a task with long drafts decides no more than another."""
    one, other = make_arms({"p0": 20, "n0": 10}), make_arms({"p0": 2, "n0": 2})
    kinds = {"plain": ["p0"], "new": ["n0"]}
    told = compare_kinds([one, other], kinds)["new"]
    assert told["acceptance_length"].value == pytest.approx((12 + 60) / 2)  # type: ignore[union-attr]
    assert told["acceptance_length_ratio"].value == pytest.approx((2 + 1) / 2)  # type: ignore[union-attr]
    assert told["tokens_per_second_ratio"].value == pytest.approx(1.5)  # type: ignore[union-attr]
    assert "| new | 36.00 [36.00, 36.00] | 1.500 [1.500, 1.500] | 1.500 |" in markdown([one, other], kinds)
    write_csv(tmp_path / "table.csv", {"both": compare_kinds([one, other], kinds)}, {})
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert rows[5]["kind"] == "new" and rows[5]["metric"] == "acceptance_length_ratio" and len(rows) == 8


def test_each_training_is_told_beside_the_one_of_its_seed() -> None:
    each = each_ratio([make_arms(ROUNDS)], {**KINDS, "few": ["n0"]}, "acceptance_length")
    assert each == {"plain": [1, 1, 1], "new": pytest.approx([20 / 15, 24 / 20, 30 / 24])}


def test_arms_that_are_not_there() -> None:
    with pytest.raises(UserError, match="--trainings new: no arm n7; accepted: p0, p1"):
        check_kinds([make_arms(ROUNDS)], {"plain": ["p0"], "new": ["n7"]})
    with pytest.raises(UserError, match="one of plain comes twice"):
        parse_arms("--trainings", ["plain=a", "plain=b"])
    with pytest.raises(UserError, match="--trainings plain: accepted: NAME=ARM,ARM"):
        parse_arms("--trainings", ["plain"])
