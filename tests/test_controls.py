"""The controls: what draft_only and coin_mix output, count and leave unread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import VOCABULARY, WINDOW, ModelFactory
from doubles import DraftSpy, check_counts, spy_on

from baselines.controls import CoinMix, CoinSlim, Unverified
from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

PROMPT = torch.randint(3, VOCABULARY, (WINDOW + 4,), generator=torch.Generator().manual_seed(4)).tolist()
NEW_TOKENS = 18
SLIM = SlimView(mask=[0, 2, 3])


@pytest.fixture(scope="module")
def engine(tiny: ModelFactory, variant: ModelFactory) -> Engine:
    target = tiny("qwen2")
    return Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)


def run(engine: Engine, verifier: Any, length: int = 4, temperature: float = 0, **decode: Any) -> tuple[Any, DraftSpy]:
    method = Method(name="control", drafter=DraftModel(), stop=FixedLength(length=length), verifier=verifier)
    decoder = method.open(engine)
    spy = spy_on(decoder)
    settings = Decode(Sampling(temperature=temperature), NEW_TOKENS, **decode)
    generation = decoder.generate(PROMPT, settings, SeededDraws(0, "example"), detail=True)
    check_counts(generation, spy.drafts, len(PROMPT))
    return generation, spy


def greedy(model: Any) -> list[int]:
    output = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return output[0, len(PROMPT) :].tolist()


def tokens_of(spy: DraftSpy) -> list[int]:
    return [token for draft in spy.drafts for token in draft]


def test_draft_only_is_the_draft_model(engine: Engine) -> None:
    generation, spy = run(engine, Unverified())
    assert generation.token_ids == tokens_of(spy) == greedy(engine.models["draft"])
    assert generation.calls == {"draft": NEW_TOKENS}  # the target is not even opened
    assert [round_.unjudged for round_ in generation.rounds] == [4, 4, 4, 4, 2]
    assert all(round_.judged == round_.rejected == 0 and round_.tiers == [] for round_ in generation.rounds)
    assert [round_.pending for round_ in generation.rounds] == [4, 8, 12, 16, 18]
    assert {source for round_ in generation.rounds for source in round_.sources} == {"draft"}


def test_draft_only_stops_inside_a_block(engine: Engine) -> None:
    full = greedy(engine.models["draft"])
    generation, _ = run(engine, Unverified(), eos_ids=frozenset({full[6]}))
    assert generation.token_ids == full[: full.index(full[6]) + 1]
    assert generation.finish_reason == "eos"
    last = generation.rounds[-1]
    assert last.unjudged + last.cut == last.drafted
    assert last.discarded == 0


def test_draft_only_needs_a_draft(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"stop\.length=0: draft_only outputs drafted tokens"):
        run(engine, Unverified(), length=0)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_coin_mix_at_its_ends(engine: Engine, temperature: float) -> None:
    def ids(verifier: Any) -> list[int]:
        return run(engine, verifier, temperature=temperature)[0].token_ids

    assert ids(CoinMix(p=0)) == ids(Unverified())
    assert ids(CoinMix(p=1)) == ids(RuleVerifier())
    if temperature == 0:
        assert ids(CoinMix(p=1)) == greedy(engine.models["target"])


def test_coin_mix_rounds(engine: Engine) -> None:
    """Every round is one kind or the other; the target reads unread blocks in its next call and audits them there."""
    generation, _ = run(engine, CoinMix(p=0.5))
    assert isinstance(generation, Generation)
    unread, kinds = 0, set()
    for round_ in generation.rounds:
        judged = round_.judged > 0
        kinds.add(judged)
        assert (round_.unjudged > 0) != judged
        assert len(round_.audits or []) == (unread if judged else 0)
        unread = 0 if judged else unread + round_.unjudged
        assert round_.pending == unread
        assert set(round_.sources) == {"target" if judged else "draft"}
        assert round_.escalation is None and round_.regions is None
    assert kinds == {True, False}
    fed = generation.fed["target"]
    assert generation.calls["target"] == sum(round_.judged > 0 for round_ in generation.rounds)
    assert fed == generation_feed(generation, len(PROMPT))


def test_coin_slim_at_its_ends(engine: Engine) -> None:
    slim = RuleVerifier(reader="slim", slim=SLIM)
    assert run(engine, CoinSlim(p=0, slim=SLIM))[0].token_ids == run(engine, slim)[0].token_ids
    assert run(engine, CoinSlim(p=1, slim=SLIM))[0].token_ids == greedy(engine.models["target"])


def test_coin_slim_rounds(engine: Engine) -> None:
    """Every round has one judge; what the slim verifier wrote is read and audited by the target's next call."""
    generation, _ = run(engine, CoinSlim(p=0.5, slim=SLIM))
    unread, judges = 0, set()
    for round_ in generation.rounds:
        (judge,) = set(round_.tiers)
        judges.add(judge)
        assert set(round_.sources) == {judge} and round_.unjudged == 0 and round_.judged > 0
        assert len(round_.audits or []) == (unread if judge == "target" else 0)
        unread = 0 if judge == "target" else unread + round_.committed
        assert round_.pending == unread
    assert judges == {"slim", "target"}
    assert generation.calls["target"] + generation.calls["slim"] == len(generation.rounds)


def generation_feed(generation: Generation, prompt_length: int) -> int:
    """Ids the target reads: each of its calls goes from what it had read to the end of the draft."""
    read, fed = prompt_length - 1, 0
    for round_ in generation.rounds:
        if round_.judged:
            fed += round_.prefix + round_.drafted - read
            read = round_.prefix + round_.committed - 1
    return fed


def test_slim_only_is_the_view(engine: Engine) -> None:
    """With its own cache, the view judged by the row rule outputs what the view alone would."""
    view = engine.view([0, 2, 3])
    ids = list(PROMPT)
    for _ in range(NEW_TOKENS):
        ids.append(int(view(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    generation, _ = run(engine, RuleVerifier(reader="slim", slim=SlimView(mask=[0, 2, 3], cache="separate")))
    assert generation.token_ids == ids[len(PROMPT) :]
    assert {tier for round_ in generation.rounds for tier in round_.tiers} == {"slim"}
    assert generation.rounds[-1].pending == NEW_TOKENS
    assert "target" not in generation.calls


def test_slim_only_leaves_the_target_idle_on_a_shared_cache(engine: Engine) -> None:
    generation, _ = run(engine, RuleVerifier(reader="slim", slim=SLIM))
    assert generation.calls["target"] == generation.fed["target"] == 0  # it read the prompt, before the clock
    assert generation.fed["slim"] >= NEW_TOKENS


def test_accept_all_refuses_nothing(engine: Engine) -> None:
    gate = RatioGate(accept_ratio=0, escalate_ratio=0)
    generation, spy = run(engine, Hierarchical(gate=gate, slim=SLIM, bonus="none", max_pending=None))
    assert generation.token_ids == tokens_of(spy) == greedy(engine.models["draft"])
    assert all(round_.rejected == 0 and set(round_.tiers) == {"draft"} for round_ in generation.rounds)
    assert generation.calls["target"] == 0


def test_roles_name_the_models_that_run() -> None:
    def roles(verifier: Any) -> frozenset[str]:
        return Method(name="m", drafter=DraftModel(), stop=FixedLength(), verifier=verifier).roles

    assert roles(Unverified()) == {"draft"}
    assert roles(CoinMix(p=0.5)) == roles(CoinSlim(p=0.5)) == roles(RuleVerifier()) == {"draft", "target"}
    assert [verifier.lossless for verifier in (Unverified(), CoinMix(p=0.99), CoinMix(p=1))] == [False, False, True]
