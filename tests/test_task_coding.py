"""The coding family: references and all free wordings pass their hidden tests, other functions do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from experiments.tasks import coding, coding_loops, coding_numbers, coding_strings
from experiments.tasks.base import LEVELS, Author, Example, Problem
from experiments.tasks.coding import Coding, defines
from experiments.tasks.coding_pieces import NUMBERS, Operation, Plan, tell_number

T = TypeVar("T")
PAIR = [(-7, 3), (0, 12), (25, -4)]
LISTS = [[], [4], [3, -5, 12, 3, 40, 7, 8], [9, 9, -1]]
STRINGS = ["", "a", "banana", "steel door", "mitten"]
TABLES: dict[str, tuple[tuple[Operation, ...], list[Any]]] = {
    "conditions": (coding_numbers.CONDITIONS, list(range(-40, 60))),
    "changes": (coding_numbers.CHANGES, list(range(-40, 60))),
    "list endings": (coding_numbers.LIST_ENDINGS, LISTS),
    "text changes": (coding_strings.TEXT_CHANGES, STRINGS),
    "text endings": (coding_strings.TEXT_ENDINGS, STRINGS),
}


class OneWay(Author):
    """An author whose free wordings are all of the same number."""

    way = 0

    def wording(self, ways: Sequence[T]) -> T:
        """The way of that number, or the last one; the seeded randomness is used up as ever."""
        super().wording(ways)
        return ways[min(self.way, len(ways) - 1)]


def passes(text: str, tests: list[str]) -> bool:
    """Run a trusted function in this process: hundreds of interpreters would take long."""
    try:
        exec("\n".join([text, *tests]), {})
    except Exception:
        return False
    return True


def as_example(problem: Problem) -> Example:
    """An example as a scorer gets it."""
    return Example("0", problem.prompt, problem.reference, problem.metadata)


@pytest.mark.parametrize("table", TABLES)
def test_every_code_of_an_operation_computes_what_its_computation_says(table: str) -> None:
    operations, values = TABLES[table]
    author = Author("codes")
    for operation in operations:
        for code in operation.codes:
            for n in {operation.constant(author) for _ in range(20)}:
                program = eval(f"lambda v: {code.format(v='v', n=n)}")
                assert all(program(value) == operation.compute(value, n) for value in values), (operation.key, code, n)


def test_chains_compute_with_the_constant_or_the_second_argument() -> None:
    for operation in coding_numbers.CHAIN:
        for pair in PAIR:
            a, b = pair
            assert operation.compute(pair, 6) == (eval(operation.codes[0].format(v="a", n=6), {"a": a}), b)
            assert operation.compute(pair, None) == (eval(operation.codes[0].format(v="a", n=b), {"a": a}), b)


def test_references_pass_their_tests_and_the_sandbox_agrees() -> None:
    task = Coding()
    examples = task.examples("test", 400)
    assert all(passes(e.reference, e.metadata["tests"]) for e in examples)
    assert {e.metadata["kind"] for e in examples} == {"list", "loop", "text", "arithmetic"}
    for example in examples[:6]:
        assert task.scores(example, example.reference) == {"tests_passed": 1.0, "compiles": 1.0}


def test_every_free_wording_of_a_function_passes() -> None:
    task = Coding()
    by_prompt: dict[str, set[str]] = {}
    for way in range(3):
        author = OneWay("wordings")
        author.way = way
        for _ in range(400):
            problem = task.draw(author)
            assert passes(problem.reference, problem.metadata["tests"])
            by_prompt.setdefault(problem.prompt, set()).add(problem.reference)
    assert len(by_prompt) == 400  # the prompt does not tell which wording is next
    assert all(len(references) >= 2 for references in by_prompt.values())
    assert task.score(as_example(problem), problem.reference) == 1.0


def test_a_wrong_code_template_fails_its_own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tuple(replace(o, codes=tuple(f"({c}) - 1" for c in o.codes)) for o in coding_numbers.CHANGES)
    monkeypatch.setattr(coding, "CHANGES", wrong)
    monkeypatch.setattr(coding_loops, "CHANGES", wrong)
    author = Author("wrong", 1)
    problems = [
        p
        for kind in (coding.draw_list, coding.draw_loop)
        for _ in range(100)
        if (p := kind(author, Plan(1, 2, False, False)))
    ]
    passed = sum(passes(p.reference, p.metadata["tests"]) for p in problems)
    assert len(problems) > 50 and passed < 0.1 * len(problems)  # a filter may hide the difference


def test_a_function_without_one_of_its_steps_fails() -> None:
    for example in Coding().examples("test", 200):
        if example.metadata["kind"] == "loop":
            continue
        lines = example.reference.split("\n")
        variable = lines[1].split("(")[1].split(",")[0].rstrip("):")
        steps = [i for i, line in enumerate(lines) if line.startswith(f"    {variable} ")]
        assert len(steps) >= 2
        for i in steps:
            assert not passes("\n".join(lines[:i] + lines[i + 1 :]), example.metadata["tests"]), example


def test_scores_of_written_answers() -> None:
    task = Coding()
    tests = ["assert run([]) == 0", "assert run([3, 4, 10]) == 13"]
    example = Example("0", "", "", {"function": "run", "tests": tests})
    good = "\ndef run(xs):\n    return sum(x for x in xs if x != 4)"
    assert task.scores(example, good) == {"tests_passed": 1.0, "compiles": 1.0}
    assert task.scores(example, good.replace("4", "5")) == {"tests_passed": 0.0, "compiles": 1.0}
    assert task.scores(example, good.replace("run", "walk")) == {"tests_passed": 0.0, "compiles": 0.0}
    assert task.scores(example, good[:-1] + " (") == {"tests_passed": 0.0, "compiles": 0.0}
    assert task.scores(example, "") == {"tests_passed": 0.0, "compiles": 0.0}
    assert Coding(test_seconds=0.5).score(example, "\ndef run(xs):\n    while True:\n        pass") == 0.0


@pytest.mark.parametrize("text", ["def run(", "\0", "(" * 5000, "run = 1", "class A:\n    def run(self): pass"])
def test_what_defines_no_function(text: str) -> None:
    assert not defines(text, "run")


def test_numbers_told_as_sums_mean_what_they_are() -> None:
    author = Author("numbers")
    for n in range(2, 21):
        for told in {tell_number(author, n) for _ in range(50)}:
            parts = [int(digits) for digits in re.findall(r"\d+", told)]
            if len(parts) == 2:
                assert n in (sum(parts), parts[0] - parts[1]), told
            else:
                assert parts == [n if told == str(n) else n // 2], told
    assert all(len(ways) == 5 for ways in NUMBERS.values())


def test_the_last_two_steps_can_be_told_in_reversed_order() -> None:
    told = coding.tell_steps(Author("order"), Plan(3, 3, False, True), ["one", "two", "three"])
    assert re.fullmatch(r"one\W.*three\W.*before.*two", told)


def test_levels_rise_in_steps_and_length() -> None:
    lengths, codes = [], []
    for level in LEVELS:
        examples = Coding(level=level).examples("test", 150)
        assert {e.metadata["level"] for e in examples} == {level}
        lengths.append(sum(len(e.reference) for e in examples))
        codes.append({e.reference.count("if ") for e in examples if e.metadata["kind"] == "loop"})
        assert any(joint in e.prompt for e in examples for joint in coding.REVERSED_JOINTS) == (level > 1)
        assert any(re.search("sum of|plus|minus|twice", e.prompt) for e in examples) == (level == 3)
    assert lengths == sorted(lengths) and lengths[0] < 0.8 * lengths[2]
    assert codes == [{1}, {1}, {2}]


def test_unseen_wording_uses_other_names_and_templates() -> None:
    seen, unseen = (Coding(wording=wording).examples("test", 200) for wording in ("seen", "unseen"))
    names = [{e.metadata["function"] for e in examples} for examples in (seen, unseen)]
    assert names[0] | names[1] == set(coding.FUNCTION_NAMES) and not names[0] & names[1]
    openings = [{e.prompt.split(" ")[1] for e in examples} for examples in (seen, unseen)]
    assert openings[1] == {"For", "Define"} and "For" not in openings[0]
    assert all(passes(e.reference, e.metadata["tests"]) for e in unseen)
