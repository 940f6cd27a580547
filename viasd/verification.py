"""Verifiers: a row rule by one reader, and the hierarchical verifier of VIA-SD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from viasd.decode import Draft, Part, Readers, RowReader, Source, State, Tier, Verdict, Verifier
from viasd.routing import ESCALATE, KEEP, REWRITE, Gate
from viasd.rules import Lossless, RowRule, RuleRows, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.spec import spec


@runtime_checkable
class VerifierSpec(Protocol):
    """Configuration of a verifier: `roles` of the pair it needs, `open_verifier` makes it."""

    @property
    def roles(self) -> frozenset[str]: ...
    @property
    def lossless(self) -> bool: ...
    def open_verifier(self, readers: Readers) -> Verifier: ...


@spec
class SlimView:
    """The slim verifier: the target without some layers, and whose keys and values it reads.

    `mask`: `auto` (searched mask of this model and ratio, else even), `even`, `random` (by `seed`), a mask file, or the
    list of kept layers. `cache`: `shared` reads the target's keys and values where the target has read; `separate`
    keeps its own. `keep_ends`: the first and the last layer are never skipped.
    """

    mask: str | list[int] = "auto"
    skip_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.45
    keep_ends: bool = True
    seed: int = 0
    cache: Literal["shared", "separate"] = "shared"

    def open_reader(self, readers: Readers) -> RowReader:
        if isinstance(self.mask, str):
            raise AssertionError(f"mask {self.mask!r} was not resolved to layers before opening")
        return readers.slim(self.mask, self.cache)


@spec
class RuleVerifier:
    """One reader judges by a row rule. `reader`: `target`, or `slim` with the view to use."""

    reader: Literal["target", "slim"] = "target"
    rule: RowRule = Field(default_factory=Lossless)
    slim: SlimView | None = None

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return self.reader == "target" and self.rule.lossless

    def open_verifier(self, readers: Readers) -> Verifier:
        if self.reader == "target":
            return RuleJudge(readers.get("target"), self.rule, "target")
        if self.slim is None:
            raise ValueError("verifier.slim=null: reader=slim needs the view to use (mask, skip_ratio, cache)")
        return RuleJudge(self.slim.open_reader(readers), self.rule, "slim")


class RuleJudge(Part):
    """Judges a chain with one forward over the unread tokens and the draft."""

    def __init__(self, reader: RowReader, rule: RowRule, tier: Literal["slim", "target"]) -> None:
        self.reader, self.rule, self.tier = reader, rule, tier

    def judge(self, state: State, draft: Draft) -> Verdict:
        n = draft.length
        unaudited = _unaudited(state, self.reader) if self.tier == "target" else 0
        logits = self.reader.feed(state.ids, state.length + n, last=n + 1 + unaudited)
        accepted, tokens, laws = self._ruling(state, draft, logits[unaudited:])
        return Verdict(
            tokens=tokens,
            sources=[self.tier] * len(tokens),
            kept=accepted,
            tiers=[self.tier] * min(accepted + 1, n),
            target_ruled=len(tokens) if self.tier == "target" else None,
            laws=laws,
            audits=_audit(state, logits[:unaudited]) if unaudited else None,
        )

    def _ruling(self, state: State, draft: Draft, logits: Tensor) -> tuple[int, list[int], list[float] | None]:
        """How many drafted tokens are kept, the tokens to commit, and their laws. The round's only host read."""
        n = draft.length
        if self.rule.lossless and state.greedy:
            host = torch.cat([logits.argmax(-1), draft.tokens]).tolist()
            accepted, last = judge_greedy(host[: n + 1], host[n + 1 :])
            tokens = [*host[n + 1 : n + 1 + accepted], last]
            return accepted, tokens, [1.0] * len(tokens) if state.detail else None
        rows = process(logits, state.decode.sampling)  # [n + 1, V]
        verdict = judge_chain(draft.tokens, draft.rows, self.rule.rows(rows, draft.rows), state.draws)
        accepted, last, *drafted = torch.cat([verdict.accepted[None], verdict.token[None], draft.tokens]).tolist()
        tokens = [*drafted[:accepted], last]
        return accepted, tokens, _probabilities(rows, tokens) if state.detail else None


def _probabilities(rows: Tensor, tokens: list[int]) -> list[float]:
    """rows[i, tokens[i]] for the first len(tokens) rows."""
    at = torch.tensor(tokens, dtype=torch.long, device=rows.device)[:, None]
    return rows[: len(tokens)].gather(1, at)[:, 0].tolist()


