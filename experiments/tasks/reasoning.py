"""Arithmetic word problems of two to four steps, with the working written out."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import ITEMS, NAMES, Example, Name, Problem, Task

LARGEST = 999  # no intermediate result exceeds this
ANSWER = re.compile(r"[Tt]he answer is (-?\d+)")


@dataclass(frozen=True)
class Step:
    """One operation: how the story tells it and what the working calls it."""

    sign: str
    sentences: tuple[str, ...]
    label: str


GAINS = (
    Step("+", ("{other} gives {who} {n} more.", "{who} gets {n} from {other}."), "Gift"),
    Step("+", ("{who} buys {n} more.", "{who} buys another {n} at the shop."), "Bought"),
    Step("+", ("{who} finds {n} in a drawer.", "Then {who} finds {n} more."), "Found"),
    Step("+", ("{who} wins {n} in a game.", "After that {who} wins {n}."), "Won"),
)
LOSSES = (
    Step("-", ("{who} gives {n} to {other}.", "{other} takes {n} of them."), "Given"),
    Step("-", ("{who} loses {n}.", "On the way {who} loses {n} of them."), "Lost"),
    Step("-", ("{who} sells {n}.", "Then {who} sells {n} at the market."), "Sold"),
    Step("-", ("{n} of them break.", "Sadly {n} are broken."), "Broken"),
)
TIMES = (
    Step("*", ("Then the number grows {n} times as large.", "{who} now makes it {n} times as many."), "Grown"),
    Step("*", ("{n} friends each bring as many as {who} has, and {who} keeps only theirs.",), "Friends"),
)
SHARES = (
    Step("/", ("{who} puts them into {n} equal piles and keeps one pile.", "{n} friends share them equally."), "Share"),
)
LAST_QUESTIONS = (
    "How many {item} does {who} have now?",
    "How many {item} are there in the end?",
    "What is the final number of {item}?",
)
COMPARE_QUESTIONS = ("How many {item} do they have together?", "How many {item} is that in all?")


def apply(value: int, sign: str, operand: int) -> int:
    """Compute one step exactly; division is only drawn where it leaves no remainder."""
    results = {"+": value + operand, "-": value - operand, "*": value * operand}
    return value // operand if sign == "/" else results[sign]


def draw_step(rng: random.Random, value: int) -> tuple[Step, int]:
    """Draw an operation that keeps the running value between 2 and LARGEST."""
    divisors = [n for n in range(2, 10) if value % n == 0 and value // n >= 2]
    largest_factor = min(9, LARGEST // value)
    kinds = ["-"] * 3 + ["+"] * 3 * (value <= LARGEST - 300)
    kinds += ["*"] * 2 * (largest_factor >= 2) + ["/"] * 2 * bool(divisors)
    kind = rng.choice(kinds)
    if kind == "/":
        return rng.choice(SHARES), rng.choice(divisors)
    if kind == "*":
        return rng.choice(TIMES), rng.randint(2, largest_factor)
    if kind == "-" and value > 4:
        return rng.choice(LOSSES), rng.randint(2, min(value - 2, 300))
    return rng.choice(GAINS), rng.randint(2, 300)


def draw_chain(rng: random.Random) -> Problem:
    """One owner, two to four events in a row."""
    who, other = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    if rng.random() < 0.4:
        groups, each = rng.randint(2, 9), rng.randint(12, 80)
        value = groups * each
        opening = rng.choice(("{who} has {g} sets of {e} {item}.", "{who} owns {g} packs with {e} {item} in each."))
        story = [opening.format(who=who, g=groups, e=each, item=item)]
        working = [f" Start: {groups} * {each} = {value}."]
        content: list[object] = ["chain", groups, each]
    else:
        value = rng.randint(20, 300)
        openings = ("{who} has {v} {item}.", "At first {who} owns {v} {item}.", "There are {v} {item} with {who}.")
        opening = rng.choice(openings)
        story = [opening.format(who=who, v=value, item=item)]
        working = [f" Start: {value}."]
        content = ["chain", value]
    for _ in range(rng.choice((2, 2, 3, 3, 4)) - len(content) // 3):
        step, n = draw_step(rng, value)
        result = apply(value, step.sign, n)
        story.append(rng.choice(step.sentences).format(who=who, other=other, n=n))
        working.append(f" {step.label}: {value} {step.sign} {n} = {result}.")
        content += [step.label, n]
        value = result
    story.append(rng.choice(LAST_QUESTIONS).format(who=who, item=item))
    return as_problem(story, working, value, item, content)


def draw_comparison(rng: random.Random) -> Problem:
    """Two or three owners, each described by another one, in any order of telling; the question is their sum."""
    people = rng.sample(NAMES, rng.choice((2, 2, 3)))
    item = rng.choice(ITEMS)
    value = total = rng.randint(10, 150)
    story = [f"{people[0]} has {value} {item}."]
    working = [f" {people[0]}: {value}."]
    content: list[object] = ["compare", value]
    phrases = {
        "+": "{b} has {n} more than {a}.",
        "-": "{b} has {n} fewer than {a}.",
        "*": "{b} has {n} times as many as {a}.",
    }
    for before, person in pairwise(people):
        sign = rng.choice("+-*") if 4 < value <= 100 else rng.choice("+-" if value > 4 else "+")
        n = {"+": rng.randint(2, 150), "-": rng.randint(2, max(2, value - 2)), "*": rng.randint(2, 5)}[sign]
        result = apply(value, sign, n)
        story.append(phrases[sign].format(a=before, b=person, n=n))
        working.append(f" {person}: {value} {sign} {n} = {result}.")
        working.append(f" Together: {total} + {result} = {total + result}.")
        content += [sign, n]
        value, total = result, total + result
    rng.shuffle(story)
    story.append(rng.choice(COMPARE_QUESTIONS).format(item=item))
    return as_problem(story, working, total, item, content)


def draw_purchase(rng: random.Random) -> Problem:
    """Two kinds of goods are paid from a sum of money; the question is the change."""
    who = rng.choice(NAMES)
    first, second = rng.sample(ITEMS, 2)
    (count_a, count_b), (price_a, price_b) = rng.choices(range(2, 10), k=2), rng.choices(range(3, 60), k=2)
    cost_a, cost_b = count_a * price_a, count_b * price_b
    spent = cost_a + cost_b
    money = spent + rng.randint(2, 300)
    story = [
        rng.choice(
            (
                "{who} buys {a} {x} for {p} coins each and {b} {y} for {q} coins each.",
                "In a shop {who} takes {a} {x} at {p} coins each, then {b} {y} at {q} coins each.",
            )
        ).format(who=who, a=count_a, x=first, p=price_a, b=count_b, y=second, q=price_b),
        rng.choice(("{who} pays with {m} coins.", "{who} had {m} coins.")).format(who=who, m=money),
        rng.choice(("How many coins are left?", "How many coins does {who} have left?")).format(who=who),
    ]
    working = [
        f" The {first}: {count_a} * {price_a} = {cost_a}.",
        f" The {second}: {count_b} * {price_b} = {cost_b}.",
        f" Cost: {cost_a} + {cost_b} = {spent}.",
        f" Left: {money} - {spent} = {money - spent}.",
    ]
    return as_problem(story, working, money - spent, "coins", ["purchase", count_a, price_a, count_b, price_b, money])


def as_problem(story: list[str], working: list[str], answer: int, unit: str, content: list[object]) -> Problem:
    """Join the parts under the header that makes the family recognizable."""
    prompt = f"Question: {' '.join(story)}\nAnswer:"
    reference = f"{''.join(working)} The answer is {answer} {unit}."
    return Problem(tuple(content), prompt, reference, {"answer": answer})


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reasoning(Task):
    """Word problems; the score is 1 where the stated final answer is right, else 0."""

    quality_name: ClassVar[str] = "final_answer"
    name: Name = "reasoning"

    def draw(self, rng: random.Random) -> Problem:
        """Draw a chain of events, a comparison or a purchase."""
        return rng.choice((draw_chain, draw_chain, draw_comparison, draw_purchase))(rng)

    def score(self, example: Example, text: str) -> float:
        """Compare the number after the last 'the answer is' with the gold one."""
        stated = ANSWER.findall(text)
        return float(bool(stated) and int(stated[-1]) == example.metadata["answer"])
