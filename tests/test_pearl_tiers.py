"""PEARL with the hierarchical verifier: plain PEARL where everything is escalated, its counts, its law, its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from doubles import PROMPT, TableReaders, Tables, enumerate_paths, largest_difference, law_of, spy_on
from test_families import PROMPT as TEXT
from test_families import reference
from test_laws import Rows, product_law

from baselines.pearl import PearlDrafter, PearlVerifier
from baselines.pearl_tiers import PearlHierarchical
from experiments.measure import Bench, Profile
from viasd.budget import BudgetControl
from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.gates import DeferralGate, StrictnessGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.method import Method
from viasd.routing import RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import SlimView

SLIM = SlimView(mask=[0])
ALL_UP = RandomGate(keep=0, rewrite=0, escalate=1)
BUSY = RandomGate(keep=0.5, rewrite=0.2, escalate=0.2, judge=0.1)
PLAIN = Sampling(temperature=1.0)
VERIFIERS: dict[str, PearlHierarchical] = {
    "ratio": PearlHierarchical(gate=RatioGate(), slim=SLIM),
    "busy": PearlHierarchical(gate=BUSY, slim=SLIM, max_pending=6),
    "paper": PearlHierarchical(
        gate=BUSY,
        slim=SlimView(mask=[0], cache="separate"),
        after_escalation="slim",
        after_equal_rewrite="stop",
        max_pending=None,
    ),
    "deferral": PearlHierarchical(gate=DeferralGate(threshold=0.4), slim=SLIM),
    "two": PearlHierarchical(gate=BUSY, slim=SLIM, above=[SlimTier(gate=BUSY, slim=SLIM)]),
    "budget": PearlHierarchical(
        gate=StrictnessGate(strictness=0.5), slim=SLIM, mode="budget", max_pending=8, budget=BudgetControl(share=0.3)
    ),
}


def ahead(verifier: Any, length: int = 3) -> Method:
    return Method(name="t", drafter=PearlDrafter(), stop=FixedLength(length=length), verifier=verifier)


def run(method: Method, tables: Tables, sampling: Sampling, seed: int, **more: Any) -> tuple[Generation, list[Any]]:
    decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
    spy = spy_on(decoder)
    decode = Decode(sampling, 17, **more)
    return decoder.generate(PROMPT, decode, SeededDraws(seed, "a"), detail=True), list(spy.drafts)


@pytest.mark.parametrize("how", ["shared", "separate"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_where_everything_is_escalated_it_is_pearl(length: int, how: Any) -> None:
    """Token for token, and call for call of draft model and target; only the slim verifier looks besides."""
    verifier = PearlHierarchical(gate=ALL_UP, slim=SlimView(mask=[0], cache=how))
    for seed in range(12):
        tables = Tables(seed, 6, 0.7)
        one, drafts = run(ahead(verifier, length), tables, Sampling(), seed)
        other, others = run(ahead(PearlVerifier(), length), tables, Sampling(), seed)
        assert one.token_ids == other.token_ids and drafts == others
        for role in ("draft", "target"):
            assert (one.calls[role], one.fed[role]) == (other.calls[role], other.fed[role])
        assert one.calls["slim"] == len(one.rounds) - sum(not draft for draft in drafts)
        for ours, theirs in zip(one.rounds, other.rounds, strict=True):
            assert replace(ours, escalation=None, regions=None, audits=None) == replace(
                theirs, escalation=None, regions=None, audits=None
            )


@pytest.mark.parametrize("length", [1, 2])
def test_where_everything_is_escalated_its_law_is_the_targets(length: int) -> None:
    tables, rows = Tables(2), Rows(Tables(2), PLAIN)
    verifier = PearlHierarchical(gate=StrictnessGate(strictness=1), slim=SLIM)
    law = law_of(enumerate_paths(ahead(verifier, length), tables, PLAIN, 3))
    assert largest_difference(law, product_law(rows, "target")) < 1e-9


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_greedy_text_of_a_real_pair(tiny: ModelFactory, variant: ModelFactory, family: str) -> None:
    target = tiny(family)
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)
    verifier = PearlHierarchical(gate=ALL_UP, slim=SlimView(mask=[0, 2, 3]))
    generation = ahead(verifier, 4).open(engine).generate(TEXT, Decode(Sampling(), 22), SeededDraws(0, "a"))
    assert generation.token_ids == reference(target)


@pytest.mark.parametrize("sampling", [Sampling(), PLAIN], ids=["greedy", "warm"])
@pytest.mark.parametrize("how", VERIFIERS)
def test_counts_are_recounted(how: str, sampling: Sampling) -> None:
    """A drafted token counts once, in the round that rules on it or drops it; nothing is added behind a draft."""
    seen = dict.fromkeys(("held", "changed", "unread"), 0)
    for seed in range(25):
        one, drafts = run(ahead(VERIFIERS[how], 3), Tables(seed, 6, 0.7), sampling, seed, eos_ids=frozenset({4}))
        done = 0
        for number, (round_, draft) in enumerate(zip(one.rounds, drafts, strict=True)):
            committed = one.token_ids[done : done + round_.committed]
            done += round_.committed
            due = draft[: (round_.held or 0) + 1]
            assert 0 < len(committed) <= max(1, len(due)) and committed[:-1] == due[: len(committed) - 1]
            last = number == len(one.rounds) - 1
            held = 0 if last or committed != due else len(draft) - len(due)
            assert round_.drafted == len(draft) - held == round_.judged + round_.discarded + round_.cut
            assert round_.judged == len(round_.tiers) and len(round_.sources) == round_.committed
            assert round_.rejected == (bool(due) and committed[-1] != due[len(committed) - 1])
            if not last:
                assert one.rounds[number + 1].held == held
            seen["held"] += held
            seen["changed"] += round_.rejected
            seen["unread"] += round_.pending > 0
        assert done == len(one.token_ids) and one.laws is not None and len(one.laws) == done
        assert sum(round_.drafted for round_ in one.rounds) == one.calls["draft"]
    assert seen["held"] and seen["changed"] and (seen["unread"] or how == "budget")  # which is strict on these tables


def test_no_verifier_reads_the_token_that_is_drafted_beside_it() -> None:
    """All is kept: the slim verifier reads three tokens a round, as many as are committed, and never the newest one."""
    verifier = PearlHierarchical(gate=RatioGate(accept_ratio=0, escalate_ratio=0), slim=SLIM, max_pending=None)
    decoder = ahead(verifier, 3).open(TableReaders(Tables(1)))  # type: ignore[arg-type]
    told: list[int] = []
    slim = next(reader for reader in decoder.readers.opened() if reader.role == "slim")
    generation = decoder.generate(
        PROMPT, Decode(Sampling(), 13), SeededDraws(0, "a"), watch=lambda event: told.append(slim.read)
    )
    assert [one.committed for one in generation.rounds] == [1, 3, 3, 3, 3]
    assert told[1:-1] == [len(PROMPT) + done - 1 for done in (1, 4, 7, 10)]
    assert generation.fed["slim"] == 13 and generation.calls["target"] == 0


def test_the_law_of_a_judging_slim_verifier_is_its_own() -> None:
    """Deferral that is always sure: the law is the slim verifier's, whatever is drafted ahead."""
    verifier = PearlHierarchical(
        gate=DeferralGate(threshold=0), slim=SlimView(mask=[0], cache="separate"), max_pending=None
    )
    law = law_of(enumerate_paths(ahead(verifier, 2), Tables(2), PLAIN, 3))
    assert largest_difference(law, product_law(Rows(Tables(2), PLAIN), "slim")) < 1e-9


