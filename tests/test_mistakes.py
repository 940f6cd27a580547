"""The catalog of what users type wrongly: one line that names the key, the value and what is accepted; exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import call

from experiments.run import main

REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"
SMALL = ["track=none", "limit=2", "task.max_new_tokens=12", "task.test_size=6"]
# What is typed: what the line must name.
TYPED = {
    # names that are not there
    "method=vai_sd": ["method=vai_sd", "'via_sd'", "vanilla"],
    "method=slim_only": ["method=slim_only", "arms="],
    "task=resoning": ["task=resoning", "'reasoning'"],
    "pair=nope": ["pair=nope", "reference"],
    "decode=greed": ["decode=greed", "'greedy'"],
    "method/stop=fxed": ["method/stop=fxed", "'fixed'"],
    "experiment=frontir": ["experiment=frontir", "'frontier'"],
    "arms=[vanila]": ["vanila", "'vanilla'"],
    "arms=[acept_all]": ["acept_all", "'accept_all'"],
    "method.drafter.role=tiny": ["role 'tiny'", "draft, mid, target"],
    "colour=red": ["colour", "no such key"],
    "+method.verifier.slim.skp=2": ["method.verifier.slim.skp", "no such field"],
    "task=null": ["null", "task=reasoning"],
    # values of the wrong kind
    "seed=abc": ["seed='abc'", "integer"],
    "limit=few": ["limit='few'", "integer"],
    "method.stop.length=five": ["method.stop.length='five'", "integer"],
    "debug=maybe": ["debug='maybe'", "boolean"],
    "decode.temperature=warm": ["decode.temperature='warm'", "number"],
    "engine.dtype=float8": ["engine.dtype='float8'", "'float32'"],
    "task.too_long=cut": ["task.too_long='cut'", "'truncate_left'"],
    "task.wording=new": ["task.wording='new'", "'unseen'"],
    # values out of range
    "limit=-3": ["limit=-3", "greater than or equal to 1"],
    "seed=-1": ["seed=-1", "greater than or equal to 0"],
    "repeats=0": ["repeats=0", "greater than or equal to 1"],
    "engine.threads=0": ["engine.threads=0", "greater than or equal to 1"],
    "decode.temperature=-1": ["decode.temperature=-1", "greater than or equal to 0"],
    "decode.top_p=1.5": ["decode.top_p=1.5", "less than or equal to 1"],
    "method.verifier.slim.skip_ratio=0.95": ["skip_ratio=0.95", "at most"],
    "method.stop.length=65": ["method.stop.length=65", "less than or equal to 64"],
    "task.level=4": ["task.level=4", "less than or equal to 3"],
    "task=jsonl": ["task jsonl", "task.path=FILE"],
    "task=jsonl task.path=/nope.jsonl": ["task.path=/nope.jsonl", "no such file"],
    "task=jsonl task.metric=blue": ["task", "metric=blue", "'bleu'", "rouge"],
    "task=spec_bench task.group=rags": ["group=rags", "'rag'", "null for all"],
    "task=gsm8k task.source.train=test": ["task", "source: split 'test'"],
    "task.max_new_tokens=1000": ["task.max_new_tokens=1000", "512", "at most", "truncate_left"],
    "arms=[coin_mix@2]": ["coin_mix@2", "0 to 1"],
    "arms=[]": ["arms=[]", "at least 1"],
    # values that do not go together
    "method.verifier.gate.accept_ratio=0.2": ["method.verifier.gate", "accept_ratio=0.2", "escalate <= accept"],
    "method.verifier.slim.mask=[0,3,2]": ["mask=[0, 3, 2]", "ascending"],
    "arms=[{fast: length}]": ["fast", "'length'", "KEY=VALUE"],
    "method=sd arms=[accept_all]": ["accept_all", "hierarchical", "sd"],
    "method=eagle3 method.drafter.head=eagle9": ["role 'eagle9'", "eagle3 (head)"],
    "method=eagle3 pair.heads.eagle3=/nowhere": ["pair.heads.eagle3=/nowhere", "config.json"],
    "method=eagle1 method.verifier.acceptance=iid": ["acceptance=iid", "without_replacement"],
    "method=eagle3 method/verifier=lossless": ["RuleVerifier reads chains", "drafter.tree=null"],
    "method=sd_tree method/stop=confidence": ["ConfidenceLength", "drafter.tree=null"],
    "method=eagle3 arms=[draft_only]": ["draft_only", "reads chains"],
    "method=eagle1 method.drafter.tree.paths=[[1]]": ["method.drafter.tree", "[0]"],
    "method=bild decode=sample": ["arm bild", "decode.temperature=1", "decode=greedy", "cascade_bild"],
    # files and places
    "method.verifier.slim.mask=/nope.json": ["mask=/nope.json", "search_mask.py"],
    "pair.masks=[/no/such.json]": ["pair.masks", "/no/such.json"],
    "pair.models.target=/nope": ["pair.models.target=/nope", "config.json"],
    "pair.models.target=org/none": ["pair.models.target=org/none", "cache", "HF_HUB_OFFLINE=0", "folder"],
    "+pair.revisions.target=v9 pair.models.target=org/none": ["revision v9"],
    "pair=local pair.models.target=/nope": ["pair.models.draft", "no value", "pair.models.draft=VALUE"],
    "+pair.quantization.target=int2": ["pair.quantization.target='int2'", "'int4'"],
    "+pair.device_map=balanced": ["pair.device_map='balanced'", "'auto'"],
    "pair.chat=yes": ["pair.chat", "'plain'"],
    "results_dir=/dev/null/x": ["results_dir=/dev/null/x", "writable"],
    "method.stop._target_=os.system": ["method.stop._target_=os.system", "viasd", "dataclasses"],
    "+method.stop.rules=[{_target_: os.getcwd}]": ["method.stop.rules.0._target_=os.getcwd", "dataclasses"],
    "method.stop._target_=experiments.errors.sys.exit": ["_target_=experiments.errors.sys.exit", "dataclasses"],
    "track._target_=viasd.sampling.Sampling": ["track._target_=viasd.sampling.Sampling", "Tracking"],
    "method.stop._target_=no_module.Stop": ["method.stop._target_=no_module.Stop", "imported", "--config-dir"],
}


def told(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> str:
    """The one line that a mistaken call ends in; nothing is measured."""
    code, _, err = call(capsys, main, *SMALL, f"results_dir={results}", *overrides)
    (line,) = err.strip().splitlines()
    assert code == 2 and line.startswith("error: ")
    assert not list(results.glob("runs/*/rows.jsonl"))
    return line


@pytest.mark.parametrize("typed", TYPED)
def test_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str) -> None:
    line = told(capsys, tmp_path, *typed.split(" ") if "{" not in typed else [typed])
    for part in TYPED[typed]:
        assert part in line, line


def not_a_model(folder: Path) -> None:
    """A folder with other things in it."""
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")


def truncated(folder: Path) -> None:
    """A download that broke off."""
    shutil.copytree(REFERENCE / "draft", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])


def other_tokenizer(folder: Path) -> None:
    """Two words change places."""
    shutil.copytree(REFERENCE / "draft", folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    one, two = sorted(words, key=lambda word: words[word])[600:602]
    words[one], words[two] = words[two], words[one]
    path.write_text(json.dumps(content))


def no_weights(folder: Path) -> None:
    """A configuration alone."""
    shutil.copytree(REFERENCE / "draft", folder, ignore=shutil.ignore_patterns("*.safetensors"))


# How a draft model's folder came about: what the line must name.
FOLDERS: dict[Callable[[Path], None], list[str]] = {
    not_a_model: ["pair.models.draft=", "config.json"],
    truncated: ["pair.models.draft=", "cannot load", "file not fully covered"],
    no_weights: ["pair.models.draft=", "cannot load", "model.safetensors"],
    other_tokenizer: ["pair 'reference'", "target and draft must share token ids", "2 tokens differ"],
}


@pytest.mark.parametrize("make", FOLDERS)
def test_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "draft")
    line = told(capsys, tmp_path / "results", f"pair.models.draft={tmp_path / 'draft'}")
    for part in FOLDERS[make]:
        assert part in line, line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_asked_for_where_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = told(capsys, tmp_path, "engine.device=cuda")
    assert "engine.device=cuda" in line and "cpu" in line


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In /proc not even root may make one."""
    line = told(capsys, Path("/proc/viasd"))
    assert "results_dir=/proc/viasd" in line and "writable" in line


def test_the_catalog_has_forty() -> None:
    assert len(TYPED) + len(FOLDERS) >= 40
