"""Answers as text: what was said, by whom, and how fast."""

from __future__ import annotations

from collections import Counter

from experiments.asking.texts import clean, legend, paint, split_text
from experiments.asking.work import Answer, Asked
from experiments.text_tables import ABSENT, text_table

TIERS = ("draft", "slim", "target")


def show(asked: Asked, colored: bool) -> str:
    """The first answer with its sources, a legend, and a table of all answers."""
    first, *others = asked.answers
    ids = first.generation.token_ids
    if first.generation.finish_reason == "eos":
        ids = ids[:-1]  # an end mark is no part of what is said
    pieces = split_text(ids, first.sources[: len(ids)], asked.tokenizer.decode)
    lines = [paint(clean(pieces), colored), "", legend(colored), "", text_table(table(asked.answers))]
    for other in others:
        same = other.generation.token_ids == first.generation.token_ids
        ratio = (other.seconds / tokens(other)) / (first.seconds / tokens(first))
        lines += [
            "",
            f"{ratio:.2f} times as fast per token as {other.method}; {'the same' if same else 'another'} text",
        ]
    return "\n".join([*lines, *(f"note: {notice}" for notice in asked.notices)])


def table(answers: list[Answer]) -> list[list[str]]:
    """One line for each answer: rounds, tokens, rejection, tiers, speed."""
    header = ["method", "tokens", "ended by", "rounds", "tokens/round", "rejection", "tiers d/s/t", "sources d/s/t"]
    return [[*header, "tokens/s"], *(line(answer) for answer in answers)]


def line(answer: Answer) -> list[str]:
    """The cells of one answer. A loop of the library is not asked for its rounds."""
    rounds, count = answer.generation.rounds, tokens(answer)
    judged = sum(one.judged for one in rounds)
    tiers: Counter[str] = Counter(tier for one in rounds for tier in one.tiers)
    return [
        answer.method,
        str(count),
        answer.generation.finish_reason,
        str(len(rounds)) if rounds else ABSENT,
        f"{count / len(rounds):.2f}" if rounds else ABSENT,
        f"{sum(one.rejected for one in rounds) / judged:.3f}" if judged else ABSENT,
        shares(tiers, judged),
        shares(Counter(answer.sources), count) if rounds else ABSENT,
        f"{speed(answer):.1f}",
    ]


def speed(answer: Answer) -> float:
    """Tokens per second of decoding; those that were there before its clock started are left out."""
    return (tokens(answer) - answer.generation.unclocked) / max(answer.seconds, 1e-9)


def tokens(answer: Answer) -> int:
    """Tokens of an answer."""
    return len(answer.generation.token_ids)


def shares(counts: Counter[str], total: int) -> str:
    """Shares of draft, slim and target."""
    return "/".join(f"{counts[name] / total:.2f}" for name in TIERS) if total else ABSENT
