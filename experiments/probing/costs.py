"""Isolated step costs: what one forward of each reader takes, by the number of tokens fed."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from experiments.measure import Stopwatch, collection_off
from experiments.probing.setup import ProbeJob, View, open_slim
from viasd.engine import Engine
from viasd.reader import Reader

WARM_UPS = 2  # cycles that are not kept


@dataclass(frozen=True)
class Cost:
    """Seconds of one forward: the median of its repeats and their quartiles."""

    median: float
    low: float
    high: float


@dataclass
class CostCurve:
    """A reader's cost by fed length; `steps` ascend in tokens."""

    steps: dict[int, Cost] = field(default_factory=dict)

    def seconds(self, fed: int) -> float:
        """The median, linear between measured lengths and beyond the longest; below the shortest, the shortest's."""
        lengths = list(self.steps)
        right = min(bisect_left(lengths, fed), len(lengths) - 1)
        if right == 0:
            return self.steps[lengths[0]].median
        a, b = lengths[right - 1], lengths[right]
        low, high = self.steps[a].median, self.steps[b].median
        return low + (high - low) * (fed - a) / (b - a)


@dataclass(frozen=True)
class Timed:
    """A reader to be timed. `rows` is how many of its last logit rows a step of n fed tokens computes."""

    reader: Reader
    rows: Callable[[int], int]


@torch.inference_mode()
def measure_costs(engine: Engine, job: ProbeJob, context: int, tick: Callable[[], object]) -> dict[str, CostCurve]:
    """Costs by role, and by name for the views. Every reader has read the same `context` random ids.

    A judge computes a row for each fed token, the drafter one, as they do in a round. A cycle holds each step once:
    readers in random order, so that what the machine does meanwhile falls on all, and the steps of one reader in a row
    and in random order, so that the first one, which finds a cold processor cache, is another one each time. `tick` is
    called per cycle.
    """
    lengths = job.settings.timed_lengths
    timed = open_readers(engine, job.views, job.drafter)
    ids = random_ids(engine, context + lengths[-1], job.settings.seed)
    for one in timed.values():
        if one.reader.read < context:
            one.reader.feed(ids, context, last=0)
    seconds: dict[tuple[str, int], list[float]] = {(name, fed): [] for name in timed for fed in lengths}
    order = random.Random(job.settings.seed)
    with collection_off():
        for cycle in range(-WARM_UPS, job.settings.repeats):
            for name in order.sample(list(timed), len(timed)):
                for fed in order.sample(lengths, len(lengths)):
                    spent = time_step(engine.device, timed, name, ids, context, fed)
                    if cycle >= 0:
                        seconds[name, fed].append(spent)
            tick()
    curves = {name: CostCurve() for name in timed}
    for name, fed in seconds:
        low, median, high = (float(value) for value in np.percentile(seconds[name, fed], [25, 50, 75]))
        curves[name].steps[fed] = Cost(median, low, high)
    return curves


def random_ids(engine: Engine, count: int, seed: int) -> Tensor:
    """Ids [count] that every model knows."""
    known = min(model.get_input_embeddings().weight.shape[0] for model in engine.models.values())
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(known, engine.vocabulary), (count,), generator=generator).to(engine.device)


def open_readers(engine: Engine, views: Sequence[View], drafter: str | None) -> dict[str, Timed]:
    """The target first: views find its keys and values in the shared cache."""
    readers = engine.readers()
    target = readers.get("target")
    roles = ["target", *sorted(set(engine.models) - {"target"})]
    timed = {role: Timed(readers.get(role), (lambda _: 1) if role == drafter else (lambda fed: fed)) for role in roles}
    for view in views:
        timed[view.name] = Timed(open_slim(engine, view.kept, target), lambda fed: fed)
    return timed


def time_step(device: torch.device, timed: dict[str, Timed], name: str, ids: Tensor, context: int, fed: int) -> float:
    """Seconds of one forward over `fed` tokens behind `context`, an accelerator synchronized at both ends."""
    for one in timed.values():  # a view counts what the target has read as read
        one.reader.rewind(context)
    step = timed[name]
    with Stopwatch(device) as watch:
        step.reader.feed(ids, context + fed, last=step.rows(fed))
    return watch.end - watch.start
