"""Every metric of the project, defined once: name, unit, direction, and how it follows from the rows of an arm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from experiments.records import Row
from experiments.statistics import Array, Estimate, Resamples, Statistic

TIMED_SEED, DETAIL_SEED = 0, 1  # speed, and fidelity with quality, are resampled independently of each other
KEYS = ("draft", "slim", "target", "other", "keep", "rewrite", "escalate", "gate", "forced")  # order of a family

Column = Callable[[Row], float]
Number = Statistic | float | None
Summary = dict[str, dict[str, float | dict[str, float]]]


@dataclass(frozen=True)
class Sample:
    """Rows of one arm for examples that all arms have [examples], in one order, and the resamples all arms share."""

    rows: Sequence[Row]
    resamples: Resamples

    def column(self, of: Column) -> Array:
        return np.array([float(of(row)) for row in self.rows], dtype=np.float64)

    def ratio(self, top: Column, bottom: Column) -> Statistic:
        """Ratio of totals."""
        return self.resamples.ratio(self.column(top), self.column(bottom))

    def minus(self, other: Sample, top: Column, bottom: Column) -> Statistic:
        """This arm's ratio of totals minus the other's, over the examples where both have a denominator."""
        own, theirs = (self.column(top), self.column(bottom)), (other.column(top), other.column(bottom))
        return self.resamples.difference(*own, *theirs)


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison. `detail` holds every example, `timed` those that were timed."""

    name: str
    timed: Sample
    detail: Sample
    failed: int
    greedy: bool
    static: Mapping[str, float]
    arms: Mapping[str, Arm]  # the whole comparison, by name

    @property
    def vanilla(self) -> Arm | None:
        return self.arms.get("vanilla")


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them: `<...>` in its name stands for the keys of what `compute` returns.

    `better`: which direction is an improvement, None where neither is. `digits`: decimals in tables.
    `compute` returns None (or nan) where the metric does not apply to the arm; it is then absent.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    digits: int
    description: str
    compute: Callable[[Arm], Number | Mapping[str, Number]]
    headline: bool = False

    def named(self, key: str) -> str:
        """Full name of a member of the family."""
        return re.sub("<.*>", lambda _: key, self.name)

    def key(self, name: str) -> str | None:
        """The key of a full name: "" if the metric is no family, None if the name is not this metric's."""
        match = re.fullmatch(re.sub("<.*>", "(.+)", self.name.replace(".", r"\.")), name)
        return None if match is None else "".join(match.groups())


# --- columns: one number per row ----------------------------------------------------------------------------------


def one(row: Row) -> float:
    return 1.0


def tokens(row: Row) -> float:
    return row.new_tokens


def decode_seconds(row: Row) -> float:
    """Repeats of an example are averaged first."""
    return _mean(row.decode_seconds)


def request_seconds(row: Row) -> float:
    return _mean(row.prefill_seconds) + _mean(row.decode_seconds)


def first_token_seconds(row: Row) -> float:
    return _mean(row.first_token_seconds)


def accepted(row: Row) -> float:
    return row.judged - row.rejected


def loss(row: Row) -> float:
    return sum(row.token_loss)


def loss_tokens(row: Row) -> float:
    """Committed tokens, if the target's opinion of them is known."""
    return len(row.token_loss)


def quality(row: Row) -> float:
    return row.quality or 0.0


def has_quality(row: Row) -> float:
    return row.quality is not None


def part(field: str, key: str) -> Column:
    """Entry of a count by name."""
    return lambda row: getattr(row, field).get(key, 0)


def whole(field: str) -> Column:
    return lambda row: sum(getattr(row, field).values())


def at(field: str, position: int) -> Column:
    """Entry of a count by position; an example whose drafts were all shorter has none."""
    return lambda row: getattr(row, field)[position] if position < len(getattr(row, field)) else 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# --- statistics of an arm -----------------------------------------------------------------------------------------


def seconds_per_token(arm: Arm) -> Statistic:
    return arm.timed.ratio(decode_seconds, tokens)


def speedup(arm: Arm, other: Arm | None) -> Statistic | None:
    """The other arm's seconds per token over this one's, on the same (resampled) prompts."""
    return None if other is None else seconds_per_token(other) / seconds_per_token(arm)


def request_speedup(arm: Arm) -> Statistic | None:
    """`speedup` = `request_speedup` x `length_ratio`."""
    base = arm.vanilla
    return None if base is None else base.timed.ratio(decode_seconds, one) / arm.timed.ratio(decode_seconds, one)


def length_ratio(arm: Arm) -> Statistic | None:
    return None if arm.vanilla is None else arm.timed.ratio(tokens, one) / arm.vanilla.timed.ratio(tokens, one)


