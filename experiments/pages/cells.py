"""Numbers of a summary as cells of a page: the text that tables show, the interval, and every digit of the CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.arms import CONTROLS
from experiments.metrics import find, in_order
from experiments.text_tables import ABSENT, COMPOSED, HEADLINE, Numbers, cell, headline_columns

BASELINES = ("vanilla", "sd")
WHOLE = 1 - 1e-6  # a share of tokens; above temperature 0 rounding is below this


@dataclass(frozen=True)
class Cell:
    """`text` and `interval` as tables show them; `full`: the same with the digits of the CSV; `value` to sort by."""

    text: str
    interval: str = ""
    full: str = ""
    value: float | None = None
    mark: str = ""  # what else is said of the number, in a few words


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the metric behind it, and what that is."""

    title: str
    metric: str
    told: str


@dataclass(frozen=True)
class Table:
    """Rows by the name of an arm."""

    columns: list[Column]
    rows: dict[str, list[Cell]]


def number(numbers: Numbers, metric: str) -> Cell:
    """A metric of an arm."""
    if metric not in numbers:
        return Cell(ABSENT)
    text, entry = cell(numbers, metric, interval=False), numbers[metric]
    interval = cell(numbers, metric)[len(text) :].strip()
    if not isinstance(entry, Mapping):
        return Cell(text, interval, f"{entry:.6g}", float(entry))
    full = f"{entry['value']:.6g} [{entry['low']:.6g}, {entry['high']:.6g}]"
    return Cell(text, interval, full, float(entry["value"]))


def column(title: str, metric: str) -> Column:
    """A column with what the registry says of its metric."""
    found = find(metric)
    return Column(title, metric, f"{found.description} Unit: {found.unit}.")


def headline(summary: Mapping[str, Numbers], arms: Sequence[str]) -> Table:
    """The headline table: the columns and texts of the command line's, with the intervals of all numbers."""
    titles = headline_columns(summary, arms)
    rows = {arm: [_headline(title, summary.get(arm, {})) for title in titles] for arm in arms}
    return Table([column(title, HEADLINE[title]) for title in titles], rows)


def _headline(title: str, numbers: Numbers) -> Cell:
    found = number(numbers, HEADLINE[title])
    if title in COMPOSED:
        return Cell(COMPOSED[title](numbers), "", found.full, found.value)
    if title == "fidelity" and found.value is not None:
        mark = "as the target" if found.value >= WHOLE else ""
        return Cell(found.text, found.interval, found.full, found.value, mark)
    return found


def metrics(summary: Mapping[str, Numbers], arms: Sequence[str]) -> dict[str, list[Cell]]:
    """Every metric in the registry's order, one cell for each arm."""
    names = in_order(name for arm in arms for name in summary.get(arm, {}))
    return {name: [number(summary.get(arm, {}), name) for arm in arms] for name in names}


def chosen(summary: Mapping[str, Numbers], arms: Sequence[str], columns: Mapping[str, str]) -> Table:
    """A table of some metrics, by title; arms that have none of them are left out."""
    rows = {arm: [number(summary.get(arm, {}), metric) for metric in columns.values()] for arm in arms}
    told = {arm: cells for arm, cells in rows.items() if any(one.value is not None for one in cells)}
    return Table([column(title, metric) for title, metric in columns.items()], told)


def members(summary: Mapping[str, Numbers], arms: Sequence[str], prefix: str, suffix: str = "") -> dict[str, str]:
    """The metrics of a family, by their keys: of `time_share.draft` that is `draft`."""
    names = in_order(name for arm in arms for name in summary.get(arm, {}))
    told = (name for name in names if name.startswith(prefix) and name.endswith(suffix))
    return {name.removeprefix(prefix).removesuffix(suffix): name for name in told}


def sort_of_arm(name: str) -> str:
    """`baseline`, `control` (derived from the method to say what its judgment is worth), or `method`."""
    if name in BASELINES:
        return "baseline"
    return "control" if name.partition("@")[0] in CONTROLS else "method"


def best(summary: Mapping[str, Numbers], arms: Sequence[str], metric: str, fits: Callable[[str], bool]) -> str | None:
    """The arm with the highest value of a metric among those that fit; controls and vanilla are not asked."""
    asked = [arm for arm in arms if arm != "vanilla" and sort_of_arm(arm) != "control"]
    own = {arm: number(summary.get(arm, {}), metric).value for arm in asked if fits(arm)}
    known = {arm: value for arm, value in own.items() if value is not None}
    return max(known, key=lambda arm: known[arm]) if known else None
