"""Choosing a configuration: what is recommended at a bound, how sure, when nothing is, and the cost model by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from experiments.choosing.candidates import largest_shortfall, measure
from experiments.choosing.cost_model import fit, prices, solve, work_of
from experiments.choosing.knobs import is_lossless, read_knobs
from experiments.choosing.recommend import cells, choose, explain, probed_lengths, replicated
from experiments.choosing.variants import Rounds, lengths, thresholds, views
from experiments.errors import UserError
from experiments.probing.summary import MEAN
from experiments.tables import StoredRun
from tests.drawn_runs import ARMS, Made, make_row, make_runs, method

STEP = {"target": 0.008, "draft": 0.001, "slim -2 even": 0.004, "slim -3 even": 0.002}  # seconds of a call
SCALE, PER_ROUND = 1.25, 0.003
LENIENCE = "baselines.rules.lenience.Lenience"


def make_probe(pair: str = "made_up") -> dict[str, Any]:
    """What choosing reads of a probe.json: calls cost the same however many tokens are fed."""
    views = {"slim -2 even": ([0, 3], 0.6, 0.96), "slim -3 even": ([0], 0.75, 0.92)}
    return {
        "pair": pair,
        "method": "gate",
        "costs": {"readers": {name: {fed: {"median": seconds, "low": seconds, "high": seconds} for fed in ("1", "8")}
                              for name, seconds in STEP.items()}},
        "agreement": {
            "draft": {"view": None, "agreement": {MEAN: 0.9}},
            **{name: {"view": {"kept": kept, "skip_ratio": ratio, "mask": "even"}, "agreement": {MEAN: agreement}}
               for name, (kept, ratio, agreement) in views.items()},
        },
        "predicted": [
            {"arm": arm, "draft_length": 4, "tokens_per_second": {MEAN: 200.0}, "tokens_per_round": {MEAN: 4.0}}
            for arm in ("sd", "gate", "oracle")
        ],
    }  # fmt: skip


def priced(arms: Mapping[str, Made]) -> dict[str, Made]:
    """The arms as fast as the model says with SCALE and PER_ROUND."""
    found = {}
    for name, made in arms.items():
        per_round = max(1, made.length)
        calls = made.length * STEP["draft"] + (STEP["slim -2 even"] if made.tier == "s" else STEP["target"])
        if name == "draft_only":
            calls = made.length * STEP["draft"]
        found[name] = replace(made, milliseconds=1000 * (SCALE * calls + PER_ROUND) / per_round)
    return found


def judged_as_trees(runs: list[StoredRun]) -> list[StoredRun]:
    """The runs with the arm `tree` judged as EAGLE's trees are: without loss, and no plain sd."""
    for run in runs:
        run.identity["arms"]["tree"]["verifier"] = {"_target_": "viasd.tree_judging.TreeVerifier"}
    return runs


RUNS = make_runs()


# --- knobs --------------------------------------------------------------------------------------------------------


def test_knobs_are_read_from_the_method_as_it_was_run() -> None:
    gate = read_knobs(method("gate", ARMS["gate_0.8"]))
    assert str(gate) == "drafts of 4, skip ratio 0.6, DeferralGate, threshold 0.8"
    assert not gate.plain_sd and not gate.lossless and gate.kept == [0, 3]
    sd, vanilla = read_knobs(method("sd", ARMS["sd"])), read_knobs(method("vanilla", ARMS["vanilla"]))
    assert sd.plain_sd and sd.lossless and sd.draft_length == 4
    assert not vanilla.plain_sd and vanilla.lossless and str(vanilla) == "no knobs"
    exact = method("exact", ARMS["gate_0.8"])
    exact["verifier"]["mode"] = "exact"
    assert read_knobs(exact).lossless
    ratio = {"_target_": "viasd.routing.RatioGate", "reading": "swapped", "accept_ratio": None, "floor": 0.0}
    exact["verifier"]["gate"] = ratio
    assert read_knobs(exact).thresholds == {"reading": "swapped", "floor": 0.0}
    other = method("slim_only", ARMS["sd"])
    other["verifier"] = {**other["verifier"], "reader": "slim", "slim": {"_target_": "viasd.verification.SlimView"}}
    assert not read_knobs(other).lossless


