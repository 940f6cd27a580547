"""The claims ledger: headline claims of the papers, what was measured, a verdict, and where its rows are.

A claim is supported where the whole 95% interval of ours meets its bound, contradicted where none of it does, else
undecided. That is about the pair that was measured, not about the paper's.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import Field, TypeAdapter, model_validator

from experiments.errors import UserError, near
from experiments.paper.cells import estimate_text
from experiments.paper.contradictions import CONTRADICTIONS
from experiments.statistics import Estimate
from experiments.tables import MEAN
from experiments.text_tables import ABSENT, markdown_table
from viasd.spec import spec

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
COUNTS = ("n_timed", "n_quality")
HEADER = ["claim", "source", "measured", "on", "n", "verdict", "rows"]
Verdict = Literal["supported", "contradicted", "undecided", "not measured"]
Numbers = dict[tuple[str, str, str], Estimate]  # task, arm or row, metric or column
INTRO = (
    "# Claims",
    "Headline claims of VIA-SD (2606.12243), AdaSD (2512.11280) and VSD (2602.05774) beside what was measured here. "
    "Made by `make claims`.",
    "A claim is **supported** where the whole 95% interval of ours meets its bound, **contradicted** where none of "
    "it does, else **undecided**. A verdict is about the pair named: where that is `reference`, its target is small "
    "and was trained with layer drop, and nothing is said of the paper's models. The difference or ratio of two "
    "arms whose own intervals alone are stored has the widest interval that those allow. AdaSD is reconstructed, "
    "and VSD-style training is not VSD: their formulas are not public (docs/baselines.md, docs/training.md).",
)


@spec
class Evidence:
    """Where a number is: a table of results/tables or a published one, the arm (row), metric (column) and task.

    `minus`, `over`: the arm it is taken from, or divided by. `rows`: the table that counts examples, if it is another.
    """

    table: str | None = None
    published: str | None = None
    task: str = MEAN
    arm: str
    metric: str
    minus: str | None = None
    over: str | None = None
    rows: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Evidence:
        if (self.table is None) == (self.published is None):
            raise ValueError(f"table={self.table}, published={self.published}: accepted: one of them")
        if self.minus is not None and self.over is not None:
            raise ValueError(f"minus={self.minus}, over={self.over}: accepted: at most one of them")
        return self


@spec
class Claim:
    """What a paper says of a quantity, as the bound that it has to meet."""

    paper: str
    source: str
    claim: str
    quantity: str
    at_least: float | None = None
    at_most: float | None = None
    measured: Annotated[list[Evidence], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"claim {self.claim!r}: accepted: at_least or at_most")
        return self

    @property
    def bound(self) -> str:
        """As text: `at least 1.1`."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


@dataclass(frozen=True)
class Found:
    """A number, on how many examples of which pair, and the file it stands in; no number where there is no file."""

    number: Estimate | None
    examples: str
    pair: str
    path: Path | None


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a yaml. Raises ValidationError for one that is not well formed."""
    return TypeAdapter(list[Claim]).validate_python(OmegaConf.to_container(OmegaConf.load(path)))


def decide(claim: Claim, number: Estimate | None) -> Verdict:
    """Where an interval lies with respect to the claim's bound."""
    if number is None:
        return "not measured"
    if number.low is None or number.high is None:
        return "undecided"
    least = claim.at_least if claim.at_least is not None else -math.inf
    most = claim.at_most if claim.at_most is not None else math.inf
    if least <= number.low and number.high <= most:
        return "supported"
    return "contradicted" if number.high < least or number.low > most else "undecided"


def look_up(evidence: Evidence, results: Path, pair: str) -> Found:
    """The number behind a claim. Raises UserError for an arm, metric or task that the table has not."""
    folder = results / "tables" if evidence.table else results / "published" / pair
    path = folder / f"{evidence.table or evidence.published}.csv"
    if not path.is_file():
        return Found(None, ABSENT, ABSENT, None)
    numbers, counts, named = read_numbers(path)
    own = _entry(numbers, evidence, evidence.arm, path)
    if own is not None and (other := evidence.minus or evidence.over):
        base = _entry(numbers, evidence, other, path)
        own = None if base is None else widest(own, base, is_ratio=evidence.over is not None)
    if evidence.rows is not None:
        _, counts, named = read_numbers(folder / f"{evidence.rows}.csv")
    examples = counts.get((evidence.task, evidence.arm)) or next(
        (count for (task, _), count in counts.items() if task == evidence.task), ABSENT
    )
    return Found(own, examples, named, path)


