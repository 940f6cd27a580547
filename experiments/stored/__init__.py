"""Many stored runs at once: their states, frames for notebooks, SQL over the files, checks and cleaning.

from experiments.stored import load_frame, load_rows, query
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load_frame(results: str | Path | None = None, **filters: str) -> pd.DataFrame:
    """One line for each run and arm: what the run is, and every metric of its summary with its interval.

    `filters` are those of `python -m experiments.runs`, as in `load_frame(task="qa", state="done")`; `results` is the
    results folder, None: $VIASD_RESULTS, else results/ of this checkout. A metric with an interval has the columns
    NAME, NAME.low and NAME.high. Raises UserError for a filter nobody knows.
    """
    from experiments.stored import frames

    return frames.load_frame(results, filters)


def load_rows(results: str | Path | None = None, **filters: str) -> pd.DataFrame:
    """One line for each stored row that holds, with `run_id` and the run's task, pair and method; see `load_frame`."""
    from experiments.stored import frames

    return frames.load_rows(results, filters)


def query(sql: str, results: str | Path | None = None) -> pd.DataFrame:
    """The answer to one SELECT over the views `runs`, `rows` and `summary` of a results folder; needs duckdb.

    Raises UserError for SQL that is wrong or does more than read. Lines that could not be read are told of in
    `frame.attrs["skipped"]`, a list of sentences.
    """
    from experiments.stored import sql as engine

    return engine.query(sql, results)
