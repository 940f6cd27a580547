"""The operations on numbers and lists of the coding family; every wording keeps to few words."""

from __future__ import annotations

from experiments.tasks.base import Author
from experiments.tasks.coding_pieces import Operation

FILTERS = ("keep those {}", "take the ones {}", "choose those {}", "select those {}", "keep the ones {}")
CHANGED = ("each is {}", "every one is {}", "each one is {}", "every number is {}", "each number is {}")


def number(author: Author) -> int:
    """A constant of a condition, change or chain."""
    return author.randint(2, 20)


def number_or_second(author: Author) -> int | None:
    """The second argument in about half of the cases."""
    return author.choice((None, author.randint(2, 30)))


def operand(pair: tuple[int, int], n: int | None) -> int:
    """The constant, or the second argument."""
    return pair[1] if n is None else n


CONDITIONS = (
    Operation("even", ("even", "divisible by 2"), ("{v} % 2 == 0", "not {v} % 2"), lambda x, n: x % 2 == 0),
    Operation("odd", ("odd", "not even"), ("{v} % 2 == 1", "{v} % 2 != 0"), lambda x, n: x % 2 == 1),
    Operation(">", ("greater than {n}", "above {n}", "over {n}"), ("{v} > {n}",), lambda x, n: x > n, number),
    Operation("<", ("less than {n}", "below {n}", "under {n}"), ("{v} < {n}",), lambda x, n: x < n, number),
    Operation(">=", ("at least {n}", "not below {n}"), ("{v} >= {n}",), lambda x, n: x >= n, number),
    Operation("!=", ("not equal to {n}", "other than {n}"), ("{v} != {n}",), lambda x, n: x != n, number),
    Operation("by", ("divisible by {n}",), ("{v} % {n} == 0",), lambda x, n: x % n == 0, lambda a: a.randint(3, 9)),
)
CHANGES = (  # their wordings read on after "each is"
    Operation("+", ("increased by {n}", "raised by {n}"), ("{v} + {n}",), lambda x, n: x + n, number),
    Operation("-", ("decreased by {n}", "reduced by {n}"), ("{v} - {n}",), lambda x, n: x - n, number),
    Operation("*", ("multiplied by {n}", "scaled by {n}"), ("{v} * {n}",), lambda x, n: x * n, number),
    Operation("/", ("divided by {n} and rounded down",), ("{v} // {n}",), lambda x, n: x // n, number),
    Operation("%", ("taken modulo {n}",), ("{v} % {n}",), lambda x, n: x % n, number),
    Operation("square", ("squared", "multiplied by itself"), ("{v} * {v}", "{v} ** 2"), lambda x, n: x * x),
    Operation("negate", ("negated", "given the other sign"), ("-{v}",), lambda x, n: -x),
)
LIST_ENDINGS = (
    Operation("sum", ("their sum", "the total"), ("sum({v})",), lambda x, n: sum(x)),
    Operation("len", ("how many there are", "their number"), ("len({v})",), lambda x, n: len(x)),
    Operation(
        "max", ("the largest, or 0 if there is none",), ("max({v}, default=0)",), lambda x, n: max(x) if x else 0
    ),
    Operation(
        "min", ("the smallest, or 0 if there is none",), ("min({v}, default=0)",), lambda x, n: min(x) if x else 0
    ),
    Operation("sorted", ("them sorted", "them in rising order"), ("sorted({v})",), lambda x, n: sorted(x)),
    Operation(
        "down",
        ("them in falling order", "them from high to low"),
        ("sorted({v}, reverse=True)", "sorted({v})[::-1]"),
        lambda x, n: sorted(x, key=lambda y: -y),
    ),
    Operation(
        "reversed",
        ("them in reverse", "them from last to first"),
        ("{v}[::-1]", "list(reversed({v}))"),
        lambda x, n: [x[i] for i in range(len(x) - 1, -1, -1)],
    ),
    Operation("unique", ("the distinct ones sorted",), ("sorted(set({v}))",), lambda x, n: sorted(dict.fromkeys(x))),
)
CHAIN = (  # on the pair of a running value and the second argument
    Operation(
        "+",
        ("add {n}", "increase it by {n}", "raise it by {n}", "add {n} to it", "increase by {n}"),
        ("{v} + {n}",),
        lambda pair, n: (pair[0] + operand(pair, n), pair[1]),
        number_or_second,
    ),
    Operation(
        "-",
        ("subtract {n}", "decrease it by {n}", "reduce it by {n}", "subtract {n} from it", "decrease by {n}"),
        ("{v} - {n}",),
        lambda pair, n: (pair[0] - operand(pair, n), pair[1]),
        number_or_second,
    ),
    Operation(
        "*",
        ("multiply by {n}", "multiply it by {n}", "scale by {n}", "multiply this by {n}", "scale it by {n}"),
        ("{v} * {n}",),
        lambda pair, n: (pair[0] * operand(pair, n), pair[1]),
        number_or_second,
    ),
)
CHAIN_ENDINGS = (Operation("value", ("the new number", "the final number"), ("{v}",), lambda pair, n: pair[0]),)
