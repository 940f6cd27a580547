"""A published figure: the function that its yaml names, called with the runs, and saved with the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.paper.build import Built, build_table
from experiments.paper.cells import block_cells, few_print, shared_print, spotless_print, trouble
from experiments.paper.rendering import RENDERER
from experiments.paper.spec import Column, Drawing, Row, Table
from experiments.paper.write import csv_text, write_texts
from experiments.tables import StoredRun
from experiments.text_tables import markdown_table

COLUMNS = {
    "speed": Column(metric="speedup"),
    "over_sd": Column(metric="speedup_over.sd", title="over sd"),
    "coin": Column(metric="speedup_over_coin", title="over coin"),
    "fidelity": Column(metric="fidelity"),
    "quality": Column(metric="quality"),
    "rejection": Column(metric="rejection_rate", title="rejection"),
    "target": Column(metric="calls_per_token.target", title="target calls"),
}


def find_function(drawing: Drawing) -> Callable[..., Any]:
    """The function that draws. Raises UserError where there is none of that name."""
    module, _, name = drawing.draw.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"table={drawing.name}: draw={drawing.draw}: not found ({error})") from error
    return found


def write_figure(drawing: Drawing, runs: Sequence[StoredRun], folder: Path, pair: str) -> list[Path]:
    """`NAME`.svg, .pdf, .png, and `NAME`.md that shows it with the numbers of all arms, controls included; `NAME`.csv.

    Without a run there is the small print alone. Raises UserError for options that the function does not take.
    """
    notes = [f"{drawing.paper}.", *shared_print(drawing, runs, pair)]
    if not runs:
        return write_texts(folder, drawing.name, {"md": _markdown(drawing, [], notes)})
    try:
        figure = find_function(drawing)(list(runs), **drawing.options)
    except TypeError as error:
        raise UserError(f"table={drawing.name}: options of {drawing.draw}: {error}") from error
    paths = RENDERER.save(figure, folder, drawing.name)
    built = numbers(drawing, runs, pair)
    shown = [f"![{drawing.title}]({path.name})" for path in paths if path.suffix == ".png"]
    block = built.blocks[0]
    shown.append(f"**{block.title}**\n\n{markdown_table([row[1:] for row in block_cells(built, block)])}")
    told = [*trouble(built), *few_print(built), *spotless_print(built), *notes]
    texts = {"md": _markdown(drawing, shown, told), "csv": csv_text(built)}
    return [*paths, *write_texts(folder, drawing.name, texts)]


def numbers(drawing: Drawing, runs: Sequence[StoredRun], pair: str) -> Built:
    """What every arm of the runs measures: a figure of speed alone would hide what it costs."""
    table = Table(
        name=drawing.name,
        title=drawing.title,
        paper=drawing.paper,
        experiment=drawing.experiment,
        tasks=[run.task for run in runs],
        cite=drawing.cite,
        baseline=runs[0].arms[0],
        columns=COLUMNS,
        rows={name: Row(label=name) for name in runs[0].arms},
    )
    return build_table(table, runs, pair)


def _markdown(drawing: Drawing, shown: Sequence[str], notes: Sequence[str]) -> str:
    return "\n\n".join([f"# {drawing.title}", *shown, *notes]) + "\n"
