"""Train an EAGLE head for a target: `python scripts/train_eagle.py [key=value ...]`; docs/training.md tells the way.

The target answers prompts of training splits, or of a file; a head learns from its features what it would say next.
What is done is stored: the same command goes on from there. Several GPUs: `accelerate launch scripts/train_eagle.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.entry import CONFIG_DIR, run_command  # noqa: E402


def run_training(config: DictConfig) -> Path:
    """One training, from configuration to the folder of the head."""
    from experiments.training.processes import open_processes
    from experiments.training.setup import build
    from experiments.training.work import prepare, run, write

    job = build(config)
    processes = open_processes(job.settings.processes, job.engine.device)
    training = prepare(job, processes)
    if processes.first:
        print(f"training {training.training_id} on pair {job.pair.name}, in {training.folder}")
        print("\n".join(training.notices), flush=True)
    run(training)
    out = training.folder
    if processes.first:
        out = write(training)
        size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        spent = ", ".join(f"{part} {seconds:.0f}" for part, seconds in training.seconds.items())
        print(f"seconds: {spent}")
        print(f"head: {os.path.relpath(out)} ({size / 1e6:.2f} MB)")
    return out


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train_eagle")
def _main(config: DictConfig) -> str:
    from experiments.launching.locks import presence

    with presence():  # runs that are timed beside it say so
        return str(run_training(config))


def main() -> None:
    """Entry point."""
    run_command(_main)


if __name__ == "__main__":
    main()
