"""What calls cost in turn, timed beside the examples, and what a loop takes outside of them: for predicted speeds.

An isolated cost (experiments.costs) is of a step in a row of its own, once. In a round readers take turns: the first
call after another reader's finds its weights farther away. And a shared machine is twice as fast in one minute as in
the next, not for all readers alike. So steps are timed once more right before and behind each timed pass, each behind
the reader that came before it in the arm's own rounds. Nothing here reads a clock of the passes that it predicts.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch

from experiments.costs import CallCosts, CostCurve, fill, open_readers, random_ids, time_series
from experiments.measure import Stopwatch, collection_off
from experiments.records import Call
from viasd.decode import Decode, Speculative
from viasd.engine import Engine
from viasd.sampling import SeededDraws

CALLS = 8  # repeated at a time, for each reader of the arm: a stretch, one before and one behind each timed pass
NEAR = 6  # stretches on either side of an arm's own that count for it: its own calls alone are few
WATCHED_TOKENS = 32  # decoded by an arm on each calibration prompt

Step = tuple[str, int]  # name of a reader's costs, tokens fed
Turn = tuple[str, str]  # names of the reader before and of the one that is called
Samples = Mapping[Turn, Sequence[tuple[float, float]]]  # seconds that a call in turn took, and its isolated cost
Ratios = dict[Turn, float]


@dataclass(frozen=True)
class Watched:
    """One call of a watched generation, or the calls of a block that ran as one, from start to end in seconds."""

    role: str
    fed: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Loop:
    """Seconds of an arm's loop outside of calls: of a round, and between two draft steps of it."""

    per_round: float
    per_step: float


class LoopWatch:
    """Watches one generation: its calls, and how many there were by the end of each round, the prompt's left out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clocks: list[tuple[str, tuple[int, ...], Stopwatch]] = []
        self.ends: list[tuple[int, float]] = []  # calls so far, the time; the first one: the prompt is read

    def __call__(self, event: str) -> None:
        if event == "prefilled":
            self._engine.probe.watch = self._call
        self.ends.append((len(self._clocks), perf_counter()))

    def _call(self, role: str, *fed: int) -> Stopwatch:
        clock = Stopwatch(self._engine.device)
        self._clocks.append((role, fed, clock))
        return clock

    @property
    def calls(self) -> list[Watched]:
        return [Watched(role, fed, clock.start, clock.end) for role, fed, clock in self._clocks]


def outside(calls: Sequence[Watched], ends: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Seconds outside of calls: of each round without those between two calls of one reader, and each of these.

    Calls that ran as one have none between them.
    """
    rounds: list[float] = []
    steps: list[float] = []
    for (first, start), (last, end) in pairwise(ends):
        own = calls[first:last]
        between = [after.start - before.end for before, after in pairwise(own) if before.role == after.role]
        rounds.append(end - start - sum(call.end - call.start for call in own) - sum(between))
        steps += between + [0.0] * sum(len(call.fed) - 1 for call in own)
    return rounds, steps


def in_turn(calls: Sequence[Step]) -> list[tuple[Step, Step]]:
    """Each call of a generation behind the one before it; the first one, which follows a prefill, behind the last."""
    return list(zip([*calls[-1:], *calls[:-1]], calls, strict=True))


def average(samples: Samples) -> Ratios:
    """Timed over isolated seconds of each turn, total over total. A turn that was not sampled is not in the result.

    Not the median: a total is to be predicted, in which calls that other processes interrupt count too.
    """
    return {
        turn: sum(spent for spent, _ in own) / sum(isolated for _, isolated in own) for turn, own in samples.items()
    }


def merge(samples: Iterable[Samples]) -> Samples:
    """Those of several stretches together."""
    merged: dict[Turn, list[tuple[float, float]]] = defaultdict(list)
    for stretch in samples:
        for turn, own in stretch.items():
            merged[turn] += own
    return merged


def price(calls: Sequence[Step], curves: Mapping[str, CostCurve], ratios: Ratios) -> float:
    """Seconds of a generation's calls: each one's isolated cost times the ratio of its turn.

    A turn that was not timed has the median of those that lead to the same reader, or 1.
    """
    reached: dict[str, list[float]] = defaultdict(list)
    for (_, name), ratio in ratios.items():
        reached[name].append(ratio)
    others = {name: median(own) for name, own in reached.items()}
    return sum(
        curves[name].seconds(fed) * ratios.get((before, name), others.get(name, 1.0))
        for (before, _), (name, fed) in in_turn(calls)
    )


