"""The main job: `python -m experiments.run [key=value ...]` measures a method beside its baselines and controls."""

from __future__ import annotations

import logging
import sys
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, log_nowhere, log_to, run_command
from experiments.errors import RunFailed, UserError, one_line, tell

if TYPE_CHECKING:
    from experiments.measure import Prompt
    from experiments.metrics import Summary
    from experiments.plan import Plan
    from experiments.preview import Preview
    from experiments.records import Row
    from experiments.tracking import Tracker

WARM_UP_PROMPTS = 3  # calibration prompts; on the first one every arm is warmed up, on all its loop is watched
PREVIEWS: list[Preview] = []  # the jobs of this process, where they are only planned
FINISHED: list[Plan] = []  # the runs of this process, for what is said of all of them at the end


def run_job(config: DictConfig) -> Plan:
    """One run, from configuration to summary. A complete run is only shown again; failed examples are tried again."""
    from experiments.config import build
    from experiments.logged import LIVE_NOTICE
    from experiments.plan import settle
    from experiments.store import Busy

    log_nowhere()  # until it is known which run this is
    job = build(config)
    plan = settle(job)
    stored = (plan.folder.read_run() or {}).get("notices", [])
    plan.notices += [notice for notice in stored if notice == LIVE_NOTICE]  # it is said of rows that are still there
    print_header(plan)
    with closing(job.tracking.open(plan.folder)) as tracker:
        if missing_prompts(plan):
            with plan.folder.measuring():
                _measure(plan, missing_prompts(plan), tracker)  # read again: another process may have been at it
                finish(plan, show(plan), tracker)
        else:
            print("Everything asked for is stored; nothing was measured again.")
            summary = show(plan)
            with suppress(Busy), plan.folder.measuring():  # another process may measure more of this run
                finish(plan, summary, tracker)
    plan.engine = None  # a sweep keeps the plans
    check_errors(plan)
    return plan


def missing_prompts(plan: Plan) -> list[Prompt]:
    """The prompts without all their rows. Failed ones count as missing once they are more than allowed.

    For an arm that remembers (`memory: run`), what follows an example whose row is missing or may change is missing.
    """
    rows = {(row.example_id, row.arm): row for row in plan.folder.read_rows()}
    retry = len({row.example_id for row in rows.values() if row.error is not None}) > plan.job.settings.max_errors
    missing = {prompt.index for prompt in plan.prompts if not _has(plan, rows, prompt, retry)}
    for arm in {row.arm for row in rows.values() if row.memory}:
        stored = {row.index for row in rows.values() if row.arm == arm and row.error is None}
        first = min(missing - stored, default=len(plan.prompts))
        missing |= {prompt.index for prompt in plan.prompts if prompt.index > first}
    return [prompt for prompt in plan.prompts if prompt.index in missing]


def _has(plan: Plan, rows: dict[tuple[str, str], Row], prompt: Prompt, retry: bool) -> bool:
    from experiments.store import is_complete

    timed, repeats = prompt.index < plan.timed, plan.job.settings.repeats
    return all(is_complete(rows.get((prompt.example.example_id, arm)), timed, repeats, retry) for arm in plan.arms)


