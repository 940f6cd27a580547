"""What searching a mask costs, once (VIA-SD, Table 4): seconds from the mask's own record, and when they are paid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.comparison import Arm, seconds_per_token
from experiments.paper.cells import estimate_text, plain, shared_print
from experiments.paper.spec import SearchCost
from experiments.paper.values import read_values
from experiments.paper.write import cells_csv, render, write_texts
from experiments.statistics import Array, Estimate, lift
from experiments.tables import StoredRun, compare_runs
from experiments.text_tables import ABSENT, Cells
from viasd.models import Pair, locate

HEADER = ["", "skipped", "trials", "seconds", "hours", "tokens until paid", "predicted", "speed / baseline", "n"]
NEVER = "never"
NOTE = (
    "Seconds: those that the mask's file records for its search, preparation included (of ours one process on a CPU, "
    "of the paper's one A100 by its own arithmetic). Tokens until paid: seconds over the seconds per token that the "
    "arm saves against {baseline}; never: it saves none. Predicted: by the search's own cost model. Costs of other "
    "models and machines: no agreement is told."
)


@dataclass(frozen=True)
class Paid:
    """After how many tokens a search has paid (None: never, at the value itself), and the speed that decides it."""

    tokens: float | None
    speed: Estimate | None
    examples: int


def read_searches(pair: Pair) -> dict[float, dict[str, Any]]:
    """The records of a pair's searched masks, by skip ratio."""
    records = [json.loads(locate(name).read_text(encoding="utf-8")) for name in pair.masks]
    return {record["skip_ratio"]: record for record in records if "seconds" in record}


def write_search_cost(cost: SearchCost, runs: Sequence[StoredRun], pair: Pair, folder: Path, name: str) -> list[Path]:
    """`NAME`.md, `NAME`.tex and `NAME`.csv. Raises UserError where that is not allowed."""
    cells = search_cells(cost, runs, read_searches(pair))
    texts = render(cost, {"search": cells}, search_print(cost, runs, name))
    return write_texts(folder, cost.name, {**texts, "csv": cells_csv(cells)})


def search_cells(cost: SearchCost, runs: Sequence[StoredRun], searches: Mapping[float, Mapping[str, Any]]) -> Cells:
    """Ours, a line for each searched mask and task, then the paper's pairs."""
    lines = [HEADER]
    places = {run.task: compare_runs([run], 2 * place) for place, run in enumerate(runs)}
    for ratio, record in sorted(searches.items()):
        for task, arms in places.items() or [("", {})]:
            lines.append(_ours(cost, ratio, record, task, arms))
    for pair, seconds in _theirs(cost).items():
        lines.append([pair, "0.45", ABSENT, plain(seconds, 0), plain(seconds / 3600, 2), *[ABSENT] * 4])
    return lines


def search_print(cost: SearchCost, runs: Sequence[StoredRun], pair: str) -> list[str]:
    """The small print of the table."""
    return [f"{cost.paper}. {NOTE.format(baseline=cost.baseline)}", *shared_print(cost, runs, pair)]


def _ours(cost: SearchCost, ratio: float, record: Mapping[str, Any], task: str, arms: Mapping[str, Arm]) -> list[str]:
    kept, seconds = len(record["kept"]), float(record["seconds"])
    arm, base = (arms.get(name) for name in (cost.arms.get(ratio, ""), cost.baseline))
    paid = when_paid(seconds, arm, base) if arm and base else Paid(None, None, 0)
    predicted = (record.get("break_even_tokens") or {}).get("sd")
    tokens = ABSENT if paid.speed is None else NEVER if paid.tokens is None else plain(paid.tokens, 0)
    if paid.speed is not None and (paid.speed.low is None or paid.speed.low <= 1 <= (paid.speed.high or 1)):
        tokens += " (undecided)"  # whether anything is saved
    return [
        f"ours, {kept} of {record['layers']} layers kept" + (f", {task}" if task else ""),
        f"{ratio:g}",
        str(record["trials"]),
        plain(seconds, 0),
        plain(seconds / 3600, 2),
        tokens,
        NEVER if predicted is None else plain(predicted, 0),
        estimate_text(paid.speed, 2),
        str(paid.examples),
    ]


def when_paid(seconds: float, arm: Arm, base: Arm) -> Paid:
    """After how many tokens what an arm saves per token has paid for `seconds`."""
    if not arm.timed.rows or not base.timed.rows:
        return Paid(None, None, 0)
    own, other = seconds_per_token(arm), seconds_per_token(base)
    saved = other.value - own.value

    def quotient(own: Array, other: Array) -> Array:
        return other / own

    return Paid(seconds / saved if saved > 0 else None, lift(quotient, own, other).estimate(), len(arm.timed.rows))


def _theirs(cost: SearchCost) -> dict[str, float]:
    """Seconds by pair of the paper."""
    values = [value for name in cost.values for value in read_values(name) if value.metric == "wall_clock_min"]
    return {value.pair: 60 * value.value for value in values}
