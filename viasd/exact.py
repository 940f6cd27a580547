"""Mode exact: what slim verifiers decide is provisional; a target pass confirms it or takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from viasd.calling import Caller
from viasd.decode import Draft, Guess, Memory, RowReader, State, Tier, Verdict
from viasd.judging import HierarchicalJudge, Ruling
from viasd.rules import RuleRows, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.verification import probabilities, taps_before

if TYPE_CHECKING:
    from viasd.hierarchical import Hierarchical


class ExactJudge(HierarchicalJudge):
    """The target judges each provisional token against the law m that wrote it (DESIGN section 3, mode exact).

    m is the law given that the position was not left to the target. A token is kept with probability min(1, target/m),
    else replaced from max(0, target - m) and everything behind it withdrawn, so the output law is the target's. With
    several slim verifiers m is the law given the one that decided: exact for each of them, and so for the whole.
    """

    def __init__(self, config: Hierarchical, target: RowReader, slims: Sequence[RowReader]) -> None:
        super().__init__(config, target, slims)
        self._caller = None if config.calls is None else Caller(config.calls)
        self._asked: list[int] = []  # the bins of the provisional tokens that the target judged in this round

    def judge(self, state: State, draft: Draft) -> Verdict:
        n = draft.length
        ruling = self._begin(state, draft, 0 if self._calls_now(state, n) else self._forced_at(state, n))
        guesses: list[Guess] = []
        gated = False
        while ruling.place < min(n, ruling.forced_at) and not ruling.ended:
            level = self._decider(state, draft, ruling)
            if gated := level == len(self.slims):
                break
            self._slim_rules(state, ruling, level)
            guesses.append(self._guess(state, ruling, ruling.place - 1))
        if gated or n == 0 or (ruling.place < n and not ruling.ended):
            ruling.escalation = "gate" if gated else "forced"
            return self._confirm(state, draft, ruling, guesses, gated)
        if not ruling.ended and self._add_slim_bonus(state, ruling, n):
            guesses.append(self._guess(state, ruling, n))
        regions = tuple(ruling.regions)
        taps = self._taps(state, ruling)
        return Verdict(tokens=[], sources=[], kept=ruling.kept, regions=regions, guesses=guesses, taps=taps)

    def _calls_now(self, state: State, n: int) -> bool:
        pending = [guess.promise for guess in state.provisional]
        return n == 0 or (self._caller is not None and self._caller.call_now(pending, n))

    def _guess(self, state: State, ruling: Ruling, place: int) -> Guess:
        """What a slim verifier just decided, for the time being."""
        look, n = ruling.looks[ruling.ruler], len(ruling.drafted)
        row = None if state.greedy else self.slims[ruling.ruler].law(look, place)
        tier: Tier = "slim" if place == n else ruling.tiers[place]
        drafted = None if place == n else ruling.drafted[place]
        return Guess(look.decision(place), tier, place, drafted, row, look.promise(place))

    def _confirm(self, state: State, draft: Draft, ruling: Ruling, guesses: list[Guess], gated: bool) -> Verdict:
        """The target judges all provisional tokens, this round's too, and the rest of the draft, as one chain."""
        n, place, pending = draft.length, ruling.place, len(state.provisional)
        logits = self.target.feed(state.ids, state.length + n, last=pending + n + 1)
        rows = process(logits, state.decode.sampling) if self._needs_rows(state) else logits
        tokens = [*(guess.token for guess in state.provisional), *ruling.drafted]
        bonus = self.config.target_bonus or n == 0
        written = [*state.provisional, *guesses]
        self._asked = [guess.promise for guess in written]
        if state.greedy:
            accepted, last = judge_greedy(logits.argmax(-1).tolist(), tokens)
        else:
            rest = self._proposals(draft, ruling, len(self.slims)) if gated else draft.rows[place:]
            laws = [guess.row for guess in written if guess.row is not None]
            proposals = torch.cat([torch.stack(laws), *([rest] if n > place else [])]) if laws else rest
            ids = state.ids[state.length - pending : state.length + n]
            rule = RuleRows(reject=rows[:-1], residual=rows[:-1], bonus=rows[-1])
            verdict = judge_chain(ids, proposals, rule, state.draws, bonus)
            accepted, last = torch.stack([verdict.accepted, verdict.token]).tolist()
        behind = [last] if bonus or accepted < len(tokens) else []
        return self._settle(state, ruling, rows, [*tokens[:accepted], *behind], accepted)

    def _settle(self, state: State, ruling: Ruling, rows: Tensor, output: list[int], accepted: int) -> Verdict:
        """The verdict on a chain of which the target kept `accepted` tokens, and put a token of its own behind."""
        pending, n = len(state.provisional), len(ruling.drafted)
        confirmed = min(accepted, pending)
        kept = accepted - confirmed
        stood = min(kept, ruling.place)  # kept tokens that a slim verifier had decided in this round
        judged = 0 if confirmed < pending else min(kept + 1, n)
        written = output[confirmed:]
        target: Tier = "target"
        return Verdict(
            tokens=written,
            sources=[*ruling.sources[:stood], *[target] * (len(written) - stood)],
            kept=kept,
            tiers=[*ruling.tiers[:stood], *[target] * (judged - stood)],
            target_ruled=len(written),
            escalation=ruling.escalation,
            regions=tuple(ruling.regions),
            laws=probabilities(rows, output) if state.detail else None,
            confirmed=confirmed,
            withdrawn=pending - confirmed,
            taps=taps_before(self.target, state.length - pending + accepted),
        )

    def begin(self, state: State) -> None:
        if self._caller is not None:
            self._caller.begin()

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        if self._caller is None:
            return
        if verdict.guesses:
            self._caller.wrote(len(verdict.guesses), draft.length)
            return
        kept = min(verdict.confirmed + verdict.kept, len(self._asked))
        output = verdict.confirmed + len(verdict.tokens)
        self._caller.confirmed(self._asked, kept, output, draft.length, asked_slim=any(verdict.regions or ()))

    def memory(self) -> Memory:
        return {} if self._caller is None else self._caller.memory()

    def restore(self, memory: Memory) -> None:
        if self._caller is not None:
            self._caller.restore(memory)
