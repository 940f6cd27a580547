"""What searching a mask costs, once (VIA-SD, Table 4): seconds from the mask's own record, and when they are paid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.comparison import Arm, seconds_per_token
from experiments.metrics import find
from experiments.paper.build import number_of
from experiments.paper.cells import estimate_text, plain, shared_print
from experiments.paper.spec import SearchCost
from experiments.paper.values import read_values
from experiments.paper.write import cells_csv, render, write_texts
from experiments.statistics import Estimate, Statistic
from experiments.tables import StoredRun, compare_runs
from experiments.text_tables import ABSENT, Cells
from viasd.models import Pair, locate

HEADER = (
    "", "skipped", "trials", "seconds", "hours", "speed over base", "tokens until paid", "predicted",
    "fidelity", "fidelity of base", "speed over {baseline}", "tokens until paid over {baseline}",
    "control over {baseline}", "fidelity of control", "n",
)  # fmt: skip
NEVER, UNDECIDED = "never", "undecided"
NOTE = (
    "Base: the same method with evenly spaced layers, as many as the searched ones; control: the searched mask's slim "
    "verifier without a gate. Seconds: those that the mask's file records for its search, preparation included (of "
    "ours one process on a CPU, of the paper's one A100 by its own arithmetic). Tokens until paid: seconds over the "
    "seconds per token that the arm saves, against its base (what the search brings) and against {baseline} (what the "
    "whole method brings); never: our whole 95% interval is slower; undecided: it includes 1. What a search brings may "
    "be fidelity instead. Predicted: against the base, by the search's own cost model. n: timed/judged examples. Costs "
    "of other models and machines: no agreement is told."
)


@dataclass(frozen=True)
class Paid:
    """After how many tokens a search has paid (None: never, or undecided), and the speed that decides it."""

    tokens: Estimate | None
    speed: Estimate | None

    @property
    def text(self) -> str:
        """As a cell of a table: a dash where there is nothing to decide from."""
        if self.speed is None:
            return ABSENT
        if self.tokens is not None:
            return estimate_text(self.tokens, 0)
        return NEVER if self.speed.high is not None and self.speed.high < 1 else UNDECIDED


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
    lines = [[title.format(baseline=cost.baseline) for title in HEADER]]
    places = {run.task: compare_runs([run], 2 * place) for place, run in enumerate(runs)}
    for ratio, record in sorted(searches.items()):
        for task, arms in places.items() or [("", {})]:
            lines.append(_ours(cost, ratio, record, task, arms))
    for pair, seconds in _theirs(cost).items():
        lines.append([pair, "0.45", ABSENT, plain(seconds, 0), plain(seconds / 3600, 2), *[ABSENT] * (len(HEADER) - 5)])
    return lines


def search_print(cost: SearchCost, runs: Sequence[StoredRun], pair: str) -> list[str]:
    """The small print of the table."""
    return [f"{cost.paper}. {NOTE.format(baseline=cost.baseline)}", *shared_print(cost, runs, pair)]


def _ours(cost: SearchCost, ratio: float, record: Mapping[str, Any], task: str, arms: Mapping[str, Arm]) -> list[str]:
    kept, seconds = len(record["kept"]), float(record["seconds"])
    named = cost.arms.get(ratio)
    arm, base, control = (
        [measured(arms, name) for name in (named.arm, named.base, named.control)] if named else [None] * 3
    )
    baseline = measured(arms, cost.baseline)
    over_base, over_all = when_paid(seconds, arm, base), when_paid(seconds, arm, baseline)
    return [
        f"ours, {kept} of {record['layers']} layers kept" + (f", {task}" if task else ""),
        f"{ratio:g}",
        str(record["trials"]),
        plain(seconds, 0),
        plain(seconds / 3600, 2),
        estimate_text(over_base.speed, 2),
        over_base.text,
        predicted_text(record),
        fidelity_text(arm),
        fidelity_text(base),
        estimate_text(over_all.speed, 2),
        over_all.text,
        estimate_text(when_paid(seconds, control, baseline).speed, 2),
        fidelity_text(control),
        ABSENT if arm is None else f"{len(arm.timed.rows)}/{len(arm.detail.rows)}",
    ]


def measured(arms: Mapping[str, Arm], name: str) -> Arm | None:
    """An arm that has timed rows; None where it was not run, or always failed."""
    arm = arms.get(name)
    return arm if arm is not None and arm.timed.rows else None


def when_paid(seconds: float, arm: Arm | None, base: Arm | None) -> Paid:
    """After how many tokens what an arm saves per token has paid for `seconds`, where an interval says it saves any."""
    if arm is None or base is None:
        return Paid(None, None)
    own, other = seconds_per_token(arm), seconds_per_token(base)
    speed, saved = (other / own).estimate(), (other - own).estimate()
    if speed is None or saved is None or speed.low is None or speed.low <= 1 or not saved.low or saved.high is None:
        return Paid(None, speed)
    return Paid(Estimate(seconds / saved.value, seconds / saved.high, seconds / saved.low), speed)


def predicted_text(record: Mapping[str, Any]) -> str:
    """What the search itself foretold against evenly spaced layers; a dash for a record that does not say."""
    told = record.get("break_even_tokens") or {}
    if "even" not in told:
        return ABSENT
    return NEVER if told["even"] is None else plain(told["even"], 0)


def fidelity_text(arm: Arm | None) -> str:
    """An arm's fidelity with its interval."""
    found = None if arm is None else number_of({"": arm}, "", "fidelity")
    return estimate_text(found.estimate() if isinstance(found, Statistic) else None, find("fidelity").digits)


def _theirs(cost: SearchCost) -> dict[str, float]:
    """Seconds by pair of the paper."""
    values = [value for name in cost.values for value in read_values(name) if value.metric == "wall_clock_min"]
    return {value.pair: 60 * value.value for value in values}