def shares(sample: Sample, field: str, keys: Sequence[str]) -> dict[str, Number]:
    return {key: sample.ratio(part(field, key), whole(field)) for key in keys}


def per_token(sample: Sample, field: str) -> dict[str, Number]:
    return {key: sample.ratio(part(field, key), tokens) for key in _keys(sample, field)}


def time_shares(arm: Arm) -> dict[str, Number]:
    """Readers by name, and what is left: sampling, gates, host reads and commits."""

    def profiled(row: Row) -> float:
        return row.profiled_seconds or 0.0

    inside = {key: arm.timed.ratio(part("reader_seconds", key), profiled) for key in _keys(arm.timed, "reader_seconds")}
    return {**inside, "other": 1.0 - arm.timed.ratio(whole("reader_seconds"), profiled)}


def escalation_rates(arm: Arm) -> dict[str, Number]:
    """Only of arms that have a gate or were forced."""
    if not any(row.regions or row.escalations for row in arm.detail.rows):
        return {}
    return {key: arm.detail.ratio(part("escalations", key), lambda row: row.rounds) for key in ("gate", "forced")}


def acceptance(arm: Arm, among: Literal["judged_at", "drafted_at"]) -> dict[str, Number]:
    """By position from 0. Counts of drafted tokens include those output unread, so such arms have no share of them."""
    rows = arm.detail.rows
    if not any(row.judged for row in rows) or (among == "drafted_at" and any(row.unjudged for row in rows)):
        return {}
    longest = max(len(row.drafted_at) for row in rows)
    return {str(i): arm.detail.ratio(at("accepted_at", i), at(among, i)) for i in range(longest)}


def p99(sample: Sample, field: str) -> float | None:
    values = [value for row in sample.rows for value in getattr(row, field)]
    return float(np.percentile(values, 99)) if values else None


def sequence_match(arm: Arm) -> Statistic | None:
    """Share of examples without any token that differs from the target's argmax."""
    if not arm.greedy:
        return None
    return arm.detail.ratio(
        lambda row: bool(row.token_loss) and row.first_divergence is None, lambda row: bool(row.token_loss)
    )


def tie_flips(arm: Arm) -> int | None:
    known = [row.tie_flips for row in arm.detail.rows if row.token_loss]
    return sum(known) if known and arm.greedy else None


def against_vanilla(arm: Arm, top: Column, bottom: Column) -> Statistic | None:
    return None if arm.vanilla is None else arm.detail.minus(arm.vanilla.detail, top, bottom)


def _keys(sample: Sample, field: str) -> list[str]:
    return sorted({key for row in sample.rows for key in getattr(row, field)}, key=_rank)


def _rank(key: str) -> tuple[int, int, str]:
    """Positions by number, known keys in their order, others by name."""
    if key.isdecimal():
        return (0, int(key), key)
    return (1, KEYS.index(key), key) if key in KEYS else (2, 0, key)


# --- the registry: tables follow its order ------------------------------------------------------------------------

