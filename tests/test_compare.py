"""The refactor check: what counts as a difference, what is only told, and which runs are refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import call

from experiments.compare import main
from experiments.differences import COUNTS, compare_rows, flatten, numbers, unequal
from experiments.records import Row
from experiments.store import RunFolder

ARMS = ("vanilla", "sd")
IDENTITY: dict[str, Any] = {
    "arms": {arm: {"name": arm, "stop": {"length": 5}} for arm in ARMS},
    "order": list(ARMS),
    "sampling": {"_target_": "viasd.sampling.Sampling", "temperature": 0.0},
    "task": {"_target_": "experiments.tasks.reasoning.Reasoning", "name": "reasoning", "stop_strings": []},
    "pair": {"name": "reference", "models": {"target": "23f0", "draft": "06e9"}},
    "device": "a processor",
    "code_hash": "11de",
}


def rows(examples: int = 4, seconds: float = 0.5, arms: Sequence[str] = ARMS) -> list[Row]:
    return [
        Row(
            example_id=f"example{index}",
            arm=arm,
            index=index,
            token_ids=[7, 8, 9, index],
            new_tokens=4,
            text="a text",
            quality=1.0,
            decode_seconds=[seconds * (1 + index)],
            rounds=2,
            tiers={"target": 3},
            judged_at=[2, 1],
            calls={"target": 2},
            reader_seconds={"target": seconds},
            token_loss=[0.0] * 4,
        )
        for index in range(examples)
        for arm in arms
    ]


def store(results: Path, run_id: str, content: Sequence[Row], **identity: Any) -> Path:
    """A run as the runner leaves it."""
    folder = RunFolder(results, run_id)
    folder.create()
    folder.write_run({"status": "done", "identity": {**IDENTITY, **identity}})
    folder.append(content)
    return folder.path


def run(capsys: pytest.CaptureFixture[str], results: Path, *typed: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, f"--results={results}", *typed)


def cells(out: str, arm: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith(f"{arm} ")]
    return line.split(maxsplit=4)


def test_same_rows_at_another_speed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store(tmp_path, "before", rows())
    store(tmp_path, "after", rows(seconds=0.25), code_hash="6d14", device="another")
    code, out, err = run(capsys, tmp_path, "before", "after")
    assert code == 0 and not err
    assert "code_hash A 11de, B 6d14" in out and "device A a processor, B another" in out
    assert cells(out, "sd") == ["sd", "4", "0", "0", "2.000 [2.000, 2.000]          0.000          0.0000"]
    assert out.splitlines()[-1] == "ids and counts are identical in all 8 rows"


def test_ids_and_counts_that_differ_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changed = rows()
    changed[1].token_ids, changed[1].token_loss = [7, 8, 5, 0], [0.0, 0.0, 1.0, 0.0]  # sd, example0
    changed[3].tiers, changed[3].quality = {"target": 2, "slim": 1}, 0.0  # sd, example1
    changed[5].token_ids, changed[5].new_tokens = [7, 8, 9], 3  # sd, example2
    store(tmp_path, "before", rows())
    store(tmp_path, "after", changed)
    code, out, _ = run(capsys, tmp_path, "before", "after")
    assert code == 1
    assert cells(out, "vanilla")[2:4] == ["0", "0"] and cells(out, "sd")[1:4] == ["4", "2", "2"]
    assert cells(out, "sd")[4].split()[-2:] == ["-0.250", "-0.0625"]
    assert "sd, example example0 (index 0): same counts; ids from token 2: A 9, B 5" in out
    assert "sd, example example1 (index 1): tiers.target A 3, B 2; same ids" in out
    assert "sd, example example2 (index 2): new_tokens A 4, B 3; ids from token 3: A 2, B ended" in out
    assert "token_loss in 1 rows" in out and "quality in 1 rows" in out
    assert out.splitlines()[-1] == "ids or counts differ in 3 of 8 rows"


def test_only_few_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changed = rows(9)
    for row in changed:
        row.rounds += 1
    store(tmp_path, "before", rows(9))
    store(tmp_path, "after", changed)
    code, out, _ = run(capsys, tmp_path, "before", "after")
    assert code == 1 and out.count("rounds A 2, B 3") == 5 and "... and 13 more" in out


def test_what_one_run_alone_holds_is_said_and_no_difference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    larger = [row for row in rows(6, arms=(*ARMS, "slim_only")) if (row.arm, row.index) != ("sd", 0)]
    larger[-1].error = "out of luck"
    store(tmp_path, "small", rows(4))
    store(tmp_path, "large", larger, arms={**IDENTITY["arms"], "slim_only": {"name": "slim_only"}})
    code, out, _ = run(capsys, tmp_path, "small", "large")
    assert code == 0
    assert "only B holds: arms slim_only; 2 examples (example4, example5); 1 error rows among them" in out
    assert "only A holds: rows of shared arms and examples: sd, example example0 (index 0)" in out
    assert "arms.slim_only" not in out and cells(out, "sd")[1] == "3"


def test_error_row_in_one_run_is_a_difference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def broken(*places: int) -> list[Row]:
        content = rows()
        for place in places:
            row = content[place]
            content[place] = Row(example_id=row.example_id, arm=row.arm, index=row.index, error="out of luck")
        return content

    store(tmp_path, "before", broken(0))
    store(tmp_path, "after", broken(0, 1))
    code, out, _ = run(capsys, tmp_path, "before", "after")
    assert code == 1
    assert "only B failed: sd, example example0 (index 0): out of luck" in out and "failed in both runs: 1 rows" in out
    assert out.splitlines()[-1] == "1 rows failed in one run alone"


def test_counts_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store(tmp_path, "before", rows())
    store(tmp_path, "after", rows(seconds=2))
    code, out, _ = run(capsys, tmp_path, "before", "after", "--counts-only")
    assert code == 0 and cells(out, "sd") == ["sd", "4", "0", "0"] and "speed" not in out


def test_untimed_rows_have_no_speed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    untimed = rows()
    for row in untimed[4:]:
        row.decode_seconds = []
    store(tmp_path, "before", untimed)
    store(tmp_path, "after", rows())
    assert "4 (2 timed)" in run(capsys, tmp_path, "before", "after")[1]
    for row in untimed:
        row.decode_seconds = []
    assert all(numbers(checked).speed is None for checked in compare_rows(untimed, rows()).arms.values())


def test_a_run_folder_may_be_copied_anywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(store(tmp_path, "before", rows()), kept)
    code, out, _ = run(capsys, tmp_path, str(kept), "before")
    assert code == 0 and out.startswith(f"A {kept}, B before: reasoning")
    code, _, err = run(capsys, tmp_path, str(tmp_path / "kep"), "before")
    assert code == 2 and "'kept'" in err


def test_a_refactor_may_move_classes_and_add_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    task = {**IDENTITY["task"], "_target_": "experiments.elsewhere.Reasoning", "level": None}
    store(tmp_path, "before", rows())
    store(tmp_path, "after", rows(), task=task)
    code, out, _ = run(capsys, tmp_path, "before", "after")
    assert code == 0 and "task.level A absent, B None" in out and "task._target_" in out


# part of the identity: what is changed in it, and what the one line must name
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"name": "coding"}, "task.name A reasoning, B coding"),
    "task, stop strings": ({"stop_strings": ["\n"]}, "task.stop_strings.0 A absent, B '\\n'"),
    "pair": ({"models": {"target": "ffff", "draft": "06e9"}}, "pair.models.target A 23f0, B ffff"),
    "sampling": ({"temperature": 1.0}, "sampling.temperature A 0.0, B 1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_work_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    key, (changed, told) = name.partition(",")[0], REFUSED[name]
    store(tmp_path, "before", rows())
    store(tmp_path, "after", rows(), **{key: {**IDENTITY[key], **changed}})
    code, _, err = run(capsys, tmp_path, "before", "after")
    assert code == 2 and err.startswith(f"error: runs before and after cannot be compared: {told}; ")
    assert err.endswith(f"; accepted: runs of the same work, or --mix {key}\n")
    code, out, _ = run(capsys, tmp_path, "before", "after", "--mix", key)
    assert code == 0 and f"  {told}" in out


def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store(tmp_path, "before", rows(2))
    store(tmp_path, "others", [row for row in rows() if row.index > 1])
    damaged = store(tmp_path, "damaged", rows())
    (damaged / "rows.jsonl").write_text('{"example_id": "x", "arm": "sd", "index": 0, "color": "red"}\n')
    mistakes = {"befor": "did you mean 'before'?", "others": "share no example", "damaged": "'color'"}
    for typed, part in mistakes.items():
        code, _, err = run(capsys, tmp_path, "before", typed)
        (line,) = err.strip().splitlines()
        assert code == 2 and line.startswith("error: ") and part in line


def test_columns_that_are_compared() -> None:
    assert {"rounds", "tiers", "judged_at", "first_divergence", "calls"} <= set(COUNTS)
    assert not {"token_ids", "text", "decode_seconds", "reader_seconds", "profiled_seconds"} & set(COUNTS)
    (one,) = unequal({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}})
    assert str(one) == "a.b.1 A 2, B 3" and flatten({"a": {"b": [1]}}) == {"a.b.0": 1}
