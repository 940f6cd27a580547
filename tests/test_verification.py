"""What is recorded of a round (counts after stops, tiers, sources, pending tokens, regions, audits); config errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from doubles import PROMPT, TableReaders, Tables, check_counts, spy_on
from pydantic import ValidationError

from baselines.controls import CoinMix, Unverified
from baselines.rules.fuzzy import Fuzzy
from viasd.decode import Decode, Draft, Generation, Round, State, Verdict
from viasd.drafting import DraftModel, FixedLength
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import ESCALATE, KEEP, READINGS, REWRITE, Evidence, RandomGate, RatioGate
from viasd.sampling import Sampling, SeededDraws, process
from viasd.verification import RuleVerifier, SlimView

EOS = 9
BUSY = RandomGate(keep=0.5, rewrite=0.25, escalate=0.25)


# --- hand-made verdicts -------------------------------------------------------------------------------------------


class RewoundReaders:
    """Readers that only note to where they were rewound."""

    role, calls, fed, read = "target", 0, 0, 0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.rewound: list[int] = []

    def opened(self) -> Sequence[Any]:
        return [self]

    def rewind(self, length: int) -> None:
        self.rewound.append(length)


def committed(drafted: Sequence[int], verdict: Verdict, max_new_tokens: int = 10) -> tuple[State, Round, int]:
    """The state and record after one round on a prompt of two ids, and the length that readers were rewound to."""
    readers = RewoundReaders()
    decode = Decode(Sampling(), max_new_tokens, frozenset({EOS}))
    state = State([1, 2], decode, SeededDraws(0, "a"), readers)  # type: ignore[arg-type]
    draft = Draft.chain(torch.tensor(drafted), torch.zeros(len(drafted), 10))
    record = state.commit(draft, verdict)
    assert state.ids[: state.length].tolist() == [1, 2, *state.output]
    (rewound,) = readers.rewound
    return state, record, rewound


def by_target(tokens: Sequence[int], kept: int, drafted: int = 3) -> Verdict:
    return Verdict(
        tokens=list(tokens),
        sources=["target"] * len(tokens),
        kept=kept,
        tiers=["target"] * min(len(tokens), drafted),
        target_ruled=len(tokens),
    )


@pytest.mark.parametrize(
    ("drafted", "verdict", "output", "counts", "rewound", "reason"),
    [
        # counts: judged, rejected, discarded, cut
        ([5, 6, 7], by_target([5, 6, 7, 8], 3), [5, 6, 7, 8], (3, 0, 0, 0), 5, None),
        ([5, 6, 7], by_target([5, 8], 1), [5, 8], (2, 1, 1, 0), 3, None),
        ([5, 6, 7], by_target([8], 0), [8], (1, 1, 2, 0), 2, None),
        ([5, 6, 7], by_target([5, 6, 8], 2), [5, 6, 8], (3, 1, 0, 0), 4, None),
        ([EOS, 6, 7], by_target([EOS, 6, 7, 8], 3), [EOS], (1, 0, 0, 2), 2, "eos"),
        ([5, EOS, 7], by_target([5, EOS, 7, 8], 3), [5, EOS], (2, 0, 0, 1), 3, "eos"),
        ([5, 6, EOS], by_target([5, 6, EOS, 8], 3), [5, 6, EOS], (3, 0, 0, 0), 4, "eos"),
        ([5, 6, 7], by_target([5, 6, 7, EOS], 3), [5, 6, 7, EOS], (3, 0, 0, 0), 5, "eos"),
        ([5, 6, 7], by_target([5, EOS], 1), [5, EOS], (2, 1, 1, 0), 3, "eos"),
        ([EOS, 6, 7], by_target([EOS, 8], 1), [EOS], (1, 0, 0, 2), 2, "eos"),
        ([], by_target([EOS], 0, drafted=0), [EOS], (0, 0, 0, 0), 2, "eos"),
    ],
    ids=[
        "kept-and-bonus",
        "replaced-middle",
        "replaced-first",
        "replaced-last",
        "eos-first",
        "eos-middle",
        "eos-last",
        "eos-bonus",
        "eos-replacement",
        "eos-before-replacement",
        "eos-undrafted",
    ],
)
def test_counts_after_stops(
    drafted: list[int],
    verdict: Verdict,
    output: list[int],
    counts: tuple[int, ...],
    rewound: int,
    reason: str | None,
) -> None:
    state, record, to = committed(drafted, verdict)
    assert state.output == output
    assert state.finish_reason == reason
    assert (record.judged, record.rejected, record.discarded, record.cut) == counts
    assert (record.drafted, record.committed, record.unjudged) == (len(drafted), len(output), 0)
    assert record.target_rejected == record.rejected
    assert record.pending == state.pending == 0
    assert record.prefix == 2
    assert to == rewound


@pytest.mark.parametrize(("limit", "cut", "bonus"), [(1, 2, False), (2, 1, False), (3, 0, False), (4, 0, True)])
def test_length_limit_inside_a_block(limit: int, cut: int, bonus: bool) -> None:
    state, record, _ = committed([5, 6, 7], by_target([5, 6, 7, 8], 3), max_new_tokens=limit)
    assert state.output == [5, 6, 7, 8][:limit]
    assert state.finish_reason == "length"
    assert record.cut == cut
    assert record.committed - record.judged == bonus


def test_eos_comes_before_the_length_limit() -> None:
    state, _, _ = committed([EOS], by_target([EOS], 1, drafted=1), max_new_tokens=1)
    assert state.finish_reason == "eos"


def test_stop_matcher_sees_the_whole_output() -> None:
    seen: list[list[int]] = []

    def matcher(output: Sequence[int]) -> bool:
        seen.append(list(output))
        return list(output[-2:]) == [6, 7]

    readers = RewoundReaders()
    decode = Decode(Sampling(), 10, stop=matcher)
    state = State([1], decode, SeededDraws(0, "a"), readers)  # type: ignore[arg-type]
    for drafted, tokens in (([5, 6], [5, 6]), ([7, 8], [7, 8, 3])):
        draft = Draft.chain(torch.tensor(drafted), torch.zeros(2, 10))
        record = state.commit(draft, by_target(tokens, 2, drafted=2))
    assert state.output == [5, 6, 7]
    assert state.finish_reason == "stop"
    assert (record.committed, record.cut) == (1, 1)
    assert seen == [[5], [5, 6], [5, 6, 7]]


def test_unjudged_tokens() -> None:
    verdict = Verdict(tokens=[5, EOS, 7], sources=["draft"] * 3, kept=3, unjudged=3)
    state, record, _ = committed([5, EOS, 7], verdict)
    assert (record.judged, record.unjudged, record.cut, record.rejected) == (0, 2, 1, 0)
    assert record.tiers == []
    assert record.pending == state.pending == 2


@pytest.mark.parametrize(("last", "discarded", "cut"), [(6, 1, 0), (EOS, 0, 1)], ids=["goes-on", "eos"])
def test_equal_rewrite_that_ends_the_round(last: int, discarded: int, cut: int) -> None:
    verdict = Verdict(tokens=[5, last], sources=["draft", "slim"], kept=2, tiers=["draft", "slim"])
    state, record, rewound = committed([5, last, 7], verdict)
    assert (record.judged, record.rejected, record.discarded, record.cut) == (2, 0, discarded, cut)
    assert record.pending == state.pending == 2
    assert rewound == 3  # the last committed id is never left read


def test_pending_counts_what_the_target_has_not_ruled() -> None:
    """Kept by the gate, kept by the target, then rewritten by the slim verifier: the target read the first two."""
    verdict = Verdict(
        tokens=[5, 6, 8], sources=["draft", "target", "slim"], kept=2, tiers=["draft", "target", "slim"], target_ruled=2
    )
    state, record, rewound = committed([5, 6, 7], verdict)
    assert record.pending == state.pending == 1
    assert state.confirmed == 4
    assert (record.rejected, record.target_rejected) == (1, 0)
    assert rewound == 4


# --- the real loop on tables --------------------------------------------------------------------------------------

WIDE = 6
WARM = Sampling(temperature=0.9, top_p=0.95)
SLIM = SlimView(mask=[0])
VERIFIERS: dict[str, Any] = {
    "sd": RuleVerifier(),
    "slim_only": RuleVerifier(reader="slim", slim=SLIM),
    "draft_only": Unverified(),
    "fuzzy": RuleVerifier(
        rule=Fuzzy(divergence="tv", threshold=0.3, reducible=False)
    ),  # may draw the drafted token again
    "coin_mix": CoinMix(p=0.7),
    "via_sd": Hierarchical(gate=RatioGate(reading="direct"), slim=SLIM, max_pending=4),
    "via_sd-random": Hierarchical(gate=BUSY, slim=SLIM, bonus_min_prob=0.2, max_pending=None),
    "via_sd-after_slim": Hierarchical(gate=BUSY, slim=SLIM, after_escalation="slim", max_pending=5),
    "via_sd_paper": Hierarchical(
        gate=RatioGate(),
        slim=SlimView(mask=[0], cache="separate"),
        after_escalation="slim",
        after_equal_rewrite="stop",
        bonus="none",
        target_bonus=False,
        max_pending=None,
    ),
}


def runs(
    name: str, count: int = 25, detail: bool = False, **decode: Any
) -> Iterator[tuple[Generation, list[list[int]], Tables]]:
    """Seeded runs on tables of six tokens (readers check what they are fed), drafts beside them, counts checked."""
    for seed in range(count):
        tables = Tables(seed, vocabulary=WIDE, spread=0.7)
        method = Method(name="t", drafter=DraftModel(), stop=FixedLength(length=3), verifier=VERIFIERS[name])
        decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
        spy = spy_on(decoder)
        settings = Decode(WARM, **{"max_new_tokens": 14, **decode})
        generation = decoder.generate(PROMPT, settings, SeededDraws(seed, "a"), detail=detail)
        check_counts(generation, spy.drafts, len(PROMPT))
        yield generation, spy.drafts, tables


@pytest.mark.parametrize("name", VERIFIERS)
def test_stops_everywhere(name: str) -> None:
    """An eos lands on every place of a draft and behind it; the output ends with it, and only there."""
    places = set()
    for generation, drafts, _ in runs(name, count=160, eos_ids=frozenset({4})):
        output, last = generation.token_ids, generation.rounds[-1]
        assert len(output) <= 14
        assert 4 not in output[:-1]
        assert generation.finish_reason == ("eos" if output[-1] == 4 else "length")
        if output[-1] == 4:
            kept = last.committed - last.rejected
            final = last.judged + last.unjudged
            where = "bonus" if last.committed > final else "replaced" if last.rejected else kept
            places.add(where)
            assert last.cut == len(drafts[-1]) - final - last.discarded
    assert {1, 2, 3} <= places
    assert ("bonus" in places) == (name not in ("draft_only", "via_sd_paper"))
    assert ("replaced" in places) == (name != "draft_only")


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name.startswith("via_sd")])
def test_tiers_sources_and_regions(name: str) -> None:
    config = VERIFIERS[name]
    seen = set()
    for generation, drafts, _ in runs(name):
        pending = 0
        for round_, drafted in zip(generation.rounds[:-1], drafts, strict=False):  # a stop may have cut the last one
            start = round_.prefix - len(PROMPT)
            tokens = generation.token_ids[start : start + round_.committed]
            fresh = tokens[-1:] != drafted[len(tokens) - 1 : len(tokens)]  # the last token was not drafted
            ran = round_.escalation is not None  # then the target read all drafted tokens
            pending = int(fresh and round_.sources[-1] != "target") if ran else pending + round_.committed
            assert round_.pending == pending
            equal_rewrites = [i for i, tier in enumerate(round_.tiers) if tier == "slim" and tokens[i] == drafted[i]]
            if config.after_equal_rewrite == "stop":
                assert equal_rewrites in ([], [round_.committed - 1])
            elif equal_rewrites and equal_rewrites[0] < round_.committed - 1:
                seen.add("went on")
            assert round_.sources[: round_.judged] == round_.tiers
            keep, rewrite, escalate, _ = round_.regions or (0, 0, 0, 0)
            assert keep == round_.tiers.count("draft")
            assert rewrite == round_.tiers.count("slim")
            by_target = round_.tiers.count("target")
            if config.after_escalation == "target":
                assert escalate == (round_.escalation == "gate")
                assert "draft" not in round_.tiers[round_.tiers.index("target") :] if by_target else True
            else:
                assert escalate == by_target - (round_.escalation == "forced")
            assert (round_.escalation is None) == (by_target == 0)
            bonus = round_.sources[round_.judged :]
            assert bonus in ([], ["slim"], ["target"])
            if bonus:
                assert (bonus[0] == "target") == (round_.tiers[-1] == "target")
                assert config.bonus == "slim" or bonus == ["target"]
            if config.max_pending is not None:
                assert round_.pending <= config.max_pending
            seen |= {*round_.tiers, round_.escalation, *(f"{source} bonus" for source in bonus)}
    expected = {"draft", "slim", "target", None, "gate"}
    expected |= {"target bonus"} if config.target_bonus else set()
    expected |= {"went on"} if config.after_equal_rewrite == "continue" else set()
    expected |= {"slim bonus"} if config.bonus == "slim" else set()
    expected |= {"forced"} if config.max_pending is not None else set()
    assert seen == expected


def target_probability(tables: Tables, generation: Generation, at: int) -> float:
    """The target's processed probability of the output token `at`."""
    logits = torch.tensor([tables.logits("target", [*PROMPT, *generation.token_ids[:at]])], dtype=torch.float64)
    return float(process(logits, WARM)[0, generation.token_ids[at]])


