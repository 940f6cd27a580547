"""Arms of a training at equal compute from the same start: their jobs, what a step of each costs, and their work."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock, Timeout
from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field
from tqdm import tqdm

from experiments import identity
from experiments.entry import results_folder
from experiments.errors import UserError
from experiments.store import read_json, replace_json
from experiments.threads import core_count
from experiments.training.processes import Processes
from experiments.training.setup import VALIDATION, TrainJob, build
from experiments.training.subjects import describe_training
from experiments.training.work import make_trainer, prepare, run, write
from viasd.spec import spec

ROW = "ablation.json"  # in the folder of a training that is done
TIMED = 20  # steps of each arm that its cost is the median of
COLUMNS = (
    "drafter", "arm", "seed", "steps", "cost", "training_seconds", "calibration_acceptance_length", "training_id",
)  # fmt: skip
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*$")]
Overrides = Annotated[dict[Label, list[str]], Field(min_length=1)]
OWN = ("seed", "steps", "out")  # set by the ablation


@spec
class AblationSettings:
    """The settings of an ablation (conf/train_vsd.yaml says what each means)."""

    drafters: Overrides
    arms: Overrides
    common: list[str]
    steps: Annotated[int, Field(ge=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"]
    out: str | None
    debug: bool

    @property
    def folder(self) -> Path:
        """Where everything comes to lie."""
        return Path(self.out).expanduser().resolve() if self.out else results_folder(None) / "training" / "vsd"

    @property
    def processes(self) -> int:
        """Trainings at once."""
        count = len(self.drafters) * len(self.arms) * len(self.seeds)
        return min(count, core_count() if self.jobs == "auto" else self.jobs)


@dataclass(frozen=True)
class ArmTraining:
    """One training of the ablation. `cost`: of one of its steps, relative to the first arm's."""

    drafter: str
    arm: str
    seed: int
    job: TrainJob
    cost: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.drafter}_{self.arm}_{self.seed}"

    def at_cost(self, cost: float) -> ArmTraining:
        """The same with as many steps as cost what the first arm's do, at least one."""
        steps = max(1, round(self.job.settings.steps / cost))
        return replace(self, job=replace(self.job, settings=replace(self.job.settings, steps=steps)), cost=cost)


