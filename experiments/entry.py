"""What every command shares: the results folder, quiet libraries, one line for whatever goes wrong, exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TextIO

from experiments.errors import CONF, INTERRUPTED, exit_code, one_line, tell

GPU_ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"  # how the driver lists GPUs; CUDA, left alone, counts the fastest first
CONFIG_DIR = str(CONF)  # not from experiments.config: a command starts, and fails, before it pays for torch


def results_folder(given: str | Path | None) -> Path:
    """The results folder: as given, else $VIASD_RESULTS, else results/ of this checkout."""
    return Path(given or os.environ.get("VIASD_RESULTS") or CONF.parent / "results").expanduser().resolve()


def log_to(path: Path) -> None:
    """Send what goes wrong with its traceback to this log, and nothing of it to the terminal."""
    logging.getLogger("experiments").handlers = [logging.FileHandler(path, encoding="utf-8", delay=True)]


def log_nowhere() -> None:
    """Send what goes wrong with its traceback nowhere."""
    logging.getLogger("experiments").handlers = [logging.NullHandler()]


class _OwnLinesOnly:
    """Standard error without Hydra's echo of the command line, which it prints before raising a job's exception."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_command(job: Callable[[], Any], interrupted: str | None = None) -> None:
    """Run a command decorated by Hydra. The only place that exits: 0 done, 2 a user's mistake, 1 failed, 130 Ctrl-C.

    `interrupted`: what to say after Ctrl-C where a command has nothing to resume.
    """
    log_nowhere()
    logging.getLogger("experiments").propagate = False
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us instead of being printed and swallowed
    os.environ.setdefault(GPU_ORDER, BY_BUS)  # before torch looks: a number means the GPU whose lock is taken
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a hub out of reach is told once, in our line
    try:
        with redirect_stderr(_OwnLinesOnly(sys.stderr)):  # type: ignore[type-var]
            job()
    except BrokenPipeError:  # the reader of our output left, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if any(argument.replace(" ", "").lower() == "debug=true" for argument in sys.argv[1:]):
            traceback.print_exc()
        code = exit_code(error)
        tell(error, interrupted if interrupted and code == INTERRUPTED else one_line(error))
        sys.exit(code)