def _entry(numbers: Numbers, evidence: Evidence, arm: str, path: Path) -> Estimate | None:
    key = (evidence.task, arm, evidence.metric)
    if key not in numbers:
        known = {" ".join(one) for one in numbers if one[0] == evidence.task and one[2] == evidence.metric}
        raise UserError(f"{path}: no {' '.join(key)}{near(' '.join(key), known)}")
    return numbers[key]


def widest(own: Estimate, base: Estimate, is_ratio: bool) -> Estimate:
    """A difference or ratio of two numbers with the widest interval that theirs allow."""
    if own.low is None or own.high is None or base.low is None or base.high is None:
        return Estimate(own.value / base.value if is_ratio else own.value - base.value)
    if is_ratio:
        return Estimate(own.value / base.value, own.low / base.high, own.high / base.low)
    return Estimate(own.value - base.value, own.low - base.high, own.high - base.low)


@cache
def read_numbers(path: Path) -> tuple[Numbers, dict[tuple[str, str], str], str]:
    """The numbers of a stored table, its examples by task and arm, and its pair."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    names = ("task", "row", "column") if "column" in lines[0] else ("task", _second(lines[0]), "metric")
    numbers: Numbers = {}
    for line in lines:
        if line["value"]:
            task, arm, metric = (line[name] for name in names)
            numbers[task, arm, metric] = _estimate(line)
    if "column" in lines[0]:
        counts = {(line["task"], line["row"]): f"{line['n_timed']}/{line['n_judged']}" for line in lines}
        return numbers, counts, lines[0]["pair"]
    return numbers, _counts(numbers), _pair_of(path)


def _second(line: dict[str, str]) -> str:
    return "arm" if "arm" in line else "kind"


def _estimate(line: dict[str, str]) -> Estimate:
    """A plain number, which follows from no examples, is its own interval."""
    value = float(line["value"])
    low, high = (float(line[end]) if line[end] else value for end in ("low", "high"))
    return Estimate(value, low, high)


def _counts(numbers: Numbers) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for task, arm in dict.fromkeys((task, arm) for task, arm, metric in numbers if metric == COUNTS[0]):
        told = [numbers[task, arm, name].value for name in COUNTS if (task, arm, name) in numbers]
        found[task, arm] = "/".join(f"{count:.0f}" for count in told)
    return found


def _pair_of(path: Path) -> str:
    beside = path.with_suffix(".md")
    match = re.search(r"\bPair ([\w.-]+),", beside.read_text(encoding="utf-8")) if beside.is_file() else None
    return match[1] if match else ABSENT


def ledger(claims: Sequence[Claim], results: Path, pair: str) -> str:
    """The whole ledger as Markdown, with links relative to the results folder. A pure function of the stored tables."""
    parts = [*INTRO]
    for paper in dict.fromkeys(claim.paper for claim in claims):
        cells = [HEADER]
        for claim in claims:
            cells += _claim_rows(claim, results, pair) if claim.paper == paper else []
        parts.append(f"## {paper}\n\n{markdown_table(cells)}")
    return "\n\n".join([*parts, contradictions()]) + "\n"


def _claim_rows(claim: Claim, results: Path, pair: str) -> list[list[str]]:
    rows = []
    for evidence in claim.measured:
        found = look_up(evidence, results, pair)
        where = ABSENT if found.path is None else found.path.relative_to(results).as_posix()
        link = f"[{found.path.stem}]({where})" if found.path else f"{evidence.table or evidence.published}: none yet"
        digits = 3 if evidence.minus or abs(found.number.value if found.number else 1) < 0.1 else 2
        told = f"{_what(evidence)}: {estimate_text(found.number, digits)}"
        on = ABSENT if found.path is None else f"{found.pair}, {evidence.task}"
        rows.append(["", "", told, on, found.examples, decide(claim, found.number), link])
    rows[0][:2] = [f"{claim.claim} ({claim.quantity}: {claim.bound})", claim.source]
    return rows


def _what(evidence: Evidence) -> str:
    other = f" - {evidence.minus}" if evidence.minus else f" / {evidence.over}" if evidence.over else ""
    return f"{evidence.arm}{other}"


def contradictions() -> str:
    """What the papers' numbers say against each other, each with the test that shows it."""
    cells = [["", "VIA-SD says", "its own numbers", "test"]]
    cells += [[one.key, one.says, one.find(), f"`{one.test}`"] for one in CONTRADICTIONS]
    text = "Computed from the published values and formulas alone (`experiments/paper/contradictions.py`)."
    return f"## Contradictions in the papers\n\n{text}\n\n{markdown_table(cells)}"
