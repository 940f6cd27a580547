"""Parts of the HTML report: the chart, the bars, the answers token by token, colors."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from report_runs import ATTACK, REAL, SHOWN, write_runs

from experiments.choosing.candidates import measure
from experiments.metrics import Summary
from experiments.pages import frontier_chart, shares
from experiments.pages.answers import Splitter, Texts, cut, tell
from experiments.pages.cells import number, sort_of_arm
from experiments.pages.facts import KeyFigure, flatten, key_figures, unsure
from experiments.pages.origins import Origins
from experiments.pages.render import PARTS
from experiments.pages.runs import choose
from experiments.pages.signs import visible
from experiments.records import Row
from experiments.tables import MEAN, StoredRun, places, summaries
from tests.drawn_runs import ARMS, Made, make_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[StoredRun]:
    folder = tmp_path_factory.mktemp("results")
    write_runs(folder)
    return [one.run for one in choose([REAL], folder)[0]]


@pytest.fixture(scope="module")
def told(runs: list[StoredRun]) -> tuple[Summary, list[str]]:
    found, arms = summaries(runs)
    return found["summarization"], arms


def test_chart_of_the_frontier(runs: list[StoredRun], told: tuple[Summary, list[str]]) -> None:
    (summary, arms), place = told, places(runs)["summarization"]
    chart = frontier_chart.draw(summary, arms, place)
    assert chart is not None and {spot.arm for spot in chart.spots} == set(arms) and "free frontier" in chart.curves
    left, top, right, bottom = chart.frame
    for spot in chart.spots:
        assert left <= spot.x <= right and top <= spot.y <= bottom
        assert spot.across[0] <= spot.x <= spot.across[1] and spot.upright[1] <= spot.y <= spot.upright[0]
    speed = {arm: number(summary[arm], "tokens_per_second").value or 0 for arm in arms}
    ordered = sorted(chart.spots, key=lambda spot: speed[spot.arm])
    assert all(one.y >= other.y for one, other in pairwise(ordered))
    assert all(one[0] - other[0] >= frontier_chart.TICK_ROOM for one, other in pairwise(chart.x_ticks))
    assert frontier_chart.draw(summary, ["vanilla"], place) is None


def test_labels_keep_off_points_and_each_other() -> None:
    taken = frontier_chart.Taken([(95, 95, 105, 105)])
    spots = [frontier_chart._place(name, 100, 100, taken) for name in ("one", "other", "third")]
    boxes = taken.boxes
    assert len({at for at, _ in spots}) == 3
    assert all(frontier_chart.shared(one, other) == 0 for i, one in enumerate(boxes) for other in boxes[:i])


def figures_of(runs: list[StoredRun]) -> dict[str, KeyFigure]:
    """The key figures by title."""
    found = key_figures(summaries(runs)[0][MEAN], places(runs)[MEAN], runs[0].identity["arms"])
    return {one.title: one for one in found}


def test_key_figures_hold_a_bound_as_the_chooser_does() -> None:
    arms = {**ARMS, "near": Made(3.0, 0.008, 4, "s", 0.6, {"threshold": 0.6}),
            "none_seen": Made(2.5, 0.0, 4, "s", 0.6, {"threshold": 0.9})}  # fmt: skip
    runs = make_runs(arms)
    told, candidates = figures_of(runs), {one.arm: one for one in measure(runs).candidates}
    near, unseen = candidates["near"], candidates["none_seen"]
    assert near.shortfall.value < 0.01 < near.worst and unseen.shortfall.value == 0 and unseen.worst > 0.01
    assert told["fastest without a shortfall"].arm == "sd"  # no loss was seen of none_seen, which proves nothing
    fitting = {name: one.over_sd.value for name, one in candidates.items() if one.fits(0.01) and name != "vanilla"}
    assert told["fastest within 1% shortfall"].arm == max(fitting, key=lambda name: fitting[name])
    assert not {"near", "none_seen"} & set(fitting) and "gate_0.8" in fitting


def test_a_figure_that_is_not_sure_says_so() -> None:
    assert {one.doubt for one in figures_of(make_runs()).values()} == {""}
    few = figures_of(make_runs(prompts=4))["fastest without a shortfall"]
    assert few.doubt == "not sure: 4 timed prompts of a task"
    close = make_runs({"vanilla": Made(10.0), "sd": Made(9.99, length=4)})
    assert figures_of(close)["fastest without a shortfall"].doubt == "not sure: the interval holds 1"
    assert unsure(1.5, 1) == "not sure: 1 timed prompt of a task" and unsure({"low": 1.1, "high": 2.0}, 10) == ""


def test_bars_add_up(told: tuple[Summary, list[str]]) -> None:
    figures = {bars.title: bars for bars in shares.figures(*told)}
    assert list(figures) == ["Tiers", "Sources", "Time"] and "vanilla" not in figures["Tiers"].rows
    for bars in figures.values():
        for parts, cells in bars.rows.values():
            assert sum(part.width for part in parts) == pytest.approx(100, abs=0.1)
            assert len(cells) == len(bars.keys)
    assert shares.patterns(["draft", "mid", "head", "other"]) == ["draft", "spare0", "spare1", "other"]


def test_unseen_signs_are_shown() -> None:
    assert visible(ATTACK) == SHOWN
    assert visible("a\tb\n\x00\x7f\u2028\ud800") == "a\tb\n\u2400\u2421\u27e8U+2028\u27e9\u27e8U+D800\u27e9"
    assert visible("\U0001f469\u200d\U0001f52c \u00e9\u4e2d\u05d0") == "\U0001f469\u200d\U0001f52c \u00e9\u4e2d\u05d0"


def test_rows_whose_tokens_do_not_give_their_text_are_told_as_text() -> None:
    letters = Origins({}, lambda ids: "".join(map(chr, ids)), [])
    row = Row("e", "sd", 0, token_ids=[97, 98, 99], new_tokens=3, text="ab", sources={"draft": 1, "target": 2})
    row.trace = [[1, 1, 0, 1, 0, "t", "d", None, []], [1, 1, 1, 2, 0, "t", "tt", "gate", []]]
    texts = Texts()
    told = tell(row, Splitter(letters), texts, greedy=True)
    assert texts.pieces[told["text"]] == ["a", "b", ""] and told["sources"] == "dtt"
    assert told["trace"][1] == [1, 1, 1, 2, 0, "t", "tt", "gate"] and "differs" not in told
    row.text = "other"
    told = tell(row, Splitter(letters), texts, greedy=True)
    assert texts.pieces[told["text"]] == ["other"] and "sources" not in told and told["written"] == row.sources
    assert cut(["ab", "cd", "ef"], 3) == ["ab", "c", ""]


def test_sorts_of_arms_and_flat_provenance() -> None:
    names = ("sd", "slim_only@0.4", "coin_mix@0.8", "via_sd", "lossy_sd")
    assert list(map(sort_of_arm, names)) == ["baseline", "control", "control", "method", "method"]
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None, "e": [{"f": "x" * 200}]}) == {
        "a.b": "[1, 2]",
        "a.c": "{}",
        "d": "null",
        "e.0.f": "x" * 200,
    }


def luminance(color: str) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
              for value in (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(scheme: int) -> None:
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colors = {name: ends[scheme] for name, *ends in found}
    for text in ("ink", "quiet", "accent", "draft", "slim", "target", "flag"):
        for paper in ("paper", "panel"):
            low, high = sorted(luminance(colors[name]) for name in (text, paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, paper)
    for text, paper in (
        ("ink", "warn"),
        ("slim", "warn"),
        ("draft", "tint"),
        ("slim", "tint"),
        ("target", "tint"),
        ("ink", "tint"),
    ):
        low, high = sorted(luminance(colors[name]) for name in (text, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, paper)
