"""Translation into Lumi: the grammar on hand-translated texts, an independent way back, scorers, unseen wording."""

from __future__ import annotations

import re
from itertools import islice, pairwise, product

import pytest

from experiments.tasks import translation
from experiments.tasks.base import NAMES, PLACES, UNSEEN_EVERY, Author, Example
from experiments.tasks.translation import FRAMES, RELATIVES, Translation, Writer, split_sentences
from experiments.tasks.translation_grammar import (
    ADJECTIVES,
    NOUNS,
    SYNONYMS,
    TENSES,
    TIMES,
    VERBS,
    Clause,
    Phrase,
    conjugate,
    conjugate_passive,
)

POOLS = (translation.ACTIVE, translation.PASSIVE, translation.LOCAL, translation.SOCIAL, RELATIVES, FRAMES)
ADA, TOM = Phrase("Ada"), Phrase("Tom")
NOUN_ENDINGS = [number + case for number in ("", "ki") for case in ("", "no", "se", "ve", "me", "la")]
AGREEING = [gender + ending for gender in "ae" for ending in NOUN_ENDINGS]
VERB_ENDINGS = [tense + number for tense in ("ti", "mi", "ri") for number in ("", "ki")]


def read_back() -> dict[str, tuple[str, str]]:
    """Every form of every common word, built by listing stems and endings: its English word and its ending."""
    forms = [(lumi + e, english, e) for english, lumi in NOUNS.items() for e in NOUN_ENDINGS]
    forms += [(lumi + e, english, e) for english, lumi in ADJECTIVES.items() for e in AGREEING]
    forms += [(lumi + e, english, e) for english, lumi in VERBS.items() for e in VERB_ENDINGS]
    forms += [(stem + e, stem, e) for stem in ("z", "w") for e in AGREEING]
    forms += [(lumi, english, "") for english, lumi in TIMES.items()]
    forms += [(way, ways[0], "") for ways in SYNONYMS.values() for way in ways] + [("ne", "not", "")]
    assert len({form for form, _, _ in forms}) == len(forms), "a form has two meanings"
    return {form: (english, ending) for form, english, ending in forms}


MEANINGS = read_back()


@pytest.fixture(scope="module", params=(1, 2, 3))
def examples(request: pytest.FixtureRequest) -> list[Example]:
    """Test problems of one level."""
    return Translation(level=request.param).examples("test", 300)


def english_words(prompt: str) -> list[str]:
    """The words of the English sentences of a prompt."""
    return re.findall(r"[A-Za-z]+", prompt.rsplit("\n", 1)[0].split(": ", 1)[1])


@pytest.mark.parametrize(
    ("clause", "template", "english", "lumi"),
    [
        (
            Clause(ADA, "find", Phrase("dog", True, "big"), "past", False, "yesterday", ("in", Phrase("Oslo"))),
            "{place}, {subject} {verb} {object} {time}.",
            "In Oslo, Ada found the big dogs yesterday.",
            "Oslo-se hem Ada hupakino ganakino lanti",
        ),
        (
            Clause(Phrase("cat", partner="Tom"), "love", ADA, "present", True, "now", None, ("with", Phrase("frog"))),
            "{time} {patient} {passive} by {agent} {guest}.",
            "Now Ada is not loved by the cat and Tom with the frog.",
            "nia mor um Tom tusme Ada-no ne dormiki",
        ),
        (
            Clause(Phrase("drum", True, kind="z"), "help", TOM, "future", False, "soon", ("near", Phrase("field"))),
            "{subject} {verb} {object} {place} {time}.",
            "They will help Tom near the field soon.",
            "helve balt zeki Tom-no pomriki",
        ),
        (
            Clause(ADA, "keep", Phrase("ring", kind="z"), "past", True, "earlier", None, ("for", TOM)),
            "{patient} {passive} by {agent} {guest} {time}.",
            "It was not kept by Ada for Tom earlier.",
            "pru Ada Tom-la zano ne hovti",
        ),
    ],
)
def test_sentences_follow_the_grammar(clause: Clause, template: str, english: str, lumi: str) -> None:
    assert clause.english(template) == english
    assert " ".join(clause.lumi()) == lumi


