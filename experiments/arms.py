"""The arms of a comparison: vanilla, sd and every control are derived from the method, overrides included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from baselines.controls import CoinMix, Unverified
from experiments.config import compose_method, method_names
from experiments.errors import UserError, near
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.method import Method
from viasd.models import Pair
from viasd.routing import RandomGate, RatioGate
from viasd.verification import Hierarchical, RuleVerifier

DEFAULT_DRAFT_LENGTH = 5
DEFAULT_COIN = 0.8


def vanilla() -> Method:
    """Autoregressive decoding."""
    return Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


def sd(method: Method) -> Method:
    """Speculative decoding with the pair's draft model, at the method's fixed length or 5."""
    length = method.stop.length if isinstance(method.stop, FixedLength) else DEFAULT_DRAFT_LENGTH
    stop = FixedLength(length=length or DEFAULT_DRAFT_LENGTH)
    return Method(name="sd", drafter=DraftModel(), stop=stop, verifier=RuleVerifier())


def lossless(method: Method) -> Method:
    """The method's drafter and stop rule under the lossless rule."""
    return dataclasses.replace(method, name="lossless", verifier=RuleVerifier())


def draft_only(method: Method) -> Method:
    """Draft blocks are output unread."""
    return dataclasses.replace(_drafting(method, "draft_only"), name="draft_only", verifier=Unverified())


def slim_only(method: Method) -> Method:
    """The slim verifier judges by the ordinary row rule."""
    verifier = RuleVerifier(reader="slim", slim=_hierarchical(method, "slim_only").slim)
    return dataclasses.replace(method, name="slim_only", verifier=verifier)


def accept_all(method: Method) -> Method:
    """The method with a gate that keeps everything: the slim verifier runs and never refuses."""
    gate = RatioGate(accept_ratio=0.0, escalate_ratio=0.0)
    verifier = dataclasses.replace(_hierarchical(method, "accept_all"), gate=gate)
    return dataclasses.replace(method, name="accept_all", verifier=verifier)


def random_gate(method: Method, shares: tuple[float, float, float]) -> Method:
    """The method with a gate that draws regions at random, with the shares its own gate had on calibration prompts."""
    keep, rewrite, escalate = shares
    gate = RandomGate(keep=keep, rewrite=rewrite, escalate=escalate)
    verifier = dataclasses.replace(_hierarchical(method, "random_gate"), gate=gate)
    return dataclasses.replace(method, name="random_gate", verifier=verifier)


def coin_mix(method: Method, p: float) -> Method:
    """Per round, a coin chooses between speculative decoding and an unread draft block."""
    return dataclasses.replace(_drafting(method, "coin_mix"), name=f"coin_mix@{p:g}", verifier=CoinMix(p=p))


_CONTROLS: dict[str, Callable[[Method], Method]] = {
    "vanilla": lambda method: vanilla(),
    "sd": sd,
    "lossless": lossless,
    "draft_only": draft_only,
    "slim_only": slim_only,
    "accept_all": accept_all,
}
CONTROLS = (*_CONTROLS, "random_gate", "coin_mix")


def derive(
    names: list[str],
    method: Method,
    pair: Pair,
    shares: Callable[[], tuple[float, float, float]],
    resolve: Callable[[Method], Method] = lambda method: method,
) -> tuple[dict[str, Method], list[str]]:
    """Methods by arm name, in order, and notices of arms that were left out. Equal arms run once.

    `shares` is asked for the gate's shares only when random_gate is among the names. `resolve` settles what an arm
    leaves open (masks), so that arms are compared as they will run.
    """
    arms: dict[str, Method] = {}
    notices: list[str] = []
    for name in names:
        if name == "sd" and "draft" not in pair.models and method.name != "sd":
            notices.append(f"arm sd left out: pair {pair.name} has no draft model")
            continue
        arm = resolve(_arm(name, method, shares))
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


def _arm(name: str, method: Method, shares: Callable[[], tuple[float, float, float]]) -> Method:
    if name == "method":
        return method
    if name in _CONTROLS:
        return _CONTROLS[name](method)
    if name == "random_gate":
        _hierarchical(method, name)
        return random_gate(method, shares())
    if name.partition("@")[0] == "coin_mix":
        return coin_mix(method, _probability(name))
    known = method_names()
    if name not in known:
        raise UserError(f"arms: {name!r} is neither a method nor a control{near(name, [*CONTROLS, 'method', *known])}")
    return compose_method(name)


def check_roles(method: Method, pair: Pair) -> None:
    """Raises UserError when the pair lacks a model that the method runs."""
    missing = sorted(method.roles - set(pair.models))
    if missing:
        raise UserError(
            f"method {method.name} needs the role {missing[0]!r}; pair {pair.name} has: "
            + ", ".join(sorted(pair.models))
        )


def _probability(name: str) -> float:
    text = name.partition("@")[2]
    try:
        p = float(text) if text else DEFAULT_COIN
    except ValueError:
        p = -1.0
    if not 0 <= p <= 1:
        raise UserError(f"arms: {name}: accepted: coin_mix@P with P from 0 to 1, as in coin_mix@0.8")
    return p


def _same(one: Method, other: Method) -> bool:
    return dataclasses.replace(one, name="x") == dataclasses.replace(other, name="x")


def _hierarchical(method: Method, control: str) -> Hierarchical:
    if not isinstance(method.verifier, Hierarchical):
        raise UserError(f"arm {control} is a control of a hierarchical verifier; method {method.name} has none")
    return method.verifier


def _drafting(method: Method, control: str) -> Method:
    if isinstance(method.drafter, NoDrafter):
        raise UserError(f"arm {control} needs a method that drafts; {method.name} does not")
    return method
