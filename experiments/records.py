"""What one (example, arm) leaves behind: the columns of rows.jsonl, and how rounds become counts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # stored rows are read, listed and searched without torch
    from viasd.decode import Adaptive, Generation, Round

SCHEMA_VERSION = 2  # of run.json and rows.jsonl; experiments.stored.schema reads the older ones
Call = tuple[str, int]  # reader's role, tokens fed
PER_REPEAT = ("decode_seconds", "prefill_seconds", "first_token_seconds", "waited_seconds", "joules")


def is_reading(column: str) -> bool:
    """Whether a column of a row is read off a clock or a counter: the same work has other values in it every time."""
    return column.endswith("_seconds") or column in PER_REPEAT or column == "measured_at"


@dataclass
class Row:
    """One example decoded by one arm. Counts follow DESIGN section 2; a timed pass gives lists, one entry per repeat.

    An untimed row (quality and fidelity only) has empty ones; an error row has nothing but its error.
    """

    example_id: str
    arm: str
    index: int  # place of the example in the run's order
    error: str | None = None
    token_ids: list[int] = field(default_factory=list)
    new_tokens: int = 0
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    truncated: int = 0  # tokens cut off at the left of the prompt
    turn: int = 0  # of a conversation
    level: int | None = None  # difficulty of the example, where its task has levels
    quality: float | None = None
    scores: dict[str, float] = field(default_factory=dict)  # by each scorer of the task; quality is one of them
    # timed pass
    decode_seconds: list[float] = field(default_factory=list)
    prefill_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(
        default_factory=list
    )  # prompt given to first committed tokens, prefill included
    waited_seconds: list[float] = field(default_factory=list)  # runnable without a core; empty where nobody tells
    joules: list[float] = field(default_factory=list)  # prefill included; empty where there is no counter
    unclocked: int = 0  # leading tokens that were output before decode_seconds began (loops of a library)
    memory: dict[str, Any] = field(default_factory=dict)  # what the arm remembers after this example (`memory: run`)
    # counts
    rounds: int = 0
    drafted: int = 0
    judged: int = 0
    rejected: int = 0
    unjudged: int = 0
    discarded: int = 0
    cut: int = 0
    target_rejected: int = 0
    withdrawn: int = 0  # provisional tokens that the target took back (mode exact)
    nodes: int = 0  # of drafted trees, whose depth is what `drafted` counts
    tiers: dict[str, int] = field(default_factory=dict)  # judged tokens by tier: draft, slim, target
    sources: dict[str, int] = field(default_factory=dict)  # committed tokens by source: draft, slim, target
    regions: dict[str, int] = field(default_factory=dict)  # gate consultations by region of viasd.routing
    escalations: dict[str, int] = field(default_factory=dict)  # rounds: gate, forced
    drafted_at: list[int] = field(default_factory=list)  # rounds that drafted position 0, 1, ...
    judged_at: list[int] = field(default_factory=list)  # rounds that judged it
    accepted_at: list[int] = field(default_factory=list)  # rounds that judged it and kept the drafted token
    calls: dict[str, int] = field(default_factory=dict)  # forwards while decoding, by reader
    fed: dict[str, int] = field(default_factory=dict)  # tokens fed while decoding, by reader
    # profiled pass
    reader_seconds: dict[str, float] = field(default_factory=dict)  # seconds inside forwards, by reader
    device_seconds: dict[str, float] = field(default_factory=dict)  # the same between CUDA events; empty on a CPU
    profiled_seconds: float | None = None  # decode seconds of the profiled pass
    ideal_seconds: float | None = None  # its calls at their isolated costs
    parallel_seconds: float | None = None  # modelled: the same with the readers of a round at work at the same time
    predicted_seconds: float | None = None  # its calls as they cost in turn here, and the loop's own time
    trace: list[list[Any]] = field(default_factory=list)  # one entry per round, as `trace_round` makes it
    audits: int = 0  # tokens the target had not ruled on and later saw
    audit_agreement: float = 0.0  # sum of min(1, target / law) over them
    # off the clock: one target pass over prompt + output
    token_loss: list[float] = field(default_factory=list)  # temperature 0: not the target's argmax; else overshoot
    log_prob_gap: list[float] = field(
        default_factory=list
    )  # log max target - log target(token), raw rows, temperature 0
    first_divergence: int | None = None  # first committed token that is not the target's argmax (temperature 0)
    divergence_margin: float | None = None  # log-probability margin of the target's top two there
    tie_flips: int = 0  # divergences with a margin within the dtype's tie tolerance
    measured_at: str | None = None  # UTC in ISO format, to the second; None in rows of schema 1

    def to_json(self) -> str:
        """One line of rows.jsonl."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))


