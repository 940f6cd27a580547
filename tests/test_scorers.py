"""The scorers that `task.metric` names: normalization, numbers, letters, overlap, mathematics."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from experiments.errors import UserError
from experiments.tasks.scorers import mathematics
from experiments.tasks.scorers.answers import read_letter, read_number, squad_words, trivia_words
from experiments.tasks.scorers.registry import SCORERS

HAS_MATH_VERIFY = find_spec("math_verify") is not None
# scorer: text, references, main score
JUDGED = [
    ("exact_match", " Paris\n", ["Rome", "Paris"], 1.0),
    ("exact_match", "paris", ["Paris"], 0.0),
    ("contains", "It is the Eiffel-Tower, I think", ["Big Ben", "an eiffeltower"], 1.0),
    ("contains", "Parisian", ["Paris"], 0.0),
    ("contains", "anything", ["the"], 0.0),  # a reference of articles alone says nothing
    ("qa", "The Beatles!", ["beatles"], 1.0),
    ("qa", "The Beatles band", ["beatles"], 0.0),
    ("trivia", "Beyonc\u00b4e_Knowles", ["beyonc e knowles"], 1.0),
    ("squad", "in the year 1066", ["1066", "the year 1066"], 0.8),
    ("squad", "Unanswerable.", [], 1.0),
    ("squad", "", [], 1.0),
    ("squad", "1066", [], 0.0),
    ("squad", "unanswerable", ["1066"], 0.0),
    ("final_number", "so 5 + 5 = 10\n#### 1,010.0 eggs", ["x\n#### 1010"], 1.0),
    ("final_number", "It costs $-3.50 in 2 days. That is $12.", ["#### 12"], 1.0),
    ("final_number", "none at all", ["#### 12"], 0.0),
    ("letter", " B", ["1"], 1.0),
    ("letter", "The answer is (C).", ["C"], 1.0),
    ("letter", "A", ["1"], 0.0),
    ("rouge", "the cats sat", ["the cat sat"], 1.0),  # by their stems
    ("rouge", "", ["the cat sat"], 0.0),
    ("bleu", " Das ist ein kleines Haus.\n", ["Das ist ein kleines Haus."], 1.0),
    ("bleu", "Nein", ["Das ist ein kleines Haus."], 0.0),
    ("chrf", "Das ist ein kleines Haus.", ["Das ist ein kleines Haus.", "Nein"], 1.0),
]


@pytest.mark.parametrize(("name", "text", "references", "score"), JUDGED)
def test_main_scores(name: str, text: str, references: list[str], score: float) -> None:
    scored = SCORERS[name].score(text, references)
    assert next(iter(scored)) == SCORERS[name].main
    assert scored[SCORERS[name].main] == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(SCORERS) - {"math_verify"}))
def test_every_score_is_in_range_and_the_main_one_first(name: str) -> None:
    for text in ("", "12", "B", "a longer text, of 3 kinds", "#### ", "\\boxed{"):
        scored = SCORERS[name].score(text, ["12", "b c"] if name != "letter" else ["B", "1"])
        assert next(iter(scored)) == SCORERS[name].main
        assert all(0 <= score <= 1 for score in scored.values())


def test_qa_scores_are_those_of_the_official_scripts() -> None:
    assert squad_words("The U.S.A., an A-team") == ["usa", "ateam"]
    assert trivia_words("The U.S.A., an A-team_2 ‘x’") == ["u", "s", "team", "2", "x"]
    assert SCORERS["qa"].score("the red and blue car", ["blue car", "bus"]) == {
        "qa_exact": 0.0, "qa_f1": pytest.approx(2 * 2 / (4 + 2))
    }  # fmt: skip


def test_libraries_sign_with_version_and_settings() -> None:
    assert SCORERS["rouge"].signature().startswith("rouge-score:0.") and "|stemmer:yes" in SCORERS["rouge"].signature()
    signed = SCORERS["bleu"].signature()
    assert (
        signed.startswith("BLEU|nrefs:1|case:mixed|eff:yes|tok:13a") and "version:2." in signed and "chrF2|" in signed
    )


@pytest.mark.parametrize(
    ("text", "number"), [("#### 7", 7), ("7 or 8", 8), ("#### no 3 then 4", 3), ("4 #### none", 4), (".5", 0.5)]
)
def test_numbers(text: str, number: float) -> None:
    assert float(read_number(text) or "nan") == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("(D)", "D"), ("A good one is B", "B"), ("Answer: C, not D", "C"), ("I guess so", None), ("A.", "A")],
)
def test_letters(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@pytest.mark.skipif(not HAS_MATH_VERIFY, reason="needs math-verify")
def test_mathematics_is_compared_in_value() -> None:
    score = mathematics.math_verify
    assert score(r"So it is $\boxed{\frac{1}{2}}$.", ["0.5"]) == {"math_verify": 1.0}
    assert score(r"\boxed{1+x}", ["x+1"]) == score("It is 3.", ["3"]) == {"math_verify": 1.0}
    assert score(r"\boxed{4}", ["3"]) == score("", ["3"]) == {"math_verify": 0.0}
    assert "math-verify:" in mathematics.signature()


@pytest.mark.skipif(HAS_MATH_VERIFY, reason="math-verify is installed")
def test_a_missing_library_is_told_with_how_to_get_it() -> None:
    with pytest.raises(UserError, match=r"math_verify: math-verify is not installed; accepted: pip install .*\[math\]"):
        mathematics.signature()
