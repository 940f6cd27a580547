"""The word problems: right answers, exact scorers, levels that differ, wordings that are kept for the test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from experiments.tasks import reasoning_wording as say
from experiments.tasks.base import ITEMS, LEVELS, NAMES, UNSEEN_EVERY, Author, Example, Problem
from experiments.tasks.reasoning import EQUATION, LIMITS, Reasoning

COUNT = 400
POOLS = [
    pool
    for name, pool in vars(say).items()
    if isinstance(pool, tuple) and name not in ("ENDINGS", "STARTS", "LABELS", "KNOWN", "COSTS")
] + list(say.EVENTS.values())
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


def solve(kind: str, numbers: Sequence[Any]) -> float:
    """Work a problem out from its content alone."""
    if kind == "purchase":
        *costs, money = numbers
        products = [costs[i] * costs[i + 1] for i in range(0, len(costs) - 1, 2)]
        return money - sum(products) - (costs[-1] if len(costs) % 2 else 0)
    signs = [i for i, x in enumerate(numbers) if isinstance(x, str)]
    values = [float(numbers[0] * numbers[1] if signs[0] == 2 else numbers[0])]
    for i in signs:
        values.append(OPERATIONS[numbers[i]](values[-1], numbers[i + 1]))
    return values[-1] if kind == "chain" else sum(values[i] for i in numbers[signs[-1] + 2 :])


def problems(level: int | None = None, count: int = COUNT) -> Iterator[Problem]:
    """Draw problems without a split."""
    author = Author("problems", level)
    return (Reasoning().draw(author) for _ in range(count))


class Reader(Author):
    """Draws one problem always alike, but for the free wordings of its completion."""

    def __init__(self, seed: str, way: int) -> None:
        super().__init__(seed)
        self.way, self.used = way, 0

    def wording(self, ways: Sequence[Any]) -> Any:
        """The way asked for; it uses no randomness, so that the rest is drawn alike."""
        self.used += 1
        return ways[self.way % len(ways)]


def as_example(problem: Problem) -> Example:
    """A problem outside of any split."""
    return Example("0", problem.prompt, problem.reference, problem.metadata)


@pytest.mark.parametrize("level", LEVELS)
def test_the_reference_is_right(level: int) -> None:
    for problem in problems(level):
        kind, told_level, *numbers = problem.content
        answer = problem.metadata["answer"]
        assert told_level == problem.metadata["level"] == level
        assert answer == solve(kind, numbers)
        assert re.search(rf"answer is {answer} [a-z]+\.$", problem.reference)
        for a, sign, b, result in EQUATION.findall(problem.reference):
            assert OPERATIONS[sign](int(a), int(b)) == int(result)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_has_its_steps_and_its_numbers(level: int) -> None:
    for problem in problems(level):
        steps = EQUATION.findall(problem.reference)
        assert len(steps) == level + 1
        told = [int(n) for n in re.findall(r"\d+", problem.prompt + problem.reference)]
        assert min(told) > 1 and max(told) <= LIMITS[level].largest <= 999
        for a, sign, b, result in steps:
            assert sign in "+-*" or level > 1
            if sign in "*/":
                factors = sorted((int(b), int(a if sign == "*" else result)))
                assert factors[0] <= 9 and factors[1] <= LIMITS[level].multiplied <= 99


def test_every_number_of_the_working_is_told_or_computed_before() -> None:
    for problem in problems():
        known = set(re.findall(r"\d+", problem.prompt))
        for a, _, b, result in EQUATION.findall(problem.reference):
            assert {a, b} <= known
            known.add(result)


def test_level_three_has_numbers_that_do_not_matter_and_facts_out_of_order() -> None:
    unused = dict.fromkeys(LEVELS, 0)
    shuffled = dict.fromkeys(LEVELS, 0)
    for level in LEVELS:
        for problem in problems(level):
            told = re.findall(r"\d+", problem.prompt)
            unused[level] += any(n not in re.findall(r"\d+", problem.reference) for n in told)
            if problem.content[0] == "comparison":
                first, second = re.findall(r"has (\d+) |\w+: \d+ . (\d+) =", problem.reference)[:2]
                backward = re.search(rf"\b{second[1]}\b.*\b{first[0]}\b", problem.prompt, re.DOTALL)
                shuffled[level] += first[0] != second[1] and backward is not None
    assert unused[1] == unused[2] == 0
    assert 0.4 < unused[3] / COUNT < 0.6
    assert shuffled[1] == shuffled[2] == 0
    assert shuffled[3] > 20


def test_scorers_on_written_cases() -> None:
    gold = " Start: 10 hats. Added: 10 + 2 = 12 hats. Added: 12 + 2 = 14 hats. The answer is 14 hats."
    example = Example("0", "", gold, {"level": 1, "answer": 14})
    cases = {
        "": (0, 0),
        " The answer is 14 hats.": (1, 0),
        " So the answer is 14.": (1, 0),
        " The answer is 140 hats.": (0, 0),
        " The answer is 14.5 hats.": (0, 0),
        " The answer is 14/2 hats.": (0, 0),
        " The answer is 14,000 hats.": (0, 0),
        " The answer is 3 hats. So the answer is 14 hats.": (1, 0),
        " The answer is 14 hats. The answer is 3 hats.": (0, 0),
        " Lost: 10 + 2 = 12 hats.": (0, 0.5),
        " 10 + 2 = 12. 10 + 2 = 12. The answer is 12.": (0, 0.5),
        " 12 + 2 = 14. 10 + 2 = 12. In the end, the answer is 14": (1, 1),
        " 10 + 2 = 120. 12 + 2 = 1": (0, 0),
    }
    for text, (answer, steps) in cases.items():
        assert Reasoning().scores(example, text) == {"final_answer": answer, "steps": steps}, text


def test_an_equation_that_is_needed_twice_counts_twice() -> None:
    example = Example("0", "", " 4 + 4 = 8. 4 + 4 = 8. The answer is 8.", {"answer": 8})
    assert Reasoning().scores(example, " 4 + 4 = 8. The answer is 8.")["steps"] == 0.5


def test_every_free_wording_scores_one() -> None:
    for seed in range(60):
        readers = [Reader(str(seed), way) for way in range(3)]
        drawn = [Reasoning().draw(reader) for reader in readers]
        assert len({p.prompt for p in drawn}) == 1
        assert len({p.reference for p in drawn}) == 3
        assert 2 <= readers[0].used <= 4
        for problem in drawn:
            assert Reasoning().scores(as_example(drawn[0]), problem.reference) == {"final_answer": 1, "steps": 1}


def test_a_pool_has_distinct_templates_with_the_same_blanks() -> None:
    for pool in POOLS:
        assert len(set(pool)) == len(pool) >= UNSEEN_EVERY
        assert len({"{n}" in template for template in pool}) == 1


def test_unseen_templates_and_names_are_others() -> None:
    prompts = {w: [e.prompt for e in Reasoning(wording=w).examples("test", COUNT)] for w in ("seen", "unseen")}
    vocabulary = {w: set(re.findall(r"[A-Za-z]+", " ".join(texts))) for w, texts in prompts.items()}
    for pool in (NAMES, ITEMS):
        assert vocabulary["unseen"] & set(pool) == set(pool[UNSEEN_EVERY - 1 :: UNSEEN_EVERY])
        assert not vocabulary["seen"] & vocabulary["unseen"] & set(pool)
    phrases = (
        "now makes it",
        "Then there are",
        "equal parts",
        "equal piles.",
        "Steps:",
        "\nSolution:",
    )
    found = {w: [any(phrase in text for text in texts) for phrase in phrases] for w, texts in prompts.items()}
    assert found["seen"] == [True, False, True, False, True, True]
    assert found["unseen"] == [False, True, False, True, False, True]


def test_unseen_templates_use_words_that_training_has() -> None:
    names = {*NAMES, *ITEMS}
    words = [
        set(re.findall(r"[A-Za-z]+", " ".join(e.prompt for e in Reasoning(wording=w).examples("test", 2000))))
        for w in ("seen", "unseen")
    ]
    assert words[1] - words[0] - names == set()
