"""Longer texts by overlap with references: ROUGE, BLEU and chrF, by the libraries that others report them by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from experiments.tasks.scorers.answers import Scores

ROUGE = ("rougeL", "rouge1", "rouge2")
STEMMER = True


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=STEMMER)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # of one sentence: orders that it is too short for are left out


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def rouge(text: str, references: Sequence[str]) -> Scores:
    """F measures of ROUGE-L, -1 and -2 (Lin 2004), of the reference that is nearest by each."""
    return {name: float(score.fmeasure) for name, score in _rouge().score_multi(list(references), text).items()}


def rouge_signature() -> str:
    """What decides a ROUGE score."""
    return f"rouge-score:{version('rouge-score')}|stemmer:{'yes' if STEMMER else 'no'}|main:rougeL"


def bleu(text: str, references: Sequence[str]) -> Scores:
    """BLEU (Papineni et al. 2002) and chrF of one text, 0 to 1. Their means over examples are no corpus scores."""
    told, gold = text.strip(), list(references)
    scored = {"bleu": _bleu().sentence_score(told, gold), "chrf": _chrf().sentence_score(told, gold)}
    return {name: min(1.0, float(score.score) / 100) for name, score in scored.items()}


def chrf(text: str, references: Sequence[str]) -> Scores:
    """chrF (Popovic 2015) first, and BLEU."""
    scored = bleu(text, references)
    return {"chrf": scored["chrf"], "bleu": scored["bleu"]}


def sacrebleu_signature() -> str:
    """sacrebleu's own signatures; the number of references is each example's."""
    signed = []
    for name, metric in (("BLEU", _bleu()), ("chrF2", _chrf())):
        metric.sentence_score("text", ["text"])  # it knows its signature after its first score
        signed.append(f"{name}|{metric.get_signature().format()}")
    return " ".join(signed)