@pytest.mark.parametrize(
    ("target", "settings", "lossless"),
    [
        ("baselines.controls.CoinMix", {"p": 1.0}, True),
        ("baselines.controls.CoinMix", {"p": 0.5}, False),
        ("viasd.verification.RuleVerifier", {"rule": {"_target_": LENIENCE, "l": 1.0}}, True),
        ("viasd.verification.RuleVerifier", {"rule": {"_target_": LENIENCE, "l": 0.5}}, False),
        ("viasd.tree_judging.TreeVerifier", {"of_other_days": 1}, False),  # nothing is claimed of what cannot be built
        ("gone.Verifier", {}, False),
    ],
)
def test_settings_decide_and_what_is_unknown_is_not_lossless(
    caplog: pytest.LogCaptureFixture, target: str, settings: dict[str, Any], lossless: bool
) -> None:
    assert is_lossless({"_target_": "viasd.method.Method", "verifier": {"_target_": target, **settings}}) is lossless
    assert not caplog.records


# --- what is recommended ------------------------------------------------------------------------------------------


def test_the_fastest_within_the_bound_is_recommended() -> None:
    choice = choose(RUNS, 0.012)
    assert choice.recommended is not None and choice.recommended.arm == "gate_0.8"
    assert choice.measured.baseline.arm == "sd" and choice.best.over_sd.value > 1.2
    told = explain(choice)
    assert told.startswith("Recommended at a shortfall of at most 0.012: gate_0.8 (drafts of 4, skip ratio 0.6")
    assert "Speed over sd, the fastest sd: 1." in told and "No probe was given" in told
    assert choose(RUNS, 0.06).best.arm == "gate_0.4"
    assert [row[0] for row in cells(choice)] == ["arm", "draft_only", "gate_0.4", "gate_0.8", "sd", "sd_2", "vanilla"]


def test_coins_are_what_methods_have_to_beat_and_no_choice() -> None:
    arms = {**ARMS, "coin_mix@0.5": Made(1.0, 0.0, 4)}
    assert "coin_mix@0.5" not in [one.arm for one in choose(make_runs(arms), 1.0).measured.candidates]


def test_nothing_is_recommended_over_sd() -> None:
    choice = choose(RUNS, 0.0)
    assert choice.recommended is None and choice.best is choice.measured.baseline
    assert explain(choice).startswith("Nothing is to be recommended over sd at a shortfall of at most 0: use sd (")
    assert "resamples" not in explain(choice)
    close = choose(make_runs({**ARMS, "gate_0.8": Made(9.4, 0.004, 4, "s", 0.6, {"threshold": 0.8})}), 0.012)
    assert close.recommended is None and close.best.arm == "gate_0.8"
    assert "so undecided; this many prompts would find 1." in explain(close)


def test_a_lossy_arm_without_a_loss_is_not_taken_for_lossless() -> None:
    arms = {**ARMS, "gate_0.8": Made(7.0, 0.0, 4, "s", 0.6, {"threshold": 0.8})}
    measured = measure(make_runs(arms, noise=False))
    gate, sd = (next(one for one in measured.candidates if one.arm == name) for name in ("gate_0.8", "sd"))
    assert gate.shortfall.value == sd.shortfall.value == 0 and sd.worst == 0
    assert gate.worst == pytest.approx(3 / (2 * 12))  # of prompts, not of their 40 tokens: losses come together
    assert not gate.fits(0.12) and gate.fits(0.13)
    first, second = make_runs(arms, noise=False)
    second.rows[:] = [row for row in second.rows if row.index < 6]
    place = measure([first, second]).place
    assert largest_shortfall(place, "gate_0.8", gate.knobs) == pytest.approx(3 / 6 / 2)  # all of it on the shorter task
    one = make_runs(arms, prompts=2, noise=False)
    assert next(arm.worst for arm in measure(one).candidates if arm.arm == "gate_0.8") == 0.75


def test_one_loss_says_no_more_than_none() -> None:
    """The interval of an arm with a single loss is narrow, and would let it pass where an arm without any may not."""
    arms = {**ARMS, "gate_0.8": Made(7.0, 0.0, 4, "s", 0.6, {"threshold": 0.8})}
    worst, high = [], []
    for lossy in (0, 1, 2, 3):
        runs = make_runs(arms, noise=False)
        for row in [row for row in runs[0].rows if row.arm == "gate_0.8"][:lossy]:
            row.token_loss[0] = 1.0
        gate = next(one for one in measure(runs).candidates if one.arm == "gate_0.8")
        estimate = gate.shortfall.estimate()
        worst.append(gate.worst)
        high.append(None if estimate is None else estimate.high)
    assert worst[:3] == [3 / 24] * 3 and high[1] is not None and high[1] < 0.01
    assert worst[3] == high[3] and worst[3] < 0.01


