"""CS-Drafting: the target's law over the real loop, the law of every drafted token, who is asked how often, greedy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, WINDOW, ModelFactory
from doubles import (
    PROMPT,
    BranchingDraws,
    TableReaders,
    Tables,
    _next_script,
    check_counts,
    enumerate_paths,
    largest_difference,
    law_of,
    spy_on,
)
from torch import Tensor

from baselines import cs_drafting
from baselines.cs_drafting import Cascade, CascadeDrafter, Written, lenient_rows
from baselines.ngram import Ngram
from viasd.decode import Decode, Generation
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.rules import RuleRows
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

TOKENS = 3
EXACT = 1e-9
CAUGHT = 1e-3
PLAIN = Sampling(temperature=1.0)
NUCLEUS = Sampling(temperature=0.6, top_p=0.9)
COPY = Ngram(shortest_match=1)  # with three ids it nearly always finds a place
TWO: dict[str, Any] = {"models": ["mid", "draft"], "ngram": None}
THREE: dict[str, Any] = {"models": ["mid", "draft"], "ngram": COPY}
CASCADES: dict[str, CascadeDrafter] = {
    "one-model": CascadeDrafter(ngram=None, lengths=[[2]]),
    "vertical": CascadeDrafter(ngram=COPY, lengths=[[2, 0], [0, 2]]),
    "horizontal": CascadeDrafter(ngram=COPY, lengths=[[1, 2], [0, 0]]),
    "paper": CascadeDrafter(ngram=Ngram(shortest_match=2), lengths=[[2, 10], [0, 10]]),
    "two-models": CascadeDrafter(**TWO, lengths=[[1, 1], [0, 1]]),
    "two-models-lenient": CascadeDrafter(**TWO, lengths=[[2, 0], [0, 1]], lenience=2.0),
    "three": CascadeDrafter(**THREE, lengths=[[1, 1, 1], [0, 1, 1], [0, 0, 2]]),
    "three-lenient": CascadeDrafter(**THREE, lengths=[[1, 1, 1], [0, 1, 1], [0, 0, 2]], lenience=3.0),
    "three-without-the-second": CascadeDrafter(**THREE, lengths=[[1, 0, 1], [0, 0, 2], [0, 0, 0]], lenience=2.0),
}


def method_of(drafter: Any, length: int = 3) -> Method:
    return Method(name="t", drafter=drafter, stop=FixedLength(length=length), verifier=RuleVerifier())


def distance(drafter: Any, tables: Tables, sampling: Sampling, tokens: int = TOKENS) -> float:
    """Largest difference of the output's law from the target's, over all outputs of so many tokens."""
    methods = method_of(drafter), method_of(NoDrafter(), 0)
    return largest_difference(*(law_of(enumerate_paths(method, tables, sampling, tokens)) for method in methods))


# --- the target's law, whatever happens below ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASCADES)
def test_the_output_law_is_the_targets(name: str) -> None:
    assert distance(CASCADES[name], Tables(1), PLAIN) < EXACT


@pytest.mark.parametrize("name", ["vertical", "three-lenient", "paper"])
def test_the_output_law_is_the_targets_on_processed_rows(name: str) -> None:
    assert distance(CASCADES[name], Tables(6), NUCLEUS) < EXACT


@pytest.mark.parametrize("name", CASCADES)
def test_every_drafted_token_comes_with_its_law(name: str) -> None:
    """Among blocks that are equal up to a place, rows and all, the token there has exactly the law of its row."""
    decoder = method_of(CASCADES[name]).open(TableReaders(Tables(2)))  # type: ignore[arg-type]
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(float))
    script: list[int] | None = []
    while script is not None:
        draws = BranchingDraws(script)
        state = decoder.begin(PROMPT, Decode(PLAIN, TOKENS), draws)
        draft = decoder.drafter.propose(state, TOKENS)
        assert 0 < draft.length <= TOKENS and draft.logits is not None
        tokens, rows = draft.tokens.tolist(), [tuple(row) for row in draft.rows.tolist()]
        sure = draft.rows.amax(-1) == 1
        assert torch.equal(draft.logits.softmax(-1)[sure], draft.rows[sure])
        for place in range(draft.length):
            found[tuple(tokens[:place]), tuple(rows[: place + 1])][tokens[place]] += draws.weight
        script = _next_script(draws)
    kinds = set()
    for (_, rows), weights in found.items():
        total = sum(weights.values())
        assert [weights[token] / total for token in range(3)] == pytest.approx(rows[-1], abs=EXACT)
        kinds.add(max(rows[-1]) == 1)
    assert kinds == ({False} if name == "one-model" or name.startswith("two") or name == "vertical" else {False, True})


class RowTrip:
    """Ends a block at a token whose row is even. It looks at the row alone, so it may drop the token."""

    row_alone = True

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        return logits.softmax(-1).amax(-1) < 0.55


@pytest.mark.parametrize("keep", [True, False])
def test_a_trip_test_cuts_the_block(keep: bool) -> None:
    class Stop(FixedLength):
        def open_stop(self) -> Any:
            stop = super().open_stop()
            stop.trip = RowTrip(keep)  # type: ignore[misc]
            return stop

    method = Method(name="t", drafter=CASCADES["horizontal"], stop=Stop(length=3), verifier=RuleVerifier())
    plain, cut = (list(enumerate_paths(one, Tables(1), PLAIN, TOKENS)) for one in (method_of(NoDrafter(), 0), method))
    assert largest_difference(law_of(iter(cut)), law_of(iter(plain))) < EXACT
    assert {round_.drafted for one, _ in cut for round_ in one.rounds} == ({1, 2, 3} if keep else {0, 1, 2, 3})


# --- lenience -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lenience", [1.0, 1.5, 4.0])
def test_the_law_of_lenience_is_the_published_one(lenience: float) -> None:
    """2607.26627, equations 10 and 11, with l = 1 / lenience: the draft below the ceiling, the ceiling, a mixture."""
    rows = torch.rand(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 3
    rows = rows / rows.sum(-1, keepdim=True)
    draft, judge = rows[:20], rows[19:]
    target = judge[:-1]
    found = lenient_rows(draft, judge, torch.full((20, 1), lenience, dtype=torch.float64)).laws
    share = 0.5 * (draft - lenience * target).abs().sum(-1) + 0.5 - 0.5 * lenience
    share = (share / (0.5 * (draft - target).abs().sum(-1)).clamp(min=1e-30))[:, None]
    stated = torch.where(draft <= target, share * target + (1 - share) * draft, torch.minimum(draft, lenience * target))
    same = (draft == target).all(-1, keepdim=True)
    assert torch.allclose(found[:-1], torch.where(same, target, stated), atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones(21, dtype=torch.float64)) and torch.equal(found[-1], judge[-1])


def test_the_lenient_law_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake: tokens that a lenient reviewer let stand are given to the target with the reviewer's own row."""
    drafter = CASCADES["two-models-lenient"]
    rows = lenient_rows

    def as_if_exact(draft: Tensor, judge: Tensor, lenience: Tensor) -> RuleRows:
        rule = rows(draft, judge, lenience)
        return RuleRows(rule.reject, rule.residual, rule.bonus)

    monkeypatch.setattr(cs_drafting, "lenient_rows", as_if_exact)
    assert distance(drafter, Tables(1), PLAIN, tokens=2) > CAUGHT