class Turns:
    """Prices of an example's calls and loops, by arm.

    `watch_loops` comes first: it sees what calls an arm makes in turn, and what its loop takes. Around each timed pass
    of an example `time` repeats some of these calls; `seconds` then prices a generation of that example.

    Each call is timed alone. On CUDA, where drafts may be one recording and the host runs ahead, that is too much.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, costs: CallCosts, seed: int = 0) -> None:
        self._engine, self._costs, self._random = engine, costs, random.Random(seed)
        self._longest = min(max(curve.steps) for curve in costs.curves.values())
        self._ids = random_ids(engine, costs.context + self._longest, seed)
        self._timed = open_readers(engine, "draft", costs.views)
        for one in self._timed.values():
            fill(one.reader, self._ids, costs.context)
        self._seen: dict[str, list[list[Step]]] = defaultdict(list)  # by arm: generations of calibration prompts
        self._stretches: list[tuple[str, Samples]] = []  # arms in the order of time
        self.loops: dict[str, Loop] = {}

    def watch_loops(
        self, arms: Mapping[str, Speculative], prompts: Sequence[Sequence[int]], decode: Decode, seed: int
    ) -> None:
        """Let warm arms decode a little of calibration prompts, watched. One that fails is not predicted."""
        short = Decode(decode.sampling, min(WATCHED_TOKENS, decode.max_new_tokens))
        with collection_off():
            for name, decoder in arms.items():
                with suppress(Exception):  # it will fail on the examples too, and leave a row that says why
                    self._watch(name, decoder, prompts, short, seed)

    def _watch(
        self, arm: str, decoder: Speculative, prompts: Sequence[Sequence[int]], decode: Decode, seed: int
    ) -> None:
        rounds: list[float] = []
        steps: list[float] = []
        for index, prompt in enumerate(prompts):
            watch = LoopWatch(self._engine)
            try:
                decoder.generate(prompt, decode, SeededDraws(seed, f"loop-{index}", self._engine.device), watch=watch)
            finally:
                self._engine.probe.watch = None
            calls = self._named(arm, [(call.role, fed) for call in watch.calls for fed in call.fed])
            if not calls:
                return  # a loop of the library: nothing looks into it
            self._seen[arm].append(calls)
            own, between = outside(watch.calls, watch.ends)
            rounds, steps = rounds + own, steps + between
        self.loops[arm] = Loop(median(rounds), median(steps) if steps else 0.0)

    def forget(self) -> None:
        """Another example: the machine may have changed."""
        self._stretches.clear()

    @torch.inference_mode()
    def time(self, arm: str) -> None:
        """Repeat a stretch of the arm's calls and time them; the first one is behind nothing, so it does not count."""
        if arm not in self.loops:
            return
        calls = self._random.choice(self._seen[arm])
        count = min(CALLS * len({name for name, _ in calls}), len(calls))
        first = self._random.randrange(len(calls) - count + 1)
        stretch = calls[first : first + count]
        spent = [self._step(step) for step in stretch]
        samples: dict[Turn, list[tuple[float, float]]] = defaultdict(list)
        for (before, _), (name, fed), seconds in zip(stretch, stretch[1:], spent[1:], strict=False):
            isolated = self._costs.curves[name].seconds(min(fed, self._longest))
            samples[before, name].append((seconds, isolated))
        self._stretches.append((arm, samples))

    def _step(self, step: Step) -> float:
        (name, fed), context = step, self._costs.context
        fed = min(fed, self._longest)
        return time_series(self._engine.device, self._timed, name, self._ids, context, fed, 1)[0]

    def seconds(self, arm: str, calls: Sequence[Sequence[Call]], rounds: int) -> float | None:
        """What a generation takes: its calls, which stand by round, and the loop's own time. None: not watched.

        What was timed near the arm's own passes counts; for a turn that was not, what was timed at all.
        """
        if arm not in self.loops:
            return None
        loop = self.loops[arm]
        steps = sum(one == other for own in calls for (one, _), (other, _) in pairwise(own))
        flat = self._named(arm, [call for own in calls for call in own])
        everything = [samples for _, samples in self._stretches]
        own = [place for place, (name, _) in enumerate(self._stretches) if name == arm]
        near = [one for place, one in enumerate(everything) if any(abs(place - other) <= NEAR for other in own)]
        ratios = average(merge(everything)) | average(merge(near))
        return price(flat, self._costs.curves, ratios) + rounds * loop.per_round + steps * loop.per_step

    def _named(self, arm: str, calls: Sequence[Call]) -> list[Step]:
        return [(self._costs.names[arm, role], fed) for role, fed in calls]
