"""Metrics follow from rows as their definitions say, on examples small enough to check by hand."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from experiments import metrics
from experiments.metrics import METRICS, Summary, find, in_order, speedup_over, summarize
from experiments.records import Row

ARMS = ["vanilla", "sd", "via_sd"]


def number(summary: Summary, arm: str, name: str) -> float:
    entry = summary[arm][name]
    return entry["value"] if isinstance(entry, dict) else entry


def by_hand() -> list[Row]:
    """Two examples, three arms; the second example of vanilla was timed twice."""
    vanilla: dict[str, Any] = {"arm": "vanilla", "first_token_seconds": [0.3], "sources": {"target": 1}}
    sd: dict[str, Any] = {"arm": "sd", "first_token_seconds": [0.2], "sources": {"target": 1}}
    via: dict[str, Any] = {"arm": "via_sd", "first_token_seconds": [0.2]}
    return [
        Row("a", index=0, new_tokens=10, decode_seconds=[1.0], prefill_seconds=[0.5], rounds=10, quality=1.0,
            calls={"target": 10}, fed={"target": 10}, token_loss=[0.0] * 10, log_prob_gap=[0.0] * 10,
            finish_reason="eos", reader_seconds={"target": 0.9}, profiled_seconds=1.0, **vanilla),
        Row("b", index=1, new_tokens=30, decode_seconds=[2.0, 4.0], prefill_seconds=[0.5, 0.5], rounds=30, quality=1.0,
            calls={"target": 30}, fed={"target": 30}, token_loss=[1.0] + [0.0] * 29, log_prob_gap=[0.3] + [0.0] * 29,
            first_divergence=0, tie_flips=1, finish_reason="length", reader_seconds={"target": 2.7},
            profiled_seconds=3.0, **vanilla),
        Row("a", index=0, new_tokens=10, decode_seconds=[0.5], prefill_seconds=[0.5], rounds=3, quality=1.0,
            drafted=9, judged=8, rejected=1, discarded=1, target_rejected=1, tiers={"target": 8},
            drafted_at=[3, 3, 3], judged_at=[3, 3, 2], accepted_at=[3, 2, 2],
            calls={"draft": 9, "target": 3}, fed={"draft": 9, "target": 12}, token_loss=[0.0] * 10,
            log_prob_gap=[0.0] * 10, finish_reason="eos", reader_seconds={"draft": 0.1, "target": 0.3},
            profiled_seconds=0.5, **sd),
        Row("b", index=1, new_tokens=20, decode_seconds=[1.0], prefill_seconds=[0.5], rounds=7, quality=0.0,
            drafted=21, judged=16, rejected=3, discarded=4, cut=1, target_rejected=3, tiers={"target": 16},
            drafted_at=[7, 7, 7], judged_at=[7, 5, 4], accepted_at=[6, 4, 3],
            calls={"draft": 21, "target": 6}, fed={"draft": 21, "target": 24}, token_loss=[0.0] * 20,
            log_prob_gap=[0.0] * 20, finish_reason="eos", reader_seconds={"draft": 0.2, "target": 0.6},
            profiled_seconds=1.0, **sd),
        Row("a", index=0, new_tokens=10, decode_seconds=[0.25], prefill_seconds=[0.75], rounds=2, quality=1.0,
            drafted=10, judged=9, rejected=0, cut=1, tiers={"draft": 6, "slim": 3}, sources={"draft": 6, "slim": 4},
            regions={"keep": 6, "rewrite": 3, "escalate": 0}, drafted_at=[2] * 5, judged_at=[2, 2, 2, 2, 1],
            accepted_at=[2, 2, 2, 2, 1], calls={"draft": 10, "slim": 2, "target": 0},
            fed={"draft": 10, "slim": 12, "target": 0}, token_loss=[0.0] * 8 + [1.0] * 2,
            log_prob_gap=[0.0] * 8 + [1.0, 3.0], first_divergence=8, finish_reason="eos",
            reader_seconds={"draft": 0.1, "slim": 0.1}, profiled_seconds=0.25, **via),
        Row("b", index=1, new_tokens=30, decode_seconds=[0.75], prefill_seconds=[0.75], rounds=6, quality=0.5,
            drafted=30, judged=27, rejected=2, discarded=3, target_rejected=1,
            tiers={"draft": 20, "slim": 5, "target": 2}, sources={"draft": 20, "slim": 6, "target": 4},
            regions={"keep": 20, "rewrite": 5, "escalate": 2}, escalations={"gate": 2}, drafted_at=[6] * 5,
            judged_at=[6, 6, 6, 5, 4], accepted_at=[6, 6, 5, 4, 4], calls={"draft": 30, "slim": 6, "target": 2},
            fed={"draft": 30, "slim": 36, "target": 34}, token_loss=[1.0] + [0.0] * 29,
            log_prob_gap=[2.0] + [0.0] * 29, first_divergence=0, tie_flips=0, finish_reason="eos", audits=20,
            audit_agreement=19.0, reader_seconds={"draft": 0.3, "slim": 0.2, "target": 0.1}, profiled_seconds=0.75,
            **via),
    ]  # fmt: skip


EXPECTED = {
    "vanilla": {
        "tokens_per_second": 40 / 4.0, "end_to_end_tokens_per_second": 40 / 5.0, "time_to_first_token": 0.3,
        "speedup": 1.0, "speedup_over.sd": 0.5, "request_speedup": 1.0, "length_ratio": 1.0, "fidelity": 39 / 40,
        "shortfall": 0.0, "sequence_match": 0.5, "tie_flips": 1, "log_prob_gap": 0.3 / 40, "quality": 1.0,
        "block_efficiency": 1.0, "calls_per_token.target": 1.0, "source_fraction.target": 1.0,
        "source_fraction.draft": 0.0, "time_share.target": 0.9, "time_share.other": 0.1, "new_tokens": 20.0,
        "length_limited": 0.5, "n_timed": 2, "n_quality": 2, "failed": 0, "quality_delta": 0.0,
    },
    "sd": {
        "tokens_per_second": 20.0, "speedup": 2.0, "speedup_over.sd": 1.0, "request_speedup": 4 / 1.5,
        "length_ratio": 0.75, "fidelity": 1.0, "shortfall": -1 / 40, "quality": 0.5, "quality_delta": -0.5,
        "rejection_rate": 4 / 24, "rejection_rate_drafted": 1 - 20 / 29, "target_rejection_rate": 4 / 24,
        "tier_fraction.draft": 0.0, "tier_fraction.slim": 0.0, "tier_fraction.target": 1.0, "block_efficiency": 3.0,
        "acceptance.0.conditional": 9 / 10, "acceptance.1.conditional": 6 / 8, "acceptance.2.conditional": 5 / 6,
        "acceptance.0.unconditional": 9 / 10, "acceptance.2.unconditional": 5 / 10, "calls_per_token.draft": 1.0,
        "calls_per_token.target": 0.3, "fed_per_token.target": 1.2, "time_share.draft": 0.2, "time_share.other": 0.2,
        "sequence_match": 1.0, "length_limited": 0.0,
    },
    "via_sd": {
        "tokens_per_second": 40.0, "end_to_end_tokens_per_second": 16.0, "speedup": 4.0, "speedup_over.sd": 2.0,
        "fidelity": 37 / 40, "shortfall": 2 / 40, "log_prob_gap": 6 / 40, "log_prob_gap_p99": 2.61,
        "sequence_match": 0.0, "quality": 0.75, "quality_delta": -0.25, "audit_agreement": 0.95,
        "rejection_rate": 2 / 36, "rejection_rate_drafted": 1 - 34 / 39, "target_rejection_rate": 1 / 36,
        "tier_fraction.draft": 26 / 36, "tier_fraction.slim": 8 / 36, "tier_fraction.target": 2 / 36,
        "source_fraction.draft": 26 / 40, "source_fraction.slim": 10 / 40, "source_fraction.target": 4 / 40,
        "gate_fraction.keep": 26 / 36, "gate_fraction.rewrite": 8 / 36, "gate_fraction.escalate": 2 / 36,
        "escalation_rate.gate": 2 / 8, "escalation_rate.forced": 0.0, "calls_per_token.target": 2 / 40,
        "fed_per_token.slim": 48 / 40, "time_share.draft": 0.4, "time_share.slim": 0.3, "time_share.target": 0.1,
        "time_share.other": 0.2, "acceptance.4.conditional": 1.0, "acceptance.4.unconditional": 5 / 8,
    },
}  # fmt: skip
CASES = [(arm, name, value) for arm, expected in EXPECTED.items() for name, value in expected.items()]


@pytest.fixture(scope="module")
def hand() -> Summary:
    return summarize(by_hand(), ARMS, temperature=0.0)


@pytest.mark.parametrize(("arm", "name", "value"), CASES)
def test_by_hand(hand: Summary, arm: str, name: str, value: float) -> None:
    assert number(hand, arm, name) == pytest.approx(value, abs=1e-12)


def test_metrics_that_do_not_apply_are_absent(hand: Summary) -> None:
    judged = ("rejection", "target_rejection", "tier_", "acceptance", "gate_", "escalation")
    assert not [name for name in hand["vanilla"] if name.startswith(judged)]
    assert not [name for name in hand["sd"] if name.startswith(("gate_", "escalation", "audit"))]
    assert "calls_per_token.draft" not in hand["vanilla"] and "peak_memory" not in hand["vanilla"]
    alone = summarize(by_hand(), ["via_sd"], temperature=0.0)["via_sd"]
    assert not alone.keys() & {"speedup", "speedup_over.sd", "request_speedup", "length_ratio", "shortfall"}


def test_intervals_stand_beside_rates_only(hand: Summary) -> None:
    assert not isinstance(hand["sd"]["n_timed"], dict) and not isinstance(hand["sd"]["tie_flips"], dict)
    for name in ("speedup", "fidelity", "quality", "rejection_rate", "calls_per_token.target"):
        entry = hand["via_sd"][name]
        assert isinstance(entry, dict) and entry["low"] <= entry["value"] <= entry["high"]
    one = summarize([row for row in by_hand() if row.example_id == "a"], ARMS, temperature=0.0)
    assert not [entry for numbers in one.values() for entry in numbers.values() if isinstance(entry, dict)]


def test_above_temperature_zero_losses_are_overshoots() -> None:
    rows = [
        Row("a", "vanilla", 0, new_tokens=2, token_loss=[0.0, 0.0]),
        Row("a", "sd", 0, new_tokens=2, token_loss=[0.0, 0.5]),
    ]
    summary = summarize(rows, ["vanilla", "sd"], temperature=1.0)
    assert number(summary, "sd", "fidelity") == 0.75
    assert number(summary, "sd", "overshoot_p99") == pytest.approx(0.495)
    assert not summary["sd"].keys() & {"sequence_match", "tie_flips", "log_prob_gap"}
    assert "overshoot_p99" not in summarize(rows, ["sd"], temperature=0.0)["sd"]


def test_unread_drafts() -> None:
    """Nothing judged: no rejection; a coin between judged and unread rounds counts the judged ones."""
    only = Row("a", "draft_only", 0, new_tokens=9, rounds=2, drafted=10, unjudged=9, cut=1, sources={"draft": 9},
               drafted_at=[2] * 5, judged_at=[0] * 5, accepted_at=[0] * 5)  # fmt: skip
    coin = Row("a", "coin_mix@0.8", 0, new_tokens=9, rounds=2, drafted=10, judged=4, rejected=1, discarded=1,
               unjudged=5, tiers={"target": 4}, drafted_at=[2] * 5, judged_at=[1] * 4 + [0],
               accepted_at=[1] * 3 + [0] * 2)  # fmt: skip
    summary = summarize([only, coin], ["draft_only", "coin_mix@0.8"], temperature=0.0)
    assert not [name for name in summary["draft_only"] if name.startswith(("rejection", "tier", "acceptance"))]
    assert number(summary, "coin_mix@0.8", "rejection_rate") == 0.25
    assert number(summary, "coin_mix@0.8", "rejection_rate_drafted") == 1 - 3 / 5
    assert number(summary, "coin_mix@0.8", "acceptance.3.conditional") == 0.0
    assert not [name for name in summary["coin_mix@0.8"] if name.endswith("unconditional")]


def random_rows(examples: int = 12, timed: int = 6, seed: int = 0, arms: Sequence[str] = ARMS) -> list[Row]:
    draw, rows = random.Random(seed), []
    for index in range(examples):
        for arm in arms:
            tiers = {tier: draw.randint(0, 9) for tier in ("draft", "slim", "target")}
            count = draw.randint(5, 20)
            row = Row(f"e{index}", arm, index, new_tokens=count, rounds=4, quality=draw.random(), drafted=40,
                      judged=sum(tiers.values()), rejected=draw.randint(0, 3), tiers=tiers, sources={"draft": count},
                      regions={"keep": 3, "rewrite": 1, "escalate": 2}, escalations={"gate": 1},
                      token_loss=[float(draw.random() < 0.2) for _ in range(count)])  # fmt: skip
            if index < timed:
                row.decode_seconds = [draw.uniform(1, 2), draw.uniform(1, 2)]
                row.prefill_seconds = row.first_token_seconds = [0.1, 0.1]
                row.profiled_seconds, row.reader_seconds = 2.0, {"target": draw.random(), "slim": draw.random()}
            rows.append(row)
    return rows


def test_shares_sum_to_one() -> None:
    summary = summarize(random_rows(), ARMS, temperature=0.0)
    for arm in ARMS:
        for family in ("tier_fraction", "source_fraction", "gate_fraction", "time_share"):
            members = [name for name in summary[arm] if name.startswith(family)]
            assert members and sum(number(summary, arm, name) for name in members) == pytest.approx(1, abs=1e-12)
        assert number(summary, arm, "speedup") == pytest.approx(
            number(summary, arm, "request_speedup") * number(summary, arm, "length_ratio")
        )


def test_a_failed_example_leaves_every_arm() -> None:
    rows = random_rows()
    removed = summarize([row for row in rows if row.example_id != "e2"], ARMS, temperature=0.0)
    failed = [
        Row("e2", "sd", 2, error="boom") if (row.example_id, row.arm) == ("e2", "sd") else row for row in random_rows()
    ]
    summary = summarize(failed, ARMS, temperature=0.0)
    assert [summary[arm].pop("failed") for arm in ARMS] == [0, 1, 0]
    assert [removed[arm].pop("failed") for arm in ARMS] == [0, 0, 0]
    assert summary == removed
    assert summary["vanilla"]["n_timed"] == 5 and summary["vanilla"]["n_quality"] == 11
    missing = [row for row in rows if (row.example_id, row.arm) != ("e2", "sd")]
    assert summarize(missing, ARMS, temperature=0.0)["vanilla"]["n_timed"] == 5


def test_an_arm_that_always_fails_takes_nothing_from_the_others() -> None:
    rows = [Row(row.example_id, "sd", row.index, error="x") if row.arm == "sd" else row for row in random_rows()]
    summary = summarize(rows, [*ARMS, "absent"], temperature=0.0)
    assert summary["sd"] == {"n_timed": 0, "n_quality": 0, "failed": 12}
    assert summary["absent"] == {"n_timed": 0, "n_quality": 0, "failed": 0}
    assert summary["via_sd"]["n_timed"] == 6 and "speedup_over.sd" not in summary["via_sd"]
    without = summarize(rows, ["vanilla", "via_sd"], temperature=0.0)
    assert without == {arm: summary[arm] for arm in ("vanilla", "via_sd")}


def test_order_and_earlier_lines_do_not_matter() -> None:
    rows = random_rows()
    shuffled = random.Random(1).sample(rows, len(rows))
    stale = [Row("e0", "sd", 0, error="first try"), Row("e0", "sd", 0, new_tokens=99)]
    assert summarize(rows, ARMS, temperature=0.0) == summarize([*stale, *shuffled], ARMS, temperature=0.0)


def test_any_two_arms() -> None:
    found = speedup_over(by_hand(), "via_sd", "sd")
    assert found is not None and found.value == pytest.approx(2)
    whole = summarize(by_hand(), ARMS, temperature=0.0)["via_sd"]["speedup_over.sd"]
    assert found.to_json() == whole
    assert speedup_over(by_hand(), "via_sd", "absent") is None


def test_static_numbers() -> None:
    static = {"sd": {"peak_memory": 44e6, "memory_ratio": 1.1}}
    summary = summarize(by_hand(), ARMS, temperature=0.0, static=static)
    assert summary["sd"]["peak_memory"] == 44e6 and "peak_memory" not in summary["vanilla"]
    with pytest.raises(ValueError, match="unknown metric 'speedupp'; accepted: tokens_per_second, speedup"):
        summarize(by_hand(), ARMS, temperature=0.0, static={"sd": {"speedupp": 1.0}})


def test_registry_knows_every_name_once(hand: Summary) -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for numbers in hand.values():
        assert list(numbers) == in_order(numbers)
        for name in numbers:
            assert [metric for metric in METRICS if metric.key(name) is not None] == [find(name)]
    assert all(metric.description and metric.unit and metric.digits >= 0 for metric in METRICS)
    assert [metric.name for metric in METRICS if metric.headline][:2] == ["tokens_per_second", "speedup"]


def test_the_examples_a_metric_follows_from() -> None:
    """Timed ones if it changes with them; none if it changes with neither them nor the judged ones."""
    arms = [*ARMS, "draft_only", "coin_mix@0.8"]
    static = {"via_sd": {"peak_memory": 44e6, "memory_ratio": 1.1}}

    def compared(seed: int, timed: int) -> dict[str, metrics.Arm]:
        rows = random_rows(12, timed, seed, arms)
        draw = random.Random(seed)
        for row in rows:
            if row.arm in ("sd", "draft_only"):  # the ends of the coin's curve
                row.token_loss = [float(row.arm == "draft_only")] * row.new_tokens
            if row.decode_seconds:
                row.ideal_seconds, row.predicted_seconds = draw.random(), draw.random()
                row.parallel_seconds, row.joules = draw.random(), [draw.random()]
                row.device_seconds = {"target": draw.random() / 10}
        return metrics.compare(rows, arms, static=static)

    arm, other = compared(0, 6)["via_sd"], compared(1, 5)["via_sd"]
    told, by_timed, by_judged = (
        {name: metrics._plain(number) for name, number in metrics.measured(one).items()}
        for one in (arm, replace(arm, timed=other.timed), replace(arm, detail=other.detail))
    )
    timed = {name for name in told if by_timed[name] != told[name]}
    assert timed == {name for name in told if find(name).examples == "timed"} and "energy_ratio" in timed
    assert {
        "speedup_over_coin",
        "speedup_over.sd",
        "device_share.target",
        "modelled_parallel_tokens_per_second",
    } <= timed
    none = {name for name in told if find(name).examples == "none"}
    assert none == set(static["via_sd"]) and all(by_judged[name] == told[name] for name in none)
    assert {"quality_delta", "fidelity", "rejection_rate"} <= {name for name in told if by_judged[name] != told[name]}


def test_members_of_a_family_are_ordered_by_position_and_tier() -> None:
    names = ["acceptance.10.conditional", "acceptance.2.conditional", "time_share.other", "time_share.draft", "speedup"]
    assert in_order(names) == [
        "speedup", "acceptance.2.conditional", "acceptance.10.conditional", "time_share.draft", "time_share.other",
    ]  # fmt: skip


def test_a_summary_is_plain_json(hand: Summary) -> None:
    assert json.loads(json.dumps(hand, allow_nan=False)) == hand
    assert summarize([], [], temperature=0.0) == {}


def test_speed_and_fidelity_are_resampled_independently() -> None:
    arm = metrics.compare(random_rows(examples=6, timed=6), ARMS)["sd"]
    assert (arm.timed.resamples.weights != arm.detail.resamples.weights).any()


def test_speedup_over_coin_by_hand() -> None:
    """The coin's line from sd (fidelity 1, 10 ms a token) to coin_mix@0.5 (0.9, 6 ms): at fidelity 0.95, 8 ms."""

    def row(arm: str, milliseconds: float, wrong: int) -> Row:
        seconds = 100 * milliseconds / 1000
        losses = [1.0] * wrong + [0.0] * (100 - wrong)
        return Row("a", arm, 0, new_tokens=100, decode_seconds=[seconds], token_loss=losses)

    rows = [row("vanilla", 20, 0), row("sd", 10, 0), row("coin_mix@0.5", 6, 10), row("via_sd", 5, 5), row("odd", 1, 50)]
    summary = summarize(rows, [one.arm for one in rows], temperature=0)
    assert summary["via_sd"]["speedup_over_coin"] == pytest.approx(8 / 5)
    assert all("speedup_over_coin" not in summary[arm] for arm in ("vanilla", "sd", "coin_mix@0.5", "odd"))


