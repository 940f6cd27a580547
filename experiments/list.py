"""What there is: `python -m experiments.list [GROUP]` names methods, tasks, metrics, arms ... and describes them.

It reads files only: a description is the first comment of a yaml, or stands in the sources of the metrics and the arms,
which are parsed instead of imported because their modules wait for torch.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.entry import results_folder, run_command
from experiments.errors import UserError, config_folders, near

Entry = tuple[str, ...]  # a name, and what is said of it in one or more columns

SOURCES = Path(__file__).resolve().parent
FALLBACK = 120  # columns where there is no terminal


def yamls(group: str) -> list[Entry]:
    """The yamls of a group in conf/ and in what --config-dir adds: name, first comment."""
    paths = [path for folder in config_folders() for path in sorted((folder / group).glob("*.yaml"))]
    return [(path.stem, first_comment(path.read_text(encoding="utf-8"))) for path in paths]


def first_comment(text: str) -> str:
    """The comment that a yaml begins with, its first line; empty where there is none."""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):  # a directive to Hydra
            return line.removeprefix("#").strip()
    return ""


def tables(results: Path) -> list[Entry]:
    """The tables of a results folder: name, files."""
    files: dict[str, list[str]] = {}
    for path in sorted((results / "tables").glob("*.*")):
        files.setdefault(path.stem, []).append(str(path))
    return [(name, ", ".join(paths)) for name, paths in files.items()]


def metrics() -> list[Entry]:
    """The metrics of the registry, in its order: name, unit, description."""
    calls = [node for node in ast.walk(_parsed("metrics.py")) if isinstance(node, ast.Call)]
    made = [call.args[:5] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Metric"]
    told = [[ast.literal_eval(argument) for argument in arguments] for arguments in made]
    return [(name, unit, description) for name, unit, _better, _digits, description in told]


def arms() -> list[Entry]:
    """Baselines and controls, the public functions that make a method: name, first line of the docstring."""
    functions = [node for node in _parsed("arms.py").body if isinstance(node, ast.FunctionDef)]
    made = [one for one in functions if isinstance(one.returns, ast.Name) and one.returns.id == "Method"]
    return [(one.name, (ast.get_docstring(one) or "").partition("\n")[0]) for one in made if one.name[0] != "_"]


def _parsed(name: str) -> ast.Module:
    return ast.parse((SOURCES / name).read_text(encoding="utf-8"))


GROUPS: dict[str, Callable[[], list[Entry]]] = {
    "methods": lambda: yamls("method"),
    "pairs": lambda: yamls("pair"),
    "tasks": lambda: yamls("task"),
    "decodes": lambda: yamls("decode"),
    "experiments": lambda: yamls("experiment"),
    "published": lambda: yamls("table"),
    "tables": lambda: tables(results_folder(None)),
    "metrics": metrics,
    "arms": arms,
}


def one_group(name: str) -> str:
    """A group, one line for each name. Raises UserError for a group nobody knows."""
    if name not in GROUPS:
        raise UserError(f"group {name!r}: not known{near(name, GROUPS)}")
    return aligned(GROUPS[name]()) or "none"


def all_groups(width: int) -> str:
    """Every group with its names alone, in lines of `width` columns."""
    margin = max(map(len, GROUPS)) + 2
    told = []
    for group, entries in GROUPS.items():
        names = ", ".join(entry[0] for entry in entries()) or "none"
        told += textwrap.wrap(group.ljust(margin) + names, width, subsequent_indent=" " * margin)
    return "\n".join([*told, "", "python -m experiments.list GROUP says what each of a group is."])


def aligned(entries: Sequence[Entry]) -> str:
    """Entries in columns."""
    if not entries:
        return ""
    widths = [max(map(len, column)) for column in zip(*entries, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(entry, widths, strict=True)) for entry in entries)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.list", description="Names and what each of them is.")
    parser.add_argument("group", nargs="?", help=f"{', '.join(GROUPS)}; without it: the names of all groups")
    parser.add_argument("--config-dir", type=Path, help="a folder of own yamls, as for the other commands")
    options = parser.parse_args()
    group = options.group
    width = shutil.get_terminal_size((FALLBACK, 24)).columns
    run_command(lambda: print(all_groups(width) if group is None else one_group(group)), interrupted="interrupted")


if __name__ == "__main__":
    main()
