"""The free frontier, and methods against it: at equal fidelity, at equal shortfall, over a range of fidelity.

The free frontier (DESIGN section 4) is what a coin gives that knows nothing: the measured arms sd (the coin always
falls on a judged round), coin_mix@... and draft_only (never), joined linearly in (fidelity, seconds per token). Every
replicate joins its own points anew, so that the curve's noise is in the intervals.

The slim curve joins sd, coin_slim@... and slim_only in the same way: what a gate on that slim verifier has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from experiments.comparison import Arm, fidelity, seconds_per_token, shortfall
from experiments.errors import UserError, near
from experiments.statistics import Array, Estimate, Statistic, lift

Curve = Literal["free", "slim"]
COINS: dict[Curve, tuple[str, str]] = {
    "free": ("coin_mix@", "draft_only"),
    "slim": ("coin_slim@", "slim_only"),
}  # a curve's coin, its other end
LOWEST = 0.95  # fidelity from which on an advantage counts
SHORTFALLS = (0.005, 0.01, 0.03)
Arms = Mapping[str, Arm]
Verdict = Literal["above", "below", "undecided"]


def is_free(name: str, curve: Curve = "free") -> bool:
    """Whether an arm of this name is a point of the free frontier, or of the slim curve."""
    coin, end = COINS[curve]
    return name in ("sd", end) or name.startswith(coin)


def free_curve(arms: Arms, curve: Curve = "free") -> list[Arm]:
    """The arms that a curve joins, sd first; none without an arm of its coin, or without sd.

    A curve without sd would end in a coin, which is slower than sd is at that fidelity.
    """
    found = [arm for name, arm in arms.items() if is_free(name, curve) and arm.detail.rows]
    known = any(arm.name == "sd" for arm in found) and any(arm.name.startswith(COINS[curve][0]) for arm in found)
    return sorted(found, key=lambda arm: arm.name != "sd") if known else []


def settings_of(arms: Arms, names: Sequence[str]) -> list[Arm]:
    """The named arms that succeeded on at least one example. Raises UserError for an unknown name."""
    for name in names:
        if name not in arms:
            raise UserError(f"settings: no arm {name!r}{near(name, arms)}")
    return [arms[name] for name in names if arms[name].detail.rows]


def speedup_over_coin(arm: Arm, curve: Curve = "free") -> Statistic | None:
    """Seconds per token of a curve at this arm's fidelity, over the arm's own; None outside of it."""
    points = free_curve(arm.arms, curve)
    if is_free(arm.name, curve) or arm is arm.vanilla:
        return None
    own = fidelity(arm)
    free = _at_zero([fidelity(point) - own for point in points], points)
    return None if free is None else free / seconds_per_token(arm)


def speedup_over_slim_coin(arm: Arm) -> Statistic | None:
    """`speedup_over_coin` for the slim curve."""
    return speedup_over_coin(arm, "slim")


def verdict(over_coin: Estimate | None) -> Verdict | None:
    """Where the interval of a speed over the coin's lies; None without an interval."""
    if over_coin is None or over_coin.low is None or over_coin.high is None:
        return None
    return "above" if over_coin.low > 1 else "below" if over_coin.high < 1 else "undecided"


def speed_at_shortfall(
    arms: Arms, names: Sequence[str], shortfalls: Sequence[float] = SHORTFALLS
) -> dict[float, Statistic | None]:
    """Tokens per second of a method at given shortfalls, from its settings joined linearly in seconds per token.

    The settings are joined in the order of their shortfall: a mixture of two neighbors, request by request, has both
    numbers. None outside of what they cover (nothing is extrapolated, and sd is no setting unless it is named), and
    without vanilla.
    """
    own = settings_of(arms, names)
    distances = [found for found in map(shortfall, own) if found is not None]
    if len(distances) < len(own):
        return dict.fromkeys(shortfalls)

    def speed(amount: float) -> Statistic | None:
        seconds = _at_zero([amount - distance for distance in distances], own)
        return None if seconds is None else lift(lambda column: 1 / column, seconds)

    return {amount: speed(amount) for amount in shortfalls}


