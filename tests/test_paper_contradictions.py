"""What the papers' numbers say against each other: each finding of the ledger, from the values and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.paper import contradictions
from experiments.paper.contradictions import (
    CONTRADICTIONS,
    OURS,
    SD,
    SETTINGS,
    above_ceiling,
    by_cell,
    ceiling,
    counted_with_discarded,
    drops,
    gains_over_best,
    ideal_speed,
    printed_rejection,
    random_masks,
    rewrite_region,
    rule_rejection,
    twice_printed,
)
from viasd.routing import READINGS


def test_every_finding_has_its_test() -> None:
    for one in CONTRADICTIONS:
        assert one.test.partition("::")[2] in globals(), one.test
        assert one.find() and "\n" not in one.find() and "|" not in one.find()


def test_tolerance_raises_rejection() -> None:
    """Eq. 1 rises with alpha to 1, the rule it is said to describe falls; they agree at alpha 0 alone."""
    for seed in range(20):
        target, draft = np.random.default_rng(seed).dirichlet(np.ones(8), size=2)
        alphas = [0.0, 0.2, 0.5, 0.9]
        printed = [printed_rejection(target, draft, alpha) for alpha in alphas]
        ruled = [rule_rejection(target, draft, alpha) for alpha in alphas]
        assert printed[0] == pytest.approx(ruled[0]) == pytest.approx(np.abs(target - draft).sum() / 2)
        assert printed == sorted(printed) and ruled == sorted(ruled, reverse=True)
        assert all(one >= alpha - 1e-9 for one, alpha in zip(printed, alphas, strict=True))


def test_rewrite_region_is_empty() -> None:
    """tau = 1 - alpha turns alpha1 > alpha2 into tau1 < tau2: what is not kept is escalated. So reads `literal`."""
    for alpha1, alpha2 in SETTINGS.values():
        keep, escalate = rewrite_region(alpha1, alpha2)
        assert alpha1 > alpha2 and keep < escalate
    accept, escalate = READINGS["literal"]
    assert accept == escalate == max(rewrite_region(*SETTINGS["default"]))


def test_rejection_counts_differ() -> None:
    rng = np.random.default_rng(0)
    rejected = rng.random((200_000, 5)) < 0.10
    accepted = np.cumprod(~rejected, axis=1).sum()
    assert counted_with_discarded(0.10) == pytest.approx(1 - accepted / rejected.size, abs=0.003)
    assert counted_with_discarded(0.10) == pytest.approx(0.26, abs=0.005)


def test_tables_3_and_9_disagree() -> None:
    rejection = twice_printed("rejection_rate")
    assert len(rejection) == 8 and all(one != other for one, other in rejection)
    assert sum(one != other for one, other in twice_printed("speedup")) == 1
    assert sum(one != other for one, other in twice_printed("bleu")) == 1


def test_random_mask_has_two_speeds() -> None:
    five, six = random_masks()
    assert (five.pair, five.task) == (six.pair, six.task) and (five.value, six.value) == (1.62, 1.47)
    base = by_cell("table5_intermediate_source", SD, "speedup")["Gemma2 2B->27B", "WebQuestions", ""]
    assert six.value < base < five.value


def test_largest_drop_is_below_the_abstract() -> None:
    found = drops()
    assert len(found) == 30 and max(found) == pytest.approx(0.15) and sum(drop < 0.10 - 1e-9 for drop in found) > 0


def test_speed_over_the_best() -> None:
    found = gains_over_best()
    assert len(found) == 30 and (min(found), max(found)) == pytest.approx((1.07, 1.51), abs=0.01)
    speeds = list(by_cell("table8_qa_all", OURS, "speedup").values())
    assert sum(speed < 2.5 for speed in speeds) > len(speeds) / 2, "most cells are below the text's 2.5 to 3"


def test_one_gpu_for_every_target() -> None:
    minutes = by_cell("table4_dimr_cost", "DIMR search", "wall_clock_min")
    hours = by_cell("table4_dimr_cost", "DIMR search", "gpu_hours")
    assert len(minutes) == 6
    assert all(round(minutes[key] / 60, 2) == pytest.approx(hours[key], abs=0.005) for key in hours)
    assert 2 * 69e9 > 80e9, "two bytes for each parameter do not fit the A100"


def test_speeds_above_their_ceiling() -> None:
    """With nothing rejected and the target never run, a block takes gamma draft steps and one slim pass."""
    assert ceiling(6.74 / 13.0) == pytest.approx(5 / (5 * 6.74 / 13.0 + 0.55)) == pytest.approx(1.60, abs=0.01)
    cells = above_ceiling()
    assert {key[0] for key, *_ in cells} == {"LLaMA2 7B->13B", "Qwen 7B->14B"} and len(cells) == 6
    assert all(speed > most for _, speed, most in cells) and len(above_ceiling(bonus=True)) == 5


def test_slower_by_their_ratio() -> None:
    """The closed form against a simulation of independent acceptance."""
    rng = np.random.default_rng(0)
    kept = np.cumprod(rng.random((200_000, 5)) < 0.78, axis=1).sum(axis=1) + 1
    assert ideal_speed(0.78, 0.52) == pytest.approx(kept.mean() / (5 * 0.52 + 1), rel=0.01)
    assert ideal_speed(1.0, 0.0) == 6
    rejection = by_cell("table2_qa_main", SD, "rejection_rate")["Qwen 7B->14B", "NaturalQA", ""]
    assert (
        ideal_speed(1 - rejection, 7.72 / 14.2)
        < 1
        < by_cell("table2_qa_main", SD, "speedup")["Qwen 7B->14B", "NaturalQA", ""]
    )


def test_lossy_beats_lossless() -> None:
    key = ("T5 S->L", "WMT14 En-De", "0")
    bleu = {method: by_cell("table9_t5_all", method, "bleu")[key] for method in (SD, OURS, contradictions.FASTER)}
    assert bleu[OURS] - bleu[SD] == pytest.approx(3.92) and bleu[contradictions.FASTER] - bleu[SD] == pytest.approx(9.5)
    told = contradictions.lossy_beats_lossless()
    for part in ("T5 S->L 3.92 (VIA-SD 21.92) and 9.50 (Faster Cascades 27.50)", "T5 S->XL 0.15", "and 0.10", "22.65"):
        assert part in told


def test_adasd_is_slower_than_its_range() -> None:
    told = contradictions.adasd_is_slower_than_its_range()
    assert told.startswith("below 1.26 are: MMLU 1.09 (Llama-3.1-8B->Llama-3.1-70B); 1.49")
    speeds = by_cell("adasd", "AdaSD", "speedup_vs_vanilla_sd")
    assert speeds["Llama-3.1-8B->Llama-3.1-70B", "MMLU", ""] < 1.26 and max(speeds.values()) == 1.49


def test_vsd_length_has_two_values() -> None:
    told = contradictions.vsd_length_has_two_values()
    assert told.startswith("summaries of it have 6.8% and 7.6% for the same mean") and "7.00 over 6.58, 6.4%" in told


def test_lossy_equals_lossless() -> None:
    pairs = list(contradictions._paired("BiLD", ("accuracy", "rouge2", "bleu")))
    assert len(pairs) == 30 and all(own == base for own, base in pairs)
