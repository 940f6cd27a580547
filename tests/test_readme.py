"""What the README shows is what is stored: its result tables are lines of the tables that it names."""

from __future__ import annotations

import csv
import json
import re

from experiments.config import CHECKOUT
from experiments.metrics import find
from experiments.text_tables import headline_table

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
TABLES = CHECKOUT / "results" / "tables"


def results() -> tuple[list[str], str]:
    """The lines of the result tables, and the name of the stored table."""
    (section,) = re.findall(r"^## First results\n(.*?)^## ", README, re.S | re.M)
    name = re.search(r"results/tables/([\w.]+)\.md", section)
    assert name
    return [line for line in section.splitlines() if line.startswith("|")], name[1]


def test_result_tables_are_stored_lines() -> None:
    lines, name = results()
    stored = (TABLES / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 5 and not [line for line in lines if line not in stored]


def test_stored_lines_are_the_csv_to_the_last_digit() -> None:
    lines, name = results()
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        cells = {(row["task"], row["arm"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    task = next(task for task, *_ in cells if "mean" in task)
    header = [name.strip() for name in lines[0].strip("|").split("|")]
    checked = 0
    for line in lines[2:]:
        shown = dict(zip(header, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        for title, metric in (("fidelity", "fidelity"), ("quality", "quality"), ("tokens/s", "tokens_per_second")):
            value = float(cells[task, shown["arm"], metric])
            half = 0.5 * 10.0 ** -find(metric).digits  # a half may be rounded either way: the csv is rounded, too
            assert abs(float(shown[title]) - value) <= half * 1.0001, (shown["arm"], title)
            checked += 1
    assert checked >= 15


def test_the_output_of_make_run_is_the_table_of_a_stored_summary() -> None:
    """What the README shows of the first command is what its summary.json says, printed again."""
    stored = json.loads((TABLES / "make_run.json").read_text(encoding="utf-8"))
    (shown,) = re.findall(r"^```text\n(.*?)^```", README, re.S | re.M)
    assert headline_table(stored["arms"], list(stored["arms"]), width=120).strip() in shown
    assert f"run {stored['run_id']}" in shown
