"""A built table as text: the header, the lines and the small print that Markdown and LaTeX share."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.identity import digest
from experiments.metrics import find
from experiments.paper.agreement import FEW, NOTE, is_few
from experiments.paper.build import Block, Built, Cell, Line, is_base
from experiments.paper.spec import Column, Published, Table
from experiments.paper.values import Claimed
from experiments.statistics import Estimate
from experiments.tables import LAYER_DROP, StoredRun
from experiments.text_tables import ABSENT, Cells

FEW_PROMPTS = (
    f"Fewer than {FEW} timed or judged prompts: such intervals are too short and decide nothing. A first look; "
    "size=full is for a claim."
)
NO_LOSS = (
    "*: every token of the judged prompts is the target's. Of a lossless arm that is no news; of a lossy one the rule "
    "of three still allows other tokens in a share of prompts: up to 3 over their number."
)
INTERVALS = (
    "95% intervals, bootstrap over prompts, paired across arms; in parentheses the range of the paper's cells. "
    "n: timed/judged examples."
)
CREDITS = {
    "VIA-SD": "The paper's values: Xian, He, Xu, Yang (2606.12243), CC-BY 4.0, copied unchanged.",
    "AdaSD": "The paper's values: Lu, Hong, Liu (2512.11280), mostly from public summaries of it.",
    "VSD": "The paper's values: Zou, Li, Huang, Zhou (2602.05774), from public summaries of it.",
}


def block_cells(built: Built, block: Block) -> Cells:
    """A block as a table, header first: beside each metric of ours the paper's, and whether they agree."""
    table = built.table
    header = ["", "arm"]
    for column in table.columns.values():
        header.append(title_of(built, column))
        header += [f"{title_of(built, column)}, paper"] if column.paper else []
        header += ["agrees"] if _is_judged(column) else []
    return [[*header, "n"], *(_line(built, line) for line in block.lines)]


def title_of(built: Built, column: Column) -> str:
    """The head of a column."""
    name = column.metric.replace("_", " ")
    base = built.table.baseline if all(row.base is None for row in built.table.lines.values()) else "baseline"
    return column.title or {"none": name, "ratio": f"{name} / {base}", "difference": f"{name} - {base}"}[column.effect]


def _line(built: Built, line: Line) -> list[str]:
    table = built.table
    row = table.lines[line.key]
    told = [line.label, ", ".join(row.arms or [line.key])]
    for key, column in table.columns.items():
        cell, digits = line.cells[key], digits_of(column)
        ours = "baseline" if is_base(table, line.key, column) else estimate_text(cell.ours, digits)
        told.append(f"{ours}*" if _is_spotless(column, cell) else ours)
        told += [claimed_text(cell.paper, digits)] if column.paper else []
        told += [agrees_text(cell)] if _is_judged(column) else []
    return [*told, examples_text(line)]


def _is_spotless(column: Column, cell: Cell) -> bool:
    """A fidelity of 1 from prompts none of which differs: its interval says nothing of others."""
    ours = cell.ours
    return column.metric == "fidelity" and ours is not None and ours.value == 1 and ours.low in (1, None)


def _is_judged(column: Column) -> bool:
    return bool(column.paper) and column.effect != "none"


def digits_of(column: Column) -> int:
    """Decimals of a column: as asked for, else of ratios two, else those of its metric."""
    if column.digits is not None:
        return column.digits
    return 2 if column.effect == "ratio" else find(column.metric).digits


