"""Budget mode: the controller by hand, the real loop against an independent recount, and long streams of losses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from doubles import PROMPT, TableReaders, Tables, check_counts, largest_difference, spy_on
from pydantic import ValidationError
from test_laws import EXACT, IDS, NUCLEUS, WARM, Rows, enumerated, method_of, product_law, softmax

from viasd.budget import BudgetControl, Controller
from viasd.calling import WhenItPays
from viasd.decode import Decode, Generation, Speculative
from viasd.gates import StrictnessGate
from viasd.hierarchical import Hierarchical, SlimTier
from viasd.routing import RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import SlimView

SLIM = SlimView(mask=[0])
GREEDY = Sampling()
WINDOW = 24  # tokens that may be pending


def budgeted(share: float = 0.1, rate: float = 0.2, memory: Any = "run", **options: Any) -> Hierarchical:
    control = BudgetControl(share=share, rate=rate, memory=memory)
    settings: dict[str, Any] = {"gate": StrictnessGate(strictness=0), "max_pending": 6, **options}
    return Hierarchical(slim=SLIM, mode="budget", budget=control, **settings)


class Alike(Tables):
    """Tables of models that mostly agree: the draft's and the slim verifier's rows are the target's with some noise."""

    def logits(self, role: str, prefix: Any) -> list[float]:
        noise = {"target": 0.0, "slim": 0.5, "draft": 1.0}[role]
        own, theirs = super().logits(role, prefix), super().logits("target", prefix)
        return [2 * x + noise * y for x, y in zip(theirs, own, strict=True)]


# --- the controller by hand ---------------------------------------------------------------------------------------


def test_controller_by_hand() -> None:
    control = Controller(BudgetControl(share=0.1, rate=0.5))
    assert control.strictness == 1
    control.commit(4)
    control.commit(6)
    assert control.strictness == 1  # nothing is known before the audit
    control.audit(0.0)  # 1 + 0.5 (0 - 10 * 0.1)
    assert control.strictness == pytest.approx(0.5)
    control.commit(5)
    control.audit(1.3)  # 0.5 + 0.5 (1.3 - 0.5)
    assert control.strictness == pytest.approx(0.9)
    control.commit(1)
    control.audit(1.0)  # 0.9 + 0.5 (1 - 0.1) = 1.35
    assert control.strictness == 1
    assert control.memory()["x"] == pytest.approx(1.35)
    control.commit(20)
    control.audit(0.0)  # 1.35 - 1
    assert control.strictness == pytest.approx(0.35)
    control.audit(0.0)  # no new tokens
    assert control.strictness == pytest.approx(0.35)
    control.commit(1000)
    control.audit(0.0)
    assert control.strictness == 0
    assert control.memory() == {"x": -1.0}
    control.commit(10)
    control.audit(4.0)  # -1 + 0.5 (4 - 1): from the floor, not from 1000 tokens below it
    assert control.strictness == pytest.approx(0.5)


def test_a_run_is_remembered_and_restored() -> None:
    control = Controller(BudgetControl(share=0.1, rate=0.5))
    control.commit(10)
    control.audit(0.0)
    control.commit(3)
    control.begin()
    assert control.strictness == pytest.approx(0.5)
    control.audit(0.0)  # what waited died with the request
    assert control.memory()["x"] == pytest.approx(0.5)
    other = Controller(control.config)
    other.restore(control.memory())
    assert other.memory() == control.memory()
    other.restore({})
    assert other.strictness == 1


def test_a_request_is_forgotten() -> None:
    control = Controller(BudgetControl(share=0.1, rate=0.5, memory="request"))
    control.commit(10)
    control.audit(0.0)
    assert control.memory() == {}
    control.begin()
    assert control.strictness == 1


# --- the real loop ------------------------------------------------------------------------------------------------


def test_begins_as_speculative_decoding() -> None:
    """At strictness 1 everything is escalated: the law is the target's; a tiny rate keeps it there."""
    rows = Rows(Tables(7), NUCLEUS)
    law, paths = enumerated(method_of(budgeted(rate=1e-9)), rows.tables, NUCLEUS)
    assert largest_difference(law, product_law(rows, "target")) < EXACT
    assert {tier for path in paths for round_ in path.rounds for tier in round_.tiers} == {"target"}
    law, _ = enumerated(method_of(budgeted(rate=5, share=0.9)), rows.tables, NUCLEUS)
    assert largest_difference(law, product_law(rows, "target")) > 0.01


