"""PEARL: the target's law over the real loop, rounds recounted by hand, what a text's end drops, the modelled time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call
from conftest import VOCABULARY, WINDOW, ModelFactory
from doubles import (
    PROMPT,
    BranchingDraws,
    ReusedCoinDraws,
    TableReaders,
    Tables,
    enumerate_paths,
    largest_difference,
    law_of,
    spy_on,
)
from torch import Tensor

from baselines.pearl import CostRatio, PearlDrafter, PearlVerifier
from experiments.measure import Bench, Profile
from experiments.metrics import summarize
from experiments.records import TRACE, Row
from experiments.run import main
from experiments.store import RunFolder
from viasd.decode import Decode, Draft, Generation, State, Verdict
from viasd.drafting import DraftModel, FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

EXACT = 1e-9
CAUGHT = 1e-3
WIDE = 6
PLAIN = Sampling(temperature=1.0)
NUCLEUS = Sampling(temperature=0.6, top_p=0.9)


def pearl(length: int, stop: Any = None) -> Method:
    stop = stop or FixedLength(length=length)
    return Method(name="pearl", drafter=PearlDrafter(), stop=stop, verifier=PearlVerifier())


VANILLA = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())


# --- the law ------------------------------------------------------------------------------------------------------


def distance(
    method: Method,
    tables: Tables,
    sampling: Sampling,
    tokens: int = 3,
    draws_class: type[BranchingDraws] = BranchingDraws,
) -> float:
    """Largest difference of the output's law from the target's."""
    law = law_of(enumerate_paths(method, tables, sampling, tokens, draws_class=draws_class))
    return largest_difference(law, law_of(enumerate_paths(VANILLA, tables, sampling, tokens)))


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_the_output_law_is_the_targets(length: int) -> None:
    assert distance(pearl(length), Tables(1), PLAIN) < EXACT


def test_the_output_law_is_the_targets_on_processed_rows() -> None:
    assert distance(pearl(2), Tables(4), NUCLEUS, tokens=4) < EXACT


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_coin_for_two_tests_is_noticed(length: int) -> None:
    """The public code's mistake: the coin that kept the pre-verified token is used again."""
    assert distance(pearl(length), Tables(1), PLAIN, draws_class=ReusedCoinDraws) > CAUGHT


class Trips:
    """Ends a block at an uncertain row, and may drop the token: then there can be no new token at all."""

    row_alone = True

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        return logits.softmax(-1).amax(-1) < 0.55


class Tripping(FixedLength):
    def open_stop(self) -> Any:
        stop = super().open_stop()
        stop.trip = Trips(self.length == 2)  # type: ignore[misc]
        return stop


@pytest.mark.parametrize("length", [2, 3], ids=["kept", "dropped"])
def test_a_trip_test_ends_the_new_block(length: int) -> None:
    method = pearl(length, Tripping(length=length))
    assert distance(method, Tables(1), PLAIN) < EXACT
    paths = [one for one, _ in enumerate_paths(method, Tables(1), PLAIN)]
    assert (0 in {round_.drafted for one in paths for round_ in one.rounds}) == (length == 3)


def test_its_verifier_judges_a_draft_that_nobody_wrote_ahead() -> None:
    method = Method(name="t", drafter=DraftModel(), stop=FixedLength(length=2), verifier=PearlVerifier())
    assert distance(method, Tables(1), PLAIN) < EXACT


def test_its_drafter_stands_before_another_verifier() -> None:
    """One that rules on all tokens leaves none to hold, and waits for them: nothing of it is parallel."""
    method = Method(name="t", drafter=PearlDrafter(), stop=FixedLength(length=2), verifier=RuleVerifier())
    assert distance(method, Tables(1), PLAIN) < EXACT
    assert {round_.held for one, _ in enumerate_paths(method, Tables(1), PLAIN, 2) for round_ in one.rounds} == {None}


# --- rounds by hand -----------------------------------------------------------------------------------------------

Told = tuple[int, int, int, list[int]]  # tokens held, new tokens, tokens fed to the target, tokens committed


