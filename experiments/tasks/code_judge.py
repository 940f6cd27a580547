"""Judge programs of foreign models by running them with a data set's tests: pass@1 with one completion per problem.

The one place that runs such code: not unless it is allowed, and confined (`experiments.tasks.confined`).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from experiments.tasks.confined import Sandbox


@runtime_checkable
class RunsCode(Protocol):
    """A task of foreign code, by its fields."""

    @property
    def name(self) -> str: ...
    @property
    def allow_code_execution(self) -> bool: ...
    @property
    def allow_unconfined(self) -> bool: ...


def build_program(prompt: str, completion: str, test: str, entry_point: str = "") -> str:
    """The text that is run: a completion after what it continues, then the tests, and HumanEval's call of them.

    `entry_point`: the function that HumanEval's `check` is called with (Chen et al. 2021, `execution.py` of the set's
    repository); empty for tests that are plain statements, as those of MBPP.
    """
    call = f"check({entry_point})\n" if entry_point else ""
    return f"{prompt}{completion}\n{test}\n{call}"


def judge_code(program: str, seconds: float = 5.0, *, allow_unconfined: bool = False) -> bool:
    """Whether a program runs to its end, its tests included, within `seconds`. The caller has asked whether it may run.

    Raises:
        UserError: this machine confines no files, and `allow_unconfined` is false.
        SandboxError: the program could not be confined, and was not run.
    """
    return Sandbox.open(allow_unconfined=allow_unconfined).run(program, seconds).passed


def execution_notices(task: RunsCode) -> list[str]:
    """What a reader of the table must know: that nothing is run, or that what runs is not confined.

    Raises:
        UserError: code is to be run, but not unconfined, and this machine confines no files.
    """
    if not task.allow_code_execution:
        return [f"task {task.name}: no code is run, so it has no quality; task.allow_code_execution=true runs it"]
    held = Sandbox.open(allow_unconfined=task.allow_unconfined).held
    if held.confines_files:
        return []
    return [f"task {task.name}: the models' code runs unconfined ({held}); docs/sandbox.md"]


def confinement(task: object) -> dict[str, str]:
    """What held of the sandbox, for the record of a run; empty where no foreign code is run."""
    if not isinstance(task, RunsCode) or not task.allow_code_execution:
        return {}
    return {"sandbox": str(Sandbox.open(allow_unconfined=task.allow_unconfined).held)}
