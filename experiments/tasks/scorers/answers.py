"""Short answers: normalized as the sets' official scripts do, numbers, letters, plain comparison."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

Scores = dict[str, float]
ARTICLES = re.compile(r"\b(a|an|the)\b")
QUOTES = "‘’´`"  # TriviaQA's script drops these, too
NO_ANSWER = ("", "unanswerable", "no answer")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
FINAL = "####"
SAID = re.compile(r"(?i:answer)\s*(?:is|:)?\s*:?\s*\**\(?([A-J])\b")
ALONE = re.compile(r"\(([A-J])\)|\b([B-HJ])\b|^\s*(A)\s*$|\b(A)[).:]", re.MULTILINE)  # "A" and "I" are words, too


def squad_words(text: str) -> list[str]:
    """Lower case, without punctuation and articles (SQuAD's evaluation script, Rajpurkar et al. 2016, 2018)."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", kept).split()


def trivia_words(text: str) -> list[str]:
    """As TriviaQA's evaluation script (Joshi et al. 2017) does: punctuation and some quotes become spaces."""
    marks = str.maketrans(dict.fromkeys(string.punctuation + QUOTES, " "))
    return ARTICLES.sub(" ", text.replace("_", " ").lower().translate(marks)).split()


def f1(told: Sequence[str], gold: Sequence[str]) -> float:
    """Overlap of words as multisets; 1 where both are empty."""
    if not told or not gold:
        return float(told == gold)
    common = (Counter(told) & Counter(gold)).total()
    return 2 * common / (len(told) + len(gold))


def compare_answers(text: str, references: Sequence[str], normalize: Callable[[str], list[str]]) -> tuple[float, float]:
    """Exact match and F1 with the nearest of the references."""
    told = normalize(text)
    gold = [normalize(reference) for reference in references]
    return float(told in gold), max(f1(told, one) for one in gold)


def squad(text: str, references: Sequence[str]) -> Scores:
    """SQuAD 2.0: F1 and exact match; a question without references is to be answered by saying so, or nothing.

    Its script knows an empty answer only; a model that writes says "unanswerable", which the prompt asks for.
    """
    told = "" if " ".join(squad_words(text)) in NO_ANSWER else text
    exact, overlap = compare_answers(told, references or [""], squad_words)
    return {"squad_f1": overlap, "exact_match": exact}


def open_answer(text: str, references: Sequence[str]) -> Scores:
    """Open questions with aliases: exact match after SQuAD's normalization (as for NaturalQuestions), and F1."""
    exact, overlap = compare_answers(text, references, squad_words)
    return {"qa_exact": exact, "qa_f1": overlap}


def trivia(text: str, references: Sequence[str]) -> Scores:
    """TriviaQA: exact match with one of the aliases after its own normalization, and F1."""
    exact, overlap = compare_answers(text, references, trivia_words)
    return {"trivia_exact": exact, "trivia_f1": overlap}


def exact_match(text: str, references: Sequence[str]) -> Scores:
    """The same text but for white space around it."""
    return {"exact_match": float(text.strip() in [reference.strip() for reference in references])}


def contains(text: str, references: Sequence[str]) -> Scores:
    """One of the references is in the text, both normalized as SQuAD does."""
    told = f" {' '.join(squad_words(text))} "
    gold = [" ".join(squad_words(reference)) for reference in references]
    return {"contains": float(any(one and f" {one} " in told for one in gold))}


def read_number(text: str) -> Decimal | None:
    """The number after GSM8K's mark `####`, else the last one of the text; None where there is none."""
    found = NUMBER.findall(text.rpartition(FINAL)[2]) if FINAL in text else []
    number = found[0] if found else next(reversed(NUMBER.findall(text)), None)
    return None if number is None else Decimal(number.replace(",", ""))


def final_number(text: str, references: Sequence[str]) -> Scores:
    """GSM8K (Cobbe et al. 2021): the same final number as in a reference, by value."""
    told = read_number(text)
    right = told is not None and told in [read_number(reference) for reference in references]
    return {"final_number": float(right)}


def read_letter(text: str) -> str | None:
    """The choice that a text names: after "answer is", else the first letter that stands alone."""
    if said := SAID.findall(text):
        return str(said[-1])
    alone = ALONE.search(text)
    return next(filter(None, alone.groups())) if alone else None


def letter(text: str, references: Sequence[str]) -> Scores:
    """Multiple choice: the letter of a reference, which is a letter or the number of the choice (0 is A)."""
    gold = [chr(ord("A") + int(one)) if one.isdigit() else one.strip().upper() for one in references]
    return {"letter": float(read_letter(text) in gold)}
