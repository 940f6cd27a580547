"""Tables of several runs: one per task, and the unweighted mean over the tasks. Pure functions of stored rows.

python -m experiments.tables RUN_ID [RUN_ID ...] --name first_light
python -m experiments.tables RUN_ID [RUN_ID ...] --frontier --settings via_sd=via_sd,r_1,r_0.95
python -m experiments.tables RUN_ID [RUN_ID ...] --trainings plain=plain_0,plain_1 --trainings lk=lk_0,lk_1
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import frontier_report, trainings
from experiments.comparability import cells, check_comparable, columns, measured_where, notes, parse_mix
from experiments.comparison import Arm, compare_seeds
from experiments.conditions.disturbed import disturbances
from experiments.config import CHECKOUT
from experiments.errors import UserError, exit_code, near, one_line
from experiments.frontier import free_curve
from experiments.launching.neighbors import stored_notices
from experiments.metrics import Summary, in_order, summarize, summarize_tasks
from experiments.records import Row
from experiments.store import RunFolder
from experiments.text_tables import headline_markdown

MEAN = "mean over tasks"
LAYER_DROP = "The embedded target was trained with layer drop."


@dataclass(frozen=True)
class StoredRun:
    """A finished run as it lies on disk."""

    task: str
    arms: list[str]
    temperature: float
    identity: dict[str, Any]
    rows: list[Row]
    static: dict[str, dict[str, float]]
    notices: list[str]  # those of the run, and what disturbed its timings
    settings: dict[str, Any] = field(default_factory=dict)  # of method and arms, as composed


def read(folder: RunFolder) -> StoredRun:
    """A stored run. Raises UserError when there is none."""
    run = folder.read_run()
    if run is None:
        known = [path.name for path in folder.path.parent.glob("*")] if folder.path.parent.is_dir() else []
        raise UserError(f"run {folder.run_id}: not found in {folder.path.parent}{near(folder.run_id, known)}")
    identity, rows, config = run["identity"], folder.read_rows(), run.get("config", {})
    return StoredRun(
        task=identity["task"]["name"],
        arms=list(identity["arms"]),
        temperature=identity["sampling"]["temperature"],
        identity=identity,
        rows=rows,
        static=static_metrics(run),
        notices=[
            *stored_notices(run, rows),
            *disturbances(identity["task"]["name"], rows, run.get("provenance", [])),
        ],
        settings={key: config[key] for key in ("method", "arms") if key in config},
    )


def static_metrics(run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of an arm that no row holds: peak memory and its ratio to vanilla's."""
    memory = run.get("memory", {})
    base = memory.get("vanilla")
    ratio = {name: {"memory_ratio": value / base} for name, value in memory.items()} if base else {}
    return {name: {"peak_memory": value, **ratio.get(name, {})} for name, value in memory.items()}


def summaries(runs: Sequence[StoredRun], mix: Collection[str] = ()) -> tuple[dict[str, Summary], list[str]]:
    """Summaries by task and, for several tasks, their mean; and the arms.

    `mix`: keys of experiments.comparability in which the runs may differ. Raises UserError for runs that do not mix.
    """
    first = runs[0]
    check_comparable(runs, mix)
    if len({run.task for run in runs}) < len(runs):
        raise UserError(f"runs on {', '.join(run.task for run in runs)}: a table takes one run of each task")
    told = {run.task: summarize(run.rows, run.arms, temperature=run.temperature, static=run.static) for run in runs}
    if len(runs) > 1:
        told[MEAN] = summarize_tasks(
            {run.task: run.rows for run in runs},
            first.arms,
            temperature=first.temperature,
            static={run.task: run.static for run in runs},
        )
    return told, first.arms


def markdown(runs: Sequence[StoredRun], mix: Collection[str] = ()) -> str:
    """Headline tables, mean first, and where they were measured."""
    told, arms = summaries(runs, mix)
    parts = []
    for name in sorted(told, key=lambda name: name != MEAN):
        parts.append(f"**{name}**\n\n{headline_markdown(told[name], arms)}")
    parts.append(f"{measured_where(runs)} Intervals: 95%, bootstrap over prompts, paired across arms. {LAYER_DROP}")
    return "\n\n".join([*parts, *notes(runs)]) + "\n"


def write_csv(path: Path, runs: Sequence[StoredRun], mix: Collection[str] = ()) -> None:
    """Every metric of every arm and task, tidy: task, arm, metric, value, low, high, and each key that is mixed."""
    told, arms = summaries(runs, mix)
    more = columns(runs)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "arm", "metric", "value", "low", "high", *more])
        for task, summary in told.items():
            for arm in arms:
                for name in in_order(summary[arm]):
                    entry: Any = summary[arm][name]
                    ends = [entry["value"], entry["low"], entry["high"]] if isinstance(entry, dict) else [entry, "", ""]
                    writer.writerow(
                        [task, arm, name, *(f"{end:.6g}" if end != "" else "" for end in ends), *cells(more, task)]
                    )


def write(runs: Sequence[StoredRun], folder: Path, name: str, mix: Collection[str] = ()) -> list[Path]:
    """`name`.md and `name`.csv. Raises UserError for runs that do not mix."""
    check_comparable(runs, mix)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.csv"]
    paths[0].write_text(markdown(runs, mix), encoding="utf-8")
    write_csv(paths[1], runs, mix)
    return paths


