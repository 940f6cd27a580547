"""Headline claims: what a paper says, as the bound that a number has to meet, where ours is stored, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import Field, TypeAdapter, model_validator

from experiments.paper.agreement import is_few
from experiments.paper.stored import Examples, definition
from experiments.statistics import Estimate
from experiments.tables import MEAN
from viasd.spec import spec

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
Verdict = Literal["supported", "contradicted", "undecided", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "undecided", "not measured")
NEUTRAL = {"ratio": 1.0, "difference": 0.0}


@spec
class Evidence:
    """Where a number is: a table of results/tables or a published one, the arm (row), metric (column) and task.

    `against`: the arm that a stored, paired effect is against. `minus`, `over`: where none is stored, the arm that is
    taken from it, or that it is divided by. `rows`: the table that counts examples, if it is another, and `arms`: the
    arms of that table behind a mean over trainings.
    """

    table: str | None = None
    published: str | None = None
    task: str = MEAN
    arm: str
    metric: str
    against: str | None = None
    minus: str | None = None
    over: str | None = None
    rows: str | None = None
    arms: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Evidence:
        if (self.table is None) == (self.published is None):
            raise ValueError(f"table={self.table}, published={self.published}: accepted: one of them")
        if sum(one is not None for one in (self.against, self.minus, self.over)) != 1:
            raise ValueError(
                f"against={self.against}, minus={self.minus}, over={self.over}: accepted: exactly one of them"
            )
        if self.arms and self.rows is None:
            raise ValueError(f"arms={self.arms}: accepted: with rows")
        if self.table is not None:
            definition(self.metric)
        return self

    @property
    def base(self) -> str:
        """The other arm."""
        return self.against or self.minus or self.over or ""

    @property
    def is_paired(self) -> bool:
        return self.against is not None


@spec
class Claim:
    """What a paper says of a quantity, as the bound that it has to meet.

    `effect`: whether the quantity is a ratio or a difference, which says where there is no effect. `controls`: arms
    that judge nothing, or by no gate, beside which the bound means little.
    """

    paper: str
    source: str
    claim: str
    quantity: str
    effect: Literal["ratio", "difference"]
    at_least: float | None = None
    at_most: float | None = None
    measured: Annotated[list[Evidence], Field(min_length=1)]
    controls: list[Evidence] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"claim {self.claim!r}: accepted: at_least or at_most")
        for one in [*self.measured, *self.controls]:
            if (one.minus and self.effect == "ratio") or (one.over and self.effect == "difference"):
                raise ValueError(f"effect={self.effect}: accepted: minus where it is a difference, over where a ratio")
        return self

    @property
    def bound(self) -> str:
        """As text: `at least 1.1`."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    @property
    def neutral(self) -> float:
        """Where there is no effect."""
        return NEUTRAL[self.effect]


@dataclass(frozen=True)
class Found:
    """A number and the examples it follows from; without a number, what is `missing`."""

    number: Estimate | None
    behind: Literal["judged", "timed", "none"] = "judged"
    examples: Examples | None = None
    missing: str = ""


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a yaml. Raises ValidationError for one that is not well formed, as by a metric nobody defined."""
    return TypeAdapter(list[Claim]).validate_python(OmegaConf.to_container(OmegaConf.load(path)))


def decide(claim: Claim, found: Found) -> tuple[Verdict, str]:
    """Where an interval lies with respect to the claim's bound, and what else is to be said of it ("" if nothing)."""
    if found.number is None:
        return "not measured", ""
    low, high = found.number.low, found.number.high
    if low is None or high is None:
        return "undecided", "no interval"
    if found.behind != "none" and is_few(found.examples.fewest[found.behind] if found.examples else 0):
        return "undecided", "few prompts"
    if found.behind != "none" and low == high:
        return "undecided", "no spread"
    least = claim.at_least if claim.at_least is not None else -math.inf
    most = claim.at_most if claim.at_most is not None else math.inf
    if least <= low and high <= most:
        return "supported", "no effect" if low == high == claim.neutral else ""
    if least <= high and low <= most:
        return "undecided", ""
    same = claim.neutral < low if high < least else high < claim.neutral
    return "contradicted", "same sign" if same else ""
