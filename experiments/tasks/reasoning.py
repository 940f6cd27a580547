"""Arithmetic word problems of two to four computed steps, with the working written out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec

from experiments.tasks import reasoning_wording as say
from experiments.tasks.base import ITEMS, NAMES, Author, Example, Name, Problem, Procedural

ANSWER = re.compile(r"answer is (-?\d+)(?![\d/]|[.,]\d)")  # not the start of 14.5, 14/2 or 14,000
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
ASIDE_SHARE = 0.5  # of the problems of level 3


@dataclass(frozen=True)
class Limits:
    """How large the numbers of a level are.

    An event changes a number by up to `amount`; a product takes up to `multiplied` several times; in a comparison the
    first has up to `owned`, another up to `more` than the one before; no result is larger than `largest`.
    """

    amount: int
    multiplied: int
    owned: int
    more: int
    largest: int


LIMITS = {1: Limits(60, 12, 60, 60, 199), 2: Limits(150, 30, 130, 75, 499), 3: Limits(250, 45, 199, 125, 999)}


@dataclass(frozen=True)
class Story:
    """What is told, asked and worked out, before it is put into a format."""

    content: tuple[Any, ...]
    facts: list[str]
    ask: str
    working: list[str]
    answer: int
    unit: str


def equation(value: int, sign: str, operand: int) -> tuple[int, str]:
    """Compute one step exactly and write it out; division is only drawn where it leaves no remainder."""
    results = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}
    return results[sign], f"{value} {sign} {operand} = {results[sign]}"


def draw_step(author: Author, value: int, level: int) -> tuple[str, int]:
    """Draw an operation that keeps the running value between 2 and the largest number of the level."""
    limits = LIMITS[level]
    room = limits.largest - value
    divisors = [n for n in range(2, 10) if value % n == 0 and 2 <= value // n <= limits.multiplied]
    kinds = ["+"] * 3 * (room >= 20) + ["-"] * 3 * (value > 9)
    kinds += ["*"] * 2 * (value <= limits.multiplied) + ["/"] * 2 * (level > 1 and bool(divisors))
    sign = author.choice(kinds)
    if sign == "/":
        return sign, author.choice(divisors)
    bounds = {"+": min(limits.amount, room), "-": min(limits.amount, value - 2), "*": 9}
    return sign, author.randint(2, bounds[sign])


def draw_chain(author: Author, level: int, people: list[str], items: list[str]) -> Story:
    """One owner, two to four events in a row; the first may be a product in the opening."""
    (who, other), item, limits = people[:2], items[0], LIMITS[level]
    product = author.random() < 0.4
    if product:
        groups, each = author.randint(2, 9), author.randint(2 + 3 * level, limits.multiplied)
        value, start = equation(groups, "*", each)
        facts = [author.template(say.PRODUCT_OPENINGS).format(who=who, g=groups, e=each, item=item)]
        content: list[object] = ["chain", level, groups, each]
    else:
        value = author.randint(10, limits.largest // 2)
        start = str(value)
        facts = [author.template(say.CHAIN_OPENINGS).format(who=who, v=value, item=item)]
        content = ["chain", level, value]
    working = [author.wording(say.STARTS).format(who=who, v=start, item=item)]
    labels = author.wording(say.LABELS)
    for _ in range(level + 1 - product):
        sign, n = draw_step(author, value, level)
        value, line = equation(value, sign, n)
        facts.append(author.template(say.EVENTS[sign]).format(who=who, other=other, n=n))
        working.append(f" {labels[sign]}: {line} {item}.")
        content += [sign, n]
    ask = author.template(say.CHAIN_QUESTIONS).format(who=who, item=item)
    return Story(tuple(content), facts, ask, working, value, item)


def draw_comparison(author: Author, level: int, people: list[str], items: list[str]) -> Story:
    """Owners who are each described by the one before; the question is a sum.

    Level 1 has two owners, level 2 asks for two of three, level 3 for all three, told in any order.
    """
    people, item, limits = people[: min(3, level + 1)], items[0], LIMITS[level]
    values = [author.randint(10, limits.owned)]
    facts = [author.template(say.OWNERS).format(who=people[0], v=values[0], item=item)]
    working = [author.wording(say.KNOWN).format(who=people[0], v=values[0], item=item)]
    content: list[object] = ["comparison", level, values[0]]
    for a, b in pairwise(people):
        signs = "+" + "-" * (values[-1] > 9) + "*" * (values[-1] <= limits.multiplied)
        sign = author.choice(signs)
        n = author.randint(2, {"+": limits.more, "-": min(limits.amount, values[-1] - 2), "*": 5}[sign])
        much, than = say.MUCH[sign]
        facts.append(author.template(say.COMPARISONS).format(a=a, b=b, n=n, much=much, than=than, item=item))
        result, line = equation(values[-1], sign, n)
        working.append(f" {b}: {line} {item}.")
        values.append(result)
        content += [sign, n]
    asked = [author.randrange(2), 2] if level == 2 else list(range(len(people)))
    label, total = author.wording(("Together", "Sum", "Total")), values[asked[0]]
    for i in asked[1:]:
        total, line = equation(total, "+", values[i])
        working.append(f" {label}: {line} {item}.")
    if level == 3:
        author.shuffle(facts)
    named = [people[i] for i in asked]
    ask = author.template(say.COMPARE_QUESTIONS).format(item=item, people=f"{', '.join(named[:-1])} and {named[-1]}")
    return Story((*content, *asked), facts, ask, working, total, item)


def draw_purchase(author: Author, level: int, people: list[str], items: list[str]) -> Story:
    """Goods are paid from a sum of money; the question is the change.

    Level 1 has one kind of goods, level 2 adds one with its whole price, level 3 has two kinds, each with its price.
    """
    who, limits = people[0], LIMITS[level]
    cost_way, content = author.wording(say.COSTS), ["purchase", level]
    facts, working, costs = [], [], []
    for item in items[: 1 + (level == 3)]:
        n = author.randint(2, 9)
        dearest = limits.largest * 2 // 5 // n  # two such costs and the change stay in the limits
        price = author.randint(2 + 3 * level, min(limits.multiplied, dearest))
        cost, line = equation(n, "*", price)
        facts.append(author.template(say.GOODS).format(who=who, n=n, item=item, p=price))
        working.append(cost_way.format(who=who, item=item, v=line))
        costs.append(cost)
        content += [n, price]
    if level == 2:
        costs.append(author.randint(5, 99))
        facts.append(author.template(say.SINGLES).format(who=who, item=items[1], p=costs[1]))
        content.append(costs[1])
    spent = costs[0]
    if level > 1:
        spent, line = equation(costs[0], "+", costs[1])
        working.append(f" {author.wording(('Cost', 'Total', 'Sum'))}: {line} dollars.")
    money = author.randint(spent + 2, limits.largest)
    place = author.randint(0, len(facts)) if level == 3 else 0
    facts.insert(place, author.template(say.PURSES).format(who=who, m=money))
    left, line = equation(money, "-", spent)
    working.append(f" {author.wording(('Left', 'Change', 'Rest'))}: {line} dollars.")
    ask = author.template(say.CHANGE_QUESTIONS).format(who=who)
    return Story((*content, money), facts, ask, working, left, "dollars")


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reasoning(Procedural):
    """Word problems.

    Scores: `final_answer` is 1 where the last stated answer is right, else 0; `steps` is the share of the gold
    equations that are written out.
    """

    quality_name: ClassVar[str] = "final_answer"
    name: Name = "reasoning"

    def draw(self, author: Author) -> Problem:
        """Draw a chain of events, a comparison or a purchase; at level 3 with a number that does not matter."""
        level = author.level()
        people, items = author.entities(NAMES, 4), author.entities(ITEMS, 3)
        story = author.choice((draw_chain, draw_chain, draw_comparison, draw_purchase))(author, level, people, items)
        facts = story.facts
        if level == 3 and author.random() < ASIDE_SHARE:
            aside = author.template(say.ASIDES).format(who=people[3], n=author.randint(2, 99), item=items[2])
            # Not between two events: "of them" would mean the wrong things.
            facts = author.choice(([aside, *facts], [*facts, aside]))
        prompt = author.template(say.FORMATS).format(facts=" ".join(facts), ask=story.ask)
        ending = author.wording(say.ENDINGS).format(answer=story.answer, unit=story.unit)
        metadata = {"level": level, "answer": story.answer}
        return Problem(story.content, prompt, "".join(story.working) + ending, metadata)

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Compare the number after the last 'answer is', and every equation of the working, with the gold ones."""
        stated = ANSWER.findall(text)
        right = bool(stated) and int(stated[-1]) == example.metadata["answer"]
        gold, found = Counter(EQUATION.findall(example.reference)), Counter(EQUATION.findall(text))
        return {"final_answer": float(right), "steps": (gold & found).total() / max(1, gold.total())}
