"""Python functions from a description, judged by hidden tests that run in a separate interpreter."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import Author, Example, Name, Problem, Procedural, words
from experiments.tasks.coding_loops import draw_accumulation
from experiments.tasks.coding_numbers import CHAIN, CHAIN_ENDINGS, CHANGED, CHANGES, CONDITIONS, FILTERS, LIST_ENDINGS
from experiments.tasks.coding_pieces import ITEM_NAMES, PLAIN, RETURNS, STARTS, Function, Piece, Plan, draw_piece
from experiments.tasks.coding_strings import LETTERS, TEXT_CHANGES, TEXT_ENDINGS
from experiments.tasks.sandbox import run_program

HIDDEN_TESTS = 6
FUNCTION_NAMES = words("solve run work make build find check count apply change convert process handle compute update")
LIST_NAMES = words("values numbers data nums xs scores points entries rows series")
TEXT_NAMES = words("text word line name phrase label title note entry string")
ARGUMENT_NAMES = words("a b c d p h k m n q")
OPENINGS = (
    "Write a function {f} for {what}: {steps}.",
    "Define a function {f} for {what}: {steps}.",
    "Given {what}, write {f}: {steps}.",
    "Program {f} for {what}: {steps}.",
    "For {what}, define a function {f}: {steps}.",
    "The function {f} is for {what}: {steps}. Write it.",
    "Given {what}, define a function {f}: {steps}.",
    "Write {f}, a function of {what}: {steps}.",
    "The program {f} is for {what}: {steps}.",
    "Define {f}, a function of {what}: {steps}. Program it.",
)
LISTS = ("a list of numbers", "a list of integers", "some numbers in a list", "numbers", "some integers in a list")
STRINGS = ("a string", "a text", "some text", "a piece of text", "a piece of a string")
PAIRS = ("two numbers", "two integers", "a pair of numbers", "two whole numbers", "a pair of integers")
JOINTS = (", then ", ", and then ", ", next ", ", after that ", "; then ")
REVERSED_JOINTS = (
    ", but before that ",
    ", but just before that ",
    ", but before this ",
    "; but before it ",
    "; before that ",
)
COMMENTS = ("    # step by step\n", "    # in this order\n", "    # one by one\n")
LIST_SHAPES = {  # which steps are filters and which change each number
    2: ("fc", "cf"),
    3: ("fcf", "fcc", "cfc", "ccf"),
    4: ("fcfc", "cfcf", "cfcc", "ccfc", "fccf"),
}


def draw_plan(author: Author) -> Plan:
    """Level 1 has two steps in order, level 2 three; level 3 is reordered and has four, or three with sums."""
    level = author.level()
    sums = level == 3 and author.random() < 0.5
    return Plan(level, level + 1 - sums, sums, level == 3 or (level == 2 and author.random() < 0.5))


def tell_steps(author: Author, plan: Plan, told: Sequence[str]) -> str:
    """Tell the steps in their order, or the last two as 'the last one, but before that the one before it'."""
    joint = author.template(JOINTS)
    if not plan.reordered:
        return joint.join(told)
    *early, before, last = told
    return joint.join([*early, f"{last}{author.template(REVERSED_JOINTS)}{before}"])


def write_return(author: Author, code: str) -> str:
    """Return a value at once or under a name."""
    name = author.wording(("", "result", "answer"))
    return f"    {name} = {code}\n    return {name}" if name else f"    return {code}"


def draw_numbers(author: Author) -> list[tuple[list[int]]]:
    """Arguments of the hidden tests: lists, at last the empty one, which tells least."""
    lists = [[author.randint(-9, 40) for _ in range(author.randint(3, 9))] for _ in range(HIDDEN_TESTS - 1)]
    return [*((numbers,) for numbers in lists), ([],)]


def draw_strings(author: Author, body: str) -> list[tuple[str]]:
    """Arguments of the hidden tests, in which the letters that the function deals with are frequent."""
    letters = LETTERS + 3 * "".join(re.findall("'([a-z])'", body))
    return [("".join(author.choices(letters, k=author.randint(1, 12))),) for _ in range(HIDDEN_TESTS)]


# One more test: every number or letter alone, since a threshold that is wrong by one shows at one number only.
_NUMBERS = [[number] for number in range(-20, 61)]
SWEEPS: dict[str, list[Any]] = {
    "list": _NUMBERS,
    "loop": _NUMBERS,
    "text": [*LETTERS, LETTERS, LETTERS[::-1], LETTERS * 2, ""],
}


def chain(stages: Sequence[Piece]) -> Callable[..., Any]:
    """What a function computes that does one thing after the other."""

    def compute(*arguments: Any) -> Any:
        value = arguments[0] if len(arguments) == 1 else arguments
        for stage in stages:
            value = stage.compute(value)
        return value

    return compute


def chained(author: Author, plan: Plan, steps: Sequence[Piece], ending: Piece, opening: str, code: str) -> Function:
    """Join steps that are done one after the other; the caller adds the arguments."""
    stages = [*steps, ending]
    told = f"{opening}{tell_steps(author, plan, [step.told for step in steps])}; {ending.told}"
    body = f"{code}\n{write_return(author, ending.code)}"
    rivals = tuple(chain([*stages[:i], *stages[i + 1 :]]) for i in range(len(steps)))
    return Function(tuple(stage.key for stage in stages), (), told, body, chain(stages), rivals)


def for_all(kind: str, piece: Piece, xs: str, x: str) -> Piece:
    """The step on a whole list that a condition ("f") or a change ("c") of one number makes."""
    if kind == "f":
        code = f"[{x} for {x} in {xs} if {piece.code}]"
        return replace(piece, code=code, compute=lambda numbers: [n for n in numbers if piece.compute(n)])
    code = f"[{piece.code} for {x} in {xs}]"
    return replace(piece, code=code, compute=lambda numbers: [piece.compute(n) for n in numbers])


def draw_list(author: Author, plan: Plan) -> Problem | None:
    """Filters and changes of a list, then an ending."""
    xs, x = author.entity(LIST_NAMES), author.wording(ITEM_NAMES)
    tables = {"f": (CONDITIONS, FILTERS), "c": (CHANGES, CHANGED)}
    kinds = author.choice(LIST_SHAPES[plan.steps])
    steps = [for_all(kind, draw_piece(author, *tables[kind], x, plan.sums), xs, x) for kind in kinds]
    ending = draw_piece(author, LIST_ENDINGS, RETURNS, xs)
    body = author.wording(("", COMMENTS[0])) + "\n".join(f"    {xs} = {step.code}" for step in steps)
    function = replace(chained(author, plan, steps, ending, "", body), arguments=(xs,))
    return as_problem(author, plan, "list", function, LISTS, draw_numbers(author))


def draw_text(author: Author, plan: Plan) -> Problem | None:
    """Changes of a string, then an ending; four at level 3, as their constants are letters and few letters."""
    plan = replace(plan, steps=plan.level + 1, sums=False)
    text = author.entity(TEXT_NAMES)
    steps = [draw_piece(author, TEXT_CHANGES, PLAIN, text) for _ in range(plan.steps)]
    ending = draw_piece(author, TEXT_ENDINGS, RETURNS, text)
    body = author.wording(COMMENTS) + "\n".join(f"    {text} = {step.code}" for step in steps)
    function = replace(chained(author, plan, steps, ending, "", body), arguments=(text,))
    return as_problem(author, plan, "text", function, STRINGS, draw_strings(author, function.body))


def draw_arithmetic(author: Author, plan: Plan) -> Problem | None:
    """A chain of operations on two arguments, each with a constant or the second argument; two more than elsewhere."""
    a, b = author.entities(ARGUMENT_NAMES, 2)
    steps = [draw_piece(author, CHAIN, PLAIN, a, plan.sums, second=b) for _ in range(plan.steps + 2)]
    ending = draw_piece(author, CHAIN_ENDINGS, RETURNS, a)
    in_place = author.wording((False, True))
    lines = []
    for step in steps:
        _, sign, n = step.code.split()
        lines.append(f"    {a} {sign}= {n}" if in_place else f"    {a} = {step.code}")
    opening = f"{author.template(STARTS).format(n=a)}, "
    body = author.wording(COMMENTS) + "\n".join(lines)
    function = replace(chained(author, plan, steps, ending, opening, body), arguments=(a, b))
    inputs = [(author.randint(-9, 30), author.randint(-9, 30)) for _ in range(HIDDEN_TESTS)]
    return as_problem(author, plan, "arithmetic", function, PAIRS, inputs)


def draw_loop(author: Author, plan: Plan) -> Problem | None:
    """A total in a loop: what is added under a condition, what otherwise, what under a condition in a condition."""
    loop = draw_accumulation(author, plan, author.entity(LIST_NAMES))
    return as_problem(author, plan, "loop", loop, LISTS, draw_numbers(author))


def as_problem(
    author: Author, plan: Plan, kind: str, function: Function, whats: tuple[str, ...], inputs: Sequence[tuple[Any, ...]]
) -> Problem | None:
    """Join description, code and hidden tests; None where a step repeats another or is not missed by the tests."""
    if any(key == next_key for key, next_key in pairwise(function.content)):
        return None
    expected = [function.compute(*arguments) for arguments in inputs]
    told_apart = all(
        any(rival(*arguments) != value for arguments, value in zip(inputs, expected, strict=True))
        for rival in function.rivals
    )
    if not told_apart or all(value == expected[-1] for value in expected):
        return None
    name = author.entity(FUNCTION_NAMES)
    signature = f"{name}({', '.join(function.arguments)})"
    opening = author.template(OPENINGS)
    told = opening.format(f=signature, what=author.template(whats), steps=function.told)
    calls = (f"{name}({', '.join(map(repr, arguments))})" for arguments in inputs)
    tests = [f"assert {call} == {value!r}" for call, value in zip(calls, expected, strict=True)]
    if kind in SWEEPS:
        values = [function.compute(value) for value in SWEEPS[kind]]
        tests.append(f"assert [{name}(x) for x in {SWEEPS[kind]!r}] == {values!r}")
    return Problem(
        (kind, plan.level, *function.content),
        f"Task: {told}\nCode:",
        f"\ndef {signature}:\n{function.body}",
        {"level": plan.level, "kind": kind, "function": name, "tests": tests},
    )


def defines(text: str, name: str) -> bool:
    """Whether a text is a Python program with a function of that name."""
    try:
        program = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in program.body)


KINDS = (draw_list, draw_list, draw_loop, draw_text, draw_arithmetic)


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Coding(Procedural):
    """Functions from descriptions; their quality is 1 where all hidden tests pass, else 0.

    `test_seconds` > 0 limits the run of one function with its tests.
    """

    quality_name: ClassVar[str] = "tests_passed"
    name: Name = "coding"
    test_seconds: float = Field(default=2.0, gt=0)

    def draw(self, author: Author) -> Problem:
        """Draw a function on a list, with a loop, on a string or on two numbers."""
        plan, kind = draw_plan(author), author.choice(KINDS)
        while (problem := kind(author, plan)) is None:
            pass
        return problem

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Run the function with its hidden tests in the sandbox; see whether it is a function at all."""
        program = "\n".join([text, *example.metadata["tests"]])
        passed = run_program(program, seconds=self.test_seconds).passed
        return {"tests_passed": float(passed), "compiles": float(defines(text, example.metadata["function"]))}
