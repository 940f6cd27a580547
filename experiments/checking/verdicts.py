"""The questions that a check asks of a pair, each with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from experiments.checking.facts import ModelFacts
from experiments.checking.memory import USUAL_TOKENS, fits
from experiments.config import EngineSpec
from viasd.engine import resolve_device, resolve_dtype
from viasd.hub import cache_folder, free_bytes, is_hub_id
from viasd.models import Pair, PairError, common_vocabulary, locate
from viasd.spec import spec

Answer = Literal["yes", "no", "unknown", "-"]
GB = 1e9


@spec
class CheckSettings:
    """The scalars of a check (conf/check.yaml says what each means)."""

    tokens: Annotated[int, Field(ge=1)] | None
    memory: Annotated[float, Field(gt=0)] | None
    headroom: Annotated[float, Field(ge=0, lt=1)]
    debug: bool


@dataclass(frozen=True)
class Verdict:
    """One question: `no` means that a run would fail."""

    question: str
    answer: Answer
    why: str


def judge(pair: Pair, engine: EngineSpec, settings: CheckSettings, facts: Sequence[ModelFacts]) -> list[Verdict]:
    """All questions in their order."""
    return [
        *access(pair, facts),
        memory(pair, engine, settings, facts),
        disk(facts),
        context(settings.tokens, facts),
        tokenizers(pair, facts),
        forwards(pair, engine, facts),
        extras(pair),
    ]


def planned_dtype(engine: EngineSpec, settings: CheckSettings) -> torch.dtype:
    """The engine's dtype; for a memory that is only planned with, `auto` is what it is on CUDA."""
    planned = settings.memory is not None
    return resolve_dtype(engine.dtype, torch.device("cuda") if planned else resolve_device(engine.device))


def device_memory(pair: Pair, engine: EngineSpec) -> tuple[str, float]:
    """Name and free bytes of where the pair will run: of all CUDA devices with `device_map: auto`."""
    device = resolve_device(engine.device)
    if device.type == "cuda":
        count = torch.cuda.device_count() if pair.device_map == "auto" else 1
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(count))
        return f"{count} x {torch.cuda.get_device_name(0)}" if count > 1 else torch.cuda.get_device_name(0), float(free)
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable:"):
            return "cpu", float(line.split()[1]) * 1024
    return "cpu", float("nan")


def access(pair: Pair, facts: Sequence[ModelFacts]) -> list[Verdict]:
    """Whether each model is to be had, where it is not known to be, and under which licence."""
    refused = [
        Verdict(f"{one.role} there", "unknown" if one.unreachable else "no", one.refusal)
        for one in facts
        if one.refusal is not None
    ]
    about = pair.about
    gate = "; gated: accept it on the models' pages of the hub, then set HF_TOKEN" if about.gated else ""
    return [*refused, *([Verdict("licence", "-", about.licence + gate)] if about.licence else [])]


def memory(pair: Pair, engine: EngineSpec, settings: CheckSettings, facts: Sequence[ModelFacts]) -> Verdict:
    """Whether weights and caches leave the headroom."""
    width = planned_dtype(engine, settings).itemsize
    place, free = device_memory(pair, engine) if settings.memory is None else ("a device", settings.memory * GB)
    sizes = {one.role: one.size for one in facts if one.size is not None}
    if len(sizes) < len(facts) or free != free:
        lacking = ", ".join(one.role for one in facts if one.size is None) or f"free memory of {place}"
        return Verdict("memory", "unknown", f"nothing tells the size of: {lacking}")
    weights = sum(size.weights(width, pair.quantization.get(role)) for role, size in sizes.items())
    weights += sum(path.stat().st_size for name in pair.heads.values() for path in locate(name).glob("*.safetensors"))
    tokens = count_tokens(settings, facts)
    caches = sum(size.caches(tokens, width) for size in sizes.values())
    text = (
        f"{(weights + caches) / GB:.2f} GB (weights {weights / GB:.2f}, caches of {tokens} tokens "
        f"{caches / GB:.2f}) of {free / GB:.1f} GB on {place}, of which {settings.headroom:.0%} are left free"
    )
    if fits(weights + caches, free, settings.headroom):
        return Verdict("memory", "yes", text)
    advice = "pair.quantization.target=int4, pair.device_map=auto, a smaller pair"
    return Verdict("memory", "no", f"{text}; what helps: {advice}")


