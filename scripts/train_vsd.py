"""Train the drafters of the VSD-style ablation: `python scripts/train_vsd.py [key=value ...]` (docs/training.md).

Every arm goes on from the same weights, for as many steps as cost what the first arm's do. What is done is stored: the
same command goes on from there. `python -m experiments.run experiment=vsd_ablation` decodes with what it writes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.entry import CONFIG_DIR, run_command  # noqa: E402

if TYPE_CHECKING:
    from experiments.training.ablation import AblationSettings, ArmTraining


def run_ablation(config: DictConfig) -> Path:
    """All trainings, from configuration to the table of them."""
    from pydantic import TypeAdapter

    from experiments.training.ablation import AblationSettings, list_trainings, only_one, settle_costs

    composed: Any = OmegaConf.to_container(config, resolve=True)
    settings = TypeAdapter(AblationSettings).validate_python(composed, strict=False)
    trainings = list_trainings(settings)
    settings.folder.mkdir(parents=True, exist_ok=True)
    with only_one(settings):
        return work(settings, settle_costs(settings, trainings))


def work(settings: AblationSettings, trainings: list[ArmTraining]) -> Path:
    """All that is left to train; the table after each."""
    from experiments.training.ablation import work_off, write_table

    print(
        f"{len(trainings)} trainings, {settings.processes} at once, in {os.path.relpath(settings.folder)}", flush=True
    )
    order, rows = [one.name for one in trainings], {}
    path = settings.folder / "trainings.csv"
    for row in work_off(settings, trainings):
        name = f"{row['drafter']}_{row['arm']}_{row['seed']}"
        rows[name] = row
        write_table(path, [rows[one] for one in order if one in rows])
        told = f"{row['steps']} steps in {row['training_seconds']:.0f} s"
        print(f"{name}: {told}, acceptance length {row['calibration_acceptance_length']:.3f} (calibration)", flush=True)
    print(f"table: {os.path.relpath(path)}")
    return path


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train_vsd")
def _main(config: DictConfig) -> str:
    from experiments.launching.locks import presence

    with presence():  # runs that are timed beside it say so
        return str(run_ablation(config))


def main() -> None:
    """Entry point."""
    run_command(_main)


if __name__ == "__main__":
    main()
