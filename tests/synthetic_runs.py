"""Stored runs that nobody measured: whole folders whose counts, hashes and summaries fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.identity import digest
from experiments.metrics import Summary, summarize
from experiments.records import Row
from experiments.store import RunFolder

ARMS = ("vanilla", "sd", "via_sd")
SPEED = {"vanilla": 1.0, "sd": 2.0, "via_sd": 3.0}
DATE = "2026-05-04T10:00:00+00:00"


def made_rows(examples: int, arms: Sequence[str] = ARMS, timed: bool = True, date: str = DATE) -> list[Row]:
    """Rows that add up: eight tokens each, in rounds of four of which one is a bonus."""
    return [made_row(arm, index, timed, date) for index in range(examples) for arm in arms]


def made_row(arm: str, index: int, timed: bool = True, date: str = DATE) -> Row:
    """One row of `made_rows`."""
    row = Row(f"e{index}", arm, index, token_ids=list(range(8)), new_tokens=8, text="eight \u2028 words", quality=1.0)
    row.finish_reason, row.rounds, row.sources, row.measured_at = "length", 8, {"target": 8}, date
    row.scores, row.token_loss, row.calls = {"final_answer": 1.0}, [0.0] * 7 + [float(index % 2)], {"target": 8}
    row.level, row.log_prob_gap = 1 + index % 3, [0.0] * 8
    if arm != "vanilla":
        row.rounds, row.drafted, row.judged, row.tiers = 2, 6, 6, {"target": 6}
        row.drafted_at, row.judged_at, row.accepted_at = [2] * 3, [2] * 3, [2] * 3
        row.calls, row.fed = {"target": 2, "draft": 6}, {"target": 8, "draft": 8}
    if timed:
        seconds = (1 + index / 10) / SPEED.get(arm, 1.5)
        row.decode_seconds, row.prefill_seconds, row.first_token_seconds = [seconds], [0.1], [0.15]
        row.reader_seconds, row.profiled_seconds = {"target": seconds / 2, "draft": seconds / 4}, seconds
        row.ideal_seconds, row.predicted_seconds = seconds / 2, seconds
    return row


def made_identity(seed: int = 0, task: str = "qa", **changes: Any) -> dict[str, Any]:
    """What run.json calls identity; `changes` replace its keys."""
    return {
        "arms": {name: {"name": name} for name in ARMS},
        "order": list(ARMS),
        "sampling": {"temperature": 0.0},
        "task": {"name": task},
        "seed": seed,
        "repeats": 1,
        "pair": {"name": "reference", "models": {"target": "05f5", "draft": "76ca"}},
        "device": "Some(R) Processor 4",
        "dtype": "float32",
        "threads": 1,
        "mode": "fused",
        "versions": {"python": "3.11.7"},
        "code_hash": "8a21b10e1e969e9b",
        **changes,
    }


def store_run(
    results: Path, rows: Sequence[Row] | None = None, status: str = "done", method: str = "via_sd", **identity: Any
) -> RunFolder:
    """Store a run as `experiments.run` does. `identity`: as `made_identity` takes it."""
    who = made_identity(**identity)
    folder = RunFolder(results, digest(who))
    rows = made_rows(4) if rows is None else rows
    start = {"started": DATE, "commit": "0123456789abcdef", "dirty": False, "platform": "Linux", "load": [0.1]}
    run = {"status": status, "config": {"method": {"name": method}, "limit": 4}, "identity": who, "provenance": [start]}
    folder.create()
    folder.write_run({**run, "notices": ["made up"]})
    folder.append(rows)
    if status in ("done", "failed"):
        folder.write_summary(made_summary(folder.read_rows()), 4, 4)
        folder.write_run({**run, "notices": ["made up"], "rows": folder.sealed(None)})
    return folder


def made_summary(rows: Sequence[Row]) -> Summary:
    """The summary of rows."""
    return summarize(rows, list(ARMS), temperature=0.0)
