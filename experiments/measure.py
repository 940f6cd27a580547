"""Measure arms on the same examples: a timed pass, a profiled pass, quality and fidelity off the clock."""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import torch

from experiments.conditions.meter import open_meter
from experiments.fidelity import measure_fidelity
from experiments.peak_memory import DevicePeak
from experiments.records import Call, Row, count_rounds, trace_round
from experiments.stopping import cut_at
from experiments.tasks.base import Example, Task
from viasd.decode import Adaptive, Decode, Decoder, Memory, Speculative
from viasd.engine import Engine
from viasd.sampling import SeededDraws

WARM_UP_TOKENS = 32
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """An example with its prompt's ids and its place in the run's order.

    Of a later turn of a conversation the ids are its own until it is completed (experiments.conversations); `history`:
    tokens that may then stand before them at the most.
    """

    index: int
    example: Example
    ids: list[int]
    truncated: int = 0  # tokens cut off at the left, because the models read no more
    history: int = 0


class CallPrices(Protocol):
    """Isolated costs of calls."""

    def seconds(self, arm: str, role: str, fed: int) -> float: ...


class TurnPrices(Protocol):
    """Costs of calls in turn, timed beside the timed passes, and of the loop around them (experiments.turns)."""

    def forget(self) -> None: ...
    def time(self, arm: str) -> None: ...
    def seconds(self, arm: str, calls: Sequence[Sequence[Call]], rounds: int) -> float | None: ...


class Stopwatch:
    """Marks of one generation: prompt read, rounds ended. An accelerator is synchronized where a time begins."""

    def __init__(self, device: torch.device) -> None:
        self._synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.start = self.prefilled = self.first = self.end = 0.0

    def __enter__(self) -> Stopwatch:
        self._synchronize()
        self.start = perf_counter()
        return self

    def __call__(self, event: str) -> None:
        if event == "prefilled":
            self._synchronize()
            self.prefilled = perf_counter()
        elif self.first == 0.0 and event == "round":  # a provisional token is no output yet
            self.first = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._synchronize()
        self.end = perf_counter()


@dataclass
class Profile:
    """Seconds inside forward calls by reader, and the calls of each round.

    `seconds` are this process's, the accelerator synchronized at both ends; `device_seconds` are between two CUDA
    events around the same call, without what the host does before and after: what is left of a call when its launches
    cost nothing. Empty on a CPU.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    device_seconds: dict[str, float] = field(default_factory=dict)
    rounds: list[list[Call]] = field(default_factory=lambda: [[]])  # the last one is open
    adaptive: list[Adaptive | None] = field(default_factory=list)  # of the parts after each round

    def watch(self, role: str, *fed: int) -> CallClock:
        """The clock of one call, or of the calls of a block that is drafted in one replay, by tokens fed.

        The second includes the choice of the tokens, which the replay holds too.
        """
        return CallClock(self, role, fed)

    def end_round(self, adaptive: Adaptive | None = None) -> None:
        """What is called from now on belongs to the next round."""
        self.rounds.append([])
        self.adaptive.append(adaptive)

    def add(self, role: str, fed: Sequence[int], seconds: float) -> None:
        """Calls have ended that took so long together."""
        self.seconds[role] = self.seconds.get(role, 0.0) + seconds
        self.rounds[-1] += [(role, tokens) for tokens in fed]


class CallClock:
    """Around a call, with little of its own: a generator's context manager would cost a part of a small call."""

    __slots__ = ("_events", "_fed", "_profile", "_role", "_start")

    def __init__(self, profile: Profile, role: str, fed: Sequence[int]) -> None:
        self._profile, self._role, self._fed = profile, role, fed
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        if self._profile.device.type == "cuda":
            torch.cuda.synchronize()
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._start = perf_counter()
            self._events[0].record()
        else:
            self._start = perf_counter()

    def __exit__(self, *failed: object) -> None:
        if self._events:
            self._events[1].record()
            torch.cuda.synchronize()
        seconds = perf_counter() - self._start
        if failed[0] is not None:
            return
        if self._events:
            spent, first, last = self._profile.device_seconds, *self._events
            spent[self._role] = spent.get(self._role, 0.0) + first.elapsed_time(last) / 1000
        self._profile.add(self._role, self._fed, seconds)


