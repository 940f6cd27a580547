"""Prompt lookup: what followed the last tokens when they last stood in the text is drafted. No model drafts."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Annotated, Literal

import torch
from pydantic import Field

from viasd.blocks import DraftedBlock, TripTest, cut_block
from viasd.decode import Draft, Drafter, Part, Readers, State, put
from viasd.spec import spec

Match = Literal["leftmost", "recent"]


@spec
class PromptLookup:
    """Finds the last n ids earlier in the text, n from `n_max` down to 1, and drafts what follows there.

    `match`: the leftmost place that can be used, or the most recent one. `full`: only a place that all `n_tokens` ids
    follow and that begins before the last n ids; otherwise at least one has to follow. A draft ends before an end mark,
    and has at most `n_tokens` tokens, fewer where the stop rule says so.

    Defaults: transformers' PromptLookupCandidateGenerator (leftmost, shorter continuations, n_max 2, 10 tokens), but
    for tokens that logits processors forbid: there are none here. Spec-Bench (model/pld): n_max 3, 10 tokens, leftmost,
    full. `recent` is neither's.
    """

    match: Match = "leftmost"
    full: bool = False
    n_max: Annotated[int, Field(ge=1, le=16)] = 2
    n_tokens: Annotated[int, Field(ge=1, le=64)] = 10

    @property
    def roles(self) -> frozenset[str]:
        return frozenset()

    def open_drafter(self, readers: Readers) -> Drafter:
        return _LookupDrafter(self, readers.vocabulary)


class _LookupDrafter(Part):
    """Works on the host: the prompt's ids are read when a request begins, those of the output are there."""

    def __init__(self, rules: PromptLookup, vocabulary: int) -> None:
        self._rules, self._vocabulary = rules, vocabulary

    def begin(self, state: State) -> None:
        self._index, self._firm = NgramIndex(self._rules.n_max), 0
        self._index.extend(state.ids[: state.prompt_length].tolist())

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        self._follow(state)
        rules, ends = self._rules, state.decode.eos_ids
        found = self._index.find(rules.match, rules.full, rules.n_tokens)[:limit]
        drafted = list(takewhile(lambda token: token not in ends, found))
        place = state.ids[state.length : state.length + len(drafted)]
        put(drafted, place)
        block = one_hot_block(place.clone(), self._vocabulary)
        return Draft.chain(*cut_block(block, state.decode.sampling, trip if drafted else None))

    def _follow(self, state: State) -> None:
        """Bring the index to the ids that stand. Provisional ones may have been taken back."""
        known = state.prompt_length + self._firm
        text = state.output[self._firm :] + [guess.token for guess in state.provisional]
        pairs = zip(text, self._index.ids[known:], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._index.cut(known + same)
        self._index.extend(text[same:])
        self._firm = len(state.output)


def one_hot_block(tokens: torch.Tensor, vocabulary: int) -> DraftedBlock:
    """Tokens [n] as if drawn from rows that are sure of them: logits are 0 there, else -inf."""
    logits = torch.full((tokens.shape[0], vocabulary), -torch.inf, device=tokens.device)
    logits.scatter_(1, tokens[:, None], 0.0)
    return DraftedBlock(tokens, logits.exp(), logits)


class NgramIndex:
    """A text that knows, for each of its n-grams up to n_max, the places behind its occurrences, ascending."""

    def __init__(self, n_max: int) -> None:
        self.ids: list[int] = []
        self._n_max = n_max
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        for token in tokens:
            self.ids.append(token)
            for gram in self._last():
                self._places[gram].append(len(self.ids))

    def cut(self, length: int) -> None:
        """Only the first `length` ids still stand."""
        while len(self.ids) > length:
            for gram in self._last():
                self._places[gram].pop()
            self.ids.pop()

    def find(self, match: Match, full: bool, n_tokens: int) -> list[int]:
        """Up to `n_tokens` ids that followed the longest of the last n-grams that has a place that can be used."""
        length = len(self.ids)
        for gram in reversed(list(self._last())):
            places = self._places[gram]
            latest = min(length - n_tokens, length - len(gram) - 1) if full else length - 1
            usable = bisect_right(places, latest)
            if usable:
                place = places[0 if match == "leftmost" else usable - 1]
                return self.ids[place : place + n_tokens]
        return []

    def _last(self) -> Iterator[tuple[int, ...]]:
        """The n-grams at the end of the text, the shortest first."""
        for n in range(1, min(self._n_max, len(self.ids)) + 1):
            yield tuple(self.ids[-n:])
