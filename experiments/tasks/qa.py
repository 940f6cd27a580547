"""Questions over a short passage, answered by following the evidence from sentence to sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as spec

from experiments.tasks.base import ITEMS, NAMES, PLACES, Author, Example, Name, Problem, Procedural

STRANGERS = 3  # people of a passage besides those on the way to the answer, which are as many as the level
MOST = 99  # of one kind of item

FRAMES = (
    "Text: {text}\nQuestion: {question}\nAnswer:",
    "Passage: {text}\nQuestion: {question}\nAnswer:",
    "Question: {question}\nText: {text}\nAnswer:",
    "Read: {text}\nQuestion: {question}\nAnswer:",
    "Read the text: {text}\nQuestion: {question}\nAnswer:",
)
# A question keeps to one of them, since "the person who teaches Ada's boss" has two readings.
HOPS = (
    "the {noun} of {who}",
    "{who}'s {noun}",
    "the person who {active} {who}",
    "the one who is {noun} of {who}",
    "the person who is the {noun} of {who}",
)
OPENINGS = ("We look for", "The question asks for", "This asks for")
EVIDENCE = ("The text says that", "We read that", "It says that")
LINKS = ("So", "Hence", "Thus")
RESULTS = ("the answer is that", "we know that", "it follows that")

STATED = re.compile(rf"(?:{'|'.join(EVIDENCE).lower()}) (.+)")
CLOSING = re.compile(rf"(?:{'|'.join(LINKS).lower()}) .*\b(?:lives in|was born in|sells|owns|is) (.+)")
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Relation:
    """What can be said of a person: its noun, its canonical statement and its wordings in a passage and a question.

    `active` is the verb of a relation between two people; where it is empty, the other side is of the `kind` named.
    """

    noun: str
    statement: str
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    kind: str = "person"
    active: str = ""


@dataclass(frozen=True, order=True)
class Fact:
    """One sentence of a passage; the relation is given by its noun."""

    noun: str
    who: str
    what: str

    def __str__(self) -> str:
        return RELATIONS[self.noun].statement.format(who=self.who, what=self.what)


def pool(text: str) -> tuple[str, ...]:
    """Split wordings written as running text with a bar between them."""
    return tuple(" ".join(part.split()) for part in text.split("|"))


def between_people(noun: str, active: str, passive: str) -> Relation:
    """A relation in which each person has one other."""
    facts = f"""The {noun} of {{who}} is {{what}}. | {{who}} has the {noun} {{what}}. |
        {{who}} is {passive} by {{what}}. | {{who}} has a {noun}, {{what}}. | {{who}}'s {noun} is {{what}}."""
    questions = f"""Who is the {noun} of {{who}}? | Who {active} {{who}}? | By whom is {{who}} {passive}? |
        Whom does {{who}} have as {noun}? | Who is it that {active} {{who}}?"""
    return Relation(noun, f"the {noun} of {{who}} is {{what}}", pool(facts), pool(questions), active=active)


LINKING = (
    between_people("teacher", "teaches", "taught"),
    between_people("boss", "leads", "led"),
    between_people("doctor", "treats", "treated"),
    between_people("guide", "guides", "guided"),
)
FINAL = (
    Relation(
        "home",
        "{who} lives in {what}",
        pool("""{who} lives in {what}. | Now {who} lives in {what}. | {who} has a home in {what}. |
            {who} has a home and lives in {what}. | {who}, we know, lives in {what}."""),
        pool("""Where does {who} live? | In which city does {who} live? | Where is the home of {who}? |
            What is the city where {who} lives? | In which city is the home of {who}?"""),
        kind="place",
    ),
    Relation(
        "birthplace",
        "{who} was born in {what}",
        pool("""{who} was born in {what}. | {who} comes from {what}. | We know that {who} was born in {what}. |
            It is told that {who} was born in {what}. | {who}, we know, was born in {what}."""),
        pool("""Where was {who} born? | In which city was {who} born? | Where does {who} come from? |
            What is the birthplace of {who}? | What is the city where {who} was born?"""),
        kind="place",
    ),
    Relation(
        "goods",
        "{who} sells {what}",
        pool("""{who} sells {what}. | Now {who} sells {what}. | {who} has a shop with {what}. |
            {who} has a shop and sells {what}. | {who}, we know, sells {what}."""),
        pool("""What does {who} sell? | What is sold by {who}? | What does {who} have to sell? |
            What is in the shop of {who}? | What does the shop of {who} sell?"""),
        kind="items",
    ),
    Relation(
        "things",
        "{who} owns {what}",
        pool("""{who} owns {what}. | Now {who} owns {what}. | {who} is the owner of {what}. |
            {who} is the one who owns {what}. | {who}, we know, owns {what}."""),
        pool("""What does {who} own? | What is owned by {who}? | What belongs to {who}? |
            What does {who} keep? | What is it that {who} owns?"""),
        kind="items",
    ),
)
ALL = LINKING + FINAL
RELATIONS = {relation.noun: relation for relation in ALL}


def draw_object(author: Author, relation: Relation, people: Sequence[str]) -> str:
    """Who or what can stand on the other side of a relation."""
    if relation.kind == "person":
        return author.choice(people)
    if relation.kind == "place":
        return author.entity(PLACES)
    return f"{author.randint(2, MOST)} {author.entity(ITEMS)}"


def draw_chain(author: Author, level: int) -> tuple[list[Fact], list[str]]:
    """The facts that lead to the answer, each about the person found by the one before it, and all people."""
    links = author.sample(LINKING, level)
    path = links if author.randint(1, 5) == 1 else [*links[:-1], author.choice(FINAL)]  # 1 in 5 asks for a person
    people = author.entities(NAMES, level + STRANGERS)
    facts = [Fact(r.noun, people[i], draw_object(author, r, people[i + 1 : i + 2])) for i, r in enumerate(path)]
    return facts, people


