"""What a page shows: comparisons, their places (the mean over the tasks, each task), and the figures of each place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.choosing.candidates import FEW_LOSSES
from experiments.frontier import Arms, free_curve, is_free, speedup_over_coin, verdict
from experiments.frontier_report import of_arm
from experiments.metrics import Summary
from experiments.pages import frontier_chart, shares
from experiments.pages.browser import collect
from experiments.pages.cells import Cell, Table, chosen, column, headline, members, metrics, sort_of_arm
from experiments.pages.facts import KeyFigure, facts, key_figures, provenance
from experiments.pages.runs import Reported, differing, same_but_seed, seed_of
from experiments.paper.agreement import FEW
from experiments.tables import LAYER_DROP, MEAN, places, summaries
from experiments.text_tables import ABSENT, HEADLINE

WORDS = {
    "numbers": "Intervals are 95% bootstraps over prompts, paired across arms. Several tasks: the unweighted mean of "
    f"their numbers. The tooltip of a number has all of its digits, as they are in the CSV. {LAYER_DROP}",
    "figures on top": "The arm with the highest number on these prompts, baselines and methods alone: of many arms the "
    "highest one flatters itself, so choose settings on other prompts. An arm is within a shortfall if the upper end "
    f"of its interval is; a lossy one with losses in fewer than {FEW_LOSSES} of n prompts not below 3/n; without a "
    f"shortfall: lossless by its verifier. Not sure: the interval holds 1, or fewer than {FEW} prompts of a task were "
    "timed.",
    "baseline, control": "A baseline is vanilla or sd. A control is derived from the method, to say what its judgment "
    "is worth.",
    "free frontier": "sd, coin_mix and draft_only, joined linearly in (fidelity, seconds per token): what a coin gives "
    "that knows nothing. Above, below: the interval of the speed over it lies on that side of 1.",
}
SEEDS = (
    "these runs are the same as those of comparison {twin} but for the seed ({own} instead of {other}). A headline "
    "table takes one seed; python -m experiments.tables RUN ... --frontier takes several together"
)
FRONTIER = {
    "fidelity": "fidelity",
    "shortfall": "shortfall",
    "tokens/s": "tokens_per_second",
    "over coin": "speedup_over_coin",
    "over slim coin": "speedup_over_slim_coin",
}


@dataclass(frozen=True)
class Place:
    """One task, or the mean over all of them, under an id that is unique in the page."""

    anchor: str
    title: str
    headline: Table
    frontier: frontier_chart.Chart | None
    against: Table
    bars: list[shares.Bars]
    acceptance: Table
    metrics: dict[str, list[Cell]]
    failed: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """Runs that a table may mix."""

    anchor: str
    title: str
    runs: list[Reported]
    arms: dict[str, str]  # name -> baseline, control or method
    facts: dict[str, str]
    figures: list[KeyFigure]
    places: list[Place]
    notices: list[str]
    provenance: dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows. `answers` is what the scripts read."""

    comparisons: list[Comparison]
    notices: list[str]
    answers: dict[str, Any]
    notes: dict[str, str]


def build(groups: Sequence[Sequence[Reported]], notices: Sequence[str], examples: int | None) -> Page:
    """The page of some comparisons. `examples` of each run are in its browser; None: as many as there is room for."""
    answers, told = collect(groups, examples)
    comparisons = [compare(list(runs), f"c{place}") for place, runs in enumerate(groups, 1)]
    first = groups[0][0].run
    for place, one in enumerate(comparisons[1:], 1):
        twin = next((at for at in range(place) if same_but_seed(groups[at][0], groups[place][0])), None)
        apart = ", ".join(differing(first, one.runs[0].run))
        notice = f"these runs are not compared with those of comparison 1: they differ in {apart}"
        if twin is not None:
            notice = SEEDS.format(twin=twin + 1, other=seed_of(groups[twin][0]), own=seed_of(groups[place][0]))
        comparisons[place] = replace(one, notices=[notice, *one.notices])
    return Page(comparisons, [*notices, *told], answers, notes())


def notes() -> dict[str, str]:
    """What the words of the page mean: its own, and those of the headline table as the registry has them."""
    columns = {title: column(title, metric).told for title, metric in HEADLINE.items()}
    return {**WORDS, **columns, "n": f"{columns['n']} Behind a slash: those that were judged."}


def compare(runs: list[Reported], anchor: str) -> Comparison:
    """One comparison with all of its places, the mean over the tasks first."""
    stored = [one.run for one in runs]
    told, arms = summaries(stored)
    paired = places(stored)
    order = sorted(told, key=lambda name: name != MEAN)
    made = [_place(f"{anchor}-{at}", name, told[name], arms, paired[name]) for at, name in enumerate(order)]
    return Comparison(
        anchor=anchor,
        title=f"{len(arms)} arms on {', '.join(one.run.task for one in runs)}",
        runs=runs,
        arms={arm: sort_of_arm(arm) for arm in arms},
        facts=facts(runs),
        figures=key_figures(told[order[0]], paired[order[0]], stored[0].identity["arms"]),
        places=made,
        notices=sorted({notice for run in stored for notice in run.notices}),
        provenance={f"{one.run.task}, run {one.run_id}": provenance(one) for one in runs},
    )


def _place(anchor: str, title: str, summary: Summary, arms: list[str], paired: Sequence[Arms]) -> Place:
    kept = members(summary, arms, "acceptance.", ".conditional")
    return Place(
        anchor=anchor,
        title=title,
        headline=headline(summary, arms),
        frontier=frontier_chart.draw(summary, arms, paired),
        against=_against(chosen(summary, arms, _columns(paired)), paired),
        bars=shares.figures(summary, arms),
        acceptance=chosen(summary, arms, {str(int(key) + 1): metric for key, metric in kept.items()}),
        metrics=metrics(summary, arms),
        failed={arm: int(count) for arm in arms if isinstance(count := summary[arm].get("failed", 0), int) and count},
    )


def _columns(paired: Sequence[Arms]) -> dict[str, str]:
    slim = all(free_curve(arms, "slim") for arms in paired)
    coin = all(free_curve(arms) for arms in paired)
    left_out = {"over coin": coin, "over slim coin": slim}
    return {title: metric for title, metric in FRONTIER.items() if left_out.get(title, True)}


def _against(table: Table, paired: Sequence[Arms]) -> Table:
    """The frontier's numbers with the verdict of each arm's interval beside its speed over the coin's."""
    places_of = [place for place, column in enumerate(table.columns) if column.title == "over coin"]
    if not places_of:
        return table
    rows = {}
    for arm, cells in table.rows.items():
        found = of_arm(paired, arm, speedup_over_coin)
        mark = "on it" if is_free(arm) else verdict(None if found is None else found.estimate()) or ""
        rows[arm] = [replace(cell, mark=mark) if at in places_of and (mark == "on it" or cell.text != ABSENT) else cell
                     for at, cell in enumerate(cells)]  # fmt: skip
    return Table(table.columns, rows)
