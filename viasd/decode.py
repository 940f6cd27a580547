"""The one decode loop: Draft, Verdict, Round, State, and the decoder that runs drafter, stop rule and verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from viasd.blocks import DraftedBlock, TripTest, check_trip
from viasd.models import Kept
from viasd.sampling import Draws, Sampling
from viasd.taps import Taps
from viasd.trees import Nodes, Tree

Tier = Literal["draft", "slim", "target"]
Source = Literal["draft", "slim", "target"]
FinishReason = Literal["eos", "stop", "length"]


class RowReader(Protocol):
    """What drafters, verifiers and the state need of a reader (tests put tables in its place)."""

    role: str
    calls: int
    fed: int
    tapped: Taps | None

    @property
    def read(self) -> int: ...
    def start(self) -> None: ...
    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor: ...
    def draft_on(
        self, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws, trip: TripTest | None = None
    ) -> DraftedBlock: ...
    def rewind(self, length: int) -> None: ...


@runtime_checkable
class NodeReader(RowReader, Protocol):
    """A reader that reads trees too."""

    def feed_nodes(self, ids: Tensor, stop: int, nodes: Nodes, last: int) -> Tensor: ...
    def keep(self, length: int, path: Sequence[int]) -> None: ...


class Readers(Protocol):
    """The readers that one decoder opened, by role."""

    def get(self, role: str, name: str | None = None) -> RowReader: ...
    def slim(self, kept: Kept, cache: str, role: str = "slim", stronger: RowReader | None = None) -> RowReader: ...
    def opened(self) -> Sequence[RowReader]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def vocabulary(self) -> int: ...


class StopMatcher(Protocol):
    """Tells whether a stop string is complete. Handed in from outside: this library knows token ids only."""

    def __call__(self, output_ids: Sequence[int]) -> bool: ...


@dataclass(frozen=True)
class Decode:
    """What one generation obeys. Output ends at the first eos, at a complete stop string, or at `max_new_tokens`."""

    sampling: Sampling
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    stop: StopMatcher | None = None


@dataclass
class Draft:
    """Tokens [n] drawn from exactly `rows` [n, V] (processed). `parents` [n]: index of the parent, -1 the root.

    `logits` [n, V]: the drafter's raw rows, where it has any. `held`: the drafter did not wait for the verifier; so
    many leading tokens are left of the round before, and of those behind them only the first one is due in this round.
    `beside`: the last token is drafted while the verifier reads, which so cannot read it, and has no row behind it.
    `tree`: how the tokens hang together where they are no chain; they stand nowhere in the ids then.
    """

    tokens: Tensor
    rows: Tensor
    parents: Tensor
    logits: Tensor | None = None
    held: int | None = None
    beside: bool = False
    tree: Tree | None = None

    @property
    def length(self) -> int:
        return self.tokens.shape[0]

    @property
    def due(self) -> int:
        """Leading tokens that are to be ruled on in this round."""
        return self.length if self.held is None else min(self.length, self.held + 1)

    def held_after(self, verdict: Verdict) -> int:
        """Last tokens that go on to the next round: those that were not due, if all that were due were kept."""
        whole = verdict.held is not None and len(verdict.tokens) == verdict.kept == self.due
        return self.length - self.due if whole else 0

    @classmethod
    def chain(cls, tokens: Tensor, rows: Tensor, logits: Tensor | None = None) -> Draft:
        return cls(tokens, rows, torch.arange(-1, tokens.shape[0] - 1, device=tokens.device), logits)

    @classmethod
    def empty(cls, device: torch.device) -> Draft:
        return cls.chain(torch.zeros(0, dtype=torch.long, device=device), torch.zeros(0, 0, device=device))


@dataclass(frozen=True)
class Guess:
    """A provisional token: a slim verifier decided it and the target may take it back (mode exact).

    `drafted` is the token that was drafted in its `place` of the block; None: behind the draft. `row` [V] is the law
    that wrote it, given that the position was not left to the target (None at temperature 0). `promise`: its bin
    (viasd.calling).
    """

    token: int
    tier: Tier
    place: int
    drafted: int | None
    row: Tensor | None = None
    promise: int = 0


@dataclass
class Verdict:
    """What a verifier rules on a draft.

    `tokens`: to commit, in order. `tiers`: one per judged token, which are the first ones drafted.
    `sources` and, when recorded, `laws` (probability of the token under the law that wrote it): one per token.
    `kept`: leading tokens equal to the drafted ones. `unjudged`: tokens committed without a verdict.
    `target_ruled`: how many leading tokens the target has read or written when the round ends; None: it did not run.
    `labels`: of the first drafted tokens, which count as accepted for parts that learn; None: those that were kept.
    `held`: the draft's, from a verifier that ruled on no more than was due.
    `guesses`: provisional tokens, in place of `tokens`. `confirmed`: provisional tokens of earlier rounds that are
    output before `tokens`, the first ones; `withdrawn`: the others, taken back. `taps`: where the judge's readers are
    tapped, what the strongest one that ran computed of the tokens that it read and that stand, drafted ones among them
    (provisional ones stand). `depth`: of a draft that is a tree, how deep it is, which is what counts as drafted.
    """

    tokens: list[int]
    sources: list[Source]
    kept: int
    tiers: list[Tier] = field(default_factory=list)
    unjudged: int = 0
    target_ruled: int | None = None
    escalation: Literal["gate", "forced"] | None = None
    regions: tuple[int, ...] | None = None  # gate consultations by region: keep, rewrite, escalate, judge
    laws: list[float] | None = None
    guesses: list[Guess] = field(default_factory=list)
    confirmed: int = 0
    withdrawn: int = 0
    audits: list[float] | None = None  # min(1, target / law) of pending tokens when the target ran over them
    taps: Taps | None = None
    labels: list[bool] | None = None
    held: int | None = None
    depth: int | None = None


@dataclass
class Round:
    """The record of one round, after stops and limits cut it. Counts as DESIGN section 2 defines them.

    Provisional tokens are counted in the round that confirms them or takes them back, and drafted tokens that are held
    for the next round in the one that rules on them or drops them. `held`: as in Verdict (0 or more where drafter and
    verifier need not wait for each other).
    """

    prefix: int  # committed ids before the round, prompt included
    drafted: int
    judged: int
    rejected: int
    unjudged: int
    discarded: int
    cut: int
    committed: int
    tiers: list[Tier]
    target_rejected: int
    sources: list[Source]
    pending: int  # committed tokens the target has not ruled on, after the round
    escalation: str | None
    regions: tuple[int, ...] | None
    audits: list[float] | None
    withdrawn: int = 0  # provisional tokens taken back
    settled: list[tuple[int, bool]] = field(default_factory=list)  # earlier provisional tokens: place in block, kept
    held: int | None = None
    nodes: int | None = None  # of a drafted tree

    @property
    def judgments(self) -> list[tuple[int, bool]]:
        """Of every judged token, its place in its block and whether the drafted token was kept."""
        own = self.judged - len(self.settled)
        changed = self.rejected - sum(not kept for _, kept in self.settled)
        return self.settled + [(place, place < own - changed) for place in range(own)]


@dataclass
class Generation:
    """One finished output: ids without the prompt, why it ended, its rounds, calls by reader, laws when recorded.

    `unclocked`: leading tokens that were output before the clock of decoding started (loops of a library).
    """

    token_ids: list[int]
    finish_reason: FinishReason
    rounds: list[Round]
    calls: dict[str, int]
    fed: dict[str, int]
    laws: list[float] | None
    unclocked: int = 0


class State:
    """One sequence being decoded: its ids, how far the target has ruled, its rounds. Only `commit` writes ids.

    `ids` [capacity]: the first `length` stand; behind them are drafted tokens, where readers find them. The last of
    those that stand may be `provisional`: no output yet, and `ended` if they would complete the text.
    """

    def __init__(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, readers: Readers, detail: bool = False
    ) -> None:
        if not prompt_ids:
            raise ValueError("the prompt has no tokens; a model needs at least one to begin with")
        self.decode, self.draws, self.detail = decode, draws, detail
        self.prompt_length = self.length = self.confirmed = len(prompt_ids)
        self.output: list[int] = []
        self.provisional: list[Guess] = []
        self.ended = False
        self.laws: list[float] = []
        self.rounds: list[Round] = []
        self.finish_reason: FinishReason | None = None
        self._readers = readers
        self.ids = torch.zeros(len(prompt_ids) + decode.max_new_tokens, dtype=torch.long, device=readers.device)
        put(list(prompt_ids), self.ids[: self.length])

    @property
    def greedy(self) -> bool:
        """Temperature 0: rows are their argmax."""
        return self.decode.sampling.temperature == 0

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return 0 if self.ended else self.decode.max_new_tokens - len(self.output) - len(self.provisional)

    @property
    def pending(self) -> int:
        """Committed or provisional tokens that the target has neither read nor written."""
        return self.length - self.confirmed

    def commit(self, draft: Draft, verdict: Verdict) -> Round:
        """Output the verdict's tokens up to the first stop, and rewind every reader to the ids that still stand."""
        record = self._guess(draft, verdict) if verdict.guesses else self._output(draft, verdict)
        self.rounds.append(record)
        return record

    def _output(self, draft: Draft, verdict: Verdict) -> Round:
        settled, self.provisional, self.ended = self.provisional, [], False
        before, confirmed = self.length - len(settled), verdict.confirmed
        tokens = [guess.token for guess in settled[:confirmed]] + verdict.tokens
        count = self._accept_until_stop(tokens)
        fresh = max(0, count - confirmed)  # of this round's own tokens
        tiers, kept, unjudged = verdict.tiers[:fresh], min(verdict.kept, fresh), min(verdict.unjudged, fresh)
        held = 0 if self.finish_reason is not None else draft.held_after(verdict)
        drafted = (draft.length if verdict.depth is None else verdict.depth) - held
        dropped = drafted - len(tiers) - unjudged
        audits = verdict.audits
        if audits is not None:  # the last of them are of this round's tokens; those that a stop dropped do not count
            dropped_audits = sum(source != "target" for source in verdict.sources[fresh : verdict.kept + 1])
            audits = audits[: len(audits) - dropped_audits]
        self._write(before, tokens[:count], min(confirmed, count) + kept, held)
        if verdict.target_ruled is not None:
            self.confirmed = before + min(confirmed + verdict.target_ruled, count)
        if verdict.laws is not None:
            self.laws += verdict.laws[:count]
        # A stop inside a kept prefix cuts what was drafted behind it; a replaced token discards it.
        is_cut = count < len(tokens) or (self.finish_reason is not None and kept == fresh)
        record = Round(
            prefix=before,
            drafted=drafted,
            judged=len(tiers),
            rejected=max(0, len(tiers) - kept),
            unjudged=unjudged,
            discarded=0 if is_cut else dropped,
            cut=dropped if is_cut else 0,
            committed=count,
            tiers=tiers,
            target_rejected=int(len(tiers) > kept and tiers[kept] == "target"),
            sources=[guess.tier for guess in settled[: min(confirmed, count)]] + verdict.sources[:fresh],
            pending=self.pending,
            escalation=verdict.escalation,
            regions=verdict.regions,
            audits=audits,
            withdrawn=verdict.withdrawn,
            held=verdict.held,
            nodes=None if draft.tree is None else draft.length,
        )
        if settled:
            count_settled(record, settled, confirmed, tokens[:count])
        return record

    def _guess(self, draft: Draft, verdict: Verdict) -> Round:
        """Provisional tokens join those that stand, up to one that would complete the text."""
        before, text = self.length, self.output + [guess.token for guess in self.provisional]
        written: list[Guess] = []
        for guess in verdict.guesses:
            written.append(guess)
            text.append(guess.token)
            if self._ends(text):
                self.ended = True
                break
        self.provisional += written
        kept = min(verdict.kept, len(written))
        self._write(before, [guess.token for guess in written], kept)
        dropped = draft.length - sum(guess.drafted is not None for guess in written)
        is_cut = self.ended and (kept == len(written) or len(written) < len(verdict.guesses))
        return Round(
            prefix=before,
            drafted=draft.length,
            judged=0,
            rejected=0,
            unjudged=0,
            discarded=0 if is_cut else dropped,
            cut=dropped if is_cut else 0,
            committed=0,
            tiers=[],
            target_rejected=0,
            sources=[],
            pending=self.pending,
            escalation=None,
            regions=verdict.regions,
            audits=None,
        )

    def _write(self, at: int, tokens: Sequence[int], kept: int, held: int = 0) -> None:
        """Let `tokens` stand from id `at` on, of which the first `kept` were there; the last one is never left read.

        The `held` drafted tokens behind them stay where they are, and what was read of them stays read.
        """
        put(tokens, self.ids[at : at + len(tokens)])
        self.length = at + len(tokens)
        for reader in self._readers.opened():
            reader.rewind(min(at + kept, self.length - 1) + held)

    def _accept_until_stop(self, tokens: Sequence[int]) -> int:
        for count, token in enumerate(tokens, 1):
            self.output.append(token)
            self.finish_reason = self._ends(self.output)
            if self.finish_reason is not None:
                return count
        return len(tokens)

    def _ends(self, text: Sequence[int]) -> FinishReason | None:
        """Why an output would end with its last token, if it does."""
        if text[-1] in self.decode.eos_ids:
            return "eos"
        if self.decode.stop is not None and self.decode.stop(text):
            return "stop"
        return "length" if len(text) == self.decode.max_new_tokens else None


