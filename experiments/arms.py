"""The arms of a comparison: vanilla, sd and every control are derived from the method, overrides included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baselines.controls import CoinMix, CoinSlim, Unverified
from experiments.config import compose_method, method_names, vary
from experiments.errors import UserError, near
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.hierarchical import Hierarchical
from viasd.method import Method, MethodSpec, Picky
from viasd.models import Pair
from viasd.routing import Gate, RandomGate, RatioGate
from viasd.sampling import Sampling
from viasd.tree_judging import TreeVerifier
from viasd.verification import RuleVerifier, SlimView

DEFAULT_DRAFT_LENGTH = 5
DEFAULT_COIN = 0.8
Shares = tuple[float, float, float, float]  # of keep, rewrite, escalate, judge


def vanilla() -> Method:
    """Autoregressive decoding."""
    return Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


def sd(method: MethodSpec) -> Method:
    """Speculative decoding with the pair's draft model, at the method's fixed length or 5."""
    own = method.stop if isinstance(method, Method) else None
    length = own.length if isinstance(own, FixedLength) else DEFAULT_DRAFT_LENGTH
    stop = FixedLength(length=length or DEFAULT_DRAFT_LENGTH)
    return Method(name="sd", drafter=DraftModel(), stop=stop, verifier=RuleVerifier())


def lossless(method: Method) -> Method:
    """The method's drafter and stop rule under the lossless rule; of a method that drafts trees, the method itself."""
    trees = isinstance(method.verifier, TreeVerifier)
    return dataclasses.replace(method, name="lossless", verifier=method.verifier if trees else RuleVerifier())


def draft_only(method: Method) -> Method:
    """Draft blocks are output unread."""
    return dataclasses.replace(_drafting(method, "draft_only"), name="draft_only", verifier=Unverified())


def slim_only(method: Method, skip_ratio: float | None = None) -> Method:
    """The slim verifier judges by the ordinary row rule; with another skip ratio under the name slim_only@RATIO."""
    slim, name = _hierarchical(method, "slim_only").slim, "slim_only"
    if skip_ratio is not None:
        if not isinstance(slim, SlimView):
            raise UserError(
                f"arms: slim_only@{skip_ratio:g}: the slim verifier of {method.name} is no view of the target"
            )
        slim = dataclasses.replace(slim, mask="auto", skip_ratio=skip_ratio)
        name = f"slim_only@{skip_ratio:g}"
    return dataclasses.replace(method, name=name, verifier=RuleVerifier(reader="slim", slim=slim))


def accept_all(method: Method) -> Method:
    """The method with a gate that keeps everything: the slim verifier runs and never refuses."""
    gate = RatioGate(accept_ratio=0.0, escalate_ratio=0.0)
    verifier = _one_gate(_hierarchical(method, "accept_all"), gate)
    return dataclasses.replace(method, name="accept_all", verifier=verifier)


def random_gate(method: Method, shares: Shares) -> Method:
    """The method with a gate that draws regions at random, with the shares its own gate had on calibration prompts."""
    keep, rewrite, escalate, judge = shares
    gate = RandomGate(keep=keep, rewrite=rewrite, escalate=escalate, judge=judge)
    verifier = _one_gate(_hierarchical(method, "random_gate"), gate)
    return dataclasses.replace(method, name="random_gate", verifier=verifier)


def coin_mix(method: Method, p: float) -> Method:
    """Per round, a coin chooses between speculative decoding and an unread draft block."""
    return dataclasses.replace(_drafting(method, "coin_mix"), name=f"coin_mix@{p:g}", verifier=CoinMix(p=p))


def coin_slim(method: Method, p: float) -> Method:
    """Per round, a coin chooses between speculative decoding and the slim verifier's judgment alone."""
    slim = _hierarchical(method, "coin_slim").slim
    return dataclasses.replace(
        _drafting(method, "coin_slim"), name=f"coin_slim@{p:g}", verifier=CoinSlim(p=p, slim=slim)
    )


_BASELINES: dict[str, Callable[[MethodSpec], Method]] = {"vanilla": lambda method: vanilla(), "sd": sd}
_CONTROLS: dict[str, Callable[[Method], Method]] = {
    "lossless": lossless,
    "draft_only": draft_only,
    "slim_only": slim_only,
    "accept_all": accept_all,
}
_COINS: dict[str, Callable[[Method, float], Method]] = {"coin_mix": coin_mix, "coin_slim": coin_slim}
CONTROLS = (*_BASELINES, *_CONTROLS, "random_gate", *_COINS)


@dataclasses.dataclass(frozen=True)
class Context:
    """What arms are derived from: the chosen method, built and as composed, and the pair.

    `shares` is asked for the gate's shares only when random_gate is among the arms. `resolve` settles what an arm
    leaves open (masks), so that arms are compared as they will run.
    """

    method: MethodSpec
    composed: Mapping[str, Any]
    pair: Pair
    shares: Callable[[], Shares]
    resolve: Callable[[MethodSpec], MethodSpec] = lambda method: method


