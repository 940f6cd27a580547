"""Every metric of the project, defined once: name, unit, direction, and how it follows from the rows of an arm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from experiments.comparison import (
    KEYS,
    Arm,
    Number,
    acceptance,
    accepted,
    compare,
    device_shares,
    energy_per_token,
    energy_ratio,
    escalation_rates,
    fidelity,
    first_token_seconds,
    has_quality,
    ideal_speedup,
    length_ratio,
    modelled_parallel_tokens_per_second,
    one,
    p99,
    per_token,
    predicted_tokens_per_second,
    quality,
    quality_by_level,
    quality_delta,
    rank,
    request_seconds,
    request_speedup,
    scores,
    sequence_match,
    shares,
    shortfall,
    speed_over_predicted,
    speedup,
    tie_flips,
    time_shares,
    tokens,
    tokens_per_second,
)
from experiments.frontier import speedup_over_coin, speedup_over_slim_coin
from experiments.records import Row
from experiments.statistics import Estimate, Statistic, mean
from viasd.routing import REGIONS

Summary = dict[str, dict[str, float | dict[str, float]]]


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them: `<...>` in its name stands for the keys of what `compute` returns.

    `better`: which direction is an improvement, None where neither is. `digits`: decimals in tables. `examples`: which
    ones it follows from, "timed" where one factor does; "none" of a property of the arm, which has no noise.
    `compute` returns None (or nan) where the metric does not apply to the arm; it is then absent.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    digits: int
    description: str
    compute: Callable[[Arm], Number | Mapping[str, Number]]
    headline: bool = False
    examples: Literal["judged", "timed", "none"] = "judged"

    def named(self, key: str) -> str:
        """Full name of a member of the family."""
        return re.sub("<.*>", lambda _: key, self.name)

    def key(self, name: str) -> str | None:
        """The key of a full name: "" if the metric is no family, None if the name is not this metric's."""
        match = re.fullmatch(re.sub("<.*>", "(.+)", self.name.replace(".", r"\.")), name)
        return None if match is None else "".join(match.groups())


# --- the registry: tables follow its order ------------------------------------------------------------------------