class Recount:
    """Losses and strictness of a run from its outputs, the tables and the sources of its tokens, in plain Python."""

    def __init__(self, tables: Tables, sampling: Sampling, control: BudgetControl) -> None:
        self.rows, self.control = Rows(tables, sampling), control
        self.x, self.waiting, self.losses = 1.0, 0, 0.0

    def keeps(self, slim: list[float], y: int, strictness: float) -> bool:
        smallest, floor = min(1, 2 * strictness), 2 * strictness - 1
        return strictness < 1 and slim[y] >= smallest * max(slim) and slim[y] >= floor

    def loss(self, prefix: tuple[int, ...], y: int, drafted: bool) -> float:
        """What a token that the gate let pass costs: one drafted, or one of the slim verifier behind a draft."""
        target, proposal = self.rows.of("target", prefix), self.rows.of("draft" if drafted else "slim", prefix)
        if self.rows.sampling.temperature == 0:
            return float(target[y] != 1)
        raw = softmax(self.rows.tables.logits("slim", (*PROMPT, *prefix)))
        strictness = min(1.0, max(0.0, self.x))
        law = [proposal[v] * self.keeps(raw, v, strictness) for v in IDS]
        return max(0.0, 1 - target[y] * sum(law) / law[y])

    def add(self, generation: Generation) -> None:
        output = tuple(generation.token_ids)
        for number, round_ in enumerate(generation.rounds):
            start = round_.prefix - len(PROMPT)
            for place, source in enumerate(round_.sources):
                at = start + place
                self.losses += 0.0 if source == "target" else self.loss(output[:at], output[at], place < round_.judged)
            self.waiting += round_.committed
            if round_.escalation is not None or number == len(generation.rounds) - 1:
                step = self.control.rate * (self.losses - self.waiting * self.control.share)
                self.x, self.waiting, self.losses = max(-1.0, self.x + step), 0, 0.0


def requests(rules: Hierarchical, tables: Tables, sampling: Sampling, count: int, detail: bool = False) -> Any:
    """Requests of one decoder in turn: (decoder, generation) after each."""
    decoder: Speculative = method_of(rules, 3).open(TableReaders(tables))  # type: ignore[arg-type]
    spy = spy_on(decoder)
    for number in range(count):
        decode = Decode(sampling, 17, frozenset({2}) if number % 3 == 2 else frozenset())
        generation = decoder.generate(PROMPT, decode, SeededDraws(number, "a"), detail=detail)
        check_counts(generation, spy.drafts, len(PROMPT))
        yield decoder, generation


@pytest.mark.parametrize("options", [{}, {"bonus": "none"}, {"max_pending": 1}], ids=["plain", "no_bonus", "pending_1"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM, NUCLEUS], ids=["greedy", "warm", "nucleus"])
def test_losses_equal_a_recount(sampling: Sampling, options: dict[str, Any]) -> None:
    rules, tables = budgeted(**options), Alike(3)
    assert rules.budget is not None
    recount, seen, least = Recount(tables, sampling, rules.budget), set(), 1.0
    for decoder, generation in requests(rules, tables, sampling, 12):
        recount.add(generation)
        assert decoder.memory() == {"verifier": {"x": pytest.approx(recount.x, abs=1e-9)}}
        # the request ended with an audit: of all but the last token the target's keys are there
        assert decoder.readers.get("target").read == len(PROMPT) + len(generation.token_ids) - 1
        last = generation.rounds[-1]
        assert last.escalation is not None or len(last.audits) >= last.committed
        seen |= {source for round_ in generation.rounds for source in round_.sources}
        least = min(least, recount.x)
    assert "draft" in seen and "target" in seen and least < 0.9


def test_tokens_are_audited_once() -> None:
    for _, generation in requests(budgeted(share=0.3), Alike(4), WARM, 8):
        audits = [one for round_ in generation.rounds for one in round_.audits or []]
        assert len(audits) == sum(source != "target" for round_ in generation.rounds for source in round_.sources)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_detail_changes_nothing(sampling: Sampling) -> None:
    plain, detailed = (list(requests(budgeted(), Alike(5), sampling, 9, detail)) for detail in (False, True))
    for (decoder, one), (other, two) in zip(plain, detailed, strict=True):
        assert one.token_ids == two.token_ids and one.calls == two.calls and one.fed == two.fed
        assert [round_.audits for round_ in one.rounds] == [round_.audits for round_ in two.rounds]
        assert decoder.memory() == other.memory()
        assert one.laws is None and two.laws is not None