def test_device_share_is_of_the_rows_that_have_an_accelerators_clock() -> None:
    rows = by_hand()
    for row in rows:
        if row.arm == "sd":
            row.reader_seconds, row.device_seconds = {"draft": 0.4, "target": 0.2}, {"draft": 0.1, "target": 0.1}
    summary = summarize(rows, ARMS, temperature=0.0)
    assert number(summary, "sd", "device_share.draft") == pytest.approx(0.25)
    assert number(summary, "sd", "device_share.target") == pytest.approx(0.5)
    assert not any(name.startswith("device_share") for name in summary["vanilla"])


def test_predicted_speed_is_of_totals_and_resampled_with_the_measured_one() -> None:
    def rows(*predicted: float | None) -> list[Row]:
        counts = {"new_tokens": 40, "decode_seconds": [0.5, 0.3]}  # repeats are averaged: 0.4
        return [Row(f"{i}", "sd", i, predicted_seconds=one, **counts) for i, one in enumerate(predicted)]  # type: ignore[arg-type]

    summary = summarize(rows(0.3, 0.5), ["sd"], temperature=0.0)
    assert number(summary, "sd", "predicted_tokens_per_second") == pytest.approx(80 / 0.8)
    assert number(summary, "sd", "speed_over_predicted") == pytest.approx(0.8 / 0.8)
    entry = summarize(rows(*[0.32] * 5), ["sd"], temperature=0.0)["sd"]["speed_over_predicted"]
    assert entry == pytest.approx({"value": 0.8, "low": 0.8, "high": 0.8})  # a ratio of each resample's own totals
    for older in (rows(None, None), rows(0.3, None)):  # stored before there were predictions
        assert not [name for name in summarize(older, ["sd"], temperature=0.0)["sd"] if "predicted" in name]
