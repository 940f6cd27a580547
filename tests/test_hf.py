"""Loops of the library as arms: they write what ours write, end where ours end, and say no more than they know."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, check_mistake
from conftest import VOCABULARY, ModelFactory, build_model
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from baselines.hf import AssistantModel, LibraryLoop, LibraryMethod, PromptLookup, sampling_settings
from experiments import bench as bench_command
from experiments import identity
from experiments import run as run_command
from experiments.arms import Context, derive, sd, vanilla
from experiments.config import CHECKOUT, make
from experiments.errors import UserError
from experiments.measure import Bench, Prompt, Stopwatch
from experiments.metrics import summarize
from experiments.plan import optional_packages
from experiments.records import Row
from experiments.store import RunFolder
from experiments.tasks.base import Example
from viasd.decode import Decode
from viasd.engine import Engine
from viasd.models import Pair, PairError
from viasd.sampling import Sampling, SeededDraws, process

TEXT = [5, 9, 2, 11, 7, 9, 2]
NO_THRESHOLD = AssistantModel(num_assistant_tokens=4, assistant_confidence_threshold=0.0)
LOOPS: dict[str, AssistantModel | PromptLookup | None] = {
    "generate": None,
    "assisted": NO_THRESHOLD,
    "defaults": AssistantModel(),
    "heuristic": AssistantModel(num_assistant_tokens=3, schedule="heuristic"),
    "transient": AssistantModel(num_assistant_tokens=3, schedule="heuristic_transient"),
    "lookup": PromptLookup(prompt_lookup_num_tokens=4),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.costs.REPEATS", 1)
    monkeypatch.setattr("experiments.costs.FED", (1, 6))
    monkeypatch.setattr("experiments.measure.WARM_UP_TOKENS", 4)


@pytest.fixture
def engine(tiny: ModelFactory, variant: ModelFactory) -> Engine:
    """A target and a draft model that agrees with it now and then, in float64."""
    target = variant(tiny("llama"), "noisy", 0.0)  # the shared one keeps its own settings
    return Engine({"target": target, "draft": variant(target, "noisy", 0.02)}, VOCABULARY, 96)


def draws(example: str = "x", seed: int = 0) -> SeededDraws:
    return SeededDraws(seed, example)


# --- the same outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["length", "eos", "stop"])
@pytest.mark.parametrize("name", LOOPS)
def test_greedy_outputs_are_vanillas(engine: Engine, name: str, ending: str) -> None:
    """Also where a text ends inside a block, and where settings of the models themselves say something else."""
    ours = vanilla().open(engine)
    free = ours.generate(TEXT, Decode(Sampling(), 40), draws()).token_ids
    decode = Decode(Sampling(), 40)
    if ending == "eos":
        decode = dataclasses.replace(decode, eos_ids=frozenset({free[22]}))
    if ending == "stop":
        decode = dataclasses.replace(decode, stop=lambda ids: list(ids[-2:]) == free[20:22])
    expected = ours.generate(TEXT, decode, draws())
    loop = LibraryLoop(engine, LOOPS[name])
    for role in engine.models:
        engine.models[role].generation_config.eos_token_id = free[3]
        engine.models[role].generation_config.repetition_penalty = 3.0
    for detail in (False, True):
        found = loop.generate(TEXT, decode, draws(), detail=detail)
        assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)
        assert found.finish_reason == ending and len(found.token_ids) > 3


@pytest.mark.parametrize("name", ["generate", "assisted", "lookup"])
def test_ids_that_the_tokenizer_lacks_are_never_written(engine: Engine, name: str) -> None:
    engine.vocabulary = 40
    decode = Decode(Sampling(), 40)
    ours = vanilla().open(engine).generate(TEXT, decode, draws()).token_ids
    assert LibraryLoop(engine, LOOPS[name]).generate(TEXT, decode, draws()).token_ids == ours
    hot = Decode(Sampling(temperature=50.0), 80)
    assert max(LibraryLoop(engine, LOOPS[name]).generate(TEXT, hot, draws()).token_ids) < 40


@pytest.mark.parametrize("name", LOOPS)
def test_sampling_is_seeded_by_example_and_touches_no_other_chance(engine: Engine, name: str) -> None:
    loop, decode = LibraryLoop(engine, LOOPS[name]), Decode(Sampling(temperature=1.0), 12)
    state = torch.get_rng_state()

    def written(*who: Any) -> list[int]:
        loop.restore({})
        return loop.generate(TEXT, decode, draws(*who)).token_ids

    first = written("a", 0)
    assert written("a", 0) == first
    assert len({tuple(written(*who)) for who in (("a", 0), ("b", 0), ("a", 1))}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --- the law ------------------------------------------------------------------------------------------------------


class Branching:
    """Takes the place of chance in the library: explores every outcome, one run after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._script: list[tuple[int, list[float]]] = []
        self._place, self.weight = 0, 1.0
        monkeypatch.setattr(torch, "multinomial", self._multinomial)
        monkeypatch.setattr(torch, "rand_like", self._coins)

    def _choose(self, weights: Sequence[float]) -> int:
        if self._place == len(self._script):
            self._script.append((next(i for i, one in enumerate(weights) if one > 0), list(weights)))
        taken = self._script[self._place][0]
        self._place += 1
        self.weight *= weights[taken]
        return taken

    def _multinomial(self, rows: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        return torch.tensor([[self._choose((row / row.sum()).tolist())] for row in rows.double()])

    def _coins(self, ratios: Tensor) -> Tensor:
        """A coin at or below the ratio keeps a token; nothing depends on those behind the first refusal."""
        coins = torch.zeros_like(ratios)
        for place, ratio in enumerate(ratios.clamp(max=1).flatten().tolist()):
            if self._choose([ratio, 1 - ratio]) == 1:
                coins.view(-1)[place] = 2.0
                break
        return coins

    def outcomes(self) -> Iterator[None]:
        """Once for every outcome."""
        while True:
            self._place, self.weight = 0, 1.0
            yield
            while self._script:
                taken, weights = self._script.pop()
                later = [i for i in range(taken + 1, len(weights)) if weights[i] > 0]
                if later:
                    self._script.append((later[0], weights))
                    break
            if not self._script:
                return


def target_law(model: Any, prompt: list[int], sampling: Sampling, tokens: int) -> dict[tuple[int, ...], float]:
    """Joint law of the next tokens under the model's processed rows."""
    law = {(): 1.0}
    for _ in range(tokens):
        grown = {}
        for text, weight in law.items():
            row = process(model(torch.tensor([[*prompt, *text]])).logits[0, -1:], sampling)[0].tolist()
            grown |= {(*text, token): weight * p for token, p in enumerate(row) if p > 0}
        law = grown
    return law


TWO_DRAFTED = dataclasses.replace(NO_THRESHOLD, num_assistant_tokens=2)


@pytest.mark.parametrize(
    ("assistant", "sampling"),
    [
        (TWO_DRAFTED, Sampling(temperature=0.6, top_k=2)),
        (TWO_DRAFTED, Sampling(temperature=1.4, top_p=0.8)),
        (TWO_DRAFTED, Sampling(temperature=0.8, min_p=0.2)),
        (PromptLookup(prompt_lookup_num_tokens=1), Sampling(temperature=0.6, top_k=2)),
    ],
    ids=["top_k", "top_p", "min_p", "lookup"],
)
def test_the_output_law_is_the_targets(
    monkeypatch: pytest.MonkeyPatch, assistant: AssistantModel | PromptLookup, sampling: Sampling
) -> None:
    """The real loop of the library, every outcome of it: truncated rows are where its proposals might be wrong."""
    models = {role: build_model("llama", seed, layers=1, vocab_size=3) for seed, role in enumerate(("target", "draft"))}
    for model in models.values():
        model.lm_head.weight *= 0.2  # rows from which more than one token may be drawn
    engine = Engine(models, 3, 32)
    prompt, decode = [0, 2, 1, 0, 2], Decode(sampling, 3)
    expected = target_law(models["target"], prompt, sampling, 3)
    branching = Branching(monkeypatch)
    loop, law, kept = LibraryLoop(engine, assistant), defaultdict[tuple[int, ...], float](float), set()
    for _ in branching.outcomes():
        found = loop.generate(prompt, decode, draws(), detail=True)
        law[tuple(found.token_ids)] += branching.weight
        kept |= {one.judged - one.rejected for one in found.rounds if one.judged}
    assert sum(law.values()) == pytest.approx(1, abs=1e-6) and {0, 1} <= kept
    assert max(abs(law[text] - expected.get(text, 0.0)) for text in {*law, *expected}) < 2e-6


# --- counts -------------------------------------------------------------------------------------------------------


def test_rounds_of_assisted_generation_are_those_of_sd(engine: Engine) -> None:
    """Until the length limit is near, where the library drafts one token less."""
    decode = Decode(Sampling(), 60)
    method = sd(vanilla())
    method = dataclasses.replace(method, stop=dataclasses.replace(method.stop, length=4))  # type: ignore[type-var]
    ours = method.open(engine).generate(TEXT, decode, draws())
    theirs = LibraryLoop(engine, NO_THRESHOLD).generate(TEXT, decode, draws(), detail=True)
    assert len(ours.rounds) == len(theirs.rounds) > 8 and sum(one.rejected for one in ours.rounds) > 0
    early = [one for one in ours.rounds if one.prefix + 6 < len(TEXT) + 60]
    assert theirs.rounds[: len(early)] == early
    assert theirs.calls["target"] == ours.calls["target"] == len(theirs.rounds)
    assert abs(theirs.fed["target"] - ours.fed["target"]) <= 5
    assert abs(theirs.calls["draft"] - ours.calls["draft"]) <= 5
    assert not any(model._forward_pre_hooks for model in engine.models.values())


def test_counts_are_only_told_where_they_are_known(engine: Engine) -> None:
    decode = Decode(Sampling(temperature=1.0), 20)
    for name, assistant in LOOPS.items():
        loop = LibraryLoop(engine, assistant)
        memory = loop.memory()
        plain = loop.generate(TEXT, decode, draws())
        assert (plain.rounds, plain.calls, plain.fed, plain.laws) == ([], {}, {}, None)
        loop.restore(memory)
        told = loop.generate(TEXT, decode, draws(), detail=True)
        assert told.token_ids == plain.token_ids and told.laws is None
        assert sum(one.committed for one in told.rounds) == 20
        assert told.calls["target"] == len(told.rounds)
        assert set(told.calls) == ({"target", "draft"} if isinstance(assistant, AssistantModel) else {"target"})
        for one in told.rounds:
            assert one.drafted == one.judged + one.discarded + one.cut and set(one.tiers) <= {"target"}
        if name == "generate":
            assert told.fed["target"] == 20 and all(one.drafted == 0 for one in told.rounds)


def test_the_librarys_schedule_is_remembered_as_it_says(engine: Engine) -> None:
    decode = Decode(Sampling(), 30)
    for name, assistant in LOOPS.items():
        loop = LibraryLoop(engine, assistant)
        before = loop.memory()
        first = loop.generate(TEXT, decode, draws(), detail=True).rounds[0].drafted
        after = loop.memory()
        if name != "heuristic":
            assert before == after == {}
            continue
        assert before == {"num_assistant_tokens": 3} and after["num_assistant_tokens"] > 3 and first == 3
        other = LibraryLoop(engine, AssistantModel(num_assistant_tokens=9))
        other.generate(TEXT, decode, draws())  # on the same models, with settings of its own
        assert loop.generate(TEXT, decode, draws(), detail=True).rounds[0].drafted == after["num_assistant_tokens"]
        loop.restore(before)
        assert loop.generate(TEXT, decode, draws(), detail=True).rounds[0].drafted == 3


# --- clocks and metrics -------------------------------------------------------------------------------------------


class OneTask:
    """What a bench asks of a task."""

    stop_strings = ("nowhere",)
    quality_name = "exact"

    def scores(self, example: Example, text: str) -> dict[str, float]:
        return {"exact": 1.0}


class Speller:
    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def measured(engine: Engine, sampling: Sampling, names: Sequence[str]) -> dict[str, Row]:
    """A row of each arm, timed."""
    arms = {"vanilla": vanilla().open(engine), **{name: LibraryLoop(engine, LOOPS[name]) for name in names}}
    task: Any = OneTask()
    bench = Bench(engine, arms, task, Speller(), Decode(sampling, 24), seed=0, repeats=2)
    bench.warm_up(TEXT)
    rows = bench.measure(Prompt(0, Example("one", "", "", {}), TEXT), timed=True)
    assert [row.error for row in rows] == [None] * len(arms)
    return {row.arm: row for row in rows}


def test_the_clock_starts_behind_the_first_tokens(engine: Engine) -> None:
    rows = measured(engine, Sampling(), ["generate", "assisted"])
    assert rows["vanilla"].unclocked == 0 and rows["generate"].unclocked == 1
    first = LibraryLoop(engine, NO_THRESHOLD).generate(TEXT, Decode(Sampling(), 24), draws("one"), detail=True)
    assert rows["assisted"].unclocked == first.rounds[0].committed > 1  # a round's tokens come at once
    for name in ("generate", "assisted"):
        row = rows[name]
        assert len(row.decode_seconds) == len(row.prefill_seconds) == len(row.first_token_seconds) == 2
        # The first tokens, and the clock of decoding with them, come when the prompt is read and they are chosen.
        assert all(
            0 <= wait - first < 1e-3 for wait, first in zip(row.prefill_seconds, row.first_token_seconds, strict=True)
        )
        assert (row.reader_seconds, row.trace, row.profiled_seconds, row.ideal_seconds) == ({}, [], None, None)
    told = summarize(list(rows.values()), list(rows), temperature=0.0)
    for name, row in rows.items():
        seconds = sum(row.decode_seconds) / 2
        assert told[name]["tokens_per_second"] == pytest.approx((24 - row.unclocked) / seconds)
        whole = seconds + sum(row.prefill_seconds) / 2
        assert told[name]["end_to_end_tokens_per_second"] == pytest.approx(24 / whole)
    own = told["vanilla"]["tokens_per_second"]
    assert told["generate"]["speedup"] == pytest.approx(told["generate"]["tokens_per_second"] / own)  # type: ignore[operator]


def test_the_watch_hears_the_first_tokens_before_its_clock_starts(engine: Engine) -> None:
    heard: list[str] = []
    LibraryLoop(engine).generate(TEXT, Decode(Sampling(), 3), draws(), watch=heard.append)
    assert heard == ["round", "prefilled", "round", "round"]
    with Stopwatch(torch.device("cpu")) as watch:
        LibraryLoop(engine, NO_THRESHOLD).generate(TEXT, Decode(Sampling(), 20), draws(), watch=watch)
    assert watch.start < watch.first <= watch.prefilled < watch.end


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_known_of_a_library_is_null(engine: Engine, temperature: float) -> None:
    rows = measured(engine, Sampling(temperature=temperature), ["generate", "assisted"])
    told = summarize(list(rows.values()), list(rows), temperature=temperature)
    for name in ("generate", "assisted"):
        lacking = ("time_share", "device_share", "ideal", "predicted", "request_speedup", "peak", "memory", "audit")
        assert not [metric for metric in told[name] if metric.startswith(lacking)]
        assert ("fidelity" in told[name]) == (temperature == 0)
        assert ("shortfall" in told[name]) == (temperature == 0) and "overshoot_p99" not in told[name]
        assert {"quality", "speedup", "calls_per_token.target", "block_efficiency"} <= set(told[name])
    assert "time_share.other" in told["vanilla"] and "fidelity" in told["vanilla"]
    assert "rejection_rate" not in told["generate"] and "rejection_rate" in told["assisted"]
    silent = dataclasses.replace(rows["assisted"], **{name: getattr(Row("", "", 0), name) for name in COUNTS})
    found = summarize([rows["vanilla"], silent], ["vanilla", "assisted"], temperature=temperature)["assisted"]
    families = ("rejection", "tier", "source", "block", "acceptance", "calls", "fed", "target_rejection", "escalation")
    assert not [name for name in found if name.startswith(families)]


COUNTS = (
    "rounds", "drafted", "judged", "rejected", "discarded", "cut", "target_rejected", "tiers", "sources", "drafted_at",
    "judged_at", "accepted_at", "calls", "fed",
)  # fmt: skip


# --- configuration and mistakes -----------------------------------------------------------------------------------


def test_models_of_different_size_are_refused(tiny: ModelFactory) -> None:
    models = {"target": tiny("llama"), "draft": tiny("llama", vocab_size=40)}
    engine = Engine(models, 40, 32)
    with pytest.raises(PairError, match=r"target has 48, draft 40; accepted: .*hf_generate"):
        LibraryMethod(name="a", assistant=AssistantModel()).open(engine)
    assert LibraryMethod(name="b").open(engine).lossless
    with pytest.raises(PairError, match="role 'mid'"):
        LibraryMethod(name="c", assistant=AssistantModel(role="mid")).open(engine)


def test_a_way_to_sample_that_the_library_is_not_told_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class More(Sampling):
        eta: float = 0.0

    assert sampling_settings(More(temperature=1.0, top_k=3))["top_k"] == 3
    with pytest.raises(ValueError, match=r"decode\.eta=0\.1: .* temperature, top_k, top_p, min_p"):
        sampling_settings(More(temperature=1.0, eta=0.1))
    assert sampling_settings(Sampling()) == {"do_sample": False}


def derived(names: list[Any], *overrides: str) -> list[str]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", list(overrides))["method"])
        pair = Pair(name="p", models={"target": "t", "draft": "d"})
        method = make(OmegaConf.create(composed), "method")
        return list(derive(names, Context(method, composed, pair, lambda: (1.0, 0.0, 0.0, 0.0)))[0])


def test_loops_of_the_library_are_methods_by_name() -> None:
    changed = {"short": "method=hf_assisted assistant.num_assistant_tokens=3"}
    names = ["vanilla", "sd", "hf_generate", "hf_assisted", "hf_lookup", changed]
    assert derived(names) == ["vanilla", "sd", "hf_generate", "hf_assisted", "hf_lookup", "short"]
    assert derived(["vanilla", "sd", "method"], "method=hf_generate") == ["vanilla", "sd", "hf_generate"]
    assert derived([{"same": "method=hf_generate"}, "hf_generate"]) == ["same"]


@pytest.mark.parametrize(
    "control", ["lossless", "draft_only", "accept_all", "random_gate", "coin_mix@0.4", "slim_only@0.2"]
)
def test_controls_need_a_method_of_parts(control: str) -> None:
    with pytest.raises(UserError, match=f"arm {control} is derived from the drafter.*hf_generate has none"):
        derived([control], "method=hf_generate")


def test_what_is_installed_beside_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With scikit-learn the library moves the confidence threshold while it decodes."""
    exact = LibraryMethod(name="a", assistant=NO_THRESHOLD)
    assert optional_packages([vanilla(), exact, LibraryMethod(name="b")]) == {}
    asked = LibraryMethod(name="c", assistant=AssistantModel())
    assert set(optional_packages([asked])) == {"scikit-learn"}
    monkeypatch.setattr(identity, "version", lambda name: f"{name} 1")
    assert optional_packages([asked]) == {"scikit-learn": "scikit-learn 1"}


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    typed = [
        "track=none", "limit=2", "task.max_new_tokens=12", "task.test_size=3", f"results_dir={tmp_path}",
        "method=hf_assisted", "arms=[vanilla,method,hf_generate]", "engine.dtype=float64",
    ]  # fmt: skip
    code, out, err = call(capsys, run_command.main, *typed)
    assert code == 0, err
    (path,) = (tmp_path / "runs").iterdir()
    folder = RunFolder(tmp_path, path.name)
    rows = {(row.arm, row.example_id): row for row in folder.read_rows()}
    for (arm, example), row in rows.items():
        assert row.error is None and row.token_ids == rows["vanilla", example].token_ids
        assert (row.unclocked > 0) == (arm != "vanilla") and not math.isnan(row.decode_seconds[0])
    stored = folder.read_run() or {}
    assert "scikit-learn" in stored["identity"]["optional"] and set(stored["memory"]) == {"vanilla"}
    assert stored["identity"]["arms"]["hf_assisted"]["assistant"]["num_assistant_tokens"] == 20
    assert "hf_generate" in out
    code, out, _ = call(capsys, run_command.main, *typed)
    assert code == 0 and "nothing was measured again" in out


def test_a_bench_has_them_anyway(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, bench_command.main, "methods=[hf_generate]", f"results_dir={tmp_path}")
    check_mistake(code, err, ["methods: hf_generate", "anyway"])
