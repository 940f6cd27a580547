"""Law errors: closed forms on rows made by hand, rows that are stored once, quantiles, and the command itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, check_mistake
from conftest import VOCABULARY, ModelFactory
from torch import Tensor

from experiments.arms import vanilla
from experiments.law_error import main
from experiments.laws import errors as errors_module
from experiments.laws.errors import MEASURES, Against, Pairs, chunks, errors, join, rule_errors
from experiments.laws.rows import RowStore, compute_rows, fill
from experiments.laws.summary import at_share, in_json, quantiles, summarize, task_numbers
from experiments.probing.setup import Prompt
from experiments.probing.summary import MEAN
from experiments.statistics import Resamples
from viasd.decode import Decode
from viasd.engine import Engine
from viasd.rules import Lossless, RowPairs, RuleRows
from viasd.sampling import Sampling, SeededDraws
from viasd.spec import spec
from viasd.verification import SlimView

WARM = Sampling(temperature=1.0)
AGAINST = Against(WARM, lenience=0.5, rare=0.15)
TARGET = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
DRAFT = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.2, 0.6]], dtype=torch.float64)
SLIM = torch.tensor([[0.4, 0.4, 0.2], [0.5, 0.5, 0.0]], dtype=torch.float64)


@spec
class Halfway:
    """A law between both rows (the test's own rule)."""

    share: float = 0.5

    @property
    def lossless(self) -> bool:
        return False

    def rows(self, pairs: RowPairs) -> RuleRows:
        mixed = self.share * pairs.draft + (1 - self.share) * pairs.judge[:-1]
        return RuleRows(mixed, mixed, pairs.judge[-1])


@spec
class Stated:
    """Rows that are not the law, which is stated apart."""

    @property
    def lossless(self) -> bool:
        return False

    def rows(self, pairs: RowPairs) -> RuleRows:
        assert pairs.tokens.shape == pairs.draft.shape[:1] and pairs.judge.shape[0] == pairs.draft.shape[0] + 1
        return RuleRows(pairs.judge[:-1] / 2, pairs.judge[:-1], pairs.judge[-1], law=pairs.draft)


def pairs(judge: str = "target") -> Pairs:
    rows = {"target": TARGET.log(), "draft": DRAFT.log(), "slim": SLIM.log()}
    return Pairs.of(rows, judge, WARM, SeededDraws(0, "x"))


def near(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# --- closed forms -------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    found = rule_errors(Halfway(), pairs(), AGAINST)
    law = (TARGET[0] + DRAFT[0]) / 2  # [0.35, 0.35, 0.3], the second row is the target's
    near(found["tv"], [0.2, 0.0])
    near(found["kl"], [float((TARGET[0] * (TARGET[0] / law).log()).sum()), 0.0])
    near(found["overshoot"], [0.3 - 0.1 / 0.5, 0.0])
    near(found["rare_mass"], [0.3, 0.0])
    near(found["acceptance"], [0.2 + 0.3 + 0.3, 1.0])


def test_the_lossless_rule_has_no_error_and_unread_drafts_have_all() -> None:
    found = rule_errors(Lossless(), pairs(), AGAINST)
    for name in ("tv", "kl", "overshoot"):
        near(found[name], [0.0, 0.0])
    near(found["acceptance"], [0.2 + 0.3 + 0.1, 1.0])
    near(found["rare_mass"], [0.1, 0.0])
    unread = rule_errors(None, pairs(), AGAINST)
    near(unread["tv"], [0.4, 0.0])
    near(unread["acceptance"], [1.0, 1.0])
    near(unread["overshoot"], [0.5 - 0.1 / 0.5, 0.0])
    one = rule_errors(None, pairs(), Against(WARM, lenience=1.0, rare=0.15))
    near(one["overshoot"], [0.4, 0.0])  # at l = 1 it is the total variation


def test_a_stated_law_counts_and_acceptance_is_of_the_rows() -> None:
    found = rule_errors(Stated(), pairs(), AGAINST)
    near(found["tv"], [0.4, 0.0])
    near(found["acceptance"], [0.2 + 0.2 + 0.05, 0.1 + 0.1 + 0.3])


def test_a_slim_judge_is_held_against_the_target() -> None:
    found = rule_errors(Lossless(), pairs("slim"), AGAINST)
    near(found["tv"], [0.1, 0.6])
    assert found["kl"][0] > 0 and found["kl"][1] == torch.inf  # it lacks a token of the target
    near(found["acceptance"], [0.2 + 0.3 + 0.2, 0.4])


def test_tokens_that_the_target_lacks_cost_no_divergence() -> None:
    target, law = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.5, 0.5]]).double()
    near(errors(law, target, torch.ones(1), AGAINST)["kl"], [float(np.log(2))])


