"""Stored runs: list, show, verify, clean, and ask by SQL.

python -m experiments.runs [list] [FILTER ...]     what there is, in which state: running, done, failed, stale
python -m experiments.runs show ID                 one run (the beginning of its id is enough)
python -m experiments.runs verify [ID|FILTER ...]  hashes, schema, counts, summaries: one line for each defect
python -m experiments.runs gc [FILTER ...]         what may be deleted; --yes deletes it
python -m experiments.runs --sql "SELECT task, arm, value FROM summary JOIN runs USING (run_id) WHERE ..."

Filters: task= pair= method= arm= state= device= code= since=, as in task=qa,coding since=7d
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.entry import results_folder, run_command
from experiments.errors import RunFailed, UserError, near

if TYPE_CHECKING:
    from experiments.stored.catalog import Entry

ACTIONS = ("list", "show", "verify", "gc")
FORMS = ("json", "csv")


def list_runs(results: Path, typed: Sequence[str], form: str | None) -> None:
    """Print the runs that fit."""
    from experiments.list import aligned
    from experiments.stored.show import list_cells, list_lines

    lines = list_lines(pick(results, typed, ids=False))
    if form is not None:
        write(lines, form)
    elif lines:
        print(aligned(list_cells(lines)))
    else:
        print(f"no runs in {results / 'runs'}" if not typed else "no runs fit")


def show_run(results: Path, typed: Sequence[str], form: str | None) -> None:
    """Print one run."""
    from experiments.stored.catalog import find_run
    from experiments.stored.show import describe, show_text

    if len(typed) != 1:
        raise UserError(f"show {' '.join(typed)}: accepted: show ID")
    run = find_run(results, typed[0])
    if form == "csv":
        raise UserError("show --csv: accepted: --json")
    print(show_text(run) if form is None else json.dumps(describe(run), indent=1, ensure_ascii=False, default=str))


def verify_runs(results: Path, typed: Sequence[str], form: str | None) -> None:
    """Print what is wrong. Raises RunFailed where anything is."""
    from experiments.stored.checks import verify

    runs = pick(results, typed, ids=True)
    lines = [{"run": run.run_id, "defect": defect} for run in runs for defect in verify(run)]
    if form is not None:
        write(lines, form, columns=["run", "defect"])
    for line in lines if form is None else []:
        print(f"run {line['run']}: {line['defect']}")
    bad = len({line["run"] for line in lines})
    if bad:
        raise RunFailed(f"{len(lines)} defects in {bad} of {len(runs)} runs")
    if form is None:
        print(f"{len(runs)} runs: nothing is wrong")


def clean(results: Path, options: argparse.Namespace, typed: Sequence[str], form: str | None) -> None:
    """Print what may be deleted, and delete it if asked to. Raises RunFailed where something could not be."""
    from experiments.stored import cleaning
    from experiments.stored.filters import parse, parse_age

    age = None if options.older_than is None else parse_age(options.older_than, "--older-than")
    found = cleaning.find_waste(results, cleaning.Wanted(parse(typed), age, options.other_code))
    lines: list[dict[str, Any]] = []
    for waste in found:
        stayed = cleaning.delete(waste, results) if options.yes else None
        deleted = options.yes and stayed is None
        lines.append({"path": str(waste.path), "why": waste.why, "bytes": waste.bytes, "deleted": deleted})
        if form is None:
            how = "deleted" if deleted else f"stays ({stayed})" if stayed else "would delete"
            print(f"{how}: {waste.path} ({waste.why}, {waste.bytes / 1e6:.1f} MB)")
    if form is not None:
        write(lines, form, columns=["path", "why", "bytes", "deleted"])
    elif not options.yes:
        total = sum(waste.bytes for waste in found) / 1e6
        print(f"{len(found)} things, {total:.1f} MB; --yes deletes them" if found else "nothing to delete")
    if options.yes and (kept := [line for line in lines if not line["deleted"]]):
        raise RunFailed(f"{len(kept)} of {len(lines)} things could not be deleted")


def ask(results: Path, sql: str, form: str | None) -> None:
    """Print the answer to a query."""
    from experiments.stored import query

    frame = query(sql, results)
    for line in frame.attrs["skipped"]:
        print(f"note: {line}", file=sys.stderr)
    if form == "csv":
        frame.to_csv(sys.stdout, index=False, lineterminator="\n")
    elif form == "json":
        print(frame.to_json(orient="records", date_format="iso", indent=1))
    else:
        print(frame.to_string(index=False) if len(frame) else f"no lines ({', '.join(frame.columns)})")


def pick(results: Path, typed: Sequence[str], ids: bool) -> list[Entry]:
    """The runs that are named by id, or all that fit the filters. Says of those that cannot be read."""
    from experiments.stored.catalog import entries, find_run
    from experiments.stored.filters import chosen, parse

    named = [text for text in typed if "=" not in text]
    if named and ids:
        if len(named) < len(typed):
            raise UserError(f"{' '.join(typed)}: accepted: ids or filters, not both")
        return [find_run(results, text) for text in named]
    filters = parse(typed)
    found = chosen(list(entries(results)), filters)
    for run in found if not ids else []:
        if run.problem is not None:
            print(f"note: {run.problem}", file=sys.stderr)
    return found


def write(lines: Sequence[Mapping[str, Any]], form: str, columns: Sequence[str] = ()) -> None:
    """Lines as JSON or CSV on standard output."""
    if form == "json":
        print(json.dumps(list(lines), indent=1, ensure_ascii=False))
        return
    writer = csv.DictWriter(sys.stdout, list(lines[0]) if lines else list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    if options.json and options.csv:
        raise UserError("--json --csv: accepted: one of them")
    if options.sql is not None and options.words:
        raise UserError(f"--sql {' '.join(options.words)}: accepted: no other words (a WHERE does what filters do)")
    if (options.yes or options.older_than or options.other_code) and options.words[:1] != ["gc"]:
        raise UserError("--yes, --older-than, --other-code: accepted with gc")


def dispatch(options: argparse.Namespace) -> None:
    """Do what was typed."""
    check_options(options)
    results = results_folder(options.results)
    form = "json" if options.json else "csv" if options.csv else None
    if options.sql is not None:
        return ask(results, options.sql, form)
    action, *typed = options.words if options.words and "=" not in options.words[0] else ["list", *options.words]
    if action not in ACTIONS:
        raise UserError(f"{action}: no such action{near(action, ACTIONS)}, or filters KEY=VALUE")
    if action == "gc":
        return clean(results, options, typed, form)
    actions = {"list": list_runs, "show": show_run, "verify": verify_runs}
    actions[action](results, typed, form)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="ACTION|FILTER", help=f"{', '.join(ACTIONS)}; KEY=VALUE filters")
    parser.add_argument("--results", type=Path, help="the results folder; else $VIASD_RESULTS, else results/")
    parser.add_argument("--sql", metavar="SELECT", help="ask the views runs, rows, summary (docs/runs.md)")
    for form in FORMS:
        parser.add_argument(f"--{form}", action="store_true", help=f"as {form.upper()}")
    parser.add_argument("--yes", action="store_true", help="gc: delete")
    parser.add_argument("--older-than", metavar="AGE", help="gc: whole runs whose last row is older, as in 30d")
    parser.add_argument("--other-code", action="store_true", help="gc: whole runs measured by other code than this")
    options = parser.parse_intermixed_args()
    run_command(lambda: dispatch(options), interrupted="interrupted")


if __name__ == "__main__":
    main()
