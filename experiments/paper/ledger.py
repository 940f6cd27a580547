"""The claims ledger: headline claims of the papers, what was measured, a verdict, and where its rows are.

A verdict (experiments.paper.claim) is about the pair that was measured, not about the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.paper.agreement import FEW
from experiments.paper.cells import estimate_text
from experiments.paper.claim import VERDICTS, Claim, Evidence, Found, decide
from experiments.paper.contradictions import CONTRADICTIONS
from experiments.paper.stored import Stored, read_stored
from experiments.statistics import Estimate
from experiments.tables import MEAN
from experiments.text_tables import ABSENT, Cells, markdown_table

HEADER = ["arm", "against", "ours", "verdict", "fidelity", "over coin", "quality - vanilla", "n", "on", "table"]
COMPANIONS = (("fidelity", 4), ("speedup_over_coin", 2), ("quality_delta", 3))  # metric, decimals
UNPAIRED = ", unpaired"
FEW_TASKS = 4  # fewer are named
CONTROL, MEETS = "control", "control (meets the bound)"
INTRO = (
    "# Claims",
    "Headline claims of VIA-SD (2606.12243), AdaSD (2512.11280) and VSD (2602.05774) beside what was measured here. "
    "Made by `make claims`.",
    "A claim is a bound that a number of ours has to meet; of a range it is the weaker end. Verdicts:",
    "- **supported**: the whole 95% interval of ours meets the bound.\n"
    "- **contradicted**: none of it does. *(same sign)*: the effect is there, but surely smaller than claimed.\n"
    "- **undecided**: the interval holds the bound; or there is *no interval*, or one from *few prompts* (on one of "
    f"its tasks fewer than {FEW}), which is too short, or of *no spread*: all prompts say the same, which others may "
    "not.\n"
    "- **not measured**: the number is not stored; the cell says what is missing.",
    "A verdict is about the pair named, not about the paper's models: the target of `reference` is small and was "
    "trained with layer drop, and what a paper leaves open was chosen here. AdaSD is reconstructed, and VSD-style "
    "training is not VSD: their formulas are not public (docs/baselines.md, docs/training.md).",
    "- Effects are bootstrapped on the same prompts. *Unpaired* ones, of arms whose own intervals alone are stored, "
    "have the widest interval that those allow.\n"
    "- Beside each number stands what it costs. Fidelity: share of tokens that the target would write. Over coin: "
    "speed over that of a coin between sd and unread drafts at this fidelity; below 1, the coin is better. Quality: "
    "the task's score.\n"
    "- A *control* judges little or nothing and has no verdict: the gate of `accept_all` refuses nothing, `draft_only` "
    "commits drafts unread, `coin_mix@0.95` one round of 20; `slim_only` never asks the target. Where a control meets "
    "a bound, meeting it is no merit alone.\n"
    "- n: timed/judged prompts of all tasks. Arms and settings: the experiment of the table's name in conf/experiment.",
)


def look_up(evidence: Evidence, results: Path, pair: str, neutral: float) -> Found:
    """The number behind a claim, or what is missing: a file, task, arm or column, a blank, the effect against its base.

    Raises UserError for a file that is no table of numbers.
    """
    stored = open_table(evidence, results, pair)
    if stored is None:
        return Found(None, missing=f"no table {evidence.table or evidence.published}")
    key = evidence.task, evidence.arm, evidence.metric
    base = evidence.task, evidence.base, evidence.metric
    if missing := stored.lacks(*key) or (not evidence.is_paired and stored.lacks(*base)):
        return Found(None, missing=missing)
    own, other = stored.numbers[key], stored.numbers.get(base)
    number, theirs = own.estimate, other.estimate if other else None
    if evidence.is_paired:
        # Where no base is stored: it has no effect against itself, so its cell is blank or exact.
        exact = theirs is None or {theirs.value, theirs.low, theirs.high} - {None} == {neutral}
        if own.base != evidence.base if own.base else other is None or not exact:
            return Found(None, missing=f"{evidence.metric} is not against {evidence.base}")
    elif number is not None and theirs is not None:
        number = widest(number, theirs, is_ratio=evidence.over is not None)
        if number is None:
            return Found(None, missing=f"{evidence.metric} of {evidence.base} is 0")
    counted = stored if evidence.rows is None else open_table(evidence, results, pair, evidence.rows)
    examples = counted.examples(evidence.task, evidence.arm) if counted else None
    return Found(number, own.metric.examples, examples)


def open_table(evidence: Evidence, results: Path, pair: str, name: str | None = None) -> Stored | None:
    """The table of an evidence, or another one beside it; None where it is not stored."""
    folder = results / "tables" if evidence.table else results / "published" / pair
    path = folder / f"{name or evidence.table or evidence.published}.csv"
    return read_stored(path) if path.is_file() else None


def widest(own: Estimate, base: Estimate, is_ratio: bool) -> Estimate | None:
    """A difference, or ratio of two numbers not below 0, with the widest interval that theirs allow; None over 0."""
    if is_ratio and base.value == 0:
        return None
    value = own.value / base.value if is_ratio else own.value - base.value
    if own.low is None or own.high is None or base.low is None or base.high is None:
        return Estimate(value)
    if is_ratio:
        return Estimate(value, own.low / base.high, own.high / base.low) if base.low > 0 else Estimate(value)
    return Estimate(value, own.low - base.high, own.high - base.low)


def ledger(claims: Sequence[Claim], results: Path, pair: str) -> str:
    """The whole ledger as Markdown, with links relative to the results folder. A pure function of the stored tables."""
    found = [[look_up(one, results, pair, claim.neutral) for one in claim.measured] for claim in claims]
    told = list(zip(claims, found, strict=True))
    parts = [*INTRO, overview(told)]
    for paper in dict.fromkeys(claim.paper for claim in claims):
        parts.append(f"## {paper}")
        parts += [_section(claim, numbers, results, pair) for claim, numbers in told if claim.paper == paper]
    return "\n\n".join([*parts, contradictions()]) + "\n"


def overview(told: Sequence[tuple[Claim, list[Found]]]) -> str:
    """Verdicts of each claim, counted."""
    cells = [["claim", "paper", *VERDICTS]]
    for claim, found in told:
        verdicts = [decide(claim, one)[0] for one in found]
        cells.append([claim.claim, claim.paper, *(str(verdicts.count(one) or ABSENT) for one in VERDICTS)])
    return f"## Overview\n\nLines of each claim by verdict, controls left out.\n\n{markdown_table(cells)}"


def _section(claim: Claim, found: Sequence[Found], results: Path, pair: str) -> str:
    cells = [HEADER]
    for evidence, one in zip(claim.measured, found, strict=True):
        verdict, why = decide(claim, one)
        told = f"**{verdict}** ({why})" if why else f"**{verdict}**"
        cells.append(_row(evidence, one, told, results, pair))
    for evidence in claim.controls:
        one = look_up(evidence, results, pair, claim.neutral)
        told = MEETS if decide(claim, one)[0] == "supported" else CONTROL
        cells.append(_row(evidence, one, told, results, pair))
    head = f"### {claim.claim[0].upper()}{claim.claim[1:]}\n\n{claim.source}. Bound: {claim.quantity}, {claim.bound}."
    return f"{head}\n\n{markdown_table(_without_blank(cells))}"


def _row(evidence: Evidence, found: Found, verdict: str, results: Path, pair: str) -> list[str]:
    stored, name = open_table(evidence, results, pair), evidence.table or evidence.published
    ours = f"{ABSENT} ({found.missing})" if found.missing else estimate_text(found.number, 3)
    told = [evidence.arm, evidence.base + ("" if evidence.is_paired else UNPAIRED), ours, verdict]
    told += [companion(evidence, metric, digits, results, pair) for metric, digits in COMPANIONS]
    examples = ABSENT if found.examples is None else str(found.examples)
    if stored is None:
        return [*told, examples, ABSENT, f"{name}"]
    link = f"[{name}]({stored.path.relative_to(results).as_posix()})"
    return [*told, examples, f"{stored.pair}, {measured_on(evidence.task, stored)}", link]


def measured_on(task: str, stored: Stored) -> str:
    """The task, or whose mean it is."""
    tasks = list(dict.fromkeys(one for one, *_ in stored.numbers if one != MEAN))
    if task != MEAN or not tasks:
        return task
    return f"mean of {', '.join(tasks) if len(tasks) < FEW_TASKS else f'{len(tasks)} tasks'}"


def companion(evidence: Evidence, metric: str, digits: int, results: Path, pair: str) -> str:
    """What the arm of an evidence has of another metric, from the same table; of several trainings, the lowest."""
    stored = open_table(evidence, results, pair, evidence.rows if evidence.arms else None)
    if stored is None:
        return ABSENT
    arms = evidence.arms or [evidence.arm]
    found = [one for arm in arms if (one := stored.measured(evidence.task, arm, metric)) is not None]
    if found:
        return estimate_text(min(found, key=lambda one: one.value), digits)
    if metric == "quality_delta":
        own, base = (stored.measured(evidence.task, arm, "quality") for arm in (arms[0], "vanilla"))
        if own is not None and base is not None:
            return estimate_text(widest(own, base, is_ratio=False), digits) + UNPAIRED
    return ABSENT


def _without_blank(cells: Cells) -> Cells:
    """Without the columns of companions that no line has."""
    optional = range(4, 4 + len(COMPANIONS))
    kept = [i for i in range(len(HEADER)) if i not in optional or any(row[i] != ABSENT for row in cells[1:])]
    return [[row[i] for i in kept] for row in cells]


def contradictions() -> str:
    """What the papers' numbers say against each other, each with the test that shows it."""
    cells = [["", "paper", "says", "its own numbers", "test"]]
    cells += [[one.key, one.paper, one.says, one.find(), f"`{one.test}`"] for one in CONTRADICTIONS]
    text = (
        "Computed from the published values and formulas alone (`experiments/paper/contradictions.py`). Values of "
        "AdaSD and VSD are mostly from public summaries of them."
    )
    return f"## Contradictions in the papers\n\n{text}\n\n{markdown_table(cells)}"