def test_a_relative_pronoun_opens_its_clause_and_agrees_with_its_noun() -> None:
    itself = Phrase("goat", True, kind="w")
    loved, loving = Clause(ADA, "love", itself, "past"), Clause(itself, "love", ADA, "past")
    goats = Phrase("goat", True, "red", clause=loved, clause_template="that {passive} by {agent}")
    assert goats.english(True) == "the red goats that were loved by Ada"
    assert " ".join(goats.lumi("object")) == "radokino rubakino wakino Ada dorti"
    goats = Phrase("goat", True, clause=loving, clause_template="which {verb} {object}")
    assert goats.english(False) == "the goats which loved Ada"
    assert " ".join(goats.lumi("with")) == "radokime waki Ada-no dortiki"


def test_english_verbs() -> None:
    assert conjugate("find", "past", True, False) == "found"
    assert conjugate("pull", "past", False, False) == "pulled"
    assert [conjugate("pull", "present", many, False) for many in (False, True)] == ["pulls", "pull"]
    assert [conjugate("pull", "present", many, True) for many in (False, True)] == ["does not pull", "do not pull"]
    assert conjugate("pull", "future", True, True) == "will not pull"
    assert conjugate_passive("love", "past", True, False) == "were loved"
    assert conjugate_passive("bring", "future", False, True) == "will not be brought"


def test_the_reference_says_word_for_word_what_the_prompt_says(examples: list[Example]) -> None:
    for example in examples:
        words = re.findall(r"[A-Za-z]+(?:-[a-z]+)?", example.reference)
        stems = [MEANINGS[word][0] for word in words if word in MEANINGS]
        english = english_words(example.prompt)
        for noun in NOUNS:
            assert stems.count(noun) == sum(w in (noun, noun + "s") for w in english)
            plural = [word for word in words if MEANINGS.get(word, ("", ""))[0] == noun and "ki" in MEANINGS[word][1]]
            assert len(plural) == english.count(noun + "s")
        for word in (*ADJECTIVES, *TIMES, "not"):
            assert stems.count(word) == sum(w.lower() == word for w in english)
        assert stems.count("um") == english.count("and")
        assert stems.count("z") == sum(w.lower() in ("it", "they", "them") for w in english)
        assert stems.count("w") == sum(w in ("that", "which") for w in english)
        names = sorted(word.split("-")[0] for word in words if word not in MEANINGS)
        assert names == sorted(word for word in english if word in (*NAMES, *PLACES))


def test_adjectives_repeat_the_ending_of_their_noun_and_verbs_end_sentences(examples: list[Example]) -> None:
    for example in examples:
        for sentence in example.metadata["sentences"]:
            words = sentence.rstrip(".").split()
            assert words[0] == "Ha"
            assert MEANINGS[words[-1]][0] in VERBS
            for before, word in pairwise(words):
                if MEANINGS.get(word, ("",))[0] in ADJECTIVES:
                    noun, ending = MEANINGS[before]
                    gender = "a" if NOUNS[noun][-1] in "aeiou" else "e"
                    assert MEANINGS[word][1] == gender + ending


def test_a_pronoun_has_one_noun_that_fits_and_takes_its_gender() -> None:
    for example in Translation(level=3).examples("test", 300):
        first, *later = example.metadata["sentences"]
        nouns = [MEANINGS[w] for w in first.rstrip(".").split() if MEANINGS.get(w, ("",))[0] in NOUNS]
        for sentence in later:
            endings = [MEANINGS[w][1] for w in sentence.rstrip(".").split() if MEANINGS.get(w, ("",))[0] == "z"]
            assert len(endings) == 1
            fitting = [noun for noun, ending in nouns if ("ki" in ending) == ("ki" in endings[0])]
            assert len(fitting) == 1
            assert endings[0][0] == ("a" if NOUNS[fitting[0]][-1] in "aeiou" else "e")


def test_all_free_wordings_score_one(examples: list[Example]) -> None:
    task = Translation()
    for example in examples[:40]:
        words = " ".join(example.metadata["sentences"]).split(" ")
        spots = [i for i, word in enumerate(words) if word in SYNONYMS]
        assert 2 <= len(spots) <= 4
        for ways in islice(product(*(SYNONYMS[words[i]] for i in spots)), 60):
            chosen = dict(zip(spots, ways, strict=True))
            text = " " + " ".join(chosen.get(i, word) for i, word in enumerate(words))
            assert task.scores(example, text) == {"exact_match": 1.0, "chrf": 1.0}
        assert task.scores(example, example.reference) == {"exact_match": 1.0, "chrf": 1.0}