def test_rows_are_processed_as_they_are_sampled() -> None:
    cold = Sampling(temperature=0.5, top_k=2)
    rows = {"target": TARGET.log(), "draft": DRAFT.log()}
    found = rule_errors(None, Pairs.of(rows, "target", cold, SeededDraws(0, "x")), Against(cold, 0.5, 0.15))
    target, draft = torch.tensor([25.0, 16.0, 0.0]) / 41, torch.tensor([0.0, 9.0, 25.0]) / 34
    assert found["tv"][0] == pytest.approx(float((target - draft).abs().sum() / 2), abs=1e-6)
    assert found["kl"][0] == torch.inf


def test_chunks_of_a_large_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {role: torch.randn(7, 5, generator=generator, dtype=torch.float64) for role in ("target", "draft")}
    whole = rule_errors(Halfway(), Pairs.of(rows, "target", WARM, SeededDraws(0, "x")), AGAINST)
    monkeypatch.setattr(errors_module, "CHUNK", 10)
    assert [len(one["draft"]) for one in chunks(rows)] == [2, 2, 2, 1]
    draws = SeededDraws(0, "x")
    parts = [rule_errors(Halfway(), Pairs.of(one, "target", WARM, draws), AGAINST) for one in chunks(rows)]
    for name in MEASURES:
        torch.testing.assert_close(join(parts)[name], whole[name])


# --- rows ---------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_fresh_passes(tiny: ModelFactory, variant: ModelFactory, tmp_path: Path) -> None:
    """And each prompt is computed once."""
    target = tiny("llama")
    engine = Engine({"target": target, "draft": variant(target, "noisy")}, VOCABULARY, 64)
    decoder, decode = vanilla().open(engine), Decode(WARM, 12)
    prompts = [Prompt("a", [5, 9, 2], decode), Prompt("b", [7, 1], decode)]
    slim, computed = SlimView(mask=[0, 1, 2, 3]), []

    def compute(prompt: Prompt) -> dict[str, Tensor]:
        computed.append(prompt)
        return compute_rows(engine, prompt, decoder, "draft", slim, seed=3)

    store = RowStore(tmp_path, prompts)
    assert store.missing == [0, 1] and [path.name for path in store.paths] == ["a_0.safetensors", "b_1.safetensors"]
    assert len(list(fill(store, prompts, compute))) == 2 and store.missing == []
    store.paths[0].unlink()
    assert len(list(fill(store, prompts, compute))) == 1 and computed == [prompts[0], prompts[1], prompts[0]]
    rows = store.read(1, torch.device("cpu"))
    output = decoder.generate([7, 1], decode, SeededDraws(3, "law error")).token_ids
    ids = torch.tensor([[7, 1, *output]])
    for role, model in (("target", target), ("draft", engine.models["draft"]), ("slim", target)):
        torch.testing.assert_close(rows[role], model(ids).logits[0, 1:-1], rtol=1e-5, atol=1e-5)
    assert rows["target"].shape == (12, VOCABULARY)
    assert not list(tmp_path.glob("*.tmp"))


# --- numbers ------------------------------------------------------------------------------------------------------


def fake(tv: list[float], kl: list[float] | None = None) -> dict[str, Tensor]:
    """Errors of one prompt."""
    values = torch.tensor(tv, dtype=torch.float64)
    return {name: values if name != "kl" or kl is None else torch.tensor(kl, dtype=torch.float64) for name in MEASURES}


def test_quantiles_are_values_and_follow_the_resamples() -> None:
    values = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    owner = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    resamples = Resamples.draw(2, seed=0, replicates=50)
    found = quantiles(values, owner, resamples)
    assert (found["p90"].value, found["p99"].value) == (9.0, 10.0)
    for weights, p90 in zip(resamples.weights, found["p90"].replicates, strict=True):
        repeated = np.repeat(values, weights[owner].astype(int))
        assert p90 == np.percentile(repeated, 90, method="inverted_cdf")
    assert at_share(np.ones((1, 3)), np.array([1.0, 2.0, np.inf]), 0.99)[0] == np.inf


def test_means_are_over_positions_and_infinite_ones_are_counted_apart() -> None:
    prompts = [fake([0.1, 0.2, 0.3], [0.5, np.inf, 0.1]), fake([0.6])]
    told = task_numbers(prompts, Resamples.draw(2, seed=0, replicates=20))
    assert told["tv"].value == pytest.approx(0.3)
    assert told["kl"].value == pytest.approx((0.5 + 0.1 + 0.6) / 3) and told["kl_infinite"].value == 0.25
    assert in_json(told["kl_p99"])["value"] == "inf"  # type: ignore[index]
    nowhere = task_numbers([fake([0.1], [np.inf])], Resamples.draw(1))
    assert in_json(nowhere["kl"]) is None and in_json(nowhere["tv"]) == pytest.approx(0.1)


