"""Gates beyond the paper's: deferral by how sure the slim verifier is, learned deferral, the draft's probability."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from viasd.routing import ESCALATE, JUDGE, KEEP, Evidence, SetGate, one_hot
from viasd.sampling import Draws
from viasd.spec import spec

Measure = Literal["confidence", "entropy", "margin", "overlap"]
Rule = Literal["agree", "diff", "opt"]
SLIM_FEATURES = ("confidence", "entropy", "margin")
DRAFT_FEATURES = ("draft_confidence", "draft_entropy", "same_choice", "slim_of_draft", "draft_of_slim")
DOUBLINGS = 12  # of confidence, from the loosest deferral to the strictest
LARGEST = 20.0  # features are log-odds and nats; beyond this they say no more
OUTCOMES = ("agree", "target_top", "distance")


class PositionGate:
    """A gate that looks at rows alone: JUDGE where `sure`, else ESCALATE, whatever token was drafted.

    With `patience` (tokens) it allows for what an escalation costs: the doubt that it lets pass, as odds, is
    1 + pending / patience times as large, for the tokens pending there are those that the target has to read first.
    """

    __slots__ = ()
    patience: float | None

    def sure(self, evidence: Evidence) -> Tensor:
        """Whether [n] the slim verifier may judge the position."""
        raise NotImplementedError

    @property
    def judges(self) -> bool:
        return True

    def shares(self, evidence: Evidence) -> Tensor:
        region = self._region(evidence)[:, None].expand(evidence.slim.shape)
        return one_hot(region, evidence.slim)

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        return self._region(evidence)

    def _region(self, evidence: Evidence) -> Tensor:
        return torch.where(self.sure(evidence), JUDGE, ESCALATE)

    def _slack(self, evidence: Evidence) -> Tensor | float:
        """How much the doubt that passes has grown, [n]."""
        if self.patience is None:
            return 1.0
        places = torch.arange(evidence.slim.shape[0], device=evidence.slim.device)
        return 1 + (evidence.pending + places) / self.patience


@spec
class DeferralGate(PositionGate):
    """Defer to the target where the slim verifier is unsure, whatever token was drafted (ours; DESIGN, `deferral`).

    `confidence`: the largest slim probability is at least `threshold` (Chow's rule, 1 - alpha; threshold 0 defers
    nothing). `entropy`: the slim row has at most `threshold` nats (its log-loss form). `margin`: its two largest
    probabilities differ by at least `threshold`. `overlap`: the sum of min(slim, draft) probabilities is at least
    `threshold`. All rows are raw (reference: baselines, speculative cascades).
    """

    measure: Measure = "confidence"
    threshold: Annotated[float, Field(ge=0)] = 0.5
    patience: Annotated[float, Field(gt=0)] | None = None

    def sure(self, evidence: Evidence) -> Tensor:
        slim, slack = evidence.slim.softmax(-1), self._slack(evidence)
        if self.measure == "entropy":
            return entropy(slim) <= self.threshold * slack
        smallest = 1 - allowed_doubt(1 - self.threshold, slack) if isinstance(slack, Tensor) else self.threshold
        if self.measure == "confidence":
            return slim.amax(-1) >= smallest
        if self.measure == "margin" or evidence.draft is None:  # behind the draft there is nothing to overlap with
            best = slim.topk(2, dim=-1).values
            return best[:, 0] - best[:, 1] >= smallest
        return torch.minimum(slim, evidence.draft.softmax(-1)).sum(-1) >= smallest


@spec
class DraftProbabilityGate(SetGate):
    """Keep a token to which the draft model gave at least `min_prob` (raw row), whatever the slim row says (ours)."""

    min_prob: Annotated[float, Field(ge=0, le=1)] = 0.5

    def regions(self, evidence: Evidence) -> Tensor:
        if evidence.draft is None:  # the token behind the draft has no draft probability
            return torch.full(evidence.slim.shape, ESCALATE, device=evidence.slim.device)
        return torch.where(evidence.draft.softmax(-1) >= self.min_prob, KEEP, ESCALATE)


@spec
class StrictnessGate(SetGate):
    """A nested family of gates in one number (DESIGN, mode budget): what a gate decides, every looser one does.

    `ratio`: 0 keeps everything. Up to 1/2 the smallest ratio s(v) / max s of a kept token rises from 0 to 1, and above
    that a floor on s(v) itself, from 0 to 1. `deferral` (ours): at 0 the slim verifier judges everything, then where
    its largest probability is at least 1 - 2^(-DOUBLINGS x strictness). At 1 either escalates every token.
    """

    strictness: Annotated[float, Field(ge=0, le=1)] = 0.5
    family: Literal["ratio", "deferral"] = "ratio"

    @property
    def judges(self) -> bool:
        return self.family == "deferral"

    def regions(self, evidence: Evidence) -> Tensor:
        logits = evidence.slim
        best, total = logits.amax(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
        probability = (best - total).exp() if self.judges else (logits - total).exp()
        return self._region((logits - best).exp(), probability).expand(logits.shape)

    def classify(self, evidence: Evidence, tokens: Tensor, draws: Draws) -> Tensor:
        logits = evidence.slim
        chosen, best, total = logits.gather(1, tokens[:, None])[:, 0], logits.amax(-1), logits.logsumexp(-1)
        return self._region((chosen - best).exp(), ((best if self.judges else chosen) - total).exp())

    def _region(self, ratio: Tensor, probability: Tensor) -> Tensor:
        if self.strictness == 1:
            return torch.full_like(probability, ESCALATE, dtype=torch.long)
        if self.judges:
            return torch.where(probability >= 1 - 2.0 ** (-DOUBLINGS * self.strictness), JUDGE, ESCALATE)
        smallest, floor = min(1.0, 2 * self.strictness), 2 * self.strictness - 1
        return torch.where((ratio >= smallest) & (probability >= floor), KEEP, ESCALATE)


@spec
class LearnedGate(PositionGate):
    """Deferral by what the target is expected to say, from features of the slim and the draft row (ours).

    `rule`: `agree` lets the slim verifier judge where the learned probability that its first choice is the target's is
    at least 1 - `cost`; `diff` where its confidence is at least the expected largest target probability minus `cost`;
    `opt` where that holds with `cost` times the expected TV distance of the two rows (Chow, Diff and OPT of speculative
    cascades, with expectations in the place of the target's row, which is not there).

    `weights` [outcome][feature] are learned from audits of training prompts (scripts/train_gate.py): an intercept, then
    SLIM_FEATURES and DRAFT_FEATURES; `bonus_weights` the same without the draft's, for the token behind a draft. A path
    names a JSON file with both, which is read before a run.
    """

    rule: Rule = "agree"
    cost: float = 0.05
    weights: dict[str, list[float]] | str = "auto"
    bonus_weights: dict[str, list[float]] = Field(default_factory=dict)
    patience: Annotated[float, Field(gt=0)] | None = None

    def sure(self, evidence: Evidence) -> Tensor:
        if isinstance(self.weights, str):
            raise AssertionError(f"weights {self.weights!r} were not read before opening")
        weights = self.bonus_weights if evidence.draft is None else self.weights
        seen, slack = features(evidence), self._slack(evidence)  # [n, F]
        if self.rule == "agree":
            cost = allowed_doubt(self.cost, slack) if isinstance(slack, Tensor) else self.cost
            return _linear(seen, weights["agree"]).sigmoid() >= 1 - cost
        allowed = self.cost * slack * (_linear(seen, weights["distance"]).clamp(0, 1) if self.rule == "opt" else 1.0)
        expected = _linear(seen, weights["target_top"]).clamp(0, 1)
        return evidence.slim.softmax(-1).amax(-1) >= expected - allowed


def allowed_doubt(doubt: float, slack: Tensor) -> Tensor:
    """The probability [n] whose odds are `slack` [n] times those of `doubt`; nothing where doubt is negative."""
    more = max(doubt, 0.0) * slack
    return more / (1 - doubt + more)


def _linear(seen: Tensor, weights: list[float]) -> Tensor:
    """Intercept and weighted features [n]."""
    total = torch.full_like(seen[:, 0], weights[0])
    for place, weight in enumerate(weights[1:]):  # a weight at a time: a tensor of them would be copied to the device
        total = total + weight * seen[:, place]
    return total


def features(evidence: Evidence) -> Tensor:
    """What a learned gate looks at, [n, F]: SLIM_FEATURES, and DRAFT_FEATURES where there is a draft row.

    Log-odds of the first choice, entropy in nats, log-probability margin of the first two; the same of the draft;
    whether the first choices are one; how far each one's first choice lies below the other's best, in log-probability.
    """
    log_slim = evidence.slim.log_softmax(-1)
    best = log_slim.topk(2, dim=-1)
    found = [log_odds(best.values[:, 0]), entropy(log_slim.exp()), best.values[:, 0] - best.values[:, 1]]
    if evidence.draft is not None:
        log_draft = evidence.draft.log_softmax(-1)
        top, choice = log_draft.max(-1)
        ours = best.indices[:, :1]
        found += [
            log_odds(top),
            entropy(log_draft.exp()),
            (choice == ours[:, 0]).to(log_slim.dtype),
            log_slim.gather(1, choice[:, None])[:, 0] - best.values[:, 0],
            log_draft.gather(1, ours)[:, 0] - top,
        ]
    return torch.stack(found, dim=1).clamp(-LARGEST, LARGEST)


def log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, finite."""
    rest = (-torch.expm1(log_probability)).clamp(min=torch.finfo(log_probability.dtype).tiny)
    return log_probability - rest.log()


def entropy(rows: Tensor) -> Tensor:
    """Entropy [n] in nats of probabilities [n, V]."""
    return torch.special.entr(rows).sum(-1)
