"""How tests call the project's commands: in this process, as a user types them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest


def call(capsys: pytest.CaptureFixture[str], main: Callable[[], object], *typed: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call of a command's `main`."""
    code = 0
    arguments, sys.argv = sys.argv, [main.__module__, *typed]
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = arguments
    told = capsys.readouterr()
    return code, told.out, told.err


def check_mistake(code: int, error: str, named: Sequence[str]) -> None:
    """A mistake ends in exit code 2 and one line, which names all of these."""
    (line,) = error.strip().splitlines()
    assert code == 2 and line.startswith("error: ")
    for part in named:
        assert part in line, line
