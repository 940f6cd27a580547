"""The yamls of pairs: each composes, says what a reader needs, and its numbers follow from the models' shapes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import call, check_mistake
from hub_layout import make_model, put_on_hub, save_model
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.check import main
from experiments.checking.memory import DEVICES, Size, fit_cells, fits, needed, told_size
from experiments.config import CHECKOUT, make
from experiments.errors import CONF, UserError
from experiments.list import yamls
from experiments.loading import end_ids
from viasd.hub import is_hub_id
from viasd.models import About, Pair, load_tokenizer

NAMES = sorted(path.stem for path in (CONF / "pair").glob("*.yaml"))
REMOTE = [name for name in NAMES if name != "local" and not name.startswith("reference")]
# Of the models that hubs hold: hidden size, width of the mlp, layers, heads, heads of keys, size of a head, vocabulary,
# tied embeddings (their config.json).
SHAPES = {
    "google/gemma-2-2b-it": (2304, 9216, 26, 8, 4, 256, 256000, True),
    "google/gemma-2-9b-it": (3584, 14336, 42, 16, 8, 256, 256000, True),
    "google/gemma-2-27b-it": (4608, 36864, 46, 32, 16, 128, 256000, True),
    "meta-llama/Llama-2-7b-chat-hf": (4096, 11008, 32, 32, 32, 128, 32000, False),
    "meta-llama/Llama-2-13b-chat-hf": (5120, 13824, 40, 40, 40, 128, 32000, False),
    "meta-llama/Llama-2-70b-chat-hf": (8192, 28672, 80, 64, 8, 128, 32000, False),
    "meta-llama/Llama-3.1-8B-Instruct": (4096, 14336, 32, 32, 8, 128, 128256, False),
    "meta-llama/Llama-3.1-70B-Instruct": (8192, 28672, 80, 64, 8, 128, 128256, False),
    "meta-llama/Llama-3.2-1B-Instruct": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "Qwen/Qwen2.5-0.5B-Instruct": (896, 4864, 24, 14, 2, 64, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 18944, 28, 28, 4, 128, 152064, False),
    "Qwen/Qwen2.5-14B-Instruct": (5120, 13824, 48, 40, 8, 128, 152064, False),
    "Qwen/Qwen2.5-72B-Instruct": (8192, 29568, 80, 64, 8, 128, 152064, False),
    "Qwen/Qwen3-0.6B": (1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": (2048, 6144, 28, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-8B": (4096, 12288, 36, 32, 8, 128, 151936, False),
    "Qwen/Qwen3-32B": (5120, 25600, 64, 64, 8, 128, 151936, False),
    "lmsys/vicuna-7b-v1.3": (4096, 11008, 32, 32, 32, 128, 32000, False),
    "lmsys/vicuna-13b-v1.3": (5120, 13824, 40, 40, 40, 128, 32000, False),
    "double7/vicuna-68m": (768, 3072, 2, 12, 12, 64, 32000, False),
}


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(name: str, *more: str) -> Pair:
    pair = make(compose("check", [f"pair={name}", *more])["pair"], "pair")
    assert isinstance(pair, Pair)
    return pair


def size_of(name: str) -> Size:
    """All parameters, those of embeddings, cached numbers of a token, from a model's shape."""
    hidden, inner, layers, heads, kv, head, vocabulary, tied = SHAPES[name]
    attention = 2 * hidden * heads * head + 2 * hidden * kv * head
    if "Qwen2.5" in name:
        attention += heads * head + 2 * kv * head  # biases
    if "Qwen3" in name:
        attention += 2 * head  # norms of queries and keys
    norms = (4 if "gemma" in name else 2) * hidden
    embeddings = vocabulary * hidden * (1 if tied else 2)
    return Size(
        layers * (attention + 3 * hidden * inner + norms) + hidden + embeddings, embeddings, 2 * layers * kv * head
    )


def test_what_is_asked_for_is_there() -> None:
    assert len(REMOTE) == 14 and "local" in NAMES
    listed = dict(yamls("pair"))
    assert set(listed) == set(NAMES) and all(listed.values())
    sources = [path.read_text() for package in ("viasd", "baselines", "experiments") for path in
               (CHECKOUT / package).rglob("*.py")]  # fmt: skip
    assert not [name for name in [*REMOTE, *SHAPES] if any(name in source for source in sources)], "no list in Python"


@pytest.mark.parametrize("name", REMOTE)
def test_a_pair_of_the_hub(name: str) -> None:
    """It names every field, its models are hub ids in named revisions, and its numbers are those of their shapes."""
    pair = composed(name)
    told = yaml.safe_load((CONF / "pair" / f"{name}.yaml").read_text())
    assert {field.name for field in dataclasses.fields(Pair)} == set(told) - {"_target_"}
    assert {field.name for field in dataclasses.fields(About)} == set(told["about"])
    assert pair.name == name and set(pair.models) == {"target", "draft"} == set(pair.revisions)
    assert all(map(is_hub_id, [*pair.models.values(), *pair.heads.values()]))
    assert pair.about.licence and pair.about.skip_ratio and not pair.about.run and not pair.trust_remote_code
    for role, model in pair.models.items():
        assert told_size(pair, role) == size_of(model)
        assert pair.about.gated == model.startswith(("google/", "meta-llama/")), "two of these hubs' makers ask"
    check_docs(pair, name)


