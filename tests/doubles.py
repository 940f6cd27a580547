"""Stand-ins for the tests: table-driven readers, draws that explore every outcome, spies, and count checks."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viasd.blocks import DraftedBlock, TripTest, draft_by_steps
from viasd.decode import Decode, Draft, Drafter, Generation, Memory, RowReader, Speculative, State, Verdict
from viasd.method import Method
from viasd.sampling import Draws, Sampling, Stream
from viasd.taps import Taps
from viasd.trees import Nodes

Outcome = tuple[int, ...]
PROMPT = [0, 2]
VOCABULARY = 3

# --- readers that look rows up ------------------------------------------------------------------------------------


class Tables:
    """Raw logits of three models: a deterministic function of (seed, role, token prefix), float64."""

    def __init__(self, seed: int = 0, vocabulary: int = VOCABULARY, spread: float = 1.0) -> None:
        self.seed, self.vocabulary, self.spread = seed, vocabulary, spread
        self._rows: dict[tuple[str, Outcome], list[float]] = {}

    def logits(self, role: str, prefix: Sequence[int]) -> list[float]:
        """Logits [V] after `prefix`."""
        key = (role, tuple(prefix))
        if key not in self._rows:
            chance = random.Random(f"{self.seed}/{key}")
            self._rows[key] = [chance.gauss(0, self.spread) for _ in range(self.vocabulary)]
        return self._rows[key]


@dataclass
class _Slot:
    """What a cache slot holds: the id that was fed and who wrote it."""

    token: int
    writer: str


class TableReader:
    """A RowReader over Tables that emulates a slot cache of ids and checks every feed against it.

    `slots` is shared with `stronger`, as a view shares its target's cache: the stronger one's slots must be its own
    writing, and each slot that counts as read must hold the id that stands there now.
    """

    tapped: Taps | None = None

    def __init__(self, role: str, tables: Tables, slots: dict[int, _Slot], stronger: TableReader | None = None) -> None:
        self.role, self.tables, self.slots, self.stronger = role, tables, slots, stronger
        self.calls = self.fed = self._read = 0
        self._tree: list[int] = []

    @property
    def read(self) -> int:
        return self._read if self.stronger is None else max(self._read, self.stronger.read)

    def start(self) -> None:
        self._read = self.calls = self.fed = 0

    def rewind(self, length: int) -> None:
        self._read = min(self._read, length)

    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor:
        sequence = ids.tolist()
        start = self.read
        assert stop - start >= max(last, 1), f"{self.role}: {last} rows asked of {stop - start} fed ids"
        for index in range(start):
            assert self.slots[index].token == sequence[index], f"{self.role}: slot {index} holds another text"
            if self.stronger is None:
                assert self.slots[index].writer == self.role, f"{self.role}: slot {index} was overwritten"
        for index in range(start, stop):
            self.slots[index] = _Slot(sequence[index], self.role)
        self._read = stop
        self.calls += 1
        self.fed += stop - start
        rows = [self.tables.logits(self.role, sequence[: end + 1]) for end in range(stop - last, stop)]
        return torch.tensor(rows, dtype=torch.float64)

    def feed_nodes(self, ids: Tensor, stop: int, nodes: Nodes, last: int) -> Tensor:
        text, start, tokens = ids[:stop].tolist(), self.read, nodes.tokens.tolist()
        if start < stop:
            self.feed(ids, stop, last=0)
            self.calls, self.fed = self.calls - 1, self.fed - (stop - start)
        self._tree = [*self._tree[: nodes.first], *tokens]
        assert len(self._tree) == nodes.first + len(tokens), f"{self.role}: nodes before these were not fed"
        prefixes = [text[: end + 1] for end in range(start, stop)]
        for place, row in enumerate(nodes.seen.tolist(), nodes.first):
            path = [node for node, seen in enumerate(row) if seen]
            assert nodes.depths[path].tolist() == list(range(1, len(path) + 1)) and path[-1] == place
            assert nodes.parents[place - nodes.first] == (path[-2] if len(path) > 1 else -1)
            prefixes.append([*text, *(self._tree[node] for node in path)])
        self._read = stop
        self.calls += 1
        self.fed += stop - start + len(tokens)
        rows = [self.tables.logits(self.role, prefix) for prefix in prefixes[-last:]]
        return torch.tensor(rows, dtype=torch.float64)

    def keep(self, length: int, path: Sequence[int]) -> None:
        for place, node in enumerate(path, length):
            self.slots[place] = _Slot(self._tree[node], self.role)
        self._read = length + len(path)

    def draft_on(
        self, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws, trip: TripTest | None = None
    ) -> DraftedBlock:
        return draft_by_steps(self, ids, stop, steps, sampling, draws, trip)


class TableReaders:
    """The Readers protocol, and the only thing a Method asks of an engine: `readers()`."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.device = torch.device("cpu")
        self.vocabulary = tables.vocabulary
        self._readers: dict[str, TableReader] = {}

    def readers(self) -> TableReaders:
        return TableReaders(self.tables)

    def get(self, role: str, name: str | None = None) -> TableReader:
        name = name or role
        return self._readers.setdefault(name, TableReader(name, self.tables, {}))

    def slim(
        self, kept: Sequence[int], cache: str, role: str = "slim", stronger: RowReader | None = None
    ) -> TableReader:
        target = self.get("target")
        leans_on: TableReader | None = None
        if cache == "shared":
            shares = isinstance(stronger, TableReader) and stronger.slots is target.slots
            others = [one for name, one in self._readers.items() if name != role and one.slots is target.slots]
            leans_on = stronger if shares else others[-1]  # type: ignore[assignment]
        slots = leans_on.slots if leans_on else {}
        return self._readers.setdefault(role, TableReader(role, self.tables, slots, leans_on))

    def opened(self) -> Sequence[RowReader]:
        return list(self._readers.values())


