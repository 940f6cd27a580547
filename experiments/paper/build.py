"""From stored runs to a table with the paper's values beside it: pure functions of rows, specs and published values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.comparability import IDENTICAL
from experiments.comparison import Arm, Number
from experiments.errors import UserError
from experiments.metrics import find
from experiments.paper.agreement import agree
from experiments.paper.spec import Column, Row, Table
from experiments.paper.values import Claimed, claimed
from experiments.statistics import Estimate, Statistic, mean
from experiments.tables import MEAN, StoredRun, compare_runs

Place = Sequence[Mapping[str, Arm]]  # the arms of one task, or those of all
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Cell:
    """Ours, the paper's, and whether they agree; each None where there is none."""

    ours: Estimate | None
    paper: Claimed | None
    agrees: str | None


@dataclass(frozen=True)
class Line:
    """One row of a table. `missing`: arms that the run has not; `failed`: examples, by arm, `always`: those on all."""

    key: str
    label: str
    cells: dict[str, Cell]
    timed: int
    judged: int
    missing: list[str]
    failed: dict[str, int]
    always: list[str]


@dataclass(frozen=True)
class Block:
    """The lines of one task, or of their mean, and the runs behind them."""

    title: str
    lines: list[Line]
    runs: list[StoredRun]


@dataclass(frozen=True)
class Built:
    """A table, ready to be written."""

    table: Table
    pair: str
    blocks: list[Block]
    mixed: dict[str, list[str]]  # keys of identity in which the runs differ, with their values


def build_table(table: Table, runs: Sequence[StoredRun], pair: str, tasks: Sequence[str] | None = None) -> Built:
    """One block for each task in the order of `tasks`, and for several their mean, first.

    Runs that are not comparable have no mean. A task without a run has a block without numbers of ours.
    Raises UserError for a metric that nobody defined and for two runs of one task.
    """
    check_columns(table)
    asked = list(tasks or table.tasks)
    by_task = {run.task: run for run in runs}
    if len(by_task) < len(runs):
        raise UserError(f"runs on {', '.join(run.task for run in runs)}: a table takes one run of each task")
    mixed = differing(runs)
    arms = {task: compare_runs([run], 2 * place) for place, (task, run) in enumerate(by_task.items())}
    blocks = [
        Block(task, _lines(table, [arms[task]] if task in arms else [], [task], pair), _of(by_task, [task]))
        for task in asked
    ]
    if len(asked) > 1 and len(by_task) == len(asked) and not mixed:
        everything = _lines(table, list(arms.values()), asked, pair)
        blocks.insert(0, Block(MEAN, everything, _of(by_task, asked)))
    return Built(table, pair, blocks, mixed)


def check_columns(table: Table) -> None:
    """Raises UserError for a metric that nobody defined and for a baseline or base that is no row."""
    for key, column in table.columns.items():
        try:
            find(column.metric)
        except ValueError as error:
            raise UserError(f"table={table.name}: columns.{key}.metric: {error}") from error
    bases = {f"rows.{key}.base": row.base for key, row in table.lines.items() if row.base is not None}
    for place, base in {"baseline": table.baseline, **bases}.items():
        if base not in table.lines:
            raise UserError(f"table={table.name}: {place}={base}: accepted: one of its rows, {', '.join(table.lines)}")


def differing(runs: Sequence[StoredRun]) -> dict[str, list[str]]:
    """The keys in which runs are not comparable, with the values that each task has."""
    return {
        key: [f"{run.task}: {run.identity.get(key)}" for run in runs]
        for key in IDENTICAL
        if any(run.identity.get(key) != runs[0].identity.get(key) for run in runs)
    }


def _of(runs: Mapping[str, StoredRun], tasks: Sequence[str]) -> list[StoredRun]:
    return [runs[task] for task in tasks if task in runs]


def _lines(table: Table, place: Place, tasks: Sequence[str], pair: str) -> list[Line]:
    return [_line(table, key, row, place, tasks, pair) for key, row in table.lines.items()]


