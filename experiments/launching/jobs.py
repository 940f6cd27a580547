"""One job of a sweep: its place on the host, its outcome, and errors that reach the process that waits for them."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.errors import USER_MISTAKE, RunFailed, UserError, exit_code, one_line, tell
from experiments.launching.report import tell_end
from experiments.launching.slots import claim_slot
from experiments.launching.sweep import Outcome, State, Sweep, current, this_process

if TYPE_CHECKING:
    from experiments.plan import Plan


def is_worker() -> bool:
    """Whether this process does jobs for one that waits for them, maybe beside others."""
    sweep = current()
    return sweep is not None and not sweep.is_mine


def run_in_sweep(config: DictConfig, sweep: Sweep, run: Callable[[DictConfig], Plan]) -> str:
    """Run one job, store its outcome and print how far the sweep is. Returns the run's id.

    Raises what the job raises; in a process of its own as an error that can be sent from there. What becomes of a job
    is told by the process that started the sweep.
    """
    hydra = HydraConfig.get()
    overrides, worker = [str(one) for one in hydra.overrides.task], not sweep.is_mine
    task = str(config.task.get("name"))
    outcome = Outcome(int(hydra.job.num), overrides, task, "running", process=this_process())
    sweep.store(outcome)
    start = time.perf_counter()
    with in_one_piece() if worker else nullcontext():
        try:
            if worker:
                claim_slot(str(config.engine.device))
            keep_models()
            plan = run(config)
            outcome = replace(outcome, state="done", measured=plan.measured, **outcome.ran(plan))
            return plan.folder.run_id
        except BaseException as error:
            reason, code = one_line(error), exit_code(error)
            outcome = replace(outcome, state=failed_state(error), reason=reason, code=code)
            if not isinstance(error, Exception):
                raise
            line = f"{outcome.task}: {reason}"
            if worker:
                raise (UserError(line) if code == USER_MISTAKE else RunFailed(line)) from None
            tell(error, line)  # the sweep goes on and raises the first of them at its end
            raise
        finally:
            letters = take_letters() if worker else []
            outcome = replace(outcome, seconds=time.perf_counter() - start, letters=letters)
            sweep.store(outcome)
            release()
            if not worker:
                tell_end(sweep, outcome)


def take_letters() -> list[str]:
    """What this process has for W&B: it is told when nothing of the sweep is measured any more."""
    from experiments.logged.post import LETTERS

    taken = [str(path) for path in LETTERS]
    LETTERS.clear()
    return taken


def failed_state(error: BaseException) -> State:
    """What a job is that ended in this: an exit is a signal's, as submitit's at the time limit of a job."""
    return "failed" if isinstance(error, Exception) else "interrupted"


@contextmanager
def in_one_piece() -> Iterator[None]:
    """Keep what is printed inside and print it at the end: other jobs write to the same terminal."""
    kept = io.StringIO()
    try:
        with redirect_stdout(kept):
            yield
    finally:
        sys.stdout.write(kept.getvalue())
        sys.stdout.flush()


def keep_models() -> None:
    """From now on the models of one pair stay, for the jobs that follow in this process."""
    from experiments.launching.kept import KEEPER

    KEEPER.on = True


def release() -> None:
    """Let go of what the job left: whatever lived when it had warmed up was kept from being collected."""
    import gc

    gc.unfreeze()
    gc.collect()
