"""A statistical model without weights: what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from viasd.decode import Draft, Memory, Part, State, Verdict
from viasd.spec import spec


@spec
class Ngram:
    """Max-gram (MaG), the model at the bottom of CS-Drafting (Chen et al., 2312.11462).

    It finds the longest suffix of the text that also stands earlier in prompt, output or draft, and goes on as the text
    did there, `length` tokens at a time (10 in the paper and its code); where nothing fits, a bigram table says what
    most often followed. It has no distribution: its law of each token is certain.

    Ours: of equal suffixes the latest one counts, and what is copied may itself be gone on from; a suffix has at least
    `shortest_match` tokens; the table holds nothing but what the target let stand, so it may end a block early. With
    `memory: run` the table outlives the request; the paper's code has one that was made beforehand.
    """

    length: Annotated[int, Field(ge=1, le=64)] = 10
    shortest_match: Annotated[int, Field(ge=1)] = 2
    memory: Literal["request", "run"] = "request"


class NgramModel(Part):
    """The model with the bigrams that it has seen."""

    def __init__(self, config: Ngram) -> None:
        self.length = config.length
        self._shortest, self._lasting = config.shortest_match, config.memory == "run"
        self._followers: dict[int, dict[int, int]] = {}
        self._last, self._seen = 0, 0  # the last token and the tokens of the output that the table was told of

    def begin(self, state: State) -> None:
        if not self._lasting:
            self._followers = {}
        prompt = state.ids[: state.prompt_length].tolist()
        self._last, self._seen = prompt[0], 0
        self._learn(prompt[1:])

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        self._learn(state.output[self._seen :])
        self._seen = len(state.output)

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens behind `ids`."""
        start = find_continuation(ids, self._shortest)
        if start is None:
            return self._follow(ids[-1], count)
        text = list(ids)
        for place in range(start, start + count):  # it may reach what was just copied
            text.append(text[place])
        return text[len(ids) :]

    def _follow(self, token: int, count: int) -> list[int]:
        """What most often followed, and so on; among equals what came first."""
        tokens: list[int] = []
        while len(tokens) < count and (followers := self._followers.get(token)):
            token = max(followers, key=lambda one: followers[one])
            tokens.append(token)
        return tokens

    def _learn(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            followers = self._followers.setdefault(self._last, {})
            followers[token] = followers.get(token, 0) + 1
            self._last = token

    def memory(self) -> Memory:
        told = {str(token): {str(one): n for one, n in of.items()} for token, of in self._followers.items()}
        return {"followers": told} if self._lasting else {}

    def restore(self, memory: Memory) -> None:
        told = memory.get("followers", {})
        self._followers = {int(token): {int(one): n for one, n in of.items()} for token, of in told.items()}


def find_continuation(ids: Sequence[int], shortest: int) -> int | None:
    """Where the text goes on behind the latest earlier place of its longest repeated suffix; None: there is none."""
    text = "".join(map(chr, ids))  # a string is searched fast, and has room for 1.1 million different ids
    size, start = shortest, None
    while size < len(text) and (place := text.rfind(text[-size:], 0, len(text) - 1)) >= 0:
        start = place + size
        size += 1
    return start
