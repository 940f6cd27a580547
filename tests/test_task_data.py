"""Tasks of records: formats, splits, order, shots, templates, mistakes, and the hub."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from datasets.exceptions import DatasetNotFoundError
from hydra import initialize_config_dir
from pyarrow import parquet
from pydantic import ValidationError

from experiments.config import CHECKOUT
from experiments.errors import UserError
from experiments.probing.setup import compose_tasks
from experiments.tasks.base import Procedural
from experiments.tasks.data import DataTask, Jsonl, flatten
from experiments.tasks.files import KINDS, Record
from experiments.tasks.forms import Form, fill, lookup
from experiments.tasks.grouped import Grouped
from experiments.tasks.programs import Programs
from experiments.tasks.qa import Qa
from experiments.tasks.scorers.registry import SCORERS
from experiments.tasks.sources import Source
from viasd.models import Pair

ROWS: list[Record] = [{"q": f"What is {n} + {n}?", "a": [str(2 * n)], "n": n} for n in range(200)]
FORM = Form(prompt="Q: {q}\nA:", answer=" {a.0}")


def write(path: Path, rows: list[Record]) -> Path:
    """Rows in the format that the path's name promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


def task(path: Path | None, **changes: Any) -> DataTask:
    """A task of these rows."""
    source = Source(train="train")
    given: dict[str, Any] = {"form": FORM, "source": source, "reference_field": "a", "metric": "exact_match"}
    return DataTask(name="sums", path=None if path is None else str(path), **given | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file for each split; five records of the train split are in the test, too."""
    write(tmp_path / "test.jsonl", ROWS[:50])
    write(tmp_path / "train.jsonl", ROWS[45:])
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"sums{kind}", ROWS[:20])
    found = task(path, calibration_percent=0).examples("test")
    assert found == task(write(tmp_path / "plain.jsonl", ROWS[:20]), calibration_percent=0).examples("test")
    assert {one.prompt for one in found} == {f"Q: What is {n} + {n}?\nA:" for n in range(20)}
    assert {(one.prompt, one.reference, *one.metadata["references"]) for one in found} >= {
        ("Q: What is 3 + 3?\nA:", " 6", "6")
    }


def test_the_order_is_the_seeds_and_a_limit_takes_a_prefix(folder: Path) -> None:
    whole = task(folder).examples("test")
    assert len(whole) == 50 and task(folder).examples("test", 7) == whole[:7]
    other = task(folder, seed=1).examples("test")
    assert other != whole and sorted(one.prompt for one in other) == sorted(one.prompt for one in whole)
    assert {one.example_id for one in other} == {one.example_id for one in whole}
    assert [one.prompt for one in whole] != [f"Q: {row['q']}\nA:" for row in ROWS[:50]]
    assert task(folder, test_size=9).examples("test") == whole[:9]


def test_the_order_does_not_depend_on_that_of_the_file(tmp_path: Path) -> None:
    forth, back = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[::-1])
    assert task(forth).examples("test") == task(back).examples("test")


def test_splits_are_disjoint_and_go_by_content(folder: Path) -> None:
    prompts = {
        split: {one.prompt for one in task(folder).examples(split)} for split in ("train", "calibration", "test")
    }
    assert {name: len(found) for name, found in prompts.items()} == {"train": 136, "calibration": 14, "test": 50}
    assert len(set.union(*prompts.values())) == 200  # the five that are in the test are nowhere else
    assert prompts["train"] == {one.prompt for one in task(folder, seed=5).examples("train")}


def test_without_a_train_split_the_test_never_uses_what_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", ROWS)
    test, held = (task(path).examples(split) for split in ("test", "calibration"))
    assert len(test) + len(held) == 200 and 10 <= len(held) <= 35
    assert not {one.prompt for one in test} & {one.prompt for one in held}
    assert task(path).examples("train") == []


def test_with_nothing_held_out_calibration_is_procedural(tmp_path: Path) -> None:
    whole = task(write(tmp_path / "all.jsonl", ROWS), calibration_percent=0)
    assert len(whole.examples("test")) == 200
    assert whole.examples("calibration", 3) == Qa().examples("calibration", 3)


def test_equal_records_stay_apart(tmp_path: Path) -> None:
    found = task(write(tmp_path / "twice.jsonl", [ROWS[0]] * 3), calibration_percent=0).examples("test")
    assert len({one.example_id for one in found}) == len(found) == 3


def test_shots_come_from_the_train_split_and_are_used_nowhere_else(folder: Path) -> None:
    shown = task(folder, form=replace(FORM, shots=(9, {"q": "Why?", "a": ["So"]}), preamble="Add.\n"))
    first = shown.examples("test")[0]
    assert first.prompt.startswith("Add.\nQ: What is 54 + 54?\nA: 108\n\nQ: Why?\nA: So\n\nQ: What is ")
    assert first.prompt.count("Q:") == 3 and first.prompt.endswith("A:")
    assert first.example_id == task(folder).examples("test")[0].example_id
    others = [one.prompt.rpartition("\n\n")[2] for split in ("train", "calibration") for one in shown.examples(split)]
    assert len(others) == 149 and "Q: What is 54 + 54?\nA:" not in others


def test_shots_are_never_of_the_test(folder: Path) -> None:
    with pytest.raises(UserError, match=r"task\.form\.shots\.0: this record is in the test split"):
        task(folder, form=replace(FORM, shots=(ROWS[3],))).examples("test")
    with pytest.raises(UserError, match=r"shots\.0: this record is in the test split"):
        task(folder, form=replace(FORM, shots=(0,))).examples("test")  # the first of the train split is one of the five
    for wrong in ({"shots": "test"}, {"train": "test"}):
        with pytest.raises(ValidationError, match="source: split 'test' is the test's"):
            task(folder, source=Source(**wrong))
    with pytest.raises(UserError, match=r"shots=\[9\]: split 'train' of task sums has 0 records; accepted: .*records"):
        task(write(folder / "one.jsonl", ROWS), form=replace(FORM, shots=(9,))).examples("test")


def test_a_chat_model_is_asked_without_shots_where_it_has_a_prompt_of_its_own(folder: Path) -> None:
    plain = task(folder, form=replace(FORM, shots=(9,)), stop_strings=("\n",), chat_stop_strings=("END",))
    same = plain.in_chat()
    assert same.stop_strings == ("END",) and same.examples("test") == plain.examples("test")
    asked = replace(plain, form=replace(plain.form, chat_prompt="Please: {q}")).in_chat().examples("test")
    assert {one.prompt for one in asked} == {f"Please: {row['q']}" for row in ROWS[:50]}


def test_data_is_found_in_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIASD_DATA", str(tmp_path))
    write(tmp_path / "sums" / "questions.jsonl.gz", ROWS[:30])
    write(tmp_path / "sums" / "data" / "train-00000-of-00002.parquet", ROWS[30:60])
    write(tmp_path / "sums" / "data" / "train-00001-of-00002.parquet", ROWS[60:90])
    source = Source(train="train", folder="sums", files={"test": "questions"})
    found = task(None, source=source, train_rows=50)
    assert len(found.examples("test")) == 30
    assert len(found.examples("train")) + len(found.examples("calibration")) == 50
    with pytest.raises(UserError, match=r"on no hub .*task\.path=FILE.*test\{\.jsonl,.*\} in \$VIASD_DATA/other"):
        task(None, source=Source(folder="other")).examples("test")


def test_any_json_lines_are_a_task(tmp_path: Path) -> None:
    rows = [{"ask": {"text": f"Say {n}"}, "gold": n} for n in range(4)]
    path = str(write(tmp_path / "own.jsonl", rows))
    form = Form(prompt="{prompt}")
    own = Jsonl(
        name="jsonl", path=path, form=form, prompt_field="ask.text", reference_field="gold", metric="contains",
        calibration_percent=0,
    )  # fmt: skip
    found = own.examples("test")
    assert sorted(one.prompt for one in found) == ["Say 0", "Say 1", "Say 2", "Say 3"]
    assert own.scores(found[0], f"It is {found[0].prompt[4:]}.") == {"contains": 1.0} and own.quality_name == "contains"
    silent = replace(own, reference_field=None)
    assert silent.scores(silent.examples("test")[0], "1") == {}
    with pytest.raises(
        UserError, match=r"task jsonl: prompt_field=prompt: field 'prompt' is not .*accepted: ask\.text, gold"
    ):
        replace(own, prompt_field="prompt").examples("test")


def test_groups_have_scorers_of_their_own(tmp_path: Path) -> None:
    rows = [{"kind": kind, "q": f"{kind}?", "r": ["7"]} for kind in ("add", "talk", "sing", "other")]
    groups = {"sums": ("add",), "chat": ("talk", "sing")}
    made = Grouped(
        name="g", path=str(write(tmp_path / "g.jsonl", rows)), form=Form(prompt="{q}"), calibration_percent=0,
        reference_field="r", group_field="kind", groups=groups, metrics={"sums": "final_number"},
    )  # fmt: skip
    found = {one.prompt: one for one in made.examples("test")}
    assert sorted(found) == ["add?", "sing?", "talk?"]
    assert made.scores(found["add?"], "#### 7") == {"group_score": 1.0, "final_number": 1.0}
    assert made.scores(found["talk?"], "#### 7") == {} and found["talk?"].metadata["references"] == []
    assert [one.prompt for one in replace(made, group="sums").examples("test")] == ["add?"]
    with pytest.raises(ValidationError, match="group=sum: no such group; did you mean 'sums'"):
        replace(made, group="sum")
    with pytest.raises(ValidationError, match=r"metrics\.chat=blue: no such scorer"):
        replace(made, metrics={"chat": "blue"})


def programs(path: Path, **changes: Any) -> Programs:
    rows = [{"head": "def two():\n", "name": "two", "test": "assert two() == 2"}]
    return Programs(
        name="code", path=str(write(path / "code.jsonl", rows)), form=Form(prompt="{head}"), begin="{head}",
        tests="{test}", entry_point="{name}", calibration_percent=0, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("    return 2\n", 1.0),
        ("    return 3\n", 0.0),
        ("    return (\n", 0.0),
        ("Here:\n```python\ndef two():\n    return 1 + 1\n```\nIt adds.", 1.0),
        ("```\n    return 2\n```", 1.0),
        ("```python\ndef two():\n    return 3\n```", 0.0),
    ],
)
def test_programs_are_judged_by_their_tests(tmp_path: Path, text: str, right: float) -> None:
    made = programs(tmp_path, allow_code_execution=True)
    assert made.score(made.examples("test")[0], text) == right


def test_no_program_is_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bool:
        raise AssertionError("a program was run")

    monkeypatch.setattr("experiments.tasks.programs.judge_code", fail)
    made = programs(tmp_path)
    assert made.scores(made.examples("test")[0], "    return 2\n") == {"compiles": 1.0}
    assert "task.allow_code_execution=true" in made.notices()[0] and made.quality_name == "pass_at_1"


def test_commands_that_take_all_tasks_take_those_that_need_no_data() -> None:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        pair = Pair(name="p", models={"target": "viasd://reference/target"})
        found = compose_tasks(None, pair)
        assert sorted(found) == ["coding", "qa", "reasoning", "summarization", "translation"]
        assert all(isinstance(one, Procedural) for one in found.values())
        assert [type(one) for one in compose_tasks(["gsm8k", "qa"], pair).values()] == [DataTask, Qa]
        with pytest.raises(UserError, match="tasks: 'gsm8' not found; did you mean 'gsm8k'"):
            compose_tasks(["gsm8"], pair)


def test_every_task_is_in_the_documentation() -> None:
    told = (CHECKOUT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert [path.stem for path in (CHECKOUT / "conf" / "task").glob("*.yaml") if f"`{path.stem}`" not in told] == []
    assert [name for name in SCORERS if f"`{name}`" not in told] == []


def test_templates_reach_into_records() -> None:
    record = {"a": {"b": ["x", "y"]}, "n": 2, "with.dot": "z"}
    assert fill("{a.b.1} {a.b!j} {a.b!f} {n!l} {{}} {with.dot}", record) == "y x\ny x C {} z"
    assert fill("{a!f}", {"a": []}) == ""
    assert lookup(record, "a.b") == ["x", "y"] and flatten([["x", [1]], None, "y"]) == ["x", "1", "y"]
    with pytest.raises(UserError, match=r"field 'a\.c' is not in the data; accepted: a\.b, n, with\.dot"):
        fill("{a.c}", record)
    for wrong in ("{", "{n!x}", "{a.b:d}"):
        with pytest.raises(UserError, match="template"):
            fill(wrong, record)
    with pytest.raises(UserError, match="__class__"):
        fill("{n.__class__}", record)


MISTAKES: dict[str, tuple[Callable[[Path], DataTask], str]] = {
    "no file": (lambda at: task(at / "nope.jsonl"), r"task\.path=.*nope\.jsonl: no such file; accepted: task\.path="),
    "no format": (lambda at: task(write(at / "a.csv", ROWS)), r"a\.csv: not a format.*\.jsonl\.gz"),
    "no split": (lambda at: task(write(at / "in" / "x.jsonl", ROWS).parent), r"no file of split 'test' in this folder"),
    "broken line": (lambda at: task(broken(at)), r"task\.path=.*: line 3 is not JSON"),
    "no object": (lambda at: task(write(at / "a.json", [1, 2])), "entry 1 is no JSON object"),  # type: ignore[list-item]
    "no field": (lambda at: task(write(at / "a.jsonl", [{"x": 1, "y": {"z": 2}}])), "task sums: field 'q'.*: x, y.z"),
    "empty": (lambda at: task(write(at / "a.jsonl", [])), "task sums: no record of split 'test'"),
    "no parquet": (lambda at: task(no_parquet(at)), "not a Parquet file"),
    "no gzip": (lambda at: task(no_gzip(at)), "cannot be read"),
}


def broken(at: Path) -> Path:
    path = write(at / "broken.jsonl", ROWS[:4])
    path.write_text(path.read_text().replace('{"q": "What is 2', '{q: "What is 2'))
    return path


def no_parquet(at: Path) -> Path:
    (at / "a.parquet").write_text("nothing of the kind")
    return at / "a.parquet"


def no_gzip(at: Path) -> Path:
    (at / "a.jsonl.gz").write_text("nothing of the kind")
    return at / "a.jsonl.gz"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, mistake: str) -> None:
    make, told = MISTAKES[mistake]
    with pytest.raises(UserError, match=told) as raised:
        make(tmp_path).examples("test")
    assert "\n" not in str(raised.value)


def test_an_unknown_metric_and_a_count_too_large_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="metric=exakt_match: no such scorer; did you mean 'exact_match'"):
        task(folder, metric="exakt_match")
    with pytest.raises(UserError, match="task sums has 50 test examples, 51 were asked for"):
        task(folder).examples("test", 51)
    with pytest.raises(ValueError, match="accepted: train, calibration, test"):
        task(folder).examples("validation")  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as a repository of the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", ROWS[30:])
    write(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet", ROWS[:30])
    card = {"train": "data/train-*", "validation": "data/validation-*"}
    listed = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in card.items())
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{listed}---\n")
    return tmp_path / "set"


def test_a_set_in_a_hubs_layout_is_read_by_its_splits(hub: Path) -> None:
    source = Source(hub=str(hub), config="main", test="validation", train="train")
    found = task(None, source=source, form=replace(FORM, shots=(0,)), train_rows=100)
    assert len(found.examples("test")) == 30 and "What is 30 + 30?" in found.examples("test")[0].prompt
    assert len(found.examples("train")) + len(found.examples("calibration")) == 99
    for changes, told in (({"config": "nope"}, "configurations"), ({"test": "test"}, "splits in task.source.test")):
        with pytest.raises(UserError, match=rf"task\.source\.hub=.*accepted: one of the set's {told}"):
            task(None, source=replace(source, **changes)).examples("test")  # type: ignore[arg-type]


def test_a_hub_out_of_reach_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIASD_DATA", raising=False)
    source = Source(hub="openai/gsm8k", config="main", folder="gsm8k")
    with pytest.raises(UserError, match=r"hub=openai/gsm8k .*HF_TOKEN.*task\.path=FILE.*\$VIASD_DATA/gsm8k") as raised:
        task(None, source=source).examples("test")
    assert "\n" not in str(raised.value)


REFUSALS: dict[str, tuple[Exception, str]] = {
    "gated": (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. Visit the page"), "HF_TOKEN"),
    "revision": (
        DatasetNotFoundError("Revision 'x' doesn't exist for dataset 'a/b' on the Hub."),
        "task.source.revision",
    ),
    "nowhere": (
        DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
        "task.source.hub",
    ),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "HF_HOME on another disk"),
    "script": (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "refs/convert/parquet"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_a_hub_refuses_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    error, advice = REFUSALS[refusal]

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError) as raised:
        task(None, source=Source(hub="a/b", revision="x")).examples("test")
    told = str(raised.value).split("accepted: ")[1]
    assert told.startswith(("consent", "a branch", "an id", "free disk", "task.source")) and advice in told
