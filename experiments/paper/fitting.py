"""The arms of an experiment that a pair can run: a table made for another pair does without the rest of them.

Experiments name their own pair, and there an arm that cannot run is a mistake, told by the run. Where another pair is
typed, arms may need a model or a head that it does not have, or a list of layers chosen for another target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from baselines.controls import CoinSlim
from baselines.self_draft import SelfDrafter
from experiments.arms import Context, Shares, derive
from experiments.config import make
from experiments.errors import UserError
from experiments.resolve import resolve_method, target_layers
from experiments.tables import StoredRun
from viasd.hierarchical import Hierarchical
from viasd.method import Method, MethodSpec
from viasd.models import Pair, PairError, even_mask
from viasd.verification import RuleVerifier, SlimView

NO_SHARES: Shares = (1.0, 0.0, 0.0, 0.0)  # what a random gate draws does not decide whether its arm runs


class Unfit(UserError):
    """A method that a pair cannot run; the message says what the pair lacks."""


@dataclass(frozen=True)
class Fitted:
    """What a pair runs of an experiment: its arms, and by the name of each other one, what the pair lacks.

    `twins`: by name, the arm of which an arm is the same here (without searched masks, "searched" is "even").
    """

    pair: str
    arms: list[Any]
    left_out: dict[str, str]
    twins: dict[str, str]

    def __str__(self) -> str:
        """What is left out, and why."""
        told = [
            f"{', '.join(arm for arm, own in self.left_out.items() if own == reason)} ({reason})"
            for reason in dict.fromkeys(self.left_out.values())
        ]
        return f"left out for pair {self.pair}: {'; '.join(told)}"


def fit(config: DictConfig) -> Fitted:
    """Which arms of a job its pair can run. Raises Unfit where it cannot run the job's method."""
    method, pair = make(config.method, "method"), make(config.pair, "pair")
    try:
        settled(method, pair)
    except Unfit as error:
        raise Unfit(f"pair {pair.name} cannot run method {method.name}: {error}") from error
    composed: Any = OmegaConf.to_container(config.method, resolve=True)
    context = Context(method, composed, pair, lambda: NO_SHARES, lambda arm: settled(arm, pair))
    fitted = Fitted(pair.name, [], {}, {})
    found: dict[str, MethodSpec] = {}
    names: Any = OmegaConf.to_container(config.arms, resolve=True)
    for named in names:
        try:
            derived, _ = derive([named], context)
        except Unfit as error:
            fitted.left_out[named if isinstance(named, str) else next(iter(named))] = str(error)
            continue
        fitted.arms.append(named)
        for name, arm in derived.items():
            twin = next((one for one, other in found.items() if renamed(other) == renamed(arm)), None)
            if twin is None:
                found[name] = arm
            elif twin != name:
                fitted.twins[name] = twin
    return fitted


def renamed(method: Any) -> Any:
    """The method, which is a dataclass, under a name of no meaning."""
    return replace(method, name="x")


def settled(method: MethodSpec, pair: Pair) -> MethodSpec:
    """The method with its layers named.

    Raises Unfit for a role that the pair has no model or head for, and for layers that its target has not.
    """
    for role in sorted(method.roles - set(pair.models) - set(pair.heads)):
        raise Unfit(f"it has no model or head {role!r}")
    layers = target_layers(pair)
    try:
        found, _ = resolve_method(method, pair)
        for slim in slim_views(method):
            usual = even_mask(layers, slim.skip_ratio, slim.keep_ends) if isinstance(slim.mask, list) else []
            if isinstance(slim.mask, list) and len(slim.mask) != len(usual):  # labels of tables tell the share
                raise Unfit(f"layers {slim.mask} of {layers} are not {slim.skip_ratio:.0%} skipped")
    except PairError as error:
        raise Unfit(f"target of {layers} layers: {error}") from error
    return found


def with_twins(run: StoredRun, twins: Mapping[str, str]) -> StoredRun:
    """The run with rows under the name of each arm that equals another one: what runs once has two lines in a table."""
    if not twins:
        return run
    rows = [replace(row, arm=name) for name, twin in twins.items() for row in run.rows if row.arm == twin]
    static = {name: run.static[twin] for name, twin in twins.items() if twin in run.static}
    return replace(run, arms=[*run.arms, *twins], rows=[*run.rows, *rows], static={**run.static, **static})


def slim_views(method: MethodSpec) -> list[SlimView]:
    """The views of the target that a method drafts or verifies with."""
    if not isinstance(method, Method):
        return []
    verifier = method.verifier
    views: list[Any] = [method.drafter.slim] if isinstance(method.drafter, SelfDrafter) else []
    if isinstance(verifier, Hierarchical):
        views += [tier.slim for tier in verifier.tiers]
    elif isinstance(verifier, RuleVerifier | CoinSlim):
        views.append(verifier.slim)
    return [view for view in views if isinstance(view, SlimView)]