def test_the_mean_over_tasks_comes_first_and_is_unweighted() -> None:
    found = {("rule", "target"): [fake([0.2, 0.2]), fake([0.2]), fake([0.4]), fake([0.6])]}
    entries = summarize(["a", "a", "b", "b"], found, seed=0)
    assert [entry["task"] for entry in entries] == [MEAN, "a", "b"] and [entry["n"] for entry in entries] == [5, 3, 2]
    assert entries[0]["tv"]["value"] == pytest.approx((0.2 + 0.5) / 2)
    assert entries[2]["tv"]["low"] == pytest.approx(0.4) and entries[2]["tv"]["high"] == pytest.approx(0.6)


# --- the command --------------------------------------------------------------------------------------------------

SMALL = ["tasks=[reasoning,qa]", "prompts=2", "max_new_tokens=16"]


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *SMALL, f"results_dir={results}", *overrides)


def stored(results: Path) -> list[dict[str, Any]]:
    """What was written, the newest last."""
    paths = sorted(results.glob("law_errors/*/law_error.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["rules=[lossless]", 'slim="view skip_ratio=0.6"']
    code, out, err = run(capsys, tmp_path, *asked)
    assert code == 0, err
    (content,) = stored(tmp_path)
    entries = {(one["task"], one["rule"], one["judge"]): one for one in content["entries"]}
    assert len(entries) == 3 * 3 and entries[MEAN, "lossless", "target"]["tv"]["value"] == 0
    slim, unread = entries[MEAN, "lossless", "slim"], entries[MEAN, "draft_only", "target"]
    assert (
        0 < slim["tv"]["value"] < unread["tv"]["value"] and slim["judge"] in out and unread["acceptance"]["value"] == 1
    )
    exact = entries["qa", "lossless", "target"]
    assert exact["acceptance"]["value"] == pytest.approx(1 - entries["qa", "draft_only", "target"]["tv"]["value"])
    (folder,) = [path.parent for path in tmp_path.glob("law_errors/*/law_error.csv")]
    with (folder / "law_error.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(one["task"], one["rule"], one["judge"]) for one in lines} == set(entries)
    told = (folder / "law_error.md").read_text()
    assert "| lossless | slim |" in told and "exact: lossless" in told and "temperature 1" in told

    def refuse(*_: object) -> None:
        raise AssertionError("all rows are stored")

    monkeypatch.setattr("experiments.laws.work.load_engine", refuse)
    code, out, err = run(capsys, tmp_path, *asked, "lenience=1")
    assert code == 0 and "all rows are stored" in out, err
    again = {(one["task"], one["rule"], one["judge"]): one for one in stored(tmp_path)[-1]["entries"]}
    for key, one in again.items():
        assert one["tv"] == entries[key]["tv"]
        assert one["overshoot"]["value"] == pytest.approx(one["tv"]["value"], abs=1e-9)


def test_temperature_zero_is_told_to_say_little(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, "decode=greedy", "rules=[lossless]", "tasks=[qa]")
    assert code == 0 and "note: temperature 0: rows are one-hot" in out, err
    (content,) = stored(tmp_path)
    (unread,) = [one for one in content["entries"] if one["rule"] == "draft_only"]
    assert unread["tv"]["value"] == unread["kl_infinite"]["value"] > 0


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["rules=[lossles]"], ["rules.lossles:", "did you mean 'lossless'"]),
        (['rules=[{a: "lossless x=1"}]'], ["rules.a.x: no such field in Lossless"]),
        (['rules=[{l_0.5: "lenience l=2"}]'], ["rules.l_0.5.l=2", "less than or equal to 1"]),
        (["rules=[{a: lossless x}]"], ["rules.a:", "'x'", "KEY=VALUE"]),
        (["rules=[lossless,{lossless: lossless}]"], ["two are named 'lossless'"]),
        (["rules=[]"], ["rules=[]", "at least 1"]),
        (["slim=veiw"], ["slim: 'veiw'", "'view'"]),
        (["tasks=[reasonin]"], ["tasks: 'reasonin'", "'reasoning'"]),
        (["split=test"], ["split='test'", "'calibration'"]),
        (["lenience=0"], ["lenience=0", "greater than 0"]),
        (["drafter=tiny"], ["role 'tiny'", "draft"]),
        (["max_new_tokens=600"], ["max_new_tokens=600", "at most"]),
        (["method=sd"], ["method"]),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: list[str], named: list[str]
) -> None:
    code, _, err = run(capsys, tmp_path, *typed)
    check_mistake(code, err, named)
    assert not list(tmp_path.rglob("*.json"))