def advantage(arms: Arms, names: Sequence[str], lowest: float = LOWEST) -> Statistic | None:
    """Mean over fidelity f from `lowest` to sd's of (speed of the method at f / free speed at f - 1).

    The method's speed at f is that of the fastest of its settings with at least that fidelity, vanilla included. So
    where no setting reaches f, the method has the target alone to offer: the mean is over the same range for every
    method, and leaving a setting out can never raise it. (With that part left out of the mean, a single good setting
    at 0.951 would do; with sd in its place, a method would gain by hiding strict settings that are slower than sd.)

    The free speed at f is the free frontier's; below the fidelity of draft_only, that of draft_only, which has at least
    f there. The range ends at sd's fidelity, 1 but for rounding noise: nothing free lies beyond.

    None where the frontier is not known over the range: without sd, or if it ends above `lowest` and that end is not
    draft_only; and without vanilla. Raises UserError for an unknown arm, and for one that belongs to the frontier.
    The fastest setting is chosen on the same prompts, which flatters the longer list: tune settings elsewhere.
    """
    for name in names:
        if is_free(name) or name == "vanilla":
            raise UserError(f"settings: arm {name!r} is what methods are compared with, not a setting of one")
    curve, own, vanilla = free_curve(arms), settings_of(arms, names), arms.get("vanilla")
    known = {arm.name: fidelity(arm).value for arm in curve}
    if "sd" not in known or known["sd"] <= lowest or vanilla is None or not vanilla.detail.rows:
        return None
    if "draft_only" not in known and min(known.values()) > lowest:
        return None
    points, free = [*curve, *own], len(curve)

    def over(alone: Array, *columns: Array) -> Array:
        x, y = np.stack(columns[: len(points)]), np.stack(columns[len(points) :])
        return _mean_advantage((x[:free], y[:free]), (x[free:], y[free:]), alone, lowest)

    return lift(over, seconds_per_token(vanilla), *map(fidelity, points), *map(seconds_per_token, points))


def _mean_advantage(curve: tuple[Array, Array], own: tuple[Array, Array], alone: Array, lowest: float) -> Array:
    """Exact mean by draw [draws]. `curve`, sd first, and `own`: fidelities and seconds per token [points, draws]."""
    top = curve[0][0]
    ends = np.stack([np.full_like(top, lowest), top])
    knots = np.sort(np.clip(np.concatenate([ends, curve[0], own[0]]), lowest, top), axis=0)
    # Between two knots the method's seconds are constant and the free ones linear: the middle gives the mean of both.
    middle, width = (knots[1:] + knots[:-1]) / 2, np.diff(knots, axis=0)  # [pieces, draws]
    free = on_line(middle, *curve)
    reaches = own[0][:, None] >= middle  # [settings, pieces, draws]
    fastest = np.where(reaches, own[1][:, None], np.inf).min(axis=0, initial=np.inf)
    total = np.sum(width * (free / np.minimum(fastest, alone) - 1), axis=0)
    return np.divide(total, top - lowest, out=np.full_like(total, np.nan), where=top > lowest)


def _at_zero(x: Sequence[Statistic], arms: Sequence[Arm]) -> Statistic | None:
    """Seconds per token where the line through the arms' (x, seconds per token) has x = 0; None if 0 is outside.

    x grows with fidelity. Whether 0 is outside is decided by the values. Replicates beyond an end are kept, as
    `on_line` goes on: leaving them out would make intervals near the ends too short.
    """
    if not x or not min(one.value for one in x) <= 0 <= max(one.value for one in x):
        return None

    def joined(*columns: Array) -> Array:
        return on_line(np.zeros((1, len(columns[0]))), np.stack(columns[: len(x)]), np.stack(columns[len(x) :]))[0]

    return lift(joined, *x, *map(seconds_per_token, arms))


def on_line(at: Array, x: Array, y: Array) -> Array:
    """y at `at` [k, draws] of each draw's points x, y [points, draws], joined linearly in the order of x.

    x is fidelity or grows with it, y is seconds. Below the lowest x its y holds: that point is better than what is
    asked for. Above the highest x the last piece goes on. Of points with one x the one with the least y counts.
    """
    order = np.lexsort((y, x), axis=0)
    x, y = np.take_along_axis(x, order, axis=0), np.take_along_axis(y, order, axis=0)
    right = np.clip(np.sum(x[:, None] < at, axis=0), min(1, len(x) - 1), len(x) - 1)  # [k, draws]
    left = np.maximum(right - 1, 0)
    x0, x1, y0, y1 = (np.take_along_axis(of, place, axis=0) for of in (x, y) for place in (left, right))
    share = np.divide(np.maximum(at - x0, 0), x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
    return y0 + share * (y1 - y0)
