"""One slim verifier at work: what it says of a draft, read by the host at once, and the laws of what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from viasd.calling import bins
from viasd.decode import Draft, RowReader, State
from viasd.routing import ESCALATE, JUDGE, KEEP, REWRITE, Evidence, Gate
from viasd.sampling import process
from viasd.verification import read_draft

if TYPE_CHECKING:
    from viasd.hierarchical import Hierarchical


@dataclass
class Look:
    """What a slim verifier said of the draft from place `first` on: m positions, and the one behind the draft.

    `tokens` [m] are the drafted ones, `logits` and `rows` [m + 1, V] raw and processed, `proposals` [m, V] the law of
    each drafted token that comes before this verifier. Neither rows nor proposals are made at temperature 0 without
    detail. On the host: the `drafted` tokens [m], `regions` [m], `writes` [m], the token it would write at each
    place, `refused` [m], whether it refuses as a judge, its `bonus`, and `promises`: bins (viasd.calling) of
    the drafted tokens [m] and of its own [m + 1], where there is a call rule.
    """

    first: int
    tokens: Tensor
    logits: Tensor
    evidence: Evidence
    rows: Tensor | None
    proposals: Tensor | None
    drafted: list[int] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    bonus: int | None = None
    promises: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The place behind the draft."""
        return self.first + self.tokens.shape[0]

    @property
    def behind(self) -> Evidence:
        """What there is to see of the place behind the draft."""
        return Evidence(self.logits[-1:], pending=self.evidence.pending + self.tokens.shape[0])

    def region(self, place: int) -> int:
        """What the gate said of a place."""
        return self.regions[place - self.first]

    def decision(self, place: int) -> int:
        """The token that this verifier puts at a place that it does not escalate, or behind the draft."""
        if place == self.end:
            assert self.bonus is not None
            return self.bonus
        i, region = place - self.first, self.region(place)
        writes = region == REWRITE or (region == JUDGE and self.refused[i])
        return self.writes[i] if writes else self.drafted[i]

    def promise(self, place: int) -> int:
        """The bin of that token; 0 where there is no call rule."""
        if not self.promises:
            return 0
        i, m = place - self.first, len(self.drafted)
        return self.promises[i if i < m and self.decision(place) == self.drafted[i] else m + i]


