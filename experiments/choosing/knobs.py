"""What an arm is set to, read from the method as it was run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from experiments.config import make
from experiments.errors import UserError

HYDRA = logging.getLogger("hydra.utils")
DRAFT_MODEL, FIXED, ROW_RULE, LOSSLESS = "DraftModel", "FixedLength", "RuleVerifier", "Lossless"


@dataclass(frozen=True)
class Knobs:
    """`thresholds`: the numbers of the gate that are set, and the reading of the paper's where they are not.

    `plain_sd`: a draft model, a fixed length, the target's lossless rule. `lossless`: by its verifier's own word,
    whatever was measured. `kept`: what the slim verifier keeps, None without one.
    """

    draft_length: int | None
    skip_ratio: float | None
    gate: str | None
    thresholds: Mapping[str, float | str]
    plain_sd: bool
    lossless: bool
    kept: Any

    def __str__(self) -> str:
        told = [] if self.draft_length is None else [f"drafts of {self.draft_length}"]
        told += [] if self.skip_ratio is None else [f"skip ratio {self.skip_ratio:g}"]
        told += [] if self.gate is None else [self.gate]
        told += [f"{name} {value}" for name, value in self.thresholds.items()]
        return ", ".join(told) or "no knobs"


def read_knobs(method: Mapping[str, Any]) -> Knobs:
    """The knobs of one entry of a run's `identity["arms"]`."""
    stop, verifier = method.get("stop") or {}, method.get("verifier") or {}
    slim, gate = verifier.get("slim"), verifier.get("gate")
    judged_by_target = _kind(verifier) == ROW_RULE and verifier.get("reader", "target") == "target"
    exact_rule = judged_by_target and _kind(verifier.get("rule")) == LOSSLESS
    fixed = _kind(stop) == FIXED and bool(stop.get("length"))
    return Knobs(
        draft_length=int(stop["length"]) if fixed else None,
        skip_ratio=None if slim is None else slim.get("skip_ratio"),
        gate=_kind(gate) or None,
        thresholds=_thresholds(gate or {}),
        plain_sd=exact_rule and fixed and _kind(method.get("drafter")) == DRAFT_MODEL,
        lossless=is_lossless(method),
        kept=None if slim is None else slim.get("mask"),
    )


def is_lossless(method: Mapping[str, Any]) -> bool:
    """Whether the verifier, built as it was run, says so; a loop of the library is, as far as the library is.

    A class that is not there, or that no longer takes what was stored, says nothing: it is not taken for lossless.
    """
    HYDRA.disabled = True  # it prints what it raises
    try:
        made = make(OmegaConf.create(dict(method.get("verifier") or method)), "verifier")
    except (UserError, InstantiationException):
        return False
    finally:
        HYDRA.disabled = False
    if "verifier" in method:
        return bool(made.lossless)
    from baselines.hf import LibraryLoop, LibraryMethod  # loads transformers

    return isinstance(made, LibraryMethod) and LibraryLoop.lossless


def _kind(node: Any) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _thresholds(gate: Mapping[str, Any]) -> dict[str, float | str]:
    numbers = {name: value for name, value in gate.items() if isinstance(value, int | float) and name != "_target_"}
    named = {"reading": gate["reading"]} if "reading" in gate and gate.get("accept_ratio") is None else {}
    return {**named, **numbers}
