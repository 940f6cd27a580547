"""What README and docs show of stored results, written anew: `python -m experiments.pictures`.

Blocks are marked in the pages (docs/tables.md). What is not stored is skipped with a line; twice gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.entry import run_command
from experiments.errors import CONF


def write_pictures(root: Path) -> list[str]:
    """Rewrite the marked blocks of a checkout's pages, and their pictures; return what was skipped.

    Raises UserError for a marker that cannot be read, and for one that names what its source has not.
    """
    from experiments.showing.blocks import rewrite
    from experiments.showing.kinds import KINDS

    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [line for page in pages for line in rewrite(page, root, KINDS)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--root", type=Path, default=CONF.parent, help="the checkout whose pages are written (this one)"
    )
    options = parser.parse_args()

    def job() -> None:
        for line in write_pictures(options.root.resolve()):
            print(line)

    run_command(job, interrupted="interrupted")


if __name__ == "__main__":
    main()
