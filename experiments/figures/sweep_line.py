"""A metric over one knob of a method, a line for each method or second knob: drafts' length, thresholds, skip ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def draw(
    runs: Sequence[StoredRun],
    *,
    lines: Mapping[str, Line],
    metric: str = "tokens_per_second",
    knob: str | None = None,
    x_label: str | None = None,
    y_label: str | None = None,
    reference: Sequence[str] = (),
    relative_to: str | None = None,
    log_x: bool = False,
    shown: Panels = "mean",
    title: str | None = None,
    width: float = COLUMN,
    height: float | None = None,
) -> Figure:
    """`lines`: label -> {arm: x}, or label -> arms with their x read from `knob`, a key of the method as `stop.length`.

    `reference`: arms without the knob, as level lines. `relative_to`: the metric's relative difference from that arm.
    A point without a number is a cross at the bottom, and the caption names its arm. Raises UserError for runs that do
    not mix, for a metric or knob nobody knows, and where no arm of a line is in the runs.
    """
    given = {label: _points(runs, line, knob) for label, line in lines.items()}
    known_arms(runs, [name for points in given.values() for name in points])
    opened = open_runs(runs, shown)
    shows = opened.panels
    missing: list[str] = []
    with in_style():
        columns = 1 if width < 5 else 2
        rows = -(-len(shows) // columns)
        figure = new_figure(width, height or 0.9 + 1.9 * rows)
        for axes, place in zip(panels(figure, list(shows), columns, sharex=True), shows.values(), strict=True):
            for index, (label, points) in enumerate(given.items()):
                values = {name: estimate(place, name, metric, relative_to) for name in points}
                missing += [name for name, value in values.items() if value is None]
                _line(axes, [(points[name], value) for name, value in values.items()], mark(index), label)
            missing += _levels(axes, place, reference, metric, relative_to)
            if log_x:
                axes.set_xscale("log", base=2)
            axes.set(xlabel=x_label or knob or "", ylabel=y_label or _label(metric, relative_to))
            axes.set_xticks(*_ticks([x for points in given.values() for x in points.values()]))
            axes.minorticks_off()
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


def _levels(
    axes: Axes, place: Place, reference: Sequence[str], metric: str, relative_to: str | None
) -> list[str]:  # arms without a number
    missing = []
    for index, name in enumerate(reference):
        value = estimate(place, name, metric, relative_to)
        if value is None:
            missing.append(name)
            continue
        color = (DARK, GRAY)[index % 2]
        axes.axhline(value.value, color=color, linestyle=LINES[1 + index % 3], linewidth=0.9, label=name, zorder=1)
        down, up = distances(value)
        axes.axhspan(value.value - down, value.value + up, color=color, alpha=0.12, linewidth=0, zorder=0)
    return missing


def _label(metric: str, relative_to: str | None) -> str:
    return label_of(metric) if relative_to is None else f"{label_of(metric)}, relative to {relative_to}"


def _ticks(places: Sequence[float]) -> tuple[list[float], list[str]]:
    """Where arms stand; of many, every second or third."""
    at = sorted(set(places))
    step = -(-len(at) // 9)
    kept = at[::step]
    return kept, [f"{x:g}" for x in kept]
