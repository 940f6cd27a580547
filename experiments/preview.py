"""What a command would do, without doing it: jobs, what of them is stored, and how long the rest may take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.beforehand import NotMeasured
from experiments.config import Job
from experiments.errors import UserError
from experiments.plan import Plan, settle
from experiments.records import Row
from experiments.run import missing_prompts
from experiments.store import RunFolder
from experiments.text_tables import ABSENT, text_table

SAME = ("pair", "device", "dtype", "threads", "mode")  # runs that tell how long this one will take
RUNS_READ = 20  # of them, the newest


@dataclass(frozen=True)
class Preview:
    """One job. `run_id` is None where it depends on gate shares or call costs that were never measured.

    `examples` are those asked for, `missing` those without all their rows; `seconds` is what the missing ones may take,
    None without stored rows to go by.
    """

    task: str
    method: str
    arms: int
    examples: int
    run_id: str | None = None
    missing: int | None = None
    seconds: float | None = None


def preview(job: Job) -> Preview:
    """Settle a job without loading a model, and look at what is stored."""
    try:
        plan = settle(job, may_measure=False)
    except NotMeasured:
        return Preview(job.task.name, job.method.name, len(job.settings.arms), job.settings.detail_limit)
    missing = missing_prompts(plan)
    return Preview(
        job.task.name,
        job.method.name,
        len(plan.arms),
        len(plan.prompts),
        plan.folder.run_id,
        len(missing),
        estimate(plan, sum(prompt.index < plan.timed for prompt in missing), len(missing)),
    )


def estimate(plan: Plan, timed: int, judged: int) -> float | None:
    """Seconds to decode what is missing: each arm `repeats` times for a timed example, and once more to judge it."""
    if judged == 0:
        return 0.0
    seconds = seconds_by_arm(plan.folder.path.parent, plan.identity)
    if not seconds:
        return None
    usual = float(np.mean(list(seconds.values())))
    once = sum(seconds.get(arm, usual) for arm in plan.arms)
    return once * (timed * plan.job.settings.repeats + judged)


def seconds_by_arm(runs: Path, identity: dict[str, Any]) -> dict[str, float]:
    """Mean seconds of a request by arm, from the newest stored runs of this pair on this machine."""
    found: dict[str, list[float]] = defaultdict(list)
    newest = sorted(runs.glob("*/run.json"), key=lambda path: -path.stat().st_mtime)[:RUNS_READ]
    for path in newest:
        folder = RunFolder(runs.parent, path.parent.name)
        with suppress(UserError):  # a run of a newer version tells nothing here
            stored = (folder.read_run() or {}).get("identity", {})
            if all(stored.get(key) == identity[key] for key in SAME):
                for arm, seconds in _timed(path.parent, _changed(folder.rows_path)):
                    found[arm].append(seconds)
    return {arm: float(np.mean(seconds)) for arm, seconds in found.items()}


@lru_cache(maxsize=2 * RUNS_READ)
def _timed(path: Path, changed: int | None) -> list[tuple[str, float]]:
    """Arm and seconds of each timed row of a run, read once while it does not change: the jobs of a plan share it."""
    rows = RunFolder(path.parent.parent, path.name).read_rows()
    return [(row.arm, request_seconds(row)) for row in rows if row.decode_seconds]


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def request_seconds(row: Row) -> float:
    """Seconds of one request, prefill included."""
    return float(np.mean(row.decode_seconds) + np.mean(row.prefill_seconds))


def show(previews: Sequence[Preview]) -> str:
    """The jobs as a table, and their sum."""
    cells = [["task", "method", "run", "arms", "examples", "stored", "missing", "time"]]
    for one in previews:
        stored = ABSENT if one.missing is None else str(one.examples - one.missing)
        missing = ABSENT if one.missing is None else str(one.missing)
        numbers = [str(one.arms), str(one.examples), stored, missing, duration(one.seconds)]
        cells.append([one.task, one.method, one.run_id or ABSENT, *numbers])
    known = [one.seconds for one in previews if one.seconds is not None]
    whole = "" if len(known) == len(previews) else f" for {len(known)} of them, unknown for the others"
    text = f"{text_table(cells, lead=3)}\n{len(previews)} jobs, about {duration(sum(known))}{whole}"
    if any(one.run_id is None for one in previews):
        text += "\nrun -: named by gate shares or call costs, which are measured when it starts"
    return text


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `3 min`, `12 s`; a dash where it is unknown."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
