"""Equal tuning: `python -m experiments.tune [key=value ...]` chooses a method's knobs, and sd's, on training prompts.

Speed under a fidelity bound, by the same number of trials for each method. Each best setting becomes a method yaml.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, log_to, run_command
from experiments.errors import RunFailed, UserError

if TYPE_CHECKING:
    from experiments.tuning.folder import TrialFolder
    from experiments.tuning.setup import TunePlan
    from experiments.tuning.trial import Trial

PRIVATE = ("results_dir=", "out=", "debug=")  # where a person keeps files is not part of what was done


def run_tune(config: DictConfig) -> Path:
    """One tuning, from configuration to yamls; it goes on from the trials that are stored."""
    from experiments.tuning.folder import TrialFolder
    from experiments.tuning.search import best, load_optuna
    from experiments.tuning.setup import build, settle
    from experiments.tuning.show import infeasible, table

    load_optuna()
    job = build(config)
    plan = settle(job)
    settings, folder = job.settings, TrialFolder(job.settings.results, plan.tune_id)
    count = sum(map(len, plan.prompts.values()))
    print(
        f"tuning of {', '.join(job.tuned)} on pair {job.pair.name}: {settings.trials} trials each on {count} training "
        f"prompts of {len(job.jobs)} tasks, fidelity >= {settings.min_fidelity:g}; tuning {plan.tune_id}",
        flush=True,
    )
    with folder.measuring():
        _measure(plan, folder)
        trials = folder.read_trials(list(job.tuned), settings.trials)
        found = {name: best(own, settings.min_fidelity) for name, own in trials.items()}
        print(table(trials, found, settings.min_fidelity))
        print(f"setup cost: {sum(trial.seconds for own in trials.values() for trial in own):.0f} s of trials")
        lacking = [infeasible(name, trials[name], settings.min_fidelity) for name, one in found.items() if one is None]
        if lacking:
            raise RunFailed("; ".join(lacking))
        write(plan, folder, trials, {name: one for name, one in found.items() if one is not None})
    return folder.path


def _measure(plan: TunePlan, folder: TrialFolder) -> None:
    """Run what is missing, the methods in turn, so that neither has a quieter hour of the machine."""
    from experiments.launching.place import alone_to_time

    job = plan.job
    done = folder.read_trials(list(job.tuned), job.settings.trials)
    if all(len(own) == job.settings.trials for own in done.values()):
        print("All trials are stored; nothing was measured again.")
        return
    log_to(folder.log_path)
    device = next(iter(job.jobs.values())).engine.device
    with alone_to_time(device, job.pair, f"tuning {plan.tune_id} on pair {job.pair.name}"):
        _run_trials(plan, folder, done)


def _run_trials(plan: TunePlan, folder: TrialFolder, done: dict[str, list[Trial]]) -> None:
    """Run and store what `done` lacks."""
    from tqdm import tqdm

    from experiments.launching.jobs import failed_state
    from experiments.launching.neighbors import edges
    from experiments.tuning.folder import record
    from experiments.tuning.search import next_trial
    from experiments.tuning.space import apply
    from experiments.tuning.trial import Workbench

    tuned, settings = plan.job.tuned, plan.job.settings
    stored, total = sum(map(len, done.values())), settings.trials * len(tuned)
    bench = Workbench(plan)
    told = record(plan, folder, bench.engine.device)
    folder.write_run({"status": "running", **told})
    try:
        with tqdm(total=total, initial=stored, desc="tuning", unit="trial", leave=False, disable=None) as bar:
            for number in range(settings.trials):
                for name in (name for name in tuned if len(done[name]) == number):
                    drawn = next_trial(tuned[name], done[name], settings.min_fidelity, settings.seed)
                    with edges() as seen:
                        trial = bench.measure(drawn, apply(tuned[name].composed, drawn.setting, name))
                    trial = replace(trial, neighbors=seen.most)
                    folder.append([trial])
                    done[name].append(trial)
                    bar.update()
    except BaseException as error:
        with suppress(UserError):  # a full disk must not hide why the tuning ended
            folder.write_run({"status": failed_state(error), **told})
        raise
    folder.write_run({"status": "done", **told})


def write(plan: TunePlan, folder: TrialFolder, trials: dict[str, list[Trial]], best: dict[str, Trial]) -> None:
    """Write the yamls, and say how to use them."""
    from experiments.tuning.folder import tuned_name, write_method

    out = plan.job.settings.out
    place = folder.path / "method" if out is None else Path(out).expanduser()
    typed = [one for one in HydraConfig.get().overrides.task if not one.startswith(PRIVATE)]
    command = shlex.join(["python", "-m", "experiments.tune", *typed])
    for name, one in best.items():
        print(f"yaml: {write_method(plan, place, one, trials[name], command)}")
    first, *others = map(tuned_name, best)
    here = folder.path.relative_to(Path.cwd()) if folder.path.is_relative_to(Path.cwd()) else folder.path
    where = f"--config-dir {shlex.quote(str(here))} " if out is None else ""
    arms = ",".join(["vanilla", *others, "method"])
    print(f"use: python -m experiments.run {where}method={first} 'arms=[{arms}]'")


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="tune")
def _main(config: DictConfig) -> str:
    return run_tune(config).name


def main() -> None:
    """Entry point."""
    run_command(_main)


if __name__ == "__main__":
    main()
