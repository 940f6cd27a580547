"""Lumi, a constructed language with a small and fully regular grammar, beside the English that is translated into it.

Its rules, which know no exceptions:

- A sentence is: opening particle, place, time, subject, guest ("with" or "for" whom), object, negation, verb.
- A noun takes the plural suffix -ki, then the suffix of its case: none (subject), -no (object), -se (in), -ve (near),
  -me (with), -la (for). A name of a person or city takes the case suffix with a hyphen.
- A noun whose stem ends in a vowel is soft (-a), any other is hard (-e). An adjective follows its noun and repeats
  gender, number and case; so do the pronoun z- ("it", "they") and the relative pronoun w-, which opens its clause.
- A verb takes the suffix of its tense, then -ki where its subject is plural or two are joined by "and".
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.tasks.base import words


def lexicon(text: str) -> dict[str, str]:
    """Read a list of `english=lumi` pairs."""
    return dict(pair.split("=") for pair in words(text))


ANIMALS = lexicon("dog=hupa bird=tefu goat=rado bear=yima cow=golu cat=mor horse=kal duck=bik lion=fen frog=tus")
THINGS = lexicon("book=pedo ring=zaru stone=kuba cake=bofi lamp=lur flag=pav drum=dom coin=zin")
SITES = lexicon("garden=wena tower=jako river=suli forest=gor market=vas field=hel")
NOUNS = ANIMALS | THINGS | SITES
ADJECTIVES = lexicon(
    "big=gan small=pid old=vet new=nuv red=rub blue=sig green=fal white=lok good=bem strange=tir quiet=huz clean=yat"
)
VERBS = lexicon(
    """
    find=lan hear=ols love=dor follow=sek help=pom pull=ras keep=hov hold=mek bring=nes need=bur guard=kes move=vol
    call=jad kick=pux paint=far
    """
)
IRREGULAR = lexicon("find=found hear=heard keep=kept hold=held bring=brought love=loved move=moved")
TIMES = lexicon("yesterday=hem earlier=pru now=nia today=odi tomorrow=krai soon=balt")
TENSE_OF = lexicon("yesterday=past earlier=past now=present today=present tomorrow=future soon=future")
TENSES = lexicon("past=ti present=mi future=ri")
CASES = {"subject": "", "object": "no", "in": "se", "near": "ve", "with": "me", "for": "la"}
PLURAL, NOT, AND, OPENING = "ki", "ne", "um", "Ha"
SYNONYMS = {OPENING: ("Ha", "Yo", "Sei"), AND: ("um", "tok")}
CANONICAL = {way: word for word, ways in SYNONYMS.items() for way in ways}
VOWELS = "aeiou"


@dataclass(frozen=True)
class Phrase:
    """A person or city (`noun` is a name), a noun with what belongs to it, or a pronoun (`kind`) that stands for it."""

    noun: str
    plural: bool = False
    adjective: str = ""
    kind: str = "noun"  # or the stem of a pronoun: z, w
    partner: str = ""  # a second name, joined by "and"
    clause: Clause | None = None
    clause_template: str = ""

    @property
    def many(self) -> bool:
        """Whether a verb with this subject is plural."""
        return self.plural or bool(self.partner)

    def english(self, subject: bool) -> str:
        """Write it in English, as the subject form of a pronoun or the other one."""
        if self.kind != "noun":
            return ("they" if subject else "them") if self.plural else "it"
        parts = [self.noun]
        if self.noun in NOUNS:
            parts = ["the", *filter(None, [self.adjective]), self.noun + "s" * self.plural]
        if self.clause:
            parts.append(self.clause.english(self.clause_template))
        return " ".join([*parts, "and", self.partner] if self.partner else parts)

    def lumi(self, case: str) -> list[str]:
        """Write it in Lumi with the suffixes of its case."""
        suffix = CASES[case]
        named = f"-{suffix}" if suffix else ""
        joined = [AND, self.partner + named] if self.partner else []
        if self.noun not in NOUNS:
            return [self.noun + named, *joined]
        stem, ending = NOUNS[self.noun], PLURAL * self.plural + suffix
        agreement = ("a" if stem[-1] in VOWELS else "e") + ending
        if self.kind != "noun":
            return [self.kind + agreement]
        adjective = [ADJECTIVES[self.adjective] + agreement] if self.adjective else []
        return [stem + ending, *adjective, *(self.clause.lumi() if self.clause else []), *joined]


@dataclass(frozen=True)
class Clause:
    """Who did what; `place` and `guest` are a preposition with its phrase."""

    subject: Phrase
    verb: str
    object: Phrase
    tense: str
    negated: bool = False
    time: str = ""
    place: tuple[str, Phrase] | None = None
    guest: tuple[str, Phrase] | None = None

    def english(self, template: str) -> str:
        """Tell it in English by a template, which decides about order and voice."""
        adjuncts = {"place": self.place, "guest": self.guest}
        told = template.format(
            subject=self.subject.english(True),
            object=self.object.english(False),
            agent=self.subject.english(False),
            patient=self.object.english(True),
            verb=conjugate(self.verb, self.tense, self.subject.many, self.negated),
            passive=conjugate_passive(self.verb, self.tense, self.object.many, self.negated),
            time=self.time,
            **{slot: f"{told[0]} {told[1].english(False)}" for slot, told in adjuncts.items() if told},
        )
        return told[0].upper() + told[1:] if told.endswith(".") else told

    def lumi(self) -> list[str]:
        """Translate it; only the roles count, not how they were told."""
        actors = [("subject", self.subject), *filter(None, [self.guest]), ("object", self.object)]
        actors.sort(key=lambda actor: actor[1].kind != "w")  # the relative pronoun goes first
        front = self.place[1].lumi(self.place[0]) if self.place else []
        time = [TIMES[self.time]] if self.time else []
        middle = [word for case, phrase in actors for word in phrase.lumi(case)]
        verb = VERBS[self.verb] + TENSES[self.tense] + PLURAL * self.subject.many
        return [*front, *time, *middle, *([NOT] if self.negated else []), verb]


def conjugate(verb: str, tense: str, plural: bool, negated: bool) -> str:
    """Return the active form of an English verb."""
    if tense == "future":
        return f"will not {verb}" if negated else f"will {verb}"
    if tense == "past":
        return f"did not {verb}" if negated else IRREGULAR.get(verb, verb + "ed")
    if negated:
        return f"do not {verb}" if plural else f"does not {verb}"
    return verb if plural else verb + "s"


def conjugate_passive(verb: str, tense: str, plural: bool, negated: bool) -> str:
    """Return the passive form of an English verb."""
    auxiliary = {"past": ("was", "were"), "present": ("is", "are"), "future": ("will", "will")}[tense][plural]
    parts = [auxiliary, "not" * negated, "be" * (tense == "future"), IRREGULAR.get(verb, verb + "ed")]
    return " ".join(filter(None, parts))
