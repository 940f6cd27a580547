"""Settle before a run what was left to the run: searched masks, the shares of a random gate."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from baselines.controls import CoinSlim
from baselines.self_draft import SelfDrafter
from experiments.errors import UserError
from experiments.identity import model_hash
from viasd.decode import Decode
from viasd.engine import Engine
from viasd.gates import LearnedGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.method import Method, MethodSpec
from viasd.models import (
    Branches,
    Pair,
    check_kept,
    early_exit_mask,
    even_mask,
    locate,
    name_kept,
    random_mask,
    read_mask,
)
from viasd.routing import ESCALATE, JUDGE, REWRITE
from viasd.sampling import SeededDraws
from viasd.verification import Intermediate, PairModel, RuleVerifier, SlimView

SHARE_PROMPTS = 12  # calibration prompts from which a random gate takes its shares


def resolve_method(method: MethodSpec, pair: Pair) -> tuple[MethodSpec, str | None]:
    """The method with its masks as lists of kept layers and its gates' weights read.

    A notice says where `auto` found no searched mask.
    """
    if not isinstance(method, Method):
        return method, None
    drafter, notices = method.drafter, set[str | None]()
    if isinstance(drafter, SelfDrafter):
        kept, notice = resolve_mask(drafter.slim, pair)
        notices.add(notice)
        drafter = dataclasses.replace(drafter, slim=dataclasses.replace(drafter.slim, mask=kept))
    method, notice = _resolve_verifier(dataclasses.replace(method, drafter=drafter), pair)
    return method, "; ".join(sorted(filter(None, notices | {notice}))) or None


def _resolve_verifier(method: Method, pair: Pair) -> tuple[Method, str | None]:
    verifier = method.verifier
    if isinstance(verifier, Hierarchical):
        settled = [_resolve_tier(tier, pair) for tier in verifier.tiers]
        (first, *above), notices = [tier for tier, _ in settled], {notice for _, notice in settled if notice}
        verifier = dataclasses.replace(verifier, gate=first.gate, slim=first.slim, above=above)
        return dataclasses.replace(method, verifier=verifier), "; ".join(sorted(notices)) or None
    if isinstance(verifier, RuleVerifier | CoinSlim) and isinstance(verifier.slim, SlimView):
        kept, notice = resolve_mask(verifier.slim, pair)
        slim = dataclasses.replace(verifier.slim, mask=kept)
        return dataclasses.replace(method, verifier=dataclasses.replace(verifier, slim=slim)), notice
    return method, None


def _resolve_tier(tier: SlimTier, pair: Pair) -> tuple[SlimTier, str | None]:
    slim, gate, notice = tier.slim, tier.gate, None
    if isinstance(slim, SlimView):
        kept, notice = resolve_mask(slim, pair)
        slim = dataclasses.replace(slim, mask=kept)
    if isinstance(gate, LearnedGate) and isinstance(gate.weights, str):
        gate = read_gate(gate, slim, pair)
    return SlimTier(gate=gate, slim=slim), notice


def read_gate(gate: LearnedGate, slim: Intermediate, pair: Pair) -> LearnedGate:
    """The gate with its weights from a file: the one it names, or with `auto` the pair's for this target and mask.

    Raises UserError where there is none, or where it was trained for another target or slim verifier.
    """
    owner = {"target_hash": model_hash(pair.path("target")), "slim": describe_slim(slim)}
    names = pair.gates if gate.weights == "auto" else [str(gate.weights)]
    found = [read_json_file(name, "gate.weights") for name in names]
    fitting = [content for content in found if all(content.get(key) == value for key, value in owner.items())]
    if not fitting:
        raise UserError(
            f"gate.weights={gate.weights}: no weights for this target and slim verifier ({owner['slim']}); accepted: a "
            f"file of scripts/train_gate.py made for them (pair {pair.name} has {len(pair.gates)})"
        )
    return dataclasses.replace(gate, weights=fitting[0]["weights"], bonus_weights=fitting[0]["bonus_weights"])


def describe_slim(slim: Intermediate) -> str:
    """A slim verifier in a few words: the layers it keeps, or the role of its model."""
    if isinstance(slim, SlimView):
        assert not isinstance(slim.mask, str)
        return f"layers {name_kept(slim.mask)}, {slim.cache}"
    return f"model {slim.role}" if isinstance(slim, PairModel) else type(slim).__qualname__


def read_json_file(name: str, key: str) -> dict[str, Any]:
    """A JSON file that a setting names. Raises UserError where there is none."""
    try:
        content: dict[str, Any] = json.loads(locate(name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {name}: not a readable file ({error}); accepted: JSON files") from error
    return content


def resolve_mask(slim: SlimView, pair: Pair) -> tuple[list[int] | Branches, str | None]:
    """What a slim view of the pair's target keeps. Raises PairError for layers the target does not have.

    `auto` takes a mask of layers; one of branches has to be named. Of several searched masks that fit, one that was
    searched in the view's cache mode comes first.
    """
    layers = target_layers(pair)
    if not isinstance(slim.mask, str):
        check_kept(slim.mask, layers, "mask=")
        return slim.mask, None
    if slim.mask == "early_exit":
        return early_exit_mask(layers, slim.skip_ratio), None
    if slim.mask == "even":
        return even_mask(layers, slim.skip_ratio, slim.keep_ends), None
    if slim.mask == "random":
        return random_mask(layers, slim.skip_ratio, slim.seed, slim.keep_ends), None
    target = model_hash(pair.path("target"))
    if slim.mask != "auto":
        return read_mask(slim.mask, target, layers), None
    even = even_mask(layers, slim.skip_ratio, slim.keep_ends)
    for name in searched_masks(pair, target, slim.cache):
        kept = read_mask(name, target, layers)
        if isinstance(kept, list) and len(kept) == len(even) and (not slim.keep_ends or {0, layers - 1} <= set(kept)):
            return kept, None
    return even, f"no searched mask for this target at skip_ratio={slim.skip_ratio:g}: layers are skipped evenly"


def searched_masks(pair: Pair, target: str, cache: str) -> list[str]:
    """The pair's mask files that were made for this target; those that were searched in this cache mode first."""
    own = [name for name in pair.masks if mask_owner(name) == target]
    return sorted(own, key=lambda name: read_json_file(name, "pair.masks").get("cache") != cache)


def mask_owner(name: str) -> str | None:
    """The model that a mask file of the pair was made for. Raises UserError when there is no such file."""
    return read_json_file(name, "pair.masks").get("target_hash")


def target_layers(pair: Pair) -> int:
    """Number of layers of the pair's target, from its configuration."""
    config: dict[str, Any] = json.loads((pair.path("target") / "config.json").read_text())
    return int(config.get("text_config", config)["num_hidden_layers"])


def gate_shares(
    method: MethodSpec, engine: Engine, prompts: Sequence[Sequence[int]], decode: Decode, seed: int
) -> tuple[float, float, float, float]:
    """Shares of the gate's regions (in their order) on calibration prompts, to four places, summing to 1."""
    decoder = method.open(engine)
    counts: Counter[int] = Counter()
    for index, prompt in enumerate(prompts):
        draws = SeededDraws(seed, f"calibration-{index}", engine.device)
        for record in decoder.generate(prompt, decode, draws).rounds:
            counts.update(dict(enumerate(record.regions or ())))
    total = sum(counts.values()) or 1
    rewrite, escalate, judge = (round(counts[region] / total, 4) for region in (REWRITE, ESCALATE, JUDGE))
    return round(1 - rewrite - escalate - judge, 4), rewrite, escalate, judge
