"""What W&B is told of a run, part by part, without W&B."""

from __future__ import annotations

import json

import pytest

from experiments.logged.artifacts import heads, masks
from experiments.logged.curves import Curves, by_example
from experiments.logged.facts import LIVE_NOTICE, automatic_tags, configuration, flatten, objective
from experiments.logged.rounds import MOST_BINS, by_round, histogram, histograms
from experiments.logged.session import without_texts
from experiments.logged.tables import columns, positions, table
from experiments.records import TRACE, Row
from tests.test_tracking import ROWS, RUN


def test_table_holds_scalars() -> None:
    lines = [dict(zip(columns(True), line, strict=True)) for line in table(ROWS, texts=True)]
    assert lines[0] | {"decode_seconds": 2.0, "fidelity": 0.5, "text": "secret", "rounds": 4} == lines[0]
    assert lines[1]["error"] == "RuntimeError: boom" and lines[1]["fidelity"] is None
    assert all(value is None or isinstance(value, str | int | float) for line in lines for value in line.values())


def test_flat_names() -> None:
    summary = {"sd": {"speedup": {"value": 2.0, "low": 1.0, "high": 3.0}, "n_timed": 4}}
    assert flatten(summary) == {"sd/speedup": 2.0, "sd/speedup.low": 1.0, "sd/speedup.high": 3.0, "sd/n_timed": 4}


def test_the_objective_is_negative_below_the_bound() -> None:
    numbers = {"mine/speedup": 1.7, "mine/fidelity": 0.98, "sd/speedup": 2.5}
    assert objective(numbers, "mine", "method/speedup", 0.97) == 1.7
    assert objective(numbers, "mine", "mine/speedup", 0.99) == pytest.approx(-0.01)
    assert objective(numbers, "mine", "sd/speedup", None) == 2.5
    for name, bound in (("method/speed", None), ("sd/speedup", 0.9)):
        with pytest.raises(LookupError, match=f"track.objective={name}: .* is not in the summary"):
            objective(numbers, "mine", name, bound)


def test_curves_leave_out_failures() -> None:
    curves = Curves()
    points = [curves.add([row]) for row in ROWS]
    assert points[0] == {"live/example": 1, "live/vanilla/tokens_per_second": 2.0, "live/vanilla/fidelity": 0.5}
    assert points[1] == {**points[0], "live/example": 2}
    assert points[2] == {"live/example": 3, "live/vanilla/tokens_per_second": 3.0, "live/vanilla/fidelity": 0.75}
    assert [[row.index for row in rows] for rows in by_example([ROWS[2], ROWS[0], ROWS[2]])] == [[0], [2, 2]]


def test_a_live_run_is_known_by_its_notice() -> None:
    assert configuration({**RUN, "notices": [LIVE_NOTICE]})["live"] and not configuration(RUN)["live"]


def test_tags_are_no_longer_than_wandb_takes() -> None:
    run = {**RUN, "identity": {**RUN["identity"], "device": "x" * 100}}  # type: ignore[dict-item]
    assert f"device:{'x' * 57}" in automatic_tags(run) and "code:c0de" in automatic_tags(run)


# --- rounds -------------------------------------------------------------------------------------------------------


def traced(arm: str, *rounds: tuple[int, int, int, int, int], adaptive: float | None = None, **more: object) -> Row:
    """A timed row whose rounds have these numbers: drafted, judged, rejected, committed, pending."""
    rest = ["", "", None, []]
    trace = [[*one, *rest, *([] if adaptive is None else [{"stop": {"length": adaptive + i}}])]
             for i, one in enumerate(rounds)]  # fmt: skip
    assert all(len(one) <= len(TRACE) for one in trace)
    drafted = sum(one[0] for one in rounds)
    return Row("a", arm, 0, decode_seconds=[1.0], trace=trace, drafted=drafted, **more)  # type: ignore[arg-type]


