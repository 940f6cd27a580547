"""The embedded pair: small enough, trained, and of use to a slim verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines.eagle.drafter import EagleDrafter
from experiments.identity import model_hash
from experiments.tasks.base import Example, Task
from experiments.tasks.coding import Coding
from experiments.tasks.qa import Qa
from experiments.tasks.reasoning import Reasoning
from experiments.tasks.summarization import Summarization
from experiments.tasks.translation import Translation
from viasd.decode import Decode
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import Pair, make_view
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"
MASK = REFERENCE / "masks" / "skip_45.json"
TASKS: tuple[Task, ...] = (Reasoning(), Qa(), Coding(), Summarization(), Translation())
COUNT = 8  # problems of each family


def megabytes(*roles: str) -> float:
    """Size of the roles' weights in MB (10^6 bytes)."""
    return sum((REFERENCE / role / "model.safetensors").stat().st_size for role in roles) / 1e6


def load(role: str) -> Any:
    """A model of the pair in float32."""
    return AutoModelForCausalLM.from_pretrained(REFERENCE / role, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The pair's tokenizer."""
    return AutoTokenizer.from_pretrained(REFERENCE / "target")


@pytest.fixture(scope="module")
def examples() -> list[tuple[Task, Example]]:
    """Held-out problems of every family."""
    return [(task, example) for task in TASKS for example in task.examples("calibration", COUNT)]


def write(model: Any, tokenizer: Any, examples: list[tuple[Task, Example]]) -> list[tuple[list[int], list[int]]]:
    """Prompt ids and greedily written ids of each example, all in one batch."""
    inputs = tokenizer([e.prompt for _, e in examples], return_tensors="pt", padding=True)
    with torch.inference_mode():
        sequences = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    width, found = inputs["input_ids"].shape[1], []
    for mask, ids in zip(inputs["attention_mask"], sequences.tolist(), strict=True):
        output = ids[width:]
        if tokenizer.eos_token_id in output:
            output = output[: output.index(tokenizer.eos_token_id) + 1]
        found.append((ids[width - int(mask.sum()) : width], output))
    return found


def mean_quality(
    texts: list[tuple[list[int], list[int]]], tokenizer: Any, examples: list[tuple[Task, Example]]
) -> float:
    """Mean of the tasks' own scores."""
    scores = [
        task.score(example, tokenizer.decode(output, skip_special_tokens=True))
        for (task, example), (_, output) in zip(examples, texts, strict=True)
    ]
    return sum(scores) / len(scores)


@pytest.fixture(scope="module")
def target() -> Any:
    """The target."""
    return load("target")


@pytest.fixture(scope="module")
def outputs(target: Any, tokenizer: Any, examples: list[tuple[Task, Example]]) -> list[tuple[list[int], list[int]]]:
    """What the target writes."""
    return write(target, tokenizer, examples)


def agreement(model: Any, outputs: list[tuple[list[int], list[int]]]) -> float:
    """Share of the target's output tokens that are the model's argmax (teacher-forced)."""
    equal = total = 0
    for prompt, output in outputs:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + output]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        equal += int((logits.argmax(-1) == torch.tensor(output)).sum())
        total += len(output)
    return equal / total


def test_weights_stay_small() -> None:
    assert megabytes("target", "draft") <= 25
    assert megabytes("mid") <= 6
    assert megabytes("eagle1") <= 4 and megabytes("eagle3") <= 4
    assert megabytes("target", "draft", "mid", "eagle1", "eagle3") <= 36
    assert 10e6 <= sum(p.numel() for p in load("target").parameters()) <= 11e6
    assert 10 <= megabytes("target") / megabytes("draft") <= 15


@pytest.mark.parametrize("name", ["eagle1", "eagle3"])
def test_heads_draft_what_the_target_says(name: str, examples: list[tuple[Task, Example]], tokenizer: Any) -> None:
    """Chains of 5 on the shipped pair: greedy outputs are vanilla's, and most drafted tokens are kept."""
    pair = Pair(
        name="reference",
        models={"target": str(REFERENCE / "target")},
        heads={name: str(REFERENCE / name)},
    )
    engine = Engine.load(pair, ["target"], "cpu", "float32", 400)
    drafter, stop = EagleDrafter(head=name, tree=None), FixedLength(length=5)
    eagle = Method(name=name, drafter=drafter, stop=stop, verifier=RuleVerifier()).open(engine)
    plain = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier()).open(
        engine
    )
    decode, rounds = Decode(Sampling(), 40, frozenset({tokenizer.eos_token_id})), []
    for _, example in examples[::COUNT]:
        ids = tokenizer(example.prompt).input_ids
        ours, theirs = (one.generate(ids, decode, SeededDraws(0, "x")) for one in (eagle, plain))
        assert ours.token_ids == theirs.token_ids
        rounds += ours.rounds
    assert sum(one.committed for one in rounds) / len(rounds) > 2.5


def test_every_model_has_the_same_tokenizer(tokenizer: Any) -> None:
    files = [(REFERENCE / role / "tokenizer.json").read_bytes() for role in ("target", "mid", "draft")]
    assert files[0] == files[1] == files[2]


def test_the_target_answers_well_and_the_draft_does_not(
    tokenizer: Any, examples: list[tuple[Task, Example]], outputs: list[tuple[list[int], list[int]]]
) -> None:
    target = mean_quality(outputs, tokenizer, examples)
    draft = mean_quality(write(load("draft"), tokenizer, examples), tokenizer, examples)
    assert target >= 0.8
    assert draft <= target - 0.1


def test_readers_agree_with_the_target_as_much_as_methods_need(
    target: Any, outputs: list[tuple[list[int], list[int]]]
) -> None:
    mask = json.loads(MASK.read_text())
    assert mask["target_hash"] == model_hash(REFERENCE / "target")
    assert len(mask["kept"]) == 16 - round(0.45 * 16)
    readers = load("draft"), load("mid"), make_view(target, mask["kept"])
    draft, mid, slim = (agreement(reader, outputs) for reader in readers)
    assert 0.70 <= draft <= 0.95
    assert draft < mid < slim
    assert slim >= 0.94
