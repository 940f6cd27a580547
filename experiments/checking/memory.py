"""How much memory a pair takes, in bytes, by arithmetic on numbers of parameters. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from viasd.models import Pair
from viasd.pretrained import Quantization

# Bytes of a parameter. nf4 of bitsandbytes keeps a float32 scale for each 64 of them, int8 one for each row (left out).
QUANTIZED: Mapping[Quantization, float] = {"int8": 1.0, "int4": 0.5 + 4 / 64}
HALF = 2  # bytes of a number in 16 bits
USUAL_TOKENS = 2048
USUAL_HEADROOM = 0.1
DEVICES = (24, 48, 80)  # GB


@dataclass(frozen=True)
class Size:
    """One model: all its parameters, those of input and output embeddings among them, cached numbers of one token."""

    parameters: int
    embeddings: int
    cached: int

    def weights(self, width: int = HALF, bits: Quantization | None = None) -> float:
        """Bytes of the weights, `width` for each parameter; quantized ones without the embeddings, which stay as is."""
        if bits is None:
            return self.parameters * width
        return self.embeddings * width + (self.parameters - self.embeddings) * QUANTIZED[bits]

    def caches(self, tokens: int, width: int = HALF) -> int:
        """Bytes of keys and values."""
        return self.cached * tokens * width


def told_size(pair: Pair, role: str) -> Size | None:
    """What the pair's yaml says of a model; None where it says nothing."""
    about = pair.about
    if role not in about.parameters or role not in about.kv_bytes_per_token:
        return None
    return Size(about.parameters[role], about.embedding_parameters.get(role, 0), about.kv_bytes_per_token[role] // HALF)


def needed(sizes: Sequence[Size], bits: Quantization | None, tokens: int = USUAL_TOKENS) -> float:
    """Bytes of models in 16 bits, the first (the target) quantized or not, with their caches."""
    target, *others = sizes
    return target.weights(HALF, bits) + sum(one.weights() for one in others) + sum(one.caches(tokens) for one in sizes)


def fits(bytes_needed: float, memory: float, headroom: float = USUAL_HEADROOM) -> bool:
    """Whether that many bytes leave `headroom`, a share of it, of a memory of so many bytes."""
    return bytes_needed <= memory * (1 - headroom)


def fit_cells(pair: Pair) -> list[str]:
    """For tables: GB needed with the target in 16, 8 and 4 bits, and the smallest of DEVICES that holds each."""
    sizes = [size for role in pair.models if (size := told_size(pair, role)) is not None]
    cells = []
    for bits in (None, "int8", "int4"):
        total = needed(sizes, bits)  # type: ignore[arg-type]
        device = next((f"{gigabytes}" for gigabytes in DEVICES if fits(total, gigabytes * 1e9)), "none")
        cells.append(f"{total / 1e9:.1f} ({device})")
    return cells
