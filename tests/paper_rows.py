"""Rows for tests of published tables: made by hand, a few per arm, with numbers that follow from the arm's place."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose

from experiments.config import CHECKOUT, make
from experiments.paper.agreement import FEW
from experiments.paper.build import arms_of, build_table
from experiments.paper.cells import block_cells, small_print
from experiments.paper.search_cost import search_cells, search_print
from experiments.paper.spec import Drawing, Published, SearchCost, Table
from experiments.paper.write import csv_text, render
from experiments.records import Row
from experiments.tables import StoredRun

TABLES = sorted(path.stem for path in (CHECKOUT / "conf" / "table").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"


@cache
def read_table(name: str) -> Any:
    """The spec of a yaml in conf/table. Hydra has to be initialized."""
    return make(compose("publish", [f"table={name}"]).table, "table")


def arms_shown(published: Published) -> list[str]:
    """The arms that a table or figure names, vanilla and sd first."""
    if isinstance(published, Table):
        named = [name for key, row in published.lines.items() for name in arms_of(key, row)]
    elif isinstance(published, SearchCost):
        own = published.arms.values()
        named = [published.baseline, *(name for one in own for name in (one.arm, one.base, one.control))]
    else:
        assert isinstance(published, Drawing)
        named = list(arms_in(published.options))
    return list(dict.fromkeys(["vanilla", "sd", *named]))


def arms_in(options: Mapping[str, Any]) -> Sequence[str]:
    """The arms that the options of a figure name."""
    found: list[str] = []
    for key, value in options.items():
        if key == "lines":
            found += [arm for points in value.values() for arm in points]
        elif key == "cells":
            found += [arm for row in value.values() for arm in row.values()]
        elif key == "arms":
            found += value.values()
        elif key == "relative_to":
            found += [value] if isinstance(value, str) else [*value, *value.values()]
        elif key in ("reference", "controls"):
            found += value
    return found


def make_row(arm: str, place: int, index: int) -> Row:
    """A row of the arm at this place: the later, the faster, the less faithful."""
    tokens, judged = 40 + 5 * index, 0 if arm == "vanilla" else 30 + index
    rejected = min(judged, (3 + place + index) % 7)
    losses = [float(step < place and (step + index) % 3 == 0) for step in range(tokens)]
    quality = float((place + index) % 4 > 0)
    return Row(
        example_id=f"example{index}",
        arm=arm,
        index=index,
        token_ids=[0] * tokens,
        new_tokens=tokens,
        quality=quality,
        scores={"rouge2": quality / 2, "chrf": quality / 3},
        decode_seconds=[tokens * 0.01 / (1 + 0.15 * place + 0.02 * index)],
        prefill_seconds=[0.05],
        rounds=tokens if judged == 0 else 10 + index,
        drafted=judged,
        judged=judged,
        rejected=rejected,
        tiers={"target": judged} if judged else {},
        calls={"target": 10 + index},
        token_loss=losses,
        log_prob_gap=[0.0] * tokens,
    )


def make_run(task: str, arms: Sequence[str], examples: int = 3, **identity: Any) -> StoredRun:
    """A run as it is read from its folder; `identity` changes who it is."""
    who = {
        "pair": {"name": "reference", "models": {}},
        "arms": {name: {} for name in arms},
        "task": {"name": task},
        "sampling": {"temperature": 0.0},
        "device": "a processor",
        "dtype": "float32",
        "threads": 1,
        "mode": "fused",
        "versions": {"torch": "2"},
        "code_hash": "c0de",
        "seed": 0,
        **identity,
    }
    return StoredRun(
        task=task,
        arms=list(arms),
        temperature=0.0,
        identity=who,
        rows=[make_row(arm, place, index) for place, arm in enumerate(arms) for index in range(examples)],
        static={arm: {"memory_ratio": 1 + 0.01 * place} for place, arm in enumerate(arms)},
        notices=[],
    )


SEARCHES = {
    0.6: {"kept": [0, 1, 2, 3, 4, 5], "layers": 16, "trials": 40, "seconds": 32.4, "break_even_tokens": {"even": None}},
    0.45: {"kept": list(range(9)), "layers": 16, "trials": 9, "seconds": 1284.4, "break_even_tokens": {"sd": None}},
}


def make_runs(published: Published, **identity: str) -> list[StoredRun]:
    return [make_run(task, arms_shown(published), **identity) for task in published.tasks]


def texts_of(published: Published, runs: Sequence[StoredRun]) -> dict[str, str]:
    if isinstance(published, SearchCost):
        cells = search_cells(published, runs, SEARCHES)
        return render(published, {"search": cells}, search_print(published, runs, "reference"))
    assert isinstance(published, Table)
    built = build_table(published, runs, "reference")
    blocks = {block.title: block_cells(built, block) for block in built.blocks}
    return {**render(published, blocks, small_print(built)), "csv": csv_text(built)}


@cache
def texts_named(name: str) -> dict[str, str]:
    """The texts of a table of conf/table over made rows."""
    published = read_table(name)
    runs = [make_run(task, arms_shown(published), examples=FEW) for task in published.tasks]
    return texts_of(published, runs)


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
