"""Python functions from a description, judged by hidden tests that run in a separate interpreter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import Example, Name, Problem, Task, words
from experiments.tasks.sandbox import run_program

HIDDEN_TESTS = 5
FUNCTION_NAMES = words("solve run work make build find check count apply change convert process")
LIST_NAMES = words("values numbers data nums xs")
TEXT_NAMES = words("text word line name")
LETTERS = "abcdeilmnorst"


@dataclass(frozen=True)
class Piece:
    """One step of a function: its wordings, its code (with `{v}` for the variable) and what it computes.

    The computation stands apart from the code, so that a wrong code template fails its own hidden tests.
    """

    key: str
    words: tuple[str, ...]
    code: str
    compute: Callable[[Any], Any]


def word_number(rng: random.Random, n: int) -> str:
    """Write a number plainly or as a small sum, difference or product that the code has to resolve."""
    kind = rng.choice(("plain", "plain", "sum", "difference", "double"))
    if kind == "sum" and n >= 3:
        part = rng.randint(1, n - 1)
        return f"the sum of {part} and {n - part}"
    if kind == "difference":
        part = rng.randint(1, 20)
        return f"{n + part} minus {part}"
    return f"twice {n // 2}" if kind == "double" and n % 2 == 0 else str(n)


def draw_condition(rng: random.Random) -> Piece:
    """A test of one integer."""
    n, divisor = rng.randint(2, 20), rng.randint(3, 9)
    w = word_number(rng, n)
    return rng.choice(
        (
            Piece("even", ("even", "divisible by 2"), "{v} % 2 == 0", lambda x: x % 2 == 0),
            Piece("odd", ("odd", "not even"), "{v} % 2 == 1", lambda x: x % 2 == 1),
            Piece(f">{n}", (f"greater than {w}", f"above {w}"), f"{{v}} > {n}", lambda x: x > n),
            Piece(f"<{n}", (f"less than {w}", f"below {w}"), f"{{v}} < {n}", lambda x: x < n),
            Piece(f">={n}", (f"at least {w}",), f"{{v}} >= {n}", lambda x: x >= n),
            Piece(f"!={n}", (f"not equal to {w}", f"different from {w}"), f"{{v}} != {n}", lambda x: x != n),
            Piece(
                f"%{divisor}",
                (f"divisible by {divisor}", f"a multiple of {divisor}"),
                f"{{v}} % {divisor} == 0",
                lambda x: x % divisor == 0,
            ),
        )
    )


def draw_change(rng: random.Random) -> Piece:
    """An operation on one integer; its wordings read on after 'each is'."""
    n = rng.randint(2, 20)
    w = word_number(rng, n)
    return rng.choice(
        (
            Piece(f"+{n}", (f"increased by {w}", f"raised by {w}"), f"{{v}} + {n}", lambda x: x + n),
            Piece(f"-{n}", (f"decreased by {w}", f"reduced by {w}"), f"{{v}} - {n}", lambda x: x - n),
            Piece(f"*{n}", (f"multiplied by {w}", f"taken {n} times"), f"{{v}} * {n}", lambda x: x * n),
            Piece(f"//{n}", (f"divided by {w} and rounded down",), f"{{v}} // {n}", lambda x: x // n),
            Piece(f"%{n}", (f"replaced by its remainder modulo {w}",), f"{{v}} % {n}", lambda x: x % n),
            Piece("square", ("squared", "multiplied by itself"), "{v} * {v}", lambda x: x * x),
            Piece("negate", ("negated", "given the other sign"), "-{v}", lambda x: -x),
        )
    )


ENDINGS = (
    Piece("sum", ("their sum", "the total"), "sum({v})", sum),
    Piece("len", ("how many there are", "their number"), "len({v})", len),
    Piece("max", ("the largest, or 0 if there is none",), "max({v}, default=0)", lambda x: max(x, default=0)),
    Piece("min", ("the smallest, or 0 if there is none",), "min({v}, default=0)", lambda x: min(x, default=0)),
    Piece("sorted", ("them sorted", "them in rising order"), "sorted({v})", sorted),
    Piece("down", ("them in falling order",), "sorted({v}, reverse=True)", lambda x: sorted(x, reverse=True)),
    Piece("reversed", ("them in reverse", "them from last to first"), "{v}[::-1]", lambda x: x[::-1]),
    Piece("unique", ("the distinct ones sorted",), "sorted(set({v}))", lambda x: sorted(set(x))),
)


def draw_text_change(rng: random.Random) -> Piece:
    """An operation that turns a string into a string."""
    a, b = rng.sample(LETTERS, 2)
    n = rng.randint(2, 6)
    return rng.choice(
        (
            Piece("upper", ("put it in upper case", "make all letters capital"), "{v}.upper()", str.upper),
            Piece("reverse", ("reverse it", "turn it around"), "{v}[::-1]", lambda s: s[::-1]),
            Piece(
                f"rep{a}{b}",
                (f"replace '{a}' by '{b}'", f"turn each '{a}' into '{b}'"),
                f"{{v}}.replace('{a}', '{b}')",
                lambda s: s.replace(a, b),
            ),
            Piece(
                f"del{a}",
                (f"remove each '{a}'", f"drop all '{a}'"),
                f"{{v}}.replace('{a}', '')",
                lambda s: s.replace(a, ""),
            ),
            Piece(f"first{n}", (f"keep the first {n} letters",), f"{{v}}[:{n}]", lambda s: s[:n]),
            Piece(f"skip{n}", (f"drop the first {n} letters",), f"{{v}}[{n}:]", lambda s: s[n:]),
            Piece(f"times{n}", (f"repeat it {n} times",), f"{{v}} * {n}", lambda s: s * n),
            Piece(f"end{a}", (f"add '{a}' at the end", f"append '{a}'"), f"{{v}} + '{a}'", lambda s: s + a),
            Piece(f"front{a}", (f"put '{a}' in front",), f"'{a}' + {{v}}", lambda s: a + s),
        )
    )


def draw_text_ending(rng: random.Random) -> Piece:
    """The last operation on a string."""
    a = rng.choice(LETTERS)
    return rng.choice(
        (
            Piece("text", ("return the result", "return it"), "{v}", lambda s: s),
            Piece("length", ("return its length",), "len({v})", len),
            Piece(
                f"count{a}",
                (f"return the number of '{a}' in it", f"count the '{a}'"),
                f"{{v}}.count('{a}')",
                lambda s: s.count(a),
            ),
            Piece(f"has{a}", (f"tell whether it contains '{a}'",), f"'{a}' in {{v}}", lambda s: a in s),
            Piece(
                f"at{a}", (f"tell whether it starts with '{a}'",), f"{{v}}.startswith('{a}')", lambda s: s.startswith(a)
            ),
        )
    )


def tell_steps(rng: random.Random, phrases: list[str]) -> str:
    """Tell the steps in their order, or the last two as 'the last one, but before that the one before it'."""
    if rng.random() < 0.5:
        return ", then ".join(phrases)
    *early, before, last = phrases
    return ", then ".join([*early, f"{last}, but before that {before}"])


def draw_numbers(rng: random.Random) -> list[list[int]]:
    """Inputs of the hidden tests: the empty list, short and longer lists."""
    return [[], *([rng.randint(-9, 40) for _ in range(rng.randint(3, 9))] for _ in range(HIDDEN_TESTS - 1))]


def draw_list(rng: random.Random) -> Problem:
    """Two or three steps on a list (each a filter or a change), then an ending."""
    name, xs = rng.choice(FUNCTION_NAMES), rng.choice(LIST_NAMES)
    kinds = rng.choice(("fc", "cf", "fcf", "fcc", "cfc", "cfc", "ccf"))
    steps = [(kind, draw_condition(rng) if kind == "f" else draw_change(rng)) for kind in kinds]
    ending = rng.choice(ENDINGS)
    told, lines = [], [f"\ndef {name}({xs}):"]
    for kind, piece in steps:
        code, phrase = piece.code.format(v="x"), rng.choice(piece.words)
        told.append(f"keep those {phrase}" if kind == "f" else f"each is {phrase}")
        lines.append(f"    {xs} = [x for x in {xs} if {code}]" if kind == "f" else f"    {xs} = [{code} for x in {xs}]")
    lines.append(f"    return {ending.code.format(v=xs)}")

    def compute(numbers: list[int]) -> Any:
        for kind, piece in steps:
            numbers = [x for x in numbers if piece.compute(x)] if kind == "f" else [piece.compute(x) for x in numbers]
        return ending.compute(numbers)

    text = f"{name}({xs}) on a list of numbers: {tell_steps(rng, told)}; return {rng.choice(ending.words)}."
    content = ("list", *((kind, piece.key) for kind, piece in steps), ending.key)
    return as_problem(rng, text, lines, name, content, [(n,) for n in draw_numbers(rng)], compute)


def draw_loop(rng: random.Random) -> Problem:
    """An accumulator in a loop with a condition."""
    name, xs = rng.choice(FUNCTION_NAMES), rng.choice(LIST_NAMES)
    condition, change = draw_condition(rng), draw_change(rng)
    start = rng.randint(0, 9)
    sign, word = rng.choice((("+", "add"), ("-", "subtract")))
    lines = [
        f"\ndef {name}({xs}):",
        f"    total = {start}",
        f"    for x in {xs}:",
        f"        if {condition.code.format(v='x')}:",
        f"            total {sign}= {change.code.format(v='x')}",
        "    return total",
    ]
    text = (
        f"{name}({xs}) with a loop: start at {start}; for every number {rng.choice(condition.words)}, "
        f"{word} it {rng.choice(change.words)}; return the total."
    )

    def compute(numbers: list[int]) -> int:
        amount = sum(change.compute(x) for x in numbers if condition.compute(x))
        return start + amount if sign == "+" else start - amount

    content = ("loop", start, sign, condition.key, change.key)
    return as_problem(rng, text, lines, name, content, [(n,) for n in draw_numbers(rng)], compute)


def draw_text(rng: random.Random) -> Problem:
    """Three or four changes of a string, then an ending."""
    name, variable = rng.choice(FUNCTION_NAMES), rng.choice(TEXT_NAMES)
    steps = [draw_text_change(rng) for _ in range(rng.choice((3, 3, 4)))]
    ending = draw_text_ending(rng)
    lines = [f"\ndef {name}({variable}):"]
    lines += [f"    {variable} = {piece.code.format(v=variable)}" for piece in steps]
    lines.append(f"    return {ending.code.format(v=variable)}")
    told = tell_steps(rng, [rng.choice(piece.words) for piece in steps])
    text = f"{name}({variable}) on a string: {told}; {rng.choice(ending.words)}."

    def compute(value: str) -> Any:
        for piece in steps:
            value = piece.compute(value)
        return ending.compute(value)

    inputs = [("".join(rng.choices(LETTERS, k=rng.randint(0, 12))),) for _ in range(HIDDEN_TESTS)]
    return as_problem(rng, text, lines, name, ("text", *(p.key for p in steps), ending.key), inputs, compute)


def draw_arithmetic(rng: random.Random) -> Problem:
    """A chain of operations on two arguments, each with a constant or the second argument."""
    name = rng.choice(FUNCTION_NAMES)
    a, b = rng.sample("abcnmpk", 2)
    wordings = {"+": ("add {n}", "plus {n}"), "-": ("subtract {n}", "minus {n}"), "*": ("multiply by {n}", "times {n}")}
    steps = []
    for _ in range(rng.choice((3, 4, 5))):
        steps.append((rng.choice("+-*"), rng.choice((b, str(rng.randint(2, 30))))))
    lines = [f"\ndef {name}({a}, {b}):", *(f"    {a} = {a} {sign} {n}" for sign, n in steps), f"    return {a}"]
    told = [rng.choice(wordings[sign]).format(n=n if n == b else word_number(rng, int(n))) for sign, n in steps]
    text = f"{name}({a}, {b}) with two numbers: take {a}, {tell_steps(rng, told)}; return the result."

    def compute(first: int, second: int) -> int:
        for sign, n in steps:
            operand = second if n == b else int(n)
            first = {"+": first + operand, "-": first - operand, "*": first * operand}[sign]
        return first

    content = ("arithmetic", *((sign, "second" if n == b else n) for sign, n in steps))
    inputs = [(rng.randint(-9, 30), rng.randint(-9, 30)) for _ in range(HIDDEN_TESTS)]
    return as_problem(rng, text, lines, name, content, inputs, compute)


def as_problem(
    rng: random.Random,
    text: str,
    lines: list[str],
    name: str,
    content: tuple[Any, ...],
    inputs: list[tuple[Any, ...]],
    compute: Callable[..., Any],
) -> Problem:
    """Join description, code and hidden tests."""
    opening = rng.choice(("Write a function", "Define a function", "Program a function"))
    tests = [f"assert {name}({', '.join(map(repr, args))}) == {compute(*args)!r}" for args in inputs]
    return Problem(content, f"Task: {opening} {text}\nCode:", "\n".join(lines), {"function": name, "tests": tests})


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Coding(Task):
    """Functions from descriptions; the score is 1 where all hidden tests pass, else 0.

    `test_seconds` > 0 limits the run of one function with its tests.
    """

    quality_name: ClassVar[str] = "tests_passed"
    name: Name = "coding"
    test_seconds: float = Field(default=2.0, gt=0)

    def draw(self, rng: random.Random) -> Problem:
        """Draw a function on a list, with a loop, on a string or on two numbers."""
        return rng.choice((draw_list, draw_list, draw_loop, draw_text, draw_arithmetic))(rng)

    def score(self, example: Example, text: str) -> float:
        """Run the function with its hidden tests in the sandbox."""
        program = "\n".join([text, *example.metadata["tests"]])
        return float(run_program(program, seconds=self.test_seconds).passed)
