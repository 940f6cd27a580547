"""Arms paired on the same examples, the columns of their rows, and the statistics that metrics are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.records import Row
from experiments.statistics import Array, Resamples, Statistic, lift
from viasd.routing import REGIONS

TIMED_SEED, DETAIL_SEED = 0, 1  # speed, and fidelity with quality, are resampled independently of each other
KEYS = ("draft", "slim", "target", "other", *REGIONS, "gate", "forced")  # order of a family

Column = Callable[[Row], float]
Number = Statistic | float | None
Key = tuple[int, str]  # place of the run, example id


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
    return compare_seeds([rows], arms, temperature, static, seed)


def compare_seeds(
    runs: Sequence[Sequence[Row]],
    arms: Sequence[str],
    temperature: float = 0.0,
    static: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> dict[str, Arm]:
    """`compare` over several runs of the same examples, each under a seed of its own.

    Rows are paired across arms within a run. The rows of one example are no independent evidence: they are resampled
    together.
    """
    table: dict[str, dict[Key, Row]] = {name: {} for name in arms}
    for run, rows in enumerate(runs):
        for row in rows:
            if row.arm in table:
                table[row.arm][run, row.example_id] = row
    succeeded = {name: {key: row for key, row in of.items() if row.error is None} for name, of in table.items()}
    alive = [name for name in arms if succeeded[name]]
    common = set.intersection(*(set(succeeded[name]) for name in alive)) if alive else set()
    order = sorted(common, key=lambda key: (succeeded[alive[0]][key].index, key))
    timed = [key for key in order if all(succeeded[name][key].decode_seconds for name in alive)]
    for_timed, for_detail = _resamples(timed, seed + TIMED_SEED), _resamples(order, seed + DETAIL_SEED)
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


def _resamples(keys: Sequence[Key], seed: int) -> Resamples:
    return Resamples.draw(len(keys), seed, groups=[example_id for _, example_id in keys])


# --- columns: one number per row ----------------------------------------------------------------------------------


def one(row: Row) -> float:
    return 1.0


def tokens(row: Row) -> float:
    return row.new_tokens


def clocked_tokens(row: Row) -> float:
    """Tokens that were output during `decode_seconds`."""
    return row.new_tokens - row.unclocked


def decode_seconds(row: Row) -> float:
    """Repeats of an example are averaged first."""
    return _mean(row.decode_seconds)


def request_seconds(row: Row) -> float:
    return _mean(row.prefill_seconds) + _mean(row.decode_seconds)


def first_token_seconds(row: Row) -> float:
    return _mean(row.first_token_seconds)


def joules(row: Row) -> float:
    return _mean(row.joules)


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


def has_score(key: str) -> Column:
    """Whether an example has a score of this name: a benchmark of several groups may judge each by its own."""
    return lambda row: key in row.scores


def at_level(level: int, column: Column) -> Column:
    """A column of the examples of one difficulty; 0 for the others."""
    return lambda row: column(row) if row.level == level else 0.0


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
    return arm.timed.ratio(decode_seconds, clocked_tokens)


def speedup(arm: Arm, other: Arm | None) -> Statistic | None:
    """The other arm's seconds per token over this one's, on the same (resampled) prompts."""
    return None if other is None else seconds_per_token(other) / seconds_per_token(arm)


def tokens_per_second(arm: Arm) -> Statistic:
    return arm.timed.ratio(clocked_tokens, decode_seconds)


def fidelity(arm: Arm) -> Statistic:
    return 1.0 - arm.detail.ratio(loss, loss_tokens)


def shortfall(arm: Arm) -> Statistic | None:
    return against_vanilla(arm, loss, loss_tokens)


def quality_delta(arm: Arm) -> Statistic | None:
    return against_vanilla(arm, quality, has_quality)


def ideal_speedup(arm: Arm) -> Statistic | None:
    """`speedup` if calls took their isolated costs and nothing else took any time."""
    if arm.vanilla is None or not any(row.ideal_seconds for row in arm.timed.rows):
        return None
    return _ideal_per_token(arm.vanilla) / _ideal_per_token(arm)


def _ideal_per_token(arm: Arm) -> Statistic:
    return arm.timed.ratio(lambda row: row.ideal_seconds or 0.0, tokens)


def predicted_tokens_per_second(arm: Arm) -> Statistic | None:
    """Tokens per second from the arm's calls, as they cost in turn beside each example, and its loop's own time.

    Of the arm's passes over these examples only the calls and rounds are used, none of their clocks (experiments.turns
    says what is timed instead). None where a row has no prediction: it was stored before there were any.
    """
    if not all(row.predicted_seconds for row in arm.timed.rows):
        return None
    return arm.timed.ratio(tokens, lambda row: row.predicted_seconds or 0.0) if arm.timed.rows else None


def modelled_parallel_tokens_per_second(arm: Arm) -> Statistic | None:
    """Tokens per second if drafter and verifier of a round ran at the same time, on a device each.

    The models of a hierarchical verifier run in turn on theirs. At isolated costs; a round takes besides what one of
    vanilla does, measured less isolated. Only for arms whose drafter does not wait for the verifier.
    """
    if (base := arm.vanilla) is None or not any(row.parallel_seconds for row in arm.timed.rows):
        return None
    inside = arm.timed.ratio(lambda row: row.parallel_seconds or 0.0, tokens)
    loss = base.timed.ratio(lambda row: decode_seconds(row) - (row.ideal_seconds or 0.0), _rounds)
    return lift(
        lambda inside, rounds, loss: 1 / (inside + rounds * loss), inside, arm.timed.ratio(_rounds, tokens), loss
    )


def _rounds(row: Row) -> float:
    return row.rounds


def speed_over_predicted(arm: Arm) -> Statistic | None:
    """Measured tokens per second over predicted ones."""
    predicted = predicted_tokens_per_second(arm)
    return None if predicted is None else tokens_per_second(arm) / predicted


def energy_per_token(arm: Arm) -> Statistic | None:
    """Joules per committed token, prefill included. None where a row has none: a machine without energy counters."""
    rows = arm.timed.rows
    return arm.timed.ratio(joules, tokens) if rows and all(row.joules for row in rows) else None


def energy_ratio(arm: Arm) -> Statistic | None:
    """`energy_per_token` over vanilla's, on the same (resampled) prompts."""
    own, base = energy_per_token(arm), None if arm.vanilla is None else energy_per_token(arm.vanilla)
    return None if own is None or base is None else own / base


