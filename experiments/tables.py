"""Tables of several runs: one per task, and the unweighted mean over the tasks. Pure functions of stored rows.

python -m experiments.tables RUN_ID [RUN_ID ...] --name first_light
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import CHECKOUT
from experiments.errors import UserError, exit_code, near, one_line
from experiments.metrics import Summary, in_order, summarize, summarize_tasks
from experiments.records import Row
from experiments.report import headline_markdown
from experiments.store import RunFolder

MEAN = "mean over tasks"
COMPARABLE = ("code_hash", "device", "dtype", "threads", "versions", "pair", "sampling")


@dataclass(frozen=True)
class StoredRun:
    """A finished run as it lies on disk."""

    task: str
    arms: list[str]
    temperature: float
    identity: dict[str, Any]
    rows: list[Row]
    static: dict[str, dict[str, float]]
    notices: list[str]


def read(folder: RunFolder) -> StoredRun:
    """A stored run. Raises UserError when there is none."""
    run = folder.read_run()
    if run is None:
        known = [path.name for path in folder.path.parent.glob("*")] if folder.path.parent.is_dir() else []
        raise UserError(f"run {folder.run_id}: not found in {folder.path.parent}{near(folder.run_id, known)}")
    identity = run["identity"]
    return StoredRun(
        task=identity["task"]["name"],
        arms=list(identity["arms"]),
        temperature=identity["sampling"]["temperature"],
        identity=identity,
        rows=folder.read_rows(),
        static=static_metrics(run),
        notices=run.get("notices", []),
    )


def static_metrics(run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of an arm that no row holds: peak memory and its ratio to vanilla's."""
    memory = run.get("memory", {})
    base = memory.get("vanilla")
    ratio = {name: {"memory_ratio": value / base} for name, value in memory.items()} if base else {}
    return {name: {"peak_memory": value, **ratio.get(name, {})} for name, value in memory.items()}


def summaries(runs: Sequence[StoredRun]) -> tuple[dict[str, Summary], list[str]]:
    """Summaries by task and, for several tasks, their mean; and the arms. Raises UserError for runs that do not mix."""
    first = runs[0]
    for run in runs[1:]:
        mixed = [key for key in COMPARABLE if run.identity[key] != first.identity[key]]
        if mixed or run.arms != first.arms or run.task in {other.task for other in runs if other is not run}:
            raise UserError(
                f"runs on {first.task} and {run.task} are not comparable: they differ in {', '.join(mixed) or 'arms'}"
            )
    told = {run.task: summarize(run.rows, run.arms, temperature=run.temperature, static=run.static) for run in runs}
    if len(runs) > 1:
        told[MEAN] = summarize_tasks(
            {run.task: run.rows for run in runs},
            first.arms,
            temperature=first.temperature,
            static={run.task: run.static for run in runs},
        )
    return told, first.arms


def markdown(runs: Sequence[StoredRun]) -> str:
    """Headline tables, mean first, and where they were measured."""
    told, arms = summaries(runs)
    identity = runs[0].identity
    notes = sorted({notice for run in runs for notice in run.notices})
    parts = []
    for name in sorted(told, key=lambda name: name != MEAN):
        parts.append(f"**{name}**\n\n{headline_markdown(told[name], arms)}")
    versions = ", ".join(f"{name} {number}" for name, number in identity["versions"].items())
    parts.append(
        f"Pair {identity['pair']['name']}, temperature {identity['sampling']['temperature']:g}; {identity['device']}, "
        f"{identity['dtype']}, {identity['threads']} thread(s), {versions}, code {identity['code_hash']}. "
        "Intervals: 95%, bootstrap over prompts, paired across arms. The embedded target was trained with layer drop."
    )
    return "\n\n".join([*parts, *(f"Note: {note}." for note in notes)]) + "\n"


def write_csv(path: Path, runs: Sequence[StoredRun]) -> None:
    """Every metric of every arm and task, tidy: task, arm, metric, value, low, high."""
    told, arms = summaries(runs)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "arm", "metric", "value", "low", "high"])
        for task, summary in told.items():
            for arm in arms:
                for name in in_order(summary[arm]):
                    entry: Any = summary[arm][name]
                    ends = [entry["value"], entry["low"], entry["high"]] if isinstance(entry, dict) else [entry, "", ""]
                    writer.writerow([task, arm, name, *(f"{end:.6g}" if end != "" else "" for end in ends)])


def write(runs: Sequence[StoredRun], folder: Path, name: str) -> list[Path]:
    """`name`.md and `name`.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.csv"]
    paths[0].write_text(markdown(runs), encoding="utf-8")
    write_csv(paths[1], runs)
    return paths


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run ids, one per task")
    parser.add_argument("--name", default="table", help="name of the files to write")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "results", help="the results folder")
    options = parser.parse_args()
    try:
        runs = [read(RunFolder(options.results, run_id)) for run_id in options.runs]
        for path in write(runs, options.results / "tables", options.name):
            print(path)
    except Exception as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
