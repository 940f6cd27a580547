"""Waiting for what may never come back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


class Hung(Exception):
    """A step did not come back in time."""


def within(patience: float, step: Callable[[], T]) -> T:
    """Do a step in a thread of its own. Raises what it raises, and Hung after `patience` seconds, leaving it alone."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(step())
        except BaseException as error:  # an exit, too: it would end the thread and leave us waiting
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    Thread(target=work, daemon=True).start()  # the process may end without it
    wait([future], timeout=patience)
    if not future.done():
        raise Hung(f"no answer in {patience:g} s")
    return future.result()
