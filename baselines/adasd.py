"""AdaSD (2512.11280): draft until the drafter is unsure, accept where its row is close to the target's; both by means.

The abstract promises two thresholds that follow the text, without training or tuning. No public code was found; the
rules below come from summaries of version 1, and what those leave open is a field whose default is ours. So this is a
reconstruction: nothing here is the authors' algorithm beyond what a docstring says of its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.adasd_stop import Decay, Lifetime, OnlineMean, Rows, counting
from viasd.decode import Draft, Memory, Part, Readers, RowReader, State, Tier, Verdict, Verifier
from viasd.gates import entropy
from viasd.rules import RuleRows, judge_chain
from viasd.sampling import Draws, process
from viasd.spec import spec
from viasd.verification import probabilities, taps_before


@spec
class JsVerifier:
    """Accept where J, between target and draft row, is at most T_V: half way between its means over both labels.

    J is the Jensen-Shannon distance (a square root) or divergence with logarithms to base 2, so in [0, 1]; the base
    changes nothing but `start`. From summaries of AdaSD: the test and the midpoint of the mean J of accepted and of
    rejected tokens. All else is ours. `variant`: the test replaces the lossless rule's coin (`replace`), or rescues
    what the coin refuses (`rescue`). T_V is `start` until a token was accepted and one rejected; null: the coin alone
    decides so long, as in sd (a `replace` that starts from 0 never accepts anything, and so never gets another T_V).
    `labels`: who says that a token counts as accepted, the verdict or the coin. `positions` that count: the tested
    ones, or all drafted. A refused token is replaced from what the draft leaves of the target's row (`residual`, and
    always where the coin alone decides) or from that row (`target`). `rows` of J: processed or raw, at temperature 0
    raw always: J of one-hot rows is 0 or 1. All values weigh the same (`decay` 1), T_V begins anew with each prompt,
    and changes between rounds. `learn: false` holds T_V at `start`: fuzzy speculative decoding (`replace`) and its
    reducible form (`rescue`).

    At a tested position the law is the draft's row where J <= T_V. Elsewhere it is the target's for `rescue` with
    `residual` and for `replace` with `target`, and always where the coin alone decides.
    """

    variant: Literal["rescue", "replace"] = "rescue"
    measure: Literal["distance", "divergence"] = "distance"
    rows: Rows = "processed"
    start: Annotated[float, Field(ge=0, le=1)] | None = None
    labels: Literal["verdict", "coin"] = "verdict"
    positions: Literal["tested", "drafted"] = "tested"
    replacement: Literal["residual", "target"] = "residual"
    decay: Decay = 1.0
    memory: Lifetime = "request"
    learn: bool = True

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return False

    def open_verifier(self, readers: Readers) -> Verifier:
        return _JsJudge(self, readers.get("target"))

    def law(self, target: Tensor, draft: Tensor, near: Tensor) -> Tensor:
        """Law [n, V] of tested positions with rows `target` and `draft` [n, V]; `near` [n]: J <= T_V."""
        left = (target - draft).clamp(min=0)
        mass = left.sum(-1, keepdim=True)  # what the coin refuses
        if self.variant == "rescue":
            far = target if self.replacement == "residual" else torch.minimum(target, draft) + mass * target
        else:
            far = target if self.replacement == "target" else torch.where(mass > 0, left / mass, target)
        return torch.where(near[:, None], draft, far)


@dataclass(frozen=True)
class _Tests:
    """What was found at drafted positions [n]: J, whether it is at most T_V, accepted, and labeled so."""

    apart: Tensor
    near: Tensor
    accepts: Tensor
    labels: Tensor


class _JsJudge(Part):
    """One forward of the target over the draft and one read of the host, as sd."""

    def __init__(self, config: JsVerifier, reader: RowReader) -> None:
        self.config, self.reader = config, reader
        self._means: dict[bool, OnlineMean] = {}  # of J, by label
        self._found: list[tuple[float, bool]] = []  # J and label of a round's positions that count
        self._near: list[float] = []  # 1 where J was at most T_V, of those that were tested
        self._forget()

    def _forget(self) -> None:
        self._means = {label: OnlineMean(self.config.decay) for label in (True, False)}

    @property
    def threshold(self) -> float | None:
        """T_V; None while the coin decides."""
        accepted, rejected = self._means[True].value, self._means[False].value
        if accepted is None or rejected is None:
            return self.config.start
        return float(accepted + rejected) / 2

    def judge(self, state: State, draft: Draft) -> Verdict:
        n, threshold = draft.length, self.threshold
        logits = self.reader.feed(state.ids, state.length + n, last=n + 1)
        rows = process(logits, state.decode.sampling)  # [n + 1, V]
        target, proposals = rows[:-1], draft.rows if n else rows[:0]
        tests = self._test(state, draft, logits[:-1], target, threshold)
        subtract = threshold is None or self.config.replacement == "residual"
        reject = 2.0 * tests.accepts[:, None].to(rows.dtype).expand_as(proposals)  # 2: above any coin times draft
        chosen = judge_chain(draft.tokens, proposals, RuleRows(reject, target, rows[-1], subtract), state.draws)
        parts = [chosen.accepted[None], chosen.token[None], draft.tokens, tests.apart, tests.near, tests.labels]
        accepted, last, *rest = torch.cat([part.double() for part in parts]).tolist()  # the only read of the host
        drafted, apart, near, labels = (rest[k * n : (k + 1) * n] for k in range(4))
        tokens = [int(token) for token in [*drafted[: int(accepted)], last]]
        laws = None
        if state.detail:
            law = target if threshold is None else self.config.law(target, proposals, tests.near)
            laws = probabilities(torch.cat([law, rows[-1:]]), tokens)
        tested = min(len(tokens), n)
        self._near = near[:tested]
        count = tested if self.config.positions == "tested" else n
        self._found = [(j, label > 0) for j, label in zip(apart[:count], labels[:count], strict=True)]
        tier: Tier = "target"
        kept = int(accepted) + (accepted < n and last == drafted[int(accepted)])  # what is drawn may be equal
        return Verdict(
            tokens=tokens,
            sources=[tier] * len(tokens),
            kept=kept,
            tiers=[tier] * tested,
            target_ruled=len(tokens),
            laws=laws,
            labels=[label for _, label in self._found],
            taps=taps_before(self.reader, state.length + kept),
        )

    def _test(self, state: State, draft: Draft, logits: Tensor, target: Tensor, threshold: float | None) -> _Tests:
        """The two tests of every drafted token; `logits` and `target` [n, V], raw and processed."""
        config, proposals = self.config, draft.rows if draft.length else target
        one, other = target, proposals
        if config.rows == "raw" or state.greedy:
            one = logits.softmax(-1)
            other = proposals if draft.logits is None else draft.logits.softmax(-1)
        apart = js_divergence(one, other)
        if config.measure == "distance":
            apart = apart.sqrt()
        near = apart <= (-1.0 if threshold is None else threshold)
        if threshold is not None and config.variant == "replace" and config.labels == "verdict":
            return _Tests(apart, near, near, near)
        coins = toss(draft.tokens, target, proposals, state.draws)
        accepts = coins if threshold is None else near if config.variant == "replace" else coins | near
        return _Tests(apart, near, accepts, coins if config.labels == "coin" else accepts)

    def begin(self, state: State) -> None:
        if self.config.memory == "request":
            self._forget()

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        self._near = self._near[: counting(state, len(self._near))]
        found, self._found = self._found[: counting(state, len(self._found))], []
        if self.config.learn:
            for apart, label in found:
                self._means[label].add(apart)

    def adaptive(self) -> dict[str, float]:
        """T_V and the two means of J once there are any; of the last round the tested positions and the lossy ones.

        Lossy: J was at most T_V, so that the draft's law was taken.
        """
        means = {"accepted": self._means[True].value, "rejected": self._means[False].value}
        told = {"threshold": self.threshold, **means, "tested": len(self._near), "lossy": sum(self._near)}
        return {name: float(value) for name, value in told.items() if value is not None}

    def memory(self) -> Memory:
        if self.config.memory == "request":
            return {}
        return {"accepted": self._means[True].memory(), "rejected": self._means[False].memory()}

    def restore(self, memory: Memory) -> None:
        names = {True: "accepted", False: "rejected"}
        self._means = {label: OnlineMean(self.config.decay, **memory.get(name, {})) for label, name in names.items()}


def js_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence [n] to base 2 of probabilities [n, V], in [0, 1].

    In float64: a difference of entropies, which nearly cancel where rows are alike, and its root may be taken.
    """
    one, other = one.double(), other.double()
    bits = (entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2) / math.log(2)
    return bits.clamp(0, 1)


def toss(tokens: Tensor, target: Tensor, draft: Tensor, draws: Draws) -> Tensor:
    """The lossless rule's coin for each drafted token, [n]: heads with probability min(1, target / draft)."""
    at = tokens[:, None]
    ours, theirs = target.gather(1, at), draft.gather(1, at)
    return draws.draw(torch.cat([ours, (theirs - ours).clamp(min=0)], dim=1), "coin") == 0