class Bench:
    """The arms of one run, opened on one engine, and all that their examples share."""

    def __init__(
        self,
        engine: Engine,
        arms: Mapping[str, Decoder],
        task: Task,
        tokenizer: Any,
        decode: Decode,
        seed: int,
        repeats: int,
        costs: CallPrices | None = None,
        turns: TurnPrices | None = None,
    ) -> None:
        self.engine, self.arms, self.task, self.tokenizer = engine, dict(arms), task, tokenizer
        self.decode, self.seed, self.repeats, self.costs, self.turns = decode, seed, repeats, costs, turns
        self.meter = open_meter(engine.device)
        self.peaks: dict[str, int] = {}  # bytes of the accelerator above what lived before an arm's generation
        self._scores: dict[tuple[str, str], dict[str, float]] = {}
        # What an arm knew before the example at an index. At first: what it knows when it was just opened.
        self._memory = {(name, 0): snapshot(decoder) for name, decoder in arms.items()}

    def remember(self, rows: Sequence[Row]) -> None:
        """Take up what arms with `memory: run` knew after examples that are already measured."""
        self._memory |= {(row.arm, row.index + 1): row.memory for row in rows}

    def warm_up(self, prompt_ids: Sequence[int]) -> None:
        """Let every arm decode a little, twice, before anything is timed; what it needs is recorded in between."""
        short = Decode(self.decode.sampling, min(WARM_UP_TOKENS, self.decode.max_new_tokens))
        for prepare in (self.engine.prepare, lambda: None):
            for decoder in self.arms.values():
                with suppress(Exception):  # it will fail on the examples too, and leave a row that says why
                    decoder.generate(prompt_ids, short, SeededDraws(self.seed, "warm-up", self.engine.device))
            prepare()
        gc.collect()
        gc.freeze()  # what lives by now stays: a later collection need not look at it (0.15 s each)

    def refuse(self, prompt: Prompt, reason: Exception) -> list[Row]:
        """An error row per arm for a prompt that cannot be asked."""

        def fail(_: Row) -> None:
            raise reason

        rows = self._rows(prompt)
        for row in rows.values():
            self._guard(row, fail)
        return list(rows.values())

    def _rows(self, prompt: Prompt) -> dict[str, Row]:
        """An empty row for each arm."""
        return {
            name: Row(
                example_id=prompt.example.example_id,
                arm=name,
                index=prompt.index,
                prompt_tokens=len(prompt.ids),
                truncated=prompt.truncated,
                turn=prompt.example.metadata.get("turn", 0),
            )
            for name in self.arms
        }

    def measure(self, prompt: Prompt, timed: bool) -> list[Row]:
        """One row per arm. Timed: arms back to back in an order that rotates with the example and the repeat."""
        rows, names = self._rows(prompt), list(self.arms)
        if timed:
            with collection_off():
                if self.turns is not None:
                    self.turns.forget()
                for repeat in range(self.repeats):
                    shift = (prompt.index + repeat) % len(names)
                    for name in names[shift:] + names[:shift]:
                        with self._timing_turns(name):
                            self._guard(rows[name], lambda row: self._time(row, prompt))
                for name in names:
                    self._guard(rows[name], lambda row: self._profile(row, prompt))
        for name in names:
            self._guard(rows[name], lambda row: self._detail(row, prompt, timed))
        return list(rows.values())

    @contextmanager
    def _timing_turns(self, arm: str) -> Iterator[None]:
        """Time the costs of an arm's calls in turn before and after what is inside."""
        if self.turns is None:
            yield
            return
        self.turns.time(arm)
        yield
        self.turns.time(arm)

    def _guard(self, row: Row, step: Callable[[Row], None]) -> None:
        """An arm that fails leaves an error row without timings; the other arms go on.

        Each step begins with what the arm knew before the example; one that fails teaches it nothing.
        """
        if row.error is not None:
            return
        known = self._memory[row.arm, row.index]
        try:
            self.arms[row.arm].restore(copy.deepcopy(known))
            step(row)
        except Exception as error:
            told = ("example_id", "arm", "index", "prompt_tokens", "truncated", "turn")
            fresh = Row(**{name: getattr(row, name) for name in told})
            row.__dict__.update(fresh.__dict__)
            row.error, row.memory = describe_error(error), known
            self._memory[row.arm, row.index + 1] = known
            LOG.exception("example %s, arm %s", row.example_id, row.arm)

    def _time(self, row: Row, prompt: Prompt) -> None:
        draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
        before = self.meter.read()
        with Stopwatch(self.engine.device) as watch:
            generation = self.arms[row.arm].generate(prompt.ids, self.decode, draws, watch=watch)
        after = self.meter.read()
        row.decode_seconds.append(watch.end - watch.prefilled)
        row.prefill_seconds.append(watch.prefilled - watch.start)
        row.first_token_seconds.append(watch.first - watch.start)
        row.waited_seconds += self.meter.waited_seconds(before, after)
        row.joules += self.meter.joules(before, after)
        count_rounds(row, generation)

    def _profile(self, row: Row, prompt: Prompt) -> None:
        """The same generation again with a clock around every forward; of a loop that is not ours none is known."""
        if not isinstance(self.arms[row.arm], Speculative):
            return
        draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
        profile, decoder = Profile(self.engine.device), self.arms[row.arm]
        with Stopwatch(self.engine.device) as watch:

            def event(name: str) -> None:
                watch(name)
                if name == "prefilled":
                    self.engine.probe.watch = profile.watch
                else:  # a round that output nothing yet is one of the generation's, too
                    profile.end_round(decoder.adaptive())

            try:
                with DevicePeak(self.engine.device) as peak:
                    generation = decoder.generate(prompt.ids, self.decode, draws, watch=event)
            finally:
                self.engine.probe.watch = None
        self.peaks[row.arm] = max(peak.above, self.peaks.get(row.arm, 0))
        row.reader_seconds, row.device_seconds = profile.seconds, profile.device_seconds
        row.profiled_seconds = watch.end - watch.prefilled
        traced = zip(generation.rounds, profile.rounds, profile.adaptive, strict=False)
        row.trace = [trace_round(*one) for one in traced]
        row.ideal_seconds = self._ideal_seconds(row.arm, profile)
        if any(record.held is not None for record in generation.rounds):
            row.parallel_seconds = self._parallel_seconds(row.arm, profile)
        if self.turns is not None:
            row.predicted_seconds = self.turns.seconds(row.arm, profile.rounds, len(generation.rounds))

    def _detail(self, row: Row, prompt: Prompt, timed: bool) -> None:
        """The same generation again with laws and audits recorded; then text and scores."""
        draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
        with self._looking_for_nan():
            generation = self.arms[row.arm].generate(prompt.ids, self.decode, draws, detail=True)
        row.memory = self._memory[row.arm, row.index + 1] = snapshot(self.arms[row.arm])
        laws = generation.laws
        if timed and generation.token_ids != row.token_ids:
            laws = None  # kernels that are not deterministic: the timed output is the one that is reported
        else:
            count_rounds(row, generation)
        row.text = self._text(row.token_ids)
        row.level = prompt.example.metadata.get("level")
        row.scores = self._judge(prompt.example, row.text)
        row.quality = row.scores.get(self.task.quality_name)
        measure_fidelity(self.engine, prompt.ids, row, laws, self.decode.sampling)

    @contextmanager
    def _looking_for_nan(self) -> Iterator[None]:
        """Look at all logits inside. Raises NaNLogits if a reader gave any, also where it led to another error."""
        probe, seen = self.engine.probe, []
        probe.look = lambda role, logits: seen.append((role, logits.isnan().any()))  # read at the end, without waiting
        try:
            yield
        except Exception as error:
            raise_for_nan(seen, error)
            raise
        finally:
            probe.look = None
        raise_for_nan(seen)

    def _ideal_seconds(self, arm: str, profile: Profile) -> float | None:
        """The calls of a generation at their isolated costs."""
        if self.costs is None:
            return None
        return sum(self.costs.seconds(arm, role, fed) for calls in profile.rounds for role, fed in calls)

    def _parallel_seconds(self, arm: str, profile: Profile) -> float | None:
        """The calls of a generation at their isolated costs, drafter and verifier on a device each: modelled.

        A round takes as long as the busier of the two. Slim verifiers and the target are the verifier's, and run in
        turn, for what one says decides whether the next one is asked. What the devices tell each other takes no time.
        """
        if self.costs is None:
            return None
        total = 0.0
        for calls in profile.rounds:
            busy = [0.0, 0.0]
            for role, fed in calls:
                busy[role == "target" or role.startswith("slim")] += self.costs.seconds(arm, role, fed)
            total += max(busy)
        return total

    def _text(self, ids: Sequence[int]) -> str:
        return cut_at(self.tokenizer.decode(ids, skip_special_tokens=True), self.task.stop_strings)

    def _judge(self, example: Example, text: str) -> dict[str, float]:
        key = (example.example_id, text)
        if key not in self._scores:  # arms that write the same text have the same score
            self._scores[key] = self.task.scores(example, text)
        return self._scores[key]


