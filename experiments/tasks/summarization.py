"""Short sales reports turned into structured summaries: ordered as asked for, with running sums."""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import ITEMS, NAMES, PLACES, Example, Name, Problem, Task

OPENINGS = ("Report", "Sales report", "Report of the week", "News from the market")
ORDERS = ("in order", "by name", "largest first")  # how the summary lists its facts
VERBS = ("sold", "made", "sent", "stored")
TEMPLATES = (
    "{who} from {place} {verb} {n} {item}.",
    "In {place}, {who} {verb} {n} {item}.",
    "{n} {item} were {verb} by {who} in {place}.",
    "{who} {verb} {n} {item} while in {place}.",
)
REMARKS = (
    "The weather was cold.",
    "All went well.",
    "It was a slow week.",
    "Prices did not change.",
    "The roads were full.",
    "Nobody was ill.",
)
CORRECTIONS = ("Correction: {who} {verb} {n}.", "Later the number of {who} was set to {n}.")


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Summarization(Task):
    """Reports of two to four facts; the score is the share of the summary's facts that the text states (0 to 1)."""

    quality_name: ClassVar[str] = "fact_recall"
    name: Name = "summarization"

    def draw(self, rng: random.Random) -> Problem:
        """Draw people, places, goods and amounts, perhaps a remark and a correction of one amount."""
        count = rng.choice((2, 3, 3, 4, 4))
        people, places = rng.sample(NAMES, count), rng.sample(PLACES, count)
        items = [rng.choice(ITEMS) for _ in range(count)]
        amounts = rng.sample(range(3, 200), count)
        verb = rng.choice(VERBS)
        sentences = [
            rng.choice(TEMPLATES).format(who=who, place=place, verb=verb, n=n, item=item)
            for who, place, n, item in zip(people, places, amounts, items, strict=True)
        ]
        if rng.random() < 0.5:
            sentences.insert(rng.randint(0, count), rng.choice(REMARKS))
        if rng.random() < 0.35:
            wrong = rng.randrange(count)
            amounts[wrong] = rng.choice([n for n in range(3, 200) if n not in amounts])
            sentences.append(rng.choice(CORRECTIONS).format(who=people[wrong], verb=verb, n=amounts[wrong]))
        order = rng.choice(ORDERS)
        told = list(zip(people, places, items, amounts, strict=True))
        reference = summarize(told, order)
        prompt = f"{rng.choice(OPENINGS)}, {order}: {' '.join(sentences)}\nSummary:"
        return Problem((order, *told), prompt, reference, {"facts": split_facts(reference)})

    def score(self, example: Example, text: str) -> float:
        """Count the gold facts that the text states word for word, each as often as it is needed."""
        stated, needed = Counter(split_facts(text)), Counter(example.metadata["facts"])
        return sum((stated & needed).values()) / sum(needed.values())


def summarize(told: list[tuple[str, str, str, int]], order: str) -> str:
    """List each (person, place, item, amount) in the wanted order with the sum so far, then say who leads."""
    keys = {"in order": lambda fact: 0, "by name": lambda fact: fact[0], "largest first": lambda fact: -fact[3]}
    parts = []
    total = 0
    for who, place, item, n in sorted(told, key=keys[order]):
        total += n
        parts.append(f"{who} in {place}: {n} {item}, sum {total}")
    leader = max(told, key=lambda fact: fact[3])[0]
    return f" {'; '.join(parts)}; most by {leader}."


def split_facts(summary: str) -> list[str]:
    """Return the facts of a summary: who did what where, each sum, and the leader."""
    return [fact.strip() for fact in summary.strip().rstrip(".").replace(";", ",").split(",")]
