"""The judge of the hierarchical verifier: who rules on each drafted token, what is committed (modes lossy, budget)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from viasd.budget import Controller
from viasd.decode import Draft, Memory, Part, RowReader, Source, State, Tier, Verdict
from viasd.gates import StrictnessGate
from viasd.routing import ESCALATE, KEEP, REGIONS, REWRITE
from viasd.rules import Lossless, RuleRows, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.slim import Look, SlimVerifier
from viasd.verification import (
    RuleJudge,
    agreement,
    audit,
    probabilities,
    read_draft,
    taps_before,
    unaudited_tokens,
)

if TYPE_CHECKING:
    from viasd.hierarchical import Hierarchical
    from viasd.taps import Taps


@dataclass
class Ruling:
    """A verdict in the making.

    `level`: who is asked first about the next place, 0 the first slim verifier; `start`: who was about the last one;
    `ruler`: who ruled on that. `forced_at`: the first place that is the target's before anything is looked at.
    """

    drafted: list[int]
    forced_at: int
    tokens: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    laws: list[float] = field(default_factory=list)
    regions: list[int] = field(default_factory=lambda: [0] * len(REGIONS))
    looks: dict[int, Look] = field(default_factory=dict)
    level: int = 0
    start: int = 0
    ruler: int = 0
    kept: int = 0
    ended: bool = False
    escalation: Literal["gate", "forced"] | None = None
    target_rows: Tensor | None = None  # [n + 1, V] once the target ran: processed, or at temperature 0 its logits
    audits: list[float] | None = None

    @property
    def place(self) -> int:
        """The next drafted token."""
        return len(self.tiers)

    def write(self, token: int, source: Source, law: float) -> None:
        self.tokens.append(token)
        self.sources.append(source)
        self.laws.append(law)

    def rule(self, token: int, tier: Tier, law: float) -> None:
        """Rule on the next drafted token; a different token ends the round."""
        drafted = self.drafted[self.place]
        self.write(token, tier, law)
        self.tiers.append(tier)
        self.kept += token == drafted
        self.ended = token != drafted


class HierarchicalJudge(Part):
    """At most one forward of each slim verifier per draft, and one of the target, where a position is left to it."""

    def __init__(self, config: Hierarchical, target: RowReader, slims: Sequence[RowReader]) -> None:
        self.config, self.target = config, target
        self.slims = [SlimVerifier(config, reader, tier.gate) for reader, tier in zip(slims, config.tiers, strict=True)]
        self._alone = RuleJudge(target, Lossless(), "target")
        self._budget = None if config.budget is None else Controller(config.budget)

    def judge(self, state: State, draft: Draft) -> Verdict:
        n = draft.length
        if n == 0 and self._budget is None:  # nothing to route
            return self._alone.judge(state, draft)
        ruling = self._begin(state, draft, self._forced_at(state, n))
        if n == 0:
            self._target_rules(state, draft, ruling, gated=False)
        while ruling.place < n and not ruling.ended:
            if ruling.target_rows is None and ruling.place >= ruling.forced_at:
                self._look_ahead(state, draft, ruling)
                self._target_rules(state, draft, ruling, gated=False)
            elif (level := self._decider(state, draft, ruling)) < len(self.slims):
                self._slim_rules(state, ruling, level)
            else:
                self._target_rules(state, draft, ruling, gated=True)
        if not ruling.ended and ruling.ruler < len(self.slims):
            self._add_slim_bonus(state, ruling, n)
        return self._verdict(state, ruling)

    def _forced_at(self, state: State, n: int) -> int:
        limit = self.config.max_pending
        if self._budget is not None and self._budget.strictness == 1:
            return 0  # every token would be escalated
        return n if limit is None else max(0, limit - state.pending)

    def _begin(self, state: State, draft: Draft, forced_at: int) -> Ruling:
        """The drafted tokens on the host, from the first slim verifier's look where it is asked."""
        # A position forced before anything was looked at needs no slim row unless the slim verifier judges after it.
        if forced_at == 0 and (draft.length == 0 or self.config.after_escalation == "target"):
            return Ruling(draft.tokens.tolist(), forced_at)
        proposals = draft.rows if self._needs_rows(state) else None
        look = self.slims[0].look(state, draft, 0, forced_at, proposals)
        return Ruling(look.drafted, forced_at, looks={0: look})

    def _decider(self, state: State, draft: Draft, ruling: Ruling) -> int:
        """The first verifier from `ruling.level` on that does not escalate the next drafted token."""
        place = ruling.place
        level = ruling.start = ruling.level
        while level < len(self.slims):
            self._look(state, draft, ruling, level)
            region = ruling.looks[level].region(place)
            ruling.regions[region] += 1
            if region != ESCALATE:
                break
            level += 1
        ruling.ruler = level
        if self.config.after_escalation == "target":
            ruling.level = level
        return level

    def _look(self, state: State, draft: Draft, ruling: Ruling, level: int) -> None:
        """Let a slim verifier run over the draft from the next place on, if it has not."""
        if level not in ruling.looks:
            proposals = self._proposals(draft, ruling, level) if self._needs_rows(state) else None
            ruling.looks[level] = self.slims[level].look(state, draft, ruling.place, ruling.forced_at, proposals)

    def _look_ahead(self, state: State, draft: Draft, ruling: Ruling) -> None:
        """All slim verifiers that may rule behind a forced position run before the target.

        On its cache there would be nothing left for them to read.
        """
        if self.config.after_escalation == "slim" and ruling.place + 1 < draft.length:
            for level in range(len(self.slims)):
                self._look(state, draft, ruling, level)

    def _proposals(self, draft: Draft, ruling: Ruling, level: int) -> Tensor:
        """The law [n - place, V] of the drafted tokens that come before a verifier, from the next place on.

        A token that weaker verifiers escalated has the draft row given that, P(escalate | v), renormalized. Where the
        stronger verifier goes on after it, the later tokens have the plain draft row.
        """
        place, n = ruling.place, draft.length
        end = place + 1 if self.config.after_escalation == "target" else n
        proposals = draft.rows[place:end]
        for below in range(ruling.start, level):
            proposals = self.slims[below].escalated(ruling.looks[below], proposals, slice(place, end))
        return torch.cat([proposals, draft.rows[end:]])

    # --- slim verifiers -------------------------------------------------------------------------------------------

    def _slim_rules(self, state: State, ruling: Ruling, level: int) -> None:
        """A slim verifier keeps, rewrites or judges the next drafted token."""
        place, look = ruling.place, ruling.looks[level]
        region, token = look.region(place), look.decision(place)
        law = float(self.slims[level].law(look, place)[token]) if self._needs_laws(state) else 1.0
        ruling.rule(token, "draft" if region == KEEP else "slim", law)
        ruling.ended |= region == REWRITE and self.config.after_equal_rewrite == "stop"

    def _add_slim_bonus(self, state: State, ruling: Ruling, n: int) -> bool:
        """The slim verifier's bonus behind a fully kept draft whose last token it ruled on; whether there is one."""
        look, limit = ruling.looks[ruling.ruler], self.config.max_pending
        window_full = ruling.target_rows is None and limit is not None and state.pending + n >= limit
        if look.bonus is None or window_full:
            return False
        law = float(self.slims[ruling.ruler].law(look, look.end)[look.bonus]) if self._needs_laws(state) else 1.0
        ruling.write(look.bonus, "slim", law)
        return True

    # --- the target -----------------------------------------------------------------------------------------------

    def _target_rules(self, state: State, draft: Draft, ruling: Ruling, gated: bool) -> None:
        """The target judges from the next drafted token on; `gated`: because slim verifiers escalated that token."""
        n, i = draft.length, ruling.place
        if ruling.target_rows is None:
            ruling.escalation = "gate" if gated else "forced"
            ruling.target_rows = self._run_target(state, draft, ruling)
        ruling.ruler = len(self.slims)
        until = n if self.config.after_escalation == "target" else min(i + 1, n)
        bonus = until == n and (self.config.target_bonus or n == 0)
        accepted, last = self._target_chain(state, draft, ruling, until, bonus, gated)
        written = ruling.drafted[i : i + accepted]
        refused = accepted < until - i
        if refused or bonus:
            written = [*written, last]
        laws = [1.0] * len(written)
        if self._needs_laws(state):
            laws = probabilities(ruling.target_rows[i:], written)
        for token, law in zip(written[: until - i], laws, strict=False):
            ruling.rule(token, "target", law)
        if len(written) > until - i:
            ruling.write(last, "target", laws[-1])
        ruling.ended = refused

    def _target_chain(
        self, state: State, draft: Draft, ruling: Ruling, until: int, bonus: bool, gated: bool
    ) -> tuple[int, int]:
        """How many of the drafted tokens up to `until` the target keeps, and its token behind them."""
        i = ruling.place
        assert ruling.target_rows is not None
        rows = ruling.target_rows[i : until + 1]
        if state.greedy:
            return judge_greedy(rows.argmax(-1).tolist(), ruling.drafted[i:until])
        proposals = self._proposals(draft, ruling, len(self.slims)) if gated else draft.rows[i:]
        rule = RuleRows(reject=rows[:-1], residual=rows[:-1], bonus=rows[-1])
        verdict = judge_chain(draft.tokens[i:until], proposals[: until - i], rule, state.draws, bonus)
        accepted, last = torch.stack([verdict.accepted, verdict.token]).tolist()  # the target's host read
        return accepted, last

    def _run_target(self, state: State, draft: Draft, ruling: Ruling) -> Tensor:
        """Target rows [n + 1, V] of the draft; where audits are kept, also what it says of tokens it had not read."""
        unaudited = unaudited_tokens(state, self.target) if self._audits(state) else 0
        logits = read_draft(self.target, state, draft, draft.length + 1 + unaudited)
        if unaudited:
            ruling.audits = audit(state, logits[:unaudited])
        return process(logits[unaudited:], state.decode.sampling) if self._needs_rows(state) else logits[unaudited:]

    # --- laws and audits ------------------------------------------------------------------------------------------

    def _needs_rows(self, state: State) -> bool:
        """At temperature 0 first choices decide, and rows are looked at only where laws are recorded."""
        return state.detail or not state.greedy

    def _needs_laws(self, state: State) -> bool:
        return state.detail or (self._budget is not None and not state.greedy)

    def _audits(self, state: State) -> bool:
        return state.detail or self._budget is not None

    def _verdict(self, state: State, ruling: Ruling) -> Verdict:
        ruled, audits = None, ruling.audits
        if ruling.target_rows is not None:  # it read the draft, so the kept tokens, and may have written the next one
            wrote_next = ruling.sources[ruling.kept : ruling.kept + 1] == ["target"]
            ruled = ruling.kept + wrote_next
            if self._audits(state):
                audits = (audits or []) + self._audit_round(state, ruling)
        return Verdict(
            tokens=ruling.tokens,
            sources=ruling.sources,
            kept=ruling.kept,
            tiers=ruling.tiers,
            target_ruled=ruled,
            escalation=ruling.escalation,
            regions=tuple(ruling.regions),
            laws=ruling.laws if self._audits(state) else None,
            audits=audits,
            taps=self._taps(state, ruling),
        )

    def _taps(self, state: State, ruling: Ruling) -> Taps | None:
        """What the strongest verifier that ran in this round, and is tapped, computed of tokens that stand."""
        ran = [self.slims[level].reader for level in sorted(ruling.looks, reverse=True)]
        if ruling.target_rows is not None:
            ran.insert(0, self.target)
        found = (taps_before(reader, state.length + ruling.kept) for reader in ran)
        return next((taps for taps in found if taps is not None), None)

    def _audit_round(self, state: State, ruling: Ruling) -> list[float]:
        """What the target's pass says of this round's tokens that it did not write."""
        assert ruling.target_rows is not None
        seen = ruling.tokens[: ruling.kept + 1]  # rows behind a replaced token belong to another text
        others = [i for i, source in enumerate(ruling.sources[: len(seen)]) if source != "target"]
        if not others:
            return []
        if self._needs_laws(state):
            targets = probabilities(ruling.target_rows, seen)
            return [agreement(targets[i], ruling.laws[i]) for i in others]
        choices = ruling.target_rows.argmax(-1).tolist()
        return [float(choices[i] == seen[i]) for i in others]

    # --- budget ---------------------------------------------------------------------------------------------------

    def begin(self, state: State) -> None:
        if self._budget is not None:
            self._budget.begin()
            self._set_strictness(self._budget)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        if self._budget is None:
            return
        record = state.rounds[-1]
        self._budget.commit(record.committed)
        if verdict.target_ruled is not None:
            self._budget.audit(sum(1 - one for one in record.audits or []))
            self._set_strictness(self._budget)

    def finish(self, state: State) -> None:
        """In budget mode a request ends with an audit of what the target has not seen."""
        if self._budget is None or (unaudited := unaudited_tokens(state, self.target)) == 0:
            return
        audits = audit(state, self.target.feed(state.ids, state.length - 1, last=unaudited))
        last = state.rounds[-1]
        last.audits = [*(last.audits or []), *audits]
        self._budget.audit(sum(1 - one for one in audits))

    def _set_strictness(self, budget: Controller) -> None:
        gate = self.config.gate
        assert isinstance(gate, StrictnessGate)
        self.slims[0].gate = dataclasses.replace(gate, strictness=budget.strictness)

    def adaptive(self) -> dict[str, float]:
        return {} if self._budget is None else {"strictness": self._budget.strictness}

    def memory(self) -> Memory:
        return {} if self._budget is None else self._budget.memory()

    def restore(self, memory: Memory) -> None:
        if self._budget is not None:
            self._budget.restore(memory)
