"""The free frontier by hand, as functions of resampled points, and as the section and figure of stored runs."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import tables
from experiments.comparison import Arm, compare, compare_seeds, seconds_per_token
from experiments.errors import UserError
from experiments.figures.frontier import CROWD, FREE, Point, coin_line, gather, spread, stand_out
from experiments.frontier import (
    advantage,
    free_curve,
    on_line,
    speed_at_shortfall,
    speedup_over_coin,
    speedup_over_slim_coin,
    verdict,
)
from experiments.metrics import summarize
from experiments.records import Row
from experiments.statistics import Estimate, Statistic

CURVE = {"vanilla": (20.0, 0.0), "sd": (10.0, 0.0), "coin_mix@0.5": (6.0, 0.1), "draft_only": (2.0, 0.2)}
Spec = dict[str, tuple[float, float]]  # arm -> milliseconds per token, share of wrong tokens


def exact(spec: Spec, tokens: int = 1000) -> dict[str, Arm]:
    """One prompt: values without intervals, to check by hand."""
    rows = []
    for arm, (milliseconds, wrong) in spec.items():
        losses = [1.0] * round(wrong * tokens) + [0.0] * (tokens - round(wrong * tokens))
        seconds = [tokens * milliseconds / 1000] if milliseconds else []
        rows.append(Row("a", arm, 0, new_tokens=tokens, decode_seconds=seconds, token_loss=losses))
    return compare(rows, list(spec))


def noisy(spec: Spec, prompts: int = 30, seed: int = 0) -> list[Row]:
    draw, rows = random.Random(seed), []
    for index in range(prompts):
        tokens, hardness = draw.randint(20, 60), draw.uniform(0, 2)
        for arm, (milliseconds, wrong) in spec.items():
            losses = [float(draw.random() < wrong * hardness) for _ in range(tokens)]
            seconds = [tokens * milliseconds / 1000 * draw.uniform(0.9, 1.1)]
            rows.append(
                Row(f"e{index}", arm, index, new_tokens=tokens, decode_seconds=seconds, quality=draw.random(),
                    token_loss=losses)
            )  # fmt: skip
    return rows


def value(statistic: Statistic | None) -> float:
    assert statistic is not None
    return statistic.value


# --- the line -----------------------------------------------------------------------------------------------------


def test_on_line() -> None:
    x, y = np.array([[0.9], [1.0], [0.8]]), np.array([[6.0], [10.0], [2.0]])
    at = np.array([[0.95], [0.85], [0.9], [1.0], [0.8], [0.7], [1.05]])
    assert on_line(at, x, y)[:, 0] == pytest.approx([8, 4, 6, 10, 2, 2, 12])


def test_on_line_takes_the_fastest_of_equals() -> None:
    x, y = np.array([[0.8], [0.9], [0.9], [0.8], [1.0], [1.0]]), np.array([[3.0], [7], [5], [2], [9], [8]])
    at = np.array([[0.8], [0.9], [1.0], [0.7], [1.1]])
    assert on_line(at, x, y)[:, 0] == pytest.approx([2, 5, 8, 2, 8])
    assert on_line(at, x[:1], y[:1])[:, 0].tolist() == [3.0] * 5


def test_every_draw_has_its_own_order() -> None:
    x, y = np.array([[0.9, 1.0], [1.0, 0.9]]), np.array([[6.0, 6.0], [10.0, 10.0]])
    assert on_line(np.array([[0.925, 0.925]]), x, y)[0] == pytest.approx([7, 9])


# --- speed over the coin ------------------------------------------------------------------------------------------


def test_speedup_over_coin_by_hand() -> None:
    arms = exact({**CURVE, "half": (5.0, 0.05), "low": (4.0, 0.15), "end": (1.0, 0.2), "beyond": (1.0, 0.25)})
    assert value(speedup_over_coin(arms["half"])) == pytest.approx(8 / 5)
    assert value(speedup_over_coin(arms["low"])) == pytest.approx(4 / 4)
    assert value(speedup_over_coin(arms["end"])) == pytest.approx(2 / 1)
    assert [speedup_over_coin(arms[name]) for name in ("beyond", *CURVE)] == [None] * 5
    without = exact({name: CURVE[name] for name in ("vanilla", "sd", "draft_only")} | {"half": (5.0, 0.05)})
    assert free_curve(without) == [] and speedup_over_coin(without["half"]) is None


def test_a_curve_without_sd_is_none() -> None:
    """Its end would be the coin that reads most, which is slower than sd at that fidelity: everything would beat it."""
    names = ("vanilla", "coin_mix@0.5", "draft_only", "coin_slim@0.5", "slim_only")
    slim = {"coin_slim@0.5": (8.0, 0.05), "slim_only": (6.0, 0.1)}
    without = {name: {**CURVE, **slim}[name] for name in names} | {"half": (5.0, 0.15)}
    rows = [row for arm in exact({**without, "sd": CURVE["sd"]}).values() for row in arm.detail.rows]
    failed = [replace(row, error="out of memory", decode_seconds=[]) if row.arm == "sd" else row for row in rows]
    for arms in (exact(without), compare(failed, [*without, "sd"])):
        assert free_curve(arms) == free_curve(arms, "slim") == []
        assert speedup_over_coin(arms["half"]) is None and speedup_over_slim_coin(arms["half"]) is None
        assert len(coin_line([arms])[0]) == 0


def test_speedup_over_the_slim_coin_by_hand() -> None:
    """9 ms at fidelity 0.975 on the line from sd to the coin, 7 ms at 0.925 on the line to slim_only."""
    slim = {"coin_slim@0.5": (8.0, 0.05), "slim_only": (6.0, 0.1), "slim_only@0.3": (7.0, 0.025)}
    arms = exact({**CURVE, **slim, "strict": (6.0, 0.025), "loose": (3.5, 0.075), "beyond": (1.0, 0.15)})
    assert value(speedup_over_slim_coin(arms["strict"])) == pytest.approx(9 / 6)
    assert value(speedup_over_slim_coin(arms["loose"])) == pytest.approx(7 / 3.5)
    assert value(speedup_over_slim_coin(arms["slim_only@0.3"])) == pytest.approx(9 / 7)
    assert value(speedup_over_slim_coin(arms["coin_mix@0.5"])) == pytest.approx(6 / 6)  # no point of this curve
    assert value(speedup_over_coin(arms["coin_slim@0.5"])) == pytest.approx(8 / 8)  # nor that one of the other
    assert [speedup_over_slim_coin(arms[name]) for name in ("beyond", "vanilla", "sd", "slim_only")] == [None] * 4
    assert [arm.name for arm in free_curve(arms, "slim")] == ["sd", "coin_slim@0.5", "slim_only"]
    without = exact({**CURVE, "slim_only": (6.0, 0.1), "strict": (6.0, 0.025)})
    assert free_curve(without, "slim") == [] and speedup_over_slim_coin(without["strict"]) is None


def test_intervals_of_speedup_over_coin_cover_the_truth() -> None:
    """The coin needs 8 ms at the arm's fidelity: truth 8 / 6.4."""
    covered, below = 0, 0
    for seed in range(60):
        arms = compare(noisy({**CURVE, "arm": (6.4, 0.05)}, seed=seed), [*CURVE, "arm"])
        found = speedup_over_coin(arms["arm"])
        estimate = None if found is None else found.estimate()
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 8 / 6.4 <= estimate.high
        below += verdict(estimate) == "below"
    assert 51 <= covered <= 60 and below == 0  # 57 are expected, one standard error is 1.7


