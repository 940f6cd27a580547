"""Settle before a run what was left to the run: searched masks, the shares of a random gate."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.errors import UserError
from experiments.identity import model_hash
from viasd.decode import Decode
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import Pair, even_mask, locate, random_mask, read_mask
from viasd.sampling import SeededDraws
from viasd.verification import Hierarchical, RuleVerifier, SlimView

SHARE_PROMPTS = 12  # calibration prompts from which a random gate takes its shares


def resolve_masks(method: Method, pair: Pair) -> tuple[Method, str | None]:
    """The method with its mask as a list of kept layers, and a notice where `auto` found no searched one."""
    verifier = method.verifier
    if not isinstance(verifier, Hierarchical | RuleVerifier) or verifier.slim is None:
        return method, None
    kept, notice = resolve_mask(verifier.slim, pair)
    slim = dataclasses.replace(verifier.slim, mask=kept)
    return dataclasses.replace(method, verifier=dataclasses.replace(verifier, slim=slim)), notice


def resolve_mask(slim: SlimView, pair: Pair) -> tuple[list[int], str | None]:
    """Kept layers of a slim view of the pair's target. Raises UserError for layers the target does not have."""
    layers = target_layers(pair)
    if isinstance(slim.mask, list):
        if slim.mask != sorted(set(slim.mask)) or not slim.mask or slim.mask[0] < 0 or slim.mask[-1] >= layers:
            raise UserError(f"mask={slim.mask}: accepted: ascending layer numbers from 0 to {layers - 1}")
        return slim.mask, None
    if slim.mask == "even":
        return even_mask(layers, slim.skip_ratio, slim.keep_ends), None
    if slim.mask == "random":
        return random_mask(layers, slim.skip_ratio, slim.seed, slim.keep_ends), None
    target = model_hash(pair.path("target"))
    if slim.mask != "auto":
        return read_mask(slim.mask, target, layers), None
    even = even_mask(layers, slim.skip_ratio, slim.keep_ends)
    for name in pair.masks:
        if mask_owner(name) == target:
            kept = read_mask(name, target, layers)
            if len(kept) == len(even) and (not slim.keep_ends or {0, layers - 1} <= set(kept)):
                return kept, None
    return even, f"no searched mask for this target at skip_ratio={slim.skip_ratio:g}: layers are skipped evenly"


def mask_owner(name: str) -> str | None:
    """The model that a mask file of the pair was made for. Raises UserError when there is no such file."""
    try:
        content: dict[str, Any] = json.loads(locate(name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"pair.masks: {name}: not a readable mask file ({error}); accepted: JSON files") from error
    return content.get("target_hash")


def target_layers(pair: Pair) -> int:
    """Number of layers of the pair's target, from its configuration."""
    config: dict[str, Any] = json.loads((pair.path("target") / "config.json").read_text())
    return int(config.get("text_config", config)["num_hidden_layers"])


def gate_shares(
    method: Method, engine: Engine, prompts: Sequence[Sequence[int]], decode: Decode, seed: int
) -> tuple[float, float, float]:
    """Shares (keep, rewrite, escalate) of the method's gate on calibration prompts, to four places, summing to 1."""
    decoder = method.open(engine)
    counts: Counter[int] = Counter()
    for index, prompt in enumerate(prompts):
        draws = SeededDraws(seed, f"calibration-{index}", engine.device)
        for record in decoder.generate(prompt, decode, draws).rounds:
            counts.update(dict(enumerate(record.regions or (0, 0, 0))))
    total = sum(counts.values()) or 1
    rewrite, escalate = round(counts[1] / total, 4), round(counts[2] / total, 4)
    return round(1 - rewrite - escalate, 4), rewrite, escalate