# fmt: off
# A table: one argument per line would hide it.
METRICS: tuple[Metric, ...] = (
    Metric(
        "tokens_per_second", "tokens/s", "higher", 0, "Committed tokens over decode seconds.",
        tokens_per_second, headline=True, examples="timed",
    ),
    Metric(
        "speedup", "ratio", "higher", 2, "Vanilla's decode seconds per token over this arm's, on the same prompts.",
        lambda arm: speedup(arm, arm.vanilla), headline=True, examples="timed",
    ),
    Metric(
        "speedup_over.<arm>", "ratio", "higher", 2, "The named arm's decode seconds per token over this arm's.",
        lambda arm: {name: speedup(arm, arm.arms.get(name)) for name in ("sd",)}, headline=True, examples="timed",
    ),
    Metric(
        "speedup_over_coin", "ratio", "higher", 2,
        "Seconds per token of a coin between sd and unread drafting at this arm's fidelity, over this arm's.",
        speedup_over_coin, headline=True, examples="timed",
    ),
    Metric(
        "speedup_over_slim_coin", "ratio", "higher", 2,
        "The same for a coin between sd and slim_only: above 1, a gate's judgment is worth its time.",
        speedup_over_slim_coin, examples="timed",
    ),
    Metric(
        "ideal_speedup", "ratio", "higher", 2,
        "Speedup if every call took its isolated cost and nothing else took any time.", ideal_speedup, examples="timed",
    ),
    Metric(
        "predicted_tokens_per_second", "tokens/s", "higher", 0,
        "From this arm's calls, at the costs of calls in turn beside each example, and its loop's own time.",
        predicted_tokens_per_second, examples="timed",
    ),
    Metric(
        "speed_over_predicted", "ratio", None, 2, "Measured tokens per second over predicted_tokens_per_second.",
        speed_over_predicted, examples="timed",
    ),
    Metric(
        "modelled_parallel_tokens_per_second", "tokens/s", "higher", 0,
        "Modelled, not measured: tokens per second with drafter and verifier at work at once, on two devices.",
        modelled_parallel_tokens_per_second, examples="timed",
    ),
    Metric(
        "request_speedup", "ratio", "higher", 2, "Vanilla's decode seconds per answer over this arm's.",
        request_speedup, examples="timed",
    ),
    Metric(
        "length_ratio", "ratio", None, 3,
        "This arm's tokens per answer over vanilla's (times request_speedup: speedup).",
        length_ratio, examples="timed",
    ),
    Metric(
        "end_to_end_tokens_per_second", "tokens/s", "higher", 0, "Committed tokens over prefill and decode seconds.",
        lambda arm: arm.timed.ratio(tokens, request_seconds), examples="timed",
    ),
    Metric(
        "time_to_first_token", "s", "lower", 4,
        "Mean seconds from the prompt to the first committed tokens, prefill included.",
        lambda arm: arm.timed.ratio(first_token_seconds, lambda row: bool(row.first_token_seconds)), examples="timed",
    ),
    Metric(
        "fidelity", "share", "higher", 4,
        "Temperature 0: committed tokens equal to the target's argmax; above: mean of min(1, target / law).",
        fidelity, headline=True,
    ),
    Metric(
        "shortfall", "share", "lower", 4, "Vanilla's fidelity minus this arm's, paired.", shortfall,
    ),
    Metric(
        "log_prob_gap", "nats", "lower", 4, "Mean of log max target - log target(token) (temperature 0).",
        lambda arm: arm.detail.ratio(lambda row: sum(row.log_prob_gap), lambda row: len(row.log_prob_gap)),
    ),
    Metric(
        "log_prob_gap_p99", "nats", "lower", 3, "99th percentile of the same over all tokens.",
        lambda arm: p99(arm.detail, "log_prob_gap"),
    ),
    Metric(
        "overshoot_p99", "share", "lower", 4, "99th percentile of max(0, 1 - target / law) (temperature above 0).",
        lambda arm: None if arm.greedy else p99(arm.detail, "token_loss"),
    ),
    Metric(
        "sequence_match", "share", "higher", 3, "Answers whose every token is the target's argmax (temperature 0).",
        sequence_match,
    ),
    Metric(
        "tie_flips", "tokens", None, 0, "Differing tokens within the dtype's tie tolerance (temperature 0).", tie_flips,
    ),
    Metric(
        "audit_agreement", "share", "higher", 4, "Mean min(1, target / law) of tokens the target read only afterwards.",
        lambda arm: arm.detail.ratio(lambda row: row.audit_agreement, lambda row: row.audits),
    ),
    Metric(
        "quality", "score", "higher", 3, "Mean of the task's main score.",
        lambda arm: arm.detail.ratio(quality, has_quality), headline=True,
    ),
    Metric(
        "quality_delta", "score", "higher", 3, "Quality minus vanilla's, paired.", quality_delta,
    ),
    Metric(
        "score.<scorer>", "score", "higher", 3, "Mean of each scorer of the task, the main one included.", scores,
    ),
    Metric(
        "quality_at_level.<level>", "score", "higher", 3, "Mean quality of the examples of one difficulty.",
        quality_by_level,
    ),
    Metric(
        "rejection_rate", "share", "lower", 3, "Rejected over judged tokens.",
        lambda arm: arm.detail.ratio(lambda row: row.rejected, lambda row: row.judged), headline=True,
    ),
    Metric(
        "rejection_rate_drafted", "share", "lower", 3,
        "1 - accepted / (drafted - cut), over the rounds that were judged; discarded tokens count as rejected.",
        lambda arm: 1.0 - arm.detail.ratio(accepted, lambda row: row.judged + row.discarded),
    ),
    Metric(
        "target_rejection_rate", "share", None, 3, "Judged tokens changed by the target over judged tokens.",
        lambda arm: arm.detail.ratio(lambda row: row.target_rejected, lambda row: row.judged),
    ),
    Metric(
        "tier_fraction.<tier>", "share", None, 3, "Judged tokens by the tier that ruled on them; they sum to 1.",
        lambda arm: shares(arm.detail, "tiers", KEYS[:3]), headline=True,
    ),
    Metric(
        "source_fraction.<source>", "share", None, 3, "Committed tokens by the model that wrote them; they sum to 1.",
        lambda arm: shares(arm.detail, "sources", KEYS[:3]),
    ),
    Metric(
        "gate_fraction.<region>", "share", None, 3, "What the gate said, over all consultations; they sum to 1.",
        lambda arm: shares(arm.detail, "regions", REGIONS),
    ),
    Metric(
        "escalation_rate.<cause>", "per round", None, 3,
        "Rounds in which the gate, or the call rule, called the target.",
        escalation_rates,
    ),
    Metric(
        "block_efficiency", "tokens/round", "higher", 2, "Committed tokens per round.",
        lambda arm: arm.detail.ratio(tokens, lambda row: row.rounds),
    ),
    Metric(
        "nodes_per_round", "nodes/round", None, 1, "Nodes of the drafted tree per round, the root left out.",
        lambda arm: arm.detail.ratio(lambda row: row.nodes, lambda row: row.rounds if row.nodes else 0),
    ),
    Metric(
        "acceptance.<position>.conditional", "share", "higher", 3,
        "Draft position from 0: rounds that kept it over rounds that judged it.",
        lambda arm: acceptance(arm, "judged_at"),
    ),
    Metric(
        "acceptance.<position>.unconditional", "share", "higher", 3,
        "Draft position from 0: rounds that kept it over rounds that drafted it (stops in between included).",
        lambda arm: acceptance(arm, "drafted_at"),
    ),
    Metric(
        "calls_per_token.<reader>", "calls/token", "lower", 3, "Forward calls of a reader per committed token.",
        lambda arm: per_token(arm.detail, "calls"), headline=True,
    ),
    Metric(
        "fed_per_token.<reader>", "tokens/token", "lower", 3, "Tokens fed to a reader per committed token.",
        lambda arm: per_token(arm.detail, "fed"),
    ),
    Metric(
        "time_share.<reader>", "share", None, 3,
        "Decode time inside a reader's forwards; other: sampling, gates, host reads, commits. They sum to 1.",
        time_shares, examples="timed",
    ),
    Metric(
        "device_share.<reader>", "share", "higher", 3,
        "Part of a reader's forwards in which the accelerator works, by its own events; the rest is launching.",
        device_shares, examples="timed",
    ),
    Metric(
        "peak_memory", "bytes", "lower", 0, "Distinct parameters of the arm's readers, caches, device peak above them.",
        lambda arm: arm.static.get("peak_memory"), examples="none",
    ),
    Metric(
        "memory_ratio", "ratio", "lower", 3, "Peak memory over vanilla's.",
        lambda arm: arm.static.get("memory_ratio"), examples="none",
    ),
    Metric(
        "energy_per_token", "J/token", "lower", 3,
        "Joules of the timed passes over committed tokens, prefill included: of the whole processor package and GPU.",
        energy_per_token, examples="timed",
    ),
    Metric(
        "energy_ratio", "ratio", "lower", 3, "energy_per_token over vanilla's, on the same prompts.", energy_ratio,
        examples="timed",
    ),
    Metric("new_tokens", "tokens", None, 1, "Mean tokens per answer.", lambda arm: arm.detail.ratio(tokens, one)),
    Metric(
        "length_limited", "share", "lower", 3, "Answers that ended at the length limit.",
        lambda arm: arm.detail.ratio(lambda row: row.finish_reason == "length", one),
    ),
    Metric(
        "n_timed", "examples", None, 0, "Examples behind the speed metrics.", lambda arm: len(arm.timed.rows),
        examples="timed",
    ),
    Metric(
        "n_quality", "examples", None, 0, "Examples behind the quality metrics.",
        lambda arm: int(arm.detail.column(has_quality).sum()),
    ),
    Metric(
        "truncated", "examples", "lower", 0, "Examples whose prompt was cut at the left to fit the models.",
        lambda arm: sum(row.truncated > 0 for row in arm.detail.rows) or None,
    ),
    Metric("failed", "examples", "lower", 0, "Examples that failed; they leave every arm.", lambda arm: arm.failed),
)
# fmt: on


