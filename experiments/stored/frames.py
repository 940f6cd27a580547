"""Stored runs as frames of pandas, read from their JSON files whenever they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.entry import results_folder
from experiments.errors import UserError
from experiments.records import PER_REPEAT, Row
from experiments.stored.catalog import Entry, entries
from experiments.stored.filters import chosen

if TYPE_CHECKING:
    import pandas as pd

HEAVY = ("token_ids", "trace", "token_loss", "log_prob_gap", "memory")  # columns of rows that are as long as a text
LIGHT = tuple(field.name for field in dataclasses.fields(Row) if field.name not in HEAVY)


def load_frame(results: str | Path | None, filters: Mapping[str, str]) -> pd.DataFrame:
    """See `experiments.stored.load_frame`."""
    return _frame(select(results, filters), summary_lines)


def load_rows(results: str | Path | None, filters: Mapping[str, str]) -> pd.DataFrame:
    """See `experiments.stored.load_rows`."""
    return _frame(select(results, filters), row_lines)


def runs_frame(found: Iterable[Entry]) -> pd.DataFrame:
    """One line for each run that can be read."""
    import pandas as pd

    return pd.DataFrame.from_records([entry.columns() for entry in found if entry.problem is None])


def select(results: str | Path | None, filters: Mapping[str, str]) -> list[Entry]:
    """The runs of a results folder that fit. Those that cannot be read are among them where nothing is asked for."""
    return chosen(list(entries(results_folder(results))), filters)


def summary_lines(entry: Entry) -> Iterator[dict[str, Any]]:
    """One line for each arm of a summary."""
    run = entry.columns()
    del run["arms"]
    for arm, metrics in entry.summary().items():
        line = {**run, "arm": arm}
        for name, value in metrics.items():
            if isinstance(value, dict):
                line[name], line[f"{name}.low"], line[f"{name}.high"] = value["value"], value["low"], value["high"]
            else:
                line[name] = value
        yield line


def row_lines(entry: Entry) -> Iterator[dict[str, Any]]:
    """One line for each row that holds: its short columns, its fidelity, and which run it is of."""
    run = {"run_id": entry.run_id, "task": entry.value("task"), "pair": entry.value("pair"), "method": entry.method}
    for row in entry.folder.read_rows():
        yield {**run, **light(row)}


def light(row: Row) -> dict[str, Any]:
    """The columns of a row without the long ones: `fidelity` stands for token_loss, seconds are means over repeats."""
    own = vars(row)
    plain = {name: own[name] for name in LIGHT}
    means = {name: sum(plain[name]) / len(plain[name]) if plain[name] else None for name in PER_REPEAT}
    fidelity = 1.0 - sum(row.token_loss) / len(row.token_loss) if row.token_loss else None
    return {**plain, **means, "fidelity": fidelity}


def _frame(found: Sequence[Entry], lines_of: Callable[[Entry], Iterator[dict[str, Any]]]) -> pd.DataFrame:
    """The lines of all runs; what cannot be read is left out and told of in `frame.attrs["skipped"]`."""
    import pandas as pd

    lines, skipped = [], problems(found)
    for entry in found:
        if entry.problem is not None:
            continue
        try:
            lines += list(lines_of(entry))
        except UserError as error:
            skipped.append(str(error))
    frame = pd.DataFrame.from_records(lines)
    frame.attrs["skipped"] = skipped
    return frame


def problems(found: Iterable[Entry]) -> list[str]:
    """Why runs cannot be read, a sentence for each."""
    return [entry.problem for entry in found if entry.problem is not None]