def _line(table: Table, key: str, row: Row, place: Place, tasks: Sequence[str], pair: str) -> Line:
    names = arms_of(key, row)
    found = [[arms[name] for name in names if name in arms] for arms in place]
    rows = [arm for own in found for arm in own[:1]]
    failed = {name: sum(arms[name].failed for arms in place if name in arms) for name in names}
    return Line(
        key=key,
        label=row.label,
        cells={name: _cell(table, key, column, place, tasks, pair) for name, column in table.columns.items()},
        timed=sum(len(arm.timed.rows) for arm in rows),
        judged=sum(len(arm.detail.rows) for arm in rows),
        missing=[name for name in names if any(name not in arms for arms in place)],
        failed={name: count for name, count in failed.items() if count},
        always=[arm.name for own in found for arm in own if arm.failed and not arm.arms],
    )


def arms_of(key: str, row: Row) -> list[str]:
    """The arms behind a row: those it names, else the one that is named as the row."""
    return row.arms or [key]


def _cell(table: Table, key: str, column: Column, place: Place, tasks: Sequence[str], pair: str) -> Cell:
    if is_base(table, key, column):
        return Cell(None, None, None)
    theirs = claimed(table, key, column, tasks, pair)
    numbers = [_effect(table, key, column, arms) for arms in place]
    ours = _mean(numbers)
    if column.effect == "none" or theirs is None or ours is None:
        return Cell(ours, theirs, None)
    fewest = fewest_of(table, key, column, place)
    agrees = NOT_COMPARABLE if table.not_comparable else agree(ours, theirs, column.effect, fewest).text
    return Cell(ours, theirs, agrees)


def fewest_of(table: Table, key: str, column: Column, place: Place) -> int | None:
    """The fewest prompts of any task behind an effect, timed or judged ones; None where it follows from none."""
    kind = find(column.metric).examples
    if kind == "none":
        return None
    names = arms_of(key, table.lines[key])
    samples = [arms[name].timed if kind == "timed" else arms[name].detail for arms in place for name in names]
    return min(len(sample.rows) for sample in samples)


def is_base(table: Table, key: str, column: Column) -> bool:
    """Whether a cell has no effect since it is what others are against."""
    return column.effect != "none" and table.base_of(key) == key


def _effect(table: Table, key: str, column: Column, arms: Mapping[str, Arm]) -> Number:
    own = _over_arms(arms, arms_of(key, table.lines[key]), column.metric)
    if column.effect == "none" or own is None:
        return own
    against = table.base_of(key)
    base = _over_arms(arms, arms_of(against, table.lines[against]), column.metric)
    if isinstance(own, Statistic) and isinstance(base, Statistic):
        return own / base if column.effect == "ratio" else own - base
    if isinstance(own, int | float) and isinstance(base, int | float):
        return (own / base if base else None) if column.effect == "ratio" else own - base
    return None


def _over_arms(arms: Mapping[str, Arm], names: Sequence[str], metric: str) -> Number:
    """The mean over arms on the same examples; None where one of them has no number."""
    return _join([number_of(arms, name, metric) for name in names])


def number_of(arms: Mapping[str, Arm], name: str, metric: str) -> Number:
    """A metric of an arm by its full name; None where the arm is missing, always failed, or has no such number."""
    arm, definition = arms.get(name), find(metric)
    if arm is None or not arm.detail.rows:
        return None
    found = definition.compute(arm)
    return found.get(definition.key(metric) or "") if isinstance(found, Mapping) else found


def _join(numbers: Sequence[Number]) -> Number:
    statistics = [number for number in numbers if isinstance(number, Statistic)]
    if statistics and len(statistics) == len(numbers):
        return statistics[0] if len(statistics) == 1 else mean(statistics)
    plain = [number for number in numbers if isinstance(number, int | float)]
    return sum(plain) / len(plain) if plain and len(plain) == len(numbers) else None


def _mean(numbers: Sequence[Number]) -> Estimate | None:
    found = _join(numbers)
    if isinstance(found, Statistic):
        return found.estimate()
    # A plain number does not follow from examples: it has no noise, and its interval is itself.
    return Estimate(found, found, found) if found is not None and math.isfinite(found) else None
