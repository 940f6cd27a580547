"""Arms of a training at equal compute from the same start: their jobs, what a step of each costs, and their work."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Annotated, Any, Literal

import torch
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
from experiments.training.setup import TrainJob, build
from experiments.training.subjects import describe_training
from experiments.training.work import make_trainer, prepare, run, write
from viasd.spec import spec

TIMED = 20  # steps of each arm that its cost is the median of
COLUMNS = ("drafter", "arm", "seed", "steps", "cost", "cpu_seconds", "calibration_acceptance_length", "training_id")
Names = Annotated[dict[str, list[str]], Field(min_length=1)]


@spec
class AblationSettings:
    """The settings of an ablation (conf/train_vsd.yaml says what each means)."""

    drafters: Names
    arms: Names
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


def list_trainings(settings: AblationSettings) -> list[ArmTraining]:
    """All of them, checked. Raises UserError for overrides that cannot be composed."""
    threads = max(1, core_count() // settings.processes)
    found = []
    for drafter, told in settings.drafters.items():
        for arm, more in settings.arms.items():
            for seed in settings.seeds:
                name = f"{drafter}_{arm}_{seed}"
                own = [f"seed={seed}", f"steps={settings.steps}", f"out={settings.folder / name}"]
                given = [f"engine.threads={threads}", *settings.common, *told, *more, *own]
                try:
                    config = compose(config_name="train_eagle", overrides=given)
                except (HydraException, OmegaConfBaseException) as error:
                    first = str(error).strip().splitlines()[0]
                    raise UserError(
                        f"drafters.{drafter}, arms.{arm}: {first}; accepted: keys of train_eagle.yaml"
                    ) from error
                found.append(ArmTraining(drafter, arm, seed, build(config)))
    return found


def settle_costs(settings: AblationSettings, trainings: list[ArmTraining]) -> list[ArmTraining]:
    """The same trainings with steps of equal compute. Costs are measured once and stored, so that a restart agrees."""
    path, settled = settings.folder / "costs.json", []
    stored: dict[str, dict[str, float]] = read_json(path) or {}
    first_seed = [one for one in trainings if one.seed == settings.seeds[0]]
    for drafter in settings.drafters:
        arms = {one.arm: one.job for one in first_seed if one.drafter == drafter}
        key = f"{drafter} {identity.digest([describe_arm(job) for job in arms.values()])}"
        if key not in stored:
            stored[key] = measure_costs(arms)
            replace_json(path, stored)
        settled += [one.at_cost(stored[key][one.arm]) for one in trainings if one.drafter == drafter]
    return settled


def describe_arm(job: TrainJob) -> Any:
    """What its cost belongs to."""
    content = describe_training(job, "")
    return {**content, "settings": {**content["settings"], "steps": 0, "seed": 0}}


def measure_costs(arms: Mapping[str, TrainJob]) -> dict[str, float]:
    """Processor time of a step of each arm over the first arm's: medians of ratios on the same batches, in turn.

    What it takes to load a batch, which is slower for the arm that happens to be the first, is added to all alike.
    """
    first = next(iter(arms.values()))
    training = prepare(replace(first, engine=replace(first.engine, threads="auto")), Processes())
    if first.engine.threads != "auto":
        torch.set_num_threads(first.engine.threads)  # as many as each training has: more were for what all share
    ids, engine = training.draft_ids, training.engine
    trainers = {arm: make_trainer(job, Processes(), engine, ids) for arm, job in arms.items()}
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in tqdm(range(TIMED + 1), desc="costs", leave=False, disable=None):
        start = process_time()
        batch = training.batches.load(step)
        loading = process_time() - start
        seconds = {}
        for place in range(len(arms)):  # each step begins with another arm
            arm = list(arms)[(place + step) % len(arms)]
            start = process_time()
            trainers[arm].update(batch)
            seconds[arm] = loading + process_time() - start
        for arm, found in ratios.items():
            found.append(seconds[arm] / seconds[next(iter(arms))])
    return {arm: median(found[1:]) for arm, found in ratios.items()}  # the first step warms up


def work_off(settings: AblationSettings, trainings: list[ArmTraining]) -> Iterator[dict[str, Any]]:
    """A row of each training as it is done; those that were done before come first."""
    done = {one.name: row for one in trainings if (row := read_row(settings, one)) is not None}
    yield from done.values()
    left = [one for one in trainings if one.name not in done]
    if settings.processes == 1 or len(left) < 2:
        yield from map(train, left)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, context, initializer=end_with_parent) as pool:
        for future in as_completed([pool.submit(train, one) for one in left]):
            yield future.result()


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
    start = process_time()
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
        "cpu_seconds": round(process_time() - start, 1),
        "calibration_acceptance_length": round(told["validation"]["validation/acceptance_length"], 4),
        "training_id": training.training_id,
    }
    replace_json(out / "ablation.json", row)
    return row


def read_row(settings: AblationSettings, one: ArmTraining) -> dict[str, Any] | None:
    """The row of a training that is done: its folder was written by one with these steps and settings."""
    folder = settings.folder / one.name
    row: dict[str, Any] | None = read_json(folder / "ablation.json")
    told = read_json(folder / "training.json")
    if row is None or told is None:
        return None
    current = json.loads(json.dumps(describe_training(one.job, told["identity"]["documents"])))
    return row if told["identity"] == current else None


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
