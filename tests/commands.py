"""How tests call the project's commands: in this process, as a user types them."""

from __future__ import annotations

import sys
from collections.abc import Callable

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
