"""The real sets of $VIASD_DATA or ../shared/data, which are no part of the project: skipped where they are absent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import CHECKOUT, make
from experiments.plan import describe_task
from experiments.tasks.files import read_file
from experiments.tasks.scorers.answers import read_number

DATA = Path(os.environ.get("VIASD_DATA") or CHECKOUT.parent / "shared" / "data")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"needs {name} in $VIASD_DATA or ../shared/data")


@pytest.fixture(autouse=True)
def _hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VIASD_DATA", str(DATA))
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def made(name: str, *overrides: str) -> Any:
    return make(compose("config", [f"task={name}", *overrides])["task"], "task")


@needs("gsm8k")
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_answer_of_gsm8k_is_read(split: str, count: int) -> None:
    answers = [row["answer"] for row in read_file(DATA / "gsm8k" / f"{split}.jsonl", "path")]
    gold = [Decimal(answer.rpartition("####")[2].strip().replace(",", "")) for answer in answers]
    assert len(answers) == count and [read_number(answer) for answer in answers] == gold


@needs("gsm8k")
def test_gsm8k_has_eight_shots_of_its_train_split() -> None:
    task = made("gsm8k")
    test, held = task.examples("test"), task.examples("calibration")
    assert len(test) == 1319 and 500 < len(held) < 1000
    shots = {one.prompt.rpartition("Question:")[0] for one in test + held}
    assert len(shots) == 1 and shots.pop().count("Question:") == 8
    assert all(task.score(one, one.reference) == 1.0 for one in test[:50])
    assert task.score(test[0], "#### 123456") == 0.0


@needs("humaneval")
def test_humaneval_is_split_and_its_solutions_compile() -> None:
    task = made("humaneval")
    test, held = task.examples("test"), task.examples("calibration")
    assert len(test) + len(held) == 164 and len(held) == 12
    assert not {one.prompt for one in test} & {one.prompt for one in held}
    assert all(task.scores(one, one.reference) == {"compiles": 1.0} for one in test)


@needs("humaneval")
def test_solutions_of_humaneval_pass_and_others_do_not() -> None:
    task = made("humaneval", "task.allow_code_execution=true")
    for example in task.examples("test", 6):
        assert task.score(example, example.reference) == 1.0
        assert task.score(example, "    return None\n") == 0.0


@needs("spec_bench")
def test_spec_bench_has_480_prompts_in_six_groups() -> None:
    task = made("spec_bench")
    examples = task.examples("test")
    first = [one for one in examples if one.follows is None]
    assert Counter(one.metadata["group"] for one in first) == dict.fromkeys(task.groups, 80)
    assert Counter(one.metadata["group"] for one in examples if one.follows) == {"mt_bench": 80}
    assert len({one.example_id for one in examples}) == 560
    for one in examples:
        gold = one.metadata["references"]
        scored = task.scores(one, gold[0] if gold else "")
        assert scored.get("group_score") == (1.0 if one.metadata["group"] in task.metrics else None)


@needs("spec_bench")
def test_a_group_of_spec_bench_is_a_task() -> None:
    found = made("spec_bench", "task.group=rag").examples("test")
    assert len(found) == 80 and {one.metadata["group"] for one in found} == {"rag"}
    assert len(made("spec_bench", "task.group=mt_bench").in_chat().examples("test")) == 160


@needs("gsm8k")
def test_where_data_lies_is_no_part_of_who_a_task_is() -> None:
    found, named = made("gsm8k"), made("gsm8k", f"task.path={DATA / 'gsm8k'}")
    assert describe_task(found, found.examples("test")) == describe_task(named, named.examples("test"))
    assert describe_task(found, [])["scorer"] == {"final_number": ""}
