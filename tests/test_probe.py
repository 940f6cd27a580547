"""The probe: interpolated costs, replays that count what the engine counts, distances, and the command itself."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, check_mistake
from conftest import VOCABULARY, ModelFactory
from doubles import PROMPT, Outcome, TableReaders, Tables
from test_models import TOKENS, save_tokenizer
from torch import Tensor

from experiments.arms import vanilla
from experiments.config import EngineSpec
from experiments.costs import Cost, CostCurve
from experiments.probe import main
from experiments.probing.agreement import Forced, Sureness, by_position, compare, force, sureness
from experiments.probing.predict import Replay, foresee, oracle, predicted_methods, replay, replay_all
from experiments.probing.setup import ProbeJob, ProbeSettings, Prompt, View
from experiments.probing.summary import MEAN
from experiments.probing.vocabulary import compare_vocabularies
from viasd.decode import Decode, Generation
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Pair
from viasd.routing import RatioGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import SlimView

LENGTHS = [1, 2, 3, 5]
TEXT = [5, 9, 2, 11, 7]


def test_costs_are_interpolated() -> None:
    curve = CostCurve({fed: Cost(seconds, seconds, seconds) for fed, seconds in ((1, 1.0), (4, 4.0), (8, 6.0))})
    found = [curve.seconds(fed) for fed in (1, 2, 4, 6, 8, 10)]
    assert found == pytest.approx([1, 2, 4, 5, 6, 7])  # beyond the longest, on the line of the last two
    assert CostCurve({1: Cost(2.0, 2.0, 2.0)}).seconds(9) == 2.0


def test_steps_are_priced_by_role() -> None:
    costs = {role: CostCurve({1: Cost(one, one, one), 3: Cost(three, three, three)}) for role, one, three in
             (("target", 10.0, 12.0), ("draft", 1.0, 1.0))}  # fmt: skip
    steps: Any = {("target", 2): 2, ("draft", 1): 3}
    assert Replay(5, 2, 0, 5, 1, 5, steps, 5).seconds(costs) == pytest.approx(2 * 11 + 3)
    assert Replay(5, 2, 0, 5, 1, 5, steps, 5).seconds(costs, "draft") == pytest.approx(3)


# --- replays ------------------------------------------------------------------------------------------------------


def job_of(verifier: Hierarchical, view: View, lengths: list[int] = LENGTHS) -> ProbeJob:
    """What a replay needs of a job."""
    settings = ProbeSettings(
        tasks=None, split="calibration", prompts=1, max_new_tokens=None, context=8, fed_lengths=[1], repeats=1,
        skip_ratios=[], draft_lengths=lengths, seed=0, results_dir=None, debug=False,
    )  # fmt: skip
    return ProbeJob(
        settings=settings,
        pair=Pair(name="p", models={"target": "t", "draft": "d"}),
        method=Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(), verifier=verifier),
        engine=EngineSpec(),
        tasks={},
        views=[view],
        view=view,
        drafter="draft",
        notices=[],
        composed={},
    )


def check_replay(found: Replay, real: Generation) -> None:
    assert (found.tokens, found.rounds) == (len(real.token_ids), len(real.rounds))
    assert found.escalated == sum(one.escalation is not None for one in real.rounds)
    for role in real.calls:
        assert found.calls(role) == real.calls[role], role
        assert sum(fed * count for (name, fed), count in found.steps.items() if name == role) == real.fed[role], role


@pytest.mark.parametrize("ending", ["length", "eos"])
def test_replay_counts_what_the_engine_counts(tiny: ModelFactory, variant: ModelFactory, ending: str) -> None:
    """vanilla and sd always; via_sd where its slim view is the whole target, so that it writes what that would."""
    target = tiny("llama")
    engine = Engine({"target": target, "draft": variant(target, "noisy", 0.02)}, VOCABULARY, 64)
    everything = View("chosen", 0.0, [0, 1, 2, 3], 4)
    verifier = Hierarchical(
        gate=RatioGate(accept_ratio=1.0, escalate_ratio=1.0), slim=SlimView(mask=everything.kept), max_pending=6
    )
    job = job_of(verifier, everything)
    decode, draws = Decode(Sampling(), 40), SeededDraws(0, "x")
    if ending == "eos":
        decode = Decode(
            Sampling(), 40, frozenset(vanilla().open(engine).generate(TEXT, decode, draws).token_ids[20:21])
        )
    prompt = Prompt("any", TEXT, decode)
    forced = force(engine, job, vanilla().open(engine), prompt)
    assert forced.length == 40 or ending == "eos"
    assert 0.3 < forced.distances["draft"].equal / forced.length < 1  # a draft that always agrees would show nothing
    assert forced.distances[everything.name].equal == forced.length
    seen = set()
    for key, method in predicted_methods(job).items():
        real = method.open(engine).generate(prompt.ids, decode, SeededDraws(0, "x"))
        check_replay(replay(method, forced), real)
        seen |= {one.escalation for one in real.rounds}
        assert real.finish_reason == ending, key
    assert seen == {None, "gate", "forced"}


class NearTables(Tables):
    """Tables whose slim view and draft model are near the target."""

    def logits(self, role: str, prefix: Any) -> list[float]:
        own, target = super().logits(role, prefix), super().logits("target", prefix)
        share = {"target": 0.0, "slim": 0.3, "draft": 0.5}[role]
        return [(1 - share) * t + share * o for t, o in zip(target, own, strict=True)]


def table_forced(tables: Tables, length: int, budget: int, tail: int) -> Forced:
    """`force` on tables: the target's greedy output, and the draft model's continuation of it."""
    ids = list(PROMPT)
    for place in range(length + tail):
        row = tables.logits("target" if place < length else "draft", ids)
        ids.append(row.index(max(row)))
    rows = {
        role: torch.tensor([tables.logits(role, ids[:end]) for end in range(len(PROMPT), len(ids) + 1)])
        for role in ("target", "draft", "slim")
    }
    return Forced(Prompt("any", PROMPT, Decode(Sampling(), budget)), length, rows, {}, {})


@pytest.mark.parametrize("options", [{}, {"bonus": "none", "target_bonus": False, "max_pending": None}])
def test_replay_of_via_sd_where_the_context_did_not_change(options: dict[str, Any]) -> None:
    """Paper thresholds on lookup tables: wherever via_sd wrote what the target would have, every count is equal."""
    equal, length = 0, 8
    for seed in range(80):
        tables = NearTables(seed, vocabulary=5, spread=2.0)
        draft_length = random.Random(seed).choice([1, 2, 4])
        verifier = Hierarchical(gate=RatioGate(), slim=SlimView(mask=[0]), **options)
        method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=draft_length), verifier=verifier)
        budget = length + seed % 5  # an output that ends before the limit, too
        forced = table_forced(tables, length, budget, min(draft_length, budget - length))
        decode = Decode(Sampling(), budget, stop=lambda output: len(output) >= length)
        real = method.open(TableReaders(tables)).generate(PROMPT, decode, SeededDraws(0, "x"))  # type: ignore[arg-type]
        if real.token_ids == forced.rows["target"][:length].argmax(-1).tolist():
            check_replay(replay(method, forced), real)
            equal += 1
    assert equal > 20


def test_the_oracle_calls_the_target_where_first_choices_differ() -> None:
    """One token a round: as many calls as places where they do, and no token that is not the target's."""
    slim = Hierarchical(
        gate=RatioGate(), slim=SlimView(mask=[0]), bonus="none", target_bonus=False, max_pending=None, mode="exact"
    )
    method = Method(name="via_sd", drafter=DraftModel(), stop=FixedLength(length=1), verifier=slim)
    calls = 0
    for seed in range(10):
        forced = table_forced(NearTables(seed, vocabulary=5, spread=2.0), 12, 12, 0)
        choices = {role: rows[:12].argmax(-1) for role, rows in forced.rows.items()}
        found = replay(oracle(method), foresee(forced))
        assert found.equal == found.tokens == found.rounds == 12
        assert found.calls("target") == found.escalated == int((choices["slim"] != choices["target"]).sum())
        both = replay_all({("oracle", 1): oracle(method), ("sd", 1): method}, forced, 0)
        assert both["oracle", 1] == found and both["sd", 1] == replay(method, forced)
        calls += found.escalated
    assert 0 < calls < 60