def test_one_timed_prompt_among_several_has_no_interval() -> None:
    rows = noisy({**CURVE, "arm": (6.4, 0.05)}, prompts=5)
    for row in rows:
        row.decode_seconds = row.decode_seconds if row.index == 0 else []
    summary = summarize(rows, [*CURVE, "arm"], temperature=0)
    assert isinstance(summary["arm"]["speedup_over_coin"], float) and isinstance(summary["arm"]["fidelity"], dict)


def test_verdict() -> None:
    assert verdict(Estimate(1.1, 1.01, 1.2)) == "above" and verdict(Estimate(0.9, 0.8, 0.99)) == "below"
    assert verdict(Estimate(1.1, 0.99, 1.2)) == "undecided"
    assert verdict(None) is None and verdict(Estimate(1.2)) is None


# --- advantage ----------------------------------------------------------------------------------------------------


def test_advantage_by_hand() -> None:
    """Free: 10 ms at fidelity 1, 8 ms at 0.95. A setting at 0.97 is used up to there, vanilla (20 ms) beyond."""
    arms = exact({**CURVE, "exact": (8.0, 0.0), "loose": (5.0, 0.03), "slow": (9.0, 0.02)})
    assert value(advantage(arms, ["exact"])) == pytest.approx(9 / 8 - 1)  # 9 ms: the free mean over 0.95 to 1
    partly = (0.02 * (8.4 / 5 - 1) + 0.03 * (9.4 / 20 - 1)) / 0.05
    assert value(advantage(arms, ["loose"])) == pytest.approx(partly)
    both = (0.02 * (8.4 / 5 - 1) + 0.03 * (9.4 / 8 - 1)) / 0.05
    assert value(advantage(arms, ["exact", "loose", "slow"])) == pytest.approx(both)
    assert value(advantage(arms, [])) == pytest.approx(9 / 20 - 1)
    assert value(advantage(arms, ["exact"], lowest=0.9)) == pytest.approx(8 / 8 - 1)