def derive(names: Sequence[str | Mapping[str, str]], context: Context) -> tuple[dict[str, MethodSpec], list[str]]:
    """Methods by arm name, in order, and notices of arms that were left out. Equal arms run once."""
    method, pair = context.method, context.pair
    arms: dict[str, MethodSpec] = {}
    notices: list[str] = []
    for name in names:
        if name == "sd" and "draft" not in pair.models and method.name != "sd":
            notices.append(f"arm sd left out: pair {pair.name} has no draft model")
            continue
        arm = context.resolve(_arm(name, context))
        label = method.name if name == "method" else arm.name
        twin = next((known for known, other in arms.items() if _same(other, arm)), None)
        if label in arms and twin is None:
            raise UserError(f"arms={names}: two different arms are named {label!r}")
        if twin is not None:
            if label != twin:
                notices.append(f"arm {label} equals {twin} and runs once, as {twin}")
            continue
        check_roles(arm, pair)
        arms[label] = arm
    return arms, notices


def _arm(name: str | Mapping[str, str], context: Context) -> MethodSpec:
    method = context.method
    if not isinstance(name, str):
        if len(name) != 1:
            raise UserError(f"arms: {dict(name)}: accepted: one LABEL: KEY=VALUE ... for each changed method")
        return vary(context.composed, *next(iter(name.items())))
    if name == "method":
        return method
    if name in _BASELINES:
        return _BASELINES[name](method)
    if (control := _control(name)) is not None:
        return control(_of_parts(method, name), context)
    known = method_names()
    if name not in known:
        raise UserError(f"arms: {name!r} is neither a method nor a control{near(name, [*CONTROLS, 'method', *known])}")
    return compose_method(name)


def _control(name: str) -> Callable[[Method, Context], Method] | None:
    """How a control of this name is made of a method; None where no control is named so."""
    control = name.partition("@")[0]
    if name in _CONTROLS:
        return lambda method, _: _CONTROLS[name](method)
    if name == "random_gate":
        return _random_gate
    if control in _COINS:
        return lambda method, _: _COINS[control](method, _share(name) if "@" in name else DEFAULT_COIN)
    if control == "slim_only":
        return lambda method, _: slim_only(method, _share(name))
    return None


def _random_gate(method: Method, context: Context) -> Method:
    _hierarchical(method, "random_gate")  # before its shares are measured
    return random_gate(method, context.shares())


def check_roles(method: MethodSpec, pair: Pair) -> None:
    """Raises UserError when the pair lacks a model that the method runs."""
    missing = sorted(method.roles - set(pair.models) - set(pair.heads))
    if missing:
        raise UserError(
            f"method {method.name} needs the role {missing[0]!r}; pair {pair.name} has: "
            + ", ".join([*sorted(pair.models), *(f"{name} (head)" for name in sorted(pair.heads))])
        )


def check_sampling(arms: Mapping[str, MethodSpec], sampling: Sampling) -> None:
    """Raises UserError where an arm does not decode so."""
    for name, arm in arms.items():
        try:
            if isinstance(arm, Picky):
                arm.check(sampling)
        except ValueError as error:
            raise UserError(f"arm {name}: {error}") from error


def _share(name: str) -> float:
    """The number behind the @ of a control's name."""
    control, _, text = name.partition("@")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"arms: {name}: accepted: {control}@NUMBER with a number from 0 to 1, as in {control}@0.8")
    return share


def _same(one: Any, other: Any) -> bool:
    """Whether two methods, which are dataclasses, differ in nothing but their names."""
    same: bool = dataclasses.replace(one, name="x") == dataclasses.replace(other, name="x")
    return same


def _of_parts(method: MethodSpec, control: str) -> Method:
    if not isinstance(method, Method):
        raise UserError(
            f"arm {control} is derived from the drafter, stop rule or verifier of a method; {method.name} has none of "
            "them; accepted beside it: vanilla, sd, names of methods"
        )
    return method


def _hierarchical(method: Method, control: str) -> Hierarchical:
    if not isinstance(method.verifier, Hierarchical):
        raise UserError(f"arm {control} is a control of a hierarchical verifier; method {method.name} has none")
    return method.verifier


def _one_gate(verifier: Hierarchical, gate: Gate) -> Hierarchical:
    """The lossy verifier of one slim verifier with this gate: what a control of any mode is compared with."""
    return dataclasses.replace(verifier, gate=gate, above=[], mode="lossy", calls=None, budget=None)


def _drafting(method: Method, control: str) -> Method:
    if isinstance(method.drafter, NoDrafter):
        raise UserError(f"arm {control} needs a method that drafts; {method.name} does not")
    return method