def estimate_text(estimate: Estimate | None, digits: int) -> str:
    """`1.72 [1.65, 1.79]`, the value alone where it has no interval, a dash where there is nothing."""
    if estimate is None:
        return ABSENT
    value = plain(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return value
    low, high = plain(estimate.low, digits), plain(estimate.high, digits)
    return value if low == value == high else f"{value} [{low}, {high}]"


def claimed_text(paper: Claimed | None, digits: int) -> str:
    """`1.35 (1.21 to 1.76)`, the value alone where the paper has one."""
    if paper is None:
        return ABSENT
    value, low, high = (plain(number, max(digits, 2)) for number in (paper.median, paper.low, paper.high))
    return value if low == high else f"{value} ({low} to {high})"


def plain(number: float, digits: int) -> str:
    """A number with that many decimals, and no minus before a zero."""
    text = f"{number:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def agrees_text(cell: Cell) -> str:
    """Whether a cell agrees with the paper's."""
    return cell.agrees or ABSENT


def examples_text(line: Line) -> str:
    """Timed and judged examples, what failed, or that the arm is missing."""
    if line.missing and not line.judged:
        return "no such arm"
    told = str(line.timed) if line.timed == line.judged else f"{line.timed}/{line.judged}"
    failed = sum(line.failed.values())
    return f"{told}, {failed} failed" if failed else told


def small_print(built: Built) -> list[str]:
    """What a reader of the table has to know, a sentence or two each."""
    table = built.table
    runs = list({id(run): run for block in built.blocks for run in block.runs}.values())
    told = [f"{table.paper}. {INTERVALS}"]
    if table.not_comparable:
        told.append(f"{table.not_comparable[0].upper()}{table.not_comparable[1:]}: no agreement is told.")
    elif any(_is_judged(column) for column in table.columns.values()):
        told.append(NOTE)
    told += [*bases_print(table), *decoding_print(table, runs)]
    told += [f"{key} differs ({'; '.join(values)}): no mean over the tasks." for key, values in built.mixed.items()]
    told += [*trouble(built), *few_print(built), *spotless_print(built)]
    return [*told, *shared_print(table, runs, built.pair)]


def bases_print(table: Table) -> list[str]:
    """Which rows are against which, where there is more than one base."""
    others: dict[str, list[str]] = {}
    for key, row in table.lines.items():
        if row.base is not None and table.base_of(key) != key:
            others.setdefault(row.base, []).append(row.label)
    told = [f"of {_listed(labels)}: {_listed([table.lines[base].label])}" for base, labels in others.items()]
    rest = _listed([table.lines[table.baseline].label])
    return [f"Baseline {'; '.join(told)}; of the other rows: {rest}."] if told else []


def decoding_print(table: Table, runs: Sequence[StoredRun]) -> list[str]:
    """How ours decodes, unless the table shows the paper's values at this very temperature alone."""
    ours = sorted({run.temperature for run in runs})
    if not table.values or [f"{one:g}" for one in ours] in ([], [table.temperature]):
        return []
    told = " and ".join(f"at temperature {one:g}" if one else "greedily" for one in ours)
    return [f"Ours decodes {told}; the paper's values are at the temperature named above, where it names one."]


def _listed(labels: Sequence[str]) -> str:
    return " and ".join(f'"{label}"' for label in labels)


def shared_print(published: Published, runs: Sequence[StoredRun], pair: str) -> list[str]:
    """Where and when it was measured, caveats, credits and citations: the same below tables and figures."""
    told = [measured_where(run) for run in runs]
    if not runs:
        told.append("Nothing measured" + (f": {published.needs} comes first." if published.needs else "."))
    told += [LAYER_DROP + " It is no pair of the papers."] * pair.startswith("reference")
    told += [f"{note.rstrip('.')}." for note in published.notes]
    told += [f"Note: {notice.rstrip('.')}." for notice in sorted({one for run in runs for one in run.notices})]
    told += [credit for paper, credit in CREDITS.items() if published.paper.startswith(f"{paper} ")]
    return [*told, f"Cite: {', '.join(published.cite)} (CITATIONS.bib)."]


def few_print(built: Built) -> list[str]:
    """That intervals of few prompts are too short."""
    lines = [line for block in built.blocks for line in block.lines if line.judged]
    return [FEW_PROMPTS] * any(is_few(min(line.timed, line.judged)) for line in lines)


def spotless_print(built: Built) -> list[str]:
    """What the mark of a fidelity of 1 means, where there is one."""
    columns = built.table.columns.items()
    lines = [line for block in built.blocks for line in block.lines]
    return [NO_LOSS] * any(_is_spotless(column, line.cells[key]) for line in lines for key, column in columns)


def trouble(built: Built) -> list[str]:
    """Arms that a run lacks, examples that failed, and arms that did on all of them, which leave no other arm."""
    told = []
    for block in built.blocks:
        missing = dict.fromkeys(name for line in block.lines for name in line.missing)
        always = dict.fromkeys(name for line in block.lines for name in line.always)
        failed = {name: n for line in block.lines for name, n in line.failed.items() if name not in always}
        if missing and block.runs:
            told.append(f"{block.title}: arms that were not run: {', '.join(missing)}.")
        if failed:
            counts = ", ".join(f"{name} {count}" for name, count in failed.items())
            told.append(f"{block.title}: failed examples, which leave every arm: {counts}.")
        if always:
            told.append(
                f"{block.title}: arms that failed on all examples, beside which the others stay: {', '.join(always)}."
            )
    return told


def measured_where(run: StoredRun) -> str:
    """One run: task, pair, machine, date, id."""
    who = run.identity
    return (
        f"{run.task}: pair {who['pair']['name']}, temperature {run.temperature:g}, {who['device']}, {who['dtype']}, "
        f"{who['threads']} thread(s), code {who['code_hash']}, measured {measured_when(run)}, run {run_id(run)}."
    )


def measured_when(run: StoredRun) -> str:
    """The first and last day of its rows; a dash for rows that do not say."""
    days = sorted({day for row in run.rows if (day := (row.measured_at or "")[:10])})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ABSENT


def run_id(run: StoredRun) -> str:
    """A run is named by the hash of its identity."""
    return digest(run.identity)
