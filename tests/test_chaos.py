"""A sweep survives what kills its processes: rows as without, none twice, none lost, no lock left behind."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from chaos import Chaos, begun_again, check_locks, plain_rows, start, wait, warm_up

SIZES = ["-m", "track=none", "task.max_new_tokens=4", "task.test_size=4"]


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    warm_up([*SIZES, "arms=[vanilla,sd]", "timing=off"], tmp_path_factory.mktemp("warm"))


def check_chaos(folder: Path, sweep: list[str], runs: int, workers: int, pauses: list[float]) -> int:
    """The same sweep undisturbed and disturbed. Returns how many runs a kill interrupted."""
    whole, killed = folder / "whole", folder / "killed"
    assert wait(start([*SIZES, *sweep, f"results_dir={whole}"], folder)) == 0
    if (whole / "settled").exists():  # call costs are measured once
        shutil.copytree(whole / "settled", killed / "settled")
    chaos = Chaos([*SIZES, *sweep, f"results_dir={killed}"], folder, killed, workers, pauses)
    chaos.run()
    assert chaos.killed == len(pauses)
    rows = plain_rows(killed)
    assert len(rows) == runs and rows == plain_rows(whole)
    check_locks(killed)
    assert begun_again(whole) == 0
    return begun_again(killed)


def test_four_runs_by_two_workers_with_four_kills(tmp_path: Path) -> None:
    dice = random.Random(0)
    sweep = ["task=reasoning", "seed=0,1,2,3", "limit=1", "arms=[vanilla,sd]", "timing=off"]
    assert check_chaos(tmp_path, sweep, 4, 2, [dice.uniform(0.2, 1.0) for _ in range(4)]) >= 1


@pytest.mark.chaos
def test_24_runs_by_four_workers_with_20_kills(tmp_path: Path) -> None:
    dice = random.Random(0)
    sweep = [
        "task=reasoning,coding,qa,summarization",
        "method=via_sd,sd_heuristic",  # with and without memory from example to example
        "seed=0,1,2",
        "limit=2",
        "quality_limit=3",
        "arms=[vanilla,method]",
    ]
    assert check_chaos(tmp_path, sweep, 24, 4, [dice.uniform(0.3, 5.0) for _ in range(20)]) >= 4
