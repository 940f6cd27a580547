"""Isolated step costs: what one forward of a reader takes, by the number of tokens fed. Calibrated once and stored."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.eagle.reader import HeadReader
from experiments.identity import digest
from experiments.measure import Stopwatch, collection_off
from experiments.store import create_folder, read_json, settle_json
from viasd.decode import Speculative
from viasd.engine import Engine
from viasd.models import Kept, name_kept
from viasd.reader import Reader

WARM_UPS = 1  # cycles that are not kept
FED = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)  # tokens fed in the steps that are timed for a run
PIECE = 512  # tokens fed at a time where a cache is filled
CONTEXT, REPEATS = 256, 3  # tokens in the cache behind which they are timed, at most; and how many series of them
LONG, FEW = 8, 3  # steps of more tokens than LONG are rare in a round, and take long: at most so many in a row
SERIES = 8  # steps in a row, of which all but the first are timed: as vanilla's, and the drafter's, follow each other


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
def time_readers(
    engine: Engine,
    timed: Mapping[str, Timed],
    lengths: Sequence[int],
    context: int,
    repeats: int,
    *,
    series: int = 2,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, CostCurve]:
    """Costs by name. Every reader has read the same `context` random ids.

    A judge computes a row for each fed token, the drafter one, as they do in a round. A cycle holds each step once, in
    random order, so that what the machine does meanwhile falls on all: readers, and the steps of one reader in a row.
    A step is done `series` times in a row and the first time does not count: a reader that goes on finds its weights
    near, and after another reader's step it would not. `tick` is called per cycle.
    """
    ids = random_ids(engine, context + lengths[-1], seed)
    for one in timed.values():
        fill(one.reader, ids, context)
    seconds: dict[tuple[str, int], list[float]] = {(name, fed): [] for name in timed for fed in lengths}
    order = random.Random(seed)
    with collection_off():
        for cycle in range(-WARM_UPS, repeats):
            for name in order.sample(list(timed), len(timed)):
                for fed in order.sample(lengths, len(lengths)):
                    steps = series if fed <= LONG else min(series, FEW)
                    spent = time_series(engine.device, timed, name, ids, context, fed, steps)
                    if cycle >= 0:
                        seconds[name, fed] += spent[1:]
            tick()
    curves = {name: CostCurve() for name in timed}
    for name, fed in seconds:
        low, median, high = (float(value) for value in np.percentile(seconds[name, fed], [25, 50, 75]))
        curves[name].steps[fed] = Cost(median, low, high)
    return curves


def fill(reader: Reader, ids: Tensor, context: int) -> None:
    """Read what is not read of ids[:context], a piece at a time: the mask of all would have context^2 entries."""
    while reader.read < context:
        reader.feed(ids, min(reader.read + PIECE, context), last=0)


def random_ids(engine: Engine, count: int, seed: int) -> Tensor:
    """Ids [count] that every model knows."""
    known = min(model.get_input_embeddings().weight.shape[0] for model in engine.models.values())
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(known, engine.vocabulary), (count,), generator=generator).to(engine.device)


def open_readers(engine: Engine, drafter: str | None, views: Mapping[str, Kept]) -> dict[str, Timed]:
    """Every model of the engine by role, and the target's views by name, on its cache, which the target fills first."""
    readers = engine.readers()
    target = readers.get("target")
    roles = ["target", *sorted(set(engine.models) - {"target"})]
    timed = {role: Timed(readers.get(role), (lambda _: 1) if role == drafter else (lambda fed: fed)) for role in roles}
    for name, head in engine.heads.items():
        timed[name] = Timed(HeadReader("draft", name, head, target, engine).pretend(), lambda _: 1)
    for name, kept in views.items():
        timed[name] = Timed(open_slim(engine, kept, target), lambda fed: fed)
    return timed


def open_slim(engine: Engine, kept: Kept, target: Reader) -> Reader:
    """A slim view on the target's cache, as methods open it; any number of them, which one decoder cannot have."""
    view = engine.view(kept)
    forward = engine.forward(view, "target")
    return Reader("slim", view, engine.cache("target"), forward, engine.vocabulary, engine.probe, stronger=target)


def time_series(
    device: torch.device, timed: Mapping[str, Timed], name: str, ids: Tensor, context: int, fed: int, count: int
) -> list[float]:
    """Seconds of each of `count` forwards in a row, an accelerator synchronized at both ends.

    Each feeds the next `fed` ids behind `context`; where the ids end, it goes back to the first of them.
    """
    step, places = timed[name], (len(ids) - context) // fed
    seconds = []
    for index in range(count):
        start = context + index % places * fed
        for one in timed.values():  # a view counts what the target has read as read
            one.reader.rewind(context if one is not step else start)
        with Stopwatch(device) as watch:
            step.reader.feed(ids, start + fed, last=step.rows(fed))
        seconds.append(watch.end - watch.start)
    return seconds


# --- of a run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CallCosts:
    """Seconds of a call by (arm, reader's role, tokens fed), at isolated costs. `cost_id` is a hash of the numbers."""

    cost_id: str
    curves: dict[str, CostCurve]
    names: dict[tuple[str, str], str]  # (arm, role) -> name of the curve
    views: Mapping[str, Kept]  # those of the curves that are the target's views
    context: int  # tokens in the caches behind which steps are timed

    def seconds(self, arm: str, role: str, fed: int) -> float:
        return self.curves[self.names[arm, role]].seconds(fed)


def calibrate(engine: Engine, arms: Mapping[str, Speculative], who: Mapping[str, Any], results: Path) -> CallCosts:
    """The costs of every reader of the arms: stored ones of this pair, machine and code, else measured and stored now.

    No decision of a method reads them; they say what a run would take without this harness's own time.
    """
    layers = {id(view): kept for kept, view in engine.views.items()}
    roles = {id(model): role for role, model in [*engine.models.items(), *engine.heads.items()]}
    names, views = {}, {}
    for arm, decoder in arms.items():
        for reader in decoder.readers.opened():
            assert isinstance(reader, Reader)
            kept = layers.get(id(reader.model))
            name = roles[id(reader.model)] if kept is None else f"slim {name_kept(kept)}"
            names[arm, reader.role] = name
            if kept is not None:
                views[name] = kept
    lengths = [fed for fed in FED if fed < engine.slots]
    context = max(1, min(CONTEXT, engine.slots // 2, engine.slots - lengths[-1]))  # halfway through a long request
    asked = {**who, "readers": sorted({*engine.models, *engine.heads, *views}), "context": context, "lengths": lengths}
    path = results / "settled" / f"costs_{digest(asked)}.json"
    stored = read_json(path)
    if stored is None:
        timed = open_readers(engine, "draft", views)
        measured = time_readers(engine, timed, lengths, context, REPEATS, series=SERIES)
        stored = {name: {str(fed): asdict(cost) for fed, cost in one.steps.items()} for name, one in measured.items()}
        create_folder(path.parent, results)
        stored = settle_json(path, stored)
    curves = {
        name: CostCurve({int(fed): Cost(**cost) for fed, cost in steps.items()}) for name, steps in stored.items()
    }
    return CallCosts(
        digest(stored), curves, names, views, context
    )  # of the numbers: a file that was removed is measured anew
