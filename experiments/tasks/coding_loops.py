"""Functions of the coding family that add up a total in a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.tasks.base import Author
from experiments.tasks.coding_numbers import CHANGES, CONDITIONS
from experiments.tasks.coding_pieces import ITEM_NAMES, RETURNS, STARTS, Function, Piece, Plan, draw_piece, framed

TOTALS = ("the total", "the sum")
EACH = ("for every number {}", "for each number {}", "for every one {}", "for each one {}", "for any number {}")
ADDED = ("add it {}", "add the number {}", "add this number {}", "count in the number {}", "add that number {}")
SUBTRACTED = (
    "subtract it {}",
    "subtract the number {}",
    "subtract this number {}",
    "take away the number {}",
    "subtract that number {}",
)
# A condition that tells two actions apart, `a` when it holds and `b` when not, told in this order or the other one.
BRANCHES = (
    "if it is {}, {{a}}, else {{b}}",
    "if it is {}, {{a}}, otherwise {{b}}",
    "when it is {}, {{a}}, else {{b}}",
    "in case it is {}, {{a}}, otherwise {{b}}",
    "when it is {}, {{a}}, otherwise {{b}}",
)
BRANCHES_REORDERED = (
    "{{b}}, but if it is {}, {{a}}",
    "{{b}}, but when it is {}, {{a}}",
    "{{b}}, but in case it is {}, {{a}}",
    "{{b}}, except if it is {}: then {{a}}",
    "{{b}}, except when it is {}: then {{a}}",
)


@dataclass(frozen=True)
class Loop:
    """From `start` on, every number that `outer` lets pass changes the total by `then` if `inner` holds, or by `other`.

    What is None is left out.
    """

    start: int
    outer: Piece | None
    inner: Piece | None
    then: Piece | None
    other: Piece | None

    def compute(self, numbers: Sequence[int]) -> int:
        """The total."""
        return self.start + sum(self.amount(n) for n in numbers if self.outer is None or self.outer.compute(n))

    def amount(self, n: int) -> int:
        """What one number changes the total by."""
        change = self.then if self.inner is None or self.inner.compute(n) else self.other
        return change.compute(n) if change else 0


def draw_amount(author: Author, x: str, sums: bool) -> Piece:
    """Something to add or to subtract; its key begins with the sign, its code is without."""
    sign = author.choice("+-")
    piece = draw_piece(author, CHANGES, ADDED if sign == "+" else SUBTRACTED, x, sums)
    factor = 1 if sign == "+" else -1
    return replace(piece, key=sign + piece.key, compute=lambda n: factor * piece.compute(n))


def tell_loop(author: Author, plan: Plan, loop: Loop) -> str:
    """Describe a loop by the wordings of its pieces."""
    assert loop.inner and loop.then
    if not loop.other:
        action = f"{loop.inner.told}, {loop.then.told}"
    else:
        every = loop.outer.told if loop.outer else author.template(EACH).format("").strip()
        action = f"{every}, {loop.inner.told.format(a=loop.then.told, b=loop.other.told)}"
    start = author.template(STARTS).format(n=loop.start)
    return f"{start}; {action}; {author.template(framed(RETURNS, TOTALS))}"


def write_loop(author: Author, loop: Loop, xs: str, x: str) -> str:
    """Write the body of the function."""
    assert loop.inner and loop.then
    total = author.wording(("total", "result", "amount"))
    change = author.wording(("{t} {sign}= {code}", "{t} = {t} {sign} ({code})"))
    lines = [f"    {total} = {loop.start}", f"    for {x} in {xs}:"]
    indent = " " * 8
    if loop.outer:
        lines.append(f"{indent}if {loop.outer.code}:")
        indent += " " * 4
    lines.append(f"{indent}if {loop.inner.code}:")
    lines.append(f"{indent}    {change.format(t=total, sign=loop.then.key[0], code=loop.then.code)}")
    if loop.other:
        lines.append(f"{indent}else:")
        lines.append(f"{indent}    {change.format(t=total, sign=loop.other.key[0], code=loop.other.code)}")
    return "\n".join([*lines, f"    return {total}"])


def draw_accumulation(author: Author, plan: Plan, xs: str) -> Function:
    """Level 1 has a condition, level 2 an alternative too, level 3 a condition around both."""
    x = author.wording(ITEM_NAMES)
    branches = BRANCHES_REORDERED if plan.reordered else BRANCHES
    loop = Loop(
        start=author.randint(0, 9),
        outer=draw_piece(author, CONDITIONS, EACH, x, plan.sums) if plan.level > 2 else None,
        inner=draw_piece(author, CONDITIONS, EACH if plan.level == 1 else branches, x, plan.sums),
        then=draw_amount(author, x, plan.sums),
        other=draw_amount(author, x, plan.sums) if plan.level > 1 else None,
    )
    content = (loop.start, *(part.key for part in (loop.outer, loop.inner, loop.then, loop.other) if part))
    lesser = (replace(loop, outer=None), replace(loop, inner=None), replace(loop, then=None), replace(loop, other=None))
    rivals = tuple(other.compute for other in lesser if other != loop)
    return Function(
        content, (xs,), tell_loop(author, plan, loop), write_loop(author, loop, xs, x), loop.compute, rivals
    )
