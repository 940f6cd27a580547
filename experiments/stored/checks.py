"""Does a stored run say what was measured? Hashes, schema, counts, and the summary against its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from experiments.errors import UserError
from experiments.records import Row
from experiments.store import rows_hash, select
from experiments.stored.catalog import Entry, value_at
from experiments.stored.schema import read_row

LOST = 1e-6  # relative difference that another order of sums, or another numpy, may make in a summary


def verify(entry: Entry) -> list[str]:
    """What is wrong with a run, a sentence for each; empty where nothing is."""
    if entry.problem is not None:
        return [entry.problem]
    if not entry.content:
        return ["no run.json"] if entry.examples and entry.state != "running" else []
    rows_path = entry.folder.rows_path
    content = rows_path.read_bytes() if rows_path.exists() else b""
    told = [*_check_identity(entry), *_check_seal(entry.content.get("rows"), content)]
    rows, broken = _read(content, rows_path.name, ended=entry.state in ("done", "failed"))
    told += [*broken, *(defect for row in rows for defect in row_defects(row, entry.arms))]
    if not broken:
        told += [*_check_pairing(rows, entry), *_check_summary(entry)]
    return told


def broken_lines(path: Path) -> list[int]:
    """Numbers of the lines of a rows.jsonl that cannot be read, from 1; one that is not whole yet is among them."""
    content = path.read_bytes()
    return [number for number, line in enumerate(_lines(content), 1) if isinstance(_parse(line, ""), str)]


def _lines(content: bytes) -> list[bytes]:
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _read(content: bytes, name: str, ended: bool) -> tuple[list[Row], list[str]]:
    """The rows, and a sentence for each line that is none. A half last line is none of them while a run goes on."""
    rows, told = [], []
    lines = _lines(content)
    for number, line in enumerate(lines, 1):
        where = f"{name} line {number}"
        if number == len(lines) and not content.endswith(b"\n"):
            told += [f"{where}: not whole"] if ended else []
            continue
        found = _parse(line, where)
        if isinstance(found, Row):
            rows.append(found)
        else:
            told.append(found)
    return rows, told


def _parse(line: bytes, where: str) -> Row | str:
    try:
        row = read_row(line.decode("utf-8"), where)
        _row_types().validate_json(line, strict=True)
    except UserError as error:
        return str(error)
    except UnicodeDecodeError as error:
        return f"{where}: {error}"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        return f"{where}: {key}={str(first.get('input'))[:40]!r}: {first['msg']}"
    return row


@cache
def _row_types() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


def _check_identity(entry: Entry) -> Iterator[str]:
    from experiments.identity import digest  # waits for torch

    identity = entry.content.get("identity")
    if identity is None:
        yield "run.json: without identity"
    elif (own := digest(identity)) != entry.run_id:
        yield f"run.json: its identity belongs to run {own}"
    if (said := entry.content.get("run_id", entry.run_id)) != entry.run_id:
        yield f"run.json: run_id={said}, but the folder is {entry.run_id}"


def _check_seal(seal: Mapping[str, Any] | None, content: bytes) -> Iterator[str]:
    """The first bytes of rows.jsonl against what was written down when the run ended; runs of schema 1 have nothing."""
    if seal is None:
        return
    of = content[: seal["bytes"]]
    if len(of) < seal["bytes"]:
        yield f"rows.jsonl: {len(content)} bytes, but it had {seal['bytes']} when the run ended"
    elif of.count(b"\n") != seal["lines"] or rows_hash(of) != seal["blake2b"]:
        yield f"rows.jsonl: its first {seal['bytes']} bytes are no longer those of the end of the run"


def row_defects(row: Row, arms: Sequence[str]) -> Iterator[str]:
    """What in a row cannot be, a sentence for each."""
    where = f"example {row.example_id}, arm {row.arm}"
    if arms and row.arm not in arms:
        yield f"{where}: no such arm in this run"
    if row.error is not None:
        if row.token_ids or row.decode_seconds or row.rounds:
            yield f"{where}: an error row with tokens, seconds or rounds"
        return
    dropped = row.judged + row.unjudged + row.discarded + row.cut
    traced = sum(entry[3] for entry in row.trace)
    equal = {
        "new_tokens and token_ids": (row.new_tokens, len(row.token_ids)),
        "drafted and judged + unjudged + discarded + cut": (row.drafted, dropped),
        "judged and the sum of tiers": (row.judged, sum(row.tiers.values())),
        "new_tokens and the sum of sources": (row.new_tokens, sum(row.sources.values()) or row.new_tokens),
        "rounds and the length of trace": (row.rounds, len(row.trace) or row.rounds),
        "new_tokens and what trace committed": (row.new_tokens, traced if row.trace else row.new_tokens),
        "new_tokens and token_loss": (row.new_tokens, len(row.token_loss) or row.new_tokens),
        "decode_seconds and prefill_seconds": (len(row.decode_seconds), len(row.prefill_seconds)),
        "decode_seconds and first_token_seconds": (len(row.decode_seconds), len(row.first_token_seconds)),
    }
    yield from (f"{where}: {name} differ: {a}, {b}" for name, (a, b) in equal.items() if a != b)
    if not row.target_rejected <= row.rejected <= row.judged:
        counts = f"{row.target_rejected}, {row.rejected}, {row.judged}"
        yield f"{where}: target_rejected <= rejected <= judged does not hold: {counts}"
    if any(not 0 < seconds < math.inf for seconds in row.decode_seconds):
        yield f"{where}: decode_seconds={row.decode_seconds}"


def _check_pairing(rows: Sequence[Row], entry: Entry) -> Iterator[str]:
    """One place for each example, and of an ended run one row for each example and arm (the last of several holds)."""
    places: dict[str, set[int]] = {}
    have: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row.example_id, set()).add(row.index)
        have.setdefault(row.example_id, set()).add(row.arm)
    for example_id, found in places.items():
        if len(found) > 1:
            yield f"example {example_id}: at several places of the order: {', '.join(map(str, sorted(found)))}"
    indices = [index for found in places.values() for index in found]
    if len(set(indices)) < len(indices):
        yield "rows.jsonl: several examples at one place of the order"
    for example_id, arms in have.items():
        missing = [arm for arm in entry.arms if arm not in arms]
        if missing and entry.state == "done":
            yield f"example {example_id}: no row of arm {', '.join(missing)}"


def _check_summary(entry: Entry) -> list[str]:
    """summary.json against the summary that its rows give now. One of schema 1 does not say of which rows it is."""
    try:
        content = entry.summary_content()
    except UserError as error:
        return [str(error)]
    if content is None:
        return ["no summary.json"] if entry.state in ("done", "failed") else []
    of = content.get("of")
    if of is None or entry.state not in ("done", "failed"):
        return []
    told, now = content["arms"], recomputed(entry, of["timed"], of["examples"])
    if list(told) != list(now):
        return [f"summary.json: arms {', '.join(told)}; its rows have {', '.join(now)}"]
    return [defect for arm in told for defect in _compare(arm, told[arm], now[arm])]


def recomputed(entry: Entry, timed: int, examples: int) -> dict[str, dict[str, Any]]:
    """The summary of the first `examples`, the first `timed` of them timed."""
    from experiments.metrics import summarize  # waits for torch
    from experiments.tables import static_metrics

    rows = entry.folder.read_rows()
    ids, timed_ids = ({row.example_id for row in rows if row.index < end} for end in (examples, timed))
    temperature = value_at(entry.content, ("identity", "sampling", "temperature"))
    static = static_metrics(entry.content)
    return summarize(select(rows, ids, timed_ids), entry.arms, temperature=temperature, static=static)


def _compare(arm: str, told: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Metrics that differ. One that only another version of this project knows is no defect."""
    from experiments.metrics import find

    for name, value in told.items():
        try:
            find(name)
        except ValueError:
            continue
        if name not in now:
            yield f"summary.json: {arm} has {name}, which its rows do not give"
        elif not _close(value, now[name]):
            yield f"summary.json: {arm} {name}={_plain(value)}, its rows give {_plain(now[name])}"


def _close(told: Any, now: Any) -> bool:
    ends, others = (one if isinstance(one, Mapping) else {"value": one} for one in (told, now))
    return ends.keys() == others.keys() and all(
        math.isclose(ends[key], others[key], rel_tol=LOST, abs_tol=LOST) for key in ends
    )


def _plain(value: Any) -> Any:
    return value["value"] if isinstance(value, Mapping) else value
