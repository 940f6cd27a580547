"""Reports of who sold or made how many of what and where, turned into structured summaries."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import ITEMS, NAMES, PLACES, Author, Example, Name, Problem, Procedural, words

COUNTS = {1: (2,), 2: (3,), 3: (3, 4, 4)}  # facts of a report, by level
LARGEST = {1: 99, 2: 999, 3: 99}  # where amounts are added up, they have two digits
SMALLEST = 10
VERBS = words("sold made sent stored packed moved bought counted")

FRAMES = (
    "Report, to sum up {order} with {closing}: {story}",
    "Report: {story} Sum this up {order}, with {closing}.",
    "Report. List it {order} and add {closing}: {story}",
    "Report of the week: {story} List this {order}, then {closing}.",
    "Please sum up the report {order} and add {closing}: {story}",
    "Sum up {order}, with {closing}. Report: {story}",
    "News, to list {order} with {closing}: {story}",
    "News: {story} Sum up the news {order} and add {closing}.",
    "News of the week: {story} List them {order}, then {closing}.",
    "News: {story} Now please list all {order}, with {closing}.",
)
ORDER_PHRASES = {
    "told": ("in order", "as told", "in the order told", "first to last", "in the same order"),
    "name": ("by name", "sorted by name", "in order of name", "from A to Z", "ordered by name"),
    "reverse": ("last first", "in reverse", "from the end", "last to first", "in reverse order"),
}
ORDERS = {1: ("told",), 2: ("told", "name"), 3: ("name", "reverse")}  # by level
CLOSING_PHRASES = {
    1: (
        "the most and the total",
        "the largest and the sum",
        "the leader and the total",
        "the most and the sum",
        "the leader and the sum",
    ),
    2: (
        "the most and the least",
        "the largest and the smallest",
        "the leader and the last",
        "the most and the smallest",
        "the leader and the least",
    ),
    3: (
        "the most and the total of {item}",
        "the largest and the sum of {item}",
        "the leader and all {item}",
        "the most and all {item}",
        "the leader and the sum of {item}",
    ),
}
SENTENCES = (
    "{who} from {place} {verb} {n} {item}.",
    "In {place}, {who} {verb} {n} {item}.",
    "{n} {item} were {verb} by {who} in {place}.",
    "{who} {verb} {n} {item} while in {place}.",
    "{who}, who is from {place}, {verb} {n} {item}.",
    "{who} {verb} {n} {item} in {place}.",
    "{who} of {place} {verb} {n} {item}.",
    "{who} is from {place} and {verb} {n} {item}.",
    "{who} was in {place} and {verb} {n} {item}.",
    "By {who} from {place}, {n} {item} were {verb}.",
)
REMARKS = (
    "The weather was cold.",
    "All went well.",
    "It was a slow week.",
    "The roads were full.",
    "The week was cold.",
    "Nobody was ill.",
    "It was a good week.",
    "The weather was good.",
    "There was no snow.",
    "The roads were good.",
)
CORRECTIONS = (
    "Correction: {who} {verb} {n}.",
    "Later the number of {who} was set to {n}.",
    "In fact {who} {verb} {n}.",
    "The right number of {who} is {n}.",
    "The number of {who} was in fact {n}.",
    "Correction: the number of {who} is {n}.",
)

# The free wordings of a summary; the first one of each is what the scorers read the others as.
HEADINGS = ("Summary of {count} facts:", "In short:", "Facts:")
MOST = ("most by {who} with {n} {item}", "{who} leads with {n} {item}", "top is {who} with {n} {item}")
LEAST = ("least by {who} with {n} {item}", "{who} is last with {n} {item}", "lowest is {who} with {n} {item}")
TOTAL = ("total {addition}", "together {addition}", "in all {addition}")
GROUPS = {"who": r"(?P<who>\w+)", "n": r"(?P<n>\d+)", "item": r"(?P<item>\w+)", "addition": r"(?P<addition>\d.+)"}
READERS = [(re.compile(way.format(**GROUPS)), ways[0]) for ways in (MOST, LEAST, TOTAL) for way in ways]


@dataclass(frozen=True)
class Fact:
    """Who handled how many of what, and where."""

    who: str
    place: str
    n: int
    item: str


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Summarization(Procedural):
    """Summaries of two to four facts, with a closing line that compares and adds up amounts.

    Level 1: two facts in the order told, the most and the total. Level 2: three facts in the order told or by name, a
    remark to leave out, the most and the least. Level 3: three or four facts by name or last first, a remark, one
    amount corrected later, the most, and the total of the item that two of the facts share.
    """

    quality_name: ClassVar[str] = "fact_f1"
    name: Name = "summarization"

    def draw(self, author: Author) -> Problem:
        """Draw the facts, an order and a verb; tell them as a report and sum them up."""
        level = author.level()
        order, verb = author.choice(ORDERS[level]), author.choice(VERBS)
        told = draw_facts(author, level)
        story = [author.template(SENTENCES).format(verb=verb, **vars(fact)) for fact in told]
        facts = list(told)
        if level > 1:
            story.insert(author.randint(0, len(told)), author.template(REMARKS))
        if level == 3:
            wrong = author.randrange(len(facts))
            facts[wrong] = replace(facts[wrong], n=draw_amounts(author, level, 1, [fact.n for fact in facts])[0])
            story.append(author.template(CORRECTIONS).format(verb=verb, **vars(facts[wrong])))
        item = shared_item(facts)
        prompt = author.template(FRAMES).format(
            order=author.template(ORDER_PHRASES[order]),
            closing=author.template(CLOSING_PHRASES[level]).format(item=item),
            story=" ".join(story),
        )
        listed = arrange(facts, order)
        content = (level, order, verb, *map(astuple, arrange(told, order)), *map(astuple, listed))
        reference = summarize(author, level, verb, listed)
        return Problem(content, f"{prompt}\nSummary:", reference, {"level": level, "count": len(facts), "order": order})

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Compare the statements of the text with those of the reference: `fact_f1` and `rouge2`.

        `fact_f1` is the harmonic mean of the share of the gold facts that the text states and the share of its
        statements that are gold facts, each counted as often as it is stated. The facts are the lines, the closing
        facts and the order of the people. `rouge2` is the F-measure of ROUGE-2. Both read free wordings as the same.
        """
        count = example.metadata["count"]
        gold, stated = read_statements(example.reference, count), read_statements(text, count)
        needed, given = Counter(with_order(gold)), Counter(with_order(stated))
        f1 = 2 * (needed & given).total() / (needed.total() + given.total())
        rouge = rouge_scorer().score("; ".join(gold), "; ".join(stated))["rouge2"].fmeasure
        return {"fact_f1": f1, "rouge2": float(rouge)}