def _unaudited(state: State, target: RowReader) -> int:
    """Committed tokens whose target row was never computed; their rows come free with the target's next call."""
    return state.length - 1 - target.read if state.detail else 0


def _audit(state: State, logits: Tensor) -> list[float]:
    """What the target says of the last committed tokens, from its logits [k, V] at their positions."""
    count = logits.shape[0]
    targets = _probabilities(process(logits, state.decode.sampling), state.output[-count:])
    return [_agreement(target, law) for target, law in zip(targets, state.laws[-count:], strict=True)]


def _agreement(target: float, law: float) -> float:
    """min(1, target / law): 1 - its mean estimates the distance of the law that wrote the tokens from the target."""
    return min(1.0, target / law) if law > 0 else 1.0


# --- the hierarchical verifier ------------------------------------------------------------------------------------


@spec
class Hierarchical:
    """VIA-SD's verifier in lossy mode: the slim verifier keeps, rewrites or escalates each drafted token.

    `after_escalation`: who judges the rest of a draft once the target ran, `target` or, as in the paper, `slim`.
    `after_equal_rewrite`: whether a rewrite equal to the drafted token ends the round (`stop`, the paper) or not.
    `bonus`: a token drawn by the slim verifier behind a fully kept draft, tested by the gate and against
    `bonus_min_prob` (slim probability), or `none`. `target_bonus`: the target's bonus when it kept the last token.
    `max_pending`: the position that would leave more tokens unread by the target is forced to it (null: never).
    """

    gate: Gate
    slim: SlimView = Field(default_factory=SlimView)
    mode: Literal["lossy"] = "lossy"
    after_escalation: Literal["target", "slim"] = "target"
    after_equal_rewrite: Literal["continue", "stop"] = "continue"
    bonus: Literal["slim", "none"] = "slim"
    bonus_min_prob: Annotated[float, Field(ge=0, le=1)] = 0.0
    target_bonus: bool = True
    max_pending: Annotated[int, Field(ge=1)] | None = 64

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return False

    def open_verifier(self, readers: Readers) -> Verifier:
        return HierarchicalJudge(self, readers.get("target"), self.slim.open_reader(readers))


@dataclass
class _Slim:
    """What the slim verifier said of a draft: logits and processed rows [n + 1, V]; host values per position.

    Without `detail` nobody looks at the rows of temperature 0, and they are not made.
    """

    logits: Tensor
    rows: Tensor | None
    drafted: list[int]
    regions: list[int]
    rewrites: list[int]
    bonus: int | None


@dataclass
class _Ruling:
    """A verdict in the making."""

    tokens: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    laws: list[float] = field(default_factory=list)
    regions: list[int] = field(default_factory=lambda: [0, 0, 0])
    kept: int = 0
    ended: bool = False
    escalation: Literal["gate", "forced"] | None = None
    target_rows: Tensor | None = None  # [n + 1, V] once the target ran: processed, or at temperature 0 its logits
    audits: list[float] | None = None

    def write(self, token: int, source: Source, law: float) -> None:
        self.tokens.append(token)
        self.sources.append(source)
        self.laws.append(law)

    def rule(self, token: int, drafted: int, tier: Tier, law: float) -> None:
        """Rule on the next drafted token; a different token ends the round."""
        self.write(token, tier, law)
        self.tiers.append(tier)
        self.kept += token == drafted
        self.ended = token != drafted


