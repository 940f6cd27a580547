"""Pairs, masks and vocabularies: what is accepted, and what the error says when it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from pydantic import ValidationError

from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine, resolve_device, resolve_dtype
from viasd.method import Method
from viasd.models import (
    Pair,
    PairError,
    common_vocabulary,
    even_mask,
    layer_count,
    load_model,
    locate,
    random_mask,
    read_mask,
    skipped_count,
)
from viasd.sampling import Sampling, SeededDraws, process, widen
from viasd.verification import RuleVerifier

TOKENS = [f"t{index}" for index in range(20)]


def save_tokenizer(folder: Path, tokens: Sequence[str]) -> None:
    """A word-level tokenizer that gives tokens their place in the list."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(WordLevel(vocabulary, unk_token=tokens[0]))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token=tokens[0]).save_pretrained(folder)


def saved_pair(root: Path, target: Any, draft: Any, draft_tokens: Sequence[str] = TOKENS) -> Pair:
    """A pair of model folders with tokenizers."""
    for role, model, tokens in (("target", target, TOKENS), ("draft", draft, draft_tokens)):
        model.save_pretrained(root / role)
        save_tokenizer(root / role, tokens)
    return Pair(name="saved", models={"target": str(root / "target"), "draft": str(root / "draft")})


# --- loading ------------------------------------------------------------------------------------------------------


def test_load_a_saved_pair(tiny: ModelFactory, tmp_path: Path) -> None:
    """The target's tokenizer bounds the vocabulary, whatever the models are padded to."""
    target, draft = tiny("llama"), tiny("llama", seed=1, layers=1, vocab_size=16)
    pair = saved_pair(tmp_path, target, draft, TOKENS[:16])
    engine = Engine.load(pair, ("target", "draft"), "cpu", "float64", 32)
    assert engine.vocabulary == len(TOKENS) < VOCABULARY
    assert engine.dtype == torch.float64
    assert not engine.models["target"].training
    assert not any(weight.requires_grad for weight in engine.models["draft"].parameters())
    method = Method(name="sd", drafter=DraftModel(), stop=FixedLength(length=3), verifier=RuleVerifier())
    generation = method.open(engine).generate([1, 2, 3], Decode(Sampling(), 8), SeededDraws(0, "a"))
    ids = [1, 2, 3]
    while len(ids) < 11:  # greedy among the ids that the tokenizer defines
        ids.append(int(target(torch.tensor([ids]), use_cache=False).logits[0, -1, : len(TOKENS)].argmax()))
    assert generation.token_ids == ids[3:]


def test_missing_role() -> None:
    pair = Pair(name="small", models={"target": "somewhere"})
    with pytest.raises(PairError, match=r"'small' has no model for role 'draft'; it has: \['target'\]"):
        pair.path("draft")


def test_engine_without_the_role(tiny: ModelFactory) -> None:
    with pytest.raises(PairError, match=r"no model for role 'draft'; it has: \['target'\]"):
        Engine({"target": tiny("llama")}, VOCABULARY, 8).readers().get("draft")


def test_missing_folder(tmp_path: Path) -> None:
    pair = Pair(name="small", models={"target": str(tmp_path / "nowhere")})
    with pytest.raises(PairError, match=r"pair\.models\.target=.*nowhere: no model there"):
        load_model(pair, "target", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None], ids=["empty", "garbage", "absent"])