def check_docs(pair: Pair, name: str) -> None:
    """docs/pairs.md says of it what its yaml says."""
    text = (CHECKOUT / "docs" / "pairs.md").read_text()
    (line,) = re.findall(rf"^\| `{name}` .*$", text, re.M)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:5] == fit_cells(pair)
    assert ("yes" in cells[5]) == pair.about.gated
    assert set(re.findall(r"eagle\d", cells[6])) == set(pair.heads)


def test_sizes() -> None:
    one = Size(parameters=100, embeddings=20, cached=4)
    assert one.weights() == 200 and one.weights(4) == 400
    assert one.weights(2, "int8") == 20 * 2 + 80 and one.weights(2, "int4") == 20 * 2 + 80 * 0.5625
    assert one.caches(10) == 80 and needed([one, one], "int8", 10) == 120 + 200 + 160
    assert fits(90, 100, 0.1) and not fits(91, 100, 0.1)
    assert DEVICES == (24, 48, 80)


def test_a_local_pair_needs_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^pair\.models\.draft: no value; .* pair\.models\.draft=VALUE$"):
        composed("local", "pair.models.target=x")
    assert composed("local", "pair.models.target=x", "pair.models.draft=null").models == {"target": "x"}
    GlobalHydra.instance().clear()
    code, _, err = call(capsys, main, "pair=local", "pair.models.draft=x")
    check_mistake(code, err, ["pair.models.target", "no value"])


def check(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, dict[str, str], str]:
    """Exit code, the answers by their question, and all that was printed."""
    GlobalHydra.instance().clear()
    code, out, err = call(capsys, main, *typed)
    lines = [re.split(r"  +", line, maxsplit=2) for line in out.splitlines()]
    return code, {line[0]: line[1] for line in lines if len(line) == 3}, out + err


def test_check_of_the_reference_pair(capsys: pytest.CaptureFixture[str]) -> None:
    code, answers, text = check(capsys)
    assert code == 0, text
    asked = ("memory", "disk", "context", "tokenizers", "fused")
    assert {name: answers[name] for name in asked} == dict.fromkeys(asked, "yes")
    assert "1280 ids, shared" in text and "10,329,312" in text and "3 of 3 masks" in text
    code, answers, text = check(capsys, "tokens=600", "memory=0.0001")
    assert (code, answers["memory"], answers["context"]) == (2, "no", "no")
    assert "pair reference: memory, context: no" in text


def test_check_without_a_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by the yaml where nothing was ever downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, answers, text = check(capsys, "pair=llama31_1b_8b", "memory=24", "pair.masks=[/none.json]")
    assert (code, answers["memory"], answers["tokenizers"]) == (2, "yes", "unknown")
    assert answers["masks, heads"] == "no" and answers["target there"] == "unknown"
    assert "18.87 GB" in text and "HF_TOKEN" in text
    code, answers, _ = check(capsys, "pair=llama31_1b_8b", "memory=16")
    assert (code, answers["memory"]) == (2, "no")
    code, answers, _ = check(capsys, "pair=llama31_1b_8b", "memory=16", "pair.quantization.target=int4")
    assert (code, answers["memory"], answers["fused"]) == (0, "yes", "unknown")


def test_check_of_the_hub_s_cache_and_of_folders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters are counted without weights: a target of which only configuration and tokenizer are there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    target, draft = make_model("gemma2", seed=0, layers=3), make_model("llama", seed=0, layers=2)
    (save_model(tmp_path / "target", target) / "model.safetensors").unlink()
    put_on_hub(tmp_path / "hub", "tiny/target", tmp_path / "target")
    folder = save_model(tmp_path / "draft", draft)
    typed = ["pair=local", "pair.models.target=tiny/target", f"pair.models.draft={folder}", "engine.dtype=float64"]
    code, answers, text = check(capsys, *typed)
    assert code == 0, text
    assert answers["tokenizers"] == "yes" and answers["fused"] == "-" and "Gemma2DecoderLayer" in text
    for model in (target, draft):
        assert f"{sum(one.numel() for one in model.parameters()):,}" in text
    assert "about 0.0 GB to download" in text
    code, answers, _ = check(capsys, *typed, "engine.mode=fused")
    assert (code, answers["fused"]) == (2, "no")


@pytest.mark.parametrize(("told", "ends"), [(None, {1}), (7, {1, 7}), ([1, 9, 8], {1, 8, 9})])
def test_end_marks(tmp_path: Path, told: int | list[int] | None, ends: set[int]) -> None:
    """The tokenizer's, and those of the target's generation_config.json: chat models often end by another one."""
    tokenizer = load_tokenizer(composed("reference"))
    (tmp_path / "config.json").write_text("{}")
    if told is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
    assert end_ids(Pair(name="p", models={"target": str(tmp_path)}), tokenizer) == ends