def by_hand(tables: Tables, length: int, tokens: int) -> list[Told]:
    """PEARL at temperature 0 as 2408.11850 has it, on plain lists: no cache, no state."""
    text, held, rounds = list(PROMPT), [], []  # type: ignore[var-annotated]

    def first(role: str, prefix: list[int]) -> int:
        row = tables.logits(role, prefix)
        return row.index(max(row))

    while (left := len(PROMPT) + tokens - len(text)) > 0:
        fresh: list[int] = []
        while len(fresh) < min(length, left - len(held)):
            fresh.append(first("draft", text + held + fresh))
        due, committed = held + fresh[:1], []
        for token in due:
            committed.append(first("target", text + committed))
            if committed[-1] != token:
                break
        rounds.append((len(held), len(fresh), len(held) + 1, committed))
        held = fresh[1:] if committed == due else []
        text += committed
    return rounds


class Log:
    """Calls of every round, as a profile of a run notes them."""

    def __init__(self) -> None:
        self.rounds: list[list[tuple[str, int]]] = [[]]

    def note(self, readers: Any) -> None:
        for reader in readers.opened():
            reader.feed = self._noted(reader, reader.feed)

    def _noted(self, reader: Any, feed: Any) -> Any:
        def noted(ids: Tensor, stop: int, last: int) -> Tensor:
            self.rounds[-1].append((reader.role, stop - reader.read))
            return feed(ids, stop, last)

        return noted

    def __call__(self, event: str) -> None:
        if event == "prefilled":
            self.rounds = []
        self.rounds.append([])


def run(
    tables: Tables, length: int, temperature: float = 0.0, seed: int = 0, **decode: Any
) -> tuple[Generation, list[list[int]], Log]:
    """A run on tables, the drafts of its rounds and its calls."""
    decoder = pearl(length).open(TableReaders(tables))  # type: ignore[arg-type]
    spy, log = spy_on(decoder), Log()
    log.note(decoder.readers)
    settings = Decode(Sampling(temperature=temperature), **{"max_new_tokens": 17, **decode})
    one = decoder.generate(PROMPT, settings, SeededDraws(seed, "a"), detail=True, watch=log)
    return one, spy.drafts, log


def alike(seed: int, noise: float) -> Tables:
    """Tables whose draft model mostly agrees with the target."""
    tables = Tables(seed, vocabulary=WIDE)
    plain = tables.logits

    def mixed(role: str, prefix: Sequence[int]) -> list[float]:
        own, target = plain(role, prefix), plain("target", prefix)
        return [(1 - noise) * t + noise * o for o, t in zip(own, target, strict=True)]

    tables.logits = mixed  # type: ignore[method-assign]
    return tables


@pytest.mark.parametrize("length", [1, 2, 4, 9])
@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_rounds_are_those_of_the_paper(length: int, noise: float) -> None:
    modes = set()
    for seed in range(12):
        tables = alike(seed, noise)
        one, drafts, log = run(tables, length)
        told, done = [], 0
        for round_, draft, calls in zip(one.rounds, drafts, log.rounds, strict=False):
            steps = [fed for role, fed in calls if role == "draft"]
            (fed,) = [fed for role, fed in calls if role == "target"]
            assert round_.held is not None and len(draft) == round_.held + len(steps)
            assert sum(steps) <= len(steps) + 1  # what is held is not read again: one token of catch-up at most
            told.append((round_.held, len(steps), fed, one.token_ids[done : done + round_.committed]))
            done += round_.committed
            modes.add("post" if round_.held else "pre")
        assert told == by_hand(tables, length, 17)
        assert one.calls["target"] == len(one.rounds)
    assert modes == ({"pre"} if length == 1 else {"pre", "post"})


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_counts_are_recounted(length: int, temperature: float) -> None:
    """A drafted token counts once, in the round that rules on it or drops it; nothing is output without a verdict."""
    for seed in range(30):
        one, drafts, _ = run(alike(seed, 0.3), length, temperature, seed, eos_ids=frozenset({4}))
        done = 0
        for number, (round_, draft) in enumerate(zip(one.rounds, drafts, strict=True)):
            committed = one.token_ids[done : done + round_.committed]
            done += round_.committed
            due = draft[: (round_.held or 0) + 1]
            judged = due[: len(committed)]
            assert 0 < len(committed) <= len(due) and committed[:-1] == judged[:-1]  # never one behind what was due
            rejected = int(committed != judged)
            last = number == len(one.rounds) - 1
            held = 0 if last or committed != due else len(draft) - len(due)
            assert (round_.judged, round_.rejected, round_.unjudged) == (len(judged), rejected, 0)
            assert round_.drafted == len(draft) - held == round_.judged + round_.discarded + round_.cut
            assert round_.cut == 0 or (last and not rejected)
            assert round_.target_rejected == rejected and round_.pending == 0
            assert set(round_.tiers) == set(round_.sources) == {"target"} and len(round_.sources) == len(committed)
            if not last:
                assert one.rounds[number + 1].held == held
        assert done == len(one.token_ids) and one.laws is not None and len(one.laws) == done
        assert sum(round_.drafted for round_ in one.rounds) == one.calls["draft"]  # each step's token counts once