def test_unreadable_weights(tiny: ModelFactory, tmp_path: Path, content: bytes | None) -> None:
    tiny("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    pair = Pair(name="small", models={"target": str(tmp_path)})
    with pytest.raises(PairError, match=r"pair\.models\.target=.*: cannot load this model: .+") as caught:
        load_model(pair, "target", torch.float32, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_missing_tokenizer(tiny: ModelFactory, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    pair = Pair(name="small", models={"target": str(tmp_path)})
    with pytest.raises(PairError, match=r"pair\.models\.target=.*: cannot load this tokenizer: .+") as caught:
        common_vocabulary(pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("draft_tokens", "message"),
    [
        ([*TOKENS[:18], "t19", "t18"], r"2 tokens differ and 20 of 20 are shared, for example 't1[89]'"),
        ([f"other{index}" for index in range(20)], "0 tokens differ and 0 of 20 are shared"),
    ],
    ids=["swapped", "foreign"],
)
def test_tokenizers_that_disagree(tmp_path: Path, draft_tokens: list[str], message: str) -> None:
    for role, tokens in (("target", TOKENS), ("draft", draft_tokens)):
        save_tokenizer(tmp_path / role, tokens)
        (tmp_path / role / "config.json").write_text(json.dumps({"model_type": "llama"}))
    pair = Pair(name="odd", models={role: str(tmp_path / role) for role in ("target", "draft")})
    with pytest.raises(PairError, match=message):
        common_vocabulary(pair)


def test_pair_is_a_closed_spec() -> None:
    with pytest.raises(ValidationError, match="modles"):
        Pair(name="typo", modles={"target": "x"})  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="name"):
        Pair(name="", models={})


def test_locate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("viasd://spec.py").is_file()
    assert locate("~/model") == tmp_path / "model"


def test_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == cpu
    with pytest.raises(PairError, match=r"engine\.device=cuda: this torch sees no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == cuda
    assert (resolve_dtype("auto", cpu), resolve_dtype("auto", cuda)) == (torch.float32, torch.bfloat16)
    assert resolve_dtype("float64", cuda) == torch.float64


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.45, 0.5])
def test_masks_skip_exactly_what_is_asked(layers: int, ratio: float) -> None:
    skip = round(ratio * layers)
    assert skipped_count(layers, ratio) == skip
    for keep_ends in (True, False):
        if skip > max(0, layers - 2 * keep_ends):
            continue
        masks = [even_mask(layers, ratio, keep_ends), *(random_mask(layers, ratio, seed, keep_ends) for seed in (0, 1))]
        for kept in masks:
            assert len(kept) == layers - skip
            assert kept == sorted(set(kept))
            assert set(kept) <= set(range(layers))
            if keep_ends:
                assert {0, layers - 1} <= set(kept)


def test_known_masks() -> None:
    assert even_mask(12, 0.45) == [0, 1, 3, 5, 7, 9, 11]
    assert even_mask(4, 0.0) == [0, 1, 2, 3]
    assert even_mask(4, 0.5) == [0, 3]
    assert random_mask(30, 0.5, seed=3) == random_mask(30, 0.5, seed=3) != random_mask(30, 0.5, seed=4)


@pytest.mark.parametrize(
    "make", [even_mask, lambda *args: random_mask(*args[:2], 0, *args[2:])], ids=["even", "random"]
)
def test_too_much_to_skip(make: Any) -> None:
    with pytest.raises(PairError, match=r"skip_ratio=0\.8 skips 3 of 4 layers; at most 2 .* \(keep_ends=true\)"):
        make(4, 0.8, True)
    assert len(make(4, 0.8, False)) == 1


def test_layer_count(tiny: ModelFactory) -> None:
    assert layer_count(tiny("llama")) == 4


def test_read_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"kept": [0, 2, 3], "target_hash": "abc"}))
    assert read_mask(str(path), "abc", 4) == [0, 2, 3]
    with pytest.raises(PairError, match="made for the model abc, this target is xyz"):
        read_mask(str(path), "xyz", 4)
    with pytest.raises(PairError, match=r"mask=.*nothing\.json: not a readable mask file"):
        read_mask(str(tmp_path / "nothing.json"), "abc", 4)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"kept": [0]}', '{"kept": 3, "target_hash": "abc"}', '{"kept": ["x"], "target_hash": "abc"}'],
)
def test_malformed_mask(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(content)
    with pytest.raises(PairError, match="not a readable mask file"):
        read_mask(str(path), "abc", 4)


@pytest.mark.parametrize("kept", [[], [2, 1], [0, 0, 1], [-1, 2], [0, 4]])
def test_impossible_layers(tmp_path: Path, kept: list[int]) -> None:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"kept": kept, "target_hash": "abc"}))
    with pytest.raises(PairError, match="accepted: ascending layer numbers from 0 to 3"):
        read_mask(str(path), "abc", 4)


# --- vocabulary ---------------------------------------------------------------------------------------------------


def test_widen() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(widen(logits, 3), logits)
    assert torch.equal(widen(logits, 2), logits[:, :2])  # ids that only padding defines
    wide = widen(logits, 5)
    assert torch.equal(wide[:, :3], logits)
    assert process(wide, Sampling(temperature=2))[:, 3:].eq(0).all()
    assert widen(logits.bfloat16(), 5).dtype == torch.float32
    assert widen(logits.double(), 5).dtype == torch.float64


def test_draft_that_lacks_ids(tiny: ModelFactory) -> None:
    """It never drafts them and reads a stand-in for them; the output stays the target's."""
    target, draft = tiny("llama"), tiny("llama", seed=1, layers=1, vocab_size=10)
    reader = Engine({"target": target, "draft": draft}, VOCABULARY, 8).readers().get("draft")
    assert process(reader.feed(torch.tensor([1, 2, 3]), 3, last=1), Sampling(temperature=1))[:, 10:].eq(0).all()
    method = Method(name="sd", drafter=DraftModel(), stop=FixedLength(length=3), verifier=RuleVerifier())
    prompt = [1, VOCABULARY - 1, 3]
    decoder = method.open(Engine({"target": target, "draft": draft}, VOCABULARY, 64))
    expected = target.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, 3:].tolist()
    assert max(expected) >= 10
    generation = decoder.generate(prompt, Decode(Sampling(), 12), SeededDraws(0, "a"))
    assert generation.token_ids == expected
