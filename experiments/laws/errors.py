"""The error of a rule's law at each position, in closed form from row pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.laws.rows import Rows
from viasd.rules import RowPairs, RowRule
from viasd.sampling import Draws, Sampling, process

MEASURES = ("acceptance", "tv", "kl", "overshoot", "rare_mass")
CHUNK = 2**22  # entries of a row tensor at a time: 32 MB in float64
Errors = dict[str, Tensor]  # by measure: [n], float64, on the host


@dataclass(frozen=True)
class Against:
    """What laws are held against: mass above target / `lenience`, and on tokens with target < `rare`."""

    sampling: Sampling
    lenience: float
    rare: float


@dataclass(frozen=True)
class Pairs:
    """Processed rows and logits of some positions [n, V], float64, and tokens [n] drawn from the draft rows."""

    tokens: Tensor
    target: Tensor
    judge: Tensor
    draft: Tensor
    judge_logits: Tensor
    draft_logits: Tensor

    @classmethod
    def of(cls, rows: Rows, judge: str, sampling: Sampling, draws: Draws) -> Pairs:
        """From raw logits; `judge` is target or slim."""
        logits = {role: one.double() for role, one in rows.items()}
        processed = {role: process(one, sampling) for role, one in logits.items()}
        return cls(
            tokens=draws.draw(processed["draft"], "draft"),
            target=processed["target"],
            judge=processed[judge],
            draft=processed["draft"],
            judge_logits=logits[judge],
            draft_logits=logits["draft"],
        )


def rule_errors(rule: RowRule | None, pairs: Pairs, against: Against) -> Errors:
    """Errors of a rule's law at n positions; without a rule, of drafts that are output unread.

    Each position is taken as one of a block. Of a rule whose residual depends on the drafted token, `law` sums over
    those tokens, or is what it says for the token that was drawn. The bonus row is no judged position and is left out.
    """
    if rule is None:
        return errors(pairs.draft, pairs.target, torch.ones_like(pairs.target[:, 0]), against)
    found = rule.rows(
        RowPairs(
            tokens=pairs.tokens,
            judge=_with_bonus(pairs.judge),
            draft=pairs.draft,
            judge_logits=_with_bonus(pairs.judge_logits),
            draft_logits=pairs.draft_logits,
            sampling=against.sampling,
        )
    )
    # A drafted token v is kept with probability min(1, reject(v) / draft(v)).
    acceptance = torch.minimum(pairs.draft, found.reject).sum(-1)
    return errors(found.laws[:-1], pairs.target, acceptance, against)


def _with_bonus(rows: Tensor) -> Tensor:
    """A row behind the last one, which a rule expects: its result is not used."""
    return torch.cat([rows, rows[-1:]])


def errors(law: Tensor, target: Tensor, acceptance: Tensor, against: Against) -> Errors:
    """Measures [n] of laws [n, V] against target rows [n, V].

    tv: total variation. kl: KL(target || law) in nats, infinite where the law lacks a token of the target. overshoot:
    sum of max(0, law - target / l). rare_mass: emitted mass on rare tokens; the target's own has some, too.
    """
    known = target > 0
    gap = torch.where(known, target.log() - law.log(), 0.0)
    told = {
        "acceptance": acceptance,
        "tv": (law - target).abs().sum(-1) / 2,
        "kl": torch.where(known, target * gap, 0.0).sum(-1).clamp(min=0),
        "overshoot": (law - target / against.lenience).clamp(min=0).sum(-1),
        "rare_mass": (law * (target < against.rare)).sum(-1),
    }
    return {name: one.double().cpu() for name, one in told.items()}


def chunks(rows: Rows) -> list[Rows]:
    """The same rows, some positions at a time, so that large vocabularies fit."""
    count, vocabulary = rows["target"].shape
    size = max(1, CHUNK // vocabulary)
    return [{role: one[at : at + size] for role, one in rows.items()} for at in range(0, count, size)]


def join(parts: list[Errors]) -> Errors:
    """Errors of consecutive positions."""
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