def test_the_losses_of_an_arm_are_no_reason_against_another() -> None:
    """An arm that showed no loss but does not fit is never the fastest within the bound, in no resample."""
    arms = {**ARMS, "tree": Made(8.0, length=4), "gate_0.8": Made(7.0, 0.0, 4, "s", 0.6, {"threshold": 0.8})}
    choice = choose(judged_as_trees(make_runs(arms)), 0.0)
    assert choice.recommended is not None and choice.recommended.arm == "tree"
    assert choice.sure == 1 and choice.picked == 1


@pytest.mark.parametrize("prompts", [1, 4, 9])
def test_nothing_is_recommended_by_few_prompts(prompts: int) -> None:
    arms = {**ARMS, "tree": Made(6.0, length=4)}
    choice = choose(judged_as_trees(make_runs(arms, prompts=prompts)), 0.0)
    assert choice.few and choice.recommended is None and choice.best.arm == "tree"
    assert f"Too few prompts to recommend anything by: {prompts} prompt" in explain(choice)
    assert "resamples" not in explain(choice) and "would find" not in explain(choice)
    enough = choose(judged_as_trees(make_runs(arms, prompts=10)), 0.0)
    assert not enough.few and enough.recommended is not None and "Too few" not in explain(enough)


def test_one_prompt_is_not_enough() -> None:
    choice = choose(make_runs(prompts=1), 0.05)
    assert choice.recommended is None and choice.sure is None and choice.best.arm == "sd"


def test_how_sure_is_counted_in_resamples() -> None:
    measured = measure(RUNS)
    gate, sd = (next(one for one in measured.candidates if one.arm == name) for name in ("gate_0.8", "sd"))
    sure, picked = replicated(measured, gate, 0.012)
    assert sure is not None and picked is not None and 0.5 < sure <= 1 and picked <= sure
    speeds, short = gate.over_sd.replicates, gate.shortfall.replicates
    assert sure == pytest.approx(((speeds > 1) & (short <= 0.012)).mean())
    assert replicated(measured, sd, 0.0)[0] == 0.0  # never faster than itself
    by_task = choose(RUNS, 0.012, task="qa")
    assert len(by_task.measured.place) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": -0.1}, "bound=-0.1: accepted: a share"),
        ({"bound": 0.1, "task": "qq"}, "task=qq: accepted: qa, coding"),
        ({"bound": 0.1, "probe": make_probe("other")}, "probe of pair other: the runs are of pair made_up"),
    ],
)
def test_mistakes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(RUNS, **arguments)


def test_runs_that_a_choice_cannot_be_made_of() -> None:
    for missing in ("vanilla", "sd"):
        arms = {name: made for name, made in ARMS.items() if name not in (missing, f"{missing}_2")}
        with pytest.raises(UserError, match="accepted: timed arms with vanilla and plain sd"):
            choose(make_runs(arms), 0.1)


# --- the cost model -----------------------------------------------------------------------------------------------


def test_the_fit_finds_scale_and_time_per_round() -> None:
    measured, probe = measure(make_runs(priced(ARMS), noise=False)), make_probe()
    model = fit(measured, probe)
    assert model.scale == pytest.approx(SCALE) and model.per_round == pytest.approx(PER_ROUND)
    assert set(model.errors) == {"vanilla", "sd", "sd_2", "gate_0.8", "gate_0.4", "draft_only"}
    assert model.typical_error < 1e-9
    knobs = next(one.knobs for one in measured.candidates if one.arm == "gate_0.8")
    work = work_of(measured, "gate_0.8", prices(probe, model.curves, knobs))
    assert work is not None and work[:2] == pytest.approx((0.008 / 4, 1 / 4))


def test_neither_part_of_the_fit_is_below_zero() -> None:
    assert solve([(1.0, 1.0, 3.0), (2.0, 1.0, 5.0), (3.0, 2.0, 8.0)]) == pytest.approx((2.0, 1.0))
    scale, per_round = solve([(1.0, 9.0, 2.0), (2.0, 5.0, 4.0), (3.0, 1.0, 6.0)])
    assert scale == pytest.approx(2.0) and per_round == pytest.approx(0.0, abs=1e-12)
    assert solve([(1.0, 4.0, 1.0), (2.0, 4.0, 4.0), (4.0, 4.0, 12.0)])[1] == 0.0