def count_settled(record: Round, settled: Sequence[Guess], confirmed: int, output: Sequence[int]) -> None:
    """Add the provisional tokens that a round settled to its counts, given what it output.

    A confirmed one has the verdict of its tier. The first one taken back has the target's; those behind are discarded.
    """
    judged = [(guess, guess.token, guess.tier) for guess in settled[:confirmed][: len(output)]]
    if confirmed < len(settled):
        judged.append((settled[confirmed], output[confirmed], "target"))
        changed = settled[confirmed].drafted not in (None, output[confirmed])
        record.target_rejected += changed
    judged = [one for one in judged if one[0].drafted is not None]
    record.settled = [(guess.place, token == guess.drafted) for guess, token, _ in judged]
    record.discarded += sum(guess.drafted is not None for guess in settled[confirmed + 1 :])
    record.tiers = [tier for _, _, tier in judged] + record.tiers
    record.judged += len(judged)
    record.rejected += sum(not kept for _, kept in record.settled)


def put(tokens: Sequence[int], ids: Tensor) -> None:
    """Write tokens to where `ids` [n] are; to an accelerator from pinned memory, so that nothing waits for them."""
    host = torch.tensor(list(tokens), dtype=torch.long, pin_memory=ids.is_cuda)
    ids.copy_(host, non_blocking=True)


