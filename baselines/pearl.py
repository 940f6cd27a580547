"""PEARL, run serially: the draft model writes the next block while the target verifies the one before."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from viasd.blocks import TripTest
from viasd.decode import Draft, Drafter, Part, Readers, RowReader, State, StopRule, Verdict, Verifier
from viasd.drafting import FixedLength
from viasd.rules import RuleRows, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.spec import spec
from viasd.verification import probabilities, taps_before

LONGEST = 64


@spec
class PearlDrafter:
    """PEARL's draft model (Liu et al., 2408.11850): it does not wait for the verdict on its block (post-verify).

    While the target reads the rest of the block before, a new one is written behind it; when all of that rest is kept,
    the new block's rest is what is held for the next round, and when not, it is thrown away. Each round is proposed
    here before it is judged, as the one device that there is can only do one after the other: tokens, calls and counts
    are those of the parallel method, seconds are not. `limit` bounds the new tokens of a round; those that are held
    were bounded when they were drafted. Nothing is drafted beyond the length limit of the text.
    """

    role: Annotated[str, Field(min_length=1)] = "draft"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    def open_drafter(self, readers: Readers) -> Drafter:
        return AheadDrafter(readers.get(self.role))


class AheadDrafter(Part):
    """Holds what is drafted and not yet ruled on, with the rows it was drawn from."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self._held: Draft | None = None

    def begin(self, state: State) -> None:
        self._held = None

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        """What is held and at most `limit` new tokens behind it."""
        held = self._held
        count = 0 if held is None else held.length
        steps = min(limit, state.remaining - count)
        fresh = None
        if steps > 0:
            at, sampling = state.length + count, state.decode.sampling
            fresh = Draft.chain(*self.reader.draft_on(state.ids, at, steps, sampling, state.draws, trip))
        return chain([one for one in (held, fresh) if one is not None], state.ids, count)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        count = draft.held_after(verdict)
        self._held = None
        if count:
            assert draft.logits is not None
            self._held = Draft.chain(draft.tokens[-count:], draft.rows[-count:], draft.logits[-count:])


def chain(drafts: list[Draft], ids: Tensor, held: int) -> Draft:
    """Drafts behind each other as one, of which `held` tokens are left of the round before."""
    if not drafts:
        whole = Draft.empty(ids.device)
    else:
        logits = [one.logits for one in drafts if one.logits is not None]
        tokens, rows = ([getattr(one, name) for one in drafts] for name in ("tokens", "rows"))
        whole = Draft.chain(torch.cat(tokens), torch.cat(rows), torch.cat(logits))
    whole.held = held
    return whole


@spec
class PearlVerifier:
    """PEARL's target (2408.11850): it rules on the first token of the new block without waiting for it (pre-verify).

    It reads what is held of the block before, which gives the rows of all held tokens and of the one behind them.
    Held tokens are ruled on in turn, then the first new one, each by the lossless rule with a coin of its own (the
    public code uses the coin of the pre-verified token twice: its joint law is not the target's). There is no token
    behind a draft that is kept, for the next block is there already. What is held when the text ends was never
    verified, and is dropped. A draft that nobody wrote ahead is ruled on as a whole, without the token behind it.
    """

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return True

    def open_verifier(self, readers: Readers) -> Verifier:
        return AheadJudge(readers.get("target"))


class AheadJudge(Part):
    """Rules on the tokens of a draft that are due, with one forward that ends before the last of them."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader

    def judge(self, state: State, draft: Draft) -> Verdict:
        n = draft.due
        # Where no new token was drafted (limit 0, or dropped by a trip test) the target writes in its place.
        writes = n == (draft.held or 0)
        logits = self.reader.feed(state.ids, state.length + n - 1 + writes, last=n + writes)
        tokens, kept, laws = _rule(state, draft, logits, writes)
        return Verdict(
            tokens=tokens,
            sources=["target"] * len(tokens),
            kept=kept,
            tiers=["target"] * min(kept + 1, n),
            target_ruled=len(tokens),
            laws=laws,
            held=draft.held,
            taps=taps_before(self.reader, state.length + kept),
        )


def _rule(state: State, draft: Draft, logits: Tensor, writes: bool) -> tuple[list[int], int, list[float] | None]:
    """Tokens to commit, how many of them were drafted, and their laws. The round's only host read."""
    n = draft.due
    drafted = draft.tokens[:n]
    if state.greedy:
        host = torch.cat([logits.argmax(-1), drafted]).tolist()
        choices, texts = host[: len(host) - n], host[len(host) - n :]
        kept, token = judge_greedy([*choices, -1], texts)  # -1: there is no row behind the last one, unless `writes`
        tokens = [*texts[:kept], token] if kept < n or writes else texts
        return tokens, kept, [1.0] * len(tokens) if state.detail else None
    rows = process(logits, state.decode.sampling)  # [n + writes, V]
    rule = RuleRows(reject=rows[:n], residual=rows[:n], bonus=rows[-1])
    verdict = judge_chain(drafted, draft.rows[:n], rule, state.draws, bonus=writes)
    kept, token, *texts = torch.cat([verdict.accepted[None], verdict.token[None], drafted]).tolist()
    tokens = [*texts[:kept], token] if kept < n or writes else texts
    return tokens, kept, probabilities(rows, tokens) if state.detail else None


@spec
class CostRatio:
    """As many tokens per block as the draft model writes during one step of the target, rounded, at least 1.

    PEARL's gamma (2408.11850): drafting and verifying then take the same time, so that neither waits. `length`: null is
    from the isolated costs of one step each, calibrated before the run.
    """

    length: Annotated[int, Field(ge=1, le=LONGEST)] | None = None

    def with_costs(self, draft: float, target: float) -> CostRatio:
        """The rule with a length from the seconds of a draft step and a target step."""
        return CostRatio(length=min(LONGEST, max(1, round(target / draft))))

    def open_stop(self) -> StopRule:
        if self.length is None:
            raise AssertionError("stop.length was not calibrated before opening")
        return FixedLength(length=self.length).open_stop()
