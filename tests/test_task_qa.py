"""The question answering family: answers that follow from their passages, and scorers that see what is missing."""

from __future__ import annotations

import re
from itertools import pairwise, product

import pytest

from experiments.tasks.base import ITEMS, NAMES, PLACES, Author, Example
from experiments.tasks.qa import EVIDENCE, FRAMES, LINKS, OPENINGS, RESULTS, Qa, describe

COUNT = 150
VERBS = {
    "teacher": ("teaches", "taught"),
    "boss": ("leads", "led"),
    "doctor": ("treats", "treated"),
    "guide": ("guides", "guided"),
}
# What a sentence says, and what a question asks for, written apart from the family's own templates: X has Y.
FACTS = {
    "home": "X lives in Y|Now X lives in Y|X has a home in Y|X has a home and lives in Y|X, we know, lives in Y",
    "birthplace": "X was born in Y|X comes from Y|We know that X was born in Y|It is told that X was born in Y|"
    "X, we know, was born in Y",
    "goods": "X sells Y|Now X sells Y|X has a shop with Y|X has a shop and sells Y|X, we know, sells Y",
    "things": "X owns Y|Now X owns Y|X is the owner of Y|X is the one who owns Y|X, we know, owns Y",
} | {
    noun: f"The {noun} of X is Y|X has the {noun} Y|X is {passive} by Y|X has a {noun}, Y|X's {noun} is Y"
    for noun, (_, passive) in VERBS.items()
}
QUESTIONS = {
    "home": "Where does X live|In which city does X live|Where is the home of X|In which city is the home of X|"
    "What is the city where X lives",
    "birthplace": "Where was X born|In which city was X born|Where does X come from|What is the birthplace of X|"
    "What is the city where X was born",
    "goods": "What does X sell|What does X have to sell|What does the shop of X sell|What is sold by X|"
    "What is in the shop of X",
    "things": "What does X own|What does X keep|What is owned by X|What belongs to X|What is it that X owns",
} | {
    noun: f"Who is the {noun} of X|Who {active} X|Who is it that {active} X|By whom is X {passive}|"
    f"Whom does X have as {noun}"
    for noun, (active, passive) in VERBS.items()
}
PEOPLE = {
    noun: f"the {noun} of X|X's {noun}|the person who {active} X|the one who is {noun} of X|"
    f"the person who is the {noun} of X"
    for noun, (active, _) in VERBS.items()
}
# How a completion states them.
STATEMENTS = {
    "home": "X lives in Y",
    "birthplace": "X was born in Y",
    "goods": "X sells Y",
    "things": "X owns Y",
} | {noun: f"the {noun} of X is Y" for noun in VERBS}
CITED = re.compile(r"(?:text says|We read|It says) that ([^.]+)\.")
EXAMPLE = Example(
    "0",
    "",
    "",
    {"level": 2, "answer": "12 hats", "evidence": ["the boss of ada is tom", "tom sells 12 hats"]},
)
FIRST, SECOND, END = (
    " We read that the boss of Ada is Tom.",
    " We read that Tom sells 12 hats.",
    " So the answer is that the boss of Ada sells 12 hats.",
)


def read(text: str, table: dict[str, str], name: str) -> list[tuple[str, ...]]:
    """Every way to read a text by a table of patterns: the noun, then what stands for X and Y."""
    found = []
    for noun, ways in table.items():
        for way in ways.split("|"):
            pattern = way.replace("X", f"(?P<X>{name})").replace("Y", r"(?P<Y>[A-Z]\w+|\d+ \w+)")
            if match := re.fullmatch(pattern, text):
                found.append((noun, *(match[group] for group in "XY" if group in match.groupdict())))
    return found


def read_question(prompt: str) -> tuple[str, ...]:
    """What the question of a prompt asks for, and the phrase of whom."""
    question = re.search(r"Question: (.+)\?", prompt)
    assert question
    # A pattern may also swallow "the shop of" or "have to": that names no person.
    (reading,) = [r for r in read(question[1], QUESTIONS, ".+") if is_person(r[1])]
    return reading


def is_person(phrase: str) -> bool:
    """Tell whether a phrase can be read as a name or as a way to one."""
    return phrase in NAMES or any(is_person(reading[1]) for reading in read(phrase, PEOPLE, ".+"))


