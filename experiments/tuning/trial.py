"""One trial: a setting measured against vanilla, arms interleaved prompt by prompt, with its fidelity off the clock."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from experiments.arms import vanilla
from experiments.comparison import compare, fidelity, speedup, tokens_per_second
from experiments.errors import RunFailed
from experiments.fidelity import measure_fidelity
from experiments.loading import decode_settings
from experiments.measure import Bench, Prompt, snapshot
from experiments.records import Row
from experiments.resolve import resolve_method
from experiments.tuning.setup import TunePlan
from viasd.decode import Decoder
from viasd.engine import Engine
from viasd.method import Method
from viasd.sampling import SeededDraws

VANILLA, TRIAL = "vanilla", "trial"  # the arms
MEANS = ("relative_speed", "fidelity", "vanilla_fidelity")  # what is averaged over the tasks


@dataclass(frozen=True)
class Trial:
    """A setting of a method, what was drawn to get it, and what was measured: means over the tasks, and each task.

    `drawn` and `setting` are empty for a method as it stands that cannot be drawn. A trial with an `error` measured
    nothing.
    """

    method: str
    number: int
    drawn: dict[str, Any]
    setting: dict[str, Any]
    relative_speed: float | None = None  # tokens/s over vanilla's on the same prompts
    fidelity: float | None = None
    vanilla_fidelity: float | None = None
    tasks: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # spent on it
    neighbors: int = 0  # other jobs of this host that were at work before or after it, at the most
    error: str | None = None

    def feasible(self, min_fidelity: float) -> bool:
        return self.fidelity is not None and self.fidelity >= min_fidelity

    def to_json(self) -> str:
        """One line of trials.jsonl."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Trial:
        content: dict[str, Any] = json.loads(line)
        return cls(**content)


class TrialBench(Bench):
    """A bench whose detail is fidelity alone: neither text nor quality nor time shares decide a trial."""

    def _detail(self, row: Row, prompt: Prompt, timed: bool) -> None:
        laws = None
        if self.decode.sampling.temperature > 0:  # at temperature 0 the tokens that were timed say it all
            draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
            generation = self.arms[row.arm].generate(prompt.ids, self.decode, draws, detail=True)
            laws = generation.laws if generation.token_ids == row.token_ids else None
        row.memory = self._memory[row.arm, row.index + 1] = snapshot(self.arms[row.arm])
        measure_fidelity(self.engine, prompt.ids, row, laws, self.decode.sampling)


class Workbench:
    """The models, loaded once, on which all trials are measured."""

    def __init__(self, plan: TunePlan) -> None:
        self.plan = plan
        self.engine: Engine = plan.open_engine()
        self.vanilla = vanilla().open(self.engine)

    def measure(self, trial: Trial, method: Method) -> Trial:
        """The trial with its numbers, or with what went wrong in its arm. Raises RunFailed where vanilla fails."""
        start = perf_counter()
        tasks: dict[str, dict[str, float]] = {}
        error: str | None = None
        decoder = resolve_method(method, self.plan.job.pair)[0].open(self.engine)
        fresh = snapshot(decoder)
        for name, prompts in self.plan.prompts.items():
            decoder.restore(fresh)  # each task begins as a run of it would
            bench = self._bench(name, decoder)
            if not tasks:
                bench.warm_up(prompts[0].ids)
            rows = [row for prompt in prompts for row in bench.measure(prompt, timed=True)]
            error = _first_error(rows)
            if error is not None:
                break
            tasks[name] = _numbers(rows, self.plan.job.jobs[name].sampling.temperature)
        found: dict[str, Any] = {} if error else {key: _mean_of(tasks, key) for key in MEANS}
        if not all(map(math.isfinite, found.values())):
            found, error = {}, "its fidelity is not known: it does not write the same tokens twice"
        seconds = perf_counter() - start
        return dataclasses.replace(trial, tasks={} if error else tasks, seconds=seconds, error=error, **found)

    def _bench(self, task: str, decoder: Decoder) -> TrialBench:
        job, tokenizer = self.plan.job.jobs[task], self.plan.tokenizer
        arms = {VANILLA: self.vanilla, TRIAL: decoder}
        decode = decode_settings(job, tokenizer)
        return TrialBench(self.engine, arms, job.task, tokenizer, decode, job.settings.seed, job.settings.repeats)


def _first_error(rows: list[Row]) -> str | None:
    """What went wrong in the trial's arm. Raises RunFailed for vanilla, which no knob would mend."""
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        if row.arm == VANILLA:
            raise RunFailed(f"vanilla failed on example {row.example_id}: {row.error}")
    return failed[0].error if failed else None


def _numbers(rows: list[Row], temperature: float) -> dict[str, float]:
    """What one task says of a setting."""
    arms = compare(rows, [VANILLA, TRIAL], temperature)
    relative = speedup(arms[TRIAL], arms[VANILLA])
    assert relative is not None
    return {
        "relative_speed": relative.value,
        "fidelity": fidelity(arms[TRIAL]).value,
        "vanilla_fidelity": fidelity(arms[VANILLA]).value,
        "tokens_per_second": tokens_per_second(arms[TRIAL]).value,
    }


def _mean_of(tasks: Mapping[str, Mapping[str, float]], key: str) -> float:
    return sum(task[key] for task in tasks.values()) / len(tasks)


def pooled(trials: Sequence[Trial]) -> list[Trial]:
    """One trial for each setting, with the mean of what its trials found: a lucky measurement must not win alone."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.error is None:
            groups.setdefault(json.dumps(trial.setting, sort_keys=True), []).append(trial)
    return [_pool(group) for group in groups.values()]


def _pool(group: Sequence[Trial]) -> Trial:
    means: dict[str, Any] = {key: sum(getattr(trial, key) for trial in group) / len(group) for key in MEANS}
    return dataclasses.replace(group[0], **means)