def test_loosens_and_calls_the_target_less() -> None:
    calls = [generation.calls["target"] for _, generation in requests(budgeted(share=0.2), Alike(6), WARM, 30)]
    assert sum(calls[-10:]) < 0.8 * sum(calls[:2]) * 5


def test_memory_of_a_request() -> None:
    rules = budgeted(share=0.3, memory="request")
    outputs = []
    for decoder, generation in requests(rules, Alike(6), GREEDY, 2):
        outputs.append(generation.token_ids)
        assert decoder.memory() == {}
    assert outputs[0] == outputs[1]


# --- long streams -------------------------------------------------------------------------------------------------


def stream(control: BudgetControl, tokens: int, chance_of_loss: Callable[[int, float], float]) -> list[float]:
    """Total loss above the budget after each audit; at strictness 1 the target decides all, and nothing is lost."""
    controller, chance = Controller(control), random.Random(1)
    excess, seen = [0.0], 0
    while seen < tokens:
        count = chance.randint(1, WINDOW)
        strictness = controller.strictness
        p = 0.0 if strictness == 1 else chance_of_loss(seen, strictness)
        losses = sum(chance.random() < p for _ in range(count))
        controller.commit(count)
        controller.audit(losses)
        seen += count
        excess.append(excess[-1] + losses - count * control.share)
    return excess


STREAMS: dict[str, Callable[[int, float], float]] = {
    "smooth": lambda seen, strictness: 0.3 * (1 - strictness),
    "steep": lambda seen, strictness: 1.0 if strictness < 0.9 else 0.0,
    "always_bad": lambda seen, strictness: 1.0,
    "good_then_bad": lambda seen, strictness: 0.0 if seen < 10_000 else 1 - strictness / 2,
    "harmless": lambda seen, strictness: 0.0,
}


@pytest.mark.parametrize("share", [0.002, 0.01, 0.03, 0.1])
@pytest.mark.parametrize("name", STREAMS)
def test_the_excess_is_bounded(name: str, share: float) -> None:
    """No stream exceeds its budget by more than a full window of pending tokens, at any time."""
    control, tokens = BudgetControl(share=share), 20_000
    excess = stream(control, tokens, STREAMS[name])
    assert max(excess) <= WINDOW
    if name == "smooth":  # the loosest setting would lose 0.3: the budget is used up to the start-up deficit
        assert excess[-1] >= -1 / control.rate - WINDOW
    if name == "harmless":
        assert excess[-1] <= -share * tokens


def test_a_good_time_excuses_only_so_much() -> None:
    control = BudgetControl(share=0.1)
    excess = stream(control, 20_000, STREAMS["good_then_bad"])
    best = excess.index(min(excess))
    assert 1 / control.rate < max(excess[best:]) - excess[best] <= 2 / control.rate + WINDOW
    assert math.isclose(min(excess), -0.1 * 10_000, rel_tol=0.01)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"budget": None}, "budget=null: mode=budget needs it"),
        ({"gate": RatioGate()}, "gate: mode=budget sets the strictness of one gate"),
        ({"above": [SlimTier(gate=RatioGate(), slim=SLIM)]}, "above="),
        ({"max_pending": None}, "max_pending=null: mode=budget audits what is pending"),
        ({"mode": "lossy"}, "budget: mode=lossy has none"),
        ({"mode": "exact"}, "budget: mode=exact has none"),
        ({"calls": WhenItPays()}, "calls: mode=budget has no call rule"),
    ],
)
def test_wrong_settings_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    settings = {"gate": StrictnessGate(), "slim": SLIM, "mode": "budget", "budget": BudgetControl(), **options}
    with pytest.raises(ValidationError, match=named):
        Hierarchical(**settings)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"share": 0}, "share"), ({"share": 1}, "share"), ({"rate": 0}, "rate"), ({"memory": "always"}, "memory")],
)
def test_wrong_values_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        BudgetControl(**options)