@pytest.mark.parametrize("eos", [None, 4], ids=["to-the-limit", "eos"])
@pytest.mark.parametrize("name", VERIFIERS)
def test_each_token_is_audited_once(name: str, eos: int | None) -> None:
    """The next target call audits every committed token that the target did not write, in order, once."""
    audited = 0
    for generation, _, tables in runs(name, detail=True, eos_ids=frozenset() if eos is None else frozenset({eos})):
        assert generation.laws is not None
        assert len(generation.laws) == len(generation.token_ids)
        waiting: list[float] = []
        for round_ in generation.rounds:
            start = round_.prefix - len(PROMPT)
            for at, source in enumerate(round_.sources, start):
                if source != "target":
                    waiting.append(min(1.0, target_probability(tables, generation, at) / generation.laws[at]))
            ran = round_.escalation is not None or (name in ("sd", "coin_mix") and "target" in round_.sources)
            if ran:
                assert (round_.audits or []) == pytest.approx(waiting, abs=1e-12)
                audited += len(waiting)
                waiting = []
            else:
                assert round_.audits is None
    assert (audited > 0) == (name in ("coin_mix", *(name for name in VERIFIERS if name.startswith("via_sd"))))


def test_nothing_is_audited_without_detail() -> None:
    for generation, _, _ in runs("via_sd", count=5):
        assert generation.laws is None
        assert all(round_.audits is None for round_ in generation.rounds)


