"""The scorers that `task.metric` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.errors import UserError, near
from experiments.tasks.scorers import answers, mathematics, overlap
from experiments.tasks.scorers.answers import Scores


def no_library() -> str:
    """The signature of what is written here: the hash of the sources covers it."""
    return ""


@dataclass(frozen=True)
class Scorer:
    """`score` judges a text by its references: 0 to 1, `main` first. `signature` names versions and settings.

    Without references there is no score, unless that itself is something to find out (`unanswerable`).
    """

    main: str
    score: Callable[[str, Sequence[str]], Scores]
    signature: Callable[[], str] = no_library
    unanswerable: bool = False


SCORERS: Mapping[str, Scorer] = {
    "bleu": Scorer("bleu", overlap.bleu, overlap.sacrebleu_signature),
    "chrf": Scorer("chrf", overlap.chrf, overlap.sacrebleu_signature),
    "contains": Scorer("contains", answers.contains),
    "exact_match": Scorer("exact_match", answers.exact_match),
    "final_number": Scorer("final_number", answers.final_number),
    "letter": Scorer("letter", answers.letter),
    "math_verify": Scorer("math_verify", mathematics.math_verify, mathematics.signature),
    "qa": Scorer("qa_exact", answers.open_answer),
    "rouge": Scorer("rougeL", overlap.rouge, overlap.rouge_signature),
    "squad": Scorer("squad_f1", answers.squad, unanswerable=True),
    "trivia": Scorer("trivia_exact", answers.trivia),
}


def find_scorer(name: str, key: str = "metric") -> Scorer:
    """A scorer by its name. Raises UserError for one that nobody knows."""
    if name not in SCORERS:
        raise UserError(f"{key}={name}: no such scorer{near(name, SCORERS)}")
    return SCORERS[name]
