"""The main job: `python -m experiments.run [key=value ...]` measures a method beside its baselines and controls."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.ending import check_errors, finish, stored_rows, summarize_rows
from experiments.entry import CONFIG_DIR, log_nowhere, log_to, run_command
from experiments.errors import UserError
from experiments.launching.report import sweep_told

if TYPE_CHECKING:
    from experiments.launching.place import Place
    from experiments.measure import Prompt
    from experiments.metrics import Summary
    from experiments.plan import Plan
    from experiments.preview import Preview
    from experiments.records import Row
    from experiments.tracking import Tracker

WARM_UP_PROMPTS = 3  # calibration prompts; on the first one every arm is warmed up, on all its loop is watched
PREVIEWS: list[Preview] = []  # the jobs of this process, where they are only planned


def run_job(config: DictConfig) -> Plan:
    """One run, from configuration to summary. A complete run is only shown again; failed examples are tried again."""
    from experiments.config import build
    from experiments.launching.place import open_place
    from experiments.launching.sweep import current
    from experiments.logged.facts import LIVE_NOTICE
    from experiments.plan import settle
    from experiments.stored.living import Busy
    from experiments.tracking import check_sweep

    log_nowhere()  # until it is known which run this is
    job = build(config)
    check_sweep(job.settings.split, HydraConfig.get().mode == RunMode.MULTIRUN)
    with open_place(job) as place:
        plan = settle(job)
        stored = plan.folder.read_run() or {}
        plan.notices += [one for one in stored.get("notices", []) if one == LIVE_NOTICE]  # its rows are still there
        print_header(plan)
        with closing(job.tracking.open(plan.folder)) as tracker:
            if missing_prompts(plan):
                patient = current() is not None  # a sweep is not to fail for a job whose machine is lost
                with plan.folder.measuring(patient), place.timing(plan, missing_prompts(plan)):
                    _measure(plan, missing_prompts(plan), tracker, place)  # read again: another may have been at it
                    finish(plan, show(plan), tracker)
            else:
                print("Everything asked for is stored; nothing was measured again.")
                summary = show(plan)
                with suppress(Busy), plan.folder.measuring():  # another process may measure more of this run
                    finish(plan, summary, tracker)
    plan.engine = None
    check_errors(plan)
    return plan


def missing_prompts(plan: Plan) -> list[Prompt]:
    """The prompts without all their rows. Failed ones count as missing once they are more than allowed.

    For an arm that remembers (`memory: run`), what follows an example whose row is missing or may change is missing.
    """
    rows = {(row.example_id, row.arm): row for row in plan.folder.read_rows()}
    retry = len({row.example_id for row in rows.values() if row.error is not None}) > plan.job.settings.max_errors
    missing = {prompt.index for prompt in plan.prompts if not _has(plan, rows, prompt, retry)}
    again = {prompt.example.example_id for prompt in plan.prompts if prompt.index in missing}
    for prompt in plan.prompts:  # later turns were asked with the answers that are measured again
        if prompt.example.follows in again:
            again.add(prompt.example.example_id)
            missing.add(prompt.index)
    for arm in {row.arm for row in rows.values() if row.memory}:
        stored = {row.index for row in rows.values() if row.arm == arm and row.error is None}
        first = min(missing - stored, default=len(plan.prompts))
        missing |= {prompt.index for prompt in plan.prompts if prompt.index > first}
    return [prompt for prompt in plan.prompts if prompt.index in missing]


def _has(plan: Plan, rows: dict[tuple[str, str], Row], prompt: Prompt, retry: bool) -> bool:
    from experiments.store import is_complete

    timed, repeats = prompt.index < plan.timed, plan.job.settings.repeats
    return all(is_complete(rows.get((prompt.example.example_id, arm)), timed, repeats, retry) for arm in plan.arms)


def _measure(plan: Plan, missing: list[Prompt], tracker: Tracker, place: Place) -> None:
    """Measure the missing examples and store each one's rows as soon as they are complete."""
    from tqdm import tqdm

    from experiments import identity
    from experiments.beforehand import CALIBRATED
    from experiments.conditions.reading import read_conditions
    from experiments.conversations import NoHistory
    from experiments.costs import calibrate
    from experiments.launching.jobs import failed_state, is_worker
    from experiments.launching.neighbors import Neighbors, price_calls, timed_places
    from experiments.loading import decode_settings
    from experiments.measure import Bench, with_readers
    from experiments.peak_memory import memory_of_arms
    from experiments.store import utc_now
    from experiments.stored.living import Busy
    from experiments.tasks.code_judge import confinement
    from experiments.turns import Turns

    job, plan.measured = plan.job, True
    log_to(plan.folder.log_path)
    engine = plan.open_engine()
    decoders = {name: arm.open(engine) for name, arm in plan.arms.items()}
    ours = with_readers(decoders)
    who, decode = {key: plan.identity[key] for key in CALIBRATED}, decode_settings(job, plan.tokenizer)
    before = plan.folder.read_run() or {}
    neighbors, costs = Neighbors.read(before), None
    if plan.timed:
        price = partial(calibrate, engine, ours, who, job.settings.results)
        costs, seen = price_calls(price, job.settings.results / "settled")
        neighbors.costs = seen.most
    turns = Turns(engine, costs, job.settings.seed) if costs else None
    bench = Bench(
        engine, decoders, job.task, plan.tokenizer, decode, job.settings.seed, job.settings.repeats, costs, turns
    )
    here = {"started": utc_now(), **identity.provenance(engine.device), **confinement(job.task)}
    peaks: dict[str, int] = {}
    record = {
        "config": job.composed,
        "identity": plan.identity,
        "provenance": [*before.get("provenance", []), here],  # one for each start
        "snapshots": identity.snapshots(job.pair),
        "memory": before.get("memory", {}),
        "call_costs": costs.cost_id if costs else before.get("call_costs"),
        "loops": before.get("loops", {}),
        "neighbors": neighbors.plain(),
        **({"rows": before["rows"]} if "rows" in before else {}),  # what holds of the rows of an earlier end
    }
    stored = plan.folder.read_rows()
    places = timed_places(stored) | {prompt.index for prompt in plan.prompts[: plan.timed]}
    write = partial(write_record, plan, record, places)
    write("running")
    try:
        _start_tracking(plan, tracker, stored, write)
        bench.remember(stored)
        conversations = plan.open_conversations()
        conversations.learn(stored)
        texts = [one.prompt for one in job.task.in_seen_wording().examples("calibration", WARM_UP_PROMPTS)]
        warm = [plan.tokenizer(text).input_ids[: engine.slots // 2] for text in texts]
        bench.warm_up(warm[0])
        if turns:
            turns.watch_loops(ours, warm, decode, job.settings.seed)
            record["loops"] = {name: asdict(loop) for name, loop in turns.loops.items()}
        what, quiet = f"{job.method.name} on {job.task.name}", is_worker() or None  # None: where nobody looks
        with tqdm(missing, desc=what, unit="example", leave=False, disable=quiet) as bar:
            for prompt in bar:
                timed, beside = prompt.index < plan.timed, place.others()
                try:
                    rows = bench.measure(conversations.complete(prompt), timed=timed)
                except NoHistory as error:
                    rows = bench.refuse(prompt, error)
                disturbed = timed and neighbors.count(prompt.index, max(beside, place.others()))
                if disturbed or bench.peaks != peaks:
                    peaks, record["neighbors"] = dict(bench.peaks), neighbors.plain()
                    record["memory"] = memory_of_arms(ours, peaks, record["memory"], engine.device)
                    write("running")  # before the rows are there that were disturbed, or needed more than all before
                conversations.learn(rows)
                for row in rows:
                    row.measured_at = utc_now()
                plan.folder.append(rows)
                tracker.log_example(rows)
    except Busy:  # the run is another process's now, and so is what is said of it
        raise
    except BaseException as error:
        here["conditions"]["after"] = read_conditions(engine.device)
        with suppress(UserError):  # a full disk must not hide why the run ended
            write(failed_state(error))
        raise
    here["conditions"]["after"] = read_conditions(engine.device)
    record["memory"] = memory_of_arms(ours, bench.peaks, record["memory"], engine.device)  # by now all caches are there
    write("measured")  # done, or failed, is for the rows to say


def write_record(plan: Plan, record: Mapping[str, Any], timed: Collection[int], status: str) -> None:
    """Write run.json. `timed`: places of all examples with timed rows, those that are there and those to come."""
    from experiments.launching.neighbors import Neighbors

    notices = [*plan.notices, *Neighbors.read(record).notice(timed)]
    plan.folder.write_run({"status": status, **record, "notices": notices})


def _start_tracking(plan: Plan, tracker: Tracker, rows: Sequence[Row], write: Callable[[str], None]) -> None:
    """A tracker that works beside the measurement is told of in run.json before it can disturb anything."""
    from experiments.logged.facts import LIVE_NOTICE

    if tracker.start(rows):
        if LIVE_NOTICE not in plan.notices:
            plan.notices.append(LIVE_NOTICE)
        write("running")


def show(plan: Plan) -> Summary:
    """Summarize the stored rows that are asked for, and print the tables."""
    from experiments.conditions.disturbed import disturbances
    from experiments.launching.neighbors import Neighbors, timed_places
    from experiments.text_tables import full_table, headline_table

    run, rows = plan.folder.read_run() or {}, stored_rows(plan)
    summary = summarize_rows(plan, rows)
    print(full_table(summary))
    print(headline_table(summary, list(plan.arms)))
    disturbed = disturbances(plan.job.task.name, rows, run.get("provenance", []))
    for notice in [*plan.notices, *Neighbors.read(run).notice(timed_places(rows)), *disturbed]:
        print(f"note: {notice}")
    print(f"rows: {plan.folder.rows_path}")
    return summary


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
    from experiments.launching.jobs import run_in_sweep
    from experiments.launching.sweep import current

    sweep = current()
    return run_logged(config).folder.run_id if sweep is None else run_in_sweep(config, sweep, run_logged)


def run_logged(config: DictConfig) -> Plan:
    """`run_job`; what it raises goes to the run's log with its traceback."""
    try:
        return run_job(config)
    except Exception:
        logging.getLogger("experiments").exception("the run failed")
        raise


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")
def _preview(config: DictConfig) -> str | None:
    from experiments.config import build
    from experiments.preview import preview

    PREVIEWS.append(preview(build(config)))
    return PREVIEWS[-1].run_id


def serial(typed: list[str]) -> list[str]:
    """A command line whose jobs, with the threads that a launcher gives them, are looked at in this process."""
    kept = [one for one in typed if not one.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))]
    named = any(one.startswith("hydra/launcher=") and one != "hydra/launcher=basic" for one in typed)
    return [*kept, "hydra/launcher=serial"] if named else kept


def main() -> None:
    """Entry point: `experiments.entry.run_command` says how it exits. `--plan` shows the jobs and measures nothing."""
    PREVIEWS.clear()
    planning = "--plan" in sys.argv[1:]
    if planning:
        sys.argv[1:] = serial([one for one in sys.argv[1:] if one != "--plan"])  # Hydra knows no flags of ours

    def job() -> None:
        from experiments.launching.report import collect_letters
        from experiments.logged.post import deliver

        if planning:
            from experiments.launching.sweep import expect
            from experiments.preview import show

            expect(wanted=False)
            _preview()
            print(show(PREVIEWS))
            return
        start = monotonic()
        try:
            with sweep_told():
                _main()
        finally:
            collect_letters()
            for line in deliver(monotonic() - start):
                print(line, flush=True)

    run_command(job)


if __name__ == "__main__":
    main()
