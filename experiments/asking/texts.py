"""An answer as text that is safe to print, each piece with the source of its tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

Piece = tuple[str, str]  # source, text

# Escape sequences of terminals: CSI, strings that run to their end mark (OSC and others), any other two or three bytes.
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
KEPT = "\n\t"
UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are no whole character yet
COLORS: Mapping[str, str] = {"draft": "32", "slim": "33", "target": "36"}  # green, yellow, cyan
RESET = "\x1b[0m"
REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # bidirectional classes of Unicode


def split_text(ids: Sequence[int], sources: Sequence[str], decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """The text of `ids`, token by token, each with its source. A character of several tokens goes to the last one."""
    pieces, told = [], ""
    for count, source in enumerate(sources, 1):
        text = decode(ids[:count])
        if text.endswith(UNFINISHED) and count < len(ids):
            continue
        common = shared_length(told, text)  # some tokenizers change what stood before
        pieces.append((source, text[common:]))
        told = text
    return pieces


def shared_length(one: str, other: str) -> int:
    """How many leading characters two texts share."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def clean(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces without escape sequences and control characters, those that go over several tokens, too.

    Characters that reorder what is shown (Unicode's bidirectional controls) are gone as well; line breaks and tabs
    stay. Neighbors of one source become one piece.
    """
    text = "".join(text for _, text in pieces)
    dropped = {at for match in SEQUENCE.finditer(text) for at in range(*match.span())}
    owners = [source for source, text in pieces for _ in text]
    kept = [(owner, sign) for at, (owner, sign) in enumerate(zip(owners, text, strict=True))
            if at not in dropped and is_harmless(sign)]  # fmt: skip
    return [(owner, "".join(sign for _, sign in group)) for owner, group in groupby(kept, key=lambda one: one[0])]


def is_harmless(sign: str) -> bool:
    """Whether a terminal only shows this character."""
    if sign in KEPT:
        return True
    control = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")
    return not control and unicodedata.bidirectional(sign) not in REORDERING


def paint(pieces: Sequence[Piece], colored: bool) -> str:
    """The text in colors, or with the source in brackets wherever it changes."""
    if colored:
        return "".join(f"\x1b[{COLORS[source]}m{text}{RESET}" for source, text in pieces)
    return "".join(f"[{source}]{text}" for source, text in pieces)


def legend(colored: bool) -> str:
    """What the colors, or the brackets, mean."""
    meanings = {"draft": "drafted and kept", "slim": "written by the slim verifier", "target": "written by the target"}
    named = [paint([(source, source if colored else "")], colored) + " " + told for source, told in meanings.items()]
    return ", ".join(named)
