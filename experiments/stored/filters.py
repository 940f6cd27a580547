"""Filters over runs, as they are typed: `task=qa,coding state=done device=h100 since=7d`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from experiments.errors import UserError, near
from experiments.stored.catalog import STATES, Entry, value_at

AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _told(entry: Entry, *path: str) -> list[str]:
    value = value_at(entry.content, path)
    return [] if value is None else [str(value)]


# What a filter looks at: the values of a run, one of which has to fit.
VALUES: dict[str, Callable[[Entry], Sequence[str]]] = {
    "task": lambda entry: _told(entry, "identity", "task", "name"),
    "pair": lambda entry: _told(entry, "identity", "pair", "name"),
    "method": lambda entry: [entry.method] if entry.method else [],
    "arm": lambda entry: entry.arms,
    "state": lambda entry: [entry.state],
    "device": lambda entry: _told(entry, "identity", "device"),
    "code": lambda entry: _told(entry, "identity", "code_hash"),
}
SINCE = "since"
KEYS = (*VALUES, SINCE)


def _equal(value: str, wanted: str) -> bool:
    return value == wanted


# A device by a part of its name, code by the beginning of its hash, all else whole.
FITS: dict[str, Callable[[str, str], bool]] = {
    "device": lambda value, wanted: wanted.lower() in value.lower(),
    "code": str.startswith,
}


def parse(typed: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as filters. Raises UserError for other texts, unknown keys and keys that come twice."""
    found: dict[str, str] = {}
    for text in typed:
        key, sign, value = text.partition("=")
        if not sign or not value:
            raise UserError(f"{text}: accepted: KEY=VALUE[,VALUE ...] with a key of {', '.join(KEYS)}")
        if key in found:
            raise UserError(f"{text}: {key} comes twice; accepted: {key}={found[key]},{value}")
        found[key] = value
    check(found)
    return found


def check(filters: Mapping[str, str]) -> None:
    """Raises UserError for a key, a state or a date nobody knows."""
    for key, value in filters.items():
        if key not in KEYS:
            raise UserError(f"{key}={value}: no such filter{near(key, KEYS)}")
        if key == "state":
            for one in value.split(","):
                if one not in STATES:
                    raise UserError(f"state={one}: no such state{near(one, STATES)}")
    if SINCE in filters:
        parse_since(filters[SINCE])


def chosen(runs: Sequence[Entry], filters: Mapping[str, str]) -> list[Entry]:
    """The runs that fit all filters. Raises UserError for a value that no stored run has."""
    check(filters)
    since = parse_since(filters[SINCE]) if SINCE in filters else None
    for key in filters:
        if key in VALUES and runs:
            runs_with = _fitting(runs, key, filters[key].split(","))
            runs = [run for run in runs if run.run_id in runs_with]
    return [run for run in runs if since is None or (run.measured is not None and run.measured >= since)]


def _fitting(runs: Sequence[Entry], key: str, wanted: Sequence[str]) -> set[str]:
    of, fits = VALUES[key], FITS.get(key, _equal)
    values = {run.run_id: of(run) for run in runs}
    known = {value for own in values.values() for value in own}
    for one in wanted:
        if key != "state" and not any(fits(value, one) for value in known):
            raise UserError(f"{key}={one}: no run has it, of those the other filters leave{near(one, known)}")
    return {run_id for run_id, own in values.items() if any(fits(value, one) for value in own for one in wanted)}


def parse_since(text: str) -> datetime:
    """A date (2026-05-31, with a time if wanted, UTC) or an age (7d). Raises UserError for other texts."""
    try:
        return datetime.now(UTC) - parse_age(text, "since")
    except UserError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"since={text}: accepted: a date as 2026-05-31 or 2026-05-31T12:00, or an age as 7d") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def parse_age(text: str, key: str) -> timedelta:
    """`30d`, `12h`, `90m`, `2w`. Raises UserError for other texts."""
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if match is None:
        raise UserError(f"{key}={text}: accepted: a number with m, h, d or w, as in 30d")
    return timedelta(**{AGES[match[2]]: int(match[1])})
