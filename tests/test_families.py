"""Greedy identity in float64: lossless methods output what the library's own `generate` outputs, in every family."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, WINDOW, ModelFactory
from doubles import DraftSpy, check_counts, spy_on
from test_exact import check_totals

from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.method import Method
from viasd.routing import RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

PROMPT = torch.randint(3, VOCABULARY, (WINDOW + 4,), generator=torch.Generator().manual_seed(1)).tolist()
NEW_TOKENS = 22  # not a multiple of a block and its bonus: the limit falls inside a block
DRAFTED = 4
DECODE = Decode(Sampling(temperature=0), NEW_TOKENS)
ESCALATE_ALL = RandomGate(keep=0, rewrite=0, escalate=1)
METHODS = {
    "sd": RuleVerifier(),
    "via_sd": Hierarchical(gate=ESCALATE_ALL, slim=SlimView(mask=[0, 2, 3])),
    "via_sd_paper": Hierarchical(
        gate=ESCALATE_ALL,
        slim=SlimView(mask=[0, 3], cache="separate"),
        after_escalation="slim",
        after_equal_rewrite="stop",
        bonus="none",
        max_pending=None,
    ),
}

BUSY = RandomGate(keep=0.4, rewrite=0.2, escalate=0.2, judge=0.2)
SHALLOW, MIDDLE, DEEP = (SlimView(mask=mask) for mask in ([0], [0, 3], [0, 2, 3]))
EXACT: dict[str, Hierarchical] = {
    "keep_all": Hierarchical(gate=RatioGate(accept_ratio=0, escalate_ratio=0), slim=DEEP, mode="exact"),
    "short_window": Hierarchical(
        gate=RatioGate(accept_ratio=0, escalate_ratio=0), slim=DEEP, mode="exact", max_pending=5, target_bonus=False
    ),
    "deferral": Hierarchical(gate=DeferralGate(threshold=0.4), slim=DEEP, mode="exact"),
    "judge_all": Hierarchical(gate=DeferralGate(threshold=0), slim=DEEP, mode="exact", max_pending=12),
    "random": Hierarchical(gate=BUSY, slim=DEEP, mode="exact"),
    "separate": Hierarchical(gate=BUSY, slim=SlimView(mask=[0, 1, 3], cache="separate"), mode="exact"),
    "two": Hierarchical(gate=BUSY, slim=MIDDLE, above=[SlimTier(gate=BUSY, slim=DEEP)], mode="exact"),
    "three": Hierarchical(
        gate=BUSY,
        slim=SHALLOW,
        above=[SlimTier(gate=BUSY, slim=MIDDLE), SlimTier(gate=DeferralGate(threshold=0.6), slim=DEEP)],
        mode="exact",
    ),
}


class EndsWith:
    """A stop matcher on ids."""

    def __init__(self, *tail: int) -> None:
        self.tail = list(tail)

    def __call__(self, output_ids: Sequence[int]) -> bool:
        return list(output_ids[-len(self.tail) :]) == self.tail


@functools.cache
def reference(model: Any, eos: int | None = None) -> list[int]:
    """New ids of the library's greedy `generate`."""
    output = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos)
    return output[0, len(PROMPT) :].tolist()


def decoded(target: Any, draft: Any, name: str, decode: Decode = DECODE) -> tuple[Generation, DraftSpy]:
    """One greedy run of a method, counts checked."""
    engine = Engine({"target": target, "draft": draft}, VOCABULARY, 64)
    verifier = METHODS.get(name) or EXACT[name]
    method = Method(name=name, drafter=DraftModel(), stop=FixedLength(length=DRAFTED), verifier=verifier)
    decoder = method.open(engine)
    spy = spy_on(decoder)
    generation = decoder.generate(PROMPT, decode, SeededDraws(0, "example"))
    if name in EXACT:
        check_totals(generation, spy.drafts)
    else:
        check_counts(generation, spy.drafts, len(PROMPT))
    return generation, spy


def drafts_of(target: Any, variant: ModelFactory, agreement: str) -> Any:
    return target if agreement == "always" else variant(target, "noisy" if agreement == "sometimes" else "opposite")


