"""Searching for masks: the log of trials, the replays that price a mask, the command, and what finds its result."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory

import experiments.masking as masking
from experiments.arms import sd, vanilla
from experiments.errors import UserError
from experiments.masking import Replays, TrialLog, curves_of, read_header
from experiments.resolve import resolve_mask, searched_masks
from viasd.dimr import Memory, Plan, Space, Trial, run_search
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Branches, Pair, PairError, read_mask
from viasd.routing import RatioGate
from viasd.scoring import Scoring, Text, measure, read_text
from viasd.verification import SlimView

ROOT = Path(__file__).resolve().parents[1]
COSTS = {"target": {"1": 10.0, "64": 10.0}, "slim": {"1": 4.0, "64": 4.0}, "draft": {"1": 1.0, "64": 1.0}}
SPACE = Space(10, 0.3)
PLAN = Plan(trials=7, every=0, seed=3)


# --- log ----------------------------------------------------------------------------------------------------------


def score(mask: tuple[int, ...]) -> dict[str, float]:
    return {"cost": 1 / (1 + sum(mask))}


def test_a_killed_search_goes_on_from_its_log(tmp_path: Path) -> None:
    """Whatever the kill left: whole lines, half a line, only half of the first one."""
    header = {"ratio": 0.3, "masks": (1, 2), "name": "größer"}
    path = tmp_path / "deep" / "trials.jsonl"
    whole = run_search(SPACE, PLAN, "cost", score, TrialLog(path, header))
    content = path.read_bytes()
    assert whole == run_search(SPACE, PLAN, "cost", score, Memory([])) and len(content.splitlines()) == 8
    assert TrialLog(path, header).trials == whole
    lines = content.splitlines(keepends=True)
    for left in (content, b"".join(lines[:4]), b"".join(lines[:4]) + lines[4][:30], lines[0], lines[0][:5], b""):
        path.write_bytes(left)
        assert run_search(SPACE, PLAN, "cost", score, TrialLog(path, header)) == whole
        assert path.read_bytes() == content


def test_a_log_of_another_search(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    TrialLog(path, {"ratio": 0.3, "seed": 0, "cache": "shared"}).append(Trial((1,), "even", {"cost": 1.0}))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"log=.*: holds a search with another ratio, window; accepted: another --log"):
        TrialLog(path, {"ratio": 0.4, "seed": 0, "cache": "shared", "window": 3})
    assert path.read_bytes() == before
    assert read_header(path) == {"ratio": 0.3, "seed": 0, "cache": "shared"}
    assert read_header(tmp_path / "nothing") is None


# --- measures -----------------------------------------------------------------------------------------------------


def via_sd() -> Method:
    gate = RatioGate()
    return Method(
        name="via_sd",
        drafter=DraftModel(),
        stop=FixedLength(length=3),
        verifier=Hierarchical(gate=gate, slim=SlimView()),
    )


@pytest.fixture(scope="module")
def setup(tiny: ModelFactory, variant: ModelFactory) -> tuple[Engine, list[Text]]:
    """A tiny pair and two texts that the target wrote."""
    from viasd.decode import Decode
    from viasd.sampling import Sampling, SeededDraws

    target = tiny("llama")
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 96)
    decoder, texts = vanilla().open(engine), []
    for prompt in ([3, 4, 5, 6], [7, 8, 9]):
        output = decoder.generate(prompt, Decode(Sampling(), 40), SeededDraws(0, "a")).token_ids
        texts.append(read_text(engine, prompt, output))
    return engine, texts


def test_measures(setup: tuple[Engine, list[Text]]) -> None:
    engine, texts = setup
    same = measure(engine, texts, [0, 1, 2, 3], Scoring())
    assert same["agreement"] == 1 and max(same["cost"], same["kl"], same["tv"]) < 1e-9
    shared, separate, short = (
        measure(engine, texts, [0, 2, 3], scoring)
        for scoring in (Scoring(), Scoring(cache="separate"), Scoring(window=1))
    )
    assert 0 < shared["agreement"] < 1 and 0 < shared["tv"] < 1 and shared["kl"] > 2 * shared["tv"] ** 2
    assert shared != separate != short
    assert measure(engine, texts, [0, 2, 3], Scoring(alpha=0.5, beta=0.5))["cost"] < shared["cost"]
    one = measure(engine, texts[:1], [0, 2, 3], Scoring())
    other = measure(engine, texts[1:], [0, 2, 3], Scoring())
    assert shared["cost"] == pytest.approx((one["cost"] + other["cost"]) / 2)  # both have 40 tokens
    told = measure(engine, texts, [0, 2, 3], Scoring(), lambda rows: {"shapes": sum(row.shape[0] for row in rows)})
    assert told == {**shared, "shapes": 80}


def test_replays(setup: tuple[Engine, list[Text]]) -> None:
    """A slim view that is the target, and one that is the draft model, have known prices."""
    engine, texts = setup
    replays = Replays(engine, texts, via_sd(), 0.98, curves_of(COSTS))
    perfect = replays([text.rows for text in texts])
    exact = replays.worth(replays._settings[-1], [text.rows for text in texts])  # slim_only
    assert exact.fidelity == 1 and perfect["fidelity"] <= 1
    assert perfect["tokens_per_second"] >= 1 / exact.seconds_per_token > 1 / replays.sd.seconds_per_token
    blind = replays([text.rows["draft"] for text in replays._texts])
    assert blind["rejection"] == 0 and blind["fidelity"] < 0.98  # all that it sees it keeps
    assert replays.sd.fidelity == 1
    strict = replays([-text.rows for text in texts])  # refuses everything: nothing is faster than sd
    assert strict["tokens_per_second"] <= 1 / replays.sd.seconds_per_token


def test_what_lacks_fidelity_is_slower_than_sd(setup: tuple[Engine, list[Text]]) -> None:
    engine, texts = setup
    rows = [torch.roll(text.rows, 1, dims=1) for text in texts]
    replays = Replays(engine, texts, via_sd(), 1.0, curves_of(COSTS))
    replays._settings = replays._settings[-1:]  # slim_only
    worth, own = replays.worth(replays._settings[0], rows), replays(rows)
    assert worth.fidelity < 1
    assert own["tokens_per_second"] == pytest.approx(worth.fidelity / replays.sd.seconds_per_token)


def test_methods_without_a_slim_view(setup: tuple[Engine, list[Text]]) -> None:
    engine, texts = setup
    with pytest.raises(UserError, match=r"method=sd: accepted: a draft model under a hierarchical verifier"):
        Replays(engine, texts, sd(via_sd()), 0.98, curves_of(COSTS))


# --- the command, and what finds its result -----------------------------------------------------------------------


def search(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> dict[str, Any]:
    """Run the script on one prompt of the embedded pair."""
    words = ["--tasks", "qa", "--prompts", "1", "--max-new-tokens", "24", "--every", "0", "--trials", "4"]
    monkeypatch.setattr(sys, "argv", ["search_mask.py", *words, "--out", str(out), *more])
    monkeypatch.setattr(masking, "calibrate", lambda *_: COSTS)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    runpy.run_path(str(ROOT / "scripts" / "search_mask.py"), run_name="__main__")
    return json.loads(out.read_text())


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in result.items() if name not in ("seconds", "seconds_of", "break_even_tokens")}


def test_the_command_goes_on_after_a_kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mask.json"
    whole = search(monkeypatch, out)
    log = tmp_path / "mask.trials.jsonl"
    trials = log.read_bytes().splitlines(keepends=True)
    assert len(trials) == 5 and whole["trials"] == 4 and len(whole["kept"]) == 9
    assert whole["measures"]["cost"] <= whole["even"]["cost"] and whole["seconds"] > 0
    assert whole["predicted"]["seconds_per_token"].keys() == {"mask", "even", "sd"}
    log.write_bytes(b"".join(trials[:3]) + trials[3][:20])
    assert untimed(search(monkeypatch, out)) == untimed(whole)
    with pytest.raises(UserError, match="holds a search with another skip_ratio"):
        search(monkeypatch, out, "--ratio", "0.6")


def test_auto_finds_the_result_and_another_model_refuses_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mask.json"
    result = search(monkeypatch, out, "--ratio", "0.25", "--objective", "rejection", "--patience", "2")
    models = {"target": str(ROOT / "viasd" / "reference" / "target")}
    pair = Pair(name="own", models=models, masks=[str(out)])
    assert resolve_mask(SlimView(skip_ratio=0.25), pair) == (result["kept"], None)
    assert resolve_mask(SlimView(skip_ratio=0.5), pair)[1] is not None  # another ratio: evenly, with a notice
    assert {"rejection", "cost"} <= result["measures"].keys()
    with pytest.raises(PairError, match=f"made for the model {result['target_hash']}, this target is other"):
        read_mask(str(out), "other", 16)


def test_branches_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mask.json"
    kept = search(monkeypatch, out, "--unit", "branch", "--cache", "separate", "--patience", "1")["kept"]
    branches = Branches(**{name: tuple(one) for name, one in kept.items()})
    assert len(branches.attention) + len(branches.mlp) == 32 - 14
    pair = Pair(name="own", models={"target": str(ROOT / "viasd" / "reference" / "target")}, masks=[str(out)])
    assert resolve_mask(SlimView(mask=str(out)), pair) == (branches, None)
    assert resolve_mask(SlimView(mask=branches), pair) == (branches, None)
    assert resolve_mask(SlimView(), pair)[1] is not None  # auto: no mask of layers
    with pytest.raises(PairError, match=r"mask=a99 m0: accepted: ascending layer numbers from 0 to 15"):
        resolve_mask(SlimView(mask=Branches(attention=(99,), mlp=(0,))), pair)


def test_masks_of_the_runs_cache_mode_come_first(tmp_path: Path) -> None:
    names = []
    for name, content in (("old", {}), ("separate", {"cache": "separate"}), ("shared", {"cache": "shared"})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"kept": [0, 1], "target_hash": "abc", **content}))
        names.append(str(path))
    stranger = tmp_path / "stranger.json"
    stranger.write_text(json.dumps({"kept": [0, 1], "target_hash": "xyz", "cache": "shared"}))
    pair = Pair(name="own", models={}, masks=[str(stranger), *names])
    assert searched_masks(pair, "abc", "shared") == [names[2], names[0], names[1]]
    assert searched_masks(pair, "abc", "separate") == [names[1], names[0], names[2]]
    assert searched_masks(pair, "none", "shared") == []


def test_regret_needs_all_masks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--regret: accepted: with --search enumerate"):
        search(monkeypatch, tmp_path / "mask.json", "--regret")


def test_regret_of_every_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    words = ["--ratio", "0.06", "--search", "enumerate", "--regret", "--regret-seeds", "1", "--every", "2"]
    result = search(monkeypatch, tmp_path / "mask.json", *words)
    assert result["trials"] == 14  # one of the 14 layers between the ends
    told = result["regret"]["searches"]["cost"]
    assert told["optimum"]["value"] == result["measures"]["cost"] and told["optimum"]["masks"] == 14
    assert told.keys() == {"optimum", "even", "one random mask", "random", "bayesian every 2", "bayesian every 1"}
    assert all(0 <= one["of_span"] <= 1 for name, one in told.items() if name != "optimum")
    assert result["regret"]["ranks"]["cost"]["cost"] == 0