def test_scores_of_hand_written_cases() -> None:
    task = Translation()
    gold = ["Ha hem Ada mor um Tom-no lanti.", "Ha nia ze Ada-no dormi."]
    example = Example("0", "", "", {"level": 1, "sentences": gold})

    def exact(text: str) -> float:
        return task.scores(example, text)["exact_match"]

    assert exact(" Sei hem Ada mor tok Tom-no lanti. Yo nia ze Ada-no dormi.") == 1.0
    assert exact(" Sei hem Ada mor tok Tom-no lanti. Yo nia za Ada-no dormi.") == 0.5
    assert exact(" Yo nia ze Ada-no dormi. Sei hem Ada mor tok Tom-no lanti.") == 0.0, "the position counts"
    assert exact(" Ha hem Ada mor um Tom-no lanti. Ha nia ze Ada-no dormi") == 0.5, "the full stop belongs to it"
    assert exact(" " + " ".join(gold) + " Ha nia ze Ada-no dormi.") == pytest.approx(2 / 3), "one too many"
    assert exact(" " + " ".join(gold) + ".") == pytest.approx(2 / 3), "a full stop alone is one too many"
    assert exact(" ".join(gold[:1])) == 0.5
    near, far = (task.scores(example, text)["chrf"] for text in (f"{gold[0]} Ha nia za Ada-no dormi.", "Ha suli."))
    assert 0.0 < far < 0.3 < 0.8 < near < 1.0
    assert task.scores(example, "") == {"exact_match": 0.0, "chrf": 0.0}
    assert task.score(example, gold[0]) == 0.5
    assert split_sentences(" Yo hem.  Sei nia") == ["Ha hem.", "Ha nia"]


def test_levels_differ() -> None:
    told = {level: [e.prompt for e in Translation(level=level).examples("test", 300)] for level in (1, 2, 3)}
    has = {level: {w for p in prompts for w in english_words(p)} for level, prompts in told.items()}
    assert not has[1] & {"not", "by", "and", "it", "It", "that", "which"}
    assert {"not", "by", "and"} <= has[2]
    assert not has[2] & {"it", "It", "them", "that", "which"}
    assert {"not", "by", "and", "it", "It", "them", "They", "that", "which"} <= has[3]
    assert all(p.count(".") == (2 if level == 1 else 3) for level, prompts in told.items() for p in prompts)


def test_unseen_wording_shares_no_template_and_no_name_with_seen_wording() -> None:
    used: dict[bool, set[str]] = {}
    for unseen in (False, True):
        author, names = Author("x", unseen=unseen), set()
        for level in (1, 2, 3) * 100:
            prompt = Translation().draw(Author(f"{author.random()}", level, unseen)).prompt
            names |= {word for word in english_words(prompt) if word in (*NAMES, *PLACES)}
        used[unseen] = names | {author.template(pool) for pool in POOLS for _ in range(100)}
    assert not used[True] & used[False]
    every = {item for pool in (*POOLS, NAMES, PLACES) for item in pool}
    assert used[True] | used[False] == every
    assert used[True] == {item for pool in (*POOLS, NAMES, PLACES) for item in pool[UNSEEN_EVERY - 1 :: UNSEEN_EVERY]}


def test_an_unseen_example_is_translated_by_the_same_rules() -> None:
    prompts = [e.prompt for e in Translation(wording="unseen").examples("test", 50)]
    assert all(prompt.startswith("Say this English text in Lumi: ") for prompt in prompts)
    example = Translation(wording="unseen", level=3).examples("test", 1)[0]
    assert Translation().scores(example, example.reference) == {"exact_match": 1.0, "chrf": 1.0}


def test_no_noun_and_no_name_comes_twice() -> None:
    for level in (1, 2, 3):
        for i in range(200):
            writer = Writer(Author(f"{i}", level), level)
            told = (writer.easy, writer.middling, writer.hard)[level - 1]()
            spoken = [w for english, _ in told for w in re.findall(r"[A-Za-z]+", english)]
            nouns = [w for w in spoken if w.removesuffix("s") in NOUNS or w in (*NAMES, *PLACES)]
            assert len(nouns) == len({w.removesuffix("s") for w in nouns})


def test_suffixes_and_vocabulary_are_small() -> None:
    assert set(TENSES.values()) == {"ti", "mi", "ri"}
    assert max(len(stem) for table in (NOUNS, ADJECTIVES, VERBS, TIMES) for stem in table.values()) <= 4
    soft = sum(stem[-1] in "aeiou" for stem in NOUNS.values())
    assert soft == len(NOUNS) - soft == 12
