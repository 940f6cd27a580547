"""What notebooks read, a results folder or the small one that comes with them, and how they show what they draw."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from experiments.comparability import IDENTICAL
from experiments.errors import UserError, near
from experiments.store import RunFolder, read_json
from experiments.tables import StoredRun, read
from experiments.text_tables import Cells, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHIPPED = Path(__file__).with_name("data")
DPI, TONES = 110, 64  # of figures in a notebook: they are in the repository


def open_results(folder: str | Path | None = None) -> Path:
    """A results folder; None: the one that comes with the notebooks, unpacked for as long as this process lives.

    Raises UserError where there are no runs.
    """
    results = Path(_unpack().name) if folder is None else Path(folder).expanduser()
    if not any((results / "runs").glob("*/run.json")):
        raise UserError(f"results={results}: no runs there; accepted: a results folder, None for the shipped runs")
    return results


@cache
def _unpack() -> TemporaryDirectory[str]:
    """The shipped folder with its packed files as they were; removed when the process ends."""
    place: TemporaryDirectory[str] = TemporaryDirectory(prefix="viasd-notebooks-")
    for path in sorted(SHIPPED.rglob("*")):
        copy = Path(place.name) / path.relative_to(SHIPPED)
        if path.is_dir():
            copy.mkdir()
        elif path.suffix == ".gz":
            with gzip.open(path) as packed, copy.with_suffix("").open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            shutil.copyfile(path, copy)
    return place


def read_runs(results: Path, ids: Sequence[str] | None = None, pair: str | None = None) -> list[StoredRun]:
    """The runs of these ids; None: of all that fit together (one machine, code, pair, one list of arms; a run of each
    task and seed) those with the most rows. `pair`: only runs of that pair.

    Raises UserError for an unknown id or pair.
    """
    if ids is not None:
        return [read(RunFolder(results, run_id)) for run_id in ids]
    stored = {path.parent: read_json(path) or {} for path in sorted((results / "runs").glob("*/run.json"))}
    pairs = {run["identity"]["pair"]["name"] for run in stored.values()}
    if pair is not None and pair not in pairs:
        raise UserError(f"pair={pair}: no run of it in {results}{near(pair, pairs)}")
    groups: dict[str, dict[str, Path]] = {}
    for folder, run in stored.items():
        identity = run["identity"]
        if pair in (None, identity["pair"]["name"]):
            settings = [run.get("config", {}).get(name) for name in ("method", "arms")]
            key = _key([*(identity.get(name) for name in IDENTICAL), settings, list(identity["arms"])])
            own, task = groups.setdefault(key, {}), _key([identity["task"]["name"], identity["seed"]])
            own[task] = max(own.get(task, folder), folder, key=_size)
    largest = max(groups.values(), key=lambda group: sum(map(_size, group.values())))
    return [read(RunFolder(results, folder.name)) for folder in largest.values()]


def read_probe(results: Path, pair: str) -> dict[str, Any] | None:
    """The probe of a pair with the most prompts; None where there is none (`python -m experiments.probe`)."""
    found = [read_json(path) or {} for path in sorted((results / "probes").glob("*/probe.json"))]
    return max((probe for probe in found if probe.get("pair") == pair), key=lambda one: one["prompts"], default=None)


def _key(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _size(folder: Path) -> int:
    rows = folder / "rows.jsonl"
    return rows.stat().st_size if rows.exists() else 0


def show(figure: Figure) -> None:
    """Display a figure in a notebook: the same bytes for the same rows."""
    from IPython.display import Image, display
    from PIL import Image as Picture

    from experiments.figures.style import render

    picture, small = Picture.open(io.BytesIO(render(figure, "png", DPI))), io.BytesIO()
    picture.convert("RGB").quantize(TONES, dither=Picture.Dither.NONE).save(small, "png", optimize=True)
    display(Image(small.getvalue()))


def show_table(cells: Cells) -> None:
    """Display cells, header first."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(cells)))
