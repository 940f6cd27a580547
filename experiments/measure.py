"""Measure arms on the same examples: a timed pass, a profiled pass, quality and fidelity off the clock."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from experiments.fidelity import measure_fidelity
from experiments.records import Row, count_rounds
from experiments.stopping import cut_at
from experiments.tasks.base import Example, Task
from viasd.decode import Decode, Speculative
from viasd.engine import Engine
from viasd.reader import Reader
from viasd.sampling import SeededDraws

WARM_UP_TOKENS = 32
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """An example with its prompt's ids and its place in the run's order."""

    index: int
    example: Example
    ids: list[int]
    truncated: int = 0  # tokens cut off at the left, because the models read no more


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
        elif self.first == 0.0:
            self.first = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._synchronize()
        self.end = perf_counter()


@dataclass
class Profile:
    """Seconds inside forward calls, by reader."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def watch(self, role: str, fed: int) -> Iterator[None]:
        self._synchronize()
        start = perf_counter()
        yield
        self._synchronize()
        self.seconds[role] = self.seconds.get(role, 0.0) + perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Bench:
    """The arms of one run, opened on one engine, and all that their examples share."""

    def __init__(
        self,
        engine: Engine,
        arms: dict[str, Speculative],
        task: Task,
        tokenizer: Any,
        decode: Decode,
        seed: int,
        repeats: int,
    ) -> None:
        self.engine, self.arms, self.task, self.tokenizer = engine, arms, task, tokenizer
        self.decode, self.seed, self.repeats = decode, seed, repeats
        self._scores: dict[tuple[str, str], float] = {}

    def warm_up(self, prompt_ids: Sequence[int]) -> None:
        """Let every arm decode a little, twice, before anything is timed."""
        short = Decode(self.decode.sampling, min(WARM_UP_TOKENS, self.decode.max_new_tokens))
        for _ in range(2):
            for decoder in self.arms.values():
                with suppress(Exception):  # it will fail on the examples too, and leave a row that says why
                    decoder.generate(prompt_ids, short, SeededDraws(self.seed, "warm-up", self.engine.device))

    def measure(self, prompt: Prompt, timed: bool) -> list[Row]:
        """One row per arm. Timed: arms back to back in an order that rotates with the example and the repeat."""
        rows = {
            name: Row(
                example_id=prompt.example.example_id,
                arm=name,
                index=prompt.index,
                prompt_tokens=len(prompt.ids),
                truncated=prompt.truncated,
            )
            for name in self.arms
        }
        names = list(self.arms)
        if timed:
            with collection_off():
                for repeat in range(self.repeats):
                    shift = (prompt.index + repeat) % len(names)
                    for name in names[shift:] + names[:shift]:
                        self._guard(rows[name], lambda row: self._time(row, prompt))
        for name in names:
            self._guard(rows[name], lambda row: self._detail(row, prompt, timed))
        return list(rows.values())

    def _guard(self, row: Row, step: Callable[[Row], None]) -> None:
        """An arm that fails leaves an error row without timings; the other arms go on."""
        if row.error is not None:
            return
        try:
            step(row)
        except Exception as error:
            told = ("example_id", "arm", "index", "prompt_tokens", "truncated")
            fresh = Row(**{name: getattr(row, name) for name in told})
            row.__dict__.update(fresh.__dict__)
            row.error = f"{type(error).__name__}: {error}"
            LOG.exception("example %s, arm %s", row.example_id, row.arm)

    def _time(self, row: Row, prompt: Prompt) -> None:
        draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
        with Stopwatch(self.engine.device) as watch:
            generation = self.arms[row.arm].generate(prompt.ids, self.decode, draws, watch=watch)
        row.decode_seconds.append(watch.end - watch.prefilled)
        row.prefill_seconds.append(watch.prefilled - watch.start)
        row.first_token_seconds.append(watch.first - watch.start)
        count_rounds(row, generation)

    def _detail(self, row: Row, prompt: Prompt, timed: bool) -> None:
        """The same generation again with laws and audits recorded, profiled if it was timed; then text and scores."""
        draws = SeededDraws(self.seed, prompt.example.example_id, self.engine.device)
        profile = Profile(self.engine.device)
        with Stopwatch(self.engine.device) as watch:

            def event(name: str) -> None:
                watch(name)
                if name == "prefilled" and timed:
                    self.engine.probe.watch = profile.watch

            try:
                generation = self.arms[row.arm].generate(prompt.ids, self.decode, draws, detail=True, watch=event)
            finally:
                self.engine.probe.watch = None
        laws = generation.laws
        if timed and generation.token_ids != row.token_ids:
            laws = None  # kernels that are not deterministic: the timed output is the one that is reported
        else:
            count_rounds(row, generation)
        if timed:
            row.reader_seconds, row.profiled_seconds = profile.seconds, watch.end - watch.prefilled
        row.text = self._text(row.token_ids)
        row.quality = self._score(prompt.example, row.text)
        measure_fidelity(self.engine, prompt.ids, row, laws, self.decode.sampling)

    def _text(self, ids: Sequence[int]) -> str:
        return cut_at(self.tokenizer.decode(ids, skip_special_tokens=True), self.task.stop_strings)

    def _score(self, example: Example, text: str) -> float:
        key = (example.example_id, text)
        if key not in self._scores:  # arms that write the same text have the same score
            self._scores[key] = float(self.task.score(example, text))
        return self._scores[key]


@contextmanager
def collection_off() -> Iterator[None]:
    """No garbage collection inside: it would fall on whatever is timed just then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def memory(engine: Engine, decoder: Speculative) -> float:
    """Bytes of an arm's distinct parameters and caches."""
    parameters: dict[int, int] = {}
    caches: dict[int, int] = {}
    for reader in decoder.readers.opened():
        assert isinstance(reader, Reader)
        for tensor in reader.model.parameters():
            parameters[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        caches[id(reader.cache)] = reader.cache.memory_bytes
    return float(sum(parameters.values()) + sum(caches.values()))