# --- distances ----------------------------------------------------------------------------------------------------


def logits(*rows: Outcome | tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


def test_distances_of_hand_made_rows() -> None:
    target, other = logits((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), logits((0.25, 0.5, 0.25), (0.1, 0.8, 0.1))
    found = compare(target, other)
    assert (found.tokens, found.equal) == (2, 1)
    assert found.tv == pytest.approx(0.25)
    assert found.kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))


def test_distance_to_a_model_that_lacks_an_id() -> None:
    found = compare(logits((0.5, 0.25, 0.25)), logits((0.5, 0.5, 0.0)))
    assert found.tv == pytest.approx(0.25)
    assert found.kl == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))


def test_sureness_by_position() -> None:
    found = sureness(logits((0.5, 0.5), (1.0, 0.0)))
    assert found.entropy == pytest.approx([math.log(2), 0]) and found.top == pytest.approx([0.5, 1])
    binned = by_position([Sureness([1.0] * 5, [0.5] * 5), Sureness([3.0] * 4, [0.5] * 4)])
    assert binned == [(0, 4, 8, 2.0, 0.5), (4, 8, 1, 1.0, 0.5)]


def test_vocabularies() -> None:
    found = compare_vocabularies({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 3, "d": 2, "e": 4})
    assert (found.size, found.shared, found.missing, found.extra, found.differing) == (4, 1, 1, 2, 2)
    assert found.examples == {"missing": ["c"], "extra": ["d", "e"], "differing": ["b", "d"]}


