"""Every yaml of a data set reads records as the set's page describes them: prompts, shots, references, scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.config import CHECKOUT, make
from experiments.tasks.base import Procedural
from experiments.tasks.data import DataTask
from experiments.tasks.programs import Programs

FOLDER = CHECKOUT / "conf" / "task"
# Made up in the fields of each set; N is the record's number.
SCHEMAS: dict[str, Any] = {
    "gsm8k": {"question": "How many are N?", "answer": "They are N.\n#### N"},
    "mbpp": {
        "task_id": 0, "text": "Write f for N.", "code": "def f():\n    return N", "test_setup_code": "",
        "test_list": ["assert f() == N", "assert f() > -1"], "challenge_test_list": [],
    },
    "humaneval": {
        "task_id": "T/N", "prompt": 'def f():\n    """Return N."""\n', "entry_point": "f",
        "canonical_solution": "    return N\n", "test": "def check(candidate):\n    assert candidate() == N",
    },
    "math500": {"problem": "What is N?", "solution": r"It is $\boxed{N}$.", "answer": "N", "level": 1},
    "mmlu": {"question": "Is it N?", "subject": "s", "choices": ["no", "N", "yes", "never"], "answer": 1},
    "squad_v2": {
        "id": "N", "title": "T", "context": "It is N now.", "question": "What is it, N?",
        "answers": {"text": ["N", "N now"], "answer_start": [6, 6]},
    },
    "web_questions": {"url": "u", "question": "what is N?", "answers": ["N", "number N"]},
    "natural_questions": {"question": "what is N", "answer": ["N"]},
    "trivia_qa": {"question": "What is N?", "answer": {"value": "N", "aliases": ["N", "No. N"], "type": "x"}},
    "xsum": {"document": "Long text N.", "summary": "Text N.", "id": "N"},
    "cnn_dailymail": {"article": "Long text N.", "highlights": "Text N.\nMore.", "id": "N"},
    "wmt14_en_de": {"translation": {"en": "It is N.", "de": "Es ist hier N."}},
    "mt_bench": {"category": "math", "prompt": ["What is N?", "And more?"], "reference": [], "prompt_id": 0},
    "spec_bench": {"question_id": "N", "category": "rag", "turns": ["What is N?"], "reference": [["N", "M"]]},
    "jsonl": {"prompt": "What is N?"},
}  # fmt: skip
UNJUDGED = ("mt_bench", "jsonl", "math500")  # no scorer, or one that may not be installed


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def records(name: str, numbers: range) -> str:
    """Records of a set's form as JSON lines."""
    text = json.dumps(SCHEMAS[name])
    return "".join(text.replace("N", str(n)) + "\n" for n in numbers)


def made(name: str, folder: Path) -> DataTask:
    """The yaml's task on made-up records of all its splits."""
    node = compose("config", [f"task={name}", f"task.path={folder}"])["task"]
    splits = [node.source.test, node.source.train, node.source.shots]
    for place, split in enumerate(splits):
        if split is not None:
            (folder / f"{split}.jsonl").write_text(records(name, range(1000 * place, 1000 * place + 300)))
    task = make(node, "task")
    assert isinstance(task, DataTask)
    return task


def test_every_yaml_of_a_set_is_tried_here() -> None:
    targets = {path.stem: make(OmegaConf.load(path), "task") for path in FOLDER.glob("*.yaml")}
    assert {name for name, task in targets.items() if not isinstance(task, Procedural)} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_prompts_references_and_scores(name: str, tmp_path: Path) -> None:
    task = made(name, tmp_path)
    for asked in (task, task.in_chat()):
        told = asked.examples("test", 1)[0].prompt
        assert told.strip() and "{" not in told.replace(r"\boxed{}", "")
        assert len(asked.examples("calibration", 3)) == 3
    plain = task.examples("test", 1)[0]
    assert plain.reference.strip() or name in ("mt_bench", "spec_bench", "jsonl")
    if isinstance(task, Programs):
        assert task.scores(plain, plain.reference.removesuffix("\n[DONE]")) == {"compiles": 1.0}
    elif name not in UNJUDGED:
        assert task.scores(plain, plain.reference or plain.metadata["references"][0])[task.quality_name] == 1.0
        assert task.scores(plain, "nothing like it")[task.quality_name] < 0.5


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_solutions_pass_when_they_are_run(name: str, tmp_path: Path) -> None:
    task = replace(made(name, tmp_path), allow_code_execution=True)  # type: ignore[call-arg]
    example = task.examples("test", 1)[0]
    gold = example.reference.removesuffix("\n[DONE]")
    assert task.score(example, gold) == 1.0
    assert task.score(example, gold.replace("return", "return 1 +")) == 0.0


def test_a_question_without_an_answer_is_answered_by_saying_so(tmp_path: Path) -> None:
    task = made("squad_v2", tmp_path)
    record = {**SCHEMAS["squad_v2"], "answers": {"text": [], "answer_start": []}}
    (tmp_path / "validation.jsonl").write_text(json.dumps(record))
    example = task.examples("test", 1)[0]
    assert task.score(example, " unanswerable") == 1.0 and task.score(example, " N") == 0.0
