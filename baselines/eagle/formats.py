"""Formats of published heads: which one a checkpoint is, how its keys are named, and which keys it must have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch

from baselines.eagle.head import EagleHead, HeadShape

Format = Literal["safeailab-1", "safeailab-3", "speculators", "model-optimizer"]
Sizes = Mapping[str, tuple[int, ...]]

TITLES: dict[Format, str] = {
    "safeailab-1": "EAGLE-1/2 of SafeAILab",
    "safeailab-3": "EAGLE-3 of SafeAILab or SpecForge",
    "speculators": "speculators eagle3",
    "model-optimizer": "an export of Model-Optimizer",
}
# Heads that are told apart from damaged ones, but not read.
OTHERS = (
    (r"medusa_head\.|0\.0\.linear\.", "a Medusa head: it has no layer"),
    (
        r"(embed_layernorm|hidden_layernorm|lm_head_layernorm)\.",
        "a HASS-like EAGLE-1 head: its norms of embedding, feature and output are not read",
    ),
    (r"(fusion_fc|transformer)\.", "an old speculators eagle head: speculators itself reads it no more"),
)
SHOWN = 3  # keys that an error spells out


class HeadError(ValueError):
    """Why a checkpoint cannot be used; who catches it adds the user's key and value."""


def detect(config: Mapping[str, Any], sizes: Sizes, width: int) -> Format:
    """The format of a checkpoint, from its config and the sizes of its tensors. `width`: its hidden size.

    In this order: the config's speculators_model_type; a key of `midlayer`; a first layer whose queries read 2 x width
    (names of Model-Optimizer); one that reads `width` below an fc of [width, 2 x width] (EAGLE-1). Raises HeadError for
    every other one.
    """
    kind = config.get("speculators_model_type")
    if kind is not None and kind != "eagle3":
        old = ", the old format that speculators itself reads no more" if kind == "eagle" else ""
        raise HeadError(f"speculators_model_type={kind}{old}")
    if kind is not None:
        return "speculators"
    for pattern, what in OTHERS:
        if any(re.match(pattern, key) for key in sizes):
            raise HeadError(f"this is {what}")
    if any(key.startswith("midlayer.") for key in sizes):
        return "safeailab-3"
    queries = sizes.get("layers.0.self_attn.q_proj.weight", ())
    if queries[1:] == (2 * width,):
        return "model-optimizer"
    if queries[1:] == (width,) and sizes.get("fc.weight") == (width, 2 * width):
        return "safeailab-1"
    raise HeadError(f"keys and sizes of no known format with hidden_size={width}: {name_some(sizes)}")


def published_name(key: str, found: Format) -> str:
    """The name a format gives to an entry of EagleHead's state dict."""
    return key.replace("layers.0.", "midlayer.", 1) if found == "safeailab-3" else key


def own_name(key: str, found: Format) -> str:
    """The entry of EagleHead's state dict behind a published name."""
    return key.replace("midlayer.", "layers.0.", 1) if found == "safeailab-3" else key


def expected_sizes(shape: HeadShape, found: Format) -> dict[str, tuple[int, ...]]:
    """The keys a checkpoint of this head must have in a format, with their sizes."""
    with torch.device("meta"):
        entries = EagleHead(shape).state_dict()
    return {published_name(key, found): tuple(tensor.shape) for key, tensor in entries.items()}


def optional_sizes(shape: HeadShape, found: Format, wrapped: bool) -> dict[str, tuple[int, ...]]:
    """Keys that a format may have beside them; what becomes of each is written in `checkpoints.assemble`.

    EAGLE-1: the target's embedding, in vLLM's wrapper its head as well; version 3 with the whole vocabulary: maps.
    """
    table = (shape.vocabulary, shape.width)
    if found == "safeailab-1":
        return {"embed_tokens.weight": table, **({"lm_head.weight": table} if wrapped else {})}
    if shape.draft_vocabulary is None:
        return {"d2t": (shape.vocabulary,), "t2d": (shape.vocabulary,)}
    return {}


def check_sizes(sizes: Sizes, needed: Sizes, optional: Sizes) -> None:
    """Raise HeadError for keys that are missing or not known, then for sizes that differ."""
    told = []
    if missing := [key for key in needed if key not in sizes]:
        told.append(f"{len(missing)} missing: {name_some(missing)}")
    if unknown := [key for key in sizes if key not in needed and key not in optional]:
        told.append(f"{len(unknown)} unexpected: {name_some(unknown)}")
    if told:
        raise HeadError(f"keys {'; '.join(told)}")
    wanted = {**optional, **needed}
    if differing := [key for key in sizes if sizes[key] != wanted[key]]:
        listed = ", ".join(f"{key} is {[*sizes[key]]}, not {[*wanted[key]]}" for key in differing[:SHOWN])
        raise HeadError(f"{len(differing)} tensors differ from config.json: {listed}")


def name_some(keys: Collection[str]) -> str:
    """The first few keys, and how many more there are."""
    shown = sorted(keys)[:SHOWN]
    return ", ".join(shown) + (f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")