def test_stops_everywhere() -> None:
    """An eos as pre-verified token, first, middle and last of the held ones, behind them, and as replacement."""
    places = set()
    for seed in range(150):
        one, drafts, _ = run(alike(seed, 0.3), 4, 0.9, seed, eos_ids=frozenset({4}))
        assert 4 not in one.token_ids[:-1] and len(one.token_ids) <= 17
        assert one.finish_reason == ("eos" if one.token_ids[-1] == 4 else "length")
        if one.finish_reason == "eos":
            last = one.rounds[-1]
            places.add((bool(last.held), last.committed - 1, bool(last.rejected)))
            assert last.rejected or last.cut == len(drafts[-1]) - last.committed
    assert places == {(False, 0, False), (False, 0, True)} | {(True, i, r) for i in range(4) for r in (False, True)}


def test_what_is_held_at_the_end_is_dropped() -> None:
    """A draft model that is always right: all rounds but the first verify a block, and the last one is cut short."""
    one, drafts, _ = run(alike(3, 0.0), 4, max_new_tokens=11)
    assert [round_.committed for round_ in one.rounds] == [1, 4, 4, 2]
    assert [len(draft) for draft in drafts] == [4, 7, 6, 2]  # no block is longer than what may still be written
    assert [round_.cut for round_ in one.rounds] == [0, 0, 0, 0]
    full = one.token_ids
    for place in range(1, 11):
        stop = Decode(Sampling(), 11, stop=lambda output, place=place: len(output) == place)
        decoder = pearl(4).open(TableReaders(alike(3, 0.0)))  # type: ignore[arg-type]
        short = decoder.generate(PROMPT, stop, SeededDraws(0, "a"))
        assert short.token_ids == full[:place] and short.finish_reason == "stop"
        drafted = sum(round_.drafted for round_ in short.rounds)
        assert drafted == short.calls["draft"] == place + short.rounds[-1].cut


def test_nothing_is_held_for_the_next_request() -> None:
    """A text ends where all that was due was kept, with more drafted behind it; the next one begins with nothing."""
    decoder = pearl(4).open(TableReaders(alike(3, 0.0)))  # type: ignore[arg-type]
    for _ in range(2):
        one = decoder.generate(PROMPT, Decode(Sampling(), 20, stop=lambda ids: len(ids) == 5), SeededDraws(0, "a"))
        assert [(round_.held, round_.cut) for round_ in one.rounds] == [(0, 0), (3, 3)]


# --- the state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "kept", "stays", "rewound"),
    [([5, 6], 2, 2, 5), ([5, 7], 1, 0, 3), ([8], 0, 0, 2), ([5, 9], 1, 0, 3), ([5, 6, 3], 2, 0, 4)],
    ids=["all-due-kept", "last-replaced", "first-replaced", "ends", "a-token-behind"],
)
def test_held_tokens_stay_read(tokens: list[int], kept: int, stays: int, rewound: int) -> None:
    """Readers go back to the last token that stands; where drafted tokens are held, to the last one of those."""
    told: list[int] = []
    reader = SimpleNamespace(rewind=told.append)
    readers: Any = SimpleNamespace(device=torch.device("cpu"), opened=lambda: [reader])
    state = State([1, 2], Decode(Sampling(), 10, frozenset({9})), SeededDraws(0, "a"), readers)
    draft = Draft.chain(torch.tensor([5, 6, 7, 8]), torch.zeros(4, 10))
    draft.held = 1
    verdict = Verdict(tokens, ["target"] * len(tokens), kept, ["target"] * min(2, kept + 1), held=1)
    record = state.commit(draft, verdict)
    assert draft.due == 2 and draft.held_after(verdict) == stays
    assert (record.held, record.drafted, told) == (1, 4 - stays, [rewound])