# fmt: off
# A table: one argument per line would hide it.
METRICS: tuple[Metric, ...] = (
    Metric(
        "tokens_per_second", "tokens/s", "higher", 0, "Committed tokens over decode seconds.",
        lambda arm: arm.timed.ratio(tokens, decode_seconds), headline=True,
    ),
    Metric(
        "speedup", "ratio", "higher", 2, "Vanilla's decode seconds per token over this arm's, on the same prompts.",
        lambda arm: speedup(arm, arm.vanilla), headline=True,
    ),
    Metric(
        "speedup_over.<arm>", "ratio", "higher", 2, "The named arm's decode seconds per token over this arm's.",
        lambda arm: {name: speedup(arm, arm.arms.get(name)) for name in ("sd",)}, headline=True,
    ),
    Metric(
        "request_speedup", "ratio", "higher", 2, "Vanilla's decode seconds per answer over this arm's.",
        request_speedup,
    ),
    Metric(
        "length_ratio", "ratio", None, 3,
        "This arm's tokens per answer over vanilla's (times request_speedup: speedup).",
        length_ratio,
    ),
    Metric(
        "end_to_end_tokens_per_second", "tokens/s", "higher", 0, "Committed tokens over prefill and decode seconds.",
        lambda arm: arm.timed.ratio(tokens, request_seconds),
    ),
    Metric(
        "time_to_first_token", "s", "lower", 4,
        "Mean seconds from the prompt to the first committed tokens, prefill included.",
        lambda arm: arm.timed.ratio(first_token_seconds, lambda row: bool(row.first_token_seconds)),
    ),
    Metric(
        "fidelity", "share", "higher", 4,
        "Temperature 0: committed tokens equal to the target's argmax; above: mean of min(1, target / law).",
        lambda arm: 1.0 - arm.detail.ratio(loss, loss_tokens), headline=True,
    ),
    Metric(
        "shortfall", "share", "lower", 4, "Vanilla's fidelity minus this arm's, paired.",
        lambda arm: against_vanilla(arm, loss, loss_tokens),
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
        "quality", "score", "higher", 3, "Mean of the task's score.",
        lambda arm: arm.detail.ratio(quality, has_quality), headline=True,
    ),
    Metric(
        "quality_delta", "score", "higher", 3, "Quality minus vanilla's, paired.",
        lambda arm: against_vanilla(arm, quality, has_quality),
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
        lambda arm: shares(arm.detail, "regions", ("keep", "rewrite", "escalate")),
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
        time_shares,
    ),
    Metric(
        "peak_memory", "bytes", "lower", 0, "Distinct parameters of the arm's readers, caches, device peak above them.",
        lambda arm: arm.static.get("peak_memory"),
    ),
    Metric(
        "memory_ratio", "ratio", "lower", 3, "Peak memory over vanilla's.",
        lambda arm: arm.static.get("memory_ratio"),
    ),
    Metric("new_tokens", "tokens", None, 1, "Mean tokens per answer.", lambda arm: arm.detail.ratio(tokens, one)),
    Metric(
        "length_limited", "share", "lower", 3, "Answers that ended at the length limit.",
        lambda arm: arm.detail.ratio(lambda row: row.finish_reason == "length", one),
    ),
    Metric("n_timed", "examples", None, 0, "Examples behind the speed metrics.", lambda arm: len(arm.timed.rows)),
    Metric(
        "n_quality", "examples", None, 0, "Examples behind the quality metrics.",
        lambda arm: int(arm.detail.column(has_quality).sum()),
    ),
    Metric("failed", "examples", "lower", 0, "Examples that failed; they leave every arm.", lambda arm: arm.failed),
)
# fmt: on


def find(name: str) -> Metric:
    """The definition behind a metric's full name. Raises ValueError for a name nobody defined."""
    return METRICS[_place(name)]


def in_order(names: Iterable[str]) -> list[str]:
    """Full names in the registry's order, each once."""
    return sorted(set(names), key=lambda name: (_place(name), _rank(find(name).key(name) or "")))


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
        values, replicates = [one.value for one in statistics], [one.replicates for one in statistics]
        same = len({one.shape for one in replicates}) == 1
        return Statistic(float(np.mean(values)), np.mean(replicates, axis=0) if same else np.zeros(0))
    plain = [number for number in numbers if isinstance(number, int | float)]
    whole_numbers = all(isinstance(number, int) for number in plain)
    return sum(plain) if whole_numbers else sum(plain) / len(plain)


def speedup_over(rows: Sequence[Row], arm: str, other: str) -> Estimate | None:
    """The other arm's seconds per token over the arm's, on the examples that succeeded in both."""
    own = compare(rows, [arm, other])[arm]
    found = speedup(own, own.arms.get(other))
    return None if found is None else found.estimate()


def compare(
    rows: Sequence[Row],
    arms: Sequence[str],
    temperature: float = 0.0,
    static: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> dict[str, Arm]:
    """Pair the arms on the examples that succeeded in all of them. `seed` is of the resamples.

    An arm without a single success compares with nothing: it is left empty instead of emptying the others.
    """
    table: dict[str, dict[str, Row]] = {name: {} for name in arms}
    for row in rows:
        if row.arm in table:
            table[row.arm][row.example_id] = row
    succeeded = {name: {key: row for key, row in of.items() if row.error is None} for name, of in table.items()}
    alive = [name for name in arms if succeeded[name]]
    common = set.intersection(*(set(succeeded[name]) for name in alive)) if alive else set()
    order = sorted(common, key=lambda key: (succeeded[alive[0]][key].index, key))
    timed = [key for key in order if all(succeeded[name][key].decode_seconds for name in alive)]
    for_timed = Resamples.draw(len(timed), seed + TIMED_SEED)
    for_detail = Resamples.draw(len(order), seed + DETAIL_SEED)
    nothing = Sample([], Resamples.draw(0))
    compared: dict[str, Arm] = {}
    made = {}
    for name, own in succeeded.items():
        made[name] = Arm(
            name=name,
            timed=Sample([own[key] for key in timed], for_timed) if own else nothing,
            detail=Sample([own[key] for key in order], for_detail) if own else nothing,
            failed=len(table[name]) - len(own),
            greedy=temperature == 0,
            static=(static or {}).get(name, {}),
            arms=compared if own else {},
        )
    compared.update((name, made[name]) for name in alive)
    return made


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
