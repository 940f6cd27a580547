"""The search for masks: spaces, proposals, stops, and that a killed search ends as an unbroken one."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from viasd.dimr import (
    Mask,
    Memory,
    Plan,
    Space,
    Trial,
    best,
    draw_untried,
    propose,
    regret_of,
    run_search,
    search_regrets,
)
from viasd.models import Branches, PairError, even_mask

SPACE = Space(12, 0.34)  # 4 of 12 layers: 210 masks


def additive(mask: Mask) -> dict[str, float]:
    """A cost that grows with the layers' numbers, and a measure that is better when larger."""
    return {"cost": float(sum(mask)), "agreement": 1 - sum(mask) / 100}


def pairwise_cost(mask: Mask) -> dict[str, float]:
    """A cost with effects of single layers and of pairs."""
    chance = random.Random(7)
    single = [chance.random() for _ in range(12)]
    pair = [[chance.random() / 3 for _ in range(12)] for _ in range(12)]
    return {"cost": sum(single[i] + sum(pair[i][j] for j in mask if j > i) for i in mask)}


def found(space: Space, plan: Plan, score: Any = additive, objective: str = "cost") -> list[Trial]:
    return run_search(space, plan, objective, score, Memory([]))


# --- spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 5, 12, 30])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.45, 0.5])
@pytest.mark.parametrize("unit", ["layer", "branch"])
@pytest.mark.parametrize("keep_ends", [True, False])
def test_masks_skip_exactly_what_is_asked(layers: int, ratio: float, unit: Any, keep_ends: bool) -> None:
    units = layers * (1 if unit == "layer" else 2)
    if round(ratio * units) > units - 2 * keep_ends * units // layers:
        return
    space = Space(layers, ratio, unit, keep_ends)
    for mask in (space.even(), draw_untried(space, set(), random.Random(0))):
        assert mask == tuple(sorted(set(mask))) and len(mask) == round(ratio * units)
        kept = space.kept(mask)
        if isinstance(kept, Branches):
            assert len(kept.attention) + len(kept.mlp) == units - len(mask)
            assert not keep_ends or {0, layers - 1} <= set(kept.attention) & set(kept.mlp)
        else:
            assert len(kept) == units - len(mask) and (not keep_ends or {0, layers - 1} <= set(kept))
    if unit == "layer":
        assert space.kept(space.even()) == even_mask(layers, ratio, keep_ends)


def test_the_whole_space() -> None:
    masks = list(SPACE.all())
    assert len(masks) == len(set(masks)) == SPACE.size == 210
    assert all(len(mask) == 4 and mask[0] > 0 and mask[-1] < 11 for mask in masks)


def test_units_of_branches() -> None:
    space = Space(4, 0.25, "branch")  # 2 of 8 units; 2 to 5 are free
    assert list(space.free) == [2, 3, 4, 5]
    assert space.kept((2, 5)) == Branches(attention=(0, 2, 3), mlp=(0, 1, 3))


@pytest.mark.parametrize(
    ("layers", "ratio", "message"),
    [
        (4, 0.8, r"skip_ratio=0\.8 skips 3 of 4 units; at most 2 .*\(keep_ends=true\)"),
        (4, 1.0, r"skip_ratio=1\.0: accepted: 0 <= skip_ratio < 1"),
    ],
)
def test_impossible_spaces(layers: int, ratio: float, message: str) -> None:
    with pytest.raises(PairError, match=message):
        Space(layers, ratio)


@pytest.mark.parametrize("key", [{"trials": 0}, {"every": -1}, {"patience": 0}, {"theta": 3}])
def test_plan_is_a_closed_spec(key: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(key))):
        Plan(**key)


# --- search -------------------------------------------------------------------------------------------------------


def test_steps() -> None:
    """Even spacing first, a Bayesian proposal each fourth, no mask twice, all within the space."""
    pytest.importorskip("optuna")
    trials = found(SPACE, Plan(trials=13, every=4))
    assert [trial.origin for trial in trials[:6]] == ["even", "random", "random", "random", "bayesian", "random"]
    assert sum(trial.origin == "bayesian" for trial in trials) == 3
    assert len({trial.mask for trial in trials}) == 13
    assert {trial.mask for trial in trials} <= set(SPACE.all())
    assert trials[0].mask == SPACE.even()


def test_seeds() -> None:
    masks = [[trial.mask for trial in found(SPACE, Plan(trials=9, every=0, seed=seed))] for seed in (0, 0, 1)]
    assert masks[0] == masks[1] and masks[0][1:] != masks[2][1:]


def test_no_mask_is_left_when_all_are_tried() -> None:
    space = Space(6, 0.34)  # 6 masks
    trials = found(space, Plan(trials=100, every=0))
    assert {trial.mask for trial in trials} == set(space.all()) and len(trials) == space.size == 6
    with pytest.raises(ValueError, match="all 6 masks are tried; accepted: fewer trials"):
        draw_untried(space, set(space.all()), random.Random(0))
    last = random.Random(0).choice(sorted(space.all()))
    assert draw_untried(space, set(space.all()) - {last}, random.Random(1)) == last


