"""What is said of a sweep: a line for each job that ends, and at the end what failed and how to run just that again."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from experiments.errors import FAILED, RunFailed, exit_code, one_line
from experiments.launching.sweep import Outcome, Sweep, begun, expect, product_commands

PROGRAM = "python -m experiments.run -m"
PAUSE = 2.0  # seconds between two looks at the jobs of other processes
OVER = ("done", "failed")  # an interrupted job may be started again by its launcher
SHOWN = 200  # characters of what a launcher says when it breaks down


def progress(sweep: Sweep) -> str:
    """`3 of 24 jobs done, 2 failed; about 12 min left`."""
    from experiments.preview import duration

    ended = [one for one in sweep.outcomes() if one.state in OVER]
    failed = sum(one.state != "done" for one in ended)
    of = "" if sweep.total is None else f" of {sweep.total}"
    line = f"{len(ended) - failed}{of} jobs done" + (f", {failed} failed" if failed else "")
    left = None if sweep.total is None else seconds_left(ended, sweep.total - len(ended), time.time() - sweep.began)
    return line if not left else f"{line}; about {duration(left)} left"


def seconds_left(ended: Sequence[Outcome], remaining: int, elapsed: float) -> float | None:
    """What the remaining jobs may take: as long as those that measured, as many at once as there were until now."""
    measured = [one.seconds for one in ended if one.measured] or [one.seconds for one in ended]
    busy = sum(one.seconds for one in ended)
    if not measured or busy <= 0:
        return None
    at_once = max(1.0, busy / elapsed) if elapsed > 0 else 1.0
    return remaining * sum(measured) / len(measured) / at_once


def tell_end(sweep: Sweep, outcome: Outcome) -> None:
    """Say what became of a job that has ended, and how far the sweep is."""
    if sweep.total == 1 or outcome.state == "interrupted":
        return
    what = f"run {outcome.run_id}" if outcome.state == "done" else outcome.reason
    print(f"{outcome.state}: {sweep.label(outcome)}: {what}\n{progress(sweep)}", flush=True)


class Watch(Thread):
    """Tells in this process of the jobs that end in others. Jobs in this process, which it would disturb, tell
    themselves: it starts with a sweep of others alone.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over, self._told = Event(), set[int]()

    def run(self) -> None:
        while not self._over.wait(PAUSE):
            self.look()

    def look(self) -> None:
        """Tell of what has ended since the last look."""
        sweep = begun()
        for one in sweep.outcomes(but=self._told) if sweep else []:
            if one.state in OVER:
                self._told.add(one.number)
                if sweep and one.process != sweep.process:
                    tell_end(sweep, one)

    def end(self) -> None:
        """Look for the last time."""
        if self.ident is None:  # it was never started
            return
        self._over.set()
        self.join()
        self.look()


@contextmanager
def watched() -> Iterator[None]:
    """Tell of jobs that end in other processes while what is inside waits for them."""
    watch = Watch()
    expect(wanted=True, elsewhere=watch.start)
    try:
        yield
    finally:
        watch.end()


@contextmanager
def sweep_told() -> Iterator[None]:
    """Say at the end, however it comes, what of the sweep inside failed; then its table, if nothing did.

    Raises RunFailed where the launcher broke down and left jobs behind.
    """
    try:
        with watched():
            yield
    except BaseException as error:
        sweep = begun()
        ended = tell_failures(sweep) if sweep else []
        left = unfinished(sweep, ended) if sweep else 0
        if left and not isinstance(error, KeyboardInterrupt) and not told_by_job(error, ended):
            raise RunFailed(
                f"{left} jobs did not end, the launcher broke down ({one_line(error)[:SHOWN]}); what was measured is "
                "stored, the same command goes on from there"
            ) from error
        raise
    if sweep := begun():
        finish_sweep([one for one in sweep.outcomes() if one.state == "done"])


def collect_letters() -> None:
    """Have what other processes of the sweep have for W&B told by this one."""
    from experiments.logged.post import LETTERS

    if sweep := begun():
        LETTERS.extend(Path(letter) for one in sweep.outcomes() for letter in one.letters)


def told_by_job(error: BaseException, ended: Sequence[Outcome]) -> bool:
    """Whether a job raised this, or whoever typed the command is to blame."""
    return exit_code(error) != FAILED or any(one.reason and one.reason in str(error) for one in ended)


def unfinished(sweep: Sweep, ended: Sequence[Outcome]) -> int:
    """Jobs that are neither done nor failed, once any was started."""
    if not ended:
        return 0
    over = sum(one.state in OVER for one in ended)
    return (len(ended) if sweep.total is None else sweep.total) - over


def tell_failures(sweep: Sweep) -> list[Outcome]:
    """Print the failed jobs and the commands that run them again; returns all that were started."""
    outcomes = sweep.outcomes()
    failed = [one for one in outcomes if one.state == "failed"]
    if failed and len(outcomes) > 1:
        print()
        for one in failed:
            print(f"failed: {sweep.label(one)}: {one.reason}")
        print("to run these again and no others:")
        for command in rerun(sweep, failed):
            print(f"  {command}")
        sys.stdout.flush()
    return outcomes


def rerun(sweep: Sweep, failed: Sequence[Outcome]) -> list[str]:
    """Shell commands that run these jobs again, with the same launcher."""
    own = [part for folder in sweep.config_dirs for part in ("--config-dir", folder)]
    return [
        f"{PROGRAM} {shlex.join([*own, *sweep.typed, *overrides])}"
        for overrides in product_commands([one.overrides for one in failed])
    ]


def finish_sweep(outcomes: Sequence[Outcome]) -> None:
    """The unweighted mean over the tasks of a sweep, and its table where one is asked for."""
    if not (len({one.task for one in outcomes}) == len(outcomes) > 1):
        return
    from experiments.store import RunFolder, select
    from experiments.tables import MEAN, read, summaries, write
    from experiments.text_tables import headline_table

    stored = ((one, read(RunFolder(Path(one.results), one.run_id))) for one in outcomes)
    runs = [
        replace(run, rows=select(run.rows, set(one.example_ids), set(one.example_ids[: one.timed])))
        for one, run in stored
    ]
    told, arms = summaries(runs)
    print(f"\n{MEAN}: {', '.join(run.task for run in runs)}")
    print(headline_table(told[MEAN], arms))
    if outcomes[0].table is not None:
        for path in write(runs, Path(outcomes[0].results) / "tables", outcomes[0].table):
            print(f"table: {path}")
