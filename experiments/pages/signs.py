"""Characters that nobody would see, or that reorder what is seen, in visible form."""

from __future__ import annotations

import unicodedata

from experiments.asking.texts import is_harmless

JOINERS = "\u200c\u200d"  # parts of words and of emoji
PICTURES, DELETE = 0x2400, 0x7F  # Unicode's pictures of control characters


def visible(text: str) -> str:
    """The text with what would not be seen, or would reorder what is seen, in visible form. Line breaks stay."""
    return "".join(map(_visible, text))


def _visible(sign: str) -> str:
    code = ord(sign)
    if is_harmless(sign) and (unicodedata.category(sign) != "Cf" or sign in JOINERS):
        return sign
    if code < 0x20:
        return chr(PICTURES + code)
    return "\u2421" if code == DELETE else f"\u27e8U+{code:04X}\u27e9"
