"""Stored runs made up for figures and choices: few prompts, arms whose numbers are known."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.records import Row
from experiments.tables import StoredRun

TIERS = {"d": "draft", "s": "slim", "t": "target"}


@dataclass(frozen=True)
class Made:
    """An arm: milliseconds per token, share of wrong tokens, and its rounds as (accepted of `length` drafted)."""

    milliseconds: float
    wrong: float = 0.0
    length: int = 0
    tier: str = "t"
    skip_ratio: float | None = None
    gate: Mapping[str, float] = field(default_factory=dict)
    timed: bool = True


ARMS = {
    "vanilla": Made(20.0),
    "sd": Made(10.0, length=4),
    "sd_2": Made(12.0, length=2),
    "gate_0.8": Made(7.0, 0.004, 4, "s", 0.6, {"threshold": 0.8}),
    "gate_0.4": Made(5.0, 0.03, 4, "s", 0.6, {"threshold": 0.4}),
    "coin_mix@0.5": Made(6.0, 0.1, 4),
    "draft_only": Made(2.0, 0.2, 4),
}


def method(name: str, made: Made) -> dict[str, Any]:
    """The method as a run's identity has it."""
    drafter = "DraftModel" if made.length else "NoDrafter"
    verifier: dict[str, Any] = {
        "_target_": "viasd.verification.RuleVerifier",
        "reader": "target",
        "rule": {"_target_": "viasd.rules.Lossless"},
        "slim": None,
    }
    if made.gate:
        verifier = {
            "_target_": "viasd.hierarchical.Hierarchical",
            "gate": {"_target_": "viasd.gates.DeferralGate", **made.gate},
            "slim": {"_target_": "viasd.verification.SlimView", "mask": [0, 3], "skip_ratio": made.skip_ratio},
            "mode": "lossy",
        }
    if name.startswith(("coin", "draft_only")):
        verifier = {"_target_": "baselines.controls.CoinMix", "p": 0.5 if name.startswith("coin") else 0.0}
    return {
        "_target_": "viasd.method.Method",
        "name": name,
        "drafter": {"_target_": f"viasd.drafting.{drafter}"},
        "stop": {"_target_": "viasd.drafting.FixedLength", "length": made.length},
        "verifier": verifier,
    }


def make_row(arm: str, made: Made, index: int, tokens: int = 40, noise: random.Random | None = None) -> Row:
    """A row whose rounds draft `length` tokens, of which the second last is the last one kept."""
    per_round = max(1, made.length)
    rounds = tokens // per_round
    source = "d" if arm == "draft_only" else made.tier
    judged = made.length if source != "d" else 0
    kept = max(0, judged - 1)
    letters = "d" * (per_round - 1) + source if made.length else source
    calls = [["draft", *[1] * made.length]] if made.length else []
    calls += [["slim", made.length + 1]] if made.tier == "s" else []
    calls += [["target", made.length + 1]] if source == "t" else []
    trace = [
        [made.length, judged, judged - kept, per_round, 0, source * judged, letters, None, calls]
        + ([{"stop": {"threshold": 0.1 * place}}] if made.gate else [])
        for place in range(rounds)
    ]
    factor = 1.0 if noise is None else noise.uniform(0.8, 1.25)
    seconds = factor * tokens * made.milliseconds / 1000
    wrong = round(made.wrong * tokens) if noise is None else sum(noise.random() < made.wrong for _ in range(tokens))
    return Row(
        example_id=f"e{index}", arm=arm, index=index, token_ids=list(range(tokens)), new_tokens=tokens, rounds=rounds,
        finish_reason="length", quality=1.0, scores={"score": 1.0},
        decode_seconds=[seconds] if made.timed else [], prefill_seconds=[0.01] if made.timed else [],
        drafted=made.length * rounds, judged=judged * rounds, rejected=(judged - kept) * rounds,
        tiers={TIERS[source]: judged * rounds} if judged else {},
        sources={TIERS[key]: letters.count(key) * rounds for key in "dst" if key in letters},
        drafted_at=[rounds] * made.length, judged_at=[rounds] * judged, accepted_at=([rounds] * kept + [0])[:judged],
        calls={reader: rounds * len(fed) for reader, *fed in calls},
        fed={reader: rounds * sum(fed) for reader, *fed in calls},
        reader_seconds={"target": 0.6 * seconds, "draft": 0.3 * seconds} if made.length else {"target": 0.9 * seconds},
        profiled_seconds=seconds, predicted_seconds=1.1 * seconds if made.timed else None,
        trace=trace if made.timed else [], token_loss=[1.0] * wrong + [0.0] * (tokens - wrong),
    )  # fmt: skip


def make_runs(
    arms: Mapping[str, Made] | None = None,
    tasks: Sequence[str] = ("qa", "coding"),
    prompts: int = 12,
    noise: bool = True,
    tokens: int = 40,
) -> list[StoredRun]:
    """A run for each task; without noise all its prompts are alike."""
    arms, runs = ARMS if arms is None else arms, []
    for place, task in enumerate(tasks):
        rows = []
        for index in range(prompts):
            draws = random.Random(100 * place + index)
            rows += [make_row(name, made, index, tokens, draws if noise else None) for name, made in arms.items()]
        identity = {
            "code_hash": "c", "device": "a device", "dtype": "float32", "threads": 1, "versions": {"torch": "2"},
            "pair": {"name": "made_up"}, "sampling": {"temperature": 0.0}, "task": {"name": task}, "seed": 0,
            "arms": {name: method(name, made) for name, made in arms.items()},
        }  # fmt: skip
        runs.append(StoredRun(task, list(arms), 0.0, identity, rows, {}, []))
    return runs
