"""The refactor check: `python -m experiments.compare RUN_A RUN_B` says whether two runs of the same work are the same.

Token ids and counts have to be identical; speed, quality and fidelity are told beside them.
Exit code 0: identical, 1: something differs, 2: a user's mistake.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from experiments.comparability import parse_mix
from experiments.differences import (
    WORK,
    Checked,
    Comparison,
    Difference,
    Rows,
    circumstances,
    compare_rows,
    numbers,
    other_work,
)
from experiments.entry import results_folder, run_command
from experiments.errors import UserError, near
from experiments.records import Row
from experiments.statistics import Estimate
from experiments.store import RunFolder
from experiments.tables import StoredRun, read
from experiments.text_tables import ABSENT, text_table

FEW = 5  # of the rows that are named one by one
SETTINGS = 12  # of those that two runs do not share
HEADER = ["arm", "examples", "ids differ", "counts differ"]
NUMBERS = ["speed ratio", "quality delta", "fidelity delta"]
LEGEND = "speed ratio: seconds per token of A over B, above 1 where B is faster; deltas: B minus A"


def open_run(name: str, results: Path) -> StoredRun:
    """A stored run by its id or the path of its folder. Raises UserError where there is none that can be read."""
    path = Path(name).expanduser()
    is_path = (path / "run.json").is_file()
    if os.sep in name and not is_path:
        siblings = [file.parent.name for file in path.parent.glob("*/run.json")]
        raise UserError(f"run {name}: no run.json in that folder{near(path.name, siblings)}")
    try:  # an absolute path stays what it is when it is joined to the results folder
        return read(RunFolder(results, str(path.resolve()) if is_path else name))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:  # a damaged file, or the columns of another version
        raise UserError(f"run {name}: this version cannot read it ({type(error).__name__}: {error})") from error


def compare_runs(names: Sequence[str], results: Path, counts_only: bool = False, mix: Collection[str] = ()) -> bool:
    """Print how two runs differ. True where they do not. Raises UserError for runs that cannot be compared.

    `mix`: parts of the work (`WORK`) that may differ.
    """
    first, second = (open_run(name, results) for name in names)
    refused = other_work(first.identity, second.identity, mix)
    if refused:
        raise UserError(
            f"runs {names[0]} and {names[1]} cannot be compared: {'; '.join(map(str, refused))}{_flag(refused)}"
        )
    found = compare_rows(first.rows, second.rows)
    if not found.checked and found.same:
        raise UserError(f"runs {names[0]} and {names[1]} share no example that succeeded in the same arm")
    pair = first.identity["pair"]["name"]
    print(f"A {names[0]}, B {names[1]}: {first.task}, pair {pair}, temperature {first.temperature:g}")
    settings = [f"  {one}" for one in circumstances(first.identity, second.identity)]
    told = [] if counts_only else [*notices("A", first), *notices("B", second)]
    parts = [*few(settings, SETTINGS), "", table(found, counts_only), "", *told, *notes(found), verdict(found)]
    print("\n".join(parts))
    return found.same


def _flag(refused: Sequence[Difference]) -> str:
    """How to compare them nevertheless."""
    parts = dict.fromkeys(one.key.partition(".")[0] for one in refused)
    return f"; accepted: runs of the same work, or --mix {','.join(parts)}"


def notices(side: str, run: StoredRun) -> list[str]:
    """What its own tables say of a run: what disturbed its timings, for one."""
    return few([f"note on {side}: {one}" for one in run.notices], FEW)


def table(found: Comparison, counts_only: bool) -> str:
    """One line for each arm."""
    cells = [HEADER if counts_only else HEADER + NUMBERS]
    for arm, checked in found.arms.items():
        ids, counts = sum(one.token is not None for one in checked), sum(bool(one.counts) for one in checked)
        line = [arm, str(len(checked)), str(ids), str(counts)]
        if not counts_only:
            told = numbers(checked)
            line[1] += f" ({told.timed} timed)" if told.timed < len(checked) else ""
            line += [ratio(told.speed), delta(told.quality, digits=3), delta(told.fidelity, digits=4)]
        cells.append(line)
    return text_table(cells) + ("" if counts_only else f"\n{LEGEND}")


def ratio(estimate: Estimate | None) -> str:
    """`1.013 [0.998, 1.027]`."""
    if estimate is None:
        return ABSENT
    interval = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{interval}"


def delta(estimate: Estimate | None, digits: int) -> str:
    """`+0.025`, and 0 without a sign."""
    if estimate is None:
        return ABSENT
    text = f"{estimate.value:+.{digits}f}"
    return text if float(text) else text[1:]


def notes(found: Comparison) -> list[str]:
    """The first rows that differ, error rows, and what one run alone holds."""
    told = few([described(one) for one in found.checked if one.differs], FEW)
    for side, rows in found.failed.items():
        told += few([f"only {side} failed: {named(row)}: {row.error}" for row in rows], FEW)
    both = [key for key, row in found.a.items() if row.error and key in found.b and found.b[key].error]
    told += [f"failed in both runs: {len(both)} rows"] if both else []
    told += [*alone("A", found.a, found.b), *alone("B", found.b, found.a)]
    others = Counter(name for one in found.checked for name in one.others)
    columns = ", ".join(f"{name} in {count} rows" for name, count in others.items())
    return [*told, *([f"differ as well, without being ids or counts: {columns}"] if columns else [])]


def described(one: Checked) -> str:
    """Where a row first differs."""
    counts = str(one.counts[0]) if one.counts else "same counts"
    if one.token is None:
        return f"{named(one.a)}: {counts}; same ids"
    ends = [row.token_ids[one.token] if one.token < len(row.token_ids) else "ended" for row in (one.a, one.b)]
    return f"{named(one.a)}: {counts}; ids from token {one.token}: A {ends[0]}, B {ends[1]}"


def named(row: Row) -> str:
    """Which row this is."""
    return f"{row.arm}, example {row.example_id} (index {row.index})"


def alone(side: str, own: Rows, other: Rows) -> list[str]:
    """What only one run holds: arms, examples, and error rows and others of what it shares."""
    lacking = [row for key, row in own.items() if key not in other]
    examples, arms = {example for example, _ in other}, {arm for _, arm in other}
    new_arms = dict.fromkeys(row.arm for row in lacking if row.arm not in arms)
    new_examples = dict.fromkeys(row.example_id for row in lacking if row.example_id not in examples)
    rest = [row for row in lacking if row.arm in arms and row.example_id in examples]
    told = [f"arms {', '.join(new_arms)}"] if new_arms else []
    told += [f"{len(new_examples)} examples ({', '.join(few(list(new_examples), FEW))})"] if new_examples else []
    told += [f"rows of shared arms and examples: {'; '.join(few([named(row) for row in rest], FEW))}"] if rest else []
    errors = sum(row.error is not None for row in lacking)
    told += [f"{errors} error rows among them"] if errors else []
    return [f"only {side} holds: {'; '.join(told)}"] if told else []


def few(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], *([f"... and {len(lines) - most} more"] if len(lines) > most else [])]


def verdict(found: Comparison) -> str:
    """The last line."""
    differing, failed = sum(one.differs for one in found.checked), sum(map(len, found.failed.values()))
    told = [f"ids or counts differ in {differing} of {len(found.checked)} rows"] if differing else []
    told += [f"{failed} rows failed in one run alone"] if failed else []
    return "; ".join(told) or f"ids and counts are identical in all {len(found.checked)} rows"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run id, or the path of a run's folder")
    parser.add_argument("--results", help="the results folder (default: $VIASD_RESULTS, else results/ of the clone)")
    parser.add_argument("--counts-only", action="store_true", help="leave out speed, quality and fidelity")
    parser.add_argument(
        "--mix", action="append", default=[], metavar="KEY,KEY", help=f"let the work differ in {', '.join(WORK)}"
    )
    options = parser.parse_args()
    same: list[bool] = []

    def job() -> None:
        mix = parse_mix(options.mix, WORK)
        same.append(compare_runs(options.runs, results_folder(options.results), options.counts_only, mix))

    run_command(job, interrupted="interrupted")
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