def snapshot(decoder: Decoder) -> Memory:
    """What a decoder remembers, as it will be read from a row."""
    memory: Memory = json.loads(json.dumps(decoder.memory()))
    return memory


class NaNLogits(ArithmeticError):
    """A model whose rows are not numbers: its output is void."""


def raise_for_nan(seen: Sequence[tuple[str, torch.Tensor]], cause: Exception | None = None) -> None:
    """Raises NaNLogits where one of the calls (reader's role, whether there was NaN) had any."""
    flawed = [role for role, flag in seen if flag]
    if flawed:
        raise NaNLogits(f"reader {flawed[0]} gave NaN logits, in {flawed.count(flawed[0])} of its calls") from cause


def describe_error(error: Exception) -> str:
    """What an error row says; where memory ran out, also what to lower."""
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the examples that follow
        return f"out of memory; lower task.max_new_tokens, or take engine.dtype=bfloat16 or a smaller pair ({told})"
    return told


@contextmanager
def collection_off() -> Iterator[None]:
    """No garbage collection inside: it would fall on whatever is timed just then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def with_readers(arms: Mapping[str, Decoder]) -> dict[str, Speculative]:
    """The arms that are decode loops of this project: of others neither calls nor caches are known."""
    return {name: decoder for name, decoder in arms.items() if isinstance(decoder, Speculative)}
