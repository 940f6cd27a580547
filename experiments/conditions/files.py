"""Files of /proc and /sys, which may be absent, unreadable or hold something else: then there is nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
CORES_READ = 64  # of the cores of a large machine: a file of /sys takes about 10 microseconds


def text(path: Path) -> str | None:
    """Content without the line break at its end; None where the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A whole number, or None where the file holds none."""
    content = text(path)
    try:
        return None if content is None else int(content)
    except ValueError:
        return None


def numbers(paths: Iterable[Path]) -> list[int]:
    """Those of the files that hold a number."""
    return [found for found in map(number, paths) if found is not None]


def children(folder: Path, pattern: str) -> list[Path]:
    """What matches in a folder, sorted; empty where the folder is absent."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def told(reading: Mapping[str, Any]) -> dict[str, Any]:
    """A reading without what is absent."""
    return {key: value for key, value in reading.items() if value is not None and value != {} and value != []}


def own_cores() -> list[int]:
    """The cores that this process may run on, the first `CORES_READ` of them; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0))[:CORES_READ] if hasattr(os, "sched_getaffinity") else []
