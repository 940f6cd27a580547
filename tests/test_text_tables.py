"""Summaries read well: digits, dashes, blocks that fit the width, nothing lost."""

import pytest

from experiments.metrics import METRICS, in_order
from experiments.text_tables import cell, full_table, headline_markdown, headline_table


def interval(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


SUMMARY = {
    "vanilla": {"tokens_per_second": interval(130.4, 3), "speedup": interval(1, 0), "fidelity": 1.0, "quality": 0.8,
                "calls_per_token.target": 1.0, "n_timed": 40, "n_quality": 400, "failed": 0},
    "via_sd": {"tokens_per_second": interval(310.6, 5), "speedup": interval(2.381, 0.05),
               "speedup_over.sd": interval(1.4, 0.1), "fidelity": interval(0.93217, 0.01),
               "quality": interval(0.75, 0.1), "rejection_rate": interval(0.0312, 0.01),
               "tier_fraction.draft": interval(0.9, 0.01), "tier_fraction.slim": interval(0.07, 0.01),
               "tier_fraction.target": interval(0.03, 0.01),
               "calls_per_token.target": 0.0123, "peak_memory": 44.2e6, "n_timed": 40, "n_quality": 400, "failed": 2},
}  # fmt: skip
ARMS = ["vanilla", "via_sd"]


def test_headline() -> None:
    expected = """\
arm      tokens/s            speedup  over sd  fidelity  quality  rejection     tiers d/s/t  target calls       n
-------  --------  -----------------  -------  --------  -------  ---------  --------------  ------------  ------
vanilla       130               1.00        -    1.0000    0.800          -               -         1.000  40/400
via_sd        311  2.38 [2.33, 2.43]     1.40    0.9322    0.750      0.031  0.90/0.07/0.03         0.012  40/400
failed examples (left out of every arm): via_sd 2
random weights"""
    assert headline_table(SUMMARY, ARMS, notes=["random weights"], width=120) == expected


def test_headline_as_markdown() -> None:
    lines = headline_markdown(SUMMARY, ARMS, notes=["random weights"]).splitlines()
    assert lines[0].startswith("| arm | tokens/s | speedup |")
    assert lines[1] == "| --- |" + " --: |" * 9
    assert lines[3].startswith("| via_sd | 311 | 2.38 [2.33, 2.43] | 1.40 |")
    assert lines[4:] == ["", "failed examples (left out of every arm): via_sd 2", "", "random weights"]


def test_full_table() -> None:
    lines = full_table(SUMMARY, width=120).splitlines()
    assert lines[0].split() == ["metric", "unit", "vanilla", "via_sd"]
    names = [line.split()[0] for line in lines[2:-1]]
    assert names == in_order(name for numbers in SUMMARY.values() for name in numbers)
    row = {name: line.split()[1:] for name, line in zip(names, lines[2:-1], strict=True)}
    assert row["rejection_rate"] == ["share", "-", "0.031", "[0.021,", "0.041]"]
    assert row["peak_memory"] == ["bytes", "-", "44.2", "MB"]
    assert row["n_timed"] == ["examples", "40", "40"]


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_nine_arms_fit_the_width_and_lose_nothing(width: int) -> None:
    arms = [f"an_arm_{i}" for i in range(8)] + ["via_sd_paper"]
    summary = {arm: {**SUMMARY["via_sd"], "speedup": interval(1 + i, 0.1)} for i, arm in enumerate(arms)}
    for text in (full_table(summary, width=width), headline_table(summary, arms, width=width)):
        tables = [line for line in text.splitlines() if not line.startswith("failed")]
        assert max(map(len, tables)) <= width
        for arm in arms:
            assert cell(summary[arm], "speedup") in text
            assert arm in text
    header = [line for line in full_table(summary, width=width).splitlines() if line.startswith("metric")]
    assert [arm for line in header for arm in line.split()[2:]] == arms


def test_an_absurdly_narrow_terminal_still_gets_a_table() -> None:
    assert "via_sd" in full_table(SUMMARY, width=5)


@pytest.mark.parametrize(
    ("name", "entry", "text"),
    [
        ("speedup", interval(1.716, 0.07), "1.72 [1.65, 1.79]"),
        ("speedup", interval(1.0, 0.0), "1.00"),
        ("fidelity", 0.99996, "1.0000"),
        ("tokens_per_second", interval(130.4, 3), "130 [127, 133]"),
        ("tokens_per_second", interval(9.96, 1), "10.0 [9.0, 11.0]"),
        ("tokens_per_second", 0.123, "0.12"),
        ("shortfall", -0.00001, "0.0000"),
        ("quality_delta", interval(-0.05, 0.05), "-0.050 [-0.100, 0.000]"),
        ("tie_flips", 12, "12"),
        ("peak_memory", 5.5e9, "5.5 GB"),
        ("peak_memory", 12.0, "12.0 B"),
        ("calls_per_token.target", 0.25, "0.250"),
    ],
)
def test_cells(name: str, entry: float | dict[str, float], text: str) -> None:
    assert cell({name: entry}, name) == text
    assert cell({}, name) == "-"


def test_a_table_of_nothing() -> None:
    assert headline_table({}, ["vanilla"]).splitlines()[2].split() == ["vanilla", *["-"] * 8, "0"]
    assert full_table({}).splitlines()[0].split() == ["metric", "unit"]


def test_every_metric_of_the_headline_is_marked_as_such() -> None:
    marked = {metric.name.split(".")[0] for metric in METRICS if metric.headline}
    assert marked == {"tokens_per_second", "speedup", "speedup_over", "speedup_over_coin", "fidelity",
                      "quality", "rejection_rate",
                      "tier_fraction", "calls_per_token"}  # fmt: skip