def test_a_draft_that_nobody_wrote_ahead_is_ruled_on_as_a_whole() -> None:
    tables, plain = Tables(3), Hierarchical(gate=RatioGate(), slim=SLIM, bonus="none", target_bonus=False)
    laws = [
        law_of(
            enumerate_paths(
                Method(name="t", drafter=DraftModel(), stop=FixedLength(length=2), verifier=one), tables, PLAIN
            )
        )
        for one in (plain, VERIFIERS["ratio"])
    ]
    assert laws[0] == laws[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "exact"}, "mode=exact.*accepted: lossy, budget"),
        ({"bonus": "slim"}, "bonus=slim.*accepted: bonus=none target_bonus=false"),
        ({"target_bonus": True}, "target_bonus=true.*accepted: bonus=none target_bonus=false"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PearlHierarchical(gate=ALL_UP, **options)


class Prices:
    """A draft step takes 1, a call of a slim verifier 2, of the target 3 and a tenth per token."""

    def seconds(self, arm: str, role: str, fed: int) -> float:
        return {"draft": 1.0, "slim": 2.0, "slim2": 2.0, "target": 3.0 + fed / 10}[role]


def test_the_verifiers_of_a_round_run_in_turn_beside_the_drafter() -> None:
    bench = object.__new__(Bench)
    bench.costs = Prices()  # type: ignore[assignment]
    profile = Profile(torch.device("cpu"))
    kept, escalated, drafting = (
        [("draft", 1), ("slim", 3)],
        [("slim", 3), ("slim2", 3), ("target", 5)],
        [("draft", 1)] * 4,
    )
    profile.rounds = [kept, [*drafting, *escalated], [*drafting, ("slim", 1)]]
    assert bench._parallel_seconds("pearl", profile) == pytest.approx(2.0 + 7.5 + 4.0)
