"""How a run ends: its summary, its status, and which of its examples failed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from experiments.errors import RunFailed

if TYPE_CHECKING:
    from experiments.metrics import Summary
    from experiments.plan import Plan
    from experiments.records import Row
    from experiments.tracking import Tracker


def stored_rows(plan: Plan) -> list[Row]:
    """The rows that this plan asks for."""
    from experiments.store import select

    ids = plan.example_ids
    return select(plan.folder.read_rows(), set(ids), set(ids[: plan.timed]))


def summarize_rows(plan: Plan, rows: Sequence[Row]) -> Summary:
    """Every metric of every arm."""
    from experiments.metrics import summarize
    from experiments.tables import static_metrics

    static = static_metrics(plan.folder.read_run() or {})
    return summarize(rows, list(plan.arms), temperature=plan.job.sampling.temperature, static=static)


def finish(plan: Plan, summary: Summary, tracker: Tracker) -> None:
    """Write summary.json, say in run.json how the run ended, and hand it to the tracker.

    A run that ended with more than is asked for now stays as it is. One that ended with more examples, or with more of
    them timed, is summed up with those.
    """
    from experiments.store import select

    folder = plan.folder
    if not plan.measured and is_part(plan):
        return
    rows = folder.read_rows()
    timed, examples = extent(plan, rows)
    ids, timed_ids = ({row.example_id for row in rows if row.index < end} for end in (examples, timed))
    rows = select(rows, ids, timed_ids)
    if (timed, examples) != (plan.timed, len(plan.prompts)):
        summary = summarize_rows(plan, rows)
    folder.write_summary(summary, timed, examples)
    run = folder.read_run() or {}
    status = "failed" if failed_examples(plan, rows)[1] else "done"
    folder.write_run({**run, "rows": folder.sealed(run.get("rows")), "status": status})
    if notice := tracker.log_run(summary, rows):
        print(notice)


def summarized(plan: Plan) -> tuple[int, int]:
    """How many timed examples and examples, the first in the run's order, the stored summary is of."""
    from experiments.store import read_json

    of = (read_json(plan.folder.summary_path) or {}).get("of", {})
    return of.get("timed", 0), of.get("examples", 0)


def extent(plan: Plan, rows: Sequence[Row]) -> tuple[int, int]:
    """Of how many examples a summary is: those asked for now or at an earlier end, as far as their rows are there."""
    from experiments.store import is_complete

    stored, repeats = {(row.index, row.arm): row for row in rows}, plan.job.settings.repeats

    def first(count: int, timed: bool) -> int:
        whole = (
            all(is_complete(stored.get((index, arm)), timed, repeats, retry=False) for arm in plan.arms)
            for index in range(count)
        )
        return sum(takewhile(bool, whole))

    before = summarized(plan)
    return first(max(before[0], plan.timed), timed=True), first(max(before[1], len(plan.prompts)), timed=False)


def is_part(plan: Plan) -> bool:
    """Whether the run ended, and its summary is of all that the plan asks for and of more."""
    if (plan.folder.read_run() or {}).get("status") not in ("done", "failed"):
        return False
    stored, asked = summarized(plan), (plan.timed, len(plan.prompts))
    return stored != asked and all(has >= wants for has, wants in zip(stored, asked, strict=True))


def failed_examples(plan: Plan, rows: Sequence[Row]) -> tuple[list[Row], bool]:
    """The first error row of each example that failed, and whether they are more than `max_errors`."""
    failed = {row.example_id: row for row in reversed(rows) if row.error is not None}
    return sorted(failed.values(), key=lambda row: row.index), len(failed) > plan.job.settings.max_errors


def check_errors(plan: Plan) -> None:
    """Raises RunFailed where more examples failed than allowed."""
    failed, too_many = failed_examples(plan, stored_rows(plan))
    if too_many:
        raise RunFailed(
            f"{len(failed)} examples failed (max_errors={plan.job.settings.max_errors}), the first in arm "
            f"{failed[0].arm}: {failed[0].error}"
        )
