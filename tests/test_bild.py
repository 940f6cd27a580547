"""BiLD: each branch on tables made by hand, counts, the quirk of the released rule, and the exact limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from doubles import PROMPT, TableReaders, Tables, check_counts, spy_on
from hydra import initialize_config_dir

from baselines.bild import FallBack, RollBack
from experiments.arms import check_sampling
from experiments.config import CHECKOUT, compose_method
from experiments.errors import UserError, exit_code
from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

WORDS = 6  # ids of the tables; 5 ends a text where asked for
EOS = 5
SURE, UNSURE = 0.9, 0.4


class ByPlace(Tables):
    """Rows that depend on the place in the text alone: (token, probability) of the first choice, the others alike."""

    def __init__(self, **rows: Sequence[tuple[int, float]]) -> None:
        super().__init__(vocabulary=WORDS)
        self.places = rows
        self.shares: dict[tuple[str, int], dict[int, float]] = {}  # other probabilities, by role and place

    def logits(self, role: str, prefix: Sequence[int]) -> list[float]:
        at = len(prefix) - len(PROMPT)
        token, share = self.places[role][at] if at < len(self.places[role]) else (0, SURE)
        known = {token: share, **self.shares.get((role, at), {})}
        rest = (1 - sum(known.values())) / (WORDS - len(known))
        return [math.log(known.get(word, rest)) for word in range(WORDS)]


def run(
    tables: Tables,
    tokens: int,
    stop: FallBack | None = None,
    verifier: RollBack | None = None,
    **decode: Any,
) -> tuple[Generation, list[list[int]]]:
    method = Method(
        name="bild", drafter=DraftModel(), stop=stop or FallBack(length=3), verifier=verifier or RollBack(loss=2.0)
    )
    decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
    spy = spy_on(decoder)
    settings = Decode(Sampling(), tokens, **decode)
    generation = decoder.generate(PROMPT, settings, SeededDraws(0, "a"), detail=True)
    check_counts(generation, spy.drafts, len(PROMPT))
    assert generation.laws == [1.0] * len(generation.token_ids)
    return generation, spy.drafts


def sure(*tokens: int) -> list[tuple[int, float]]:
    return [(token, SURE) for token in tokens]


def test_the_large_model_begins_and_writes_behind_every_block() -> None:
    same = sure(1, 2, 3, 4, 1, 2, 3, 4, 1)
    found, drafts = run(ByPlace(draft=same, target=same), 9)
    assert found.token_ids == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert drafts == [[], [2, 3, 4], [2, 3, 4]]
    assert found.calls == {"target": 3, "draft": 6}
    assert [one.judged for one in found.rounds] == [0, 3, 3] and not any(one.rejected for one in found.rounds)
    assert {tier for one in found.rounds for tier in one.tiers} == {"target"}


def test_fall_back_drops_the_token_and_the_large_model_writes_it() -> None:
    draft = [*sure(1, 2), (3, UNSURE), *sure(4, 4, 4)]
    found, drafts = run(ByPlace(draft=draft, target=sure(1, 2, 0, 4, 4, 4)), 6)
    assert found.token_ids == [1, 2, 0, 4, 4, 4]
    assert drafts == [[], [2], [4, 4, 4]]
    assert found.calls["draft"] == 5  # the token that was dropped is a call, and not drafted
    assert sum(one.drafted for one in found.rounds) == 4


def test_fall_back_at_once_leaves_the_round_to_the_large_model() -> None:
    found, drafts = run(ByPlace(draft=[(3, UNSURE)] * 4, target=sure(1, 2, 3, 4)), 4)
    assert found.token_ids == [1, 2, 3, 4] and drafts == [[], [], [], []]
    assert found.calls == {"target": 4, "draft": 3}


def test_roll_back_cuts_writes_and_takes_another_large_turn() -> None:
    """The third drafted token costs the target more than 2 nats and is not its choice."""
    found, drafts = run(ByPlace(draft=sure(1, 1, 2, 3, 4, 4), target=sure(1, 1, 2, 0, 4, 4)), 6)
    assert found.token_ids == [1, 1, 2, 0, 4, 4]
    assert drafts == [[], [1, 2, 3], [], [4]]  # the round behind the roll-back drafts nothing
    back = found.rounds[1]
    assert (back.judged, back.rejected, back.target_rejected, back.discarded) == (3, 1, 1, 0)
    assert [one.committed for one in found.rounds] == [1, 3, 1, 1] and found.calls["target"] == 4


def test_what_is_behind_the_roll_back_is_discarded() -> None:
    found, _ = run(ByPlace(draft=sure(1, 3, 2, 2, 1), target=sure(1, 0, 2, 2, 1)), 5)
    back = found.rounds[1]
    assert (back.drafted, back.judged, back.rejected, back.discarded, back.committed) == (3, 1, 1, 2, 1)
    assert found.token_ids == [1, 0, 2, 2, 1]


def test_a_small_loss_keeps_what_the_large_model_would_not_write() -> None:
    tables = ByPlace(draft=sure(1, 3, 2, 1), target=[*sure(1), (0, 0.5), *sure(2, 1)])
    tables.shares["target", 1] = {3: 0.3}  # 1.2 nats
    assert run(tables, 4)[0].token_ids == [1, 3, 2, 1]
    found, _ = run(tables, 4, verifier=RollBack(loss=1.0))
    assert found.token_ids == [1, 0, 2, 1] and found.rounds[1].rejected == 1


@pytest.mark.parametrize(("examine", "third"), [("first_above", 3), ("first_mismatch", 0)])
def test_only_the_first_suspect_is_examined(examine: Any, third: int) -> None:
    """Place 1 is a suspect that the large model would write all the same; place 2 a worse one that it would not."""
    target = [*sure(1), (2, 0.3), (0, 0.95), *sure(4, 1)]
    found, _ = run(ByPlace(draft=sure(1, 2, 3, 4, 1), target=target), 5, verifier=RollBack(loss=1.0, examine=examine))
    assert found.token_ids[1:3] == [2, third]


def test_the_small_model_may_end_the_text_unread() -> None:
    tables = ByPlace(draft=sure(1, 2, EOS, 4), target=sure(1, 2, 3, 4, 1, 1))
    found, drafts = run(tables, 6, eos_ids=frozenset({EOS}))
    assert found.token_ids == [1, 2, EOS] and found.finish_reason == "eos"
    last = found.rounds[-1]
    assert (last.unjudged, last.judged, last.cut, last.pending, last.sources) == (2, 0, 0, 2, ["draft", "draft"])
    assert drafts[-1] == [2, EOS]  # nothing is drafted behind the end mark
    assert found.calls == {"target": 1, "draft": 3}  # the third one is dropped
    checked, _ = run(tables, 6, verifier=RollBack(loss=2.0, check_tail=True), eos_ids=frozenset({EOS}))
    assert checked.token_ids == [1, 2, 3, 4, 1, 1]
    assert checked.rounds[1].rejected == 1


def test_an_end_mark_that_the_large_model_confirms() -> None:
    tables = ByPlace(draft=sure(1, 2, EOS, 4), target=sure(1, 2, EOS, 4))
    found, _ = run(tables, 6, verifier=RollBack(loss=2.0, check_tail=True), eos_ids=frozenset({EOS}))
    assert found.token_ids == [1, 2, EOS] and found.finish_reason == "eos"
    assert (found.rounds[-1].judged, found.rounds[-1].unjudged, found.rounds[-1].pending) == (2, 0, 0)


def test_an_unsure_end_mark_falls_back() -> None:
    tables = ByPlace(draft=[*sure(1, 2), (EOS, UNSURE), *sure(4)], target=sure(1, 2, 3, 4, 1))
    found, drafts = run(tables, 5, eos_ids=frozenset({EOS}))
    assert found.token_ids[:3] == [1, 2, 3] and drafts[1] == [2]


def test_the_length_limit_is_read_by_the_large_model() -> None:
    found, drafts = run(ByPlace(draft=sure(1, 2, 3), target=sure(1, 2, 3)), 3)
    assert drafts == [[], [2, 3]] and found.rounds[-1].judged == 2 and found.rounds[-1].pending == 0


@pytest.mark.parametrize("length", [1, 3])
def test_every_text_begins_anew(length: int) -> None:
    """After one that the small model ended, in the last place of a block (1) or within it, and after a roll-back."""
    tables = ByPlace(draft=sure(1, EOS, 3, 1), target=sure(1, 2, 2, 3))
    method = Method(name="bild", drafter=DraftModel(), stop=FallBack(length=length), verifier=RollBack(loss=2.0))
    decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
    texts = []
    for eos in ({EOS}, {EOS}, set(), {EOS}):
        decode = Decode(Sampling(), 2, eos_ids=frozenset(eos))
        found = decoder.generate(PROMPT, decode, SeededDraws(0, "a"))
        texts.append((found.token_ids, [one.drafted for one in found.rounds]))
    ended = ([1, EOS], [0, 1])
    assert texts == [ended, ended, ([1, 2], [0, 1]), ended]


def greedy(tables: Tables, tokens: int, eos: int | None = None) -> list[int]:
    text = list(PROMPT)
    while len(text) < len(PROMPT) + tokens and (len(text) == len(PROMPT) or text[-1] != eos):
        row = tables.logits("target", text)
        text.append(row.index(max(row)))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_limit_is_the_targets_greedy_text(seed: int) -> None:
    """Released rule at loss 0: not so (the trap that `first_mismatch` is there for)."""
    tables = Tables(seed, vocabulary=WORDS, spread=2.0)
    exact = RollBack(loss=0.0, examine="first_mismatch", check_tail=True)
    found, _ = run(tables, 30, FallBack(length=4, confidence=0.0), exact, eos_ids=frozenset({EOS}))
    assert found.token_ids == greedy(tables, 30, EOS)
    long, _ = run(tables, 30, FallBack(length=4, confidence=0.5), RollBack(loss=0.0, examine="first_mismatch"))
    assert long.token_ids == greedy(tables, 30)


def test_the_released_rule_at_loss_0_is_not_exact() -> None:
    texts = []
    for seed in range(8):
        tables = Tables(seed, vocabulary=WORDS, spread=2.0)
        found, _ = run(tables, 30, FallBack(length=4, confidence=0.0), RollBack(loss=0.0))
        texts.append(found.token_ids == greedy(tables, 30))
    assert not all(texts)


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
def test_sampling_is_refused_before_anything_is_measured() -> None:
    arms = {"sd": compose_method("sd"), "bild": compose_method("bild")}
    check_sampling(arms, Sampling())
    with pytest.raises(UserError, match=r"arm bild: decode\.temperature=0\.7: .*cascade_bild") as raised:
        check_sampling(arms, Sampling(temperature=0.7))
    assert exit_code(raised.value) == 2


def test_sampling_is_refused_by_the_decoder_too() -> None:
    method = Method(name="bild", drafter=DraftModel(), stop=FallBack(), verifier=RollBack())
    decoder = method.open(TableReaders(Tables()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"temperature=1: .*cascade_bild"):
        decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 4), SeededDraws(0, "a"))


def test_fall_back_with_another_verifier_looks_at_processed_rows() -> None:
    """With a lossless verifier it may sample: the row alone decides (the law is tested with other stop rules)."""
    tables = ByPlace(draft=[(3, UNSURE)] * 8, target=sure(1, 2, 3, 4))
    lengths = {}
    for temperature in (1.0, 0.2):  # at 0.2 the same row is sure
        method = Method(name="m", drafter=DraftModel(), stop=FallBack(length=3), verifier=RuleVerifier())
        decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
        spy = spy_on(decoder)
        decoder.generate(PROMPT, Decode(Sampling(temperature=temperature), 8), SeededDraws(0, "a"))
        lengths[temperature] = max(map(len, spy.drafts))
    assert lengths == {1.0: 0, 0.2: 3}


def test_fixed_blocks_may_be_judged_too() -> None:
    method = Method(name="m", drafter=DraftModel(), stop=FixedLength(length=3), verifier=RollBack())
    assert method.roles == {"draft", "target"} and not method.verifier.lossless


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (FallBack, "length", 0),
        (FallBack, "confidence", 1.1),
        (RollBack, "loss", -1),
        (RollBack, "examine", "all"),
        (RollBack, "alpha", 1),
    ],
)
def test_configuration_is_checked(part: Any, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        part(**{key: value})
