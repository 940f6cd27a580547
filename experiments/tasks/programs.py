"""Programs that a foreign model completes, judged by the data set's tests: pass@1 (HumanEval, MBPP)."""

from __future__ import annotations

import ast
import re
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import Example
from experiments.tasks.code_judge import execution_notices, judge_code
from experiments.tasks.data import DataTask
from experiments.tasks.files import Record
from experiments.tasks.forms import fill

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Programs(DataTask):
    """Code that is judged by running it, once it is allowed.

    `begin` and `tests` are templates: what stands before a completion and after it. `entry_point` (a template, may be
    empty) is the function that the tests call: a fenced block that defines it stands for itself, below `begin`.
    `test_seconds` > 0 limits a run. Without `allow_code_execution` nothing is run, and there is no quality; with it,
    programs are confined (docs/sandbox.md), or nothing is run where that is impossible and not `allow_unconfined`.
    """

    quality_name: ClassVar[str] = "pass_at_1"  # type: ignore[misc]

    begin: str = ""
    tests: str
    entry_point: str = ""
    test_seconds: float = Field(default=5.0, gt=0)
    allow_code_execution: bool = False
    allow_unconfined: bool = False

    def details(self, record: Record) -> dict[str, Any]:
        """The texts around a completion."""
        return {name: fill(getattr(self, name), record) for name in ("begin", "tests", "entry_point")}

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Whether it is Python at all, and whether it passes all tests (Chen et al. 2021, one completion each)."""
        code = write_program(example, text)
        scored = {"compiles": float(is_python(code))}
        if self.allow_code_execution:
            program = f"{code}\n\n{example.metadata['tests']}\n"
            scored[self.quality_name] = float(bool(scored["compiles"]) and self._passes(program))
        return scored

    def scorer(self) -> dict[str, str]:
        """Whether code is run, which decides about a row's quality."""
        return {self.quality_name: "run" if self.allow_code_execution else "not run"}

    def _passes(self, program: str) -> bool:
        return judge_code(program, self.test_seconds, allow_unconfined=self.allow_unconfined)

    def notices(self) -> list[str]:
        """Why there is no quality, or that the code runs unconfined.

        Raises:
            UserError: it would, and may not.
        """
        return execution_notices(self)


def write_program(example: Example, text: str) -> str:
    """A completion as a program: what it continues, then the text, or the first fenced block of a chat answer."""
    begin, entry = example.metadata["begin"], example.metadata["entry_point"]
    block = FENCE.search(text)
    code = block[1] if block else text
    whole = bool(entry) and re.search(rf"^(?:async )?def {re.escape(entry)}\b", code, re.MULTILINE) is not None
    if not whole:
        return f"{begin}{code}"
    return f"{begin}\n{code}" if is_python(begin) else code  # what it begins with may hold imports


def is_python(code: str) -> bool:
    """Whether a text can be parsed as Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
