"""Make a pair as large as asked that decides as the reference pair does: for timing large models without a hub.

    python scripts/widen_pair.py --scale 1b --check     # then: python -m experiments.run pair=reference_wide
    python scripts/widen_pair.py --width 512 --dtype float32 --out results/pairs/tiny

The target gets the parameters of the scale, the draft model the same share of them as in the source pair; tokenizers
are copied; masks that belong to the source's target are written for the wide one, which has the same layers.
viasd/widening.py says how a network is widened. Memory: the target's size and half a gigabyte, for 7b 15 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.entry import run_command  # noqa: E402
from experiments.errors import UserError  # noqa: E402
from experiments.identity import model_hash  # noqa: E402
from experiments.pairs import pair_folder  # noqa: E402
from viasd.engine import resolve_device, resolve_dtype  # noqa: E402
from viasd.models import Pair, load_model, locate  # noqa: E402
from viasd.widening import SCALES, Widths, parameter_count, widened, widths, widths_at  # noqa: E402

ROLES = ("target", "draft")
PARTS = (*ROLES, "masks")  # folders of a pair
OWN = ("config.json", "generation_config.json")  # files of a model folder that are written anew, besides its weights
PROMPTS = (4, 32)  # random ones of a check, tokens of each
ROUNDING = 4  # how much further off than the source in the same type, both from the source in float64, a model may be
FLOOR = 1e-4  # the same as a share of the largest logit: norms are computed in float32 even where all else is float64


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--scale", choices=SCALES, help="parameters of the target")
    size.add_argument("--width", type=int, help="residual channels of the target")
    parser.add_argument("--out", type=Path, help="folder of the pair (for a scale: where pair=reference_wide looks)")
    parser.add_argument(
        "--source", default="viasd://reference", help="folder of the pair to widen, with target/, draft/"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float64"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that have no effect")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="cpu",
        help="where weights are drawn: CUDA draws others",
    )
    parser.add_argument("--check", action="store_true", help="compare logits of wide and source model before writing")
    parser.add_argument("--force", action="store_true", help="replace the pair that is in the folder")
    options = parser.parse_args(arguments)
    if options.out is None and options.scale is None:
        parser.error("--width needs --out")
    options.out = options.out or pair_folder(options.scale)
    return options


def make_pair(options: argparse.Namespace) -> None:
    """Write everything into a folder beside the one asked for, and move what is finished: no pair is left half made."""
    out: Path = options.out.expanduser().resolve()
    if out == locate(options.source).resolve():
        raise UserError(f"--out={out}: that is the pair to widen; accepted: another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not options.force:
        raise UserError(f"--out={out}: is there and not empty; accepted: a new folder, or --force to replace the pair")
    source = Pair(name="source", models={role: f"{options.source}/{role}" for role in ROLES})
    dtype = resolve_dtype(options.dtype, torch.device("cpu"))
    sizes = plan_sizes(source, options)
    require_space(out, sum(parameters for _, parameters in sizes.values()) * dtype.itemsize)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as place:
        partial = Path(place)
        for role, (size, _) in sizes.items():
            make_model(source, role, size, dtype, partial / role, options)
        write_masks(locate(options.source), partial)
        out.mkdir(exist_ok=True)
        for part in PARTS:
            if (out / part).is_dir():
                shutil.rmtree(out / part)
            if (partial / part).is_dir():
                (partial / part).rename(out / part)
    print(f"pair: {out}")


def plan_sizes(source: Pair, options: argparse.Namespace) -> dict[str, tuple[Widths, int]]:
    """Widths and parameters by role: the target's as asked, the draft model's in proportion, its own at least."""
    from transformers import AutoConfig

    target, draft = (AutoConfig.from_pretrained(source.path(role)) for role in ROLES)
    by_size = options.scale is not None
    wide = widths(target, SCALES[options.scale]) if by_size else widths_at(target, options.width)
    parameters, own = parameter_count(target, wide), parameter_count(draft)
    share = own / parameter_count(target)
    drafts = widths(draft, max(own, round(share * parameters)))
    return {"target": (wide, parameters), "draft": (drafts, parameter_count(draft, drafts))}


def require_space(out: Path, needed: int) -> None:
    """Raises UserError where the disk has less than the weights will take."""
    place = next(folder for folder in out.parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < 1.02 * needed:  # tokenizers, headers
        raise UserError(f"--out={out}: the pair takes {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free")


def make_model(
    source: Pair, role: str, size: Widths, dtype: torch.dtype, folder: Path, options: argparse.Namespace
) -> None:
    """Widen one model, check it if asked, and write it with its tokenizer."""
    started = time.perf_counter()
    original = load_model(source, role, torch.float64, torch.device("cpu"))
    wide = widened(original, size, dtype, options.seed, resolve_device(options.device))
    print(
        f"{role}: {wide.config.num_hidden_layers} layers x {size.residual}, {size.heads} heads, {size.units} units: "
        f"{wide.num_parameters():,} parameters, {wide.num_parameters() * dtype.itemsize / 1e9:.2f} GB {options.dtype}"
    )
    if options.check:
        print(f"{role}: {check(original, wide)}")
    wide.save_pretrained(folder, max_shard_size="2GB")
    for path in source.path(role).iterdir():
        if path.name not in OWN and "safetensors" not in path.name:
            shutil.copy(path, folder)
    print(f"{role}: {time.perf_counter() - started:.0f} s")


@torch.inference_mode()
def check(original: Any, wide: Any) -> str:
    """How far the wide model's logits are from the original's in float64. Raises RuntimeError where that is too far."""
    ids = torch.randint(original.config.vocab_size, PROMPTS, generator=torch.Generator().manual_seed(0))
    right = original(input_ids=ids, use_cache=False).logits
    found = wide(input_ids=ids.to(wide.device), use_cache=False).logits.double().to(right.device)
    narrow = original.to(wide.dtype)(input_ids=ids, use_cache=False).logits.double()
    largest, off, rounding = (float(values.abs().max()) for values in (right, found - right, narrow - right))
    same = float((found.argmax(-1) == right.argmax(-1)).double().mean())
    told = (
        f"logits up to {largest:.1f} are off by at most {off:.2g} (the source in this type: {rounding:.2g}), "
        f"{same:.3f} of the choices are the same"
    )
    if not off <= ROUNDING * rounding + FLOOR * largest:
        raise RuntimeError(f"the wide model computes something else: {told}")
    return told


def write_masks(source: Path, pair: Path) -> None:
    """Masks of the source's target in the name of the wide one; those made for another model are left out."""
    old, new = model_hash(source / "target"), model_hash(pair / "target")
    for path in sorted((source / "masks").glob("*.json")):
        content = json.loads(path.read_text())
        if content.get("target_hash") != old:
            print(f"mask {path.name} is left out: it was made for the model {content.get('target_hash')}, not {old}")
            continue
        (pair / "masks").mkdir(exist_ok=True)
        mask = {**content, "target_hash": new, "widened_from": old}
        (pair / "masks" / path.name).write_text(json.dumps(mask, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    options = parse()
    run_command(lambda: make_pair(options), interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    main()