def test_leaving_settings_out_never_raises_an_advantage() -> None:
    draw = random.Random(3)
    for _ in range(50):
        spec = {f"s{i}": (draw.uniform(1, 30), draw.uniform(0, 0.1)) for i in range(4)}
        arms = exact({**CURVE, **spec})
        for kept in (["s0"], ["s0", "s1"], ["s1", "s2", "s3"]):
            assert value(advantage(arms, kept)) <= value(advantage(arms, list(spec))) + 1e-12


def test_a_setting_below_the_range_counts_for_nothing() -> None:
    arms = exact({**CURVE, "exact": (8.0, 0.0), "wild": (0.1, 0.051), "all_wrong": (0.01, 1.0)})
    assert value(advantage(arms, ["exact", "wild", "all_wrong"])) == value(advantage(arms, ["exact"]))


def test_below_draft_only_the_free_speed_is_that_of_draft_only() -> None:
    spec = {"vanilla": (20.0, 0.0), "sd": (10.0, 0.0), "coin_mix@0.5": (6.0, 0.01), "draft_only": (2.0, 0.02)}
    arms = exact({**spec, "exact": (4.0, 0.0)})
    free = (0.01 * 8 + 0.01 * 4 + 0.03 * 2) / 0.05
    assert value(advantage(arms, ["exact"])) == pytest.approx(free / 4 - 1)


def test_advantage_where_the_frontier_is_not_known() -> None:
    arm = {"exact": (8.0, 0.0)}
    for missing in ("vanilla", "sd", "coin_mix@0.5"):
        assert advantage(exact({**{name: CURVE[name] for name in CURVE if name != missing}, **arm}), ["exact"]) is None
    short: Spec = {"vanilla": (20.0, 0.0), "sd": (10.0, 0.0), "coin_mix@0.9": (8.0, 0.04)}
    assert advantage(exact({**short, **arm}), ["exact"]) is None
    assert advantage(exact({**short, "coin_mix@0.8": (7.0, 0.06), **arm}), ["exact"]) is not None
    rounding: Spec = {"vanilla": (20.0, 0.0), "sd": (10.0, 0.06), "coin_mix@0.5": (6.0, 0.1)}
    assert advantage(exact({**rounding, **arm}), ["exact"]) is None


def test_with_rounding_noise_the_range_ends_at_sd() -> None:
    spec = {"vanilla": (20.0, 0.012), "sd": (10.0, 0.01), "coin_mix@0.5": (6.0, 0.09)}
    arms = exact({**spec, "as_good": (5.0, 0.01), "a_hair_below": (5.0, 0.011)})
    assert value(advantage(arms, ["as_good"])) == pytest.approx(9 / 5 - 1)  # 8 ms at 0.95 to 10 ms at 0.99
    beyond = 0.001 * (9.975 / 20 - 1)
    found = value(advantage(arms, ["a_hair_below"]))
    assert found == pytest.approx((0.039 * (8.975 / 5 - 1) + beyond) / 0.04)


