"""A decoded text, each token on the color of the model that wrote it, and underlined by it for print without color."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from experiments.asking.texts import Piece, clean, split_text
from experiments.errors import UserError, near
from experiments.figures.style import GRAY, PAGE, PARTS, in_style, new_figure, write_caption
from experiments.figures.traces import row_at, sources_of, task_run
from experiments.figures.values import open_runs, where
from experiments.records import Row
from experiments.tables import StoredRun

Decode = Callable[[Sequence[int]], str]
FONT = "DejaVu Sans Mono"
ADVANCE = 0.602  # width of its characters over their size
SIZE, LEADING = 7.0, 1.75  # of the letters, points; of a line, over that
MEANINGS = {"draft": "drafted and kept", "slim": "by the slim verifier", "target": "by the target"}
UNDERLINES: dict[str, Literal["none", ":", "-"]] = {"draft": "none", "slim": ":", "target": "-"}


def draw(
    runs: Sequence[StoredRun],
    *,
    arms: Sequence[str],
    task: str | None = None,
    example: int = 0,
    decode: Decode | None = None,
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """One answer by each of the arms, on `task` (None: the first), to the example of this place among those timed.

    `decode`: ids -> text; None: the tokenizer of the pair, by its name in conf/pair. Raises UserError for an unknown
    arm, task or pair, and where an arm has no such example.
    """
    run = task_run(runs, task)
    rows = {name: row_at(run, name, example) for name in arms}
    read = decode or open_decode(run)
    characters = int((width - 0.3) * 72 / (SIZE * ADVANCE))
    texts = {name: wrap(_pieces(row, read), characters) for name, row in rows.items()}
    lines = sum(len(text) + 1 for text in texts.values()) + len(texts) - 1  # a heading each, and an empty line between
    with in_style():
        figure = new_figure(width, 0.6 + (lines + 1) * SIZE * LEADING / 72 + 0.3 * bool(title))
        axes = figure.subplots()
        axes.set(xlim=(0, characters), ylim=(lines + 0.5, -0.5))
        axes.axis("off")
        at = 0
        for name, text in texts.items():
            axes.text(0, at, heading(name, rows[name]), fontsize=SIZE, weight="bold", va="center")
            for offset, line in enumerate(text, 1):
                draw_line(axes, at + offset, line)
            at += len(text) + 2
        figure.legend(handles=source_legend(), loc="outside upper left", ncols=3, handlelength=1.6)
        if title:
            figure.suptitle(title)
        write_caption(figure, f"{where(open_runs([run]))}. {run.task}, timed example {example}.")
    return figure


def open_decode(run: StoredRun) -> Decode:
    """The reading of ids by the tokenizer of a run's pair. Raises UserError for a pair that has no yaml here."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from experiments.config import CHECKOUT, make
    from viasd.models import load_tokenizer

    name = run.identity["pair"]["name"]
    known = [path.stem for path in (CHECKOUT / "conf" / "pair").glob("*.yaml")]
    if name not in known:
        raise UserError(f"pair={name}: no yaml in conf/pair, so no tokenizer; accepted: `decode`{near(name, known)}")
    override = [f"pair={name}"]
    if GlobalHydra.instance().is_initialized():
        node = compose("config", override)["pair"]
    else:
        with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
            node = compose("config", override)["pair"]
    decode: Decode = load_tokenizer(make(node, "pair")).decode
    return decode


def heading(name: str, row: Row) -> str:
    """What is said above an answer."""
    calls = ", ".join(f"{count} {reader}" for reader, count in row.calls.items())
    return f"{name}: {row.new_tokens} tokens in {row.rounds} rounds; calls: {calls}"


def _pieces(row: Row, decode: Decode) -> list[Piece]:
    ids, sources = row.token_ids, sources_of(row)
    if row.finish_reason == "eos":
        ids, sources = ids[:-1], sources[:-1]  # an end mark is no part of what is said
    return clean(split_text(ids, sources, decode))


def wrap(pieces: Sequence[Piece], characters: int) -> list[list[Piece]]:
    """Lines of at most that many characters; a tab is four spaces, and an empty line stays one."""
    lines: list[list[Piece]] = [[]]
    room = characters
    for source, text in pieces:
        for place, part in enumerate(text.replace("\t", "    ").split("\n")):
            if place:
                lines.append([])
                room = characters
            while part:
                if not room:
                    lines.append([])
                    room = characters
                lines[-1].append((source, part[:room]))
                part, room = part[room:], room - len(part[:room])
    return lines


def draw_line(axes: Axes, row: int, line: Sequence[Piece]) -> None:
    """A line of text in axes whose x counts characters and whose y counts lines downwards."""
    at = 0
    for source, text in line:
        color = PARTS[source][0]
        axes.add_patch(Rectangle((at, row - 0.45), len(text), 0.9, facecolor=color, alpha=0.3, linewidth=0))
        axes.plot([at, at + len(text)], [row + 0.42] * 2, UNDERLINES[source], color=color, linewidth=1.1)
        for place, sign in enumerate(text):  # one by one: the renderer's own spacing would drift
            axes.text(
                at + place + 0.5, row, sign, family=FONT, fontsize=SIZE, ha="center", va="center", parse_math=False
            )
        at += len(text)


def source_legend() -> list[Line2D]:
    """What the colors and underlines mean."""
    looks: Mapping[str, str] = {name: PARTS[name][0] for name in MEANINGS}
    return [
        Line2D([], [], color=color, linestyle=UNDERLINES[name], linewidth=2, marker="s", markersize=6, alpha=0.6,
               markeredgecolor=GRAY, markeredgewidth=0.3, label=f"{name}: {MEANINGS[name]}")
        for name, color in looks.items()
    ]  # fmt: skip
