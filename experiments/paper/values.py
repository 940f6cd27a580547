"""The papers' own numbers: read from experiments/paper/values, and gathered for a row, a metric and some tasks."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from experiments.errors import UserError, near
from experiments.paper.spec import Column, PaperRow, Table

FOLDER = Path(__file__).resolve().parent / "values"
MAPPINGS = ("tasks", "pairs")
TEXTS = ("table", "pair", "task", "method", "setting", "temperature", "metric")
Cell = tuple[str, str, str]  # pair, task, temperature


@dataclass(frozen=True)
class Value:
    """One printed number."""

    table: str
    pair: str
    task: str
    method: str
    setting: str
    temperature: str
    metric: str
    value: float


@dataclass(frozen=True)
class Claimed:
    """What a paper has over some of its cells, each a pair on a data set: their median and range."""

    median: float
    low: float
    high: float
    cells: int


@cache
def read_values(name: str) -> tuple[Value, ...]:
    """A file of published values. Raises UserError for one that is not there."""
    path = FOLDER / f"{name}.csv"
    known = {file.stem for file in FOLDER.glob("*.csv")} - set(MAPPINGS)
    if name not in known:
        raise UserError(f"values={name}: not found{near(name, known)}")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return tuple(
        Value(*(line[key] for key in TEXTS), float(line["value"]))  # type: ignore[call-arg, arg-type]
        for line in lines
    )


@cache
def theirs(mapping: str, ours: str) -> tuple[str, ...]:
    """The paper's names of a task or pair of ours; empty where it has none."""
    with (FOLDER / f"{mapping}.csv").open(newline="", encoding="utf-8") as file:
        return tuple(line["paper"] for line in csv.DictReader(file) if line["ours"] == ours)


def cells(table: Table, row: PaperRow, metric: str, tasks: Sequence[str], pair: str) -> dict[Cell, float]:
    """The paper's values of a row on what stands for these tasks of ours.

    Of all its pairs, unless ours is one of them. Values that name no task count for every task.
    """
    named = {name for task in tasks for name in theirs("tasks", task)} | {"", "mean"}
    values = [value for name in table.values for value in read_values(name)]
    pairs = {value.pair for value in values}
    pairs = pairs & set(theirs("pairs", pair)) or pairs
    return {
        (value.pair, value.task, value.temperature): value.value
        for value in values
        if value.method == row.method
        and row.setting in (None, value.setting)
        and value.metric == metric
        and value.task in named
        and value.pair in pairs
        and (table.temperature is None or value.temperature in ("", table.temperature))
    }


def claimed(table: Table, key: str, column: Column, tasks: Sequence[str], pair: str) -> Claimed | None:
    """The paper's value or effect in a row and column; None where it has none. An effect is taken cell by cell."""
    row = table.lines[key]
    if row.paper is None or column.paper is None:
        return None
    own = cells(table, row.paper, column.paper, tasks, pair)
    if column.paper_effect == "percent":
        own = {cell: 1 + value / 100 for cell, value in own.items()}
    elif column.effect != "none" and column.paper_effect == "computed":
        reference = table.lines[table.base_of(key)].paper
        base = {} if reference is None else cells(table, reference, column.paper, tasks, pair)
        own = {cell: _effect(column, own[cell], base[cell]) for cell in own.keys() & base.keys()}
    return summary(list(own.values()))


def _effect(column: Column, own: float, base: float) -> float:
    return own / base if column.effect == "ratio" else own - base


def summary(numbers: Sequence[float]) -> Claimed | None:
    """Median and range; None of nothing."""
    if not numbers:
        return None
    return Claimed(median(numbers), min(numbers), max(numbers), len(numbers))
