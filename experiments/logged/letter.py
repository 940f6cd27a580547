"""All that W&B is told of a run, as plain data that a process without models reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.identity import digest
from experiments.logged import facts, rounds, tables
from experiments.logged.artifacts import artifacts
from experiments.logged.session import Address
from experiments.records import Row
from experiments.store import RunFolder, replace_json
from experiments.text_tables import headline_cells
from experiments.tracking import WandbTracking

OFFLINE = ("offline", "dryrun")  # of WANDB_MODE, which may forbid the network to all runs, and to those of an agent
Letter = dict[str, Any]
BY_ROUND = {
    "committed": "tokens committed by a round, by its number (mean over examples)",
    "pending": "pending tokens after a round, by its number (mean over examples)",
    "drafted": "tokens drafted by a round, by its number (mean over examples)",
}


def address(tracking: WandbTracking, folder: RunFolder, run: Mapping[str, Any], group: str | None) -> Address:
    """Where a run is logged. `group`: the experiment's name, None where there is none."""
    config = run["config"]
    pair, task, method = (config[part]["name"] for part in ("pair", "task", "method"))
    return Address(
        mode="offline" if os.environ.get("WANDB_MODE") in OFFLINE else tracking.mode,
        project=tracking.project,
        entity=tracking.entity,
        group=str(tracking.group or group or config.get("table_name") or f"{pair}-{task}"),
        job_type=task,
        tags=list(dict.fromkeys([*facts.automatic_tags(run), *tracking.tags])),
        where=str(Path(tracking.dir).expanduser().resolve() if tracking.dir else folder.path),
        run_id=folder.run_id,
        name=f"{method}-{task}-{folder.run_id}",
    )


def opening(tracking: WandbTracking, folder: RunFolder, run: Mapping[str, Any], group: str | None) -> Letter:
    """What is known before the first example."""
    config = facts.configuration(run)
    config["live"] = config["live"] or tracking.live
    return {
        "run_id": folder.run_id,
        "address": asdict(address(tracking, folder, run, group)),
        "config": config,
        "log": str(folder.log_path),
    }


def write(
    tracking: WandbTracking,
    folder: RunFolder,
    summary: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    group: str | None,
) -> Letter:
    """All there is to tell of a run. `digest` is the same where the same would be told in the same place again.

    Raises LookupError for an objective that the summary has not.
    """
    run, arms = folder.read_run() or {}, list(summary)
    numbers = facts.flatten(summary)
    letter = opening(tracking, folder, run, group)
    letter["config"]["metrics"] = facts.definitions(summary)
    letter["summary"] = {**numbers, "live": letter["config"]["live"]}
    letter["objective"] = {}
    if tracking.objective is not None:
        method = run["config"]["method"]["name"]
        value = facts.objective(numbers, method, tracking.objective, tracking.min_fidelity)
        letter["objective"] = {"objective": value}
    letter["tables"] = _tables(summary, rows, tracking.texts)
    letter["histograms"] = rounds.histograms(rows, arms)
    letter["lines"] = _lines(rows, arms)
    letter["artifacts"] = artifacts(run, folder, tracking.texts, tracking.upload_heads)
    return {**letter, "digest": digest(letter)}


def store(letter: Letter, path: Path) -> Path:
    """Write a letter where the process that tells it finds it. Raises UserError when it cannot be written."""
    replace_json(path, letter)
    return path


def _tables(summary: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], texts: bool) -> dict[str, Any]:
    arms = list(summary)
    header, *lines = headline_cells(summary, arms)
    return {
        "headline": {"columns": header, "data": lines},
        "rows": {"columns": tables.columns(texts), "data": tables.table(rows, texts)},
        "positions": {"columns": tables.POSITIONS, "data": tables.positions(rows, arms)},
    }


def _lines(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """Charts with a line for each arm, over whole numbers from 0."""
    found: dict[str, dict[str, list[float]]] = {"by_position/acceptance": {}}
    for arm, _, _, _, _, share in tables.positions(rows, arms):
        if share is not None:
            found["by_position/acceptance"].setdefault(arm, []).append(share)
    found |= {f"by_round/{name}": rounds.by_round(rows, arms, name) for name in BY_ROUND}
    titles = {"by_position/acceptance": "share of judged tokens that are kept, by draft position"}
    titles |= {f"by_round/{name}": title for name, title in BY_ROUND.items()}
    return {
        name: {"title": titles[name], "over": name.partition("/")[0].removeprefix("by_"), "arms": own}
        for name, own in found.items()
        if own
    }
