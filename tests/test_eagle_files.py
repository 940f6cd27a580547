"""Files of a head: which are read, from where, and what the error says when they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eagle_heads import CONFIG, FIRST_SIZES, TARGET, THIRD_CONFIG, THIRD_SIZES, make, publish
from safetensors.torch import save_file

from baselines.eagle.checkpoints import load_head, read_head
from baselines.eagle.fields import target_sizes
from viasd.models import PairError


def test_safetensors_come_first_and_pickles_last(tmp_path: Path) -> None:
    ours, theirs = make(THIRD_SIZES), {key: tensor + 1 for key, tensor in make(FIRST_SIZES).items()}
    folder = tmp_path / "head"
    name = publish(folder, THIRD_CONFIG, ours)
    torch.save(theirs, folder / "pytorch_model.bin")
    assert read_head(name, TARGET).format == "safeailab-3"
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    loaded = read_head(name, TARGET)
    assert loaded.format == "safeailab-1" and torch.equal(loaded.head.fc.weight, theirs["fc.weight"])


def test_shards(tmp_path: Path) -> None:
    tensors, folder = make(THIRD_SIZES), tmp_path / "head"
    name = publish(folder, THIRD_CONFIG, tensors)
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    parts = {"a.safetensors": keys[:6], "b.safetensors": keys[6:]}
    for file, part in parts.items():
        save_file({key: tensors[key] for key in part}, folder / file)
    index = {key: file for file, part in parts.items() for key in part}
    listed = folder / "model.safetensors.index.json"
    listed.write_text(json.dumps({"weight_map": index}))
    assert torch.equal(read_head(name, TARGET).head.fc.weight, tensors["fc.weight"])
    for changed, told in (
        ({**index, keys[0]: "b.safetensors"}, f"disagree on {keys[0]}"),
        ({**index, keys[0]: "../a.safetensors"}, r"names \.\./a.safetensors: accepted: files beside it"),
        ({**index, keys[0]: "c.safetensors"}, f"a.safetensors disagree on {keys[0]}"),
    ):
        listed.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(PairError, match=told):
            read_head(name, TARGET)


class Harmful:
    """Writes a file when a pickle that holds it is loaded with code allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.path, "ran"))


def test_pickles_run_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"fc.weight": Harmful(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PairError, match="its weights cannot be read: Weights only load failed"):
        load_head(str(tmp_path), TARGET)
    assert not mark.exists()
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(PairError, match=r"pytorch_model.bin holds no dict of tensors"):
        load_head(str(tmp_path), TARGET)


def test_mistakes_name_the_key_the_value_and_what_is_accepted(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for name, told in (
        (str(empty), "no config.json there"),
        (str(tmp_path / "missing"), "no config.json there"),
        ("viasd://reference/nothing", "no config.json there"),
        (str(bare), "no weights beside config.json"),
        (str(broken), "config.json cannot be read"),
        ("nobody/no-head", "no such folder with config.json, and revision main is not"),
        ("nobody/no-head@v2", "no such folder with config.json, and revision v2 is not"),
    ):
        with pytest.raises(PairError) as raised:
            load_head(name, TARGET, "mine")
        text = str(raised.value)
        assert text.startswith(f"pair.heads.mine={name}: {told}") and "\n" not in text
        assert "accepted: a folder, viasd://" in text and "hub id[@revision]" in text


def test_the_hub_is_asked_for_config_and_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None, list[str]]] = []
    tensors = make(FIRST_SIZES)

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        if "pytorch_model.bin" in allow_patterns:
            torch.save(tensors, tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert torch.equal(load_head("owner/head@v1", TARGET).fc.weight, tensors["fc.weight"])
    assert [(repo, revision) for repo, revision, _ in asked] == [("owner/head", "v1")] * 2
    assert asked[0][2] == ["config.json", "*.safetensors", "*.safetensors.index.json"]
    assert asked[1][2] == ["config.json", "pytorch_model.bin"]
    asked.clear()
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    load_head("owner/head", TARGET)
    assert [(repo, revision) for repo, revision, _ in asked] == [("owner/head", None)]


def test_notices_become_warnings(tmp_path: Path) -> None:
    name = publish(tmp_path / "head", {**THIRD_CONFIG, "num_hidden_layers": 40}, make(THIRD_SIZES))
    with pytest.warns(UserWarning, match=f"pair.heads.eagle3={name}: num_hidden_layers=40"):
        load_head(name, TARGET)


def test_sizes_of_a_target() -> None:
    text = SimpleNamespace(hidden_size=16, vocab_size=40, num_hidden_layers=12)
    assert target_sizes(text) == target_sizes(SimpleNamespace(text_config=text, hidden_size=7)) == TARGET
