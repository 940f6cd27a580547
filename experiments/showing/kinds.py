"""What a block can show: a stored table, a stored picture made small, the output of `make run`, the report."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError, near
from experiments.showing.blocks import Block, Skipped, Write
from experiments.text_tables import headline_table

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = Path("docs", "pictures")
MOST = 80_000  # bytes of a picture: it is in the repository for good
WIDTHS = (1400, 1200, 1000, 900, 800, 700, 600)  # pixels, tried until a picture is small enough
TONES = 64  # chosen so that small dots keep their colors
UNSEEN = 12  # of 255 levels of a color
COLUMNS = 120  # of what a terminal shows


def table(block: Block) -> str:
    """The first table of a Markdown file, `without` some rows, only some `columns` (the first one is always there).

    With columns left out a link to the whole follows. Raises UserError for a row or a column that is not there.
    """
    lines = _read(block).splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith("|")), len(lines))
    end = next((place for place in range(start, len(lines)) if not lines[place].startswith("|")), len(lines))
    if start == end:
        raise UserError(f"{block.path}: no table in it; accepted: one whose lines begin with |")
    cells = [_split(line) for line in lines[start:end]]
    _check(block, "without", [row[0] for row in cells[2:]])
    _check(block, "columns", cells[0])
    kept = [0, *map(cells[0].index, block.names("columns"))] if "columns" in block.options else range(len(cells[0]))
    rows = [row for row in cells if row[0] not in block.names("without")]
    shown = [f"| {' | '.join(row[place] for place in kept)} |" for row in rows]
    whole = f"\n\nAll columns and the small print: [{block.path.name}]({block.link(block.path)})."
    return "\n".join(shown) + (whole if "columns" in block.options else "")


def picture(block: Block) -> str:
    """A stored PNG, made small, as a picture of docs; `alt`: what it shows."""
    from PIL import Image

    if not block.path.is_file():
        raise Skipped("it is not stored")
    with Image.open(block.path) as found:
        return put(block, shrink(found), block.path.stem)


def make_run(block: Block) -> str:
    """What `make run` prints, with the table and the names of a stored summary.json."""
    stored = json.loads(_read(block))
    arms: Mapping[str, Any] = stored["arms"]
    timed, judged = (next(iter(arms.values())).get(name, 0) for name in ("n_timed", "n_quality"))
    text = headline_table(arms, list(arms), width=COLUMNS).strip() + "\n"
    told = re.sub(r"^arm  .*?(?=^rows: )", lambda _: text, block.body, flags=re.S | re.M)
    told = re.sub(r"\b(run |runs/)[0-9a-f]{16}", lambda found: f"{found[1]}{stored['run_id']}", told)
    return re.sub(r"\d+ timed and \d+ judged", f"{timed} timed and {judged} judged", told)


def report(block: Block) -> str:
    """The report of the runs that come with the notebooks, as a browser shows it; `alt`: what it shows."""
    from experiments.showing.screenshot import photograph

    if not block.path.is_dir():
        raise Skipped("it is not there")
    return put(block, shrink(photograph()), "report")


KINDS: dict[str, Write] = {"table": table, "picture": picture, "make_run": make_run, "report": report}


def put(block: Block, content: bytes, name: str) -> str:
    """Write a picture of docs; return the Markdown that shows it."""
    path = block.root / PICTURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or not look_alike(path.read_bytes(), content):
        path.write_bytes(content)
    return f"![{block.options.get('alt', name)}]({block.link(path)})"


def look_alike(one: bytes, other: bytes) -> bool:
    """Whether nobody would see a difference: a browser's pixels vary by a level from time to time."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(other)) as second:
        if first.size != second.size:
            return False
        levels = [np.asarray(image.convert("RGB"), dtype=np.int16) for image in (first, second)]
    return int(np.abs(levels[0] - levels[1]).max()) <= UNSEEN


def shrink(image: Image) -> bytes:
    """A picture as a PNG of few tones and at most `MOST` bytes: the same bytes for the same picture."""
    from PIL import Image

    plain = Image.new("RGB", image.size, "white")
    plain.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    content = io.BytesIO()
    for width in dict.fromkeys(min(width, plain.width) for width in WIDTHS):
        small = plain.resize((width, round(plain.height * width / plain.width)), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        small.quantize(TONES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(content, "png", optimize=True)
        if content.tell() <= MOST:
            return content.getvalue()
    raise Skipped(f"{content.tell()} bytes at {WIDTHS[-1]} pixels, more than {MOST}")


def _read(block: Block) -> str:
    if not block.path.is_file():
        raise Skipped("it is not stored")
    return block.path.read_text(encoding="utf-8")


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _check(block: Block, option: str, known: Sequence[str]) -> None:
    for name in block.names(option):
        if name not in known:
            raise UserError(f"{block.page.name}: shown: {block.source}: {option}={name}: not there{near(name, known)}")