def test_arms_whose_calls_have_no_cost_are_left_out() -> None:
    probe = make_probe()
    del probe["agreement"]["slim -2 even"]
    model = fit(measure(make_runs(priced(ARMS), noise=False)), probe)
    assert "gate_0.8" not in model.errors
    only_sd = make_runs({name: ARMS[name] for name in ("vanilla", "sd")}, noise=False)
    with pytest.raises(UserError, match="has costs for the calls of 2 arms; accepted: 3 arms"):
        fit(measure(only_sd), probe)


# --- variants -----------------------------------------------------------------------------------------------------


def test_rounds_of_other_lengths_by_hand() -> None:
    rounds = Rounds(acceptance=[0.5, 0.8], extra=1.0, escalated=0.36, target_fed=3.0)
    assert rounds.tokens(1) == pytest.approx(1.5) and rounds.tokens(2) == pytest.approx(1.9)
    assert rounds.tokens(3) == pytest.approx(1.9 + 0.5 * 0.8 * 0.8)  # the last position's acceptance goes on
    assert rounds.reached(1) == 1 and rounds.reached(3) == pytest.approx(1 + 0.5 + 0.4)
    assert rounds.escalates(2, own=2) == pytest.approx(0.36)
    assert rounds.escalates(1, own=2) == pytest.approx(1 - 0.64 ** (1 / 1.5))
    assert replace(rounds, escalated=1.0).escalates(1, own=2) == 1


def test_variants_are_relative_to_what_was_measured() -> None:
    measured, probe = measure(make_runs(priced(ARMS), noise=False)), make_probe()
    model = fit(measured, probe)
    sd = next(one for one in measured.candidates if one.arm == "sd")
    found = {one.changes["stop.length"]: one for one in lengths(sd, measured, probe, model)}
    assert 4.0 not in found and len(found) == 15
    # Three of four are kept and one token is written beside: of two drafted both are kept.
    own, two = ((SCALE * (drafts * 0.001 + 0.008) + PER_ROUND) / tokens for drafts, tokens in ((4, 4), (2, 3)))
    assert found[2.0].over_sd == pytest.approx(sd.over_sd.value * own / two)
    gate = next(one for one in measured.candidates if one.arm == "gate_0.8")
    (view,) = views(gate, measured, probe, model)
    assert view.changes == {"verifier.slim.skip_ratio": 0.75}
    assert view.worst == pytest.approx(2 * gate.worst)  # it disagrees twice as often
    before, after = (SCALE * (0.004 + slim) + PER_ROUND for slim in (0.004, 0.002))
    assert view.over_sd == pytest.approx(gate.over_sd.value * before / after)
    assert views(sd, measured, probe, model) == []


def test_a_threshold_between_two_that_were_measured() -> None:
    measured = measure(make_runs(noise=False))
    (variant,) = thresholds(measured)
    assert variant.changes == {"verifier.gate.threshold": pytest.approx(0.6)}
    assert variant.over_sd == pytest.approx(10 / 6)  # 7 and 5 ms per token
    gates = [one for one in measured.candidates if one.knobs.gate]
    assert variant.worst == pytest.approx(sum(one.worst for one in gates) / 2)


def test_what_to_measure_next_is_within_the_bound() -> None:
    choice = choose(make_runs(priced(ARMS)), 0.06, make_probe())
    assert choice.model is not None and choice.variants
    assert all(one.worst <= 0.06 and one.over_sd > choice.best.over_sd.value for one in choice.variants)
    keys = [(one.arm, *one.changes) for one in choice.variants]
    assert len(keys) == len(set(keys))  # of each key the best value
    told = explain(choice)
    assert "Cost model: " in told and "to be measured before they are used:" in told and "stop.length=" in told
    table = probed_lengths(make_probe(), choice.model)
    assert [row[0] for row in table] == ["arm", "sd", "gate"]  # an oracle is no method
    assert float(table[1][2]) == pytest.approx(1 / choice.model.seconds(1 / 200, 1 / 4), abs=1)


def test_made_up_rows_are_whole() -> None:
    for name, made in ARMS.items():
        row = make_row(name, made, 0)
        assert sum(row.sources.values()) == row.new_tokens and sum(row.tiers.values()) == row.judged