# --- draws that explore every outcome -----------------------------------------------------------------------------


class BranchingDraws:
    """The Draws protocol on a script: choice i takes branch script[i], or its first. `weight`: the path's probability.

    Branches of probability zero do not exist. Entries that are not to be used get the least probable token.
    """

    def __init__(self, script: Sequence[int] = ()) -> None:
        self.script = script
        self.widths: list[int] = []  # how many branches each choice had
        self.taken: list[int] = []
        self.weight = 1.0

    def choose(self, weights: Sequence[float]) -> int:
        """The index of the branch that the script takes."""
        total = sum(weights)
        branches = [index for index, weight in enumerate(weights) if weight > 0]
        step = len(self.taken)
        branch = self.script[step] if step < len(self.script) else 0
        self.taken.append(branch)
        self.widths.append(len(branches))
        chosen = branches[branch]
        self.weight *= weights[chosen] / total
        return chosen

    def draw(self, rows: Tensor, stream: Stream, where: Tensor | None = None) -> Tensor:
        used = [True] * rows.shape[0] if where is None else where.tolist()
        weights = rows.tolist()
        return torch.tensor(
            [self.choose(row) if use else row.index(min(row)) for row, use in zip(weights, used, strict=True)],
            dtype=torch.long,
        )

    def accept(self, numerator: float, denominator: float) -> bool:
        """Whether coin * denominator < numerator for a fresh coin."""
        passing = 1.0 if numerator >= denominator else numerator / denominator
        return self.choose([passing, 1 - passing]) == 0

    def accepted_prefix(self, numerators: Tensor, denominators: Tensor) -> Tensor:
        accepted = 0
        for numerator, denominator in zip(numerators.tolist(), denominators.tolist(), strict=True):
            if not self.accept(numerator, denominator):
                break
            accepted += 1
        return torch.tensor(accepted)

    def first_accepted(self, numerators: Tensor, denominators: Tensor, where: Tensor) -> Tensor:
        trials = zip(numerators.tolist(), denominators.tolist(), where.tolist(), strict=True)
        for place, (numerator, denominator, used) in enumerate(trials):
            if used and self.accept(numerator, denominator):
                return torch.tensor(place)
        return torch.tensor(len(where))

    def coin(self, probability: float) -> bool:
        return self.choose([probability, 1 - probability]) == 0


