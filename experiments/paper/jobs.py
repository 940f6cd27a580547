"""The runs behind a published table: an experiment expanded into jobs, each read from its folder or measured first."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Annotated, Any

from hydra import compose
from omegaconf import DictConfig, open_dict
from pydantic import Field

from experiments.config import build
from experiments.ending import stored_rows
from experiments.errors import RunFailed, UserError
from experiments.paper.fitting import Fitted, fit, with_twins
from experiments.paper.rendering import RENDERER
from experiments.paper.spec import Published
from experiments.plan import Plan, settle
from experiments.preview import Preview, duration, estimate, preview
from experiments.records import Row
from experiments.run import missing_prompts, run_job
from experiments.store import is_complete, select
from experiments.tables import StoredRun, read
from viasd.spec import spec

DEFAULT_SIZE = "default"
Overrides = tuple[str, ...]
PAIR = r"[+~]*pair\b"  # what is typed of a pair
RUNS: dict[Overrides, StoredRun] = {}  # of this process: tables share runs
FITTED: dict[Overrides, Fitted] = {}


@spec
class Asked:
    """What a command says of all jobs (conf/publish.yaml says what each means)."""

    tasks: Annotated[list[str], Field(min_length=1)] | None
    limit: Annotated[int, Field(ge=1)] | None
    size: str | None
    results_dir: str | None
    debug: bool


@dataclass(frozen=True)
class Request:
    """One job: an experiment on one task, by the overrides that compose it.

    `whole`: nobody said how many examples, so all that are stored are read, and no fewer than by default.
    `another_pair`: one was typed, so arms that it cannot run are left out (experiments.paper.fitting).
    """

    experiment: str
    task: str
    overrides: Overrides
    whole: bool
    another_pair: bool

    def compose(self) -> DictConfig:
        """The configuration of the main job.

        Raises UserError for an experiment that sweeps over more than tasks, and Unfit for a pair that cannot run it.
        """
        config = compose("config", list(self.overrides), return_hydra_config=True)
        params = config.hydra.sweeper.params
        if params is None or set(params) != {"task"}:
            raise UserError(f"experiment={self.experiment}: a table takes one that sweeps over tasks alone")
        with open_dict(config):
            del config["hydra"]  # no part of a job's record
        if self.another_pair:
            if self.overrides not in FITTED:
                FITTED[self.overrides] = fit(config)
            config.arms = FITTED[self.overrides].arms
        return config

    def left_out(self) -> str:
        """Which arms the pair cannot run, and why, once the job was composed; empty where it runs all."""
        fitted = FITTED.get(self.overrides)
        return f"{self.experiment}: {fitted}" if fitted is not None and fitted.left_out else ""

    def with_twins(self, run: StoredRun) -> StoredRun:
        """Its run, for a table: an arm that equals another one with this pair has the other's rows."""
        fitted = FITTED.get(self.overrides)
        return run if fitted is None else with_twins(run, fitted.twins)


def expand(published: Published, asked: Asked, typed: Sequence[str]) -> list[Request]:
    """The jobs of a table: its experiment on each of the tasks, a table's own unless others are asked for.

    `typed`: overrides of pair, decode and engine, passed on.
    """
    size_name = asked.size or DEFAULT_SIZE
    common = [f"experiment={published.experiment}", f"size={size_name}", *typed, "track=none", "table_name=null"]
    if asked.limit is not None:
        common += [f"limit={asked.limit}", f"quality_limit={asked.limit}"]
    elif (size := published.sizes.get(size_name)) is not None:
        common += [f"limit={size.limit}", f"quality_limit={size.quality_limit}"]
    common += [f"results_dir={_quoted(asked.results_dir)}"] if asked.results_dir is not None else []
    tasks = list(dict.fromkeys(asked.tasks or published.tasks))
    whole = asked.size is None and asked.limit is None
    another = any(re.match(PAIR, one) for one in typed)
    return [Request(published.experiment, task, (*common, f"task={task}"), whole, another) for task in tasks]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def look(request: Request) -> Preview:
    """What of a job is stored, and how long the rest may take. Measures nothing."""
    return preview(build(request.compose()))


def obtain(request: Request, say: Any = print) -> tuple[StoredRun, str | None]:
    """The run of a job, measured where rows are missing; and what failed, if more examples did than allowed."""
    if request.overrides in RUNS:
        return RUNS[request.overrides], None  # what failed was told with the first table
    failed, config = None, request.compose()
    plan = settle(build(config))
    plan.engine = None  # models that were loaded to name the run: the job loads its own
    if missing := missing_prompts(plan):
        RENDERER.finish()  # nothing works beside what is timed
        say(f"{request.experiment} on {request.task}: {_work(plan, len(missing))}", flush=True)
        try:
            with redirect_stdout(io.StringIO()):  # the job's own tables
                run_job(config)
        except RunFailed as error:
            failed = f"{request.experiment} on {request.task}: {error}"
    run = replace(read(plan.folder), rows=complete_rows(plan) if request.whole else stored_rows(plan))
    RUNS[request.overrides] = run
    return run, failed


def complete_rows(plan: Plan) -> list[Row]:
    """The rows of all examples that every arm has, timed where every arm is: of a run that was extended, all of it."""
    rows, repeats = plan.folder.read_rows(), plan.job.settings.repeats
    stored = {(row.example_id, row.arm): row for row in rows}

    def of_all_arms(timed: bool) -> set[str]:
        return {
            name
            for name in {row.example_id for row in rows}
            if all(is_complete(stored.get((name, arm)), timed, repeats, retry=False) for arm in plan.arms)
        }

    return select(rows, of_all_arms(timed=False), of_all_arms(timed=True))


def _work(plan: Plan, missing: int) -> str:
    timed = sum(prompt.index < plan.timed for prompt in missing_prompts(plan))
    seconds = estimate(plan, timed, missing)
    told = f", about {duration(seconds)}" if seconds is not None else ""
    return (
        f"measuring {missing} of {len(plan.prompts)} examples in {len(plan.arms)} arms{told}; run {plan.folder.run_id}"
    )