# --- the command --------------------------------------------------------------------------------------------------

SMALL = [
    "tasks=[reasoning]", "prompts=2", "max_new_tokens=10", "context=16", "fed_lengths=[2,4]", "repeats=2",
    "skip_ratios=[0.25]", "draft_lengths=[2,3]",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *SMALL, f"results_dir={results}", *overrides)


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, "pair.models.mid=viasd://reference/draft")
    assert code == 0, err
    (folder,) = (tmp_path / "probes").iterdir()
    content = json.loads((folder / "probe.json").read_text())
    assert folder.name == f"reference_{content['probe_id']}" and str(folder / "probe.png") in out
    assert (folder / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert set(content["vocabulary"]) == {"target", "draft", "mid"}
    readers = content["costs"]["readers"]
    assert {"target", "draft", "mid", content["view"]} <= set(readers)
    assert all(set(steps) == {"1", "2", "4"} for steps in readers.values())
    assert readers["target"]["1"]["over_target_step"] == 1
    agreement = content["agreement"]
    assert agreement["draft"] == agreement["mid"] and 0 < agreement[content["view"]]["agreement"][MEAN]["value"] <= 1
    arms = [(entry["arm"], entry["draft_length"]) for entry in content["predicted"]]
    assert arms == [("vanilla", 0), *((arm, length) for length in (2, 3) for arm in ("sd", "via_sd", "oracle")),
                    ("ideal", 0), ("specdec_oracle", 0)]  # fmt: skip
    assert "predicted, without this harness's own time per round" in out
    assert out.splitlines()[-3].startswith("Break-even at draft length")


def test_pair_without_draft(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, "~pair.models.draft", "prompts=1")
    assert code == 0, err
    (path,) = (tmp_path / "probes").glob("*/probe.json")
    content = json.loads(path.read_text())
    assert [entry["arm"] for entry in content["predicted"]] == ["vanilla"] and set(content["positions"]) == {"target"}
    assert "has no draft model" in out and "not known without a draft model" in out


MISTAKES = {
    "tasks=[resoning]": ["resoning", "'reasoning'"],
    "pair=nope": ["pair=nope", "reference"],
    "draft_lengths=[0]": ["draft_lengths.0=0", "greater than or equal to 1"],
    "skip_ratios=[0.95]": ["skip_ratio=0.95", "at most"],
    "method=sd": ["method=sd", "hierarchical"],
    "fed_lengths=[600]": ["fed_lengths", "512"],
    "max_new_tokens=1000": ["max_new_tokens=1000", "at most"],
    "colour=red": ["colour", "no such key"],
    "results_dir=/dev/null/x": ["results_dir=", "writable"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str) -> None:
    code, _, err = run(capsys, tmp_path, typed)
    check_mistake(code, err, MISTAKES[typed])


def test_pair_with_other_ids_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for role, tokens in (("target", TOKENS), ("draft", TOKENS[::-1])):
        save_tokenizer(tmp_path / role, tokens)
        (tmp_path / role / "config.json").write_text('{"num_hidden_layers": 12}')
    models = [f"pair.models.{role}={tmp_path / role}" for role in ("target", "draft")]
    code, _, err = run(capsys, tmp_path, *models)
    (line,) = err.strip().splitlines()
    assert code == 2 and "must share token ids" in line
