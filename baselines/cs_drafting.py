"""CS-Drafting: a drafter that holds smaller drafters, whose drafts a draft model reviews before the target does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from baselines.ngram import Ngram, NgramModel
from viasd.blocks import DraftedBlock, TripTest, cut_block
from viasd.decode import Draft, Drafter, Memory, Part, Readers, RowReader, State, Verdict, put
from viasd.rules import RuleRows, judge_chain, judge_greedy
from viasd.sampling import process
from viasd.spec import spec

Length = Annotated[int, Field(ge=0, le=64)]


@spec
class CascadeDrafter:
    """Cascade Speculative Drafting (Chen et al., 2312.11462), vertical and horizontal; the target's review is its own.

    `models`: roles of the pair, the largest first; `ngram`: the statistical model below them (null: none). Vertical: a
    model never drafts by itself while there is a smaller drafter; it reviews what that one drafts, as the target does
    (the smallest model without `ngram` below it drafts). Horizontal: the first tokens of a block are the larger
    drafter's, the later ones, which are less often reached, the smaller one's.

    `lengths` (the paper's K, upper triangular, a row and a column per drafter): row i is of what drafter i is the
    largest in, row 0 the block that the target reviews. In it drafter j writes on until the block has
    lengths[i][i] + ... + lengths[i][j] tokens (the entries add up, as in the paper's code). A review that ends beyond
    that bound stands; the stop rule bounds the block as a whole. The default is ours, of a few that were tried on the
    embedded pair, whose draft model costs more beside its target than the paper's: there [[2, 10], [0, 10]].

    `lenience` (the paper's l, 1: none): a model that reviews keeps token x of another model iff
    coin * draft(x) < l * own(x); at temperature 0 iff x is its first choice, or draft(x) <= l * own(x) on the raw rows.
    The n-gram model's tokens are reviewed without lenience, and the target never has any by this: its output law stays
    its own, for every token comes with the law that it was drawn from, given all that stands before it. That is the
    reviewer's row where it reviews exactly, `lenient_rows` where it is lenient, certainty for an n-gram token.

    Ours: all of the sampled form (the paper's code is greedy; there lenience is applied to n-gram tokens too and reads
    rows of the last call alone); a drafter that proposes by itself stops at its bound; nothing is drafted that the
    block has no room for. Raises ValueError for lengths or models that do not fit.
    """

    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: ["draft"]
    )
    ngram: Ngram | None = Field(default_factory=Ngram)
    lengths: list[list[Length]] = Field(default_factory=lambda: [[2, 10], [0, 10]])
    lenience: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.models) + (self.ngram is not None)
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={self.models}: accepted: different roles, the largest model first")
        if [len(row) for row in self.lengths] != [count] * count:
            raise ValueError(
                f"lengths={self.lengths}: accepted: a row and a column for each of the {count} drafters "
                f"({', '.join([*self.models, 'ngram'][:count])})"
            )
        if any(any(row[:i]) for i, row in enumerate(self.lengths)):
            raise ValueError(f"lengths={self.lengths}: accepted: 0 below the diagonal (drafters are smaller downwards)")
        if self.lengths[0][0] == 0:
            raise ValueError(f"lengths={self.lengths}: accepted: lengths[0][0] of 1 or more (the largest model)")
        return self

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.models)

    def open_drafter(self, readers: Readers) -> Drafter:
        return Cascade(self, [readers.get(role) for role in self.models])


class Written(NamedTuple):
    """Tokens [n] that one drafter wrote, the laws [n, V] they were drawn from and its raw logits [n, V].

    Without rows they were certain: those of an n-gram model, which has no logits either, and all at temperature 0.
    """

    tokens: Tensor
    rows: Tensor | None = None
    logits: Tensor | None = None


class Cascade(Part):
    """The drafters, the largest first: `models[i]` is drafter i, and the n-gram model comes behind the last of them."""

    def __init__(self, config: CascadeDrafter, models: Sequence[RowReader]) -> None:
        self.models, self.lengths, self.lenience = models, config.lengths, config.lenience
        self.ngram = None if config.ngram is None else NgramModel(config.ngram)

    def begin(self, state: State) -> None:
        if self.ngram is not None:
            self.ngram.begin(state)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        if self.ngram is not None:
            self.ngram.observe(state, draft, verdict)

    def memory(self) -> Memory:
        return {} if self.ngram is None else self.ngram.memory()

    def restore(self, memory: Memory) -> None:
        if self.ngram is not None:
            self.ngram.restore(memory)

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        """A block as the first row of `lengths` says, of at most `limit` tokens; a trip test then cuts it."""
        if limit == 0:
            return Draft.empty(state.ids.device)
        written = self._draft(state, 0, state.length, limit)
        like = next(part.logits for part in written if part.logits is not None)  # the largest drafter is a model
        return Draft.chain(*cut_block(join(written, like), state.decode.sampling, trip))

    def _draft(self, state: State, largest: int, at: int, room: int) -> list[Written]:
        """At most `room` tokens behind ids[at - 1], by the drafters from `largest` on, each up to its bound."""
        written: list[Written] = []
        done = bound = 0
        for drafter in range(largest, len(self.lengths)):
            bound += self.lengths[largest][drafter]
            while done < min(bound, room):
                part = self._step(state, drafter, at + done, min(bound, room) - done, room - done)
                if part.tokens.shape[0] == 0:  # an n-gram model that knows nothing
                    break
                written.append(part)
                done += part.tokens.shape[0]
        return written

    def _step(self, state: State, drafter: int, at: int, wanted: int, room: int) -> Written:
        """What one drafter writes next: at most `wanted` tokens of its own, or a review of smaller ones' in `room`."""
        if drafter == len(self.models):
            assert self.ngram is not None
            tokens = self.ngram.propose(state.ids[:at].tolist(), min(wanted, self.ngram.length))
            put(tokens, state.ids[at : at + len(tokens)])
            return Written(state.ids[at : at + len(tokens)].clone())
        if drafter == len(self.lengths) - 1:
            block = self.models[drafter].draft_on(state.ids, at, wanted, state.decode.sampling, state.draws)
            return Written(*block)
        return self._review(state, drafter, at, self._draft(state, drafter + 1, at, room - 1))

    def _review(self, state: State, reviewer: int, at: int, drafted: Sequence[Written]) -> Written:
        """The drafted tokens behind ids[at - 1] that a model keeps, and one of its own: a replacement or the next one.

        All smaller drafters go back to what still stands. One read of the host.
        """
        n = sum(part.tokens.shape[0] for part in drafted)
        logits = self.models[reviewer].feed(state.ids, at + n, last=n + 1)  # [n + 1, V]
        if state.greedy:
            tokens, rows = self._first_choices(drafted, logits), None
        else:
            judge, block = process(logits, state.decode.sampling), join(drafted, logits)
            rule = lenient_rows(block.rows, judge, self._leniences(drafted, judge))
            verdict = judge_chain(block.tokens, block.rows, rule, state.draws)
            accepted = int(verdict.accepted)
            tokens, rows = torch.cat([block.tokens[:accepted], verdict.token[None]]), rule.laws[: accepted + 1]
        count = tokens.shape[0]
        state.ids[at + count - 1] = tokens[-1]
        for reader in self.models[reviewer:]:
            reader.rewind(at + count - 1)
        return Written(tokens, rows, logits[:count])

    def _first_choices(self, drafted: Sequence[Written], logits: Tensor) -> Tensor:
        """A review at temperature 0: the tokens [m] that stand, and the reviewer's first choice behind them."""
        choices = logits.argmax(-1)  # [n + 1]
        own = choices[:-1]  # what stands of the draft, where it stands
        if drafted:
            tokens = torch.cat([part.tokens for part in drafted])
            if self.lenience > 1:
                near = is_near(join(drafted, logits), logits, self._leniences(drafted, logits))
                choices = torch.cat([tokens.where(near, own), choices[-1:]])
            host = torch.cat([choices, tokens]).tolist()
            accepted, _ = judge_greedy(host[: len(host) - len(tokens)], host[len(host) - len(tokens) :])
            return choices[: accepted + 1]
        return choices

    def _leniences(self, drafted: Sequence[Written], like: Tensor) -> Tensor:
        """The lenience [n, 1] towards each drafted token."""
        each = [1.0 if part.logits is None else self.lenience for part in drafted for _ in part.tokens]
        return torch.tensor(each, dtype=like.dtype, device=like.device)[:, None]


def join(written: Sequence[Written], like: Tensor) -> DraftedBlock:
    """All parts as one block. Certain tokens get rows, and an n-gram model's logits, that say so; `like` is [n, V]."""
    if not written:
        return DraftedBlock(torch.zeros(0, dtype=torch.long, device=like.device), like[:0], like[:0])
    tokens = torch.cat([part.tokens for part in written])
    rows = [certain(part.tokens, like) if part.rows is None else part.rows for part in written]
    logits = [row.log() if part.logits is None else part.logits for part, row in zip(written, rows, strict=True)]
    return DraftedBlock(tokens, torch.cat(rows), torch.cat(logits))


def certain(tokens: Tensor, like: Tensor) -> Tensor:
    """Rows [n, V] that give tokens [n] all the probability."""
    return like.new_zeros(tokens.shape[0], like.shape[1]).scatter_(1, tokens[:, None], 1.0)


def is_near(block: DraftedBlock, logits: Tensor, lenience: Tensor) -> Tensor:
    """Which drafted tokens [n] a lenient reviewer lets stand at temperature 0 though they are not its first choice.

    Those with draft(x) <= lenience * own(x) on the raw rows (2312.11462), where lenience [n, 1] is above 1. `logits`
    [n + 1, V] are the reviewer's.
    """
    at = block.tokens[:, None]
    draft, own = (raw.softmax(-1).gather(1, at) for raw in (block.logits, logits[:-1]))
    return ((draft <= lenience * own) & (lenience > 1))[:, 0]


def lenient_rows(draft: Tensor, judge: Tensor, lenience: Tensor) -> RuleRows:
    """The generic round of a lenient reviewer: rows draft [n, V] and judge [n + 1, V], lenience [n, 1] of each token.

    Kept with probability min(1, lenience * judge(x) / draft(x)), else replaced from max(0, judge - draft). The law of a
    position is then min(draft, lenience * judge), and what is left of 1 times the replacement's law: with lenience 1
    the judge's row, above 1 the law of lenience 1 / l in the words of Leviathan et al. (2211.17192).
    """
    row = judge[:-1]
    reject = lenience * row
    kept = torch.minimum(draft, reject)
    leftover = (row - draft).clamp(min=0)
    total = leftover.sum(-1, keepdim=True)
    replaced = torch.where(total > 0, leftover / total, row)
    law = kept + (1 - kept.sum(-1, keepdim=True)).clamp(min=0) * replaced
    return RuleRows(reject, row, judge[-1], law=torch.where(lenience > 1, law, row))
