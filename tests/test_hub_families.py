"""Tiny random models of eight families, in hub layout and as folders: they load both ways, and sd is lossless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import call
from hub_layout import make_model, put_on_hub, save_model
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.asking.work import ask
from experiments.config import CHECKOUT
from experiments.identity import model_hash
from experiments.run import main
from viasd.models import Pair

EIGHT = ("llama", "gemma2", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox", "olmo2")
PROMPT = "Ann has 3 apples and finds 4 more."
NEW_TOKENS = 14


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("method", ["sd", "self_sd"])
@pytest.mark.parametrize("family", EIGHT)
def test_by_id_and_by_path_and_lossless(family: str, method: str, hub: Path, tmp_path: Path) -> None:
    """The target by its hub id, the draft model by its path: a lossless method writes what the library does."""
    target = make_model(family, seed=0, layers=4)
    folder = save_model(tmp_path / "target", target)
    commit = put_on_hub(hub, f"tiny/{family}-target", folder)
    draft = save_model(tmp_path / "draft", make_model(family, seed=0, layers=2))
    by_id = Pair(name="p", models={"target": f"tiny/{family}-target"})
    assert by_id.path("target").name == commit
    assert model_hash(by_id.path("target")) == model_hash(folder)
    asked = ask(
        compose(
            "ask",
            [
                f"method={method}",
                "pair=local",
                f"pair.models.target=tiny/{family}-target",
                f"pair.models.draft={draft}",
                "engine.dtype=float64",
                "engine.threads=1",
                f"max_new_tokens={NEW_TOKENS}",
                "compare=true",
                *(["method.drafter.slim.skip_ratio=0.5"] if method == "self_sd" else []),
                f"results_dir={tmp_path / 'results'}",
            ],
        ),
        PROMPT,
    )
    speculative, vanilla = (answer.generation for answer in asked.answers)
    ids = asked.tokenizer(PROMPT).input_ids
    expected = target.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=1)
    assert speculative.token_ids == vanilla.token_ids == expected[0, len(ids) :].tolist()
    assert len(set(vanilla.token_ids)) > 2, "a constant output proves little"
    assert sum(one.judged for one in speculative.rounds) > 0


def test_through_the_command(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both models by hub id through `experiments.run`, which records the commits; via_sd runs, too."""
    for role, layers in (("target", 4), ("draft", 2)):
        put_on_hub(hub, f"tiny/{role}", save_model(tmp_path / role, make_model("llama", seed=0, layers=layers)))
    code, _, err = call(
        capsys,
        main,
        "pair=local",
        "pair.models.target=tiny/target",
        "pair.models.draft=tiny/draft",
        "engine.dtype=float64",
        "engine.threads=1",
        "track=none",
        "limit=1",
        "task.max_new_tokens=10",
        "task.test_size=2",
        "task.too_long=truncate_left",
        f"results_dir={tmp_path / 'results'}",
    )
    assert code == 0, err
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    rows = {row["arm"]: row for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())}
    assert rows["sd"]["token_ids"] == rows["vanilla"]["token_ids"]
    run = json.loads((folder / "run.json").read_text())
    assert run["snapshots"]["target"].startswith("tiny/target@") and len(run["snapshots"]["draft"]) == 51
