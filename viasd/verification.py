"""Verifiers by a row rule, and the models that stand between draft model and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from viasd.decode import Draft, Part, Readers, RowReader, State, Verdict, Verifier
from viasd.models import Branches
from viasd.rules import Lossless, RowPairs, RowRule, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.spec import spec
from viasd.taps import Taps


@runtime_checkable
class VerifierSpec(Protocol):
    """Configuration of a verifier: `roles` of the pair it needs, `open_verifier` makes it."""

    @property
    def roles(self) -> frozenset[str]: ...
    @property
    def lossless(self) -> bool: ...
    def open_verifier(self, readers: Readers) -> Verifier: ...


@runtime_checkable
class Intermediate(Protocol):
    """Configuration of a model between draft model and target: a slim view, or a model of its own.

    `open_reader` makes its reader under a role; `stronger` is the reader of the next stronger one, None: the target's.
    """

    @property
    def roles(self) -> frozenset[str]: ...
    def open_reader(self, readers: Readers, role: str = "slim", stronger: RowReader | None = None) -> RowReader: ...


@spec
class SlimView:
    """The slim verifier: the target without some layers, and whose keys and values it reads.

    `mask`: `auto` (searched mask of this model and ratio, else even), `even`, `random` (by `seed`), `early_exit` (the
    first layers are kept, then norm and head), a mask file, the list of kept layers, or the kept attention and mlp
    branches (`Branches`). `cache`: `shared` reads the target's keys and values where the target has read; `separate`
    keeps its own. `keep_ends`: the first and the last layer are never skipped (early_exit always skips the last one).
    """

    mask: str | list[int] | Branches = "auto"
    skip_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.45
    keep_ends: bool = True
    seed: int = 0
    cache: Literal["shared", "separate"] = "shared"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    def open_reader(self, readers: Readers, role: str = "slim", stronger: RowReader | None = None) -> RowReader:
        if isinstance(self.mask, str):
            raise AssertionError(f"mask {self.mask!r} was not resolved to layers before opening")
        return readers.slim(self.mask, self.cache, role, stronger)


@spec
class PairModel:
    """An independent model of the pair as intermediate, on a cache of its own."""

    role: Annotated[str, Field(min_length=1)] = "mid"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    def open_reader(self, readers: Readers, role: str = "slim", stronger: RowReader | None = None) -> RowReader:
        return readers.get(self.role, role)


@spec
class RuleVerifier:
    """One reader judges by a row rule. `reader`: `target`, or `slim` with the view to use."""

    reader: Literal["target", "slim"] = "target"
    rule: RowRule = Field(default_factory=Lossless)
    slim: Intermediate | None = None

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"}) if self.reader == "target" or self.slim is None else self.slim.roles

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
        unaudited = unaudited_tokens(state, self.reader) if self.tier == "target" and state.detail else 0
        logits = self.reader.feed(state.ids, state.length + n, last=n + 1 + unaudited)
        kept, tokens, laws = self._ruling(state, draft, logits[unaudited:])
        return Verdict(
            tokens=tokens,
            sources=[self.tier] * len(tokens),
            kept=kept,
            tiers=[self.tier] * min(len(tokens), n),
            target_ruled=len(tokens) if self.tier == "target" else None,
            laws=laws,
            audits=audit(state, logits[:unaudited]) if unaudited else None,
            taps=taps_before(self.reader, state.length + kept),
        )

    def _ruling(self, state: State, draft: Draft, logits: Tensor) -> tuple[int, list[int], list[float] | None]:
        """How many drafted tokens are kept, the tokens to commit, and their laws. The round's only host read.

        A rule whose replacement is not drawn from a residual may draw the drafted token again, which is kept then.
        """
        n = draft.length
        if self.rule.lossless and state.greedy:
            host = torch.cat([logits.argmax(-1), draft.tokens]).tolist()
            accepted, last = judge_greedy(host[: n + 1], host[n + 1 :])
            tokens = [*host[n + 1 : n + 1 + accepted], last]
            return accepted, tokens, [1.0] * len(tokens) if state.detail else None
        rows = process(logits, state.decode.sampling)  # [n + 1, V]
        drafts = (draft.rows, draft.logits) if n else (rows[:0], logits[:0])
        rule = self.rule.rows(RowPairs(draft.tokens, rows, drafts[0], logits, drafts[1], state.decode.sampling))
        verdict = judge_chain(draft.tokens, draft.rows, rule, state.draws)
        accepted, last, *drafted = torch.cat([verdict.accepted[None], verdict.token[None], draft.tokens]).tolist()
        tokens = [*drafted[:accepted], last]
        accepted += drafted[accepted : accepted + 1] == [last]
        return accepted, tokens, probabilities(rule.laws, tokens) if state.detail else None


def read_draft(reader: RowReader, state: State, draft: Draft, last: int) -> Tensor:
    """Raw logits [last, V] of a draft's places and the one behind it, the last ones of them and of what was unread.

    For a draft whose last token is `beside` there is no row behind: a copy of the one before stands there.
    """
    stop = state.length + draft.length
    if not draft.beside:
        return reader.feed(state.ids, stop, last)
    logits = reader.feed(state.ids, stop - 1, last - 1)
    return torch.cat((logits, logits[-1:]))


def taps_before(reader: RowReader, stop: int) -> Taps | None:
    """What a reader's last call computed of the tokens at positions below `stop`; None where it is not tapped."""
    return None if reader.tapped is None else reader.tapped.before(stop)


def probabilities(rows: Tensor, tokens: Sequence[int]) -> list[float]:
    """rows[i, tokens[i]] for the first len(tokens) rows, on the host."""
    at = torch.tensor(list(tokens), dtype=torch.long, device=rows.device)[:, None]
    return rows[: len(tokens)].gather(1, at)[:, 0].tolist()


def unaudited_tokens(state: State, target: RowReader) -> int:
    """Committed tokens whose target row was never computed; their rows come free with the target's next call."""
    return state.length - 1 - target.read


def audit(state: State, logits: Tensor) -> list[float]:
    """min(1, target / law) of the last committed tokens, from the target's logits [k, V] at their positions."""
    count = logits.shape[0]
    if state.greedy and not state.detail:  # all laws are 1
        said = zip(logits.argmax(-1).tolist(), state.output[-count:], strict=True)
        return [float(ours == theirs) for ours, theirs in said]
    targets = probabilities(process(logits, state.decode.sampling), state.output[-count:])
    return [agreement(target, law) for target, law in zip(targets, state.laws[-count:], strict=True)]


def agreement(target: float, law: float) -> float:
    """min(1, target / law): 1 - its mean estimates the distance of the law that wrote the tokens from the target."""
    return min(1.0, target / law) if law > 0 else 1.0
