"""Which runs stand in one table, what is refused by which line, and how a table tells what it mixes on request."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import tables
from experiments.comparability import COMPARABLE, MIXABLE, check_comparable, columns, footer, mixed, parse_mix, texts
from experiments.errors import UserError
from experiments.records import Row
from experiments.store import RunFolder

ARMS = ("vanilla", "sd", "coin_mix@0.5", "draft_only")
SPEED = {"vanilla": 1.0, "sd": 0.5, "coin_mix@0.5": 0.4, "draft_only": 0.2}
IDENTITY: dict[str, Any] = {
    "arms": {arm: {} for arm in ARMS},
    "sampling": {"temperature": 0.0},
    "pair": {"name": "reference", "models": {"target": "23f0", "draft": "06e9"}},
    "device": "one processor",
    "dtype": "float32",
    "threads": 1,
    "mode": "fused",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "code_hash": "11de",
    "chat": False,
    "seed": 0,
}
CONFIG = {"method": {"name": "via_sd", "stop": {"length": 5}}, "arms": list(ARMS), "limit": 3}


def store(
    results: Path, run_id: str, task: str, config: Any = CONFIG, waited: float = 0.0, task_keys: Any = None, **own: Any
) -> tables.StoredRun:
    """A run of three examples as the runner leaves it, read back."""
    folder = RunFolder(results, run_id)
    folder.create()
    identity = {**IDENTITY, "task": {"name": task, "examples": f"hash of {task}", **(task_keys or {})}, **own}
    folder.write_run({"status": "done", "identity": identity, "config": config})
    losses = {"coin_mix@0.5": 0.1, "draft_only": 0.2}
    folder.append(
        Row(
            f"e{index}", arm, index, new_tokens=10, token_loss=[losses.get(arm, 0.0)] * 10, rounds=5, quality=1.0,
            decode_seconds=[SPEED[arm] * (1 + index)], prefill_seconds=[0.0], waited_seconds=[waited],
        )
        for index in range(3)
        for arm in identity["arms"]
    )  # fmt: skip
    return tables.read(folder)


def main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path, *typed: str
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    monkeypatch.setattr("sys.argv", ["tables", *typed, "--results", str(results), "--name", "x"])
    code: Any = 0
    try:
        tables.main()
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


CHANGED: dict[str, tuple[Any, str]] = {
    "code_hash": ("6d14", "code_hash: 11de (qa), 6d14 (coding)"),
    "device": ("an H100", "device: one processor (qa), an H100 (coding)"),
    "dtype": ("bfloat16", "dtype: float32 (qa), bfloat16 (coding)"),
    "threads": (4, "threads: 1 (qa), 4 (coding)"),
    "mode": ("eager", "mode: fused (qa), eager (coding)"),
    "chat": (True, "chat: False (qa), True (coding)"),
    "seed": (1, "seed: 0 (qa), 1 (coding)"),
    "optional": ({"numba": "0.61"}, "optional: none (qa), numba 0.61 (coding)"),
    "heads": ({"eagle3": "ab"}, "heads: none (qa), eagle3 ab (coding)"),
    "versions": (
        {"python": "3.11.7", "torch": "2.12.0"}, "versions: torch 2.13.0 (qa), torch 2.12.0 (coding)",
    ),
    "pair": (
        {"name": "reference", "models": {"target": "23f0", "draft": "ffff"}},
        "pair: models.draft 06e9 (qa), models.draft ffff (coding)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGED)
def test_runs_that_differ_are_refused_and_mixed_on_request(key: str, tmp_path: Path) -> None:
    value, told = CHANGED[key]
    runs = [store(tmp_path, "one", "qa"), store(tmp_path, "two", "coding", **{key: value})]
    with pytest.raises(UserError) as refused:
        tables.summaries(runs)
    assert str(refused.value) == (
        f"runs on qa, coding are not comparable: they differ in {key} ({told}); "
        f"accepted: runs that agree in them, or --mix {key}"
    )
    with pytest.raises(UserError):
        tables.summaries(runs, [one for one in MIXABLE if one != key])
    assert tables.summaries(runs, [key])[1] == list(ARMS)
    (line,) = footer(runs)
    assert line.startswith(f"Mixed on request: {told}. ")


def test_every_key_is_tried_here() -> None:
    assert {*CHANGED, "settings", "prompts", "sampling"} == set(COMPARABLE)


def test_runs_that_agree_are_told_nothing(tmp_path: Path) -> None:
    runs = [store(tmp_path, "one", "qa"), store(tmp_path, "two", "coding", config={**CONFIG, "limit": 9})]
    check_comparable(runs)
    assert mixed(runs) == {} == columns(runs) and footer(runs) == [] and tables.notes(runs) == []


def test_arms_of_one_name_with_other_settings_are_refused(tmp_path: Path) -> None:
    other = {**CONFIG, "method": {"name": "via_sd", "stop": {"length": 8}}}
    runs = [store(tmp_path, "one", "qa"), store(tmp_path, "two", "coding", config=other)]
    told = r"settings: method.stop.length 5 \(qa\), method.stop.length 8 \(coding\)"
    with pytest.raises(UserError, match=told):
        check_comparable(runs)
    check_comparable(runs, ["settings"])
    assert texts([{"a": place} for place in (1, 2, 1)]) == ["a 1", "a 2", "a 1"]
    long: list[dict[str, int]] = [dict.fromkeys("abcdefgh", place) for place in (1, 2, 1)]
    assert texts(long)[0] == "a 1, b 1, c 1, d 1, e 1, f 1 and 2 more" == texts(long)[2]
    late = [{**long[0], "h": place} | dict.fromkeys("xyz", 0) for place in (1, 2)]
    assert texts([*late, {}])[:2] == [
        "a 1, b 1, c 1, d 1, e 1, f 1 and 5 more [1]", "a 1, b 1, c 1, d 1, e 1, f 1 and 5 more [2]",
    ]  # fmt: skip


def test_arms_and_temperatures_are_never_mixed(tmp_path: Path) -> None:
    one = store(tmp_path, "one", "qa")
    fewer = store(tmp_path, "fewer", "coding", arms={"vanilla": {}, "sd": {}})
    with pytest.raises(UserError, match=r"differ in arms \(vanilla, sd, coin_mix@0.5, draft_only; vanilla, sd\)"):
        check_comparable([one, fewer], MIXABLE)
    warm = store(tmp_path, "warm", "coding", sampling={"temperature": 1.0}, dtype="float64")
    with pytest.raises(UserError, match="they differ in sampling") as refused:
        check_comparable([one, warm], MIXABLE)
    assert "--mix" not in str(refused.value)


def test_seeds_of_one_task_need_the_same_prompts(tmp_path: Path) -> None:
    runs = [store(tmp_path, "one", "qa"), store(tmp_path, "two", "qa", seed=1), store(tmp_path, "three", "coding")]
    assert list(tables.places(runs[:2])) == ["qa"]
    with pytest.raises(UserError, match=r"seed: 0, 1 \(qa seed 0, qa seed 1\), 0 \(coding\)\); .*--mix seed"):
        tables.places(runs)
    assert columns(runs) == {"seed": {"qa": "0, 1", "coding": "0"}}
    harder = store(tmp_path, "harder", "qa", seed=1, task_keys={"level": 3, "examples": "others"})
    told = (
        r"prompts: examples hash of qa \(qa seed 0\), examples others, level 3 \(qa seed 1\)\); "
        ".*or --mix prompts$"
    )
    with pytest.raises(UserError, match=told):
        tables.places([runs[0], harder])
    assert len(tables.places([runs[0], harder], ["prompts"])["qa"][0]["sd"].timed.rows) == 6


def test_a_table_names_what_it_mixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "one", "qa", waited=0.1)
    store(tmp_path, "two", "coding", device="an H100", dtype="bfloat16")
    code, out, err = main(monkeypatch, capsys, tmp_path, "one", "two", "--mix", "device", "--mix", "dtype,code_hash")
    section = (tmp_path / "tables" / "x.md").read_text()
    line = (
        "Mixed on request: device: one processor (qa), an H100 (coding); dtype: float32 (qa), bfloat16 (coding). "
        "Ratios are within a run, means over unlike runs."
    )
    note = (
        "Note: task qa: 12 of 12 timed generations waited for a core for more than 2% of their seconds "
        "(of all seconds: 25.0% in draft_only, the most, 5.0% in vanilla, the least)."
    )
    assert (code, err) == (0, "") and line in out and note in out and line in section and note in section
    where = "Pair reference, temperature 0, mode fused, 1 thread(s), python 3.11.7, torch 2.13.0, code 11de."
    assert where in section and not (tmp_path / "tables" / "x_frontier.md").exists()
    with (tmp_path / "tables" / "x.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(one["task"], one["device"], one["dtype"]) for one in lines} == {
        ("qa", "one processor", "float32"),
        ("coding", "an H100", "bfloat16"),
        (tables.MEAN, "one processor | an H100", "float32 | bfloat16"),
    }


@pytest.mark.parametrize(
    ("more", "file"),
    [(["--frontier"], "x_frontier.md"), (["--trainings", "a=sd", "--trainings", "b=draft_only"], "x_trainings.md")],
)
def test_other_tables_mix_likewise(
    more: Sequence[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "one", "qa")
    store(tmp_path, "two", "coding", device="an H100")
    code, _, err = main(monkeypatch, capsys, tmp_path, "one", "two", *more)
    assert code == 2 and err.count("\n") == 1 and "they differ in device" in err
    code, out, err = main(monkeypatch, capsys, tmp_path, "one", "two", *more, "--mix", "device")
    assert (code, err) == (0, "") and "Mixed on request: device: one processor (qa), an H100 (coding)" in out
    assert "Mixed on request" in (tmp_path / "tables" / file).read_text()
    for path in (tmp_path / "tables").glob("*.csv"):
        assert path.read_text().splitlines()[0].endswith(",high,device")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("devise", "--mix devise: not a key that may differ; did you mean 'device'?; accepted: chat, code_hash"),
        ("dtype,", "--mix : not a key that may differ; accepted: chat"),
        ("sampling", "--mix sampling: not a key that may differ"),
    ],
)
def test_mistakes(
    typed: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "one", "qa")
    code, _, err = main(monkeypatch, capsys, tmp_path, "one", "--mix", typed)
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1
    assert parse_mix([]) == () and parse_mix(["pair,sampling", "task"], ("pair", "sampling", "task"))[2] == "task"
