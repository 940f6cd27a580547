"""The procedural tasks: seeded, disjoint, short enough, scored rightly."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.tasks.base import (
    ITEMS,
    LEVELS,
    NAMES,
    PLACES,
    SPLITS,
    UNSEEN_EVERY,
    Author,
    Example,
    Problem,
    Split,
    Task,
    split_of,
)
from experiments.tasks.coding import ARGUMENT_NAMES, FUNCTION_NAMES, LIST_NAMES, TEXT_NAMES, Coding
from experiments.tasks.qa import Qa
from experiments.tasks.reasoning import Reasoning
from experiments.tasks.summarization import Summarization
from experiments.tasks.translation import Translation

REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"
FAMILIES = (Reasoning, Qa, Coding, Summarization, Translation)
COUNT = 90
SIZES: dict[Split, int] = {"train": 3000, "calibration": 20, "test": COUNT}
ASKED = 40  # test problems that are looked up among the training problems
# Other ids mean other problems: stored rows of earlier runs could no longer be compared with new ones.
FIRST_IDS = {
    "Reasoning": "7a683b5456b64770",
    "Qa": "f7f143e4fd9f24b6",
    "Coding": "de56ad419849a709",
    "Summarization": "9d24de768d5ede62",
    "Translation": "eee268c3b5031ef8",
}
# Of the texts of the first problems: an id covers neither the reference nor the problems behind the first one.
PINNED = 20
FIRST_TEXTS = {
    "Reasoning": "82f35877f308a1b6",
    "Qa": "d99f39dc36d10d89",
    "Coding": "73cc3bca0f895703",
    "Summarization": "79d214b9e8c7520c",
    "Translation": "b6705f29f866be41",
}
# The pools that a family draws names from. The things of translations are words of the language, which all are seen.
ENTITIES: dict[str, tuple[Sequence[str], ...]] = {
    "Reasoning": (NAMES, ITEMS),
    "Qa": (NAMES, ITEMS, PLACES),
    "Coding": (FUNCTION_NAMES, LIST_NAMES, TEXT_NAMES, ARGUMENT_NAMES),
    "Summarization": (NAMES, ITEMS, PLACES),
    "Translation": (NAMES, PLACES),
}
COMMON = (NAMES, ITEMS, PLACES)  # the pools that no template borrows words from


def recorder(family: Any) -> Any:
    """The family with the content of each problem in its metadata; of the same name, which seeds and splits go by."""

    def draw(self: Task, author: Author) -> Problem:
        problem: Problem = family.draw(self, author)
        return dataclasses.replace(problem, metadata=problem.metadata | {"content": problem.content})

    return type(family.__name__, (family,), {"draw": draw})


@cache
def drawn(family: Any, split: Split, wording: str = "seen") -> list[Example]:
    """Problems of a split, with their contents."""
    examples: list[Example] = recorder(family)(wording=wording).examples(split, SIZES[split])
    return examples


def drawn_in_seen_wording(task: Task) -> list[Example]:
    """Problems of all splits."""
    return [example for split in SPLITS for example in drawn(type(task), split)]


def held_out(pools: Iterable[Sequence[str]]) -> set[str]:
    """What is for the test with unseen wording alone."""
    return {name for pool in pools for name in pool[UNSEEN_EVERY - 1 :: UNSEEN_EVERY]}


def vocabulary(texts: Iterable[str]) -> set[str]:
    """The words of some texts, without the letters that code has in quotes: they are constants, not names."""
    return {word for text in texts for word in re.findall(r"\b(?<!')[A-Za-z]+\b(?!')", text)}


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
    found = drawn(type(task), "test")
    return [dataclasses.replace(e, metadata={k: v for k, v in e.metadata.items() if k != "content"}) for e in found]


def test_examples_are_deterministic_and_prefixes_of_longer_lists(task: Task, examples: list[Example]) -> None:
    assert task.examples("test", PINNED) == examples[:PINNED]
    assert task.examples("test", 0) == []


def test_another_seed_gives_other_problems(task: Task, examples: list[Example]) -> None:
    other = dataclasses.replace(task, seed=1).examples("test", PINNED)
    assert not {e.prompt for e in other} & {e.prompt for e in examples}
    assert [e.example_id for e in other[:5]] != [e.example_id for e in examples[:5]]


def test_ids_are_stable_across_processes() -> None:
    first = {family.__name__: family().examples("test", 1)[0].example_id for family in FAMILIES}
    assert first == FIRST_IDS, f"where the texts were meant to change: FIRST_IDS = {first}"


def test_texts_are_stable_across_processes() -> None:
    first = {}
    for family in FAMILIES:
        told = "".join(e.prompt + e.reference for e in family().examples("test", PINNED))
        first[family.__name__] = hashlib.sha256(told.encode()).hexdigest()[:16]
    assert first == FIRST_TEXTS, f"where the texts were meant to change: FIRST_TEXTS = {first}"


def test_no_problem_comes_twice_in_a_split(task: Task) -> None:
    for split in SPLITS:
        examples = drawn(type(task), split)
        assert len({e.example_id for e in examples}) == len({e.prompt for e in examples}) == len(examples)


def test_problems_are_in_the_split_of_their_content(task: Task) -> None:
    family = type(task)
    examples = {split: drawn(family, split) for split in SPLITS}
    examples["test"] = examples["test"] + drawn(family, "test", "unseen")
    contents = {split: {e.metadata["content"] for e in found} for split, found in examples.items()}
    for split, found in contents.items():
        assert {split_of(family.__name__, content) for content in found} == {split}
    assert len(set.union(*contents.values())) == sum(map(len, contents.values()))


def test_the_split_of_a_content_never_changes() -> None:
    splits = [split_of("Reasoning", ("chain", n)) for n in range(2000)]
    assert [n for n in range(100) if splits[n] == "test"] == [13, 15, 19, 23, 49, 56, 71]
    assert [n for n in range(100) if splits[n] == "calibration"] == [14, 18, 33, 40, 45, 47, 52, 58, 59, 63, 74]
    assert 0.04 < splits.count("test") / 2000 < 0.08
    assert 0.04 < splits.count("calibration") / 2000 < 0.08


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


def test_gold_completions_score_one_and_cut_ones_less(task: Task, examples: list[Example]) -> None:
    for example in examples[: 6 if isinstance(task, Coding) else COUNT]:
        assert set(task.scores(example, example.reference).values()) == {1.0}
        assert task.score(example, example.reference[: len(example.reference) // 2]) < 1.0
        assert task.score(example, "") == 0.0


def test_levels_select_problems_and_are_named_in_the_metadata(task: Task, examples: list[Example]) -> None:
    assert {e.metadata["level"] for e in examples} == set(LEVELS)
    for level in LEVELS:
        assert {e.metadata["level"] for e in dataclasses.replace(task, level=level).examples("test", 6)} == {level}


def test_unseen_wording_is_for_the_test_alone(task: Task) -> None:
    for split in ("train", "calibration"):
        with pytest.raises(ValueError, match=f"wording='unseen' has no split='{split}'"):
            dataclasses.replace(task, wording="unseen").examples(split, 1)


def test_prompts_in_unseen_wording_have_other_names(task: Task) -> None:
    family = type(task)
    trained = vocabulary(e.prompt for e in drawn_in_seen_wording(task))
    told = vocabulary(e.prompt for e in drawn(family, "test", "unseen"))
    assert not trained & held_out(COMMON)
    for pool in ENTITIES[family.__name__]:
        if pool in COMMON:
            assert told & set(pool) and told & set(pool) <= held_out([pool])


def test_prompts_in_unseen_wording_have_other_sentences(task: Task) -> None:
    filled = re.compile(rf"\b(?:{'|'.join(name for pool in COMMON for name in pool)})\b|\d+")

    def sentences(examples: list[Example]) -> set[str]:
        return {s.strip() for e in examples for s in re.findall(r"[^.?:\n]+[.?]", filled.sub("_", e.prompt))}

    told = sentences(drawn(type(task), "test", "unseen"))
    assert len(told) >= 10
    assert not told & sentences(drawn_in_seen_wording(task))


def test_answers_in_unseen_wording_have_other_names_and_no_other_words(task: Task) -> None:
    family = type(task)
    trained = vocabulary(e.reference for e in drawn_in_seen_wording(task))
    told = vocabulary(e.reference for e in drawn(family, "test", "unseen"))
    pools = ENTITIES[family.__name__]
    assert told - trained <= held_out(pools)
    assert not trained & held_out(pools)
    assert all(told & set(pool) and told & set(pool) <= held_out([pool]) for pool in pools)


def test_an_author_uses_every_fifth_item_of_a_pool_only_when_asked_for_the_unseen() -> None:
    pool = list(range(12))
    author = Author("a")
    assert {author.entity(pool) for _ in range(500)} == set(pool) - {4, 9}
    author = Author("b", unseen=True)
    assert {author.template(pool) for _ in range(100)} == {4, 9}
    favorite = Counter(author.wording("abc") for _ in range(9000))
    assert 0.7 < favorite["b"] / favorite["a"] < 0.8 and 0.45 < favorite["c"] / favorite["a"] < 0.55


def test_the_answer_of_the_nearest_training_problem_is_worth_little(task: Task) -> None:
    words = [(set(re.findall(r"\w+", e.prompt)), e) for e in drawn(type(task), "train")]
    total = 0.0
    for example in drawn(type(task), "test")[:ASKED]:
        own = set(re.findall(r"\w+", example.prompt))
        nearest = max(words, key=lambda pair: len(own & pair[0]) / len(own | pair[0]))[1]
        total += task.score(example, nearest.reference)
    assert total / ASKED < 0.3


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
    assert max(prompts) <= 130
    assert min(answers) >= 24 and max(answers) <= task.max_new_tokens
    assert max(p + a for p, a in zip(prompts, answers, strict=True)) <= 220


def test_answers_average_at_least_48_tokens_over_the_families(tokenizer: PreTrainedTokenizerBase) -> None:
    means = []
    for family in FAMILIES:
        references = [e.reference for e in drawn(family, "test")]
        means.append(sum(map(len, tokenizer(references, add_special_tokens=False)["input_ids"])) / COUNT + 1)
    assert sum(means) / len(means) >= 48


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    digits = [t for t in tokenizer.get_vocab() if any(letter in "0123456789" for letter in t)]
    assert sorted(digits) == list("0123456789")
