"""A summary as text: the headline table and the table of all metrics. Pure functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from experiments.metrics import Metric, find, in_order

Numbers = Mapping[str, Any]  # full metric names -> a number, or {"value", "low", "high"}
Cells = list[list[str]]  # rows of a table, header first

ABSENT = "-"
GAP = "  "
FALLBACK = 120  # columns where there is no terminal
NARROWEST = 60  # columns; below that nothing could be read anyway
SCALES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
# Titles of the headline table's columns and their metrics; of several numbers in one column, the one it is sorted by.
HEADLINE: Mapping[str, str] = {
    "tokens/s": "tokens_per_second",
    "speedup": "speedup",
    "over sd": "speedup_over.sd",
    "over coin": "speedup_over_coin",
    "fidelity": "fidelity",
    "quality": "quality",
    "rejection": "rejection_rate",
    "tiers d/s/t": "tier_fraction.target",
    "target calls": "calls_per_token.target",
    "n": "n_timed",
}


def headline_table(
    summary: Mapping[str, Numbers], arms: Sequence[str], *, notes: Sequence[str] = (), width: int | None = None
) -> str:
    """Arms as rows and what matters most as columns, in several blocks where `width` is too narrow for one.

    `width` in columns; None: that of the terminal. `notes` become footers, beside those on failed examples.
    """
    return "\n".join([text_table(headline_cells(summary, arms), width=width), *_footers(summary, arms, notes)])


def headline_markdown(summary: Mapping[str, Numbers], arms: Sequence[str], *, notes: Sequence[str] = ()) -> str:
    """The headline table as Markdown."""
    table = markdown_table(headline_cells(summary, arms))
    return "\n".join([table, *(f"\n{footer}" for footer in _footers(summary, arms, notes))])


def full_table(
    summary: Mapping[str, Numbers],
    *,
    arms: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Metrics as rows in the registry's order, arms as columns, in several blocks where `width` is too narrow."""
    columns = list(summary) if arms is None else list(arms)
    names = in_order(name for arm in columns for name in summary.get(arm, {}))
    cells = [["metric", "unit", *columns]]
    cells += [[name, find(name).unit, *(cell(summary.get(arm, {}), name) for arm in columns)] for name in names]
    return "\n".join([text_table(cells, lead=2, width=width), *_footers(summary, columns, notes)])


def text_table(cells: Cells, *, lead: int = 1, width: int | None = None) -> str:
    """Aligned text of any cells, header first, in several blocks where `width` is too narrow for one."""
    return "\n\n".join(_blocks(cells, lead=lead, width=width))


def markdown_table(cells: Cells) -> str:
    """Any cells, header first, as Markdown."""
    header, *rows = [[cell.replace("|", r"\|") for cell in row] for row in cells]
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(numbers: Numbers, name: str, interval: bool = True) -> str:
    """A metric of an arm as text: `1.72 [1.65, 1.79]`, without the interval where there is none, a dash if absent."""
    if name not in numbers:
        return ABSENT
    metric, entry = find(name), numbers[name]
    if not isinstance(entry, Mapping):
        return _number(metric, entry, like=entry)
    value, low, high = (_number(metric, entry[end], like=entry["value"]) for end in ("value", "low", "high"))
    return value if not interval or low == value == high else f"{value} [{low}, {high}]"


def _number(metric: Metric, number: float, like: float) -> str:
    """The number with the unit and the decimals that the value `like` has, so that an interval reads evenly."""
    if metric.unit == "bytes":
        unit, scale = next(((unit, scale) for unit, scale in SCALES if like >= scale), ("B", 1.0))
        return f"{number / scale:.1f} {unit}"
    digits = metric.digits
    if digits == 0 and not isinstance(like, int):  # slow arms keep two digits
        digits = 2 if abs(like) < 1 else 1 if abs(like) < 10 else 0
    text = f"{number:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def headline_cells(summary: Mapping[str, Numbers], arms: Sequence[str]) -> Cells:
    """The headline table as cells, header first."""
    columns = headline_columns(summary, arms)
    rows = [[arm, *(_headline(title, summary.get(arm, {})) for title in columns)] for arm in arms]
    return [["arm", *columns], *rows]


def headline_columns(summary: Mapping[str, Numbers], arms: Sequence[str]) -> list[str]:
    """Titles of the headline table's columns but the arm's; that of the coin only where there is one."""
    tossed = any("speedup_over_coin" in summary.get(arm, {}) for arm in arms)
    return [title for title in HEADLINE if tossed or title != "over coin"]


def _headline(title: str, numbers: Numbers) -> str:
    if title in COMPOSED:
        return COMPOSED[title](numbers)
    return cell(numbers, HEADLINE[title], interval=title == "speedup")


def _tiers(numbers: Numbers) -> str:
    """Shares of draft, slim and target tier, in two digits."""
    names = [f"tier_fraction.{tier}" for tier in ("draft", "slim", "target")]
    if not any(name in numbers for name in names):
        return ABSENT
    entries = [numbers.get(name, 0.0) for name in names]
    values = [entry["value"] if isinstance(entry, Mapping) else entry for entry in entries]
    return "/".join(f"{value:.2f}" for value in values)


def _examples(numbers: Numbers) -> str:
    """Timed examples, and after a slash those with a quality score if they are others."""
    timed, judged = numbers.get("n_timed", 0), numbers.get("n_quality", 0)
    return f"{timed}/{judged}" if judged not in (0, timed) else str(timed)


COMPOSED: Mapping[str, Callable[[Numbers], str]] = {"tiers d/s/t": _tiers, "n": _examples}


def _footers(summary: Mapping[str, Numbers], arms: Sequence[str], notes: Sequence[str]) -> list[str]:
    failed = {arm: summary.get(arm, {}).get("failed", 0) for arm in arms}
    told = ", ".join(f"{arm} {count}" for arm, count in failed.items() if count)
    return [*([f"failed examples (left out of every arm): {told}"] if told else []), *notes]


def _blocks(cells: Cells, lead: int, width: int | None) -> list[str]:
    """Aligned text: the first column left, numbers right. `lead` columns are repeated at the left of every block."""
    limit = max(NARROWEST, shutil.get_terminal_size((FALLBACK, 24)).columns if width is None else width)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    starts, used = [lead], 0
    room = limit - sum(size + len(GAP) for size in widths[:lead])
    for place in range(lead, len(widths)):
        needed = widths[place] + len(GAP)
        if place > starts[-1] and used + needed > room + len(GAP):
            starts, used = [*starts, place], 0
        used += needed
    pieces = pairwise([*starts, len(widths)])
    return [_align(cells, widths, [*range(lead), *range(first, last)], lead) for first, last in pieces]


def _align(cells: Cells, widths: Sequence[int], places: Sequence[int], lead: int) -> str:
    lines = []
    for row in cells:
        padded = [row[i].ljust(widths[i]) if i < lead else row[i].rjust(widths[i]) for i in places]
        lines.append(GAP.join(padded).rstrip())
    rule = GAP.join("-" * widths[i] for i in places)
    return "\n".join([lines[0], rule, *lines[1:]])
