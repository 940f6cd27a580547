"""Marked blocks of Markdown: `<!-- shown: KIND SOURCE KEY=VALUE ... -->`, what is shown, `<!-- /shown -->`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError, near

BLOCK = re.compile(r"^(<!-- shown: (?P<told>[^\n]*?) -->\n)(?P<body>.*?)(^<!-- /shown -->$)", re.S | re.M)
MARKER = re.compile(r"^<!-- /?shown\b", re.M)


@dataclass(frozen=True)
class Block:
    """What a marker asks for, the page that it stands in, and what is shown there now. Paths begin at `root`."""

    kind: str
    source: str
    options: Mapping[str, str]
    page: Path
    root: Path
    body: str

    @property
    def path(self) -> Path:
        """The file that is shown."""
        return self.root / self.source

    def names(self, option: str) -> list[str]:
        """An option that lists names, separated by `|`; none where it is not there."""
        return self.options[option].split("|") if option in self.options else []

    def link(self, path: Path) -> str:
        """A path as a link of the page."""
        return Path(os.path.relpath(path, self.page.parent)).as_posix()


class Skipped(Exception):
    """What is asked for cannot be shown on this machine, or not yet: the page keeps what it has."""


Write = Callable[[Block], str]


def rewrite(page: Path, root: Path, kinds: Mapping[str, Write]) -> list[str]:
    """Write the blocks of a page anew; return what was skipped. Raises UserError for a marker that nobody knows."""
    text, skipped = page.read_text(encoding="utf-8"), []
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise UserError(
            f"{page}: a marker without its other; accepted: <!-- shown: KIND SOURCE --> ... <!-- /shown -->"
        )

    def replaced(found: re.Match[str]) -> str:
        block = read_block(found["told"], found["body"], page, root, kinds)
        try:
            body = kinds[block.kind](block).strip("\n") + "\n"
        except Skipped as why:
            skipped.append(f"{page.relative_to(root)}: {block.kind} {block.source}: left as it is ({why})")
            body = found["body"]
        return f"{found[1]}{body}{found[4]}"

    new = BLOCK.sub(replaced, text)
    if new != text:
        page.write_text(new, encoding="utf-8")
    return skipped


def read_block(told: str, body: str, page: Path, root: Path, kinds: Mapping[str, Write]) -> Block:
    """A marker's words. Raises UserError for an unknown kind, and for a marker without a source."""
    try:
        kind, *words = shlex.split(told)
    except ValueError as error:
        raise UserError(f"{page}: shown: {told} ({error}): accepted: KIND SOURCE KEY=VALUE ...") from error
    if kind not in kinds:
        raise UserError(f"{page}: shown: {kind}: not a kind{near(kind, kinds)}")
    if not words or not all("=" in word for word in words[1:]):
        raise UserError(f"{page}: shown: {told}: accepted: {kind} SOURCE KEY=VALUE ...")
    options = dict(word.split("=", 1) for word in words[1:])
    return Block(kind, words[0], options, page, root, body)