def _measure(plan: Plan, missing: list[Prompt], tracker: Tracker) -> None:
    """Measure the missing examples and store each one's rows as soon as they are complete."""
    from tqdm import tqdm

    from experiments import identity
    from experiments.beforehand import CALIBRATED
    from experiments.costs import calibrate
    from experiments.loading import decode_settings
    from experiments.measure import Bench, memory, with_readers
    from experiments.tasks.code_judge import confinement
    from experiments.turns import Turns

    job = plan.job
    log_to(plan.folder.log_path)
    engine = plan.open_engine()
    decoders = {name: arm.open(engine) for name, arm in plan.arms.items()}
    ours = with_readers(decoders)
    costs = calibrate(engine, ours, {key: plan.identity[key] for key in CALIBRATED}, job.settings.results)
    decode, turns = decode_settings(job, plan.tokenizer), Turns(engine, costs, job.settings.seed)
    bench = Bench(
        engine, decoders, job.task, plan.tokenizer, decode, job.settings.seed, job.settings.repeats, costs, turns
    )
    before = plan.folder.read_run() or {}
    here = {**identity.provenance(engine.device), **confinement(job.task)}
    record = {
        "config": job.composed,
        "identity": plan.identity,
        "provenance": [*before.get("provenance", []), here],  # one for each start
        "snapshots": identity.snapshots(job.pair),
        "notices": plan.notices,
        "memory": {name: memory(engine, decoder) for name, decoder in ours.items()},
        "call_costs": costs.cost_id,
    }
    plan.folder.write_run({"status": "running", **record})
    try:
        _start_tracking(plan, tracker, record)
        bench.remember(plan.folder.read_rows())
        texts = [one.prompt for one in job.task.in_seen_wording().examples("calibration", WARM_UP_PROMPTS)]
        warm = [plan.tokenizer(text).input_ids[: engine.slots // 2] for text in texts]
        bench.warm_up(warm[0])
        turns.watch_loops(ours, warm, decode, job.settings.seed)
        record["loops"] = {name: asdict(loop) for name, loop in turns.loops.items()}
        with tqdm(
            missing, desc=f"{job.method.name} on {job.task.name}", unit="example", leave=False, disable=None
        ) as bar:
            for prompt in bar:
                rows = bench.measure(prompt, timed=prompt.index < plan.timed)
                plan.folder.append(rows)
                tracker.log_example(rows)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(UserError):  # a full disk must not hide why the run ended
            plan.folder.write_run({"status": status, **record})
        raise
    plan.folder.write_run({"status": "measured", **record})  # done, or failed, is for the rows to say


def _start_tracking(plan: Plan, tracker: Tracker, record: dict[str, Any]) -> None:
    """A tracker that works beside the measurement is told of in run.json before it can disturb anything."""
    from experiments.logged import LIVE_NOTICE

    if tracker.start(plan.folder.read_rows()):
        if LIVE_NOTICE not in plan.notices:
            plan.notices.append(LIVE_NOTICE)  # the record holds the same list
        plan.folder.write_run({"status": "running", **record})


def stored_rows(plan: Plan) -> list[Row]:
    """The rows that this plan asks for."""
    from experiments.store import select

    ids = plan.example_ids
    return select(plan.folder.read_rows(), set(ids), set(ids[: plan.timed]))


def show(plan: Plan) -> Summary:
    """Summarize the stored rows and print the tables."""
    from experiments.metrics import summarize
    from experiments.report import full_table, headline_table
    from experiments.tables import static_metrics

    static = static_metrics(plan.folder.read_run() or {})
    summary = summarize(stored_rows(plan), list(plan.arms), temperature=plan.job.sampling.temperature, static=static)
    print(full_table(summary))
    print(headline_table(summary, list(plan.arms)))
    for notice in plan.notices:
        print(f"note: {notice}")
    print(f"rows: {plan.folder.rows_path}")
    return summary


def finish(plan: Plan, summary: Summary, tracker: Tracker) -> None:
    """Write summary.json, track what was not tracked yet, and say in run.json how the run ended."""
    folder = plan.folder
    folder.write_summary(summary)
    run = folder.read_run() or {}
    if "tracked" not in run and (place := tracker.log_run(summary, stored_rows(plan))):
        print(place)
        if tracker.complete:
            run["tracked"] = place
    folder.write_run({**run, "status": "failed" if failed_examples(plan)[1] else "done"})


def failed_examples(plan: Plan) -> tuple[list[Row], bool]:
    """The first error row of each example that failed, and whether they are more than `max_errors`."""
    failed = {row.example_id: row for row in reversed(stored_rows(plan)) if row.error is not None}
    return sorted(failed.values(), key=lambda row: row.index), len(failed) > plan.job.settings.max_errors


def check_errors(plan: Plan) -> None:
    """Raises RunFailed where more examples failed than allowed."""
    failed, too_many = failed_examples(plan)
    if too_many:
        raise RunFailed(
            f"{len(failed)} examples failed (max_errors={plan.job.settings.max_errors}), the first in arm "
            f"{failed[0].arm}: {failed[0].error}"
        )


def finish_sweep(plans: list[Plan]) -> None:
    """The unweighted mean over the tasks of a sweep, and its table where one is asked for."""
    from experiments.report import headline_table
    from experiments.store import select
    from experiments.tables import MEAN, read, summaries, write

    if not plans:
        return
    settings = plans[0].job.settings
    if len({plan.job.task.name for plan in plans}) == len(plans) > 1:
        runs = [
            replace(run, rows=select(run.rows, set(plan.example_ids), set(plan.example_ids[: plan.timed])))
            for plan, run in ((plan, read(plan.folder)) for plan in plans)
        ]
        told, arms = summaries(runs)
        print(f"\n{MEAN}: {', '.join(run.task for run in runs)}")
        print(headline_table(told[MEAN], arms))
        if settings.table is not None:
            for path in write(runs, settings.results / "tables", settings.table):
                print(f"table: {path}")


def print_header(plan: Plan) -> None:
    """One line that says what is compared, where."""
    who = plan.identity
    print(
        f"{plan.job.task.name}: {len(plan.arms)} arms on pair {plan.job.pair.name}, {plan.timed} timed and "
        f"{len(plan.prompts)} judged examples; {who['device']}, {who['dtype']}, {who['threads']} threads; "
        f"run {plan.folder.run_id}",
        flush=True,
    )


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")
def _main(config: DictConfig) -> str:
    try:
        plan = run_job(config)
        FINISHED.append(plan)
        return plan.folder.run_id
    except Exception as error:
        logging.getLogger("experiments").exception("the run failed")
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep goes on and raises the first of them at its end
            tell(error, f"{config.task.get('name')}: {one_line(error)}")
        raise


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")
def _preview(config: DictConfig) -> str | None:
    from experiments.config import build
    from experiments.preview import preview

    PREVIEWS.append(preview(build(config)))
    return PREVIEWS[-1].run_id


def main() -> None:
    """Entry point: `experiments.entry.run_command` says how it exits. `--plan` shows the jobs and measures nothing."""
    FINISHED.clear()
    PREVIEWS.clear()
    planning = "--plan" in sys.argv[1:]
    if planning:
        sys.argv.remove("--plan")  # Hydra knows no flags of ours

    def job() -> None:
        if planning:
            from experiments.preview import show

            _preview()
            print(show(PREVIEWS))
        else:
            _main()
            finish_sweep(FINISHED)

    run_command(job)


if __name__ == "__main__":
    main()
