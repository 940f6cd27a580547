"""A metric over one knob of a method, a line for each method or second knob: drafts' length, thresholds, skip ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.errors import UserError
from experiments.figures.style import (
    COLUMN,
    DARK,
    GRAY,
    LINES,
    Mark,
    distances,
    in_style,
    mark,
    new_figure,
    panels,
    write_caption,
    write_legend,
)
from experiments.figures.values import (
    Panels,
    Place,
    caption,
    estimate,
    knob_of,
    known_arms,
    label_of,
    open_runs,
)
from experiments.statistics import Estimate
from experiments.tables import StoredRun

Points = Mapping[str, float]  # arm -> where it stands on the knob's axis
Line = Points | Sequence[str]  # or the arms alone, and the knob is read from what was run
LIGHT = "#bbbbbb"
REACH = 0.6  # how far from the lines a control may lie to be drawn, in heights of a panel
LEGEND_LINE = 0.12  # in
BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.2), "fontsize": 6, "labelspacing": 0.25}


def draw(
    runs: Sequence[StoredRun],
    *,
    lines: Mapping[str, Line],
    metric: str = "tokens_per_second",
    knob: str | None = None,
    x_label: str | None = None,
    y_label: str | None = None,
    reference: Sequence[str] = (),
    controls: Sequence[str] = (),
    fidelity: bool = False,
    relative_to: str | None = None,
    log_x: bool = False,
    shown: Panels = "mean",
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """`lines`: label -> {arm: x}, or label -> arms with their x read from `knob`, a key of the method as `stop.length`.

    `reference`: arms without the knob, as level lines; `controls`: the same, muted, and one far off the lines is told
    in the legend alone. `fidelity`: the legend, then below each panel, says how faithful each line and level is.
    `relative_to`: the metric's relative difference from that arm. A point without a number is a cross at the bottom,
    and the caption names its arm. Raises UserError for runs that do not mix, for a metric or knob nobody knows, and
    where no arm of a line is in the runs.
    """
    given = {label: _points(runs, line, knob) for label, line in lines.items()}
    known_arms(runs, [name for points in given.values() for name in points])
    opened = open_runs(runs, shown)
    shows = opened.panels
    missing: list[str] = []
    with in_style():
        columns = 1 if width < 5 else 2
        rows = -(-len(shows) // columns)
        told = len(given) + len(reference) + len(controls) if fidelity else 0
        figure = new_figure(width, height or 0.9 + (1.9 + LEGEND_LINE * told) * rows)
        for axes, place in zip(panels(figure, list(shows), columns, sharex=True), shows.values(), strict=True):
            for index, (label, points) in enumerate(given.items()):
                values = {name: estimate(place, name, metric, relative_to) for name in points}
                missing += [name for name, value in values.items() if value is None]
                name = label + _faithful(place, list(points), fidelity)
                _line(axes, [(points[arm], value) for arm, value in values.items()], mark(index), name)
            missing += _levels(axes, _named(place, reference, metric, relative_to, fidelity))
            missing += _controls(axes, _named(place, controls, metric, relative_to, fidelity))
            if log_x:
                axes.set_xscale("log", base=2)
            axes.set(xlabel=x_label or knob or "", ylabel=y_label or _label(metric, relative_to))
            axes.set_xticks(*_ticks([x for points in given.values() for x in points.values()]))
            axes.minorticks_off()
            if fidelity:
                _legend_below(axes)
            else:
                write_legend(axes)
        if title:
            figure.suptitle(title)
        write_caption(figure, caption(opened, missing))
    return figure


def _points(runs: Sequence[StoredRun], line: Line, knob: str | None) -> Points:
    if isinstance(line, Mapping):
        return line
    if knob is None:
        raise UserError(f"knob=null: lines without numbers need one; accepted: a key of the arms {', '.join(line)}")
    found = {}
    for name in line:
        if name in runs[0].identity["arms"]:
            value = knob_of(runs[0], name, knob)
            if not isinstance(value, int | float):
                raise UserError(f"knob={knob}: {value!r} of arm {name!r}; accepted: numbers (or state them in lines)")
            found[name] = float(value)
    known_arms(runs, line)
    return found


def _line(axes: Axes, points: Sequence[tuple[float, Estimate | None]], look: Mark, label: str) -> None:
    """Neighbors are joined where both have numbers; a cross at the bottom stands for one that has none."""
    stretches: list[list[tuple[float, Estimate]]] = [[]]
    for x, value in sorted(points, key=lambda point: point[0]):
        if value is None:
            axes.plot(x, 0.03, "x", color=look.color, transform=axes.get_xaxis_transform())
            stretches.append([])
        else:
            stretches[-1].append((x, value))
    for stretch in filter(None, stretches):
        bars = list(zip(*(distances(value) for _, value in stretch), strict=True))
        axes.errorbar(
            [x for x, _ in stretch], [value.value for _, value in stretch], bars, label=label, color=look.color,
            marker=look.marker, linestyle=look.line, elinewidth=0.7,
        )  # fmt: skip
        label = "_nolegend_"


def _faithful(place: Place, names: Sequence[str], asked: bool) -> str:
    """`, fidelity 0.941 to 0.987`: the range over some arms; nothing where none has one."""
    values = [value.value for name in names if asked and (value := estimate(place, name, "fidelity"))]
    if not values:
        return ""
    low, high = (f"{end:.3f}" for end in (min(values), max(values)))
    return f", fidelity {low}" + (f" to {high}" if high != low else "")


def _named(
    place: Place, names: Sequence[str], metric: str, relative_to: str | None, fidelity: bool
) -> list[tuple[str, str, Estimate | None]]:  # arm, label, value
    return [
        (name, name + _faithful(place, [name], fidelity), estimate(place, name, metric, relative_to)) for name in names
    ]


def _levels(axes: Axes, found: Sequence[tuple[str, str, Estimate | None]]) -> list[str]:  # arms without a number
    for index, (_, label, value) in enumerate(found):
        if value is None:
            continue
        color = (DARK, GRAY)[index % 2]
        axes.axhline(value.value, color=color, linestyle=LINES[1 + index % 3], linewidth=0.9, label=label, zorder=1)
        down, up = distances(value)
        axes.axhspan(value.value - down, value.value + up, color=color, alpha=0.12, linewidth=0, zorder=0)
    return [name for name, _, value in found if value is None]


def _controls(axes: Axes, found: Sequence[tuple[str, str, Estimate | None]]) -> list[str]:  # arms without a number
    low, high = axes.get_ylim()
    reach = REACH * (high - low)
    for index, (_, label, value) in enumerate(found):
        if value is None:
            continue
        if low - reach <= value.value <= high + reach:
            color = (GRAY, LIGHT)[index // 4 % 2]
            axes.axhline(value.value, color=color, linestyle=LINES[1 + index % 4], linewidth=0.8, label=label, zorder=1)
        else:  # an axis that reached it would flatten the lines
            where = "above" if value.value > high else "below"
            axes.plot([], [], " ", label=f"{label}: {value.value:.2f}, {where} the panel")
    return [name for name, _, value in found if value is None]


def _legend_below(axes: Axes) -> None:
    """Lines first, then levels; long labels would hide a panel that held them."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: isinstance(handles[place], Line2D))
    axes.tick_params(labelbottom=True)
    axes.legend([handles[place] for place in order], [labels[place] for place in order], **BELOW)


def _label(metric: str, relative_to: str | None) -> str:
    return label_of(metric) if relative_to is None else f"{label_of(metric)}, relative to {relative_to}"


def _ticks(places: Sequence[float]) -> tuple[list[float], list[str]]:
    """Where arms stand; of many, every second or third."""
    at = sorted(set(places))
    step = -(-len(at) // 9)
    kept = at[::step]
    return kept, [f"{x:g}" for x in kept]
