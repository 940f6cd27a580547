"""Tables as they are stored, of results/tables and published ones: numbers, what they follow from, examples, pair."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.errors import UserError
from experiments.metrics import Metric, find
from experiments.statistics import Estimate
from experiments.tables import MEAN
from experiments.text_tables import ABSENT

COUNTS = ("n_timed", "n_quality")
OF_TRAININGS = {"acceptance_length": "block_efficiency", "tokens_per_second": "tokens_per_second"}  # registry's names
Key = tuple[str, str, str]  # task, arm or row, metric or column


@dataclass(frozen=True)
class Number:
    """One cell: None where it is blank; of a metric, as it is (effect "none") or against a base ("" if not stored)."""

    estimate: Estimate | None
    metric: Metric
    effect: str
    base: str


@dataclass(frozen=True)
class Examples:
    """Timed and judged examples of a line, and the fewest that one of its tasks has."""

    timed: int
    judged: int
    fewest: Mapping[str, int]  # by Metric.examples

    def __str__(self) -> str:
        return str(self.timed) if self.timed == self.judged else f"{self.timed}/{self.judged}"


@dataclass(frozen=True)
class Stored:
    """A table of a file. `counts`: timed and judged examples by task and arm or row. `pair`: with its temperature."""

    path: Path
    numbers: Mapping[Key, Number]
    counts: Mapping[tuple[str, str], tuple[int, int]]
    pair: str

    def lacks(self, task: str, arm: str, column: str) -> str | None:
        """What keeps a number from being there: the first of task, arm, column that the table has not, or a blank."""
        left = list(self.numbers)
        for place, (kind, name) in enumerate((("task", task), ("arm", arm), ("column", column))):
            left = [key for key in left if key[place] == name]
            if not left:
                return f"no {kind} {name}"
        return f"{column} is blank" if self.numbers[left[0]].estimate is None else None

    def measured(self, task: str, arm: str, metric: str) -> Estimate | None:
        """A metric as it is, whatever its column is called."""
        for (at, row, _), number in self.numbers.items():
            if (at, row, number.metric.name, number.effect) == (task, arm, metric, "none"):
                return number.estimate
        return None

    def examples(self, task: str, arm: str) -> Examples | None:
        """Of an arm; of one that the table does not count, of the task's first arm, on the same examples."""
        arm = arm if (task, arm) in self.counts else next((row for at, row in self.counts if at == task), arm)
        if (task, arm) not in self.counts:
            return None
        tasks = [at for at, row in self.counts if row == arm and at != MEAN] if task == MEAN else [task]
        timed, judged = zip(*(self.counts[at, arm] for at in tasks or [task]), strict=True)
        return Examples(*self.counts[task, arm], {"timed": min(timed), "judged": min(judged)})


def definition(name: str) -> Metric:
    """The registry's entry behind a stored metric, of trainings too. Raises ValueError for a name nobody defined."""
    return find(OF_TRAININGS.get(name.removesuffix("_ratio"), name))


@cache
def read_stored(path: Path) -> Stored:
    """A stored table. Raises UserError for a file that is none, and for a metric that nobody defined."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines, columns = list(reader), reader.fieldnames or []
    second = next((name for name in ("row", "arm", "kind") if name in columns), "arm")
    if missing := {"task", second, "metric", "value", "low", "high"} - set(columns):
        raise UserError(f"{path}: no column {', '.join(sorted(missing))}; accepted: a table of numbers")
    third = "column" if "column" in columns else "metric"
    try:
        numbers = {(line["task"], line[second], line[third]): _number(line) for line in lines}
        if third == "column":
            counts = {(line["task"], line["row"]): (int(line["n_timed"]), int(line["n_judged"])) for line in lines}
            return Stored(path, numbers, counts, _pair_of(path) or (lines[0]["pair"] if lines else ABSENT))
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error
    return Stored(path, numbers, _counts(numbers), _pair_of(path) or ABSENT)


def _number(line: Mapping[str, str]) -> Number:
    """What follows from no examples has no noise: its interval is itself."""
    metric = definition(line["metric"])
    value, low, high = (float(line[name]) if line[name] else None for name in ("value", "low", "high"))
    if value is not None and metric.examples == "none":
        low, high = value, value
    return Number(
        None if value is None else Estimate(value, low, high), metric, line.get("effect", "none"), line.get("base", "")
    )


def _counts(numbers: Mapping[Key, Number]) -> dict[tuple[str, str], tuple[int, int]]:
    found = {}
    for task, arm in dict.fromkeys((task, arm) for task, arm, metric in numbers if metric == COUNTS[0]):
        told = [numbers.get((task, arm, name)) for name in COUNTS]
        timed, judged = (int(one.estimate.value) if one and one.estimate else 0 for one in told)
        found[task, arm] = timed, judged
    return found


def _pair_of(path: Path) -> str | None:
    """What the text beside a table says of its pair, and of the temperature, which its numbers do not tell."""
    beside = path.with_suffix(".md")
    text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    match = re.search(r"\bpair ([\w.-]+), temperature (\d[\d.]*\b)", text, re.IGNORECASE)
    return f"{match[1]}, T={match[2]}" if match else None
