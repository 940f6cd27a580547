"""AdaSD's verifier: its laws by enumeration, its means against a replay by hand, its ends and its traps."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import VOCABULARY as IDS_OF_MODELS
from conftest import ModelFactory
from doubles import (
    PROMPT,
    Outcome,
    TableReaders,
    Tables,
    check_counts,
    enumerate_paths,
    largest_difference,
    spy_on,
)
from test_laws import CAUGHT, EXACT, IDS, NUCLEUS, TOKENS, WARM, Law, Rows, enumerated, mix, product_law, softmax
from torch import Tensor

from baselines import adasd
from baselines.adasd import JsVerifier, js_divergence
from baselines.adasd_stop import EntropyStop
from experiments.conditions.meter import PassMeter
from experiments.measure import Bench, Prompt
from experiments.records import TRACE, Row
from experiments.stored.schema import read_row
from viasd.decode import Decode, Draft, State, Verdict
from viasd.drafting import DraftModel, FixedLength, StopSpec
from viasd.engine import Engine
from viasd.method import Method
from viasd.sampling import Draws, Sampling, SeededDraws, process
from viasd.verification import RuleVerifier, VerifierSpec

ROWS = Rows(Tables(25), NUCLEUS)  # J is below and above 0.35, and what is learned in two tokens moves the third
REPLACE = JsVerifier(variant="replace", replacement="target")
Seen = tuple[float, bool, float]  # J, label and entropy of a position that counts


def method_of(verifier: VerifierSpec, stop: StopSpec | None = None) -> Method:
    return Method(name="m", drafter=DraftModel(), stop=stop or FixedLength(length=2), verifier=verifier)


def fixed(threshold: float | None, **options: Any) -> JsVerifier:
    return JsVerifier(start=threshold, learn=False, **options)


def law_of_loop(verifier: VerifierSpec, stop: StopSpec | None = None) -> Law:
    return enumerated(method_of(verifier, stop), ROWS.tables, NUCLEUS)[0]


def js(one: list[float], other: list[float], measure: str = "distance") -> float:
    """Jensen-Shannon to base 2 by its definition, as a mean of two divergences from the mixture."""
    middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
    half = [sum(a * math.log2(a / m) for a, m in zip(row, middle, strict=True) if a > 0) / 2 for row in (one, other)]
    return math.sqrt(sum(half)) if measure == "distance" else sum(half)


def entropy(row: list[float]) -> float:
    return -sum(a * math.log(a) for a in row if a > 0)


def midpoint(seen: list[Seen], start: float | None) -> float | None:
    """T_V from what was seen in earlier rounds."""
    means = []
    for label in (True, False):
        values = [apart for apart, given, _ in seen if given == label]
        if not values:
            return start
        means.append(sum(values) / len(values))
    return sum(means) / 2


def entropy_limit(seen: list[Seen], start: float | None) -> float:
    """T_G from what was seen in earlier rounds."""
    values = [nats for _, label, nats in seen if not label]
    return sum(values) / len(values) if values else math.inf if start is None else start


@dataclass(frozen=True)
class StatedLaw:
    """The law of AdaSD, position by position, with what it has learned carried along; written without the loop."""

    rows: Rows
    rules: JsVerifier
    stop: FixedLength | EntropyStop
    tokens: int = TOKENS

    def look(self, prefix: Outcome) -> tuple[list[float], list[float], float, float]:
        """Target and draft row, J of the two, and the entropy of the raw draft row."""
        raw = [softmax(self.rows.tables.logits(role, (*PROMPT, *prefix))) for role in ("target", "draft")]
        target, draft = (self.rows.of(role, prefix) for role in ("target", "draft"))
        compared = raw if self.rules.rows == "raw" else (target, draft)
        return target, draft, js(compared[0], compared[1], self.rules.measure), entropy(raw[1])

    def block(self, prefix: Outcome, seen: list[Seen]) -> Law:
        return self.position(prefix, 0, math.inf, seen, [])

    def position(self, prefix: Outcome, place: int, before: float, seen: list[Seen], new: list[Seen]) -> Law:
        """The law of the text from here on; `before` is minus the entropy of the last draft row, `new` this round's."""
        if len(prefix) == self.tokens:
            return {prefix: 1.0}
        target, draft, apart, nats = self.look(prefix)
        ended = place == min(self.limit, self.tokens - len(prefix) + place)
        if isinstance(self.stop, EntropyStop):
            ended |= place > 0 and -before > entropy_limit(seen, self.stop.start)
        if ended:
            return mix((target[y], self.block((*prefix, y), self.learned(seen + new))) for y in IDS if target[y])
        threshold = midpoint(seen, self.rules.start)
        parts: list[tuple[float, Law]] = []
        for x, heads in itertools.product(IDS, (True, False)):
            coin = min(1.0, target[x] / draft[x]) if draft[x] else 0.0
            weight = draft[x] * (coin if heads else 1 - coin)
            if weight == 0:
                continue
            near = threshold is not None and apart <= threshold
            accepts = heads if threshold is None else near if self.rules.variant == "replace" else heads or near
            now = [*new, (apart, heads if self.rules.labels == "coin" else accepts, nats)]
            if accepts:
                parts.append((weight, self.position((*prefix, x), place + 1, -nats, seen, now)))
            else:
                row = target
                if threshold is None or self.rules.replacement == "residual":
                    left = [max(0.0, a - b) for a, b in zip(target, draft, strict=True)]
                    row = [one / sum(left) for one in left]
                rest = [(weight * row[y], self.block((*prefix, y), self.learned(seen + now))) for y in IDS if row[y]]
                parts += rest
        return mix(parts)

    @property
    def limit(self) -> int:
        return self.stop.length if isinstance(self.stop, FixedLength) else self.stop.cap

    def learned(self, seen: list[Seen]) -> list[Seen]:
        return seen if self.rules.learn else []


