"""The answers of a run for the example browser: texts once, in pieces of one token, and what each row says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.asking.texts import split_text
from experiments.pages.origins import Origins
from experiments.pages.runs import Reported
from experiments.pages.signs import visible
from experiments.records import TRACE, Row

ROUND = ("drafted", "judged", "rejected", "committed", "pending", "tiers", "sources", "escalation")
DIFFERS = 0.5  # at temperature 0 the loss of a token is 1 where it is not the target's argmax, else 0


@dataclass
class Texts:
    """Texts as lists of pieces, each list once."""

    pieces: list[list[str]] = field(default_factory=list)
    places: dict[tuple[str, ...], int] = field(default_factory=dict)
    size: int = 0  # characters of all of them as JSON

    def place(self, pieces: Sequence[str]) -> int:
        """The place of a text, which is added unless it is there."""
        key = tuple(map(visible, pieces))
        if key not in self.places:
            self.places[key] = len(self.pieces)
            self.pieces.append(list(key))
            self.size += len(json.dumps(key))
        return self.places[key]


def read_answers(one: Reported, origins: Origins, texts: Texts) -> Iterator[dict[str, Any]]:
    """Yield the examples of a run in its order, each with prompt and reference where they are known, and its rows."""
    by_example: dict[str, list[Row]] = {}
    for row in sorted(one.run.rows, key=lambda row: row.index):
        by_example.setdefault(row.example_id, []).append(row)
    splitter = Splitter(origins)
    places = {arm: place for place, arm in enumerate(one.run.arms)}
    for example_id, rows in by_example.items():
        known = origins.examples.get(example_id)
        prompt = {} if known is None else {"prompt": visible(known.prompt), "reference": visible(known.reference)}
        ordered = sorted((row for row in rows if row.arm in places), key=lambda row: places[row.arm])
        answers = [{"arm": places[row.arm], **tell(row, splitter, texts, one.run.temperature == 0)} for row in ordered]
        yield {"id": example_id, "level": rows[0].level, **prompt, "rows": answers}


def tell(row: Row, splitter: Splitter, texts: Texts, greedy: bool) -> dict[str, Any]:
    """What the browser shows of a row. An error row has nothing but its error."""
    if row.error is not None:
        return {"error": visible(row.error)}
    pieces = splitter.pieces(row)
    found: dict[str, Any] = {
        "text": texts.place(pieces or [row.text]),
        "tokens": row.new_tokens,
        "end": row.finish_reason,
        "quality": rounded(row.quality),
        "scores": {name: rounded(score) for name, score in row.scores.items()},
        "rounds": row.rounds,
        "drafted": row.drafted,
        "judged": row.judged,
        "rejected": row.rejected,
        "written": row.sources,
        "prompt_tokens": row.prompt_tokens,
        "truncated": row.truncated,
        "seconds": rounded(sum(row.decode_seconds) / len(row.decode_seconds)) if row.decode_seconds else None,
        "clocked": row.new_tokens - row.unclocked,
        "divergence": row.first_divergence,
    }
    if greedy and row.token_loss:
        found["differs"] = [place for place, loss in enumerate(row.token_loss) if loss > DIFFERS]
    if pieces:
        found["sources"] = sources(row)
    if row.trace:
        places = [TRACE.index(name) for name in ROUND]
        found["trace"] = [[entry[place] for place in places] for entry in row.trace]
    return {name: value for name, value in found.items() if value not in (None, {}, "")}


def rounded(number: float | None) -> float | None:
    """Four significant digits, which is more than a page shows."""
    return None if number is None else float(f"{number:.4g}")


def sources(row: Row) -> str:
    """The initial of each token's source; empty where it is not known token by token."""
    if len(row.sources) == 1:
        (only,) = row.sources
        return only[0] * row.new_tokens
    written = "".join(entry[TRACE.index("sources")] for entry in row.trace)
    return written if len(written) == row.new_tokens else ""


@dataclass
class Splitter:
    """Texts in pieces of one token, made by the pair's tokenizer where it gives what is stored."""

    origins: Origins
    known: dict[tuple[int, ...], list[str]] = field(default_factory=dict)

    def pieces(self, row: Row) -> list[str]:
        """A piece for each token (several tokens of one character: the last has it), none where that is not known."""
        decode = self.origins.decode
        if decode is None or not row.token_ids:
            return []
        key = tuple(row.token_ids)
        if key not in self.known:
            self.known[key] = [""] * len(key)
            for place, text in split_text(row.token_ids, list(map(str, range(len(key)))), decode):
                self.known[key][int(place)] = text
        whole = self.known[key]
        return cut(whole, len(row.text)) if "".join(whole).startswith(row.text) else []


def cut(pieces: Sequence[str], length: int) -> list[str]:
    """The pieces up to that many characters; those behind are empty. A stop string is no part of a text."""
    kept = []
    for piece in pieces:
        kept.append(piece[:length])
        length -= len(kept[-1])
    return kept