def add_distractors(author: Author, chain: list[Fact], people: list[str]) -> list[Fact]:
    """The facts of a passage in any order: those of the chain, and one of each other person.

    So everyone is the subject of one fact and may be mentioned in others, and each question has one answer. No two
    facts give the same thing for the same relation. The first distractor tells of someone else what the question asks
    for; half of the others are meant to repeat a relation of the chain.
    """
    told = list(chain)
    nouns = [fact.noun for fact in chain]
    for who in people[len(chain) :]:
        asked = len(told) == len(chain)
        fact = None
        while fact is None or who == fact.what or any((fact.noun, fact.what) == (one.noun, one.what) for one in told):
            likely = nouns if author.randint(0, 1) else [relation.noun for relation in ALL]
            noun = nouns[-1] if asked else author.choice(likely)
            fact = Fact(noun, who, draw_object(author, RELATIONS[noun], people))
        told.append(fact)
    author.shuffle(told)
    return told


def describe(who: str, nouns: Sequence[str]) -> str:
    """Name someone or something by the way that leads to it from `who`."""
    for noun in nouns:
        who = f"the {noun} of {who}"
    return who


def ask(author: Author, chain: list[Fact]) -> str:
    """The question for the last fact of a chain by its first person."""
    hop, who = author.template(HOPS), chain[0].who
    for fact in chain[:-1]:
        who = hop.format(noun=fact.noun, active=RELATIONS[fact.noun].active, who=who)
    return author.template(RELATIONS[chain[-1].noun].questions).format(who=who)


def explain(author: Author, chain: list[Fact]) -> str:
    """What is asked, each fact that leads on and what is still wanted after it, and the answer."""
    nouns = [fact.noun for fact in chain]
    opening, source, link, result = (author.wording(ways) for ways in (OPENINGS, EVIDENCE, LINKS, RESULTS))
    parts = [f"{opening} {describe(chain[0].who, nouns)}."]
    for i, fact in enumerate(chain):
        if i:
            parts.append(f"Now we look for {describe(fact.who, nouns[i:])}.")
        parts.append(f"{source} {fact}.")
    last = Fact(nouns[-1], describe(chain[0].who, nouns[:-1]), chain[-1].what)
    return f" {' '.join(parts)} {link} {result} {last}."


def set_f1(stated: Counter[str], gold: Counter[str]) -> float:
    """The harmonic mean of precision and recall of two bags of anything."""
    common = (stated & gold).total()
    return 2 * common / (stated.total() + gold.total()) if common else 0.0


def pattern_of(template: str) -> re.Pattern[str]:
    """What a sentence of a passage looks like in lower case, without its end."""
    words = re.escape(template.lower().rstrip("."))
    return re.compile(words.replace(r"\{who\}", r"(?P<who>\w+)").replace(r"\{what\}", r"(?P<what>\w+(?: \w+)?)"))


PATTERNS = [(relation.noun, pattern_of(fact)) for relation in ALL for fact in (*relation.facts, relation.statement)]


def read_fact(sentence: str) -> str:
    """The canonical statement of a fact, however it is worded; a sentence that is none stays as it is."""
    for noun, pattern in PATTERNS:
        if match := pattern.fullmatch(sentence):
            return str(Fact(noun, match["who"], match["what"]))
    return sentence


def read_evidence(text: str) -> set[str]:
    """The facts that a text, in lower case, gives as evidence."""
    found = [STATED.fullmatch(part.strip()) for part in text.split(".")]
    return {read_fact(match[1]) for match in found if match}


def answer_words(answer: str) -> Counter[str]:
    """The words of an answer as SQuAD compares them: lower case, no punctuation, no articles."""
    return Counter(word for word in re.findall(r"\w+", answer.lower()) if word not in ARTICLES)


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Qa(Procedural):
    """Passages of four to six sentences; the question follows one to three of them, and the answer names them.

    Within a passage every person is the subject of exactly one fact, so the noun of a relation need not be read to
    find the answer: the difficulty lies in following the chain from person to person.

    `answer_f1` compares the words after the last verb of the closing sentence with the gold answer. The closing
    sentence is judged by its answer only; its subject and its verb are not judged. `evidence` is the F1 of the facts
    that the text states, in whatever words. The quality is their product: an answer counts as far as it is shown where
    it comes from, so a lucky guess earns nothing, and neither does a citation without an answer.
    """

    quality_name: ClassVar[str] = "answer_and_evidence"
    name: Name = "qa"

    def draw(self, author: Author) -> Problem:
        """Draw a way to an answer, facts that lead astray, and the words for them."""
        level = author.level()
        chain, people = draw_chain(author, level)
        told = add_distractors(author, chain, people)
        text = " ".join(author.template(RELATIONS[f.noun].facts).format(who=f.who, what=f.what) for f in told)
        prompt = author.template(FRAMES).format(text=text, question=ask(author, chain))
        evidence = [str(fact).lower() for fact in chain]
        content = (level, *map(str, chain), "|", *map(str, sorted(told)))
        metadata = {"level": level, "answer": chain[-1].what, "evidence": evidence}
        return Problem(content, prompt, explain(author, chain), metadata)

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Judge the answer, the evidence, and both together."""
        text = text.lower()
        closing = CLOSING.fullmatch(text.strip().rstrip(".").split(".")[-1].strip())
        stated = Counter(read_evidence(text))
        answer = set_f1(answer_words(closing[1]), answer_words(example.metadata["answer"])) if closing else 0.0
        evidence = set_f1(stated, Counter(example.metadata["evidence"]))
        return {self.quality_name: answer * evidence, "answer_f1": answer, "evidence": evidence}
