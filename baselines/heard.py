"""What can be heard of a call of transformers' `generate`: the tokens of each round, and what its models are fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from viasd.decode import Decode, Draft, Generation, RowReader, State, Verdict, Watch
from viasd.sampling import Draws


class _NoReaders:
    """A state without readers: the library keeps its own caches."""

    device = torch.device("cpu")  # where ids are counted; nothing waits for an accelerator
    vocabulary = 0

    def opened(self) -> Sequence[RowReader]:
        return []

    def get(self, role: str, name: str | None = None) -> RowReader:
        raise AssertionError

    slim: Any = get


class Heard:
    """Hears the tokens of every round, and tells the library when the text has ended, by the rules of `State.commit`.

    Plain generation asks a stopping criterion about each new token before any streamer gets it. Assisted generation
    hands a round's tokens to the streamer first; to its criteria older versions (5.17) also show drafts, which are not
    output. So with `streamed` the criterion only answers.
    """

    def __init__(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, watch: Watch | None, streamed: bool
    ) -> None:
        self._state = State(prompt_ids, decode, draws, _NoReaders())
        self._watch, self._streamed = watch, streamed
        self._seen_prompt = False
        self._first = 0  # tokens of the first round
        self._drafted: list[int] = []  # of the round under way
        self._calls: dict[str, int] = {}
        self._fed: dict[str, int] = {}

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> bool:
        """As a stopping criterion: whether the text has ended."""
        if not self._streamed:
            self._hear(input_ids[0, self._state.length :].tolist())
        return self._state.finish_reason is not None

    def put(self, tokens: Tensor) -> None:
        """As a streamer: the prompt, then the tokens of each round."""
        if self._seen_prompt:
            self._hear(tokens.flatten().tolist())
        self._seen_prompt = True

    def end(self) -> None:
        """As a streamer: the call is over."""

    def _hear(self, tokens: list[int]) -> None:
        drafted, self._drafted = self._drafted, []
        # A token in place of a refused one never equals it, so that those which were kept show.
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(drafted, tokens, strict=False)))
        draft = Draft.chain(torch.tensor(drafted, dtype=torch.long), torch.zeros(len(drafted), 0))
        verdict = Verdict(
            tokens=tokens,
            sources=["target"] * len(tokens),
            kept=kept,
            tiers=["target"] * min(kept + 1, len(drafted)),
            target_ruled=len(tokens),
        )
        self._state.commit(draft, verdict)
        is_first, self._first = not self._first, self._first or len(self._state.output)
        if self._watch is not None:
            self._watch("round")
            if is_first:
                self._watch("prefilled")

    @contextmanager
    def listen(self, models: dict[str, Any]) -> Iterator[None]:
        """Hear what the models are fed inside. Of a model's first call, the prompt but its last token is prefill."""

        def heed(role: str) -> Callable[[Any, Any, dict[str, Any]], None]:
            def hook(_model: Any, _args: Any, given: dict[str, Any]) -> None:
                ids = given["input_ids"][0]
                before = 0 if role in self._calls else self._state.prompt_length - 1
                self._calls[role] = self._calls.get(role, 0) + 1
                self._fed[role] = self._fed.get(role, 0) + len(ids) - before
                if role == "target":
                    self._drafted = ids[before + 1 :].tolist()

            return hook

        with ExitStack() as stack:
            for role, model in models.items():
                handle = model.register_forward_pre_hook(heed(role), with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def generation(self, detail: bool) -> Generation:
        """The output; with `detail` also its rounds and calls."""
        state = self._state
        assert state.finish_reason is not None, "the library ended a text before it was complete"
        return Generation(
            token_ids=state.output,
            finish_reason=state.finish_reason,
            rounds=state.rounds if detail else [],
            calls=self._calls,
            fed=self._fed,
            laws=None,
            unclocked=self._first,
        )