def test_the_row_of_the_drafter_below_is_not_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of the public code: what was reviewed is given on with the rows of the last call below."""
    rows = lenient_rows

    def of_the_call_below(draft: Tensor, judge: Tensor, lenience: Tensor) -> RuleRows:
        rule = rows(draft, judge, lenience)
        return RuleRows(rule.reject, rule.residual, rule.bonus, law=draft)

    monkeypatch.setattr(cs_drafting, "lenient_rows", of_the_call_below)
    assert distance(CASCADES["two-models"], Tables(1), PLAIN, tokens=2) > CAUGHT


def test_lenience_at_temperature_0() -> None:
    """A token stands if it is the reviewer's first choice or draft(x) <= lenience * own(x), on the raw rows."""
    own = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1, 0, 0]]).log()
    draft = torch.tensor([[0.2, 0.7, 0.1], [0.2, 0.1, 0.7], [0.9, 0.05, 0.05]]).log()
    tokens = torch.tensor([1, 2, 0])

    def reviewed(lenience: float, logits: Tensor | None = draft) -> list[int]:
        cascade = Cascade(CascadeDrafter(**TWO, lengths=[[1, 0], [0, 1]], lenience=lenience), [])
        return cascade._first_choices([Written(tokens, None, logits)], own).tolist()

    assert reviewed(1.0) == [0]  # 0.7 > 1 * 0.3
    assert reviewed(2.4) == [1, 0]  # 0.7 <= 2.4 * 0.3, but 0.7 > 2.4 * 0.2
    assert reviewed(3.6) == [1, 2, 0, 0]  # the last drafted one is the reviewer's first choice
    assert reviewed(3.6, logits=None) == [0]  # an n-gram model's
    assert Cascade(CascadeDrafter(), [])._first_choices([], own[-1:]).tolist() == [0]


