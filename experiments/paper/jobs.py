"""The runs behind a published table: an experiment expanded into jobs, each read from its folder or measured first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Annotated, Any

from hydra import compose
from omegaconf import DictConfig, open_dict
from pydantic import Field

from experiments.config import build
from experiments.errors import RunFailed, UserError
from experiments.paper.spec import Published
from experiments.plan import Plan, settle
from experiments.preview import Preview, duration, estimate, preview
from experiments.run import missing_prompts, run_job, stored_rows
from experiments.tables import StoredRun, read
from viasd.spec import spec

Overrides = tuple[str, ...]
PLANS: dict[Overrides, Plan] = {}  # of this process: tables share runs


@spec
class Asked:
    """What a command says of all jobs (conf/publish.yaml says what each means)."""

    tasks: Annotated[list[str], Field(min_length=1)] | None
    limit: Annotated[int, Field(ge=1)] | None
    size: str
    results_dir: str | None
    debug: bool


@dataclass(frozen=True)
class Request:
    """One job: an experiment on one task, by the overrides that compose it."""

    experiment: str
    task: str
    overrides: Overrides

    def compose(self) -> DictConfig:
        """The configuration of the main job. Raises UserError for an experiment that sweeps over more than tasks."""
        config = compose("config", list(self.overrides), return_hydra_config=True)
        params = config.hydra.sweeper.params
        if params is None or set(params) != {"task"}:
            raise UserError(f"experiment={self.experiment}: a table takes one that sweeps over tasks alone")
        with open_dict(config):
            del config["hydra"]  # no part of a job's record
        return config


def expand(published: Published, asked: Asked, typed: Sequence[str]) -> list[Request]:
    """The jobs of a table: its experiment on each of the tasks, a table's own unless others are asked for.

    `typed`: overrides of pair and engine, passed on.
    """
    common = [f"experiment={published.experiment}", f"size={asked.size}", *typed, "track=none", "table_name=null"]
    if asked.limit is not None:
        common += [f"limit={asked.limit}", f"quality_limit={asked.limit}"]
    elif (size := published.sizes.get(asked.size)) is not None:
        common += [f"limit={size.limit}", f"quality_limit={size.quality_limit}"]
    common += [f"results_dir={_quoted(asked.results_dir)}"] if asked.results_dir is not None else []
    tasks = list(dict.fromkeys(asked.tasks or published.tasks))
    return [Request(published.experiment, task, (*common, f"task={task}")) for task in tasks]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def look(request: Request) -> Preview:
    """What of a job is stored, and how long the rest may take. Measures nothing."""
    return preview(build(request.compose()))


def obtain(request: Request, say: Any = print) -> tuple[StoredRun, str | None]:
    """The run of a job, measured where rows are missing; and what failed, if more examples did than allowed."""
    failed = None
    if request.overrides not in PLANS:
        config = request.compose()
        plan = settle(build(config))
        plan.engine = None  # models that were loaded to name the run: the job loads its own
        missing = missing_prompts(plan)
        if missing:
            say(f"{request.experiment} on {request.task}: {_work(plan, len(missing))}", flush=True)
            try:
                with redirect_stdout(io.StringIO()):  # the job's own tables
                    run_job(config)
            except RunFailed as error:
                failed = f"{request.experiment} on {request.task}: {error}"
        PLANS[request.overrides] = plan
    plan = PLANS[request.overrides]
    return replace(read(plan.folder), rows=stored_rows(plan)), failed


def _work(plan: Plan, missing: int) -> str:
    timed = sum(prompt.index < plan.timed for prompt in missing_prompts(plan))
    seconds = estimate(plan, timed, missing)
    told = f", about {duration(seconds)}" if seconds is not None else ""
    return (
        f"measuring {missing} of {len(plan.prompts)} examples in {len(plan.arms)} arms{told}; run {plan.folder.run_id}"
    )
