"""Mathematical answers, compared by value: math-verify, which parses LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from experiments.errors import UserError
from experiments.tasks.scorers.answers import Scores


def math_verify(text: str, references: Sequence[str]) -> Scores:
    """The answer in a text equals a reference in value: 1/2 is 0.5, x+1 is 1+x."""
    from math_verify import parse, verify

    told = parse(text)
    return {"math_verify": float(any(verify(parse(rf"\boxed{{{gold}}}"), told) for gold in references))}


def signature() -> str:
    """Its version. Raises UserError where it is not installed."""
    try:
        return f"math-verify:{version('math-verify')}|latex2sympy2-extended:{version('latex2sympy2-extended')}"
    except PackageNotFoundError as error:
        raise UserError(
            "task.metric=math_verify: math-verify is not installed; accepted: pip install -e '.[math]' in the clone "
            "(its variant antlr4_9_3, which fits Hydra), or another task.metric"
        ) from error
