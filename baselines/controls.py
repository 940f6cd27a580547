"""Controls: verifiers that show what a method's speed and rejection rate are worth without its judgment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from viasd.decode import Draft, Part, Readers, State, Verdict, Verifier
from viasd.rules import Lossless
from viasd.spec import spec
from viasd.verification import Intermediate, RuleJudge, SlimView


@spec
class Unverified:
    """draft_only: every drafted block is output unread by the target."""

    @property
    def roles(self) -> frozenset[str]:
        return frozenset()

    @property
    def lossless(self) -> bool:
        return False

    def open_verifier(self, readers: Readers) -> Verifier:
        return _Unverified()


class _Unverified(Part):
    def judge(self, state: State, draft: Draft) -> Verdict:
        tokens = draft.tokens.tolist()
        if not tokens:
            raise ValueError("stop.length=0: draft_only outputs drafted tokens, so a block needs at least one")
        laws = draft.rows.gather(1, draft.tokens[:, None])[:, 0].tolist() if state.detail else None
        return Verdict(
            tokens=tokens, sources=["draft"] * len(tokens), kept=len(tokens), unjudged=len(tokens), laws=laws
        )


@spec
class CoinMix:
    """coin_mix: with probability `p` a round of speculative decoding, else a block that the target reads later.

    The curve over p is the free frontier: what speed costs in fidelity when no judgment is used at all.
    """

    p: Annotated[float, Field(ge=0, le=1)]

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return self.p == 1

    def open_verifier(self, readers: Readers) -> Verifier:
        return _Coin(self.p, RuleJudge(readers.get("target"), Lossless(), "target"), _Unverified())


@spec
class CoinSlim:
    """coin_slim: with probability `p` a round of speculative decoding, else one that the slim verifier judges alone.

    The curve over p is what a gate has to beat (DESIGN section 4): it has the same slim verifier and no judgment.
    """

    p: Annotated[float, Field(ge=0, le=1)]
    slim: Intermediate = Field(default_factory=SlimView)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"}) | self.slim.roles

    @property
    def lossless(self) -> bool:
        return self.p == 1

    def open_verifier(self, readers: Readers) -> Verifier:
        target = RuleJudge(readers.get("target"), Lossless(), "target")
        return _Coin(self.p, target, RuleJudge(self.slim.open_reader(readers), Lossless(), "slim"))


class _Coin(Part):
    """A coin per round: the target's judge with probability p, else the other."""

    def __init__(self, p: float, target: Verifier, other: Verifier) -> None:
        self._p, self._target, self._other = p, target, other

    def judge(self, state: State, draft: Draft) -> Verdict:
        return (self._target if state.draws.coin(self._p) else self._other).judge(state, draft)
