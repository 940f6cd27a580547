"""Figures of made-up runs: what is drawn are the numbers, what is missing is shown as such, the bytes stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from experiments.comparison import fidelity, tokens_per_second
from experiments.errors import UserError
from experiments.figures import (
    acceptance,
    adaptive,
    anatomy,
    colored_text,
    fractions,
    frontier,
    heat_map,
    predicted,
    rejection,
    sweep_line,
    time_shares,
)
from experiments.figures.style import COLUMN, PAGE, mark, render, save
from experiments.figures.traces import sources_of
from experiments.figures.values import estimate, open_runs, sweeps
from experiments.records import Row
from experiments.tables import StoredRun
from tests.drawn_runs import ARMS, Made, make_runs

ROOT = Path(__file__).resolve().parent.parent
RUNS = make_runs()


def words(ids: Sequence[int]) -> str:
    return "".join(f"w{one} " for one in ids)


GATES = {"gate": ["gate_0.8", "gate_0.4"]}
DRAWN: dict[str, Callable[..., Figure]] = {
    "acceptance": lambda runs, **size: acceptance.draw(runs, **size),
    "adaptive": lambda runs, **size: adaptive.draw(runs, arms=["gate_0.8"], **size),
    "anatomy": lambda runs, **size: anatomy.draw(runs, arm="gate_0.8", decode=words, **size),
    "colored_text": lambda runs, **size: colored_text.draw(runs, arms=["sd", "gate_0.8"], decode=words, **size),
    "fractions": lambda runs, **size: fractions.draw(runs, **size),
    "frontier": lambda runs, **size: frontier.draw(runs, settings=GATES, shown="mean", **size),
    "heat_map": lambda runs, **size: heat_map.draw(runs, arms=list(ARMS), **size),
    "predicted": lambda runs, **size: predicted.draw(runs, **size),
    "rejection": lambda runs, **size: rejection.draw(runs, **size),
    "sweep_line": lambda runs, **size: sweep_line.draw(runs, lines={"sd": ["sd_2", "sd"]}, knob="stop.length", **size),
    "time_shares": lambda runs, **size: time_shares.draw(runs, **size),
}


def texts(figure: Figure) -> str:
    """All that is written in a figure, line breaks as spaces."""
    found = figure.findobj(matplotlib.text.Text)
    return " ".join(" ".join(one.get_text() for one in found).split())


def lines_of(figure: Figure, panel: int = 0) -> dict[str, Any]:
    """The marked lines of a panel by label."""
    containers = [one for one in figure.axes[panel].containers if isinstance(one, ErrorbarContainer)]
    return {one.get_label(): one.lines[0] for one in containers}


# --- every figure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_the_same_twice_and_fits_a_column(name: str) -> None:
    column = render(DRAWN[name](RUNS, width=COLUMN), "svg")
    assert column == render(DRAWN[name](list(RUNS), width=COLUMN), "svg")
    assert b"<dc:date>" not in column
    page = DRAWN[name](RUNS, width=PAGE)
    assert page.get_figwidth() == PAGE and "made_up" in texts(page) and "a device" in texts(page)


def test_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_figures import DRAWN, RUNS, save\n"
        "save(DRAWN['sweep_line'](RUNS), Path(sys.argv[1]), 'one')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"  # figures are no global state
    paths = save(DRAWN["sweep_line"](RUNS), tmp_path / "here", "one")
    assert [path.suffix for path in paths] == [".svg", ".pdf", ".png"]
    assert all(path.read_bytes() == (tmp_path / "there" / path.name).read_bytes() for path in paths)


def test_a_users_own_style_changes_nothing() -> None:
    plain = render(DRAWN["sweep_line"](RUNS), "svg")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.grid": False, "svg.fonttype": "none"}):
        assert render(DRAWN["sweep_line"](RUNS), "svg") == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write one .*; accepted: a writable folder"):
        save(DRAWN["sweep_line"](RUNS), tmp_path / "file", "one")


def test_marks_differ_without_color() -> None:
    looks = [mark(place) for place in range(63)]
    assert len({(look.color, look.marker, str(look.line)) for look in looks}) == 63
    assert len({(look.marker, str(look.line)) for look in looks[:20]}) == 20


# --- what is missing ----------------------------------------------------------------------------------------------


def test_failed_examples_are_counted_and_leave_all_arms() -> None:
    rows = [Row(row.example_id, row.arm, row.index, error="boom") if (row.arm, row.index) == ("sd", 3) else row
            for row in RUNS[0].rows]  # fmt: skip
    told = texts(DRAWN["sweep_line"]([replace(RUNS[0], rows=rows), RUNS[1]]))
    assert "qa: 11 prompts, timed; coding: 12 prompts, timed" in told and "Failed examples: sd 1" in told


def test_an_arm_without_timing_is_missing_and_not_zero() -> None:
    runs = make_runs({name: replace(made, timed=False) for name, made in ARMS.items()})
    figure = sweep_line.draw(runs, lines={"sd": {"sd_2": 2, "sd": 4}})
    assert "No number: sd_2, sd" in texts(figure) and "0 timed, 12 judged prompts each" in texts(figure)
    assert not lines_of(figure) and [line.get_marker() for line in figure.axes[0].lines] == ["x", "x"]
    assert sum(patch.get_hatch() is not None for patch in time_shares.draw(runs).axes[0].patches) == len(ARMS)
    assert "No number:" not in texts(sweep_line.draw(runs, lines={"sd": {"sd_2": 2, "sd": 4}}, metric="fidelity"))


def test_an_arm_that_is_not_in_the_runs_is_named() -> None:
    figure = heat_map.draw(RUNS, cells={"a": {"x": "sd", "y": "gone"}})
    assert "No number: gone" in texts(figure) and len(figure.axes[0].patches) == 1
    for draw in (rejection.draw, fractions.draw, acceptance.draw, predicted.draw):
        assert "gone" in texts(draw(RUNS, arms=["sd", "gone"]))


def test_one_prompt_has_no_interval() -> None:
    figure = sweep_line.draw(make_runs(prompts=1), lines={"sd": {"sd_2": 2, "sd": 4}})
    assert "1 prompts, timed each" in texts(figure)
    (segments,) = [one.get_segments() for one in figure.axes[0].collections]
    assert all(np.ptp(segment[:, 1]) == 0 for segment in segments)


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_a_sweep_draws_the_metric() -> None:
    figure = sweep_line.draw(RUNS, lines={"sd": ["sd", "sd_2"]}, knob="stop.length", reference=["vanilla"])
    (place,) = open_runs(RUNS).panels.values()
    x, y = lines_of(figure)["sd"].get_data()
    assert list(x) == [2, 4]
    assert y == pytest.approx(
        [np.mean([tokens_per_second(arms[name]).value for arms in place]) for name in ("sd_2", "sd")]
    )
    assert figure.axes[0].get_ylabel() == "tokens per second" and figure.axes[0].get_xlabel() == "stop.length"
    relative = sweep_line.draw(make_runs(noise=False), lines={"sd": {"sd": 4}}, relative_to="vanilla", shown="tasks")
    assert len(relative.axes) == 2 and lines_of(relative)["sd"].get_ydata() == pytest.approx([1.0])


def test_controls_stand_beside_a_sweep_with_their_fidelity() -> None:
    """A control near the lines is a muted level; one far off is told with its value and leaves the axis alone."""
    options: dict[str, Any] = {"lines": {"sd": {"sd_2": 2, "sd": 4}}, "fidelity": True}
    plain, figure = (
        sweep_line.draw(RUNS, **options, controls=names) for names in ((), ("gate_0.8", "vanilla", "gone"))
    )
    (place,) = open_runs(RUNS).panels.values()
    low, high = plain.axes[0].get_ylim()
    told = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    for name in ("gate_0.8", "vanilla"):
        speed, faithful = (estimate(place, name, metric) for metric in ("tokens_per_second", "fidelity"))
        assert speed is not None and faithful is not None
        near = low - 0.6 * (high - low) <= speed.value <= high + 0.6 * (high - low)
        where = "" if near else f": {speed.value:.2f}, {'above' if speed.value > high else 'below'} the panel"
        assert f"{name}, fidelity {faithful.value:.3f}{where}" in told
    assert any("the panel" in text for text in told) and any("the panel" not in text for text in told)
    assert "No number: gone" in texts(figure) and any(text.startswith("sd, fidelity ") for text in told)


def test_another_metric_stands_in_the_last_line_of_a_cell() -> None:
    figure = heat_map.draw(RUNS, cells={"a": {"x": "sd"}}, beside="fidelity", relative_to="vanilla", intervals=False)
    (place,) = open_runs(RUNS).panels.values()
    (cell,) = (text.get_text() for text in figure.axes[0].texts)
    first, last = cell.splitlines()
    assert first.startswith(("+", "-")) and last == f"{estimate(place, 'sd', 'fidelity').value:.4f}"  # type: ignore[union-attr]
    assert "(last line: fidelity)" in texts(figure)


def test_lines_are_found_by_their_knob() -> None:
    assert sweeps(RUNS[0], "stop.length") == {"sd": ["sd", "sd_2"]}
    assert sweeps(RUNS[0], "verifier.gate.threshold") == {"gate_0.8": ["gate_0.8", "gate_0.4"]}
    assert sweeps(RUNS[0], "verifier.slim.skip_ratio") == {}


def test_a_heat_map_of_two_knobs() -> None:
    runs = make_runs(noise=False)
    figure = heat_map.draw(runs, cells={"0.8": {"4": "gate_0.8"}, "0.4": {"4": "gate_0.4", "2": "sd_2"}}, x_label="x")
    image = figure.axes[0].images[0].get_array()
    assert image.tolist()[0][0] == pytest.approx(1000 / 7) and np.isnan(image.filled(np.nan)[0, 1])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.8", "0.4"]
    assert "143\n[143, 143]" in [text.get_text() for text in figure.axes[0].texts]


def test_a_heat_map_of_relative_changes_by_task() -> None:
    runs = make_runs(noise=False)
    figure = heat_map.draw(
        runs, arms={"gate": "gate_0.4", "two": "sd_2"}, relative_to={"gate_0.4": "sd", "sd_2": "vanilla"}
    )
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["qa", "coding", "mean over tasks"]
    assert figure.axes[0].images[0].get_array().tolist() == [pytest.approx([1.0] * 3), pytest.approx([2 / 3] * 3)]
    assert figure.axes[0].images[0].norm(0) == pytest.approx(0.5)  # the two colors part at no change


def test_stacks_are_the_fractions() -> None:
    figure = fractions.draw(make_runs(noise=False))
    tiers, sources = figure.axes[:2]
    assert [label.get_text() for label in tiers.get_yticklabels()] == list(ARMS)
    hatched = [patch.get_y() + 0.35 for patch in tiers.patches if patch.get_width() == 1 and patch.get_x() == 0]
    assert {0.0, 6.0} <= {round(y) + 0.0 for y in hatched}  # vanilla and draft_only judged nothing
    bars = [bar for container in sources.containers if isinstance(container, BarContainer) for bar in container]
    sd = [bar.get_width() for bar in bars if round(bar.get_y() + 0.35) == list(ARMS).index("sd")]
    assert sd == pytest.approx([0.75, 0.0, 0.25])
    assert sum(bar.get_width() for bar in bars) == pytest.approx(len(ARMS))


def test_time_shares_have_the_loops_part() -> None:
    figure = time_shares.draw(make_runs(noise=False), arms=["sd"])
    widths = [bar.get_width() for one in figure.axes[0].containers if isinstance(one, BarContainer) for bar in one]
    assert widths == pytest.approx([0.3, 0.6, 0.1])  # draft, target, other


def test_acceptance_by_position() -> None:
    line = lines_of(acceptance.draw(RUNS, arms=["sd"]))["sd"]
    assert list(line.get_xdata()) == [1, 2, 3, 4] and list(line.get_ydata()) == [1, 1, 1, 0]
    with pytest.raises(UserError, match="kind='all': accepted: conditional, unconditional"):
        acceptance.draw(RUNS, kind="all")  # type: ignore[arg-type]


def test_measured_against_predicted() -> None:
    figure = predicted.draw(make_runs(noise=False), arms=["sd"])
    assert "sd" in texts(figure)
    (container,) = figure.axes[0].containers
    assert container.lines[0].get_data() == (pytest.approx([100 / 1.1]), pytest.approx([100]))


def test_rejection_by_task() -> None:
    found = lines_of(rejection.draw(make_runs(noise=False), arms=["sd", "vanilla"]))
    assert list(found) == ["qa", "coding", "mean over tasks"]
    assert all(line.get_xdata() == pytest.approx([0.25]) for line in found.values())


def test_the_frontier_leaves_out_what_has_no_speed() -> None:
    figure = frontier.draw(RUNS, shown="mean")
    assert len(figure.axes) == 1 and "gate_0.8" in texts(figure)
    (place,) = open_runs(RUNS).panels.values()
    at = np.mean([fidelity(arms["gate_0.8"]).value for arms in place])
    drawn = [one.lines[0].get_xdata()[0] for one in figure.axes[0].containers if isinstance(one, ErrorbarContainer)]
    assert any(x == pytest.approx(at) for x in drawn)
    with pytest.raises(UserError, match="settings: no arm 'gate'; did you mean"):
        frontier.draw(RUNS, settings={"g": ["gate"]})


# --- traces -------------------------------------------------------------------------------------------------------


def test_adaptive_numbers_over_time() -> None:
    at, middle = adaptive.median_course([[(2, 1.0), (4, 3.0)], [(1, 5.0), (3, 7.0)], [(2, 9.0), (6, 9.0)]])
    assert at.tolist() == [2, 3, 4] and middle.tolist() == [5.0, 7.0, 6.0]
    figure = adaptive.draw(RUNS, arms=["gate_0.8"], joined=True)
    (line,) = figure.axes[0].lines
    assert len(line.get_xdata()) == 12 * 10 and line.get_xdata()[-1] == 12 * 40
    with pytest.raises(UserError, match="sd follow no text"):
        adaptive.draw(RUNS, arms=["sd"])
    with pytest.raises(UserError, match=r"numbers: no 'stop.treshold'; did you mean 'stop.threshold'"):
        adaptive.draw(RUNS, arms=["gate_0.8"], numbers=["stop.treshold"])


def test_a_text_is_wrapped_by_characters() -> None:
    assert colored_text.wrap([("draft", "abc"), ("slim", "de\n\tf")], 4) == [
        [("draft", "abc"), ("slim", "d")], [("slim", "e")], [("slim", "    ")], [("slim", "f")],
    ]  # fmt: skip
    assert colored_text.wrap([("draft", "a\n\nb")], 9) == [[("draft", "a")], [], [("draft", "b")]]


def test_each_token_has_its_source() -> None:
    row = next(row for row in RUNS[0].rows if row.arm == "gate_0.8")
    assert sources_of(row)[:5] == ["draft"] * 3 + ["slim", "draft"]
    rounds = anatomy.pieces_by_round(row, words)
    assert rounds[0] == [("draft", "w0 w1 w2 "), ("slim", "w3 ")] and len(rounds) == 10
    ended = replace(row, finish_reason="eos")
    assert anatomy.pieces_by_round(ended, words)[-1] == [("draft", "w36 w37 w38 ")]
    cells = anatomy.table(row, words, rounds=1)
    assert cells[1] == ["1", "4", "4", "1", "4", "0", "ssss", "-", "draft 1+1+1+1, slim 5", "`w0 w1 w2 w3 `"]
    assert anatomy.kinds([row])[1] == ["draft + slim", "10", "1.00", "4.00"]
    assert anatomy.times(row)[-1][0] == "other" and anatomy.times(row)[-1][-1] == "0.10"


def test_a_reader_without_costs() -> None:
    class Cost:
        def seconds(self, fed: int) -> float:
            return 0.001 * fed

    figure = anatomy.draw(RUNS, arm="sd", costs={"draft": Cost(), "target": Cost()}, decode=words, rounds=2)
    widths = [bar.get_width() for one in figure.axes[0].containers for bar in one]
    assert widths == pytest.approx([1, 1, 1, 1, 5] * 2)
    with pytest.raises(UserError, match="costs: none of reader 'slim'"):
        anatomy.draw(RUNS, arm="gate_0.8", costs={"draft": Cost()}, decode=words)


def test_a_pair_of_the_repository_has_its_tokenizer() -> None:
    run = replace(RUNS[0], identity={**RUNS[0].identity, "pair": {"name": "reference"}})
    assert isinstance(colored_text.open_decode(run)([5, 6]), str)


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: sweep_line.draw([], lines={"a": {"sd": 1}}), r"runs=\[\]: a figure needs"),
        (lambda: sweep_line.draw(RUNS, lines={"a": {"sdd": 1}}), "arms: no arm 'sdd'; did you mean 'sd'"),
        (lambda: sweep_line.draw(RUNS, lines={"a": {"sd": 1}}, metric="speed"), "metric='speed': not known"),
        (lambda: sweep_line.draw(RUNS, lines={"a": ["sd"]}), "knob=null: lines without numbers need one"),
        (lambda: sweep_line.draw(RUNS, lines={"a": ["sd"]}, knob="stop.size"), "arm 'sd' has no 'size'; accepted: "),
        (lambda: sweep_line.draw(RUNS, lines={"a": ["sd"]}, knob="stop._target_"), "accepted: numbers"),
        (lambda: sweep_line.draw(RUNS, lines={"a": {"sd": 1}}, shown="none"), "panels='none': accepted: mean"),
        (lambda: sweep_line.draw(RUNS, lines={"a": {"sd": 1}}, width=0.1), "width=0.1: accepted: 0.5 to 60"),
        (lambda: heat_map.draw(RUNS), "cells, arms: accepted: exactly one of them"),
        (lambda: heat_map.draw(RUNS, arms=["sd"], relative_to={}), "relative_to: no entry for arm 'sd'"),
        (lambda: colored_text.draw(RUNS, arms=["sd"]), "pair=made_up: no yaml in conf/pair"),
        (lambda: colored_text.draw(RUNS, arms=["sdd"], decode=words), "arms: no arm 'sdd'; did you mean 'sd'"),
        (lambda: colored_text.draw(RUNS, arms=["sd"], example=12, decode=words), "example=12: 12 of arm 'sd'"),
        (lambda: colored_text.draw(RUNS, arms=["sd"], task="qq", decode=words), "task=qq: not among the runs"),
        (lambda: rejection.draw([RUNS[0], other_device(RUNS[1])]), "not comparable: they differ in device"),
    ],
)  # fmt: skip
def test_mistakes(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw()


def other_device(run: StoredRun) -> StoredRun:
    return replace(run, identity={**run.identity, "device": "another"})


def test_an_arm_that_was_not_timed_has_no_text() -> None:
    runs = make_runs({"vanilla": Made(20.0, timed=False), "sd": Made(10.0, length=4, timed=False)}, tasks=["qa"])
    with pytest.raises(UserError, match="'sd' has no trace"):
        colored_text.draw(runs, arms=["sd"], decode=words)