@pytest.mark.parametrize("family", FAMILIES)
def test_vanilla(tiny: ModelFactory, family: str) -> None:
    target = tiny(family)
    expected = reference(target)
    assert len(set(expected)) >= 10  # a model that repeats itself proves nothing
    method = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
    decoder = method.open(Engine({"target": target}, VOCABULARY, 64))
    generation = decoder.generate(PROMPT, DECODE, SeededDraws(0, "example"))
    assert generation.token_ids == expected
    assert generation.calls == generation.fed == {"target": NEW_TOKENS}
    assert generation.finish_reason == "length"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("agreement", ["always", "sometimes", "never"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafted(tiny: ModelFactory, variant: ModelFactory, family: str, agreement: str, name: str) -> None:
    target = tiny(family)
    generation, _ = decoded(target, drafts_of(target, variant, agreement), name)
    assert generation.token_ids == reference(target)
    judged = sum(round_.judged for round_ in generation.rounds)
    rejected = sum(round_.rejected for round_ in generation.rounds)
    if agreement == "always":
        assert rejected == 0
    elif agreement == "never":
        assert rejected == judged == NEW_TOKENS
    else:
        assert 0 < rejected < judged
    tiers = {tier for round_ in generation.rounds for tier in round_.tiers}
    assert tiers == {"target"}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("agreement", ["always", "sometimes", "never"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_exact_mode(tiny: ModelFactory, variant: ModelFactory, family: str, agreement: str, name: str) -> None:
    """What slim verifiers write is taken back where it differs from the target's choice, and only there."""
    target = tiny(family)
    generation, _ = decoded(target, drafts_of(target, variant, agreement), name)
    assert generation.token_ids == reference(target)
    if name == "keep_all" and agreement != "always":
        assert any(round_.withdrawn for round_ in generation.rounds)
    assert generation.calls["slim"] > 0


@pytest.mark.parametrize("name", EXACT)
def test_exact_mode_stops_inside_provisional_tokens(tiny: ModelFactory, variant: ModelFactory, name: str) -> None:
    target = tiny("llama")
    full = reference(target)
    for at in (3, 7, 12):
        eos = full[at]
        for agreement in ("always", "sometimes"):
            draft = drafts_of(target, variant, agreement)
            generation, _ = decoded(target, draft, name, replace(DECODE, eos_ids=frozenset({eos})))
            assert generation.token_ids == full[: full.index(eos) + 1]
            assert generation.finish_reason == "eos"
            matcher = EndsWith(full[at - 1], full[at])
            generation, _ = decoded(target, draft, name, replace(DECODE, stop=matcher))
            end = next(end for end in range(2, NEW_TOKENS + 1) if matcher(full[:end]))
            assert generation.token_ids == full[:end]
            assert generation.finish_reason == "stop"
    for limit in range(1, 8):
        generation, _ = decoded(target, target, name, replace(DECODE, max_new_tokens=limit))
        assert generation.token_ids == full[:limit]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("agreement", ["always", "sometimes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stops_inside_a_draft(
    tiny: ModelFactory, variant: ModelFactory, family: str, agreement: str, name: str
) -> None:
    """An eos and a stop sequence at tokens 7, which the second block of an agreeing draft reaches in its middle."""
    target = tiny(family)
    draft = drafts_of(target, variant, agreement)
    full = reference(target)
    eos = full[7]
    until_eos = full[: full.index(eos) + 1]
    generation, _ = decoded(target, draft, name, replace(DECODE, eos_ids=frozenset({eos, VOCABULARY + 1})))
    assert generation.token_ids == until_eos == reference(target, eos)
    assert generation.finish_reason == "eos"
    matcher = EndsWith(full[6], full[7])
    generation, _ = decoded(target, draft, name, replace(DECODE, stop=matcher))
    ends = [end for end in range(2, NEW_TOKENS + 1) if matcher(full[:end])]
    assert generation.token_ids == full[: ends[0]]
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("limit", range(1, 7))
def test_length_limit_at_every_place_of_a_block(tiny: ModelFactory, limit: int) -> None:
    target = tiny("llama")
    for name in METHODS:
        generation, spy = decoded(target, target, name, replace(DECODE, max_new_tokens=limit))
        assert generation.token_ids == reference(target)[:limit]
        assert generation.finish_reason == "length"
        assert all(round_.cut == 0 for round_ in generation.rounds)  # a block is never drafted past the limit
        assert len(spy.drafts[0]) == min(DRAFTED, limit)


def test_a_decoder_starts_every_request_anew(tiny: ModelFactory, variant: ModelFactory) -> None:
    target = tiny("gemma2")
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)
    method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=3), verifier=METHODS["via_sd"])
    decoder = method.open(engine)
    first, other, again = (
        decoder.generate(prompt, DECODE, SeededDraws(0, "example")) for prompt in (PROMPT, PROMPT[::-1], PROMPT)
    )
    assert again == first
    assert other.token_ids != first.token_ids
