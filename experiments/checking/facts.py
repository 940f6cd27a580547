"""What is known of each model of a pair from its configuration and its tokenizer, or from the pair's yaml alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.checking.memory import HALF, Size, told_size
from viasd.forward import obstacle
from viasd.hub import HubUnreachable, fetched_weights, resolved_commit
from viasd.models import Pair, PairError, context_length

UNKNOWN = "unknown"


@dataclass(frozen=True)
class ModelFacts:
    """One model. `size`, `fused` and `context` are None where nothing tells; `fused` is empty where nothing hinders.

    `download`: bytes that a run would fetch, None where they are not known. `refusal`: why the model is not to be had;
    `unreachable`: only because the hub was not asked.
    """

    role: str
    name: str
    size: Size | None
    fused: str | None
    context: int | None
    download: float | None
    refusal: str | None = None
    unreachable: bool = False


def look_at(pair: Pair, role: str) -> ModelFacts:
    """The facts of a role's model. What is on a hub is downloaded, but for the weights."""
    told = told_size(pair, role)
    try:
        folder = pair.path(role, weights=False)
    except PairError as error:
        away = isinstance(error.__cause__, HubUnreachable)
        expected = told.weights() if told is not None else None
        return ModelFacts(role, pair.models[role], told, None, None, expected, str(error), away)
    size, fused, width = measure(folder, pair)
    if size is None:
        size = told
    if resolved_commit(folder) is None or fetched_weights(folder):
        download: float | None = 0.0
    else:
        download = None if size is None else size.weights(width)
    return ModelFacts(role, pair.models[role], size, fused, context_length(folder), download)


def measure(folder: Path, pair: Pair) -> tuple[Size | None, str | None, int]:
    """Size of a model without its weights, what keeps it from running fused, and bytes of a stored parameter.

    The model is made on the meta device, where nothing is allocated. (None, None, 2) where the library cannot make it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=pair.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=pair.trust_remote_code)
    except Exception:  # configurations fail in as many ways as there are families
        return None, None, HALF
    tensors = {id(part.weight): part.weight.numel() for part in embeddings(model)}
    size = Size(sum(one.numel() for one in model.parameters()), sum(tensors.values()), cached_numbers(config))
    stored = getattr(config, "dtype", None)
    try:
        reason = obstacle(model)
    except AttributeError:  # a family with other names for its parts
        reason = f"a family of its own ({config.model_type})"
    return size, reason or "", stored.itemsize if isinstance(stored, torch.dtype) else HALF


def embeddings(model: Any) -> list[Any]:
    """Input and output embeddings; the same weight twice where they are tied."""
    return [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]


def cached_numbers(config: Any) -> int:
    """Numbers of keys and values that one token adds to the cache."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width)
