"""Records of a data set in a file: JSON lines, JSON or Parquet. Nothing else is read, and nothing is run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from experiments.errors import UserError

Record = dict[str, Any]
KINDS = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def kind_of(path: Path) -> str | None:
    """Which of the formats a file's name promises."""
    return next((kind for kind in KINDS if path.name.endswith(kind)), None)


def find_files(folder: Path, stem: str) -> list[Path]:
    """The files of a split: `STEM.KIND`, else the numbered Parquet files that hubs cut a split into, else none."""
    whole = [path for kind in KINDS if (path := folder / f"{stem}{kind}").is_file()]
    return whole[:1] or sorted(folder.glob(f"{stem}-*-of-*.parquet"))


def read_file(path: Path, where: str, limit: int | None = None) -> list[Record]:
    """The first `limit` records of a file, or all; `where` is the key that named it, for errors.

    Raises:
        UserError: no such file, another format, or a line that is no JSON object.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{where}={path}: not a format that is read; accepted: files ending in {', '.join(KINDS)}")
    try:
        return list(islice(_records(path, kind, where), limit))
    except (OSError, EOFError) as error:
        raise UserError(f"{where}={path}: cannot be read ({_told(error)}); accepted: a readable file") from error


def _records(path: Path, kind: str, where: str) -> Iterator[Record]:
    if kind == ".parquet":
        yield from _parquet(path, where)
    elif kind == ".json":
        yield from _array(path, where)
    else:
        opened = gzip.open if kind == ".jsonl.gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _record(_parsed(line, f"{where}={path}: line {number}"), f"{where}={path}: line {number}")


def _array(path: Path, where: str) -> Iterator[Record]:
    found = _parsed(path.read_text(encoding="utf-8"), f"{where}={path}")
    if not isinstance(found, list):
        raise UserError(f"{where}={path}: holds no list; accepted: a JSON list of objects, or .jsonl with one a line")
    for number, one in enumerate(found, 1):
        yield _record(one, f"{where}={path}: entry {number}")


def _parquet(path: Path, where: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{where}={path}: not a Parquet file ({_told(error)})") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})") from error


def _record(found: Any, where: str) -> Record:
    if not isinstance(found, dict):
        raise UserError(f"{where} is no JSON object; accepted: objects with named fields")
    return found


def _told(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
