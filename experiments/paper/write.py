"""The files of a published table: tidy CSV with every number, Markdown, and LaTeX with booktabs. Pure functions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.metrics import find
from experiments.paper.build import Block, Built, Line
from experiments.paper.cells import block_cells, measured_when, run_id, small_print
from experiments.paper.spec import Published
from experiments.store import create_folder
from experiments.text_tables import Cells, markdown_table

COLUMNS = (
    "task", "row", "arms", "column", "metric", "unit", "effect", "base", "value", "low", "high", "n_timed", "n_judged",
    "failed", "paper", "paper_low", "paper_high", "paper_cells", "agrees", "pair", "device", "measured", "run",
)  # fmt: skip
ESCAPES = str.maketrans(
    {**{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
     "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)  # fmt: skip


def write_table(built: Built, folder: Path) -> list[Path]:
    """`NAME`.md, `NAME`.csv and `NAME`.tex. Raises UserError where that is not allowed."""
    tables = {block.title: block_cells(built, block) for block in built.blocks}
    texts = render(built.table, tables, small_print(built))
    return write_texts(folder, built.table.name, {**texts, "csv": csv_text(built)})


def render(published: Published, tables: dict[str, Cells], notes: Sequence[str]) -> dict[str, str]:
    """Markdown and LaTeX of tables by their titles, with the small print below."""
    return {"md": markdown(published, tables, notes), "tex": latex(published, tables, notes)}


def write_texts(folder: Path, name: str, texts: dict[str, str]) -> list[Path]:
    """One file for each ending. Raises UserError where that is not allowed."""
    create_folder(folder, folder.parent)
    paths = []
    for ending, text in texts.items():
        paths.append(folder / f"{name}.{ending}")
        try:
            paths[-1].write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(f"{paths[-1]}: cannot write it ({error.strerror}); accepted: a writable folder") from error
    return paths


def markdown(published: Published, tables: dict[str, Cells], notes: Sequence[str]) -> str:
    """Tables under their titles, small print below."""
    parts = [f"# {published.title}"]
    parts += [f"**{title}**\n\n{markdown_table(cells)}" for title, cells in tables.items()]
    return "\n\n".join([*parts, *notes]) + "\n"


def latex(published: Published, tables: dict[str, Cells], notes: Sequence[str]) -> str:
    """A table environment; it needs the packages booktabs and graphicx."""
    bodies = [
        "\n".join(
            [
                rf"\emph{{{escape(title)}}}\par\smallskip",
                r"\resizebox{\linewidth}{!}{%",
                rf"\begin{{tabular}}{{ll{'r' * (len(cells[0]) - 2)}}}",
                r"\toprule",
                _latex_row(cells[0]),
                r"\midrule",
                *(_latex_row(row) for row in cells[1:]),
                r"\bottomrule",
                r"\end{tabular}}",
            ]
        )
        for title, cells in tables.items()
    ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(published.title)}}}",
            rf"\label{{tab:{published.name.replace('_', '-')}}}",
            "\n\\par\\bigskip\n".join(bodies),
            r"\par\smallskip\raggedright\footnotesize",
            *(escape(note) + r"\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(text: str) -> str:
    """Text as LaTeX prints it; Markdown's marks of code are left out."""
    return text.replace("`", "").translate(ESCAPES)


def csv_text(built: Built) -> str:
    """Every number of ours and of the paper, one line for each cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for block in built.blocks:
        for line in block.lines:
            writer.writerows(_csv_rows(built, block, line))
    return file.getvalue()


def cells_csv(cells: Cells) -> str:
    """Cells as they are shown."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(cells)
    return file.getvalue()


def _csv_rows(built: Built, block: Block, line: Line) -> list[list[str]]:
    pairs = _joined(run.identity["pair"]["name"] for run in block.runs) or built.pair
    where = [pairs, _joined(run.identity["device"] for run in block.runs), _joined(map(measured_when, block.runs))]
    counts = [str(line.timed), str(line.judged), str(sum(line.failed.values()))]
    runs, rows = " | ".join(map(run_id, block.runs)), []
    for key, column in built.table.columns.items():
        cell = line.cells[key]
        ours = ["", "", ""] if cell.ours is None else [_number(cell.ours.value), *_ends(cell.ours.low, cell.ours.high)]
        claim = cell.paper
        theirs = ["", "", "", ""]
        if claim is not None:
            theirs = [*map(_number, (claim.median, claim.low, claim.high)), str(claim.cells)]
        arms = "+".join(built.table.lines[line.key].arms or [line.key])
        what = [block.title, line.key, arms, key, column.metric, find(column.metric).unit, column.effect]
        what.append(built.table.base_of(line.key) if column.effect != "none" else "")
        rows.append([*what, *ours, *counts, *theirs, cell.agrees or "", *where, runs])
    return rows


def _joined(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(texts))


def _ends(low: float | None, high: float | None) -> list[str]:
    return ["" if end is None else _number(end) for end in (low, high)]


def _number(value: float) -> str:
    return f"{value:.6g}"