class ReusedCoinDraws(BranchingDraws):
    """The mistake: one coin for all tests of a run. `low` and `high` bound what is known of it."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        super().__init__(script)
        self.low, self.high = 0.0, 1.0

    def accept(self, numerator: float, denominator: float) -> bool:
        border = min(max(numerator / denominator, self.low), self.high)
        accepted = self.choose([border - self.low, self.high - border]) == 0
        if accepted:
            self.high = border
        else:
            self.low = border
        return accepted


def enumerate_paths(
    method: Method,
    tables: Tables,
    sampling: Sampling,
    max_new_tokens: int = 3,
    detail: bool = False,
    draws_class: type[BranchingDraws] = BranchingDraws,
) -> Iterator[tuple[Generation, float]]:
    """Every path of the real decode loop with its probability: depth first, each replayed from the start."""
    decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
    decode = Decode(sampling, max_new_tokens)
    known = decoder.memory()
    script: list[int] | None = []
    while script is not None:
        draws = draws_class(script)
        decoder.restore(known)
        yield decoder.generate(PROMPT, decode, draws, detail=detail), draws.weight
        script = _next_script(draws)


def _next_script(draws: BranchingDraws) -> list[int] | None:
    for step in reversed(range(len(draws.taken))):
        if draws.taken[step] + 1 < draws.widths[step]:
            return [*draws.taken[:step], draws.taken[step] + 1]
    return None


def law_of(paths: Iterator[tuple[Generation, float]]) -> dict[Outcome, float]:
    """Probability of each output."""
    law: dict[Outcome, float] = defaultdict(float)
    for generation, weight in paths:
        law[tuple(generation.token_ids)] += weight
    return dict(law)


def largest_difference(one: dict[Outcome, float], other: dict[Outcome, float]) -> float:
    """Largest difference of two laws in the probability of one output."""
    return max(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in one.keys() | other.keys())


# --- spies and checks ---------------------------------------------------------------------------------------------


class DraftSpy:
    """Wraps a drafter and keeps the running state and the ids of every draft."""

    state: State

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.drafts: list[list[int]] = []

    def begin(self, state: State) -> None:
        self.state = state
        self.drafts.clear()
        self.drafter.begin(state)

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        draft = self.drafter.propose(state, limit, trip)
        self.drafts.append(draft.tokens.tolist())
        return draft

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        self.drafter.observe(state, draft, verdict)

    def adaptive(self) -> dict[str, float]:
        return self.drafter.adaptive()

    def memory(self) -> Memory:
        return self.drafter.memory()

    def restore(self, memory: Memory) -> None:
        self.drafter.restore(memory)


def spy_on(decoder: Speculative) -> DraftSpy:
    """Put a spy in front of the decoder's drafter."""
    decoder.drafter = spy = DraftSpy(decoder.drafter)
    return spy


def check_counts(generation: Generation, drafts: Sequence[Sequence[int]], prompt_length: int) -> None:
    """Recount every round from ids: drafted tokens as the spy saw them, committed tokens as they were output."""
    output, done = generation.token_ids, 0
    assert len(generation.rounds) == len(drafts)
    for number, (round_, drafted) in enumerate(zip(generation.rounds, drafts, strict=True)):
        committed = output[done : done + round_.committed]
        assert round_.prefix == prompt_length + done
        assert round_.drafted == len(drafted)
        assert round_.drafted == round_.judged + round_.unjudged + round_.discarded + round_.cut
        assert len(committed) == round_.committed == len(round_.sources) > 0
        assert round_.judged == len(round_.tiers)
        final = round_.judged + round_.unjudged
        assert final <= round_.committed <= final + 1  # a bonus at most
        differing = [index for index in range(round_.judged) if committed[index] != drafted[index]]
        assert round_.rejected == len(differing) <= 1
        assert differing in ([], [round_.judged - 1])  # nothing is judged behind a rejection
        assert round_.target_rejected == sum(round_.tiers[index] == "target" for index in differing)
        if round_.discarded:
            assert round_.cut == 0
        if round_.cut:
            assert number == len(drafts) - 1
        done += round_.committed
    assert done == len(output)
