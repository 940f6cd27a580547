"""The content of law_error.json as text, Markdown and CSV. Pure functions."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.laws.summary import QUANTILES, WITH_QUANTILES
from experiments.text_tables import ABSENT, Cells, markdown_table, text_table

Content = Mapping[str, Any]
NUMBERS = {  # column -> its title, and decimals
    "acceptance": ("acceptance", 3),
    "tv": ("TV", 4),
    "tv_p90": ("TV p90", 3),
    "tv_p99": ("TV p99", 3),
    "kl": ("KL", 4),
    "kl_p90": ("KL p90", 3),
    "kl_p99": ("KL p99", 3),
    "kl_infinite": ("KL inf", 3),
    "overshoot": ("overshoot", 4),
    "overshoot_p90": ("overshoot p90", 3),
    "overshoot_p99": ("overshoot p99", 3),
    "rare_mass": ("rare mass", 5),
}
WITH_INTERVAL = ("acceptance", "tv")
GREEDY = (
    "temperature 0: rows are one-hot, so a law either is the target's at a position or shares nothing with it; TV is "
    "the share of positions where the output differs, and KL is infinite there"
)


def show(content: Content) -> str:
    """The table of all tasks, one line for each of the others, and what has to be known about it."""
    lead = 2 if _is_judged_by_slim(content) else 1  # columns that say which law it is
    parts = [f"{title}\n{text_table(cells(content, task), lead=lead)}" for task, title in titles(content).items()]
    return "\n\n".join([*parts, *legend(content)])


def markdown(content: Content) -> str:
    """The same for a file, with where it was computed."""
    who = content["identity"]["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in who["versions"].items())
    parts = [f"**{title}**\n\n{markdown_table(cells(content, task))}" for task, title in titles(content).items()]
    where = (
        f"Pair {content['pair']}; {who['device']}, {who['dtype']}, {versions}, code {content['identity']['code_hash']}."
    )
    return "\n\n".join([f"# Law errors of pair {content['pair']}", *parts, *legend(content), where]) + "\n"


def titles(content: Content) -> dict[str, str]:
    """What stands above the table of each task, by task."""
    counts = {entry["task"]: entry["n"] for entry in content["entries"]}
    return {task: f"{task}, {count} positions" for task, count in counts.items()}


def cells(content: Content, task: str) -> Cells:
    """One row for each rule and judge, header first; the columns of the mean over tasks have intervals."""
    entries = [entry for entry in content["entries"] if entry["task"] == task]
    first = task == content["entries"][0]["task"]
    shown = [name for name in NUMBERS if first or name in (*WITH_INTERVAL, "kl", "overshoot", "rare_mass")]
    slim = _is_judged_by_slim(content)
    head = ["rule", *(["judge"] if slim else []), *(NUMBERS[name][0] for name in shown)]
    rows = [
        [
            entry["rule"],
            *([entry["judge"]] if slim else []),
            *(cell(entry[name], NUMBERS[name][1], interval=first and name in WITH_INTERVAL) for name in shown),
        ]
        for entry in entries
    ]
    return [head, *rows]


def _is_judged_by_slim(content: Content) -> bool:
    return any(entry["judge"] == "slim" for entry in content["entries"])


def cell(entry: Any, digits: int, interval: bool) -> str:
    """`0.021 [0.018, 0.025]`, or the value alone; a dash where it is undefined."""
    if entry is None:
        return ABSENT
    if not isinstance(entry, Mapping):
        return _number(entry, digits)
    text = _number(entry["value"], digits)
    return f"{text} [{_number(entry['low'], digits)}, {_number(entry['high'], digits)}]" if interval else text


def _number(value: float | str, digits: int) -> str:
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def legend(content: Content) -> list[str]:
    """What the numbers are, and notices."""
    exact = [label for label, is_lossless in content["lossless"].items() if is_lossless]
    told = (
        f"Each rule's law of one token after the same prefixes, from the target's own answers to {content['prompts']} "
        f"{content['split']} prompts per task at temperature {content['temperature']:g}; 95% intervals over prompts. "
        "acceptance: probability that a drafted token is kept. TV, KL(target || law) in nats: distance of the law from "
        "the target's; KL is a mean over positions where it is finite, KL inf the share of the others. overshoot: mass "
        f"of the law above target / {content['lenience']:g}. rare mass: mass of the law on tokens to which the target "
        f"gives less than {content['rare']:g} (of the target itself: see an exact rule). draft_only: drafts unread."
    )
    notes = [*content["notices"], *([GREEDY] if content["temperature"] == 0 else [])]
    return [told, *([f"exact: {', '.join(exact)}"] if exact else []), *(f"note: {note}" for note in notes)]


def write_csv(path: Path, content: Content) -> None:
    """Every number, tidy: task, rule, judge, n, measure, value, low, high."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "rule", "judge", "n", "measure", "value", "low", "high"])
        for entry in content["entries"]:
            for name in NUMBERS:
                own = entry[name]
                ends = [own[key] for key in ("value", "low", "high")] if isinstance(own, Mapping) else [own, "", ""]
                text = [f"{end:.6g}" if isinstance(end, float) else "" if end is None else end for end in ends]
                writer.writerow([entry["task"], entry["rule"], entry["judge"], entry["n"], name, *text])


assert {f"{name}_{key}" for name in WITH_QUANTILES for key in QUANTILES} <= set(NUMBERS)
