"""The operations on strings of the coding family; every wording keeps to few words."""

from __future__ import annotations

from experiments.tasks.base import Author
from experiments.tasks.coding_pieces import Operation

LETTERS = "abcdeilmnorst"


def few(author: Author) -> int:
    """A number of letters."""
    return author.randint(2, 6)


def letter(author: Author) -> str:
    """A letter that a string operation looks for or adds."""
    return author.choice(LETTERS)


def two_letters(author: Author) -> str:
    """What is replaced by what."""
    return "".join(author.sample(LETTERS, 2))


TEXT_CHANGES = (
    Operation(
        "upper",
        (
            "put it in upper case",
            "make all letters capital",
            "turn it into capital letters",
            "write it in capital letters",
            "make it upper case",
        ),
        ("{v}.upper()",),
        lambda s, n: "".join(chr(ord(c) - 32) if c in LETTERS else c for c in s),
    ),
    Operation(
        "reverse",
        ("reverse it", "turn it around", "write it in reverse", "write it from last to first", "turn it in reverse"),
        ("{v}[::-1]",),
        lambda s, n: "".join(reversed(s)),
    ),
    Operation(
        "replace",
        (
            "replace '{n[0]}' by '{n[1]}'",
            "turn each '{n[0]}' into '{n[1]}'",
            "write '{n[1]}' for each '{n[0]}'",
            "make each '{n[0]}' a '{n[1]}'",
            "turn '{n[0]}' into '{n[1]}'",
        ),
        ("{v}.replace('{n[0]}', '{n[1]}')",),
        lambda s, n: "".join(n[1] if c == n[0] else c for c in s),
        two_letters,
    ),
    Operation(
        "remove",
        ("remove each '{n}'", "drop all '{n}'", "leave out every '{n}'", "drop each '{n}'", "remove every '{n}'"),
        ("{v}.replace('{n}', '')",),
        lambda s, n: "".join(c for c in s if c != n),
        letter,
    ),
    Operation(
        "first",
        (
            "keep the first {n} letters",
            "take the first {n} letters",
            "keep only the first {n} letters",
            "cut it after {n} letters",
            "take only the first {n} letters",
        ),
        ("{v}[:{n}]",),
        lambda s, n: "".join(c for i, c in enumerate(s) if i < n),
        few,
    ),
    Operation(
        "skip",
        (
            "drop the first {n} letters",
            "skip the first {n} letters",
            "remove the first {n} letters",
            "start after {n} letters",
            "leave out the first {n} letters",
        ),
        ("{v}[{n}:]",),
        lambda s, n: "".join(c for i, c in enumerate(s) if i >= n),
        few,
    ),
    Operation(
        "times",
        (
            "repeat it {n} times",
            "write it {n} times",
            "make {n} copies of it",
            "put {n} copies together",
            "take it {n} times",
        ),
        ("{v} * {n}",),
        lambda s, n: "".join(s for _ in range(n)),
        lambda author: author.randint(2, 4),
    ),
    Operation(
        "end",
        (
            "add '{n}' at the end",
            "append '{n}'",
            "put '{n}' at the end",
            "write '{n}' after it",
            "write '{n}' at the end",
        ),
        ("{v} + '{n}'",),
        lambda s, n: "".join((s, n)),
        letter,
    ),
    Operation(
        "front",
        (
            "put '{n}' in front",
            "add '{n}' in front",
            "put '{n}' before it",
            "write '{n}' before it",
            "add '{n}' before it",
        ),
        ("'{n}' + {v}",),
        lambda s, n: "".join((n, s)),
        letter,
    ),
)
TEXT_ENDINGS = (  # none with so few values (whether, how often) that a function without one of its steps passes too
    Operation("text", ("the new string", "the final string"), ("{v}",), lambda s, n: s),
    Operation("length", ("its length", "how many letters it has"), ("len({v})",), lambda s, n: sum(1 for _ in s)),
    Operation(
        "letters", ("the list of its letters", "its letters in a list"), ("list({v})", "[*{v}]"), lambda s, n: [*s]
    ),
    Operation(
        "sorted",
        ("its letters sorted", "the sorted list of its letters"),
        ("sorted({v})",),
        lambda s, n: [c for c in map(chr, range(128)) for _ in range(s.count(c))],
    ),
    Operation(
        "last",
        ("its last {n} letters", "the last {n} letters of it"),
        ("{v}[-{n}:]",),
        lambda s, n: "".join(c for i, c in enumerate(s) if i >= len(s) - n),
        few,
    ),
)