def test_ngrams_are_reviewed_without_lenience() -> None:
    rounds = []
    for lenience in (1.0, 50.0):
        drafter = CascadeDrafter(ngram=COPY, lengths=[[3, 0], [0, 3]], lenience=lenience)
        rounds.append([one.token_ids for one in runs(drafter, 20)])
    assert rounds[0] == rounds[1]


# --- who is asked, and what is counted ----------------------------------------------------------------------------

WIDE = 6


def runs(drafter: Any, count: int, length: int = 6, temperature: float = 0.9, **decode: Any) -> list[Generation]:
    """Seeded runs on tables of six tokens (readers check what they are fed), counts checked against the ids."""
    made = []
    for seed in range(count):
        decoder = method_of(drafter, length).open(TableReaders(Tables(seed, vocabulary=WIDE, spread=0.7)))  # type: ignore[arg-type]
        spy = spy_on(decoder)
        settings = Decode(Sampling(temperature=temperature), **{"max_new_tokens": 14, **decode})
        made.append(decoder.generate(PROMPT, settings, SeededDraws(seed, "a"), detail=True))
        check_counts(made[-1], spy.drafts, len(PROMPT))
    return made


@pytest.mark.parametrize("name", CASCADES)
def test_stops_everywhere(name: str) -> None:
    """An eos lands on every place of a draft and behind it; the output ends with it, and only there."""
    places = set()
    for one in runs(CASCADES[name], 60, eos_ids=frozenset({4})):
        assert 4 not in one.token_ids[:-1] and len(one.token_ids) <= 14
        assert one.finish_reason == ("eos" if one.token_ids[-1] == 4 else "length")
        if one.finish_reason == "eos":
            places.add(one.rounds[-1].committed - 1)
    assert {0, 1, 2} <= places


