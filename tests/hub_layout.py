"""Tiny random models as the hub's client keeps them: models--ORGANIZATION--NAME with refs and snapshots."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import FAMILIES, WINDOW

REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY = 1280  # of the reference pair's tokenizer

# Families that conftest does not have: class prefix, what its config adds.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3", {"sliding_window": WINDOW}),
    "gpt_neox": ("GPTNeoX", {"attention_dropout": 0.0}),
    "olmo2": ("Olmo2", {}),
}


def make_model(family: str, seed: int, layers: int) -> Any:
    """A random causal LM in float64 for the reference pair's tokenizer."""
    import transformers

    name, extra = {**FAMILIES, **MORE}[family]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "tie_word_embeddings": False,
        "pad_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": None,
        **extra,
    }
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForCausalLM")(config).double().eval()


def save_model(folder: Path, model: Any) -> Path:
    """The model with the reference pair's tokenizer."""
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(REFERENCE / "target" / name, folder)
    return folder


def put_on_hub(cache: Path, name: str, folder: Path, revision: str = "main") -> str:
    """A folder as the snapshot of a model in the hub's cache, linked to blobs; returns its commit."""
    home = cache / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(f"{name} {revision}".encode()).hexdigest()
    snapshot = home / "snapshots" / commit
    for place in (snapshot, home / "blobs", home / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (home / "refs" / revision).write_text(commit)
    return commit