def test_detail_changes_nothing_else() -> None:
    for name in VERIFIERS:
        for (plain, _, _), (detailed, _, _) in zip(runs(name, count=5), runs(name, count=5, detail=True), strict=True):
            assert plain.token_ids == detailed.token_ids
            assert (plain.calls, plain.fed) == (detailed.calls, detailed.fed)


def test_calls_and_fed_tokens_of_sd() -> None:
    """The draft model reads one id per drafted token and what it missed, the target each draft and the id before it."""
    for generation, drafts, _ in runs("sd", count=5):
        assert generation.calls == {"target": len(generation.rounds), "draft": sum(map(len, drafts))}
        assert generation.fed["target"] == sum(round_.drafted + 1 for round_ in generation.rounds)


# --- gates --------------------------------------------------------------------------------------------------------


def gate_logits() -> torch.Tensor:
    return 2 * torch.randn(200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reading", READINGS)
def test_ratio_gate_by_definition(reading: Any) -> None:
    gate, logits = RatioGate(reading=reading), gate_logits()
    tokens = torch.arange(200) % 12
    ratio = (logits.softmax(-1) / logits.softmax(-1).amax(-1, keepdim=True))[torch.arange(200), tokens]
    accept, escalate = READINGS[reading]
    expected = [KEEP if r >= accept else REWRITE if r >= escalate else ESCALATE for r in ratio.tolist()]
    regions = gate.classify(Evidence(logits), tokens, SeededDraws(0, "a"))
    assert regions.tolist() == expected
    shares = gate.shares(Evidence(logits))
    assert torch.equal(shares.argmax(0)[torch.arange(200), tokens], regions)
    assert torch.equal(shares.sum(0), torch.ones_like(logits))
    assert set(expected) == ({KEEP, ESCALATE} if reading == "literal" else {KEEP, REWRITE, ESCALATE})


def test_explicit_thresholds_win() -> None:
    assert RatioGate(reading="direct", accept_ratio=0.9).thresholds == (0.9, 0.3)
    assert RatioGate(accept_ratio=0.9, escalate_ratio=0).thresholds == (0.9, 0)
    assert (gate_logits().shape[0], 0) == accept_all_counts(RatioGate(accept_ratio=0, escalate_ratio=0))
    top = gate_logits().argmax(-1)
    assert (
        RatioGate(accept_ratio=1, escalate_ratio=1)
        .classify(Evidence(gate_logits()), top, SeededDraws(0, "a"))
        .eq(KEEP)
        .all()
    )


def accept_all_counts(gate: RatioGate) -> tuple[int, int]:
    regions = gate.classify(Evidence(gate_logits()), torch.arange(200) % 12, SeededDraws(0, "a"))
    return int(regions.eq(KEEP).sum()), int(regions.ne(KEEP).sum())


def test_ids_the_model_lacks_are_escalated() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert RatioGate().classify(Evidence(logits), torch.tensor([2]), SeededDraws(0, "a")).tolist() == [ESCALATE]
    assert RatioGate().shares(Evidence(logits))[:, 0, 2].tolist() == [0, 0, 1, 0]


def test_random_gate_has_its_shares_and_is_blind() -> None:
    gate = RandomGate(keep=0.2, rewrite=0.3, escalate=0.5)
    logits = torch.zeros(6_000, 3)
    regions = gate.classify(Evidence(logits), torch.zeros(6_000, dtype=torch.long), SeededDraws(0, "a"))
    assert torch.bincount(regions).tolist() == pytest.approx([1_200, 1_800, 3_000], rel=0.1)
    expected = torch.tensor([0.2, 0.3, 0.5, 0])[:, None, None].expand(4, 2, 3)
    assert torch.equal(gate.shares(Evidence(logits[:2])), expected)


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RatioGate(accept_ratio=0.3, escalate_ratio=0.5), r"escalate_ratio=0\.5 exceeds accept_ratio=0\.3"),
        (lambda: RatioGate(reading="direct", escalate_ratio=0.6), r"escalate_ratio=0\.6 exceeds accept_ratio=0\.5"),
        (lambda: RatioGate(reading="exact"), "reading"),  # type: ignore[arg-type]
        (lambda: RatioGate(accept_ratio=1.2), "accept_ratio"),
        (lambda: RandomGate(keep=0.5, rewrite=0.5, escalate=0.5), r"keep \+ rewrite \+ escalate \+ judge = 1\.5"),
        (lambda: FixedLength(length="five"), "length"),  # type: ignore[arg-type]
        (lambda: FixedLength(length=-1), "length"),
        (lambda: FixedLength(lenght=5), "lenght"),  # type: ignore[call-arg]
        (lambda: Hierarchical(gate=BUSY, max_pending=0), "max_pending"),
        (lambda: Hierarchical(gate=BUSY, bonus="target"), "bonus"),  # type: ignore[arg-type]
        (lambda: Hierarchical(gate="ratio"), "gate"),  # type: ignore[arg-type]
        (lambda: Hierarchical(gate=BUSY, mode="strict"), "mode"),  # type: ignore[arg-type]
        (lambda: Hierarchical(), "gate"),  # type: ignore[call-arg]
        (lambda: SlimView(cache="own"), "cache"),  # type: ignore[arg-type]
        (lambda: SlimView(skip_ratio=1.0), "skip_ratio"),
        (lambda: RuleVerifier(reader="draft"), "reader"),  # type: ignore[arg-type]
        (lambda: CoinMix(p=1.5), "p"),
        (lambda: Method(name="m", stop=FixedLength(), verifier=BUSY), "verifier"),  # type: ignore[arg-type]
        (lambda: Method(name="m", stop=RuleVerifier(), verifier=RuleVerifier()), "stop"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_the_key(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_specs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        FixedLength().length = 3  # type: ignore[misc]


def test_slim_reader_needs_its_view() -> None:
    with pytest.raises(ValueError, match=r"verifier\.slim=null: reader=slim needs the view"):
        RuleVerifier(reader="slim").open_verifier(TableReaders(Tables()))


def test_unresolved_mask_is_our_own_error() -> None:
    with pytest.raises(AssertionError, match="mask 'auto' was not resolved"):
        Hierarchical(gate=BUSY).open_verifier(TableReaders(Tables()))


def test_lossless_is_claimed_by_lossless_methods_only() -> None:
    lossless = {name for name, verifier in VERIFIERS.items() if verifier.lossless}
    assert lossless == {"sd"}
    assert CoinMix(p=1).lossless
