"""The content of probe.json as one figure of four panels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.probing.bounds import BOUNDS
from experiments.probing.predict import ORACLE
from experiments.probing.summary import MEAN, number

Content = Mapping[str, Any]
COLORS = {"target": "#222222", "draft": "#0072b2", "mid": "#cc79a7"}
LINES = ("--", "-.", ":")  # of vanilla and the bounds
SLIM, OURS, OTHER = "#d55e00", "#009e73", "#bbbbbb"


def draw(content: Content, path: Path) -> None:
    """Write the figure as a PNG."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    _costs(panels[0, 0], content)
    _agreement(panels[0, 1], content)
    _entropy(panels[1, 0], content)
    _speeds(panels[1, 1], content)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.suptitle(f"Pair {content['pair']}, {content['device']}, {content['dtype']}", fontsize="medium")
    figure.savefig(path, dpi=150)


def _costs(axes: Axes, content: Content) -> None:
    views = {name for name, entry in content["agreement"].items() if entry["view"]}
    labeled = False
    lengths = [int(fed) for fed in content["costs"]["readers"]["target"]]
    for name, steps in content["costs"]["readers"].items():
        median, low, high = ([1e3 * cost[key] for cost in steps.values()] for key in ("median", "low", "high"))
        if name in views and name != content["view"]:
            axes.plot(
                lengths, median, color=OTHER, linewidth=1, label=None if labeled else "other slim views", zorder=1
            )
            labeled = True
            continue
        color = SLIM if name == content["view"] else COLORS.get(name)
        (line,) = axes.plot(lengths, median, marker="o", markersize=3, color=color, label=name)
        axes.fill_between(lengths, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(fed) for fed in lengths])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens fed", ylabel="ms per call", title=f"Step cost behind {content['costs']['context']} tokens")


def _agreement(axes: Axes, content: Content) -> None:
    entries = content["agreement"]
    for mask, marker, color in (("even", "o", SLIM), ("searched", "D", OURS), ("chosen", "s", OTHER)):
        found = [entry for entry in entries.values() if entry["view"] and entry["view"]["mask"] == mask]
        if found:
            skipped = [100 * entry["view"]["skipped"] / entry["view"]["layers"] for entry in found]
            values, errors = _with_errors([entry["agreement"][MEAN] for entry in found])
            axes.errorbar(
                skipped, values, errors, marker=marker, markersize=4, color=color, capsize=2, label=f"slim, {mask} mask"
            )
    for name, entry in entries.items():
        if not entry["view"]:
            axes.axhline(number(entry["agreement"][MEAN]), color=COLORS.get(name), linestyle="--", label=name)
    axes.set(xlabel="layers skipped (%)", ylabel="argmax agreement", title="Agreement with the target, mean over tasks")


def _entropy(axes: Axes, content: Content) -> None:
    for role, rows in content["positions"].items():
        middle = [(row["from"] + row["to"] - 1) / 2 for row in rows]
        values = [row["entropy"] for row in rows]
        axes.plot(middle, values, marker="o", markersize=3, color=COLORS.get(role), label=role)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="position in the output", ylabel="entropy (nats)", title="Entropy by position")


def _speeds(axes: Axes, content: Content) -> None:
    arms = list(dict.fromkeys(entry["arm"] for entry in content["predicted"]))
    for arm in arms:
        entries = [entry for entry in content["predicted"] if entry["arm"] == arm]
        values, errors = _with_errors([entry["tokens_per_second"][MEAN] for entry in entries])
        if not entries[0]["draft_length"]:
            bound = BOUNDS.index(arm) + 1 if arm in BOUNDS else 0
            axes.axhline(values[0], color=OTHER if bound else COLORS["target"], linestyle=LINES[bound], label=arm)
            continue
        lengths = [entry["draft_length"] for entry in entries]
        color = COLORS["draft"] if arm == "sd" else OTHER if arm == ORACLE else SLIM
        axes.errorbar(lengths, values, errors, marker="o", markersize=4, capsize=2, color=color, label=arm)
        axes.set_xticks(lengths)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="drafted tokens", ylabel="tokens/s", title="Predicted, without harness time per round")


def _with_errors(entries: list[Any]) -> tuple[list[float], list[list[float]]]:
    """Values, and distances to the two ends of their intervals (0 where there is none)."""
    values = [number(entry) for entry in entries]
    ends = [(entry["low"], entry["high"]) if isinstance(entry, Mapping) else (number(entry),) * 2 for entry in entries]
    pairs = list(zip(values, ends, strict=True))
    return values, [
        [max(0.0, value - low) for value, (low, _) in pairs],
        [max(0.0, high - value) for value, (_, high) in pairs],
    ]