def test_histograms_of_rounds() -> None:
    shares = {"reader_seconds": {"draft": 1.0}, "profiled_seconds": 4.0}
    rows = [
        traced("via", (5, 5, 1, 4, 2), (5, 3, 0, 3, 0), adaptive=3.5, **shares),  # type: ignore[arg-type]
        traced("vanilla", (0, 0, 0, 1, 0)),
        Row("b", "via", 1, decode_seconds=[], trace=rounds_of_an_untimed_row()),
    ]  # fmt: skip
    told = histograms(rows, ["via", "vanilla", "absent"])
    assert told["rounds/via/committed"] == {"counts": [1, 1], "edges": [2.5, 3.5, 4.5]}
    assert told["rounds/via/drafted"] == {"counts": [2], "edges": [4.5, 5.5]}
    assert told["rounds/via/accepted"] == {"counts": [1, 1], "edges": [2.5, 3.5, 4.5]}
    assert told["rounds/via/pending"] == {"counts": [1, 0, 1], "edges": [-0.5, 0.5, 1.5, 2.5]}
    assert sum(told["rounds/via/stop.length"]["counts"]) == 2
    assert sum(told["examples/via/time_share.draft"]["counts"]) == 1 and "examples/via/time_share.other" in told
    assert not any(name.startswith("rounds/vanilla") for name in told)


def rounds_of_an_untimed_row() -> list[list[object]]:
    return [[9, 9, 9, 9, 9, "", "", None, []]]


def test_a_histogram_has_no_more_bins_than_wandb_shows() -> None:
    wide = histogram([0, 10_000])
    assert len(wide["counts"]) < MOST_BINS and sum(wide["counts"]) == 2
    assert histogram([0.25] * 3)["counts"].count(3) == 1


def test_means_by_round_stop_where_few_examples_reach() -> None:
    rows = [traced("via", *[(5, 5, 0, size, 0)] * length) for size, length in ((2, 1), (4, 2), (6, 2), (8, 3))]
    assert by_round(rows, ["via", "absent"], "committed") == {"via": [5.0, 6.0]}


def test_positions() -> None:
    rows = [
        Row("a", "sd", 0, drafted_at=[2, 2], judged_at=[2, 1], accepted_at=[1, 0]),
        Row("b", "sd", 1, drafted_at=[1], judged_at=[1], accepted_at=[1]),
        Row("c", "sd", 2, error="boom"),
        Row("a", "draft_only", 0, drafted_at=[3], judged_at=[0], accepted_at=[0]),
    ]
    assert positions(rows, ["sd", "draft_only", "vanilla"]) == [
        ["sd", 0, 3, 3, 2, 2 / 3], ["sd", 1, 2, 1, 0, 0.0], ["draft_only", 0, 3, 0, 0, None],
    ]  # fmt: skip


# --- artifacts ----------------------------------------------------------------------------------------------------


def test_arms_that_share_a_mask_are_told_together() -> None:
    def view(*kept: int) -> dict[str, object]:
        return {"_target_": "SlimView", "mask": list(kept), "skip_ratio": 0.5}

    identity = {
        "pair": {"models": {"target": "abc"}},
        "arms": {
            "one": {"verifier": {"slim": view(0, 3), "above": [{"slim": view(0, 1, 2)}]}},
            "two": {"drafter": {"slim": view(0, 3)}},
            "open": {"verifier": {"slim": {"mask": "auto", "skip_ratio": 0.5}}},
            "sd": {"verifier": {"slim": None}},
        },
    }
    told = masks(identity)
    assert [(one["name"], one["metadata"]["arms"]) for one in told] == [
        ("mask-abc-0.5", ["one", "two"]),
        ("mask-abc-0.5", ["one"]),
    ]
    assert json.loads(told[0]["texts"]["mask.json"]) == {"target_hash": "abc", "skip_ratio": 0.5, "kept": [0, 3]}


def test_where_a_head_lies_is_no_content() -> None:
    run = {
        "identity": {"heads": {"eagle3": "beef"}},
        "config": {"pair": {"heads": {"eagle3": "viasd://reference/eagle3", "eagle1": "unused"}}},
    }
    (told,) = heads(run, upload=False)
    assert (told["name"], told["type"], told["folder"]) == ("head-eagle3", "head", None)
    assert told["metadata"]["source"] == "viasd://reference/eagle3"
    assert json.loads(told["texts"]["head.json"]) == {"head": "eagle3", "hash": "beef"}
    (told,) = heads(run, upload=True)
    assert told["folder"].endswith("viasd/reference/eagle3")


def test_a_row_without_its_output() -> None:
    row = Row("a", "sd", 0, text="two\u2028lines", token_ids=[1, 2], new_tokens=2)
    told = json.loads(without_texts(row.to_json() + "\n"))
    assert set(json.loads(row.to_json())) - set(told) == {"text", "token_ids"} and told["new_tokens"] == 2