@contextmanager
def only_one(settings: AblationSettings) -> Iterator[None]:
    """Nobody else works in this folder meanwhile. Raises UserError where somebody does."""
    try:
        with FileLock(settings.folder / "lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"out={settings.folder}: another start is training there; accepted: another folder") from error


def list_trainings(settings: AblationSettings) -> list[ArmTraining]:
    """All of them, checked. Raises UserError for overrides that cannot be composed, or that an ablation cannot have."""
    threads = max(1, core_count() // settings.processes)
    found = []
    for drafter, told in settings.drafters.items():
        for arm, more in settings.arms.items():
            given = [*settings.common, *told, *more]
            if own := [one for one in given if one.partition("=")[0] in OWN]:
                raise UserError(f"drafters.{drafter}, arms.{arm}: {own[0]}: set by the ablation; accepted: other keys")
            for seed in settings.seeds:
                found.append(ArmTraining(drafter, arm, seed, compose_job(settings, drafter, arm, seed, threads)))
    if len({one.name for one in found}) < len(found):
        raise UserError(f"seeds={settings.seeds}: two trainings have one name; accepted: different seeds and names")
    return found


def compose_job(settings: AblationSettings, drafter: str, arm: str, seed: int, threads: int) -> TrainJob:
    """One training, on so many threads. Raises UserError for overrides that cannot be composed."""
    given = [*settings.common, *settings.drafters[drafter], *settings.arms[arm]]
    own = [f"engine.threads={threads}", f"seed={seed}", f"steps={settings.steps}"]
    try:
        config = compose(config_name="train_eagle", overrides=[*own, *given])
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"common, drafters.{drafter}, arms.{arm}: {first}; accepted: keys of train_eagle.yaml"
        ) from error
    config.out = str(settings.folder / f"{drafter}_{arm}_{seed}")
    return build(config)


def settle_costs(settings: AblationSettings, trainings: list[ArmTraining]) -> list[ArmTraining]:
    """The same trainings with steps of equal compute. Costs are measured once and stored, so that a restart agrees.

    Raises UserError for arms that differ in more than what is asked of the drafter: their steps could not be compared.
    """
    path, settled = settings.folder / "costs.json", []
    stored: dict[str, float] = read_json(path) or {}
    for drafter in settings.drafters:
        own = [one for one in trainings if one.drafter == drafter]
        arms = {one.arm: one.job for one in own if one.seed == settings.seeds[0]}
        first = next(iter(arms.values()))
        check_alike(drafter, arms)
        keys = {arm: name_cost(first, job) for arm, job in arms.items()}
        missing = {arm: job for arm, job in arms.items() if keys[arm] not in stored}
        if missing:
            costs = measure_costs({next(iter(arms)): first, **missing})
            stored |= {keys[arm]: costs[arm] for arm in missing}
            replace_json(path, stored)
        settled += [one.at_cost(stored[keys[one.arm]]) for one in own]
    return settled


def check_alike(drafter: str, arms: Mapping[str, TrainJob]) -> None:
    """Raises UserError for arms that differ in more than recipe and optimizer."""
    first, *others = ((arm, describe_arm(job)) for arm, job in arms.items())
    for arm, told in others:
        for key in ("settings", "target", "start"):
            if told[key] != first[1][key]:
                raise UserError(
                    f"drafters.{drafter}, arms.{arm}: other {key} than arm {first[0]}; accepted: arms that differ in "
                    "recipe and optimizer alone, so that the costs of their steps compare"
                )


def name_cost(first: TrainJob, job: TrainJob) -> str:
    """What the cost of an arm belongs to."""
    return identity.digest([describe_arm(first), describe_arm(job), job.engine.threads, job.engine.device])


def describe_arm(job: TrainJob) -> Any:
    """What its cost belongs to."""
    content = describe_training(job, "")
    return {**content, "settings": {**content["settings"], "steps": 0, "seed": 0}}


def measure_costs(arms: Mapping[str, TrainJob]) -> dict[str, float]:
    """Time of a step of each arm over the first arm's: medians of ratios on the same batches, in turn.

    On a processor its own time, which no other process lengthens. What it takes to load a batch, which is slower for
    the arm that happens to be the first, is added to all alike.
    """
    first = next(iter(arms.values()))
    training = prepare(replace(first, engine=replace(first.engine, threads="auto")), Processes())
    if first.engine.threads != "auto":
        torch.set_num_threads(first.engine.threads)  # as many as each training has: more were for what all share
    ids, engine = training.draft_ids, training.engine
    trainers = {arm: make_trainer(job, Processes(), engine, ids) for arm, job in arms.items()}
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in tqdm(range(TIMED + 1), desc="costs", leave=False, disable=None):
        start = now(engine.device)
        batch = training.batches.load(step)
        loading = now(engine.device) - start
        seconds = {}
        for place in range(len(arms)):  # each step begins with another arm
            arm = list(arms)[(place + step) % len(arms)]
            start = now(engine.device)
            trainers[arm].update(batch)
            seconds[arm] = loading + now(engine.device) - start
        for arm, found in ratios.items():
            found.append(seconds[arm] / seconds[next(iter(arms))])
    return {arm: median(found[1:]) for arm, found in ratios.items()}  # the first step warms up


def now(device: torch.device) -> float:
    """Seconds of this process on a processor; on an accelerator those of the clock, with all its work done."""
    if device.type == "cpu":
        return process_time()
    torch.cuda.synchronize(device)
    return perf_counter()


def work_off(settings: AblationSettings, trainings: list[ArmTraining]) -> Iterator[dict[str, Any]]:
    """A row of each training as it is done; those that were done before come first.

    What is trained anew loses its old row first: a folder with a row holds what the row says.
    """
    done = {one.name: row for one in trainings if (row := read_row(settings, one)) is not None}
    yield from done.values()
    left = [one for one in trainings if one.name not in done]
    for one in left:
        (settings.folder / one.name / ROW).unlink(missing_ok=True)
    if settings.processes == 1 or len(left) < 2:
        yield from map(train, left)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(settings.processes, context, initializer=end_with_parent)
    try:
        for future in as_completed([pool.submit(train, one) for one in left]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # those that have begun end; a restart goes on from their checkpoints


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went; a pool's own ones would go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train(one: ArmTraining) -> dict[str, Any]:
    """One training from where it stands to its folder, and its row."""
    one.job.settings.work.mkdir(parents=True, exist_ok=True)
    with FileLock(one.job.settings.work / "prepare.lock"):  # answers and features are shared: one after the other
        training = prepare(one.job, Processes(quiet=True))
    run(training)
    out = write(training)
    told = json.loads((out / "training.json").read_text())
    row = {
        "drafter": one.drafter,
        "arm": one.arm,
        "seed": one.seed,
        "steps": one.job.settings.steps,
        "cost": round(one.cost, 4),
        "training_seconds": told["seconds"]["training"],
        "calibration_acceptance_length": round(told["validation"]["validation/acceptance_length"], 4),
        "training_id": training.training_id,
    }
    replace_json(out / ROW, row)
    return row


def read_row(settings: AblationSettings, one: ArmTraining) -> dict[str, Any] | None:
    """The row of a training that is done: its folder was written by one with these steps and settings."""
    folder = settings.folder / one.name
    row = read_json(folder / ROW)
    told = read_json(folder / "training.json") if row is not None else None
    if row is None or told is None or row["training_id"] != told["training_id"]:
        return None
    current = json.loads(json.dumps(describe_training(one.job, told["identity"]["documents"])))
    same = all(told["config"][key] == one.job.composed[key] for key in VALIDATION)
    return row if same and told["identity"] == current else None


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
