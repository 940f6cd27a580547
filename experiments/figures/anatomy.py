"""Rounds one by one: the calls of each by reader, how long they take, and what was committed, colored by its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.asking.texts import Piece, clean, split_text
from experiments.errors import UserError
from experiments.figures.colored_text import Decode, draw_line, open_decode, source_legend
from experiments.figures.style import DARK, PAGE, PARTS, in_style, new_figure, write_caption
from experiments.figures.traces import rounds_of, row_at, sources_of, task_run
from experiments.figures.values import open_runs, where
from experiments.records import Row
from experiments.tables import StoredRun
from experiments.text_tables import ABSENT, Cells

CHARACTERS = 62  # of text beside a round
BREAK = "\u21b5"  # stands for a line break within a round


class Curve(Protocol):
    """What a call costs by the number of tokens fed, as `experiments.costs.CostCurve`."""

    def seconds(self, fed: int) -> float: ...


Call = tuple[str, int, float]  # reader, tokens fed, its length in the figure


def draw(
    runs: Sequence[StoredRun],
    *,
    arm: str,
    task: str | None = None,
    example: int = 0,
    rounds: int = 12,
    costs: Mapping[str, Curve] | None = None,
    decode: Decode | None = None,
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """The first rounds of one answer. `costs`: by reader, isolated; None: calls are as long as the tokens they feed.

    `decode`: ids -> text; None: the tokenizer of the pair. Raises UserError for an unknown arm or task, where there is
    no such example, and for a reader without costs.
    """
    run = task_run(runs, task)
    row = row_at(run, arm, example)
    calls = [calls_of(entry, costs) for entry in rounds_of(row)[:rounds]]
    texts = pieces_by_round(row, decode or open_decode(run))[:rounds]
    with in_style():
        figure = new_figure(width, 1.1 + 0.19 * len(calls) + 0.3 * bool(title))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
        _bars(left, calls)
        left.set(xlabel="tokens fed" if costs is None else "ms at isolated costs", ylabel="round")
        left.set_yticks(range(len(calls)), [str(place) for place in range(1, len(calls) + 1)])
        left.set_ylim(len(calls) - 0.4, -0.6)
        for place, text in enumerate(texts):
            draw_line(right, place, _one_line(text))
        right.set_xlim(0, CHARACTERS)
        right.axis("off")
        figure.legend(handles=source_legend(), loc="outside upper left", ncols=3, handlelength=1.6)
        if title:
            figure.suptitle(title)
        told = f"{where(open_runs([run]))}. {run.task}, timed example {example}, {arm}: {row.rounds} rounds."
        write_caption(figure, f"{told} Bars: calls by reader. Text: what the round committed, by source.")
    return figure


def calls_of(entry: Mapping[str, Any], costs: Mapping[str, Curve] | None) -> list[Call]:
    """The calls of a round in their order, as long as they take [ms], or as many tokens as they feed."""
    found: list[Call] = []
    for reader, *lengths in entry["calls"]:
        if costs is not None and reader not in costs:
            raise UserError(f"costs: none of reader {reader!r}; accepted: costs of all readers, or null")
        for fed in lengths:
            found.append((reader, fed, float(fed) if costs is None else 1e3 * costs[reader].seconds(fed)))
    return found


def pieces_by_round(row: Row, decode: Decode) -> list[list[Piece]]:
    """What each round committed, as text by source; an end mark is no part of it."""
    entries, sources = rounds_of(row), sources_of(row)
    ids = row.token_ids[:-1] if row.finish_reason == "eos" else row.token_ids
    # Each token is named by its round as well, so that pieces of two rounds stay apart.
    owners = [place for place, entry in enumerate(entries) for _ in entry["sources"]]
    named = [f"{owner} {source}" for owner, source in zip(owners, sources, strict=False)][: len(ids)]
    found: list[list[Piece]] = [[] for _ in entries]
    for name, text in clean(split_text(ids, named, decode)):
        owner, source = name.split(" ")
        found[int(owner)].append((source, text))
    return found


def table(row: Row, decode: Decode, rounds: int = 12) -> Cells:
    """The first rounds of an answer: counts, verdicts by tier, calls as reader x tokens fed, and the text."""
    header = ["round", "drafted", "judged", "rejected", "committed", "pending", "tiers", "escalation", "calls", "text"]
    cells = [header]
    texts = pieces_by_round(row, decode)
    for place, entry in enumerate(rounds_of(row)[:rounds]):
        counts = [str(entry[name]) for name in ("drafted", "judged", "rejected", "committed", "pending")]
        calls = ", ".join(f"{reader} {'+'.join(map(str, lengths))}" for reader, *lengths in entry["calls"])
        text = "".join(part for _, part in texts[place]).replace("\n", BREAK)
        told = [entry["tiers"] or ABSENT, entry["escalation"] or ABSENT, calls, f"`{text}`"]
        cells.append([str(place + 1), *counts, *told])
    return cells


def kinds(rows: Sequence[Row]) -> Cells:
    """Which readers run in a round, how often, and how many tokens such a round commits."""
    entries = [entry for row in rows for entry in rounds_of(row)]
    by_readers: dict[str, list[int]] = {}
    for entry in entries:
        readers = " + ".join(dict.fromkeys(reader for reader, *_ in entry["calls"]))
        by_readers.setdefault(readers, []).append(entry["committed"])
    cells = [["readers", "rounds", "share of rounds", "committed per round"]]
    for readers, committed in sorted(by_readers.items(), key=lambda one: -len(one[1])):
        share, mean = len(committed) / len(entries), sum(committed) / len(committed)
        cells.append([readers or ABSENT, str(len(committed)), f"{share:.2f}", f"{mean:.2f}"])
    return cells


def times(row: Row) -> Cells:
    """The profiled pass of an answer by reader; other: sampling, gates, host reads, commits."""
    whole = row.profiled_seconds or 0.0
    seconds = {**row.reader_seconds, "other": whole - sum(row.reader_seconds.values())}
    cells = [["reader", "calls", "tokens fed", "ms", "share"]]
    for reader, spent in seconds.items():
        counts = [str(of[reader]) if reader in of else ABSENT for of in (row.calls, row.fed)]
        cells.append([reader, *counts, f"{1e3 * spent:.0f}", f"{spent / whole:.2f}" if whole else ABSENT])
    return cells


def _bars(axes: Axes, calls: Sequence[Sequence[Call]]) -> None:
    for place, of in enumerate(calls):
        start = 0.0
        for reader, fed, length in of:
            color, hatch = PARTS.get(reader, PARTS["other"])
            axes.barh(place, length, left=start, height=0.7, color=color, hatch=hatch, edgecolor="white", linewidth=0.6)
            if fed > 1:
                axes.text(start + length / 2, place, str(fed), fontsize=5, ha="center", va="center", color=DARK)
            start += length


def _one_line(pieces: Sequence[Piece]) -> list[Piece]:
    room, found = CHARACTERS, []
    for source, text in pieces:
        shown = text.replace("\n", BREAK).replace("\t", " ")[:room]
        room -= len(shown)
        found.append((source, shown))
    return found