def resolve(phrase: str, facts: dict[tuple[str, str], str]) -> str:
    """Find the person whom a phrase of a question means."""
    if phrase in NAMES:
        return phrase
    (reading,) = read(phrase, PEOPLE, ".+")
    return facts[reading[0], resolve(reading[1], facts)]


def read_passage(prompt: str) -> list[tuple[str, ...]]:
    """The facts of a prompt in their order."""
    line = next(line for line in prompt.split("\n") if not line.startswith(("Question", "Answer")))
    line = line.split(": ", 1)[1]
    sentences = re.findall(r"((?:[A-Z]|\d+ [a-z])[^.:()\[\]]+)\.", line)
    readings = [read(sentence, FACTS, r"[A-Z]\w+") for sentence in sentences]
    assert all(len(reading) == 1 for reading in readings), (prompt, readings)
    return [reading[0] for reading in readings]


@pytest.mark.parametrize(("level", "wording"), list(product((1, 2, 3), ("seen", "unseen"))))
def test_the_answer_follows_from_the_passage(level: int, wording: str) -> None:
    for example in Qa(level=level, wording=wording).examples("test", COUNT):  # type: ignore[arg-type]
        passage = read_passage(example.prompt)
        facts = {(noun, who): what for noun, who, what in passage}
        assert len(passage) == len(facts) == level + 3
        noun, phrase = read_question(example.prompt)
        answer = facts[noun, resolve(phrase, facts)]
        assert example.metadata["answer"] == answer
        assert example.reference.endswith(f" {answer}.")
        stated = [read(part, STATEMENTS, r"[A-Z]\w+")[0] for part in re.findall(CITED, example.reference)]
        cited = [fact for fact in stated if fact in passage]
        assert cited == stated
        assert len(cited) == level and cited[-1] == (noun, cited[-1][1], answer)
        assert all(before[2] == after[1] for before, after in pairwise(cited))
        assert re.search(rf"\b{cited[0][1]}\b", phrase)
        assert len(example.metadata["evidence"]) == example.metadata["level"] == level


def test_the_question_cannot_be_answered_without_its_start() -> None:
    for example in Qa(level=3).examples("test", COUNT):
        nouns = [noun for noun, *_ in read_passage(example.prompt)]
        assert nouns.count(read_question(example.prompt)[0]) >= 2


def test_everyone_has_one_fact_so_that_names_alone_lead_to_the_answer() -> None:
    for example in Qa().examples("test", COUNT):
        passage = read_passage(example.prompt)
        told = {who: what for _, who, what in passage}
        assert len(told) == len(passage)
        (found,) = [name for name in re.findall(r"\w+", read_question(example.prompt)[1]) if name in NAMES]
        for _ in range(example.metadata["level"]):
            found = told[found]
        assert found == example.metadata["answer"]


def test_every_free_wording_scores_one() -> None:
    ways = list(product(OPENINGS, EVIDENCE, LINKS, RESULTS))
    for opening, source, link, result in ways:
        text = (
            f" {opening} the goods of the boss of Ada. {source} the boss of Ada is Tom. Now we look for the "
            f"goods of Tom. {source} Tom sells 12 hats. {link} {result} the boss of Ada sells 12 hats."
        )
        assert Qa().scores(EXAMPLE, text) == {"answer_and_evidence": 1.0, "answer_f1": 1.0, "evidence": 1.0}
    for options in (OPENINGS, EVIDENCE, LINKS, RESULTS):
        assert len({option.split()[0] for option in options}) == 3


@pytest.mark.parametrize("wording", ["seen", "unseen"])
def test_all_wordings_are_written(wording: str) -> None:
    references = [example.reference for example in Qa(wording=wording).examples("test", COUNT)]  # type: ignore[arg-type]
    for part in (*OPENINGS, *EVIDENCE, *LINKS, *RESULTS):
        assert 0 < sum(part in reference for reference in references) < COUNT