def places(runs: Sequence[StoredRun], mix: Collection[str] = ()) -> dict[str, list[dict[str, Arm]]]:
    """The arms of each task, and for several tasks those of all under the mean's name, first.

    Runs of one task under several seeds are one comparison. Raises UserError for runs that do not mix.
    """
    check_comparable(runs, mix)
    by_task: dict[str, list[StoredRun]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    for task, own in by_task.items():
        if len({run.identity["seed"] for run in own}) < len(own):
            raise UserError(f"runs on {task}: two have the same seed; accepted: one run of each task and seed")
    tasks = {task: [compare_runs(own, 2 * place)] for place, (task, own) in enumerate(by_task.items())}
    return {MEAN: [arms for own in tasks.values() for arms in own], **tasks} if len(tasks) > 1 else {**tasks}


def compare_runs(runs: Sequence[StoredRun], seed: int) -> dict[str, Arm]:
    """The arms of runs of one task. `seed` is of the resamples."""
    first = runs[0]
    static = first.static if len(runs) == 1 else None
    return compare_seeds([run.rows for run in runs], first.arms, first.temperature, static, seed)


def write_frontier(
    runs: Sequence[StoredRun],
    settings: frontier_report.Settings,
    folder: Path,
    name: str,
    mix: Collection[str] = (),
) -> list[Path]:
    """`name`_frontier.md, and the figure as .svg, .pdf and .png. Raises UserError for runs without a free frontier."""
    from experiments.figures import frontier as figure  # loads matplotlib, which no other table needs
    from experiments.figures.style import PAGE, save

    found = places(runs, mix)
    for place in found.values():
        for arms in place:
            if "sd" not in arms or len(free_curve(arms)) < 2:
                raise UserError(
                    f"arms={', '.join(arms)}: accepted: arms with sd and at least one coin_mix@... for --frontier"
                )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_frontier.md"
    parts = [f"**{title}**\n\n{frontier_report.markdown(place, settings)}" for title, place in found.items()]
    parts += [f"![fidelity against speed]({name}_frontier.png)", *frontier_report.NOTES]
    parts += [f"{measured_where(runs)} {LAYER_DROP}", *notes(runs)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    drawn = figure.draw(runs, settings=settings, mix=mix, width=2 * PAGE, panel_height=5)  # room for names of many arms
    return [path, *save(drawn, folder, path.stem)]


def write_trainings(
    runs: Sequence[StoredRun], kinds: trainings.Kinds, folder: Path, name: str, mix: Collection[str] = ()
) -> list[Path]:
    """`name`_trainings.md and `name`_trainings.csv: each kind of training over the first."""
    found = places(runs, mix)
    for place in found.values():
        trainings.check_kinds(place, kinds)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}_trainings.md", folder / f"{name}_trainings.csv"]
    parts = [f"**{title}**\n\n{trainings.markdown(place, kinds)}" for title, place in found.items()]
    parts += [f"{measured_where(runs)} {trainings.NOTE}", *notes(runs)]
    paths[0].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    compared = {title: trainings.compare_kinds(place, kinds) for title, place in found.items()}
    trainings.write_csv(paths[1], compared, columns(runs))
    return paths


def parse_arms(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=ARM,ARM` -> the arms by name. Raises UserError for other texts, and for a name that comes twice."""
    for text in texts:
        name, _, arms = text.partition("=")
        if not name or not all(arms.split(",")):
            raise UserError(f"{option} {text}: accepted: NAME=ARM,ARM,... as in via_sd=via_sd,r_1,r_0.95")
    found = {name: arms.split(",") for name, _, arms in (text.partition("=") for text in texts)}
    if len(found) < len(texts):
        raise UserError(f"{option}: one of {', '.join(found)} comes twice; accepted: all arms of a name together")
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run ids, one per task (for --frontier also one per seed)")
    parser.add_argument("--name", default="table", help="name of the files to write")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "results", help="the results folder")
    parser.add_argument("--frontier", action="store_true", help="instead: the arms against the free frontier")
    parser.add_argument(
        "--settings", action="append", default=[], metavar="NAME=ARM,ARM", help="arms that are settings of one method"
    )
    parser.add_argument(
        "--trainings",
        action="append",
        default=[],
        metavar="KIND=ARM,ARM",
        help="instead: kinds of trained drafters over the first kind, one arm for each seed of training",
    )
    parser.add_argument(
        "--mix", action="append", default=[], metavar="KEY,KEY", help="keys in which the runs may differ, as device"
    )
    options = parser.parse_args()
    try:
        runs = [read(RunFolder(options.results, run_id)) for run_id in options.runs]
        folder, settings = options.results / "tables", parse_arms("--settings", options.settings)
        kinds, mix = parse_arms("--trainings", options.trainings), parse_mix(options.mix)
        if settings and not options.frontier:
            raise UserError(f"--settings {options.settings[0]}: accepted together with --frontier")
        if kinds and options.frontier:
            raise UserError(f"--trainings {options.trainings[0]}: accepted without --frontier")
        if options.frontier:
            paths = write_frontier(runs, settings, folder, options.name, mix)
            print(paths[0].read_text(encoding="utf-8"))
        elif kinds:
            paths = write_trainings(runs, kinds, folder, options.name, mix)
            print(paths[0].read_text(encoding="utf-8"))
        else:
            paths = write(runs, folder, options.name, mix)
            for line in notes(runs):
                print(line)
        for path in paths:
            print(path)
    except Exception as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