def disk(facts: Sequence[ModelFacts]) -> Verdict:
    """Whether what is to be downloaded fits the disk of the hub's cache."""
    if any(one.download is None for one in facts):
        return Verdict("disk", "unknown", "nothing tells how much there is to download")
    total = sum(one.download or 0.0 for one in facts)
    if not total:
        return Verdict("disk", "yes", "nothing to download")
    free = free_bytes(cache_folder())
    text = f"about {total / GB:.1f} GB to download, {free / GB:.1f} GB free in {cache_folder()}"
    return Verdict("disk", "yes" if total < free else "no", text + ("" if total < free else "; HF_HUB_CACHE moves it"))


def count_tokens(settings: CheckSettings, facts: Sequence[ModelFacts]) -> int:
    """Tokens that caches must hold."""
    return settings.tokens or min([USUAL_TOKENS, *(one.context for one in facts if one.context is not None)])


def context(tokens: int | None, facts: Sequence[ModelFacts]) -> Verdict:
    """Whether every model reads that many tokens."""
    known = {one.role: one.context for one in facts if one.context is not None}
    if not known:
        return Verdict("context", "unknown", "nothing tells how much the models read")
    role = min(known, key=lambda name: known[name])
    enough = tokens is None or known[role] >= tokens
    return Verdict("context", "yes" if enough else "no", f"the {role} model reads {known[role]} tokens")


def tokenizers(pair: Pair, facts: Sequence[ModelFacts]) -> Verdict:
    """Whether the models share token ids, as a run will ask."""
    if any(one.refusal is not None for one in facts if one.role in ("target", "draft")):
        return Verdict("tokenizers", "unknown", "not there")
    try:
        count = common_vocabulary(pair)
    except PairError as error:
        return Verdict("tokenizers", "no", str(error))
    return Verdict("tokenizers", "yes", f"{count} ids" + (", shared" if "draft" in pair.models else ""))


def forwards(pair: Pair, engine: EngineSpec, facts: Sequence[ModelFacts]) -> Verdict:
    """Whether the models run as `engine.mode` asks."""
    known = {one.role: one.fused for one in facts if one.fused is not None}
    known |= {role: f"weights in {bits}" for role, bits in pair.quantization.items() if bits is not None}
    if len(known) < len(facts):
        return Verdict("fused", "unknown", "no configuration there")
    hindered = "; ".join(f"{role}: {reason}" for role, reason in known.items() if reason)
    if not hindered:
        return Verdict("fused", "yes", "all models")
    asked = engine.mode not in ("auto", "eager")
    return Verdict("fused", "no" if asked else "-", f"{hindered}: through the library's modules (engine.mode=eager)")


def extras(pair: Pair) -> Verdict:
    """Masks and heads that come with the pair."""
    masks = [name for name in pair.masks if locate(name).is_file()]
    told = f"{len(masks)} of {len(pair.masks)} masks" if pair.masks else "no masks (layers are skipped evenly)"
    heads = [f"{name} ({'on a hub' if is_remote(folder) else 'there'})" for name, folder in pair.heads.items()]
    ratio = f", skip_ratio {pair.about.skip_ratio:g}" if pair.about.skip_ratio is not None else ""
    lacking = len(masks) < len(pair.masks)
    return Verdict("masks, heads", "no" if lacking else "-", f"{told}{ratio}; heads: {', '.join(heads) or 'none'}")


def is_remote(name: str) -> bool:
    """Whether a head is no folder here."""
    return not locate(name).is_dir() and is_hub_id(name.partition("@")[0])