def test_names_that_are_no_settings() -> None:
    arms = exact({**CURVE, "via_sd": (8.0, 0.0)})
    for name in CURVE:
        with pytest.raises(UserError, match=f"arm '{name}' is what methods are compared with"):
            advantage(arms, ["via_sd", name])
    with pytest.raises(UserError, match="no arm 'via_ds'; did you mean 'via_sd'"):
        advantage(arms, ["via_ds"])


def test_an_arm_that_always_failed_offers_nothing() -> None:
    rows = noisy({**CURVE, "exact": (8.0, 0.0)}) + [Row("e0", "broken", 0, error="boom")]
    arms = compare(rows, [*CURVE, "exact", "broken"])
    assert value(advantage(arms, ["broken", "exact"])) == value(advantage(arms, ["exact"]))
    assert speed_at_shortfall(arms, ["broken"]) == {0.005: None, 0.01: None, 0.03: None}


def test_advantage_is_resampled_as_a_whole() -> None:
    arms = compare(noisy({**CURVE, "a": (8.0, 0.0), "b": (5.0, 0.03)}), [*CURVE, "a", "b"])
    found = advantage(arms, ["a", "b"])
    assert found is not None and np.isfinite(found.replicates).all() and len(found.jackknife) == 2
    for method in ("percentile", "bca"):
        estimate = found.estimate(method)  # type: ignore[arg-type]
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        assert estimate.low < found.value < estimate.high


# --- speed at equal shortfall -------------------------------------------------------------------------------------


def test_speed_at_shortfall_by_hand() -> None:
    """Vanilla itself is wrong in 1%: a shortfall of 0.01 is a fidelity of 0.98."""
    arms = exact({"vanilla": (20.0, 0.01), "tight": (10.0, 0.01), "loose": (6.0, 0.05), "middle": (9.0, 0.02)})
    found = speed_at_shortfall(arms, ["tight", "loose"], (0.0, 0.01, 0.02, 0.04, 0.05))
    assert {at: None if one is None else round(one.value, 6) for at, one in found.items()} == {
        0.0: 100, 0.01: round(1000 / 9, 6), 0.02: 125, 0.04: round(1000 / 6, 6), 0.05: None,
    }  # fmt: skip
    three = speed_at_shortfall(arms, ["loose", "middle", "tight"], (0.005, 0.025))
    assert value(three[0.005]) == pytest.approx(1000 / 9.5) and value(three[0.025]) == pytest.approx(1000 / 7.5)
    assert speed_at_shortfall(arms, ["loose"]) == {0.005: None, 0.01: None, 0.03: None}
    assert speed_at_shortfall(exact({"sd": (1.0, 0.0)}), ["sd"], (0.0,)) == {0.0: None}  # without vanilla


def test_speed_at_shortfall_is_paired() -> None:
    """Two methods with equal rows have equal replicates, so that their quotient is exactly 1."""
    spec: Spec = {"vanilla": (20.0, 0.0), "a": (10.0, 0.0), "b": (6.0, 0.06)}
    rows = noisy(spec)
    copies = [Row(**{**vars(row), "arm": row.arm * 2}) for row in rows if row.arm in ("a", "b")]
    arms = compare([*rows, *copies], [*spec, "aa", "bb"])
    one, other = (speed_at_shortfall(arms, names)[0.03] for names in (["a", "b"], ["bb", "aa"]))
    assert one is not None and other is not None
    assert (one / other).estimate() == Estimate(1.0, 1.0, 1.0)
    estimate = one.estimate()
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    assert 100 < estimate.low < one.value < estimate.high < 1000 / 6 * 1.05


# --- seeds --------------------------------------------------------------------------------------------------------


