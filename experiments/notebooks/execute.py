"""Execute the percent scripts of this folder and write the notebooks beside them.

`python -m experiments.notebooks.execute [NAME ...]`, with the packages of the extra `dev`. A notebook says nothing of
when or where it was executed, so that it changes with its script and its rows only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CHECKOUT = FOLDER.parents[1]  # where a notebook's paths begin, as a command's do
MARK = "# %%"
TIMEOUT = 120  # seconds for one cell


def scripts() -> list[Path]:
    """The percent scripts of this folder."""
    return [path for path in sorted(FOLDER.glob("*.py")) if MARK in path.read_text(encoding="utf-8").splitlines()]


def execute(path: Path) -> Any:
    """The notebook of a percent script, executed from the top. Raises CellExecutionError for a cell that fails."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(path, fmt="py:percent")
    quiet = ["--log-level=ERROR"]
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", extra_arguments=quiet)
    client.execute(cwd=str(CHECKOUT))
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"  # random else
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    return notebook


def _is_noise(output: Any) -> bool:
    """Progress bars and warnings of libraries."""
    return bool(output.output_type == "stream" and output.name == "stderr")


def sources(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of every cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def write(paths: list[Path]) -> Iterator[Path]:
    """Execute the scripts and write their notebooks."""
    import nbformat

    for path in paths:
        target = path.with_suffix(".ipynb")
        nbformat.write(execute(path), target)
        yield target


def main() -> None:
    """Entry point."""
    known = {path.stem: path for path in scripts()}
    parser = argparse.ArgumentParser(
        prog="python -m experiments.notebooks.execute", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; none: all")
    asked = parser.parse_args().names
    for name in asked:
        if name not in known:
            parser.error(f"{name}: accepted: {', '.join(known)}")
    for path in write([known[name] for name in asked or known]):
        print(path)


if __name__ == "__main__":
    main()
