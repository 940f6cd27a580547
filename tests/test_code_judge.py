"""Foreign code is judged by running it: the set's own solutions pass, broken ones do not, and a run says how."""

import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.errors import UserError
from experiments.tasks import code_judge
from experiments.tasks.code_judge import build_program, confinement, execution_notices, judge_code
from experiments.tasks.confined import Confinement, Sandbox

DATA = Path(os.environ.get("VIASD_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
HUMAN_EVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
EVERY = 8  # all 164 take half a minute; the others were run by hand (docs/sandbox.md)


def task(**fields: Any) -> SimpleNamespace:
    """A task of foreign code."""
    return SimpleNamespace(**{"name": "own", "allow_code_execution": True, "allow_unconfined": True} | fields)


def test_completion_goes_on_from_the_prompt_and_the_tests_are_called() -> None:
    program = build_program("def f(x):\n", "    return x", "def check(g):\n    assert g(1) == 1", "f")
    assert program == "def f(x):\n    return x\ndef check(g):\n    assert g(1) == 1\ncheck(f)\n"
    assert judge_code(program, allow_unconfined=True)
    assert build_program("", "x = 1", "assert x == 1") == "x = 1\nassert x == 1\n"
    assert not judge_code(build_program("", "x = 1", "assert x == 2"), allow_unconfined=True)
    assert not judge_code("while True: pass", 0.3, allow_unconfined=True)


def human_eval() -> list[dict[str, str]]:
    """Some of the set's problems."""
    if not HUMAN_EVAL.exists():
        pytest.skip("needs humaneval in $VIASD_DATA or ../shared/data")
    with gzip.open(HUMAN_EVAL, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][::EVERY]


@pytest.mark.parametrize(
    ("body", "expected"), [(None, True), ("    return None\n", False), ("    return 12345\n", False)]
)
def test_solutions_of_human_eval_pass_and_broken_ones_do_not(body: str | None, expected: bool) -> None:
    wrong = []
    for problem in human_eval():
        completion = problem["canonical_solution"] if body is None else body
        program = build_program(problem["prompt"], completion, problem["test"], problem["entry_point"])
        if judge_code(program, 20.0, allow_unconfined=True) != expected:
            wrong.append(problem["task_id"])
    assert not wrong


def test_record_says_what_held_where_code_runs() -> None:
    held = str(Sandbox.open(allow_unconfined=True).held)
    assert confinement(task()) == {"sandbox": held}
    assert confinement(task(allow_code_execution=False)) == {}
    assert confinement(SimpleNamespace(name="no code")) == {}


def test_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    (notice,) = execution_notices(task(allow_code_execution=False))
    assert "no quality" in notice
    assert "task.allow_code_execution=true" in notice
    monkeypatch.setattr(code_judge, "Sandbox", Opened(Confinement(("files",), ("landlock:3",))))
    assert execution_notices(task()) == []
    monkeypatch.setattr(code_judge, "Sandbox", Opened(Confinement((), ("rlimits",))))
    (notice,) = execution_notices(task())
    assert "unconfined (nothing by rlimits)" in notice
    with pytest.raises(UserError):
        execution_notices(task(allow_unconfined=False))


class Opened:
    """A sandbox with a given confinement."""

    def __init__(self, held: Confinement) -> None:
        self.held = held

    def open(self, *, allow_unconfined: bool) -> Sandbox:
        if not (self.held.confines_files or allow_unconfined):
            raise UserError("refused")
        return Sandbox(self.held, None)