class SlimVerifier:
    """A reader with its gate, under the rules of a hierarchical verifier."""

    def __init__(self, rules: Hierarchical, reader: RowReader, gate: Gate) -> None:
        self.rules, self.reader, self.gate = rules, reader, gate

    def look(self, state: State, draft: Draft, first: int, forced_at: int, proposals: Tensor | None) -> Look:
        """Run over the draft and read on the host all that may be decided from place `first` on, before `forced_at`."""
        n = draft.length
        logits = read_draft(self.reader, state, draft, n + 1 - first)
        evidence = Evidence(logits[:-1], None if draft.logits is None else draft.logits[first:], state.pending + first)
        rows = None if proposals is None else process(logits, state.decode.sampling)
        look = Look(first, draft.tokens[first:], logits, evidence, rows, proposals)
        regions = self.gate.classify(evidence, look.tokens, state.draws)
        if state.greedy:
            self._choose(look, state, regions, forced_at)
        else:
            self._draw(look, state, regions, forced_at)
        return look

    def _draw(self, look: Look, state: State, regions: Tensor, forced_at: int) -> None:
        """Draw what it would write, test its acceptances and its bonus, all before the host reads anything."""
        rows, proposals, m = look.rows, look.proposals, regions.shape[0]
        assert rows is not None and proposals is not None
        used, add_bonus = self._used(look, regions, forced_at)
        add_bonus = add_bonus & (self.rules.bonus == "slim")
        wanted, written, refused = (regions == REWRITE) & used, rows, regions[:0]
        if self.gate.judges:
            refused = self._refused(look, state, (regions == JUDGE) & used, proposals)
            add_bonus = add_bonus & ~refused[-1:]
            if self.rules.after_escalation == "target":  # it decides all up to its first refusal, where the round ends
                before = refused.cumsum(0) == 0
                wanted, add_bonus = wanted & before, add_bonus & before[-1:]
            wanted = wanted | refused
            leftover = (rows[:-1] - proposals).clamp(min=0)
            leftover = leftover.where(leftover.sum(-1, keepdim=True) > 0, rows[:-1])
            written = torch.cat([leftover.where(refused[:, None], rows[:-1]), rows[-1:]])
        drawn = state.draws.draw(written, "replacement", torch.cat([wanted, add_bonus]))  # [m + 1]
        if self.rules.bonus == "slim":
            region = self.gate.classify(look.behind, drawn[-1:], state.draws)
            add_bonus = add_bonus & ((region == KEEP) | (region == JUDGE))
            if self.rules.bonus_min_prob > 0:
                add_bonus = add_bonus & (rows[-1:].gather(1, drawn[-1:, None])[:, 0] >= self.rules.bonus_min_prob)
        chosen, told = self._read(look, regions, drawn, [add_bonus.long(), refused.long()])
        look.refused = [bool(one) for one in told[1:]]
        look.bonus = chosen[m] if told[0] else None

    def _refused(self, look: Look, state: State, judged: Tensor, proposals: Tensor) -> Tensor:
        """Which places [m] of those to be judged it refuses; the first one only, where that ends the round.

        With `after_escalation: slim` a refusal may be of no account, since another verifier rules on that place, and
        what is behind it must have its own coin.
        """
        assert look.rows is not None
        at, m = look.tokens[:, None], judged.shape[0]
        # one that is not judged passes the coin for certain
        accept = look.rows[:-1].gather(1, at)[:, 0].where(judged, 1)
        drafted = proposals.gather(1, at)[:, 0].where(judged, 0)
        if self.rules.after_escalation == "target":
            return torch.arange(m, device=judged.device) == state.draws.accepted_prefix(accept, drafted)
        coins = [state.draws.accepted_prefix(accept[i : i + 1], drafted[i : i + 1]) for i in range(m)]
        return torch.stack(coins) == 0

    def _choose(self, look: Look, state: State, regions: Tensor, forced_at: int) -> None:
        """The same at temperature 0, where what is drawn is the first choice, with probability 1."""
        drawn, of_bonus = look.logits.argmax(-1), regions[:0]
        if self.rules.bonus == "slim":
            of_bonus = self.gate.classify(look.behind, drawn[-1:], state.draws)
        chosen, bonus_region = self._read(look, regions, drawn, [of_bonus])
        look.refused = [ours != theirs for ours, theirs in zip(look.writes, look.drafted, strict=True)]
        if self.rules.after_escalation == "target":
            reaches_end = ESCALATE not in look.regions and look.end <= forced_at
        else:
            reaches_end = look.regions[-1] != ESCALATE
        look.bonus = chosen[-1] if reaches_end and bonus_region in ([KEEP], [JUDGE]) else None

    def _read(self, look: Look, regions: Tensor, drawn: Tensor, more: list[Tensor]) -> tuple[list[int], list[int]]:
        """The host read of a look: its tokens [m + 1], and what else is told."""
        m = regions.shape[0]
        promises = []
        if self.rules.calls is not None:
            promises = [bins(look.logits[:-1], look.tokens), bins(look.logits, drawn)]
        host: list[int] = torch.cat([look.tokens, regions, drawn, *promises, *more]).tolist()
        look.drafted, look.regions, chosen, rest = host[:m], host[m : 2 * m], host[2 * m : 3 * m + 1], host[3 * m + 1 :]
        look.writes = chosen[:m]
        count = 2 * m + 1 if promises else 0
        look.promises = rest[:count]
        return chosen, rest[count:]

    def _used(self, look: Look, regions: Tensor, forced_at: int) -> tuple[Tensor, Tensor]:
        """Which positions [m] it may decide yet, and whether [1] it may reach the end of the draft."""
        if self.rules.after_escalation == "slim":
            return torch.ones_like(regions, dtype=torch.bool), regions[-1:] != ESCALATE
        still = (regions == ESCALATE).cumsum(0) == 0  # what comes behind is for a stronger one
        still &= torch.arange(look.first, look.end, device=regions.device) < forced_at
        return still, still[-1:]

    def escalated(self, look: Look, proposals: Tensor, places: slice) -> Tensor:
        """The laws `proposals` [k, V] of drafted tokens at these places, given that this verifier escalates them."""
        at = slice(places.start - look.first, places.stop - look.first)
        draft = look.evidence.draft
        evidence = Evidence(
            look.evidence.slim[at], None if draft is None else draft[at], look.evidence.pending + at.start
        )
        rows = proposals * self.gate.shares(evidence)[ESCALATE]
        total = rows.sum(-1, keepdim=True)  # 0 where no token is escalated
        return (rows / total).where(total > 0, proposals)

    def law(self, look: Look, place: int) -> Tensor:
        """m [V]: the law of the token at a place, given that this verifier decided it (DESIGN, mode exact).

        Behind the draft: the slim row restricted to the tokens that pass the test of a bonus.
        """
        assert look.rows is not None and look.proposals is not None
        slim = look.rows[place - look.first]
        if place == look.end:
            shares = self.gate.shares(look.behind)[:, 0]  # [4, V]
            law = slim * (shares[KEEP] + shares[JUDGE]) * (slim >= self.rules.bonus_min_prob)
        else:
            shares = self.gate.shares(look.evidence.at(place - look.first))[:, 0]
            draft = look.proposals[place - look.first]
            law = draft * shares[KEEP] + (draft * (shares[REWRITE] + shares[JUDGE])).sum() * slim
        return law / law.sum()