# --- the distance -------------------------------------------------------------------------------------------------


def test_js_is_what_its_definition_says() -> None:
    rows = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    rows[0, 0] = rows[1, 0]
    rows[:, 1] = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0]])
    found = js_divergence(rows[0], rows[1])
    expected = [js(one, other, "divergence") for one, other in zip(*rows.double().tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)  # rows of float32 sum to 1 within 1e-7
    assert found[:2].tolist() == pytest.approx([0, 1], abs=1e-12)
    nearly = (rows[0, 2:3] + 1e-5 * torch.tensor([[1.0, -1.0, 0, 0, 0, 0]])).double()  # float32 would see its own noise
    expected = [js(rows[0, 2].double().tolist(), nearly[0].tolist())]
    assert js_divergence(rows[0, 2:3], nearly).sqrt().tolist() == pytest.approx(expected, rel=1e-3)


# --- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["verdict", "coin"])
@pytest.mark.parametrize("replacement", ["residual", "target"])
@pytest.mark.parametrize("variant", ["rescue", "replace"])
def test_the_law_at_a_fixed_threshold(variant: Any, replacement: Any, labels: Any) -> None:
    rules, stop = fixed(0.35, variant=variant, replacement=replacement, labels=labels), FixedLength(length=2)
    stated = StatedLaw(ROWS, rules, stop)
    assert {stated.look(prefix)[2] <= 0.35 for prefix in [(), (0,), (1,), (2,)]} == {True, False}
    assert largest_difference(law_of_loop(rules, stop), stated.block((), [])) < EXACT


def test_rescue_and_replace_have_one_law_where_they_are_meant_to() -> None:
    """At drafted positions: the draft's row where J <= T_V, elsewhere the target's. One token a round, so no bonus."""
    rules = fixed(0.35)
    stated = StatedLaw(ROWS, rules, FixedLength(length=1))
    found = {}
    for name, verifier in (("rescue", rules), ("replace", replace(REPLACE, start=0.35, learn=False))):
        first: Law = Counter()
        for generation, weight in enumerate_paths(method_of(verifier), ROWS.tables, NUCLEUS, 1):
            first[tuple(generation.token_ids)] += weight
        found[name] = first
    target, draft, apart, _ = stated.look(())
    expected = {(y,): (draft if apart <= 0.35 else target)[y] for y in IDS}
    assert max(largest_difference(law, expected) for law in found.values()) < EXACT
    assert largest_difference({(y,): target[y] for y in IDS}, {(y,): draft[y] for y in IDS}) > 0.01


@pytest.mark.parametrize(
    ("rules", "stop"),
    [
        (JsVerifier(start=0.1), FixedLength(length=2)),
        (JsVerifier(labels="coin", rows="raw"), EntropyStop(cap=2, start=0.9)),
        (JsVerifier(), EntropyStop(cap=3)),
        (JsVerifier(start=0.1, replacement="target", measure="divergence"), EntropyStop(cap=3)),
        (replace(REPLACE, start=0.35), EntropyStop(cap=3, start=0.8)),
        (replace(REPLACE, labels="coin"), FixedLength(length=2)),
        (JsVerifier(variant="replace", start=0.22, memory="run"), EntropyStop(cap=2, memory="run")),
    ],
    ids=["rescue", "rescue-coin-raw", "rescue-cold", "rescue-target", "replace", "replace-coin", "replace-residual"],
)
def test_the_law_while_it_learns(rules: JsVerifier, stop: Any) -> None:
    """Means that move within a text move the law, as a replay says that carries them along."""
    stated = StatedLaw(ROWS, rules, stop).block((), [])
    assert largest_difference(law_of_loop(rules, stop), stated) < EXACT
    assert largest_difference(StatedLaw(ROWS, replace(rules, learn=False), stop).block((), []), stated) > CAUGHT


@pytest.mark.parametrize(
    ("verifier", "stop"),
    [
        (fixed(0.0), None),
        (fixed(0.0, variant="replace", replacement="target"), None),
        (fixed(None), None),
        (fixed(None, variant="replace", replacement="target"), EntropyStop(cap=3, start=0.8)),
        (RuleVerifier(), EntropyStop(cap=3, start=0.8)),  # gen_only
        (RuleVerifier(), EntropyStop(cap=3, memory="run")),
        (RuleVerifier(), EntropyStop(cap=3, start=0.8, keep_tripping=False)),
    ],
    ids=["rescue-0", "replace-0", "cold", "replace-cold", "gen_only", "gen_only-run", "gen_only-drops"],
)
def test_the_lossless_ends_have_the_targets_law(verifier: VerifierSpec, stop: StopSpec | None) -> None:
    assert largest_difference(law_of_loop(verifier, stop), product_law(ROWS, "target")) < EXACT


def test_a_threshold_of_one_is_the_draft_but_for_the_bonus() -> None:
    law = law_of_loop(fixed(1.0), FixedLength(length=TOKENS))
    assert largest_difference(law, product_law(ROWS, "draft")) < EXACT


@pytest.mark.parametrize("threshold", [0.35, 0.2, None])
@pytest.mark.parametrize("replacement", ["residual", "target"])
@pytest.mark.parametrize("variant", ["rescue", "replace"])
def test_the_recorded_law_is_that_of_the_token(variant: Any, replacement: Any, threshold: float | None) -> None:
    """Of the first token, drafted, and of one behind a drafted one: a share of paths by that law."""
    rules = fixed(threshold, variant=variant, replacement=replacement)
    found: dict[Outcome, float] = Counter()
    told: dict[Outcome, set[float]] = {}
    for generation, weight in enumerate_paths(method_of(rules), ROWS.tables, NUCLEUS, 1, detail=True):
        assert generation.laws is not None
        found[tuple(generation.token_ids)] += weight
        told.setdefault(tuple(generation.token_ids), set()).add(round(generation.laws[0], 12))
    assert {text: max(laws) for text, laws in told.items()} == pytest.approx(found, abs=EXACT)
    assert all(len(laws) == 1 for laws in told.values())


def test_the_law_of_a_bonus_is_the_targets() -> None:
    method = method_of(fixed(1.0), FixedLength(length=1))
    for generation, _ in enumerate_paths(method, ROWS.tables, NUCLEUS, 2, detail=True):
        one, two = generation.token_ids
        assert generation.laws is not None
        assert generation.laws[0] == pytest.approx(ROWS.of("draft", ())[one])
        assert generation.laws[1] == pytest.approx(ROWS.of("target", (one,))[two])


# --- what it learns -----------------------------------------------------------------------------------------------


class Watched:
    """A decoder on tables of eight ids, and of every round its draft, its verdict and what its coins were."""

    def __init__(self, verifier: VerifierSpec, stop: StopSpec, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        self.tables = Tables(seed, vocabulary=8, spread=1.5)
        self.decoder = method_of(verifier, stop).open(TableReaders(self.tables))  # type: ignore[arg-type]
        self.rounds: list[tuple[int, list[int], Verdict, list[bool], Any]] = []
        coins: list[list[bool]] = []
        inner = self.decoder.verifier.observe
        toss = adasd.toss

        def tossed(tokens: Tensor, target: Tensor, draft: Tensor, draws: Draws) -> Tensor:
            heads = toss(tokens, target, draft, draws)
            coins.append(heads.tolist())
            return heads

        def observe(state: State, draft: Draft, verdict: Verdict) -> None:
            inner(state, draft, verdict)
            record = state.rounds[-1]
            self.rounds.append((record.prefix, draft.tokens.tolist(), verdict, coins.pop() if coins else [], record))

        monkeypatch.setattr(adasd, "toss", tossed)
        self.decoder.verifier.observe = observe  # type: ignore[method-assign]
        self.told: list[Any] = []

    def run(self, tokens: int, sampling: Sampling = WARM) -> list[int]:
        spy, known = spy_on(self.decoder), len(self.rounds)
        draws = SeededDraws(3, "a")
        decode = Decode(sampling, tokens)
        generation = self.decoder.generate(
            PROMPT, decode, draws, watch=lambda event: self.told.append(self.decoder.adaptive())
        )
        check_counts(generation, spy.drafts, len(PROMPT))
        assert [one[4] for one in self.rounds[known:]] == generation.rounds
        return generation.token_ids

    def apart(self, prefix: list[int]) -> float:
        raw = [self.tables.logits(role, prefix) for role in ("target", "draft")]
        target, draft = (softmax([x / WARM.temperature for x in logits]) for logits in raw)
        return js(target, draft)

    def nats(self, prefix: list[int]) -> float:
        return entropy(softmax(self.tables.logits("draft", prefix)))


@pytest.mark.parametrize("labels", ["verdict", "coin"])
@pytest.mark.parametrize("positions", ["tested", "drafted"])
@pytest.mark.parametrize("variant", ["rescue", "replace"])
def test_means_against_a_replay_by_hand(
    variant: Any, positions: Any, labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round by round: where the draft ended, what was accepted, what was labeled how, and both thresholds after it."""
    replacement = "target" if variant == "replace" else "residual"
    rules = JsVerifier(variant=variant, positions=positions, labels=labels, replacement=replacement)
    watched = Watched(rules, EntropyStop(cap=6), monkeypatch)
    output = [*PROMPT, *watched.run(120)]
    seen: list[Seen] = []
    warm = 0
    for (prefix, drafted, verdict, coins, _), told in zip(watched.rounds, watched.told[1:], strict=True):
        threshold, limit = midpoint(seen, None), entropy_limit(seen, None)
        texts = [[*output[:prefix], *drafted[:place]] for place in range(len(drafted))]
        apart, nats = [watched.apart(text) for text in texts], [watched.nats(text) for text in texts]
        assert all(one <= limit for one in nats[:-1])
        assert nats[-1] > limit or len(drafted) in (6, len(PROMPT) + 120 - prefix)
        near = [threshold is not None and one <= threshold for one in apart]
        heads = coins or near  # no coin is tossed where none is looked at
        accepts = heads if threshold is None else near if variant == "replace" else list(map(max, heads, near))
        accepted = accepts.index(False) if False in accepts else len(drafted)
        judged = min(accepted + 1, len(drafted))
        assert len(verdict.tiers) == judged and verdict.kept >= accepted
        given = heads if labels == "coin" else accepts
        count = judged if positions == "tested" else len(drafted)
        seen += list(zip(apart[:count], given[:count], nats[:count], strict=True))
        numbers = told["verifier"]
        assert numbers["tested"] == judged and numbers["lossy"] == sum(near[:judged])
        assert numbers.get("threshold") == (
            None if midpoint(seen, None) is None else pytest.approx(midpoint(seen, None))
        )
        if entropy_limit(seen, None) < math.inf:
            assert told["stop"]["threshold"] == pytest.approx(entropy_limit(seen, None))
        else:
            assert "stop" not in told
        warm += threshold is not None
    assert warm > 8


def test_a_replacement_that_equals_the_draft_is_no_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """`replace` draws from the target's whole row, so it may write the token that it refused; counts are checked."""
    watched = Watched(fixed(0.3, variant="replace", replacement="target"), FixedLength(length=4), monkeypatch)
    watched.run(100)
    equal = [
        one for _, _, one, _, _ in watched.rounds if one.labels and not one.labels[-1] and one.kept == len(one.tiers)
    ]
    assert equal and all(len(one.tokens) == one.kept for one in equal)


def test_dead_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the test replaces the coin and begins with 0, nothing is ever accepted; the coin in its place starts it."""
    dead = Watched(replace(REPLACE, start=0.0), FixedLength(length=3), monkeypatch)
    dead.run(60)
    assert not any(any(one.labels or []) for _, _, one, _, _ in dead.rounds)
    assert dead.told[-1]["verifier"]["threshold"] == 0 and "accepted" not in dead.told[-1]["verifier"]
    alive = Watched(REPLACE, FixedLength(length=3), monkeypatch)
    alive.run(60)
    assert any(any(one.labels or []) for _, _, one, _, _ in alive.rounds[10:])
    assert alive.told[-1]["verifier"]["threshold"] > 0


def test_half_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `decay` an older value weighs less: by hand over what was seen."""
    watched = Watched(JsVerifier(decay=0.5), FixedLength(length=1), monkeypatch)
    output = [*PROMPT, *watched.run(30)]
    means = []
    for label in (True, False):
        values = [watched.apart(output[:prefix]) for prefix, _, one, _, _ in watched.rounds if one.labels == [label]]
        weights = [0.5**age for age in reversed(range(len(values)))]
        means.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    assert watched.told[-1]["verifier"]["threshold"] == pytest.approx(sum(means) / 2)


@pytest.mark.parametrize("positions", ["tested", "drafted"])
def test_nothing_is_learned_behind_an_end_mark(positions: Any) -> None:
    """Whatever is judged there: blocks of eight, every id but two ends the text."""
    tables = Tables(0, vocabulary=8)
    rules = JsVerifier(memory="run", labels="coin", positions=positions)
    decoder = method_of(rules, FixedLength(length=8)).open(TableReaders(tables))  # type: ignore[arg-type]
    counted = 0
    for example in range(20):
        decode = Decode(WARM, 40, eos_ids=frozenset(range(2, 8)))
        found = decoder.generate(PROMPT, decode, SeededDraws(0, str(example)))
        behind = 8 if positions == "drafted" else 0  # of the rounds that did not end the text
        counted += sum(behind or one.judged for one in found.rounds[:-1]) + found.rounds[-1].judged
    known = decoder.memory()["verifier"]
    assert known["accepted"]["weight"] + known["rejected"]["weight"] == counted > 20


@pytest.mark.parametrize("memory", ["request", "run"])
def test_memory(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(JsVerifier(memory=memory), EntropyStop(cap=4, memory=memory), monkeypatch)
    fresh = watched.decoder.memory()
    watched.run(40)
    after, told = json.loads(json.dumps(watched.decoder.memory())), watched.decoder.adaptive()
    assert told is not None and "threshold" in told["verifier"] and "threshold" in told["stop"]
    watched.told.clear()
    watched.run(40)
    started = watched.told[0] or {}  # when the prompt was read
    assert ("threshold" in started.get("verifier", {})) == ("stop" in started) == (memory == "run")
    if memory == "request":
        assert fresh == after == {}
        return
    assert started["stop"] == told["stop"] and started["verifier"]["threshold"] == told["verifier"]["threshold"]
    watched.decoder.restore(after)
    again = watched.decoder.adaptive()
    assert watched.decoder.memory() == after and again is not None and again["stop"] == told["stop"]
    watched.decoder.restore(fresh)
    watched.told.clear()
    watched.run(4)
    assert "stop" not in watched.told[0] and "threshold" not in watched.told[0]["verifier"]


# --- temperature 0 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["raw", "processed"])
@pytest.mark.parametrize("variant", ["rescue", "replace"])
def test_at_temperature_0_raw_rows_are_compared(variant: Any, rows: Any) -> None:
    """The draft's argmax where the raw rows are close, else the target's; behind a whole block the target's."""
    tables, length = Tables(5), 3
    rules = fixed(0.35, variant=variant, rows=rows, replacement="residual" if variant == "rescue" else "target")
    decoder = method_of(rules, FixedLength(length=length)).open(TableReaders(tables))  # type: ignore[arg-type]
    found = decoder.generate(PROMPT, Decode(Sampling(), 24), SeededDraws(0, "a"), detail=True)
    text, place, near = list(PROMPT), 0, 0
    while len(text) < len(PROMPT) + 24:
        target, draft = (tables.logits(role, text) for role in ("target", "draft"))
        ours, theirs = (row.index(max(row)) for row in (target, draft))
        kept = place < length and js(softmax(target), softmax(draft)) <= 0.35
        near += kept and ours != theirs
        text.append(theirs if kept else ours)
        place = place + 1 if place < length and (kept or (ours == theirs and variant == "rescue")) else 0
    assert found.token_ids == text[len(PROMPT) :] and near > 0
    assert found.laws == [1.0] * 24


# --- what is stored -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tiny: ModelFactory, variant: ModelFactory) -> Bench:
    """What a profiled and a timed pass need."""
    target = tiny("llama")
    made = object.__new__(Bench)
    made.peaks = {}
    made.engine = Engine({"target": target, "draft": variant(target, "noisy")}, IDS_OF_MODELS, 96)
    method = method_of(JsVerifier(), EntropyStop(cap=4))
    made.arms = {"adasd": method.open(made.engine), "sd": method_of(RuleVerifier()).open(made.engine)}
    made.decode, made.seed, made.costs, made.turns = Decode(Sampling(temperature=1.0), 40), 0, None, None
    made.meter = PassMeter()
    return made


def test_the_stored_trace_tells_the_thresholds(bench: Bench) -> None:
    prompt = Prompt(0, SimpleNamespace(example_id="a"), [5, 6, 7])  # type: ignore[arg-type]
    rows = {name: Row(example_id="a", arm=name, index=0) for name in bench.arms}
    for row in rows.values():
        bench._profile(row, prompt)
    at = TRACE.index("adaptive")
    assert {len(entry) for entry in rows["sd"].trace} == {at}  # nothing adapts
    trace = read_row(rows["adasd"].to_json(), "a row").trace
    assert all(len(entry) == at + 1 for entry in trace)
    assert trace[-1][at] == bench.arms["adasd"].adaptive()
    thresholds = [entry[at]["verifier"].get("threshold") for entry in trace]
    assert thresholds[0] is None and len({one for one in thresholds if one is not None}) > 3
    assert all(entry[at]["verifier"]["tested"] == entry[TRACE.index("judged")] for entry in trace)
    assert sum(entry[at]["verifier"]["lossy"] for entry in trace) > 0


def test_the_timed_pass_does_not_ask(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError

    monkeypatch.setattr(bench.arms["adasd"], "adaptive", asked)
    row = Row(example_id="a", arm="adasd", index=0)
    bench._time(row, Prompt(0, SimpleNamespace(example_id="a"), [5, 6, 7]))  # type: ignore[arg-type]
    assert row.new_tokens == 40


def test_an_empty_draft_is_a_token_of_the_target() -> None:
    law = law_of_loop(JsVerifier(), FixedLength(length=0))
    assert largest_difference(law, product_law(ROWS, "target")) < EXACT


@pytest.mark.parametrize(
    ("key", "value"),
    [("variant", "both"), ("start", 1.5), ("decay", 0), ("labels", "none"), ("base", 2), ("memory", "forever")],
)
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        JsVerifier(**{key: value})  # type: ignore[arg-type]


def test_rows_after_the_target_excluded_a_token() -> None:
    """With a nucleus, J stays finite where the target's row is 0: a token that it excludes may be output (a trap)."""
    sampling = Sampling(temperature=1.0, top_p=0.6)
    tables = Tables(4)
    method, excluded = method_of(fixed(1.0), FixedLength(length=1)), 0.0
    for generation, weight in enumerate_paths(method, tables, sampling, 1):
        row = process(torch.tensor([tables.logits("target", PROMPT)]), sampling)[0]
        excluded += weight * float(row[generation.token_ids[0]] == 0)
    assert excluded > 0