def count_rounds(row: Row, generation: Generation) -> None:
    """Fill a row's counts from the rounds of its generation."""
    from viasd.routing import REGIONS

    rounds = generation.rounds
    row.token_ids = list(generation.token_ids)
    row.new_tokens = len(generation.token_ids)
    row.finish_reason = generation.finish_reason
    row.unclocked = generation.unclocked
    row.rounds = len(rounds)
    for name in ("drafted", "judged", "rejected", "unjudged", "discarded", "cut", "target_rejected", "withdrawn"):
        setattr(row, name, sum(getattr(one, name) for one in rounds))
    row.nodes = sum(one.nodes or 0 for one in rounds)
    row.tiers = _counted(tier for one in rounds for tier in one.tiers)
    row.sources = _counted(source for one in rounds for source in one.sources)
    row.escalations = _counted(one.escalation for one in rounds if one.escalation is not None)
    totals = [sum(one.regions[k] for one in rounds if one.regions is not None) for k in range(len(REGIONS))]
    asked = dict(zip(REGIONS, totals, strict=True)) if any(totals) else {}
    row.regions = {name: count for name, count in asked.items() if count or name != "judge"}
    row.drafted_at, row.judged_at, row.accepted_at = by_position(rounds)
    row.calls, row.fed = dict(generation.calls), dict(generation.fed)
    audits = [value for one in rounds for value in one.audits or []]
    row.audits, row.audit_agreement = len(audits), sum(audits)


TRACE = (
    "drafted", "judged", "rejected", "committed", "pending", "tiers", "sources", "escalation", "calls",
    "adaptive", "held",
)  # fmt: skip


def trace_round(record: Round, calls: Sequence[Call], adaptive: Adaptive | None = None) -> list[Any]:
    """A round in the order of TRACE: tiers and sources as initials, calls as [reader, tokens fed, tokens fed, ...].

    `adaptive`: the numbers that follow the text, by part and name, as they are after the round. `held`: where the
    drafter does not wait for the verifier, 0 is pre-verify and more is post-verify. Both only where there are any.
    """
    grouped: list[list[Any]] = []
    for role, fed in calls:
        if not grouped or grouped[-1][0] != role:
            grouped.append([role])
        grouped[-1].append(fed)
    counts = [record.drafted, record.judged, record.rejected, record.committed, record.pending]
    initials = ["".join(name[0] for name in names) for names in (record.tiers, record.sources)]
    more = [adaptive, record.held]
    while more and more[-1] is None:
        more.pop()
    return [*counts, *initials, record.escalation, grouped, *more]


def by_position(rounds: Sequence[Round]) -> tuple[list[int], list[int], list[int]]:
    """How many rounds drafted, judged and kept each draft position."""
    longest = max((one.drafted for one in rounds), default=0)
    drafted = [sum(one.drafted > i for one in rounds) for i in range(longest)]
    judged, accepted = [0] * longest, [0] * longest
    for one in rounds:
        for place, kept in one.judgments:
            judged[place] += 1
            accepted[place] += kept
    return drafted, judged, accepted


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
