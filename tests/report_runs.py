"""Stored runs for the tests of the report: a real one, one with hostile texts and a failed row, another device's."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_stored_run import JOB, STORED

from experiments.config import CHECKOUT
from experiments.records import Row
from experiments.store import RunFolder
from experiments.tables import read, write_csv

REAL, HOSTILE, OTHER = "a1real", "a2hostile", "b1other"
ATTACK = "</script><img src=x onerror=\"document.title='owned'\">\x1b[31m\u202eback\u200f"
SHOWN = "</script><img src=x onerror=\"document.title='owned'\">\u241b[31m\u27e8U+202E\u27e9back\u27e8U+200F\u27e9"
Change = Callable[[dict[str, Any]], None]


def write_runs(results: Path) -> None:
    """Three runs: two of them one comparison, the third one, at temperature 0, of another device."""
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [*JOB, "task.test_size=6"]), resolve=True)

    def real(run: dict[str, Any]) -> None:
        run["config"] = config
        run["provenance"] = [{"commit": "c0ffee", "load": [0.5, 0.25, 0.125], "versions": {"numpy": "9.9"}}]
        run["memory"] = {"vanilla": 4e6, "sd": 6e6}

    def hostile(run: dict[str, Any]) -> None:
        real(run)
        run["identity"]["task"]["name"] = "hostile"
        run["notices"] = [f"notice {ATTACK}"]
        run["config"] = {key: config[key] for key in ("method", "arms")}  # type: ignore[index,call-overload]

    def other(run: dict[str, Any]) -> None:
        real(run)
        run["identity"].update(device="another", sampling={**run["identity"]["sampling"], "temperature": 0.0})

    store(results, REAL, real, lambda row: None)
    store(results, HOSTILE, hostile, attack)
    store(results, OTHER, other, make_greedy)


def store(results: Path, run_id: str, run: Change, row: Change) -> None:
    """The stored run under another id, with its run.json and each of its rows changed."""
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    content = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    run(content)
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(STORED / "rows.jsonl", folder)
    rows = [json.loads(line) for line in (STORED / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for one in rows:
        row(one)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def attack(row: dict[str, Any]) -> None:
    """A model that writes HTML, escape sequences and marks that reorder text; and an arm that fails with such words."""
    row["text"] = f"{ATTACK} {row['arm']}"
    if (row["arm"], row["index"]) == ("sd_heuristic", 2):
        failed = Row(row["example_id"], row["arm"], row["index"], error=f"ValueError: {ATTACK}")
        row.update(dataclasses.asdict(failed))


def make_greedy(row: dict[str, Any]) -> None:
    """As at temperature 0: a token is the target's argmax or not."""
    lossy = row["arm"] not in ("vanilla", "sd")
    row["token_loss"] = [float(lossy and place % 10 == 9) for place in range(row["new_tokens"])]


def csv_numbers(results: Path, *run_ids: str) -> dict[tuple[str, str, str], list[str]]:
    """What the CSV of these runs holds: value and, where there are any, the ends of the interval."""
    path = results / "numbers.csv"
    write_csv(path, [read(RunFolder(results, run_id)) for run_id in run_ids])
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["task"], row["arm"], row["metric"]): [row[end] for end in ("value", "low", "high") if row[end]]
            for row in csv.DictReader(file)
        }


class Tables(HTMLParser):
    """Tables of a page by their captions: rows of cells, a cell as its text and its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, dict[str, str | None]]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[tuple[str, dict[str, str | None]]]] = []
        self._caption = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._caption = tag == "caption"
        if tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append(("", dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._caption:
            self._rows = self.tables.setdefault(data.strip(), [])
            self._caption = False
        elif self._rows and self._rows[-1]:
            text, attributes = self._rows[-1][-1]
            self._rows[-1][-1] = (f"{text} {data.strip()}".strip(), attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = []
