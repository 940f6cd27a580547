"""BiLD, the Big Little Decoder (2302.07863): a small model writes until it is unsure, a large one takes back errors.

After the released code (kssteven418/BigLittleDecoder), greedy and for one sequence. A round here is one stay of the
small model, followed by the pass of the large one that reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from viasd.decode import Draft, Part, Readers, RowReader, Source, State, StopRule, Tier, Verdict, Verifier
from viasd.sampling import Sampling, process
from viasd.spec import spec
from viasd.verification import taps_before


@spec
class FallBack:
    """The small model writes up to `length` tokens, and falls back to the large one where it is unsure.

    It is unsure where its largest probability (of processed rows, at temperature 0 of raw ones) is below `confidence`,
    the paper's alpha_FB; that token is dropped, and the large model writes in its place. Without a small token before:
    at the start of a text, and after a token was taken back. Nothing is drafted behind an end mark; the step that would
    be is run and dropped (ours, one draft step per text: a block ends by a token that trips). Defaults: the code's.
    """

    length: Annotated[int, Field(ge=1, le=64)] = 10
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.6

    def open_stop(self) -> StopRule:
        return _FallBack(self)


class _FallBack(Part):
    keep = False
    row_alone = True  # and whether the token before it ended the text

    def __init__(self, config: FallBack) -> None:
        self.config = config
        self.trip = self
        self._large_is_next = True
        self._eos: Tensor | None = None
        self._after_eos: Tensor | None = None

    def begin(self, state: State) -> None:
        self._large_is_next = True
        ids = sorted(state.decode.eos_ids)
        self._eos = torch.tensor(ids, device=state.ids.device) if ids else None

    def limit(self, state: State) -> int:
        return 0 if self._large_is_next else self.config.length

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        rows = logits.softmax(-1) if sampling.temperature == 0 else process(logits, sampling)
        unsure = rows.amax(-1) < self.config.confidence
        if self._eos is None:
            return unsure
        ends = torch.isin(tokens, self._eos)
        before = torch.zeros_like(ends[:1]) if place == 0 or self._after_eos is None else self._after_eos
        self._after_eos = ends[-1:]
        return unsure | torch.cat([before, ends[:-1]])

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        self._large_is_next = verdict.kept < len(verdict.tiers)


@spec
class RollBack:
    """The large model reads what the small one wrote, keeps it or takes it back from one token on, and writes one.

    Its loss at a token is -log of its own raw probability, in nats; those above `loss` (the paper's alpha_RB) are
    suspect. `examine: first_above` (the released rule) looks at the first of them alone: where its argmax is that
    token, everything is kept, worse ones behind it too. `first_mismatch` (ours) takes the first suspect that is not its
    argmax, so that `loss` 0 with `check_tail` is the large model's greedy text. A text that the small model ends with
    an end mark is output without the large one having read its last block (the released code); `check_tail` reads it
    (ours). What reaches the length limit is read. The law is known at temperature 0 alone. Default `loss`: the code's,
    which calls 2 to 5 good.
    """

    loss: Annotated[float, Field(ge=0)] = 5.0
    examine: Literal["first_above", "first_mismatch"] = "first_above"
    check_tail: bool = False

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return False

    def check(self, sampling: Sampling) -> None:
        """Raises ValueError above temperature 0."""
        if sampling.temperature > 0:
            raise ValueError(
                f"decode.temperature={sampling.temperature:g}: BiLD has no published rule for sampling; accepted: "
                "temperature 0 (decode=greedy), or above it the cascade rule cascade_bild"
            )

    def open_verifier(self, readers: Readers) -> Verifier:
        return _RollBack(self, readers.get("target"))


class _RollBack(Part):
    def __init__(self, config: RollBack, reader: RowReader) -> None:
        self.config, self.reader = config, reader

    def begin(self, state: State) -> None:
        self.config.check(state.decode.sampling)

    def judge(self, state: State, draft: Draft) -> Verdict:
        if tail := self._unread_tail(state, draft):
            source: Source = "draft"
            return Verdict(
                tokens=tail,
                sources=[source] * len(tail),
                kept=len(tail),
                unjudged=len(tail),
                laws=[1.0] * len(tail) if state.detail else None,
            )
        n = draft.length
        logits = self.reader.feed(state.ids, state.length + n, last=n + 1)
        losses = -logits[:-1].log_softmax(-1).gather(1, draft.tokens[:, None])[:, 0]
        host = torch.cat([losses.double(), logits.argmax(-1).double(), draft.tokens.double()]).tolist()
        choices, drafted = ([int(token) for token in part] for part in (host[n : 2 * n + 1], host[2 * n + 1 :]))
        kept = self._kept(host[:n], choices, drafted)
        tokens = [*drafted[:kept], choices[kept]]
        tier: Tier = "target"
        return Verdict(
            tokens=tokens,
            sources=[tier] * len(tokens),
            kept=kept,
            tiers=[tier] * min(kept + 1, n),
            target_ruled=len(tokens),
            laws=[1.0] * len(tokens) if state.detail else None,
            taps=taps_before(self.reader, state.length + kept),
        )

    def _unread_tail(self, state: State, draft: Draft) -> list[int]:
        """The drafted tokens up to an end mark, where they end the text unread."""
        if self.config.check_tail or not state.decode.eos_ids:
            return []
        drafted = draft.tokens.tolist()
        end = next((place for place, token in enumerate(drafted, 1) if token in state.decode.eos_ids), 0)
        return drafted[:end]

    def _kept(self, losses: Sequence[float], choices: Sequence[int], drafted: Sequence[int]) -> int:
        """How many of the drafted tokens stay; all, unless one is taken back."""
        suspects = [place for place, loss in enumerate(losses) if loss > self.config.loss]
        if self.config.examine == "first_above":
            suspects = suspects[:1]
        return next((place for place in suspects if choices[place] != drafted[place]), len(drafted))