Memory = dict[str, Any]  # plain JSON: numbers, strings, lists, dicts


class Remembering(Protocol):
    """What drafters, stop rules and verifiers have in common.

    `begin` announces a request: a part forgets what it learned, unless it is configured to remember for the whole run
    (`memory: run`). In `observe` adaptive parts learn. `memory` is what is remembered between requests, {} where
    nothing is; `restore` puts it back. `adaptive` tells the numbers that follow the text, by name, as they are after
    the last round; nothing but a profile asks for them.
    """

    def begin(self, state: State) -> None: ...
    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None: ...
    def adaptive(self) -> dict[str, float]: ...
    def memory(self) -> Memory: ...
    def restore(self, memory: Memory) -> None: ...


class Drafter(Remembering, Protocol):
    """Proposes at most `limit` tokens, fewer where `trip` says so."""

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft: ...


class StopRule(Remembering, Protocol):
    """Says before a block how many tokens may be drafted, and may give a test that ends it earlier."""

    def limit(self, state: State) -> int: ...
    @property
    def trip(self) -> TripTest | None: ...


class Verifier(Remembering, Protocol):
    """Rules on drafts. `finish`: the text has ended; a verifier may let the target read what it has not."""

    def judge(self, state: State, draft: Draft) -> Verdict: ...
    def finish(self, state: State) -> None: ...


