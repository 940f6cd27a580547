"""The claims ledger: `python -m experiments.claims` writes CLAIMS.md into the results, from the tables stored there."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.entry import results_folder, run_command
from experiments.errors import UserError


def write_claims(results: Path, pair: str) -> Path:
    """Write CLAIMS.md. Raises UserError where that is not allowed, or where a stored file is no table of numbers."""
    from experiments.paper.claim import read_claims
    from experiments.paper.ledger import ledger

    path = results / "CLAIMS.md"
    text = ledger(read_claims(), results, pair)
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"results={results}: cannot write there ({error.strerror}); accepted: a folder") from error
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", help="the results folder (default: $VIASD_RESULTS, else results/ of the clone)")
    parser.add_argument("--pair", default="reference", help="the pair whose published tables are read (reference)")
    options = parser.parse_args()
    run_command(lambda: print(write_claims(results_folder(options.results), options.pair)), interrupted="interrupted")


if __name__ == "__main__":
    main()