class HierarchicalJudge(Part):
    """One slim forward per draft; the target runs at most once, where a position is escalated or forced."""

    def __init__(self, config: Hierarchical, target: RowReader, slim: RowReader) -> None:
        self.config, self.target, self.slim = config, target, slim
        self._alone = RuleJudge(target, Lossless(), "target")

    def judge(self, state: State, draft: Draft) -> Verdict:
        n, config = draft.length, self.config
        if n == 0:  # nothing to route
            return self._alone.judge(state, draft)
        forced_at = n if config.max_pending is None else max(0, config.max_pending - state.pending)
        # A position forced before anything was looked at needs no slim row unless the slim verifier judges after it.
        skip_slim = forced_at == 0 and config.after_escalation == "target"
        slim = None if skip_slim else self._consult(state, draft, forced_at)
        drafted = draft.tokens.tolist() if slim is None else slim.drafted
        ruling = _Ruling()
        while len(ruling.tokens) < n and not ruling.ended:
            i = len(ruling.tokens)
            if slim is None or (ruling.target_rows is None and i >= forced_at):
                self._target_rules(state, draft, drafted, ruling, None)
                continue
            ruling.regions[slim.regions[i]] += 1
            if slim.regions[i] == ESCALATE:
                self._target_rules(state, draft, drafted, ruling, slim)
            else:
                self._slim_rules(state, draft, drafted[i], ruling, slim)
        if not ruling.ended and ruling.tiers[-1] != "target" and slim is not None:
            self._add_slim_bonus(state, slim, ruling, n)
        return self._verdict(state, ruling)

    def _consult(self, state: State, draft: Draft, forced_at: int) -> _Slim:
        """Run the slim verifier over the draft and read on the host all that it decides (the round's first read)."""
        n, config = draft.length, self.config
        logits = self.slim.feed(state.ids, state.length + n, last=n + 1)
        regions = config.gate.classify(logits[:n], draft.tokens, state.draws)
        if state.greedy:
            return self._first_choices(state, draft, forced_at, logits, regions)
        rows = process(logits, state.decode.sampling)
        wanted, add_bonus = regions == REWRITE, regions[-1:] != ESCALATE
        if config.after_escalation == "target":  # the target judges everything behind the first escalation
            still_slim = (regions == ESCALATE).cumsum(0) == 0
            still_slim &= torch.arange(n, device=logits.device) < forced_at
            wanted, add_bonus = wanted & still_slim, still_slim[-1:]
        add_bonus = add_bonus & (config.bonus == "slim")
        drawn = state.draws.draw(rows, "replacement", torch.cat([wanted, add_bonus]))  # [n + 1]
        if config.bonus == "slim":
            bonus = drawn[n:]
            add_bonus = add_bonus & (config.gate.classify(logits[n:], bonus, state.draws) == KEEP)
            if config.bonus_min_prob > 0:
                add_bonus = add_bonus & (rows[n:].gather(1, bonus[:, None])[:, 0] >= config.bonus_min_prob)
        host = torch.cat([draft.tokens, regions, drawn, add_bonus.long()]).tolist()
        drafted, host = host[:n], host[n:]
        return _Slim(logits, rows, drafted, host[:n], host[n : 2 * n], host[2 * n] if host[-1] else None)

    def _first_choices(self, state: State, draft: Draft, forced_at: int, logits: Tensor, regions: Tensor) -> _Slim:
        """`_consult` at temperature 0, where what is drawn is the first choice, with probability 1."""
        n, config = draft.length, self.config
        drawn = logits.argmax(-1)  # [n + 1]
        of_bonus = config.gate.classify(logits[n:], drawn[n:], state.draws) if config.bonus == "slim" else regions[:0]
        host = torch.cat([draft.tokens, drawn, regions, of_bonus]).tolist()
        drafted, chosen, region, bonus_region = (
            host[:n],
            host[n : 2 * n + 1],
            host[2 * n + 1 : 3 * n + 1],
            host[3 * n + 1 :],
        )
        if config.after_escalation == "target":
            ends_slim = ESCALATE not in region and n <= forced_at
        else:
            ends_slim = region[-1] != ESCALATE
        rows = process(logits, state.decode.sampling) if state.detail else None
        bonus = chosen[n] if ends_slim and bonus_region == [KEEP] else None
        return _Slim(logits, rows, drafted, region, chosen[:n], bonus)

    def _slim_rules(self, state: State, draft: Draft, drafted: int, ruling: _Ruling, slim: _Slim) -> None:
        """The slim verifier keeps or rewrites the next drafted token."""
        i = len(ruling.tokens)
        rewrites = slim.regions[i] == REWRITE
        token = slim.rewrites[i] if rewrites else drafted
        law = self._law(slim, draft, i, token) if state.detail else 0.0
        ruling.rule(token, drafted, "slim" if rewrites else "draft", law)
        ruling.ended |= rewrites and self.config.after_equal_rewrite == "stop"

    def _law(self, slim: _Slim, draft: Draft, i: int, token: int) -> float:
        """m(token): its probability given that the position was not left to the target (DESIGN, mode exact)."""
        keep, rewrite, _ = self.config.gate.shares(slim.logits[i : i + 1])[:, 0]  # [V] each
        assert slim.rows is not None
        row = draft.rows[i]
        written = row[token] * keep[token] + (row * rewrite).sum() * slim.rows[i, token]
        return float(written / (row * (keep + rewrite)).sum())

    def _target_rules(
        self, state: State, draft: Draft, drafted: list[int], ruling: _Ruling, slim: _Slim | None
    ) -> None:
        """The target judges from the next drafted token on; `slim` is given where its gate escalated that token."""
        n, i = draft.length, len(ruling.tokens)
        if ruling.target_rows is None:
            ruling.escalation = "forced" if slim is None else "gate"
            ruling.target_rows = self._run_target(state, n, ruling)
        until = n if self.config.after_escalation == "target" else i + 1
        bonus = until == n and self.config.target_bonus
        accepted, last = self._target_chain(state, draft, drafted, ruling.target_rows, slim, range(i, until), bonus)
        written = drafted[i : i + accepted]
        if accepted < until - i or bonus:
            written = [*written, last]
        laws = _probabilities(ruling.target_rows[i:], written) if state.detail else [0.0] * len(written)
        for token, was, law in zip(written, drafted[i:until], laws, strict=False):
            ruling.rule(token, was, "target", law)
        if len(written) > until - i:
            ruling.write(last, "target", laws[-1])
        ruling.ended = accepted < until - i

    def _target_chain(
        self,
        state: State,
        draft: Draft,
        drafted: list[int],
        target: Tensor,
        slim: _Slim | None,
        places: range,
        bonus: bool,
    ) -> tuple[int, int]:
        """How many of the drafted tokens at these places the target keeps, and its token behind them."""
        i, until = places.start, places.stop
        rows = target[i : until + 1]
        if state.greedy:
            return judge_greedy(rows.argmax(-1).tolist(), drafted[i:until])
        proposals = draft.rows[i:until]
        if slim is not None:
            # The token came here because it was escalated: its proposal is the draft row given that, P(escalate | v).
            escalated = proposals[:1] * self.config.gate.shares(slim.logits[i : i + 1])[ESCALATE]  # [1, V]
            proposals = torch.cat([escalated / escalated.sum(), proposals[1:]])
        rule = RuleRows(reject=rows[:-1], residual=rows[:-1], bonus=rows[-1])
        verdict = judge_chain(draft.tokens[i:until], proposals, rule, state.draws, bonus)
        accepted, last = torch.stack([verdict.accepted, verdict.token]).tolist()  # the round's second read
        return accepted, last

    def _run_target(self, state: State, n: int, ruling: _Ruling) -> Tensor:
        """Target rows [n + 1, V] of the draft; with detail, also what it says of tokens it had not read."""
        unaudited = _unaudited(state, self.target)
        logits = self.target.feed(state.ids, state.length + n, last=n + 1 + unaudited)
        if unaudited:
            ruling.audits = _audit(state, logits[:unaudited])
        needs_rows = state.detail or not state.greedy
        return process(logits[unaudited:], state.decode.sampling) if needs_rows else logits[unaudited:]

    def _add_slim_bonus(self, state: State, slim: _Slim, ruling: _Ruling, n: int) -> None:
        """The slim verifier's bonus behind a fully kept draft whose last token it ruled on."""
        window_full = (
            ruling.target_rows is None
            and self.config.max_pending is not None
            and state.pending + n >= self.config.max_pending
        )
        if slim.bonus is None or window_full:
            return
        law = 0.0
        if state.detail:
            assert slim.rows is not None
            row = slim.rows[n] * self.config.gate.shares(slim.logits[n:])[KEEP][0]  # [V]
            row = row * (slim.rows[n] >= self.config.bonus_min_prob)
            law = float(row[slim.bonus] / row.sum())
        ruling.write(slim.bonus, "slim", law)

    def _verdict(self, state: State, ruling: _Ruling) -> Verdict:
        ruled, audits = None, ruling.audits
        if ruling.target_rows is not None:  # it read the draft, so the kept tokens, and may have written the next one
            wrote_next = ruling.sources[ruling.kept : ruling.kept + 1] == ["target"]
            ruled = ruling.kept + wrote_next
            if state.detail:
                seen = ruling.tokens[: ruling.kept + 1]  # rows behind a replaced token belong to another text
                targets = _probabilities(ruling.target_rows, seen)
                audits = (audits or []) + [
                    _agreement(target, law)
                    for target, law, source in zip(targets, ruling.laws, ruling.sources, strict=False)
                    if source != "target"
                ]
        keep, rewrite, escalate = ruling.regions
        return Verdict(
            tokens=ruling.tokens,
            sources=ruling.sources,
            kept=ruling.kept,
            tiers=ruling.tiers,
            target_ruled=ruled,
            escalation=ruling.escalation,
            regions=(keep, rewrite, escalate),
            laws=ruling.laws if state.detail else None,
            audits=audits,
        )