def find(name: str) -> Metric:
    """The definition behind a metric's full name. Raises ValueError for a name nobody defined."""
    return METRICS[_place(name)]


def in_order(names: Iterable[str]) -> list[str]:
    """Full names in the registry's order, each once."""
    return sorted(set(names), key=lambda name: (_place(name), rank(find(name).key(name) or "")))


@cache
def _place(name: str) -> int:
    for place, metric in enumerate(METRICS):
        if metric.key(name) is not None:
            return place
    raise ValueError(f"unknown metric {name!r}; accepted: {', '.join(metric.name for metric in METRICS)}")


# --- from rows to numbers -----------------------------------------------------------------------------------------


def summarize(
    rows: Sequence[Row],
    arms: Sequence[str],
    *,
    temperature: float,
    static: Mapping[str, Mapping[str, float]] | None = None,
) -> Summary:
    """Arms -> full metric names -> a number, or {"value", "low", "high"}; metrics that do not apply are absent.

    A pure function of the rows, whatever their order; of several rows of one example and arm the last one counts.
    `static` adds numbers that no row holds. Raises ValueError if one of them is no metric.
    """
    for name in {name for numbers in (static or {}).values() for name in numbers}:
        find(name)
    return {name: _in_json(measured(arm)) for name, arm in compare(rows, arms, temperature, static or {}).items()}