def test_seeds_of_a_prompt_are_paired_and_resampled_together() -> None:
    rows = noisy({"vanilla": (20.0, 0.0), "sd": (10.0, 0.0)}, prompts=12)
    single, double = compare(rows, ["vanilla", "sd"])["sd"], compare_seeds([rows, rows], ["vanilla", "sd"])["sd"]
    assert len(double.timed.rows) == 24 and double.timed.resamples.units == 12
    assert seconds_per_token(single).estimate() == seconds_per_token(double).estimate()
    failed = [Row(row.example_id, row.arm, row.index, error="boom") if row.index == 3 else row for row in rows]
    arms = compare_seeds([rows, failed], ["vanilla", "sd"])
    assert len(arms["sd"].timed.rows) == 23 and arms["sd"].timed.resamples.units == 12 and arms["sd"].failed == 1


# --- the section of stored runs -----------------------------------------------------------------------------------

STORED: Spec = {**CURVE, "via_sd": (8.0, 0.02), "r_1": (9.0, 0.004), "odd|name": (5.0, 0.3)}


def store(results: Path, run_id: str, task: str, seed: int = 0, spec: Spec = STORED) -> None:
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    identity = {
        "code_hash": "c", "device": "d", "dtype": "float32", "threads": 1, "versions": {"torch": "2"},
        "pair": {"name": "tiny"}, "sampling": {"temperature": 0.0}, "task": {"name": task}, "seed": seed,
        "arms": {name: {} for name in spec},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"identity": identity}))
    rows = noisy(spec, prompts=12, seed=seed + len(task))
    (folder / "rows.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))


def call(monkeypatch: pytest.MonkeyPatch, results: Path, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["tables", *arguments, "--results", str(results), "--name", "x"])
    tables.main()


def test_frontier_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "one", "qa")
    store(tmp_path, "two", "coding")
    call(monkeypatch, tmp_path, "one", "two", "--frontier", "--settings", "via_sd=via_sd,r_1", "--settings", "odd=r_1")
    out = capsys.readouterr().out
    section = (tmp_path / "tables" / "x_frontier.md").read_text()
    assert section in out and "x_frontier.png" in out.splitlines()[-1]
    assert (tmp_path / "tables" / "x_frontier.png").read_bytes()[:4] == b"\x89PNG"
    titles = [line for line in section.splitlines() if line.startswith("**")]
    assert titles == ["**mean over tasks**", "**qa**", "**coding**"]
    lines = section.splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in reversed(lines) if "|" in line}
    assert cells["coin_mix@0.5"][6] == "on it" and cells["vanilla"][5:7] == ["-", "-"]
    assert cells["r_1"][6] in ("above", "below", "undecided") and "[" in cells["r_1"][5]
    assert r"odd\|name" in cells and cells[r"odd\|name"][6] == "-"  # outside of the frontier
    assert cells["odd"][1].startswith(("+", "-")) and "[" in cells["free frontier"][2]
    assert {line.count(" | ") for line in lines if line.startswith("| arm")} == {9}


def test_measured_over_predicted_also_of_runs_stored_before_there_were_predictions(tmp_path: Path) -> None:
    def column(run_id: str) -> dict[str, str]:
        runs = [tables.read(tables.RunFolder(tmp_path, run_id))]
        section = tables.write_frontier(runs, {}, tmp_path / "tables", run_id)[0].read_text()
        header, _, *lines = [line.split(" | ") for line in section.splitlines() if line.startswith("|")]
        return {line[0].removeprefix("| "): line[header.index("of predicted")] for line in lines}

    for run_id in ("old", "new"):
        store(tmp_path, run_id, "qa")
        path = tmp_path / "runs" / run_id / "rows.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            del row["predicted_seconds"], row["measured_at"]  # as schema 1 was at first
            if run_id == "new":
                row["predicted_seconds"] = row["decode_seconds"][0] * (0.5 if row["arm"] == "sd" else 1)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(column("old").values()) == {"-"}
    assert column("new")["sd"].startswith("0.50") and column("new")["vanilla"] == "1.00"


