"""The procedural tasks: seeded, disjoint, short enough, scored rightly."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.tasks.base import SPLITS, Example, Task, split_of
from experiments.tasks.coding import Coding
from experiments.tasks.reasoning import Reasoning
from experiments.tasks.summarization import Summarization, split_facts, summarize

REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"
FAMILIES = (Reasoning, Coding, Summarization)
COUNT = 200
# Other ids mean other problems: stored rows of earlier runs could no longer be compared with new ones.
FIRST_IDS = {"Reasoning": "76b3f909260bbb2e", "Coding": "6d8dad948ef3006f", "Summarization": "c669a35f665bb161"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the reference pair."""
    return AutoTokenizer.from_pretrained(REFERENCE / "target")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def task(request: pytest.FixtureRequest) -> Task:
    """One task of each family with its defaults."""
    return request.param()


@pytest.fixture(scope="module")
def examples(task: Task) -> list[Example]:
    """Test problems of the task."""
    return task.examples("test", COUNT)


def test_examples_are_deterministic_and_prefixes_of_longer_lists(task: Task, examples: list[Example]) -> None:
    assert task.examples("test", 40) == examples[:40]
    assert task.examples("test", 0) == []


def test_another_seed_gives_other_problems(task: Task, examples: list[Example]) -> None:
    other = type(task)(seed=1).examples("test", COUNT)
    assert other != examples
    assert [e.example_id for e in other[:5]] != [e.example_id for e in examples[:5]]


def test_ids_are_stable_across_processes() -> None:
    first = {family.__name__: family().examples("test", 1)[0].example_id for family in FAMILIES}
    assert first == FIRST_IDS


def test_no_duplicates_and_disjoint_splits(task: Task) -> None:
    found = {split: task.examples(split, COUNT) for split in SPLITS}
    prompts = {split: {e.prompt for e in examples} for split, examples in found.items()}
    assert all(len({e.example_id for e in examples}) == len(prompts[s]) == COUNT for s, examples in found.items())
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["calibration"]
    assert not prompts["calibration"] & prompts["test"]


def test_the_split_depends_on_the_content_alone() -> None:
    problems = [split_of("Reasoning", ("chain", n)) for n in range(2000)]
    assert problems == [split_of("Reasoning", ("chain", n)) for n in range(2000)]
    assert 0.04 < problems.count("test") / 2000 < 0.08
    assert 0.04 < problems.count("calibration") / 2000 < 0.08


def test_default_sizes_and_bad_requests() -> None:
    task = Reasoning(test_size=7, calibration_size=5)
    assert len(task.examples("test")) == 7
    assert len(task.examples("calibration")) == 5
    with pytest.raises(ValueError, match="count is required"):
        task.examples("train")
    with pytest.raises(ValueError, match="must not be negative"):
        task.examples("test", -1)
    with pytest.raises(ValueError, match="accepted: train, calibration, test"):
        task.examples("validation", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"test_size": 0}, {"max_new_tokens": 0}, {"length": 3}, {"name": ""}], ids=str
)
def test_fields_have_ranges_and_no_others_are_taken(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Reasoning(**wrong)  # type: ignore[arg-type]


def test_gold_completions_score_one_and_corrupted_ones_less(task: Task, examples: list[Example]) -> None:
    for example in examples[: 6 if isinstance(task, Coding) else COUNT]:
        assert task.score(example, example.reference) == 1.0
        digits = [i for i, letter in enumerate(example.reference) if letter.isdigit()]
        cut = digits[-1] if digits and not isinstance(task, Coding) else len(example.reference) // 2
        assert task.score(example, example.reference[:cut]) < 1.0
        assert task.score(example, "") == 0.0


def test_the_last_stated_answer_counts() -> None:
    example = Example("0", "", "", {"answer": 12})
    assert Reasoning().score(example, " The answer is 3 hats. The answer is 12 hats.") == 1.0
    assert Reasoning().score(example, " The answer is 12 hats. The answer is 3 hats.") == 0.0
    assert Reasoning().score(example, " The answer is 123 hats.") == 0.0


def test_fact_recall_is_the_share_of_stated_facts() -> None:
    told = [("Tom", "Rome", "hats", 12), ("Ada", "Oslo", "pens", 30)]
    summary = summarize(told, "largest first")
    assert summary == " Ada in Oslo: 30 pens, sum 30; Tom in Rome: 12 hats, sum 42; most by Ada."
    assert summarize(told, "by name") == summary
    assert summarize(told, "in order").startswith(" Tom in Rome: 12 hats, sum 12;")
    example = Example("0", "", "", {"facts": split_facts(summary)})
    assert Summarization().score(example, " Ada in Oslo: 30 pens, sum 30; most by Ada.") == pytest.approx(3 / 5)
    assert Summarization().score(example, " most by Ada; most by Ada.") == pytest.approx(1 / 5)


def test_wrong_code_fails_its_hidden_tests() -> None:
    task = Coding()
    example = task.examples("test", 1)[0]
    name = example.metadata["function"]
    assert task.score(example, f"\ndef {name}(*args):\n    return 'no such value'") == 0.0
    assert task.score(example, "\nthis is no program") == 0.0


def test_the_boundary_of_prompt_and_completion_is_a_token_boundary(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    for example in examples:
        prompt = tokenizer(example.prompt)["input_ids"]
        completion = tokenizer(example.reference, add_special_tokens=False)["input_ids"]
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt + completion == tokenizer(example.prompt + example.reference)["input_ids"]
        assert tokenizer.decode(completion) == example.reference


def test_lengths_stay_in_their_limits(task: Task, examples: list[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [len(ids) for ids in tokenizer([e.prompt for e in examples])["input_ids"]]
    answers = [len(tokenizer(e.reference, add_special_tokens=False)["input_ids"]) + 1 for e in examples]
    assert max(prompts) <= 110
    assert min(answers) >= 24 and max(answers) <= task.max_new_tokens
    assert 40 <= sum(answers) / COUNT <= 64
    assert max(p + a for p, a in zip(prompts, answers, strict=True)) <= 192


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    digits = [t for t in tokenizer.get_vocab() if any(letter in "0123456789" for letter in t)]
    assert sorted(digits) == list("0123456789")
