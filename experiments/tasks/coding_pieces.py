"""What the functions of the coding family are made of: operations, and how they are told, coded and computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from experiments.tasks.base import Author

ITEM_NAMES = ("x", "v", "y")  # of a comprehension or a loop
PLAIN = ("{}",)  # for operations with five wordings or more of their own
STARTS = ("start at {n}", "start with {n}", "begin with {n}", "start from {n}", "begin at {n}")
RETURNS = ("return {}", "give back {}", "the result is {}", "give {}", "finally return {}")
NUMBERS = {
    "sum": (
        "the sum of {a} and {b}",
        "({a} plus {b})",
        "the total of {a} and {b}",
        "({a} + {b})",
        "({a} and {b} together)",
    ),
    "difference": (
        "({a} minus {b})",
        "the difference of {a} and {b}",
        "({a} - {b})",
        "({a} reduced by {b})",
        "({a} less {b})",
    ),
    "double": ("twice {a}", "two times {a}", "double {a}", "the double of {a}", "two times the number {a}"),
}


@dataclass(frozen=True)
class Operation:
    """One kind of operation with a constant `n` (None: it needs none, or it takes the function's second argument).

    `told` and `codes` are its wordings in a prompt and its equally good codes for a variable `v`. `compute(value, n)`
    stands apart from the codes, so that a wrong code fails its own hidden tests.
    """

    key: str
    told: tuple[str, ...]
    codes: tuple[str, ...]
    compute: Callable[[Any, Any], Any]
    constant: Callable[[Author], Any] = lambda author: None


@dataclass(frozen=True)
class Piece:
    """A drawn operation; `key` identifies it, `code` is an expression."""

    key: str
    told: str
    code: str
    compute: Callable[[Any], Any]


@dataclass(frozen=True)
class Plan:
    """How hard a function is: its steps, constants told as sums, and the last two steps told in reversed order."""

    level: int
    steps: int
    sums: bool
    reordered: bool


@dataclass(frozen=True)
class Function:
    """A drawn function; `rivals` compute the same without one of its steps."""

    content: tuple[Any, ...]
    arguments: tuple[str, ...]
    told: str
    body: str
    compute: Callable[..., Any]
    rivals: tuple[Callable[..., Any], ...]


@cache
def framed(frames: tuple[str, ...], told: tuple[str, ...]) -> tuple[str, ...]:
    """Every wording in every frame: few words of each make a pool with combinations left for the test."""
    return tuple(frame.replace("{}", words) for frame in frames for words in told)


def tell_number(author: Author, n: int) -> str:
    """Write a number plainly or as a small sum, difference or product that the code has to resolve."""
    kind = author.choice(("plain", "sum", "difference", "double"))
    if kind == "sum" and n >= 3:
        part = author.randint(1, n - 1)
        return author.template(NUMBERS[kind]).format(a=part, b=n - part)
    if kind == "difference":
        part = author.randint(1, 20)
        return author.template(NUMBERS[kind]).format(a=n + part, b=part)
    if kind == "double" and n % 2 == 0:
        return author.template(NUMBERS[kind]).format(a=n // 2)
    return str(n)


def draw_piece(
    author: Author,
    operations: tuple[Operation, ...],
    frames: tuple[str, ...],
    variable: str,
    sums: bool = False,
    second: str = "",
) -> Piece:
    """Draw an operation on `variable`; `sums` hides its constant, `second` names the function's second argument."""
    operation = author.choice(operations)
    n = operation.constant(author)
    named = second if n is None else n
    shown = tell_number(author, n) if sums and isinstance(n, int) else named
    return Piece(
        operation.key if n is None else f"{operation.key}{n}",
        author.template(framed(frames, operation.told)).format(n=shown),
        author.wording(operation.codes).format(v=variable, n=named),
        lambda value: operation.compute(value, n),
    )
