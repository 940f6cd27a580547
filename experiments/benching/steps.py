"""Single steps of every reader: seconds, the share of the memory's bandwidth they achieve, and in another mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from experiments.benching.setup import BenchPlan
from experiments.costs import Cost, open_readers, time_readers
from experiments.measure import Stopwatch
from viasd.decode import Speculative
from viasd.engine import Engine, Mode
from viasd.forward import STATIC_ROTATIONS, obstacle
from viasd.models import Branches
from viasd.reader import Reader

DRAFTER = "draft"
OTHER = " in the other mode"
COPIES = 7  # timed copies before the steps of each context; the first is dropped
Views = dict[str, tuple[int, ...] | Branches]  # by name, what a slim view of the target keeps


@dataclass(frozen=True)
class Step:
    """One forward over `fed` tokens. The longest of the steps at a context ends with token number `context`.

    `other` is the cost of the same step in the other mode; None where the model has but one. `read_bytes` is what the
    step must read from memory.
    """

    reader: str
    fed: int
    context: int
    cost: Cost
    other: Cost | None
    read_bytes: int


@dataclass(frozen=True)
class Steps:
    """All steps; bytes per second of a copy on this device; the two modes; contexts that could not be timed."""

    steps: list[Step]
    copy_bandwidth: float
    modes: tuple[Mode, Mode]
    unread: list[int]


def timeable(contexts: Sequence[int], reads: int, models: Iterable[Any]) -> list[int]:
    """The contexts at which models that read `reads` tokens can be timed, in order.

    What they say beyond that is worth nothing, but costs the same, as long as the angles of a position depend on
    nothing else: then all contexts can.
    """
    static = all(_rotation(model) in STATIC_ROTATIONS for model in models)
    return sorted({context for context in contexts if static or context <= reads})


def _rotation(model: Any) -> str | None:
    return getattr(getattr(model.get_decoder(), "rotary_emb", None), "rope_type", None)


def find_views(engine: Engine, decoders: Mapping[str, Speculative]) -> Views:
    """The slim views that the methods opened: `slim` is the first, others are named after their method."""
    layers = {id(view): kept for kept, view in engine.views.items()}
    found: Views = {}
    for name, decoder in decoders.items():
        for reader in decoder.readers.opened():
            assert isinstance(reader, Reader)
            kept = layers.get(id(reader.model))
            if kept is not None and kept not in found.values():
                found[f"slim of {name}" if found else "slim"] = kept
    return found


def measure_steps(plan: BenchPlan, models: dict[str, Any], views: Views, tick: Callable[[], object]) -> Steps:
    """A step of one token, and for judges one of a draft and a token, at each context. `tick` is called per cycle.

    Readers of two engines on the same models are interleaved: the mode that was asked for and, beside it, `eager`
    (`auto`, where that was asked for).
    """
    settings, asked = plan.job.settings, plan.job.run.engine.mode
    contexts = timeable(settings.contexts, plan.reads, models.values())
    modes: tuple[Mode, Mode] = (asked, "auto" if asked == "eager" else "eager")
    unread, lengths = sorted(set(settings.contexts) - set(contexts)), sorted({1, (plan.job.draft_length or 0) + 1})
    engine, beside = (Engine(models, plan.vocabulary, max(contexts, default=1), mode) for mode in modes)
    own, others = (open_readers(one, DRAFTER, views) for one in (engine, beside))
    timed = {**own, **{name + OTHER: reader for name, reader in others.items()}}
    steps: list[Step] = []
    bandwidths = [copy_bandwidth(engine.device, settings.copy_mib)]
    for context in contexts:
        start = context - lengths[-1]
        curves = time_readers(engine, timed, lengths, start, settings.step_repeats, seed=settings.seed, tick=tick)
        bandwidths.append(copy_bandwidth(engine.device, settings.copy_mib))
        for name, one in own.items():
            only = obstacle(one.reader.model) is not None  # such a model is always eager
            for fed in lengths[:1] if name == DRAFTER else lengths:
                other = None if only else curves[name + OTHER].steps[fed]
                size = bytes_to_read(one.reader, fed, start + fed)
                steps.append(Step(name, fed, context, curves[name].steps[fed], other, size))
    return Steps(steps, median(bandwidths), modes, unread)


def copy_bandwidth(device: torch.device, mebibytes: int) -> float:
    """Bytes per second that a copy reads and writes, the median of some."""
    source = torch.ones(mebibytes * 2**18, dtype=torch.float32, device=device)
    place = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        with Stopwatch(device) as watch:
            place.copy_(source)
        seconds.append(watch.end - watch.start)
    return 2 * source.nbytes / median(seconds[1:])


def bytes_to_read(reader: Reader, fed: int, stop: int) -> int:
    """Bytes of the weights, and of the keys and values, without which a forward of tokens up to `stop` cannot do.

    A window of attention counts as far as it reaches; an input embedding that is no head counts by the rows taken.
    """
    model = reader.model
    weights = {one.data_ptr(): one.nbytes for one in model.parameters()}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embedding.data_ptr() != head.data_ptr():
        weights[embedding.data_ptr()] = fed * embedding[0].nbytes
    base = model.get_decoder()
    types = getattr(base.config, "layer_types", None)
    window = getattr(base.config, "sliding_window", None) or stop
    seen = {"full_attention": stop, "sliding_attention": min(stop, window + fed - 1)}
    entries = 0
    for place, layer in enumerate(base.layers):
        index = layer.self_attn.layer_idx
        slot = reader.cache.keys[index][:, :, 0].nbytes + reader.cache.values[index][:, :, 0].nbytes
        entries += slot * seen["sliding_attention" if types is None else types[place]]
    return sum(weights.values()) + entries
