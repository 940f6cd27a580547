"""cost_aware: its decision by hand, the lengths it finds, how it gives up and comes back, its memory, its prices."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call
from doubles import PROMPT, TableReaders, Tables

from baselines.stops import CostAwareLength
from baselines.stops.acceptance import BIN_PRIOR, EDGES, WINDOW, Acceptance, Fading, bin_of
from baselines.stops.cost_aware import AHEAD, FIRST, LENGTHS, expected_run, spread
from experiments.beforehand import smooth
from experiments.run import main
from viasd.decode import Decode, Draft, Generation, Verdict
from viasd.drafting import DraftModel, FixedLength, StopSpec
from viasd.method import Method
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

FLAT = {"draft_cost": {1: 0.1}, "target_cost": {1: 1.0, 64: 1.1}}
STEEP = {"draft_cost": {1: 0.1}, "target_cost": {1: 1.0, 2: 1.15, 64: 10.45}}  # as on a CPU: a token costs a seventh
DEAR = {"draft_cost": {1: 0.5}, "target_cost": {1: 1.0, 64: 1.1}}
COSTS: dict[str, Any] = {"flat": FLAT, "steep": STEEP, "dear": DEAR}

# --- parts --------------------------------------------------------------------------------------------------------


def test_costs_are_linear_between_and_never_fall() -> None:
    assert spread({1: 1.0, 4: 4.0, 8: 6.0}, 10) == pytest.approx([0, 1, 2, 3, 4, 4.5, 5, 5.5, 6, 6.5, 7])
    assert spread({2: 3.0, 4: 2.0, 8: 4.0}, 8) == pytest.approx([0, 3, 3, 3, 3, 3, 3, 3.5, 4])
    assert spread({1: 0.5}, 3) == [0, 0.5, 0.5, 0.5]


def test_calibrated_costs_are_a_line_whatever_the_machine_did_meanwhile() -> None:
    fed = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)
    true = {n: 0.8 if n == 1 else 1.0 + 0.1 * n for n in fed}
    assert smooth(true) == pytest.approx({1: 0.8, 2: 1.2, 64: 7.4})
    disturbed = {n: cost * {3: 2.0, 7: 3.0, 32: 1.8}.get(n, 1.0) for n, cost in true.items()}
    assert smooth(disturbed) == pytest.approx({1: 0.8, 2: 1.2, 64: 7.4}, rel=0.05)
    assert smooth({**true, 1: 9.0})[1] == smooth(true)[2]  # one token never costs more than two
    assert smooth({1: 2.0, 2: 1.9, 3: 1.8}) == pytest.approx({1: 1.85, 2: 1.85, 3: 1.85})


def test_expected_run() -> None:
    assert expected_run(0.5, 3) == pytest.approx(0.5 + 0.25 + 0.125)
    assert expected_run(1, 7) == 7 and expected_run(0, 7) == 0


def test_a_fading_mean() -> None:
    mean = Fading(0.5, 4.0, 0.9)
    mean.add(1.0)
    mean.add(6.0, 3.0)
    assert mean.value == pytest.approx(((2 * 0.9 + 1) * 0.9 + 6) / ((4 * 0.9 + 1) * 0.9 + 3))
    other = Fading(0.0, 1.0, 0.9)
    other.stored = json.loads(json.dumps(mean.stored))
    assert other.value == mean.value


def test_bins_of_top_probabilities() -> None:
    assert [bin_of(top) for top in (0.0, 0.05, 0.1, 0.55, 0.9, 0.96, 1.0)] == [0, 0, 1, 5, 9, 10, len(EDGES)]
    fresh = Acceptance()
    assert [fresh.of(place) for place in (0, 5, len(EDGES))] == pytest.approx([0.05, 0.55, 0.9975])


# --- rounds by hand -----------------------------------------------------------------------------------------------


@dataclass
class Rounds:
    """Drives a rule as the loop does, for a drafter whose rows have these top probabilities.

    `keep(position, top)` says whether the target would keep a token. Costs are those of the rule.
    """

    stop: Any
    keep: Callable[[int, float], bool]
    top: Callable[[], float] = lambda: 0.75
    whole: bool = False
    drafted: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def run(self, tokens: int) -> Rounds:
        """Rounds until so many tokens are out."""
        device = SimpleNamespace(type="cuda" if self.whole else "cpu")
        state: Any = SimpleNamespace(ids=SimpleNamespace(device=device), rounds=[None])
        self.stop.begin(state)
        position = 0
        while position < tokens:
            length, tops = self._draft(self.stop.limit(state))
            kept = next((i for i in range(length) if not self.keep(position + i, tops[i])), length)
            judged = min(kept + 1, length)
            draft = Draft.chain(torch.zeros(length, dtype=torch.long), torch.zeros(length, 2))
            state.rounds = [SimpleNamespace(judged=judged, committed=kept + 1)]
            verdict = Verdict([0] * (kept + 1), ["target"] * (kept + 1), kept, ["target"] * judged)
            self.stop.observe(state, draft, verdict)
            self.drafted.append(length)
            self.kept.append(kept)
            position += kept + 1
        return self

    def _draft(self, limit: int) -> tuple[int, list[float]]:
        tops = [self.top() for _ in range(limit)]
        if limit and self.whole:
            tripped = self.stop.trips(0, torch.zeros(limit), rows(*tops), Sampling()).tolist()
            return next((place + 1 for place, one in enumerate(tripped) if one), limit), tops
        for place in range(limit):
            if bool(self.stop.trips(place, torch.zeros(1), rows(tops[place]), Sampling())):
                return place + 1, tops
        return limit, tops

    def cost(self, costs: dict[str, dict[int, float]], drafted: Sequence[int] | None = None) -> float:
        target, step = spread(costs["target_cost"], 80), costs["draft_cost"][1]
        return sum(target[1 + length] + length * step for length in (self.drafted if drafted is None else drafted))


def rows(*tops: float) -> torch.Tensor:
    """Logits of rows whose first choice has these probabilities; the others share the rest."""
    return torch.tensor([[top, *[(1 - top) / 99] * 99] for top in tops], dtype=torch.float64).log()


def opened(costs: dict[str, Any], **options: Any) -> Any:
    return CostAwareLength(**costs, **options).open_stop()


def chance(acceptance: float, seed: int = 1) -> Callable[[int, float], bool]:
    draw = random.Random(seed)
    return lambda position, top: draw.random() < acceptance


def test_the_decision_by_hand() -> None:
    """S (a + ... + a^k) > rate (k draft + target(i + 1 + k) - target(i + 1)) for a k, with what is known."""
    for costs in COSTS.values():
        stop = opened(costs, memory="run")
        Rounds(stop, chance(0.8), random.Random(2).random).run(400)
        memory = stop.memory()
        target, step = spread(costs["target_cost"], 80), costs["draft_cost"][1]
        rate = max(memory["rate"][0] / memory["rate"][1], 1.0)
        a = memory["acceptance"]["all"][0] / memory["acceptance"]["all"][1]
        bins = [total / weight for total, weight in memory["acceptance"]["bins"]]
        chance_of = random.Random(3)
        seen = set()
        for _ in range(20):
            stop.limit(SimpleNamespace(ids=SimpleNamespace(device=torch.device("cpu"))))
            survival = 1.0
            for drafted in range(1, 12):
                top = chance_of.random() ** 0.3
                survival *= bins[bin_of(top)]
                worth = any(
                    survival * expected_run(a, k) > rate * (k * step + target[drafted + 1 + k] - target[drafted + 1])
                    for k in AHEAD
                )
                assert bool(stop.trips(drafted - 1, torch.zeros(1), rows(top), Sampling())) == (not worth)
                seen.add(worth)
        assert seen == {True, False}


def test_learns_from_judged_tokens_alone() -> None:
    """Of six drafted tokens three are judged, and a text that ended before the third hides it."""
    stop = opened(FLAT, memory="run")
    state: Any = SimpleNamespace(ids=torch.zeros(1), rounds=[SimpleNamespace(judged=3, committed=3)])
    for judged in (3, 2):
        stop.restore({})
        stop.limit(state)
        for place, top in enumerate((0.97, 0.65, 0.85, 0.97, 0.97, 0.97)):
            stop.trips(place, torch.zeros(1), rows(top), Sampling())
        state.rounds[-1].judged = judged
        draft = Draft.chain(torch.zeros(6, dtype=torch.long), torch.zeros(6, 2))
        stop.observe(state, draft, Verdict([0] * 3, ["target"] * 3, 2, ["target"] * 3))
        seen = {place: sums for place, sums in enumerate(stop.memory()["acceptance"]["bins"]) if sums[1] != BIN_PRIOR}
        told = {10: (0.965, 1), 6: (0.65, 1), 8: (0.85, 0)}
        expected = {
            place: [BIN_PRIOR * prior * WINDOW + kept, BIN_PRIOR * WINDOW + 1]
            for place, (prior, kept) in list(told.items())[:judged]
        }
        assert seen.keys() == expected.keys()
        for place, sums in expected.items():
            assert seen[place] == pytest.approx(sums)


def test_an_unjudged_block_teaches_nothing() -> None:
    stop = opened(FLAT, memory="run")
    state: Any = SimpleNamespace(ids=torch.zeros(1), rounds=[SimpleNamespace(judged=0, committed=2)])
    known = json.dumps(stop.memory())
    stop.limit(state)
    stop.trips(0, torch.zeros(1), rows(0.6), Sampling())
    draft = Draft.chain(torch.zeros(1, dtype=torch.long), torch.zeros(1, 2))
    stop.observe(state, draft, Verdict([0], ["draft"], 1, unjudged=1))
    assert json.dumps(stop.memory()) == known


# --- what it finds ------------------------------------------------------------------------------------------------


def best_length(costs: dict[str, Any], acceptance: float) -> tuple[int, float]:
    """The length n that maximizes (1 + a + ... + a^n) / (target(n + 1) + n draft), and that speed."""
    target, step = spread(costs["target_cost"], 80), costs["draft_cost"][1]
    speeds = {n: (1 + expected_run(acceptance, n)) / (target[n + 1] + n * step) for n in range(41)}
    best = max(speeds, key=lambda n: speeds[n])
    return best, speeds[best]


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_finds_the_known_optimum_within_a_token(name: str, acceptance: float) -> None:
    """Rows that say nothing, and a constant acceptance."""
    costs, found = COSTS[name], opened(COSTS[name], memory="run")
    rounds = Rounds(found, chance(acceptance)).run(6000)
    best, speed = best_length(costs, acceptance)
    later = len(rounds.drafted) // 3
    drafted, kept = rounds.drafted[later:], rounds.kept[later:]
    assert abs(round(sum(drafted) / len(drafted)) - best) <= 1
    assert (len(kept) + sum(kept)) / rounds.cost(costs, drafted) > 0.95 * speed


def test_rows_that_tell_are_used() -> None:
    """Sure tokens are always kept, unsure ones half the time: faster than any fixed length, by the lengths it takes."""
    draw, coin = random.Random(5), random.Random(6)
    rounds = Rounds(
        opened(STEEP, memory="run"),
        lambda _, top: top > 0.9 or coin.random() < 0.3,
        lambda: 0.999 if draw.random() < 0.85 else 0.35,
    ).run(4000)
    speed = (len(rounds.kept) + sum(rounds.kept)) / rounds.cost(STEEP)
    acceptance = 0.85 + 0.15 * 0.3
    assert speed > 1.15 * best_length(STEEP, acceptance)[1]


@pytest.mark.parametrize("sure", [0.3, 0.75, 0.999], ids=str)
@pytest.mark.parametrize("name", COSTS)
def test_a_useless_draft_costs_little(name: str, sure: float) -> None:
    """256 tokens from a fresh start, whatever the draft model thinks of itself."""
    rounds = Rounds(opened(COSTS[name]), lambda *_: False, lambda: sure).run(256)
    assert rounds.cost(COSTS[name]) <= 1.05 * 256
    late = rounds.drafted[60:]
    assert set(late) == {0, 1} and max(rounds.drafted) <= FIRST


@pytest.mark.parametrize("name", COSTS)
def test_comes_back_when_the_draft_becomes_good(name: str) -> None:
    coin = chance(0.9)
    rounds = Rounds(opened(COSTS[name]), lambda position, top: position >= 300 and coin(position, top)).run(2400)
    useless = [length for length, kept in zip(rounds.drafted, rounds.kept, strict=True) if not kept]
    assert useless[100:200].count(0) > 75
    best = best_length(COSTS[name], 0.9)[0]
    assert sum(rounds.drafted[-40:]) / 40 > best / 2


def test_a_probe_that_is_kept_is_followed_by_another() -> None:
    """Every fourth token may be kept: too few to draft, and a probe behind each that was."""
    rounds = Rounds(opened(DEAR), chance(0.25, 3)).run(1500)
    later = list(zip(rounds.drafted, rounds.kept, rounds.drafted[1:], strict=False))[60:]
    after = {kept: [follows for drafted, own, follows in later if drafted == 1 and own == kept] for kept in (0, 1)}
    assert set(after[0]) == {0} and len(after[1]) > 5 and set(after[1]) == {1}


def test_goes_on_without_a_draft_that_becomes_useless() -> None:
    coin = chance(0.9)
    rounds = Rounds(opened(FLAT), lambda position, top: position < 1000 and coin(position, top)).run(2000)
    assert max(rounds.drafted) > 8 and rounds.drafted[-200:].count(0) > 150


# --- blocks that are drafted whole --------------------------------------------------------------------------------


def test_whole_blocks_have_few_lengths_near_the_optimum() -> None:
    for acceptance in (0.5, 0.8, 0.9):
        rounds = Rounds(opened(FLAT, memory="run"), chance(acceptance), whole=True).run(4000)
        late = rounds.drafted[len(rounds.drafted) // 3 :]
        best = best_length(FLAT, acceptance)[0]
        assert set(late) <= set(LENGTHS) and abs(sum(late) / len(late) - best) < 2


def test_whole_blocks_are_cut_where_reading_costs_more_than_it_gains() -> None:
    reading = {"draft_cost": {1: 0.001}, "target_cost": {1: 1.0, 64: 13.6}}
    rounds = Rounds(opened(reading, memory="run"), chance(0.2), lambda: 0.2, whole=True).run(600)
    sure = Rounds(opened(reading, memory="run"), chance(0.99), lambda: 0.99, whole=True).run(600)
    assert max(rounds.drafted[-10:]) <= 2 < max(sure.drafted[-10:])


# --- memory -------------------------------------------------------------------------------------------------------


def test_memory_round_trip() -> None:
    one, other = opened(STEEP, memory="run"), opened(STEEP, memory="run")
    Rounds(one, chance(0.1), random.Random(4).random).run(300)
    stored = json.dumps(one.memory())
    other.restore(json.loads(stored))
    found = [Rounds(stop, chance(0.8, 7), random.Random(8).random).run(300).drafted for stop in (one, other)]
    assert found[0] == found[1] and json.dumps(one.memory()) == json.dumps(other.memory()) != stored
    one.restore({})
    assert json.dumps(one.memory()) == json.dumps(opened(STEEP, memory="run").memory())


def test_a_request_forgets() -> None:
    stop = opened(STEEP)
    first, second = (Rounds(stop, chance(0.1), random.Random(4).random).run(100).drafted for _ in range(2))
    assert first == second and stop.memory() == {}
    stop = opened(STEEP, memory="run")
    first, second = (Rounds(stop, chance(0.1), random.Random(4).random).run(100).drafted for _ in range(2))
    assert first != second


# --- the real loop ------------------------------------------------------------------------------------------------


class Twin(Tables):
    """The draft model is the target (`sign` 1), or wants the least what the target wants the most (-1)."""

    sign = 1.0

    def logits(self, role: str, prefix: Sequence[int]) -> list[float]:
        return [(self.sign if role == "draft" else 1.0) * x for x in super().logits("target", prefix)]


class Opposite(Twin):
    sign = -1.0


@pytest.mark.parametrize("tables_class", [Twin, Opposite])
def test_real_loop(tables_class: type[Twin]) -> None:
    tables = tables_class(3, vocabulary=6, spread=2.0)
    ours, plain = (outputs(tables, stop) for stop in (CostAwareLength(**FLAT, memory="run"), FixedLength(length=0)))
    assert [one.token_ids for one in ours] == [one.token_ids for one in plain]
    calls, drafted = (sum(one.calls[role] for one in ours[2:]) for role in ("target", "draft"))
    if tables_class is Twin:
        assert calls < 0.3 * sum(one.calls["target"] for one in plain[2:])
    else:
        assert drafted < 0.25 * calls


def outputs(tables: Tables, stop: StopSpec) -> list[Generation]:
    method = Method(name="m", drafter=DraftModel(), stop=stop, verifier=RuleVerifier())
    decoder = method.open(TableReaders(tables))  # type: ignore[arg-type]
    return [decoder.generate([*PROMPT, i], Decode(Sampling(), 60), SeededDraws(i, "a")) for i in range(6)]


# --- prices -------------------------------------------------------------------------------------------------------


def test_costs_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"stop\.draft_cost=null.*stop\.target_cost=null.*accepted"):
        CostAwareLength(draft_cost={1: 0.1}).open_stop()


SMALL = [
    "method=sd_cost_aware",
    "track=none",
    "engine.threads=1",
    "limit=1",
    "task.max_new_tokens=8",
    "task.test_size=4",
]


def test_a_run_prices_it_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.costs.REPEATS", 1)
    monkeypatch.setattr("experiments.costs.SERIES", 2)
    typed = [*SMALL, f"results_dir={tmp_path}", 'arms=[vanilla,method,{req: "stop.memory=request"}]']
    code, out, err = call(capsys, main, "--plan", *typed)
    assert code == 0 and "call costs, which are measured" in out, err
    code, _, err = call(capsys, main, *typed)
    assert code == 0, err
    (path,) = (tmp_path / "runs").glob("*/run.json")
    arms = json.loads(path.read_text())["identity"]["arms"]
    stops = [arms[name]["stop"] for name in ("sd_cost_aware", "req")]
    costs = stops[0]["target_cost"], stops[0]["draft_cost"]
    assert costs == (stops[1]["target_cost"], stops[1]["draft_cost"])
    assert 0 < costs[0]["1"] <= 1.05  # measured, on a machine that may be busy
    assert all(0 < costs[1][fed] < costs[0][fed] for fed in ("1", "2", "64"))
    code, out, _ = call(capsys, main, "--plan", *typed)
    assert code == 0 and path.parent.name in out


MISTAKES = {
    "arms=[draft_only]": ["draft_only", "stop.target_cost", "accepted"],
    "method=sd_confidence method.stop.keep_tripping=false decode=sample": [
        "arm sd_confidence", "stop.keep_tripping=false", "decode.temperature=", "accepted",
    ],
}  # fmt: skip


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_are_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str
) -> None:
    code, _, err = call(capsys, main, *SMALL, *typed.split(), f"results_dir={tmp_path}")
    (line,) = err.strip().splitlines()
    assert code == 2 and all(part in line for part in MISTAKES[typed]), line
    assert not list(tmp_path.glob("runs/*"))
