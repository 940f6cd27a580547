"""Mode exact: the law of the real loop is the target's, whatever the gate, the call rule and the control flow."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from doubles import PROMPT, TableReaders, Tables, enumerate_paths, law_of, spy_on
from test_laws import EXACT, NUCLEUS, WARM, Rows, method_of

from viasd.calling import WhenItPays
from viasd.decode import Decode, Generation
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.routing import RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws, process
from viasd.verification import SlimView

SLIM = SlimView(mask=[0])
GATES: dict[str, Any] = {
    "ratio": RatioGate(),
    "floor": RatioGate(floor=0.25),
    "keep_all": RatioGate(accept_ratio=0, escalate_ratio=0),
    "keep_or_escalate": RandomGate(keep=0.6, rewrite=0, escalate=0.4),
    "keep_or_judge": RandomGate(keep=0.5, rewrite=0, escalate=0, judge=0.5),
    "deferral": DeferralGate(threshold=0.45),
    "judge_all": DeferralGate(threshold=0),
    "patient": DeferralGate(threshold=0.45, patience=4),
}
FEW_TOKENS = {
    "patient": 2,
    "keep_or_escalate": 2,
    "keep_or_judge": 2,
    "deferral": 2,
    "judge_all": 2,
}  # else paths are too many


def exact(gate: Any, **options: Any) -> Hierarchical:
    return Hierarchical(gate=gate, mode="exact", **{"slim": SLIM, **options})


def check_exact(rules: Hierarchical, length: int, tokens: int, seed: int = 5) -> list[Generation]:
    """All paths, if the law of their outputs is the target's."""
    tables = Tables(seed)
    paths = list(enumerate_paths(method_of(rules, length), tables, NUCLEUS, tokens))
    law = law_of(iter(paths))
    target = Rows(tables, NUCLEUS)
    for outcome in itertools.product(range(3), repeat=tokens):
        stated = math.prod(target.of("target", outcome[:at])[outcome[at]] for at in range(tokens))
        assert abs(law.get(outcome, 0.0) - stated) < EXACT, outcome
    return [generation for generation, _ in paths]


@pytest.mark.parametrize("max_pending", [1, 2, 24, 64, None])
@pytest.mark.parametrize("gate", GATES)
def test_law_is_the_targets(gate: str, max_pending: int | None) -> None:
    length = 1 if gate.startswith("keep_or") else 2
    paths = check_exact(exact(GATES[gate], max_pending=max_pending), length, FEW_TOKENS.get(gate, 3))
    assert any(round_.withdrawn for one in paths for round_ in one.rounds)


def test_three_tokens_by_deferral() -> None:
    check_exact(exact(GATES["deferral"]), 1, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"bonus": "none"},
        {"bonus_min_prob": 0.5},
        {"target_bonus": False},
        {"after_equal_rewrite": "stop"},
        {"calls": WhenItPays(draft_cost=0.1, slim_cost=0.5, target_cost=1)},
        {"above": [SlimTier(gate=RatioGate(reading="direct"), slim=SLIM)]},
        {"above": [SlimTier(gate=DeferralGate(threshold=0.4), slim=SlimView(mask=[0], cache="separate"))]},
    ],
    ids=["no_bonus", "bonus_min_prob", "no_target_bonus", "equal_rewrite", "calls", "two_ratios", "ratio_and_deferral"],
)
@pytest.mark.parametrize("gate", ["ratio", "deferral"])
def test_law_is_the_targets_in_every_control_flow(gate: str, options: dict[str, Any]) -> None:
    check_exact(exact(GATES[gate], **options), 2, 2 if gate == "deferral" or "above" in options else 3, seed=7)


# --- counts ---------------------------------------------------------------------------------------------------------


def check_totals(generation: Generation, drafts: list[list[int]]) -> None:
    """Every drafted token is counted once in the whole output, and the judged ones have a tier."""
    rounds = generation.rounds
    assert sum(one.drafted for one in rounds) == sum(map(len, drafts))
    assert sum(one.drafted for one in rounds) == sum(
        one.judged + one.unjudged + one.discarded + one.cut for one in rounds
    )
    assert sum(one.committed for one in rounds) == len(generation.token_ids)
    for one in rounds:
        assert one.judged == len(one.tiers) == len(one.judgments)
        assert one.rejected == sum(not kept for _, kept in one.judgments) >= one.target_rejected
        assert len(one.sources) == one.committed
        assert one.pending == 0 or one.committed == 0
    assert rounds[-1].pending == 0


@pytest.mark.parametrize("sampling", [WARM, Sampling()], ids=["warm", "greedy"])
@pytest.mark.parametrize("gate", GATES)
def test_counts(gate: str, sampling: Sampling) -> None:
    seen = Counter[str]()
    for seed in range(40):
        tables = Tables(seed, vocabulary=6, spread=0.7)
        decoder = method_of(exact(GATES[gate], max_pending=8), 3).open(TableReaders(tables))  # type: ignore[arg-type]
        spy = spy_on(decoder)
        decode = Decode(sampling, 14, frozenset({4}))
        plain = decoder.generate(PROMPT, decode, SeededDraws(seed, "a"))
        check_totals(plain, spy.drafts)
        detailed = decoder.generate(PROMPT, decode, SeededDraws(seed, "a"), detail=True)
        assert plain.token_ids == detailed.token_ids and plain.calls == detailed.calls
        assert detailed.laws == pytest.approx(target_laws(tables, detailed.token_ids, sampling))
        assert 4 not in plain.token_ids[:-1] and len(plain.token_ids) <= 14
        if sampling.temperature == 0:
            assert plain.token_ids == greedy_output(tables, decode)
        for one in plain.rounds:
            seen.update(one.tiers)
            seen["withdrawn"] += one.withdrawn
            seen["provisional"] += one.pending > 0
    assert seen["withdrawn"] and seen["provisional"]
    assert seen["target"] or gate in ("keep_all", "judge_all")


def target_laws(tables: Tables, output: list[int], sampling: Sampling) -> list[float]:
    rows = (
        torch.tensor([tables.logits("target", [*PROMPT, *output[:at]])], dtype=torch.float64)
        for at in range(len(output))
    )
    return [float(process(row, sampling)[0, token]) for row, token in zip(rows, output, strict=True)]


def greedy_output(tables: Tables, decode: Decode) -> list[int]:
    output: list[int] = []
    while len(output) < decode.max_new_tokens and (not output or output[-1] not in decode.eos_ids):
        logits = tables.logits("target", [*PROMPT, *output])
        output.append(logits.index(max(logits)))
    return output
