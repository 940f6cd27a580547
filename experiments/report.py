"""Stored runs as one self-contained HTML page: `python -m experiments.report [RUN ...]`.

Without runs: all of the results folder. Runs that a table may not mix become comparisons of their own on the page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.entry import results_folder, run_command
from experiments.errors import UserError


def write_report(names: Sequence[str], results: Path, out: Path | None, examples: int | None) -> Path:
    """Write the page; return its path. Raises UserError for runs that cannot be read, and for a file that cannot be."""
    from experiments.pages.page import build
    from experiments.pages.render import render
    from experiments.pages.runs import choose, group

    runs, notices = choose(names, results)
    page = build(group(runs), notices, examples)
    path = out or results / "reports" / f"{runs[0].run_id if len(runs) == 1 else 'report'}.html"
    content = render(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot write it ({error.strerror}); accepted: a file in a writable folder"
        ) from error
    for notice in page.notices:
        print(f"note: {notice}")
    print(f"{len(runs)} runs, {len(page.comparisons)} comparisons, {len(content.encode()) / 1e6:.1f} MB")
    print(path)
    return path


def count(text: str) -> int:
    """A number of examples."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: accepted: 0 or more")
    return number


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run id, the beginning of one, or a run's folder")
    parser.add_argument("--out", type=Path, help="the file to write (default: reports/ of the results folder)")
    parser.add_argument("--results", help="the results folder (default: $VIASD_RESULTS, else results/ of the clone)")
    parser.add_argument(
        "--examples", type=count, metavar="N", help="examples of each run to browse (default: as many as 4 MB hold)"
    )
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a report asks no network: not for prompts, not for tokenizers

    def job() -> None:
        write_report(options.runs, results_folder(options.results), options.out, options.examples)

    run_command(job, interrupted="interrupted; no report was written")


if __name__ == "__main__":
    main()