class Decoder(Protocol):
    """Anything that turns a prompt into a Generation."""

    lossless: bool

    def generate(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, detail: bool = False, watch: Watch | None = None
    ) -> Generation: ...
    def adaptive(self) -> Adaptive | None: ...
    def memory(self) -> Memory: ...
    def restore(self, memory: Memory) -> None: ...


Adaptive = dict[str, dict[str, float]]  # numbers that follow the text, by part and name
# Called with "prefilled" once, where the clock of decoding starts; after each round "round", or "provisional" where it
# output nothing yet. Loops of a library say "prefilled" after their first "round".
Watch = Callable[[str], None]


class Part:
    """A part without memory, and without a trip test."""

    trip: TripTest | None = None

    def begin(self, state: State) -> None:
        """A new request begins."""

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        """A round was committed."""

    def finish(self, state: State) -> None:
        """The text has ended."""

    def adaptive(self) -> dict[str, float]:
        """Nothing follows the text."""
        return {}

    def memory(self) -> Memory:
        """Nothing outlives a request."""
        return {}

    def restore(self, memory: Memory) -> None:
        """Nothing to put back."""


class Speculative:
    """Runs rounds of draft, verdict and commit until the output ends."""

    def __init__(
        self, drafter: Drafter, stop: StopRule, verifier: Verifier, readers: Readers, lossless: bool = False
    ) -> None:
        self.drafter, self.stop, self.verifier, self.readers, self.lossless = drafter, stop, verifier, readers, lossless

    @property
    def _parts(self) -> dict[str, Remembering]:
        return {"drafter": self.drafter, "stop": self.stop, "verifier": self.verifier}

    def adaptive(self) -> Adaptive | None:
        """The numbers of parts that follow the text, as they are after the last round; None where no part does."""
        return {name: numbers for name, part in self._parts.items() if (numbers := part.adaptive())} or None

    def memory(self) -> Memory:
        """What the parts remember between requests, by part; {} where none does."""
        return {name: memory for name, part in self._parts.items() if (memory := part.memory())}

    def restore(self, memory: Memory) -> None:
        """Put back what `memory` gave."""
        for name, part in self._parts.items():
            part.restore(memory.get(name, {}))

    def begin(self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, detail: bool = False) -> State:
        """Reset all parts and let every reader read the prompt but its last token (DESIGN section 4, prefill).

        Raises ValueError where a lossless verifier would not be, for what the stop rule drops (`check_trip`).
        """
        if self.lossless:
            check_trip(self.stop.trip, decode.sampling)
        state = State(prompt_ids, decode, draws, self.readers, detail)
        for reader in self.readers.opened():
            reader.start()
        for reader in self.readers.opened():
            if reader.read < len(prompt_ids) - 1:  # a view on a shared cache finds the target's keys there
                reader.feed(state.ids, len(prompt_ids) - 1, last=0)
        for part in self._parts.values():
            part.begin(state)
        return state

    def round(self, state: State) -> Round:
        """One draft-then-verify cycle."""
        limit = max(0, min(self.stop.limit(state), state.remaining))
        draft = self.drafter.propose(state, limit, self.stop.trip)
        verdict = self.verifier.judge(state, draft)
        record = state.commit(draft, verdict)
        for part in self._parts.values():
            part.observe(state, draft, verdict)
        return record

    @torch.inference_mode()
    def generate(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, detail: bool = False, watch: Watch | None = None
    ) -> Generation:
        """Decode one prompt. `detail` records laws and audits; `watch` hears when the prompt is read and rounds end."""
        state = self.begin(prompt_ids, decode, draws, detail)
        read_at_start = {reader.role: (reader.calls, reader.fed) for reader in self.readers.opened()}
        if watch is not None:
            watch("prefilled")
        while state.finish_reason is None:
            record = self.round(state)
            if watch is not None:
                watch("round" if record.committed else "provisional")
        self.verifier.finish(state)
        readers = self.readers.opened()
        return Generation(
            token_ids=state.output,
            finish_reason=state.finish_reason,
            rounds=state.rounds,
            calls={reader.role: reader.calls - read_at_start[reader.role][0] for reader in readers},
            fed={reader.role: reader.fed - read_at_start[reader.role][1] for reader in readers},
            laws=state.laws if detail else None,
        )