def test_a_block_is_what_its_lengths_say() -> None:
    """Equal models: all is kept, so the calls follow from the lengths. The n-gram model copies a text of one id."""
    constant = Tables(0, vocabulary=WIDE)
    constant.logits = lambda role, prefix: [0.0, 0.0, 0.0, 9.0, 0.0, 0.0]  # type: ignore[method-assign]

    def rounds(limit: int = 64, **settings: Any) -> tuple[list[int], dict[str, int], dict[str, int]]:
        drafter = CascadeDrafter(**settings)
        decoder = method_of(drafter, limit).open(TableReaders(constant))  # type: ignore[arg-type]
        one = decoder.generate([3, 3, 3], Decode(Sampling(), 30), SeededDraws(0, "a"))
        return [round_.drafted for round_ in one.rounds], one.calls, one.fed

    # One review of ten n-gram tokens and its own one, then one n-gram token up to 12; the target adds one.
    paper = [[2, 10], [0, 10]]
    drafted, calls, fed = rounds(lengths=paper)
    assert drafted == [12, 12, 4] and calls == {"target": 3, "draft": 2 + 1}
    # Catch-up: the draft model reads the n-gram token that followed its review, and the target's token.
    assert fed == {"target": 13 + 13 + 5, "draft": 11 + (3 + 10) + (3 + 3)}
    # The stop rule bounds the block: the review has room for seven tokens and its own one.
    assert rounds(8, lengths=paper)[0] == [8, 8, 8, 3]
    # mid reviews two of draft's, and adds one, until there are four; then draft writes two.
    drafted, calls, _ = rounds(**TWO, lengths=[[4, 2], [0, 2]])
    assert drafted == [6, 6, 6, 6, 2] and calls["mid"] == 2 * 4 + 1
    assert calls["draft"] == 4 * (2 + 2) + 1  # at the end mid has room for one of draft's
    # A drafter with nothing to say leaves the reviewer alone.
    drafted, calls, _ = rounds(ngram=Ngram(shortest_match=50), lengths=[[2, 3], [0, 0]])
    assert calls["draft"] == 2 * calls["target"] and set(drafted[:-1]) == {5}


def test_bigrams_are_remembered_for_the_run_if_asked_for() -> None:
    drafter = CascadeDrafter(ngram=Ngram(memory="run"))
    decoder = method_of(drafter).open(TableReaders(Tables(1)))  # type: ignore[arg-type]
    decoder.generate(PROMPT, Decode(Sampling(), 5), SeededDraws(0, "a"))
    known = decoder.memory()
    assert sum(sum(of.values()) for of in known["drafter"]["followers"].values()) == len(PROMPT) - 1 + 5
    decoder.restore({})
    assert decoder.memory() == {"drafter": {"followers": {}}}
    assert method_of(CASCADES["paper"]).open(TableReaders(Tables(1))).memory() == {}  # type: ignore[arg-type]


# --- models -------------------------------------------------------------------------------------------------------

IDS = torch.randint(3, VOCABULARY, (WINDOW + 4,), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.mark.parametrize("how", ["noisy", "opposite", "same"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_output_is_the_targets(family: str, how: str, tiny: ModelFactory, variant: ModelFactory) -> None:
    target = tiny(family)
    draft = target if how == "same" else variant(target, how)
    engine = Engine({"target": target, "mid": variant(target, "noisy", 0.03), "draft": draft}, VOCABULARY, 64)
    decode, outputs = Decode(Sampling(), 20), []
    for drafter in (NoDrafter(), *CASCADES.values()):
        decoder = method_of(drafter, 6 if drafter != NoDrafter() else 0).open(engine)
        outputs.append(decoder.generate(IDS, decode, SeededDraws(0, "a")).token_ids)
    assert all(one == outputs[0] for one in outputs)
    library = target.generate(torch.tensor([IDS]), max_new_tokens=20, do_sample=False)
    assert outputs[0] == library[0, len(IDS) :].tolist()


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lengths": [[2]]}, "2 drafters"),
        ({"lengths": [[2, 1], [1, 1]]}, "below the diagonal"),
        ({"lengths": [[0, 1], [0, 1]]}, r"lengths\[0\]\[0\]"),
        ({"lengths": [[2, -1], [0, 1]]}, "lengths"),
        ({"models": []}, "models"),
        ({"models": ["draft", "draft"]}, "different roles"),
        ({"ngram": None}, "1 drafters"),
        ({"lenience": 0.5}, "lenience"),
        ({"length": 5}, "length"),
    ],
)
def test_configuration_is_checked(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CascadeDrafter(**settings)


def test_roles_are_those_of_the_models() -> None:
    assert CascadeDrafter().roles == {"draft"}
    assert method_of(CASCADES["three"]).roles == {"mid", "draft", "target"}