def summarize_tasks(
    rows: Mapping[str, Sequence[Row]],
    arms: Sequence[str],
    *,
    temperature: float,
    static: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Summary:
    """`summarize` over several tasks: the unweighted mean of the tasks' numbers, counts added up.

    Each task is resampled for itself. A metric that an arm lacks on one task is absent. `rows` and `static` by task.
    """
    told: dict[str, list[dict[str, Number]]] = {name: [] for name in arms}
    for place, (task, own) in enumerate(rows.items()):
        compared = compare(own, arms, temperature, (static or {}).get(task), seed=2 * place)
        for name, arm in compared.items():
            told[name].append(measured(arm))
    return {name: _in_json(_mean_of(of)) for name, of in told.items()}


def _mean_of(tasks: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    shared = [name for name in tasks[0] if all(name in task for task in tasks)]
    return {name: _mean_number([task[name] for task in tasks]) for name in shared}


def _mean_number(numbers: Sequence[Number]) -> Number:
    statistics = [number for number in numbers if isinstance(number, Statistic)]
    if len(statistics) == len(numbers):
        return mean(statistics)
    plain = [number for number in numbers if isinstance(number, int | float)]
    whole_numbers = all(isinstance(number, int) for number in plain)
    return sum(plain) if whole_numbers else sum(plain) / len(plain)


def speedup_over(rows: Sequence[Row], arm: str, other: str) -> Estimate | None:
    """The other arm's seconds per token over the arm's, on the examples that succeeded in both."""
    own = compare(rows, [arm, other])[arm]
    found = speedup(own, own.arms.get(other))
    return None if found is None else found.estimate()


def measured(arm: Arm) -> dict[str, Number]:
    """Every metric that applies to the arm, by full name."""
    numbers: dict[str, Number] = {}
    for metric in METRICS:
        found = metric.compute(arm)
        members = found if isinstance(found, Mapping) else {"": found}
        numbers.update({metric.named(key): number for key, number in members.items() if _plain(number) is not None})
    return numbers


def _in_json(numbers: Mapping[str, Number]) -> dict[str, float | dict[str, float]]:
    plain = {name: _plain(number) for name, number in numbers.items()}
    return {name: number for name, number in plain.items() if number is not None}


def _plain(number: Number) -> float | dict[str, float] | None:
    if isinstance(number, Statistic):
        estimate = number.estimate()
        return None if estimate is None else estimate.to_json()
    return number