@pytest.mark.parametrize(
    ("text", "answer", "evidence"),
    [
        ("", 0.0, 0.0),
        (FIRST + SECOND, 0.0, 1.0),
        (FIRST + SECOND + END, 1.0, 1.0),
        (SECOND + FIRST + END, 1.0, 1.0),
        (" It says that Ada is led by Tom. It says that Tom has a shop and sells 12 hats." + END, 1.0, 1.0),
        (" It says that Tom is led by Ada. It says that Tom owns 12 hats." + END, 1.0, 0.0),
        (" It says that Ada has Tom. It says that Tom has a shop with 12 hats." + END, 1.0, 1 / 2),
        (FIRST + SECOND + END.rstrip("."), 1.0, 1.0),
        (FIRST + SECOND + END.replace("12", "13"), 0.5, 1.0),
        (FIRST + SECOND + END.replace("12 hats", "the 12 HATS"), 1.0, 1.0),
        (FIRST + SECOND + END.replace("sells 12 hats", "lives in Oslo"), 0.0, 1.0),
        (FIRST + SECOND + END.replace("sells", "owns"), 1.0, 1.0),
        (FIRST + SECOND + END.replace("the boss of Ada", "the doctor of Ida"), 1.0, 1.0),
        (END, 1.0, 0.0),
        (FIRST + END, 1.0, 2 / 3),
        (FIRST + FIRST + END, 1.0, 2 / 3),
        (FIRST + SECOND.replace("12", "13") + END, 1.0, 1 / 2),
        (FIRST + SECOND.replace("Tom", "Ida") + END, 1.0, 1 / 2),
        (FIRST + SECOND + " It says that Ida lives in Rome." + END, 1.0, 4 / 5),
        (FIRST + SECOND + END + " Now we look", 0.0, 1.0),
    ],
)
def test_scores_of_written_cases(text: str, answer: float, evidence: float) -> None:
    scores = Qa().scores(EXAMPLE, text)
    assert scores["answer_f1"] == pytest.approx(answer)
    assert scores["evidence"] == pytest.approx(evidence)
    assert scores["answer_and_evidence"] == pytest.approx(answer * evidence)
    assert Qa().score(EXAMPLE, text) == scores["answer_and_evidence"]


def test_references_score_one_and_those_of_others_little() -> None:
    examples = Qa().examples("test", COUNT)
    assert all(Qa().score(example, example.reference) == 1.0 for example in examples)
    shifted = pairwise(examples)
    assert sum(Qa().score(example, other.reference) for example, other in shifted) / COUNT < 0.02


def test_unseen_problems_use_other_words_than_seen_ones() -> None:
    seen, unseen = (Qa(wording=wording).examples("test", COUNT) for wording in ("seen", "unseen"))  # type: ignore[arg-type]
    for names, part in product((NAMES, PLACES, ITEMS), ("prompt", "reference")):
        used = [
            {word for e in examples for word in re.findall(r"\w+", getattr(e, part)) if word in names}
            for examples in (seen, unseen)
        ]
        assert used[0] and not used[0] & set(names[4::5])
        assert used[1] and used[1] <= set(names[4::5])
    assert all(example.prompt.startswith(FRAMES[4][:14]) for example in unseen)
    assert not any(example.prompt.startswith(FRAMES[4][:14]) for example in seen)


def test_content_holds_the_chain_and_all_facts_in_one_order() -> None:
    level, *parts = Qa().draw(Author("any", 3)).content
    chain, facts = parts[: parts.index("|")], parts[parts.index("|") + 1 :]
    assert level == len(chain) == 3 and len(facts) == len(set(facts)) == 6
    assert set(chain) < set(facts)


def test_content_does_not_depend_on_wording() -> None:
    author, other = Author("any", 2), Author("any", 2)
    other.template = lambda pool: (Author.template(other, pool), pool[0])[1]  # type: ignore[method-assign]
    plain, worded = Qa().draw(other), Qa().draw(author)
    assert plain.content == worded.content and plain.prompt != worded.prompt
    assert plain.prompt.startswith("Text: ")


def test_levels_rise_in_length() -> None:
    lengths = []
    for level in (1, 2, 3):
        examples = Qa(level=level).examples("test", COUNT)
        assert {example.metadata["level"] for example in examples} == {level}
        lengths.append(sum(len(example.reference.split()) for example in examples) / COUNT)
    assert lengths[0] * 1.5 < lengths[1] and lengths[1] * 1.3 < lengths[2]


def test_describe_names_the_way() -> None:
    assert describe("Ada", []) == "Ada"
    assert describe("Ada", ["boss", "home"]) == "the home of the boss of Ada"
