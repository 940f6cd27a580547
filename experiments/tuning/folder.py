"""What a tuning leaves behind: `results/tuned/ID/trials.jsonl` and a yaml for each method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from textwrap import wrap
from typing import Any

from omegaconf import OmegaConf

from experiments import identity
from experiments.loading import describe
from experiments.store import RunFolder, create_folder, whole_lines
from experiments.tuning.setup import SPLIT, TunePlan
from experiments.tuning.space import apply, told
from experiments.tuning.trial import Trial
from viasd.method import Method

WIDTH = 118  # of a comment


class TrialFolder(RunFolder):
    """The folder of a tuning, with the lock and the care for killed processes that a run's has. Rows are trials."""

    def __init__(self, results: Path, run_id: str) -> None:
        super().__init__(results, run_id)
        self.path = results / "tuned" / run_id
        self.rows_path, self.log_path = self.path / "trials.jsonl", self.path / "tune.log"

    def read_trials(self, methods: list[str], count: int) -> dict[str, list[Trial]]:
        """The first `count` stored trials of each method, in their order."""
        content = self.rows_path.read_bytes() if self.rows_path.exists() else b""
        trials = [Trial.from_json(line) for line in whole_lines(content)]
        return {name: [trial for trial in trials if trial.method == name][:count] for name in methods}


def tuned_name(method: str) -> str:
    """The name of a method after tuning, and of its yaml."""
    return f"{method}_tuned"


def tuned_method(plan: TunePlan, best: Trial) -> Method:
    """The method at a setting."""
    return apply(plan.job.tuned[best.method].composed, best.setting, tuned_name(best.method))


def write_method(plan: TunePlan, folder: Path, best: Trial, trials: list[Trial], command: str) -> Path:
    """Write the yaml of a method's best setting. It names every field, and in comments where it comes from."""
    create_folder(folder, folder)
    path = folder / f"{tuned_name(best.method)}.yaml"
    fields = OmegaConf.to_yaml(OmegaConf.create(describe(tuned_method(plan, best))))
    path.write_text(f"{comment(plan, best, trials, command)}\n{fields}", encoding="utf-8")
    return path


def comment(plan: TunePlan, best: Trial, trials: list[Trial], command: str) -> str:
    """Where a setting comes from."""
    job, who = plan.job, plan.identity
    feasible = sum(trial.feasible(job.settings.min_fidelity) for trial in trials)
    lines = [
        f"{best.method} tuned for speed at fidelity >= {job.settings.min_fidelity:g} on pair {job.pair.name}.",
        f"Setting: {told(best.setting) or 'as the method stands'}",
        f"Found: {best.relative_speed:.3f} times vanilla's tokens/s (mean over tasks, on the same prompts), "
        f"fidelity {best.fidelity:.4f} (vanilla {best.vanilla_fidelity:.4f}). It is the best of {len(trials)} trials, "
        "so the speed is an optimistic estimate: measure it on test prompts.",
        f"Command: {command}",
        f"Trials: {len(trials)}, {feasible} feasible; tuning {plan.tune_id}, seed {job.settings.seed}",
        f"Prompts: the first {job.settings.prompts} of split {SPLIT} of {', '.join(job.jobs)}",
        f"Pair: {identity.digest(who['pair'])}; {who['device']}, {who['dtype']}, {who['threads']} threads",
    ]
    return "\n".join(f"# {part}" for line in lines for part in wrap(line, WIDTH, break_on_hyphens=False))


def record(plan: TunePlan, folder: TrialFolder, device: Any) -> dict[str, Any]:
    """What run.json holds, one provenance for each start."""
    before = folder.read_run() or {}
    return {
        "config": plan.job.composed,
        "identity": plan.identity,
        "prompts": {name: [prompt.example.example_id for prompt in own] for name, own in plan.prompts.items()},
        "space": {name: [dataclasses.asdict(knob) for knob in one.knobs] for name, one in plan.job.tuned.items()},
        "provenance": [*before.get("provenance", []), identity.provenance(device)],
    }