@pytest.mark.parametrize("how", ["noisy", "opposite", "same"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_output_is_the_targets(family: str, how: str, tiny: ModelFactory, variant: ModelFactory) -> None:
    ids = torch.randint(3, VOCABULARY, (WINDOW + 4,), generator=torch.Generator().manual_seed(4)).tolist()
    target = tiny(family)
    draft = target if how == "same" else variant(target, how)
    engine, decode = Engine({"target": target, "draft": draft}, VOCABULARY, 64), Decode(Sampling(), 20)
    outputs = [
        method.open(engine).generate(ids, decode, SeededDraws(0, "a"))
        for method in (VANILLA, *(pearl(length) for length in (1, 3, 8)))
    ]
    assert all(one.token_ids == outputs[0].token_ids for one in outputs)
    library = target.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    assert outputs[0].token_ids == library[0, len(ids) :].tolist()
    if how == "same":
        assert [round_.committed for round_ in outputs[2].rounds] == [1, 3, 3, 3, 3, 3, 3, 1]


# --- costs and the modelled time ----------------------------------------------------------------------------------


def test_the_length_is_the_ratio_of_costs() -> None:
    lengths = [CostRatio().with_costs(draft, 1.0).length for draft in (0.2, 0.17, 0.3, 2.0, 0.001)]
    assert lengths == [5, 6, 3, 1, 64]
    with pytest.raises(AssertionError, match="not calibrated"):
        CostRatio().open_stop()
    with pytest.raises(ValueError, match="length"):
        CostRatio(length=0)


class Prices:
    """A draft step takes 1, a call of the target 3 and a tenth per token."""

    def seconds(self, arm: str, role: str, fed: int) -> float:
        return 1.0 if role == "draft" else 3.0 + fed / 10


def test_a_round_takes_as_long_as_its_busiest_model() -> None:
    bench = object.__new__(Bench)
    bench.costs = Prices()
    profile = Profile(torch.device("cpu"))
    profile.rounds = [[("draft", 1)] * 2 + [("target", 5)], [("draft", 2), *[("draft", 1)] * 4, ("target", 1)], []]
    assert bench._parallel_seconds("pearl", profile) == pytest.approx(3.5 + 5.0)
    bench.costs = None
    assert bench._parallel_seconds("pearl", profile) is None


def test_modelled_speed_by_hand() -> None:
    """Vanilla loses 0.1 s a round beside its calls; so do the four rounds of PEARL beside 2 s in calls at once."""
    base: dict[str, Any] = {"index": 0, "new_tokens": 10}
    rows = [
        Row("a", "vanilla", decode_seconds=[6.0], rounds=10, ideal_seconds=5.0, **base),
        Row("a", "sd", decode_seconds=[3.0], rounds=4, ideal_seconds=2.5, **base),
        Row("a", "pearl", decode_seconds=[4.0], rounds=4, ideal_seconds=3.5, parallel_seconds=2.0, **base),
    ]
    told = summarize(rows, ["vanilla", "sd", "pearl"], temperature=0.0)
    name = "modelled_parallel_tokens_per_second"
    value: Any = told["pearl"][name]
    assert (value["value"] if isinstance(value, dict) else value) == pytest.approx(10 / 2.4)
    assert name not in told["vanilla"] and name not in told["sd"]
    assert name not in summarize(rows[1:], ["sd", "pearl"], temperature=0.0)["pearl"]


def test_a_run_calibrates_its_length_and_stores_what_the_model_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["limit=1", "task.max_new_tokens=24", "task.test_size=2", "arms=[vanilla,method]"]
    code, out, err = call(capsys, main, "method=pearl", "track=none", f"results_dir={tmp_path}", *small)
    assert (code, err) == (0, "") and "modelled_parallel_tokens_per_second" in out
    (ratio,) = (json.loads(path.read_text()) for path in (tmp_path / "settled").glob("ratio_*.json"))
    (folder,) = (tmp_path / "runs").iterdir()
    stop = json.loads((folder / "run.json").read_text())["identity"]["arms"]["pearl"]["stop"]
    assert stop["length"] == CostRatio().with_costs(**ratio).length
    vanilla, row = RunFolder(tmp_path, folder.name).read_rows()
    assert row.error is None and vanilla.parallel_seconds is None and row.ideal_seconds is not None
    assert row.parallel_seconds is not None and row.ideal_seconds / 2 <= row.parallel_seconds < row.ideal_seconds
    rounds = [dict(zip(TRACE, told, strict=True)) for told in row.trace]
    for told, following in zip(rounds, [*rounds[1:], None], strict=True):
        calls = {role: fed for role, *fed in told["calls"]}
        assert calls["target"] == [told["held"] + 1]  # mode: pre-verify reads one token, post-verify what is held too
        whole = told["committed"] == told["judged"] and not told["rejected"]
        if following is not None:
            assert following["held"] == (len(calls["draft"]) - 1 if whole else 0)
