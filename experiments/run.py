"""The main job: `python -m experiments.run [key=value ...]` measures a method beside its baselines and controls."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, run_command
from experiments.errors import RunFailed, one_line

if TYPE_CHECKING:
    from experiments.measure import Prompt
    from experiments.plan import Plan
    from experiments.records import Row

FINISHED: list[Plan] = []  # the runs of this process, for what is said of all of them at the end


def run_job(config: DictConfig) -> Plan:
    """One run, from configuration to summary. A complete run is only shown again; failed examples are tried again."""
    from experiments.config import build
    from experiments.plan import settle

    job = build(config)
    plan = settle(job)
    print_header(plan)
    rows = {(row.example_id, row.arm): row for row in plan.folder.read_rows()}
    retry = sum(row.error is not None for row in rows.values()) > job.settings.max_errors
    missing = [prompt for prompt in plan.prompts if not _has(plan, rows, prompt, retry)]
    if missing:
        plan.folder.create()
        _measure(plan, missing)
    else:
        print("Everything asked for is stored; nothing was measured again.")
    finish(plan, measured=bool(missing))
    return plan


def _has(plan: Plan, rows: dict[tuple[str, str], Row], prompt: Prompt, retry: bool) -> bool:
    from experiments.store import is_complete

    timed, repeats = prompt.index < plan.timed, plan.job.settings.repeats
    return all(is_complete(rows.get((prompt.example.example_id, arm)), timed, repeats, retry) for arm in plan.arms)


def _measure(plan: Plan, missing: list[Prompt]) -> None:
    """Measure the missing examples and store each one's rows as soon as they are complete."""
    from tqdm import tqdm

    from experiments import identity
    from experiments.measure import Bench, memory
    from experiments.plan import decode_settings

    job = plan.job
    engine = plan.open_engine()
    decoders = {name: arm.open(engine) for name, arm in plan.arms.items()}
    bench = Bench(
        engine,
        decoders,
        job.task,
        plan.tokenizer,
        decode_settings(job, plan.tokenizer),
        job.settings.seed,
        job.settings.repeats,
    )
    before = plan.folder.read_run() or {}
    record = {
        "config": job.composed,
        "identity": plan.identity,
        "provenance": [*before.get("provenance", []), identity.provenance(engine.device)],  # one for each start
        "notices": plan.notices,
        "memory": before.get("memory", {}),
    }
    plan.folder.write_run({"status": "running", **record})
    try:
        _log_to(plan.folder.log_path)
        warm = plan.tokenizer(job.task.examples("calibration", 1)[0].prompt).input_ids
        bench.warm_up(warm[: engine.slots // 2])
        with tqdm(
            missing, desc=f"{job.method.name} on {job.task.name}", unit="example", leave=False, disable=None
        ) as bar:
            for prompt in bar:
                plan.folder.append(bench.measure(prompt, timed=prompt.index < plan.timed))
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        plan.folder.write_run({"status": status, **record})
        raise
    record["memory"] = {name: memory(engine, decoder) for name, decoder in decoders.items()}
    plan.folder.write_run({"status": "measured", **record})  # done, or failed, is for the rows to say


def _log_to(path: Path) -> None:
    """Send what goes wrong with its traceback to the run's own log, and nothing of it to the terminal."""
    log = logging.getLogger("experiments")
    log.handlers = [logging.FileHandler(path, encoding="utf-8", delay=True)]


def finish(plan: Plan, measured: bool) -> None:
    """Summarize the stored rows, print the tables, write summary.json, track, and judge the number of errors."""
    from experiments.metrics import summarize
    from experiments.report import full_table, headline_table
    from experiments.store import select
    from experiments.tables import static_metrics

    folder, ids = plan.folder, plan.example_ids
    rows = select(folder.read_rows(), set(ids), set(ids[: plan.timed]))
    summary = summarize(
        rows, list(plan.arms), temperature=plan.job.sampling.temperature, static=static_metrics(folder.read_run() or {})
    )
    folder.write_summary(summary)
    print(full_table(summary))
    print(headline_table(summary, list(plan.arms)))
    for notice in plan.notices:
        print(f"note: {notice}")
    if measured:
        notice = plan.job.tracking.log_run(
            run_id=folder.run_id, config=plan.job.composed, summary=summary, rows=rows, folder=folder.path
        )
        if notice:
            print(notice)
    print(f"rows: {folder.rows_path}")
    failed = [row for row in rows if row.error is not None]
    status = "failed" if len(failed) > plan.job.settings.max_errors else "done"
    run = folder.read_run() or {}
    if run.get("status") != status:
        folder.write_run({**run, "status": status})
    if status == "failed":
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
            print(f"error: {config.task.get('name')}: {one_line(error)}", file=sys.stderr)
        raise


def main() -> None:
    """Entry point: `experiments.entry.run_command` says how it exits."""
    FINISHED.clear()

    def job() -> None:
        _main()
        finish_sweep(FINISHED)

    run_command(job)


if __name__ == "__main__":
    main()
