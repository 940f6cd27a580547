"""A published table or figure, ours beside the paper's: `python -m experiments.publish table=viasd_2 [key=value ...]`.

`-m 'table=glob(viasd_*)'` makes several, which share their runs. Missing runs are measured, stored ones are read;
`--plan` says which are which, and measures nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, results_folder, run_command
from experiments.errors import NotTrained, RunFailed, UserError, caused_by, config_folders, near, one_line, tell

if TYPE_CHECKING:
    from experiments.paper.jobs import Asked, Request
    from experiments.paper.spec import Published
    from experiments.preview import Preview
    from experiments.tables import StoredRun

Made = TypeVar("Made")
PASSED_ON = r"[+~]*(pair|decode|engine)\b"  # groups of which every job is told what was typed
GREEDY = "greedy"  # the yaml of conf/decode by which tables are made
PREVIEWS: dict[tuple[str, ...], Preview] = {}  # by the overrides of a job: tables share runs
FAILED: list[str] = []  # of the jobs of this process, for its end
LEFT_OUT: list[str] = []  # what was told of arms


def publish(config: DictConfig) -> list[Path]:
    """One table or figure, from configuration to its files."""
    published, asked = _build(config)
    runs = _obtain(published, asked)
    folder = results_folder(asked.results_dir) / "published" / folder_name(HydraConfig.get().runtime.choices)
    made = folder / f"{published.name}.md"
    if runs is None and made.is_file():  # numbers are not replaced by blanks
        print(f"{published.title}: {made} stays as it is", flush=True)
        return [made]
    paths = _write(published, runs or [], folder, config)
    print(f"{published.title}: {', '.join(str(path) for path in paths)}", flush=True)
    return paths


def folder_name(choices: Mapping[str, str]) -> str:
    """The pair, and how it decodes where that is not as usual: neither overwrites the other."""
    return choices["pair"] if choices["decode"] == GREEDY else f"{choices['pair']}_{choices['decode']}"


def _build(config: DictConfig) -> tuple[Published, Asked]:
    from experiments.config import make
    from experiments.paper.build import check_columns
    from experiments.paper.drawing import find_function
    from experiments.paper.jobs import Asked
    from experiments.paper.spec import Drawing, Published, Table

    if config.get("table") is None:
        raise UserError(f"table: no value{near('', table_names())}")
    published = make(config.table, "table")
    if not isinstance(published, Published):
        raise UserError(f"table._target_={config.table.get('_target_')}: accepted: Table, SearchCost, Drawing")
    if isinstance(published, Table):  # before anything is measured
        check_columns(published)
    elif isinstance(published, Drawing):
        find_function(published)
    return published, Asked(**{key: config[key] for key in Asked.__dataclass_fields__})


def table_names() -> list[str]:
    """The yamls of conf/table, and of table/ in what --config-dir adds, without the parts that they share."""
    return [path.stem for folder in config_folders() for path in (folder / "table").glob("*.yaml")]


def _requests(published: Published, asked: Asked) -> list[Request] | None:
    """The jobs of a table; None, and a line that says why, where something has to be trained before.

    A line tells of arms that are left out for the pair. Mistakes are raised before anything is measured.
    """
    from experiments.paper.jobs import expand

    requests = expand(published, asked, [one for one in HydraConfig.get().overrides.task if re.match(PASSED_ON, one)])
    for request in requests:
        if (published.needs is not None or request.another_pair) and (reason := lacking(published, request)):
            print(f"{published.name}: not measured: {reason}")
            return None
    for text in dict.fromkeys(request.left_out() for request in requests):
        if text and text not in LEFT_OUT:
            print(text)
            LEFT_OUT.append(text)
    return requests


def lacking(published: Published, request: Request) -> str | None:
    """What has to be trained before a job can be built; None where it can. Other mistakes are raised."""
    from experiments.config import build

    try:
        build(request.compose())
    except Exception as error:
        if published.needs is not None and caused_by(error, NotTrained):
            return f"{one_line(error)}; {published.needs} comes first"
        raise
    return None


def _obtain(published: Published, asked: Asked) -> list[StoredRun] | None:
    """The runs of a table; None where something has to be trained before."""
    from experiments.paper.jobs import obtain
    from experiments.paper.spec import Drawing

    requests, runs = _requests(published, asked), []
    if requests is None:
        return None
    for request in requests:
        run, failed = obtain(request)
        runs.append(run if isinstance(published, Drawing) else request.with_twins(run))
        FAILED.extend([failed] if failed else [])
    return runs


def _write(published: Published, runs: list[StoredRun], folder: Path, config: DictConfig) -> list[Path]:
    from experiments.paper.spec import Drawing, SearchCost, Table

    pair = HydraConfig.get().runtime.choices["pair"]
    if isinstance(published, Table):
        from experiments.paper.build import build_table
        from experiments.paper.write import write_table

        return write_table(build_table(published, runs, pair, [run.task for run in runs] or published.tasks), folder)
    if isinstance(published, Drawing):
        from experiments.paper.drawing import write_figure

        return write_figure(published, runs, folder, pair)
    if isinstance(published, SearchCost):
        from experiments.config import make
        from experiments.paper.search_cost import write_search_cost

        return write_search_cost(published, runs, make(config.pair, "pair"), folder, pair)
    raise UserError(f"table={published.name}: {type(published).__name__}: accepted: Table, SearchCost, Drawing")


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="publish")
def _main(config: DictConfig) -> str | None:
    made = _one_of_several(publish, config)
    return str(made[0]) if made else None


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="publish")
def _preview(config: DictConfig) -> None:
    _one_of_several(_look, config)


def _look(config: DictConfig) -> None:
    from experiments.paper.jobs import look

    for request in _requests(*_build(config)) or []:
        if request.overrides not in PREVIEWS:
            PREVIEWS[request.overrides] = look(request)


def _one_of_several(step: Callable[[DictConfig], Made], config: DictConfig) -> Made | None:
    """Of several tables, one that fails says so at once; the others are made, then the first error is raised.

    One that the pair cannot have is left out with a line, and is no error: None.
    """
    from experiments.paper.fitting import Unfit

    name, several = (config.get("table") or {}).get("name"), HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        return step(config)
    except Unfit as error:
        if not several:
            raise
        print(f"{name}: not made: {one_line(error)}")
        return None
    except Exception as error:
        if several:
            tell(error, f"{name}: {one_line(error)}")
        raise


def main() -> None:
    """Entry point: `experiments.entry.run_command` says how it exits. 1 where examples failed; files are written."""
    for told in (FAILED, LEFT_OUT, PREVIEWS):
        told.clear()
    planning = "--plan" in sys.argv[1:]
    if planning:
        sys.argv.remove("--plan")  # Hydra knows no flags of ours
    run_command(_plan if planning else _make)


def _plan() -> None:
    from experiments.preview import show

    try:
        _preview()
    finally:
        if PREVIEWS:
            print(show(list(PREVIEWS.values())))


def _make() -> None:
    from experiments.paper.rendering import RENDERER

    if {"-m", "--multirun"} & set(sys.argv[1:]):
        RENDERER.beside()
    try:
        _main()
    finally:
        RENDERER.close()
    if FAILED:
        raise RunFailed("; ".join(FAILED))


if __name__ == "__main__":
    main()