def draw_amounts(author: Author, level: int, count: int, taken: list[int]) -> list[int]:
    """Draw distinct amounts that are not taken, so that there is one largest and one smallest."""
    free = range(SMALLEST, LARGEST[level] + 1)
    drawn = author.sample(free, count + len(taken))
    return [n for n in drawn if n not in taken][:count]


def draw_facts(author: Author, level: int) -> list[Fact]:
    """Draw people, places, amounts and items; at level 3 two of the facts are about the same item."""
    count = author.choice(COUNTS[level])
    people, places = author.entities(NAMES, count), author.entities(PLACES, count)
    items = author.entities(ITEMS, count)
    if level == 3:
        one, other = author.sample(range(count), 2)
        items[one] = items[other]
    amounts = draw_amounts(author, level, count, [])
    return [Fact(*parts) for parts in zip(people, places, amounts, items, strict=True)]


def shared_item(facts: list[Fact]) -> str:
    """The item that most facts are about: at level 3 the one of two facts."""
    return Counter(fact.item for fact in facts).most_common(1)[0][0]


def arrange(facts: list[Fact], order: str) -> list[Fact]:
    """Put the facts into the order that the summary lists them in."""
    if order == "name":
        return sorted(facts, key=lambda fact: fact.who)
    return facts[::-1] if order == "reverse" else list(facts)


def summarize(author: Author, level: int, verb: str, facts: list[Fact]) -> str:
    """List the facts as they are arranged, then say who leads, and who is last or what the total is."""
    lines = [f"{fact.who}, {fact.place}: {verb} {fact.n} {fact.item}" for fact in facts]
    heading = author.wording(HEADINGS).format(count=len(facts))
    lines.append(author.wording(MOST).format(**vars(max(facts, key=lambda fact: fact.n))))
    if level == 2:
        lines.append(author.wording(LEAST).format(**vars(min(facts, key=lambda fact: fact.n))))
    else:
        item = shared_item(facts)
        amounts = [fact.n for fact in facts if level == 1 or fact.item == item]
        addition = f"{' + '.join(map(str, amounts))} = {sum(amounts)}{f' {item}' if level == 3 else ''}"
        lines.append(author.wording(TOTAL).format(addition=addition))
    return f" {heading} {'; '.join(lines)}."


def read_statements(text: str, count: int) -> list[str]:
    """Split a summary into its statements, each in the first of its wordings; a right heading is dropped.

    A wrong heading stays with the line behind it, and what cannot be read is a statement like any other: both cost.
    """
    text = text.strip()
    for heading in HEADINGS:
        text = text.removeprefix(heading.format(count=count))
    return [first_wording(part.strip()) for part in re.split(r"[;.]", text) if part.strip()]


def first_wording(statement: str) -> str:
    """Return a closing fact as its first wording says it, and anything else as it is."""
    for pattern, first in READERS:
        if match := pattern.fullmatch(statement):
            return first.format(**match.groupdict())
    return statement


def with_order(statements: list[str]) -> list[str]:
    """Add the order of the people as one more fact, as the other facts are compared without their order."""
    people = [statement.split(",")[0] for statement in statements if "," in statement]
    return [*statements, f"order {', '.join(people)}"] if people else statements


@cache
def rouge_scorer() -> Any:
    """Load the library when a text is scored: it takes a second, and drawing problems does not need it."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    return RougeScorer(["rouge2"])
