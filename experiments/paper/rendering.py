"""Files of figures, written by another process where several tables are made: rendering takes a third of the time.

Nothing is rendered while something is measured: `finish` is called before.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.figures.forms import METADATA


class Renderer:
    """Saves figures in turn, in this process or, once `beside` was called, in one of its own."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        self._is_beside = False

    def beside(self) -> None:
        """From now on figures are saved by another process, which begins with the first of them."""
        self._is_beside = True

    def save(self, figure: Any, folder: Path, name: str) -> list[Path]:
        """The files that are, or will be, there. Raises UserError, here or at `finish`, where that is not allowed."""
        if not self._is_beside:
            save_figure(figure, folder, name)
        else:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, get_context("spawn"))  # no fork of a process with threads
            self._pending.append(self._pool.submit(save_figure, figure, folder, name))
        return [folder / f"{name}.{form}" for form in METADATA]

    def finish(self) -> None:
        """Wait until all files are there. Raises what the first that failed raised."""
        pending, self._pending = self._pending, []
        for one in pending:
            one.result()

    def close(self) -> None:
        """`finish`, and end the other process."""
        try:
            self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool, self._is_beside = None, False


def save_figure(figure: Any, folder: Path, name: str) -> None:
    """The three files of a figure."""
    import_module("experiments.figures.style").save(figure, folder, name)


RENDERER = Renderer()
