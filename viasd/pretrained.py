"""How a pair's weights are loaded: safetensors or pickled, in 8 or 4 bits, on one device or several."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from viasd.hub import SAFE, weight_files

if TYPE_CHECKING:
    import torch

Quantization = Literal["int8", "int4"]


class LoadingError(ValueError):
    """Weights that cannot be loaded as asked; the message says what is accepted."""


def loading_options(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    spread: bool,
    quantization: Quantization | None,
    pickled: bool,
) -> dict[str, Any]:
    """Arguments of `from_pretrained`. With `device_map` among them, the model stays where that puts it.

    `spread`: over all devices of this machine; `pickled`: weights that are no safetensors are allowed. Raises
    LoadingError where they are all there is and not allowed, or where a package that this needs is not installed.
    """
    safe, files = any(folder.glob(SAFE)), weight_files(folder)
    if files and not safe and not pickled:
        raise LoadingError(
            f"its weights are pickled ({files[0].name}); accepted: safetensors, or pair.allow_pickle=true (read by "
            "the loader that runs no code of the file)"
        )
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": safe or not files}  # of none, the library says so
    if spread:
        _need("pair.device_map=auto", "accelerate")
        options["device_map"] = "auto"
    if quantization is not None:
        _need(f"pair.quantization: {quantization}", "accelerate", "bitsandbytes")
        options["quantization_config"] = _bits(quantization, dtype)
        options.setdefault("device_map", {"": device})
    return options


def _bits(quantization: Quantization, dtype: torch.dtype) -> Any:
    """LLM.int8 (2208.07339) or 4-bit NormalFloat (QLoRA, 2305.14314), which computes in the engine's dtype.

    Everything else is as the library has it.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _need(field: str, *packages: str) -> None:
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        raise LoadingError(f"{field}: needs {' and '.join(lacking)} (pip install {' '.join(lacking)}); accepted: null")
