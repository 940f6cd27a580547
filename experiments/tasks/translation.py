"""Translation of short English texts into Lumi, a constructed language (see `translation_grammar`).

There is no dictionary in a prompt, so nouns, verbs, adjectives and adverbs are always seen in training. What the test
alone uses (`wording=unseen`) are frames, orders and combinations of the English sentence, and names of people and
cities: the grammar says how to translate them all the same. Place, time and guest belong to the main clause always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec
from sacrebleu.metrics.chrf import CHRF

from experiments.tasks.base import NAMES, PLACES, Author, Example, Name, Problem, Procedural
from experiments.tasks.translation_grammar import (
    ADJECTIVES,
    ANIMALS,
    CANONICAL,
    OPENING,
    SITES,
    SYNONYMS,
    TENSE_OF,
    TENSES,
    THINGS,
    TIMES,
    VERBS,
    Clause,
    Phrase,
)

FRAMES = (
    "English: {text}\nLumi:",
    "Translate into Lumi: {text}\nLumi:",
    "In English: {text}\nIn Lumi:",
    "Say this in Lumi: {text}\nLumi:",
    "Say this English text in Lumi: {text}\nIn Lumi:",
    "English text: {text}\nLumi text:",
)
ACTIVE = (
    "{subject} {verb} {object} {guest} {place} {time}.",
    "{time} {subject} {verb} {object} {guest} {place}.",
    "{place}, {subject} {verb} {object} {guest} {time}.",
    "{guest}, {subject} {verb} {object} {place} {time}.",
    "{time}, {guest}, {subject} {verb} {object} {place}.",
    "{time}, {place}, {subject} {verb} {object} {guest}.",
    "{subject} {time} {verb} {object} {place} {guest}.",
)
PASSIVE = (
    "{patient} {passive} by {agent} {guest} {place} {time}.",
    "{time} {patient} {passive} by {agent} {place} {guest}.",
    "{place}, {patient} {passive} {time} by {agent} {guest}.",
    "{guest}, {patient} {passive} by {agent} {place} {time}.",
    "{guest}, {patient} {passive} {time} by {agent} {place}.",
    "{time}, {place}, {patient} {passive} by {agent} {guest}.",
)
LOCAL = (
    "{subject} {verb} {object} {place} {time}.",
    "{time} {subject} {verb} {object} {place}.",
    "{place}, {patient} {passive} by {agent} {time}.",
    "{patient} {passive} {place} by {agent} {time}.",
    "{place}, {time}, {subject} {verb} {object}.",
    "{time}, {patient} {passive} by {agent} {place}.",
)
SOCIAL = (
    "{subject} {verb} {object} {guest} {time}.",
    "{time} {subject} {verb} {object} {guest}.",
    "{guest}, {subject} {verb} {object} {time}.",
    "{patient} {passive} by {agent} {guest} {time}.",
    "{guest}, {patient} {passive} by {agent} {time}.",
    "{time} {patient} {passive} by {agent} {guest}.",
)
RELATIVES = (  # what stands for the noun itself has no slot
    "that {verb} {object}",
    "that {subject} {verb}",
    "that {passive} by {agent}",
    "which {verb} {object}",
    "which {passive} by {agent}",
    "which {subject} {verb}",
)

Told = tuple[str, list[str]]  # a sentence in English, and its words in Lumi


class Writer:
    """Draws the sentences of one text; no noun and no name comes twice, so a pronoun can mean only one of them."""

    def __init__(self, author: Author, level: int) -> None:
        self.author, self.level = author, level
        self.names, self.cities = iter(author.entities(NAMES, 9)), iter(author.entities(PLACES, 3))
        self.animals, self.things, self.sites = (
            iter(author.sample(list(pool), 3 * k)) for pool, k in ((ANIMALS, 3), (THINGS, 1), (SITES, 1))
        )

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return self.author.random() < probability

    def one_of(self, pool: Iterable[str]) -> str:
        """Draw a word."""
        return self.author.choice(list(pool))

    def describe(self, noun: str, adjective: float) -> Phrase:
        """Draw the number of a noun, and at some probability an adjective."""
        return Phrase(noun, self.chance(0.4), self.one_of(ADJECTIVES) if self.chance(adjective) else "")

    def actor(self, adjective: float, person: float = 0.5) -> Phrase:
        """A person or animals."""
        return Phrase(next(self.names)) if self.chance(person) else self.describe(next(self.animals), adjective)

    def thing(self, adjective: float) -> Phrase:
        """Animals or things."""
        return self.describe(next(self.animals if self.chance(0.5) else self.things), adjective)

    def tell(self, templates: Sequence[str], subject: Phrase, thing: Phrase, *, nouns: bool = True) -> Told:
        """Draw the rest of a sentence (of names alone unless `nouns`), word it by a template, and translate it."""
        template, time = self.author.template(templates), self.one_of(TIMES)
        place = guest = None
        if "{place}" in template:
            site = self.describe(next(self.sites), 1) if nouns and self.chance(0.4) else Phrase(next(self.cities))
            place = self.one_of(("in", "near")), site
        if "{guest}" in template:
            guest = self.one_of(("with", "for")), self.actor(0.6, person=0.5 if nouns else 1)
        negated = self.level > 1 and self.chance(0.35)
        clause = Clause(subject, self.one_of(VERBS), thing, TENSE_OF[time], negated, time, place, guest)
        return clause.english(template), clause.lumi()

    def relate(self, phrase: Phrase) -> Phrase:
        """Give a noun a relative clause: what it does to a person, or a person to it."""
        template, person = self.author.template(RELATIVES), Phrase(next(self.names))
        itself = Phrase(phrase.noun, phrase.plural, kind="w")
        subject, thing = (itself, person) if "{object}" in template else (person, itself)
        clause = Clause(subject, self.one_of(VERBS), thing, self.one_of(TENSES))
        return replace(phrase, clause=clause, clause_template=template)

    def easy(self) -> list[Told]:
        """Two active sentences with an adjective of each noun."""
        return [self.tell(ACTIVE, self.actor(1), self.thing(1), nouns=False) for _ in range(2)]

    def middling(self) -> list[Told]:
        """Two long sentences and a shorter one, active or passive; the last may have two subjects."""
        pools = [self.author.choice((ACTIVE, PASSIVE)) for _ in range(2)] + [self.author.choice((LOCAL, SOCIAL))]
        actors = [self.actor(0.6) for _ in pools]
        if self.chance(0.5):
            actors[-1] = replace(actors[-1], partner=next(self.names))
        return [self.tell(pool, who, self.thing(0.6)) for pool, who in zip(pools, actors, strict=True)]

    def hard(self) -> list[Told]:
        """A sentence with a relative clause, then two with pronouns for its nouns; only the last has further nouns."""
        pair = [self.actor(0.8, person=0), self.thing(0.8)]
        pair[1] = replace(pair[1], plural=not pair[0].plural)  # so "it" and "they" are different ones
        nouns, chosen = list(pair), self.author.randrange(2)
        pair[chosen] = self.relate(pair[chosen])
        if self.chance(0.5):
            nouns, pair[1 - chosen] = [nouns[chosen]], self.actor(0, person=1)
        told = [self.tell(self.author.choice((ACTIVE, PASSIVE)), *pair, nouns=False)]
        for last in (False, True):
            meant, other = self.author.choice(nouns), self.actor(0.5, person=0.5 if last else 1)
            if last and self.chance(0.5):
                other = replace(other, partner=next(self.names))
            roles = [Phrase(meant.noun, meant.plural, kind="z"), other]
            self.author.shuffle(roles)
            told.append(self.tell(self.author.choice((ACTIVE, PASSIVE, LOCAL, SOCIAL)), *roles, nouns=last))
        return told


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a Lumi text, each with its full stop and with one form for all synonyms."""
    found = re.findall(r"[^.]*\.|[^.]+$", text.strip())
    return [" ".join(CANONICAL.get(word, word) for word in sentence.split()) for sentence in found]


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Translation(Procedural):
    """English into Lumi; `exact_match` is the share of right sentences, `chrf` how alike the letters are (0 to 1)."""

    quality_name: ClassVar[str] = "exact_match"
    name: Name = "translation"

    def draw(self, author: Author) -> Problem:
        """Draw a text of two or three sentences."""
        level = author.level()
        writer = Writer(author, level)
        told = (writer.easy, writer.middling, writer.hard)[level - 1]()
        sentences = [[OPENING, *lumi] for _, lumi in told]
        gold = [f"{' '.join(sentence)}." for sentence in sentences]
        voiced = [[author.wording(SYNONYMS[w]) if w in SYNONYMS else w for w in sentence] for sentence in sentences]
        reference = "".join(f" {' '.join(sentence)}." for sentence in voiced)
        prompt = author.template(FRAMES).format(text=" ".join(english for english, _ in told))
        return Problem((level, *gold), prompt, reference, {"level": level, "sentences": gold})

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Compare the sentences with the gold ones at the same positions; one too many counts as a wrong one."""
        gold, stated = example.metadata["sentences"], split_sentences(text)
        right = sum(a == b for a, b in zip(gold, stated, strict=False))
        chrf = CHRF().sentence_score(" ".join(stated), [" ".join(gold)]).score / 100
        return {"exact_match": right / max(len(gold), len(stated)), "chrf": min(chrf, 1.0)}