def test_a_bayesian_search_tries_every_mask_once_too() -> None:
    pytest.importorskip("optuna")
    space = Space(6, 0.34)
    assert {trial.mask for trial in found(space, Plan(trials=6, every=1))} == set(space.all())


def test_enumeration_takes_every_mask_in_order() -> None:
    trials = found(SPACE, Plan(search="enumerate", trials=1, patience=1))
    assert [trial.mask for trial in trials] == list(SPACE.all())
    assert {trial.origin for trial in trials} == {"enumerated"}
    assert best(trials, "cost").mask == (1, 2, 3, 4)


def test_too_many_to_enumerate() -> None:
    with pytest.raises(ValueError, match=r"search=enumerate: \d+ masks; accepted: at most 1000000, else search=guided"):
        found(Space(40, 0.5), Plan(search="enumerate"))
    assert len(found(Space(40, 0.5), Plan(trials=5, every=0))) == 5  # drawn, not listed


def test_objectives_have_a_direction() -> None:
    trials = [Trial((1,), "even", {"cost": 1.0, "agreement": 0.9}), Trial((2,), "random", {"cost": 2, "agreement": 1})]
    assert best(trials, "cost").mask == (1,) and best(trials, "agreement").mask == (2,)
    assert best(trials[::-1] + trials, "cost") is trials[0]
    with pytest.raises(ValueError, match="objective=speed: accepted: agreement, cost"):
        found(SPACE, Plan(trials=2), objective="speed")


def test_bayesian_proposals_find_what_random_masks_do_not() -> None:
    """On both objectives, toward both directions: mean regret over seeds is below that of random search."""
    pytest.importorskip("optuna")
    for score, objective in ((pairwise_cost, "cost"), (additive, "agreement")):
        table = found(SPACE, Plan(search="enumerate"), score, objective)
        mean = {}
        for every in (0, 2):
            regrets = search_regrets(SPACE, Plan(trials=11, every=every), objective, table, range(2))
            mean[every] = sum(one.regret for one in regrets) / len(regrets)
        assert mean[2] < 0.5 * mean[0], (objective, mean)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert len(found(SPACE, Plan(trials=8, every=0))) == 8
    with pytest.raises(
        PairError, match=r"every: optuna is not installed; accepted: pip install viasd\[tune\], or every=0"
    ):
        found(SPACE, Plan(trials=8, every=2))


def test_patience() -> None:
    """The search stops when the last `patience` masks brought nothing better, and not before."""
    costs = iter([5.0, 4.0, 4.0, 4.5, 3.9, 3.9, 4.0, 7.0, 0.0])

    def score(_: Mask) -> Mapping[str, float]:
        return {"cost": next(costs)}

    assert len(found(SPACE, Plan(trials=9, every=0, patience=3), score)) == 8
    assert len(found(SPACE, Plan(trials=9, every=0, patience=20))) == 9


def test_seconds_are_the_callers() -> None:
    ticks = iter(range(100))
    log = Memory([])
    trials = run_search(SPACE, Plan(trials=3, every=0), "cost", additive, log, lambda: float(next(ticks)))
    assert [trial.seconds for trial in trials] == [1.0, 1.0, 1.0] and log.trials == trials


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("patience", [None, 3])
def test_a_search_goes_on_as_if_it_had_not_stopped(every: int, patience: int | None) -> None:
    if every:
        pytest.importorskip("optuna")
    plan = Plan(trials=8, every=every, patience=patience, seed=2)
    whole = found(SPACE, plan, pairwise_cost)
    for length in (1, 4, len(whole)):
        assert run_search(SPACE, plan, "cost", pairwise_cost, Memory(list(whole[:length]))) == whole


def test_a_tried_wish_is_avoided() -> None:
    """The point of the largest acquisition may round to a mask that is known."""
    pytest.importorskip("optuna")
    done = found(SPACE, Plan(trials=30, every=0))
    plan = Plan(every=1)
    for _ in range(5):
        mask, origin = propose(SPACE, plan, "cost", done)
        assert origin == "bayesian" and mask not in {trial.mask for trial in done}
        done.append(Trial(mask, origin, additive(mask)))
    assert best(done, "cost").mask == (1, 2, 3, 4)


# --- regret -------------------------------------------------------------------------------------------------------


def test_regret() -> None:
    table = [Trial((index,), "enumerated", {"cost": float(index), "agreement": index / 10}) for index in range(10)]
    assert (regret_of(0, table, "cost").regret, regret_of(0, table, "cost").better) == (0, 0)
    worse = regret_of(3, table, "cost")
    assert (worse.value, worse.regret, worse.better) == (3, 3, 0.3)
    other = regret_of(0.7, table, "agreement")
    assert other.regret == pytest.approx(0.2) and other.better == 0.2


def test_regret_of_a_search_needs_no_scoring() -> None:
    table = found(SPACE, Plan(search="enumerate"))
    whole = search_regrets(SPACE, Plan(trials=210, every=0), "cost", table, [0, 1])
    assert [one.regret for one in whole] == [0, 0]
    few = search_regrets(SPACE, Plan(trials=6, every=0), "cost", table, range(5))
    assert len({one.value for one in few}) > 1 and all(one.regret > 0 for one in few)
