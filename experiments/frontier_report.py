"""The frontier section of stored runs as Markdown: each arm against the coin, each group of settings by one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from experiments.comparison import (
    Arm,
    fidelity,
    quality_delta,
    seconds_per_token,
    speed_over_predicted,
    speedup,
    tokens_per_second,
)
from experiments.frontier import (
    LOWEST,
    SHORTFALLS,
    Arms,
    advantage,
    free_curve,
    is_free,
    speed_at_shortfall,
    speedup_over_coin,
    speedup_over_slim_coin,
    verdict,
)
from experiments.statistics import Statistic, detectable_difference, detectable_ratio, mean
from experiments.text_tables import markdown_table

Settings = Mapping[str, Sequence[str]]  # a method's name -> the arms that are its settings
ABSENT = "-"
COIN = "free frontier"
COLUMNS = (
    "fidelity",
    "ms/token",
    "tokens/s",
    "of predicted",
    "over coin",
    "against coin",
    "over slim coin",
    "detectable speed",
    "detectable quality",
)
NOTES = (
    f"{COIN}: sd, coin_mix and draft_only, joined linearly in (fidelity, seconds per token). over coin: its seconds "
    "per token at the arm's own fidelity over the arm's; above, below: the 95% interval lies on that side of 1. "
    "over slim coin: the same for sd, coin_slim and slim_only, which have the slim verifier and no gate. "
    "detectable: the true speed ratio over sd, and the true difference in quality from vanilla, that this many prompts "
    "would find in 80% of experiments (two-sided, 5%).",
    f"advantage: mean over fidelity {LOWEST:g} to 1 of the speed of the fastest setting with at least that fidelity "
    "(vanilla where none has it) over the free speed, minus 1. Speeds at a shortfall are joined linearly in seconds "
    "per token between settings; a dash: the settings do not cover it.",
    "of predicted: measured tokens per second over those predicted from the arm's calls, at the costs of calls in turn "
    "timed beside each example, and from its loop's own time on calibration prompts; no clock of the measured passes.",
    "Several tasks: the unweighted mean of their numbers, absent where one of them has none. 95% bootstrap intervals "
    "over prompts, paired across arms; several seeds of a prompt are resampled together.",
)


def markdown(place: Sequence[Arms], settings: Settings) -> str:
    """Both tables of one place: a task, or the mean over several (one comparison each)."""
    tables = [markdown_table(_arm_cells(place)), *([markdown_table(_group_cells(place, settings))] if settings else [])]
    return "\n\n".join(tables)


def over_tasks(place: Sequence[Arms], of: Callable[[Arms], Statistic | None]) -> Statistic | None:
    """Mean of a statistic over the tasks; None where one has none."""
    found = [number for number in map(of, place) if number is not None]
    return mean(found) if found and len(found) == len(place) else None


def of_arm(place: Sequence[Arms], name: str, of: Callable[[Arm], Statistic | None]) -> Statistic | None:
    """`over_tasks` for one arm; None where it failed on a whole task."""
    return over_tasks(place, lambda arms: of(arms[name]) if arms[name].detail.rows else None)


def _arm_cells(place: Sequence[Arms]) -> list[list[str]]:
    return [["arm", *COLUMNS], *([name, *_arm_row(place, name)] for name in place[0])]


def _arm_row(place: Sequence[Arms], name: str) -> list[str]:
    over_coin = of_arm(place, name, speedup_over_coin)
    against = "on it" if is_free(name) else verdict(None if over_coin is None else over_coin.estimate())
    speed = of_arm(place, name, lambda arm: speedup(arm, arm.arms.get("sd")))
    delta = of_arm(place, name, quality_delta)
    least_speed = None if speed is None or name == "sd" else detectable_ratio(speed)
    least_quality = None if delta is None or name == "vanilla" else detectable_difference(delta)
    return [
        interval(of_arm(place, name, fidelity), 4),
        interval(of_arm(place, name, seconds_per_token), 2, scale=1000),
        interval(of_arm(place, name, tokens_per_second), 0),
        interval(of_arm(place, name, speed_over_predicted), 2),
        interval(over_coin, 2),
        against or ABSENT,
        interval(of_arm(place, name, speedup_over_slim_coin), 2),
        ABSENT if least_speed is None else f"{least_speed:.3f}",
        ABSENT if least_quality is None else f"{least_quality:.3f}",
    ]


def _group_cells(place: Sequence[Arms], settings: Settings) -> list[list[str]]:
    at = [f"{title} at {amount:g}" for amount in SHORTFALLS for title in ("tokens/s", "over coin")]
    rows = [[COIN, ABSENT, *_at_shortfalls(place, None)]]
    for group, names in settings.items():
        rows.append([group, interval(_advantage(place, names), 3, signed=True), *_at_shortfalls(place, names)])
    return [["settings", "advantage", *at], *rows]


def _advantage(place: Sequence[Arms], names: Sequence[str]) -> Statistic | None:
    return over_tasks(place, lambda arms: advantage(arms, names))


def _at_shortfalls(place: Sequence[Arms], names: Sequence[str] | None) -> list[str]:
    """Speed and speed over the coin's at each shortfall, of a group of settings; None: of the frontier itself."""
    free = [speed_at_shortfall(arms, [point.name for point in free_curve(arms)]) for arms in place]
    own = free if names is None else [speed_at_shortfall(arms, names) for arms in place]
    cells = []
    for amount in SHORTFALLS:
        pairs = [(ours[amount], theirs[amount]) for ours, theirs in zip(own, free, strict=True)]
        speeds = [ours for ours, _ in pairs if ours is not None]
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        cells.append(interval(mean(speeds) if len(speeds) == len(place) else None, 0))
        cells.append(interval(mean(ratios) if names is not None and len(ratios) == len(place) else None, 2))
    return cells


def interval(statistic: Statistic | None, digits: int, scale: float = 1.0, signed: bool = False) -> str:
    """`1.72 [1.65, 1.79]`, without the interval where there is none, a dash if absent."""
    estimate = None if statistic is None else statistic.estimate()
    if estimate is None:
        return ABSENT
    sign = "+" if signed else ""
    numbers = [estimate.value, estimate.low, estimate.high]
    texts = [f"{scale * number:{sign}.{digits}f}" for number in numbers if number is not None]
    value, *ends = [text[1:] if float(text) == 0 and text[0] in "+-" else text for text in texts]
    return value if not ends or ends == [value, value] else f"{value} [{', '.join(ends)}]"