def test_seeds_of_one_task_are_one_comparison(tmp_path: Path) -> None:
    for seed in (0, 1):
        store(tmp_path, f"seed{seed}", "qa", seed=seed)
    runs = [tables.read(tables.RunFolder(tmp_path, name)) for name in ("seed0", "seed1")]
    found = tables.places(runs)
    assert list(found) == ["qa"] and found["qa"][0]["sd"].timed.resamples.units == 12
    assert len(found["qa"][0]["sd"].timed.rows) == 24
    with pytest.raises(UserError, match="two have the same seed"):
        tables.places([*runs, runs[0]])
    with pytest.raises(UserError, match="a table takes one run of each task"):
        tables.summaries(runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "--frontier"], "accepted: arms with sd and at least one coin_mix@..."),
        (["one", "--frontier", "--settings", "via_sd"], "--settings via_sd: accepted: NAME=ARM,ARM,..."),
        (["one", "--frontier", "--settings", "a=via_sd,"], "accepted: NAME=ARM,ARM,..."),
        (["one", "--frontier", "--settings", "a=via"], "settings: no arm 'via'; did you mean 'via_sd'"),
        (["one", "--frontier", "--settings", "a=sd"], "arm 'sd' is what methods are compared with"),
        (["one", "--settings", "a=via_sd"], "accepted together with --frontier"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store(tmp_path, "one", "qa")
    store(tmp_path, "plain", "coding", spec={"vanilla": (20.0, 0.0), "sd": (10.0, 0.0)})
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, tmp_path, *arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "tables" / "x_frontier.md").exists()


def test_the_drawn_curve_is_the_one_that_is_computed() -> None:
    arms = exact({**CURVE, "half": (5.0, 0.05)})
    x, y = coin_line([arms], steps=4)
    assert len(x) == 9 and x[0] == pytest.approx(0.8) and y[0] == pytest.approx(500)
    assert y[x.tolist().index(pytest.approx(0.95))] == pytest.approx(1000 / 8)
    slower = exact({name: (2 * milliseconds, wrong) for name, (milliseconds, wrong) in CURVE.items()})
    assert coin_line([arms, slower], steps=4)[1] == pytest.approx(0.75 * y)
    assert len(coin_line([exact({"sd": (1.0, 0.0)})])[0]) == len(coin_line([arms], curve="slim")[0]) == 0
    arms = exact({**CURVE, "coin_slim@0.5": (8.0, 0.05), "slim_only": (5.0, 0.1)})
    x, y = coin_line([arms], steps=1, curve="slim")
    assert x == pytest.approx([0.9, 0.95, 1.0]) and y == pytest.approx([200, 125, 100])


def test_coins_go_by_their_number() -> None:
    names = ("coin_mix@0.5", "coin_slim@0.5", "slim_only@0.5", "sd")
    labels = [Point(name, Estimate(1.0), Estimate(1.0), "#000000").label for name in names]
    assert labels == ["0.5", "s0.5", "slim_only@0.5", "sd"]


def test_a_crowd_of_arms_is_named_where_it_stands_out() -> None:
    def point(name: str, at: float, speed: float, color: str = "#000000") -> Point:
        return Point(name, Estimate(at), Estimate(speed), color)

    few = [point("vanilla", 1, 100), point("slow", 0.9, 50), point("sd", 1, 300, FREE)]
    assert stand_out(few) == few
    crowd = [point(f"arm_{i}", 0.9, 100 + i) for i in range(CROWD)]
    coins = [point("coin_mix@0.5", 0.95, 400, FREE), point("coin_slim@0.5", 0.95, 900, FREE)]
    best = [point("exact", 1, 350), point("gate", 0.99, 500), point("fast", 0.8, 2000)]
    named = [one.name for one in stand_out([*few, *crowd, *coins, *best])]
    assert named == ["vanilla", "sd", "coin_mix@0.5", "exact", "gate", "fast"]


def test_fidelities_are_spread_and_gathered() -> None:
    values = np.array([0.5, 0.99, 0.999, 1.0, 1.01])
    assert np.allclose(gather(spread(values)), values)
    assert (np.diff(spread(values)) > 0).all()
    assert spread(values)[2] - spread(values)[1] > 0.05