def request_speedup(arm: Arm) -> Statistic | None:
    """`speedup` = `request_speedup` x `length_ratio`. None where a part of each answer was not under that clock."""
    base = arm.vanilla
    if base is None or any(row.unclocked for row in [*base.timed.rows, *arm.timed.rows]):
        return None
    return base.timed.ratio(decode_seconds, one) / arm.timed.ratio(decode_seconds, one)


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


def device_shares(arm: Arm) -> dict[str, Number]:
    """By reader; empty on a CPU."""
    keys = _keys(arm.timed, "device_seconds")
    return {key: arm.timed.ratio(part("device_seconds", key), part("reader_seconds", key)) for key in keys}


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


def scores(arm: Arm) -> dict[str, Number]:
    """Mean of every scorer of the task, over the examples that it judged."""
    return {key: arm.detail.ratio(part("scores", key), has_score(key)) for key in _keys(arm.detail, "scores")}


def quality_by_level(arm: Arm) -> dict[str, Number]:
    """By difficulty, where the examples have one."""
    levels = sorted({row.level for row in arm.detail.rows if row.level is not None})
    return {str(level): arm.detail.ratio(at_level(level, quality), at_level(level, has_quality)) for level in levels}


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
    return sorted({key for row in sample.rows for key in getattr(row, field)}, key=rank)


def rank(key: str) -> tuple[int, int, str]:
    """Positions by number, known keys in their order, others by name."""
    if key.isdecimal():
        return (0, int(key), key)
    return (1, KEYS.index(key), key) if key in KEYS else (2, 0, key)
