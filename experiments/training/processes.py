"""One process, or several that `accelerate launch` or `torchrun` started, each with its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from torch import Tensor

from experiments.errors import UserError

PATIENCE = timedelta(days=2)  # others wait while the first one has the target answer


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _no_wait() -> None: ...


@dataclass(frozen=True)
class Processes:
    """`rank` of `count`; `reduce` sums a tensor over all, `wait` waits until all are there. `quiet`: none talks."""

    rank: int = 0
    count: int = 1
    reduce: Callable[[Tensor], Tensor] = _alone
    wait: Callable[[], None] = _no_wait
    quiet: bool = False

    @property
    def talks(self) -> bool:
        """Whether this one tells on the terminal how it goes."""
        return self.first and not self.quiet

    @property
    def first(self) -> bool:
        """Whether this one writes files and validates."""
        return self.rank == 0


def open_processes(how: Literal["auto", "plain", "accelerate"], device: str) -> Processes:
    """As asked. Raises UserError where accelerate is to be used and is not installed."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if how == "plain" or (how == "auto" and not launched):
        return Processes()
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise UserError(
            f"processes={how}: accelerate is not installed (pip install 'viasd[accelerate]'); accepted without it: "
            "processes=plain"
        ) from error
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])

    def reduce(tensor: Tensor) -> Tensor:
        summed: Tensor = accelerator.reduce(tensor, reduction="sum")
        return summed

    return Processes(accelerator.process_index, accelerator.num_processes, reduce, accelerator.wait_for_everyone)
