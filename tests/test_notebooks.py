"""The notebooks run on the rows that come with them, and each executed one has the cells of its script."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import CHECKOUT, make
from experiments.errors import UserError
from experiments.notebooks import execute
from experiments.notebooks.reading import SHIPPED, open_results, read_probe, read_runs
from experiments.run import main
from tests.commands import call

NAMES = [path.stem for path in execute.scripts()]
TABLE = "text/markdown"
LARGEST = 400_000  # bytes of a notebook in the repository


def script(name: str) -> Path:
    return execute.FOLDER / f"{name}.py"


def stored(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(script(name).with_suffix(".ipynb").read_text(encoding="utf-8"))
    return content


def test_the_notebooks_are_there() -> None:
    assert NAMES == ["anatomy_of_a_round", "choose_a_configuration", "compare_methods"]
    assert [path.stem for path in sorted(execute.FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs_from_the_top(name: str) -> None:
    """In a kernel of its own, as a reader runs it; a cell that fails is an error here."""
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    notebook = execute.execute(script(name))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    import nbformat

    assert printed(json.loads(nbformat.writes(notebook))) == printed(stored(name))  # what the code says now


def printed(content: dict[str, Any]) -> list[str]:
    """What each code cell of a notebook prints, and its tables."""
    cells = [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code"]
    told = [[output.get("text") or output.get("data", {}).get(TABLE, []) for output in cell] for cell in cells]
    return ["".join(line for lines in cell for line in lines) for cell in told]


def test_the_commands_of_a_choice_take_any_pair(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No weights but the models': nothing that was trained, searched or calibrated for them."""
    models = [f"pair.models.{role}={CHECKOUT / 'viasd' / 'reference' / role}" for role in ("target", "draft")]
    first = "".join(stored("choose_a_configuration")["cells"][0]["source"])
    commands = [line.split()[2:] for line in first.splitlines() if line.startswith("python -m")]
    (probed, *probe), (run, *typed) = ([*command[:-1], "pair=local", *models] for command in commands)
    assert (probed, run) == ("experiments.probe", "experiments.run") and all(one[-1] == "pair=MINE" for one in commands)
    small = ["task=qa", "task.test_size=8", "limit=2", "quality_limit=2", f"results_dir={tmp_path}"]
    code, out, err = call(capsys, main, "--plan", *typed, *small)
    assert code == 0 and out.splitlines()[2].split()[:2] == ["qa", "via_sd"], err
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        assert make(compose("probe", probe)["pair"], "pair").name == "local"


def test_a_failing_cell_is_noticed(tmp_path: Path) -> None:
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "broken.py"
    path.write_text("# %%\nprint(1)\n\n# %%\nraise ValueError('broken')\n")
    with pytest.raises(CellExecutionError, match="broken"):
        execute.execute(path)


@pytest.mark.parametrize("name", NAMES)
def test_an_executed_notebook_has_the_cells_of_its_script(name: str) -> None:
    jupytext = pytest.importorskip("jupytext")
    own = [(cell["cell_type"], "".join(cell["source"])) for cell in stored(name)["cells"]]
    assert own == execute.sources(jupytext.read(script(name), fmt="py:percent"))


@pytest.mark.parametrize("name", NAMES)
def test_an_executed_notebook_is_small_and_says_nothing_of_a_machine(name: str) -> None:
    path, content = script(name).with_suffix(".ipynb"), stored(name)
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST and str(Path.home()) not in text and "/tmp" not in text
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert content["metadata"] == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


# --- what they read -----------------------------------------------------------------------------------------------


def test_the_shipped_runs_fit_together() -> None:
    results = open_results()
    runs = read_runs(results)
    assert sorted(run.task for run in runs) == ["qa", "reasoning"] and len(runs[0].arms) == 27
    assert all(len([row for row in run.rows if row.decode_seconds]) == 12 * 27 for run in runs)
    probe = read_probe(results, "reference")
    assert probe is not None and probe["pair"] == "reference" and read_probe(results, "other") is None
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.gz")) < 1_500_000
    assert open_results() == results  # unpacked once


def test_runs_that_fit_together_are_found_in_a_folder_of_many(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(open_results(), results)
    (first, second) = sorted((results / "runs").iterdir())
    alone = results / "runs" / "other"
    shutil.copytree(first, alone)
    run = json.loads((alone / "run.json").read_text())
    run["identity"]["pair"]["name"] = "other"
    (alone / "run.json").write_text(json.dumps(run))
    assert len(read_runs(results)) == 2
    assert [run.identity["pair"]["name"] for run in read_runs(results, pair="other")] == ["other"]
    assert [run.task for run in read_runs(results, [second.name])] == [read_runs(results, [second.name])[0].task]
    shorter = results / "runs" / "shorter"  # the same task, fewer rows: the other one is read
    shutil.copytree(first, shorter)
    rows = (shorter / "rows.jsonl").read_text().splitlines(keepends=True)
    (shorter / "rows.jsonl").write_text("".join(rows[:10]))
    assert sum(len(run.rows) for run in read_runs(results)) == 2 * 32 * 27
    with pytest.raises(UserError, match=r"pair=refrence: no run of it in .*; did you mean 'reference'"):
        read_runs(results, pair="refrence")
    with pytest.raises(UserError, match="no runs there; accepted: a results folder"):
        open_results(tmp_path)


def test_packing_gives_what_was_unpacked(tmp_path: Path) -> None:
    results = open_results()
    script = Path(__file__).resolve().parents[1] / "scripts" / "notebook_runs.py"
    spec = importlib.util.spec_from_file_location("notebook_runs", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = module.pack(results, tmp_path / "data")
    shipped = {path.relative_to(SHIPPED): path.read_bytes() for path in SHIPPED.rglob("*.gz")}
    packed = {path.relative_to(tmp_path / "data"): path.read_bytes() for path in written}
    assert {path: gzip.decompress(content) for path, content in packed.items()} == {
        path: gzip.decompress(content) for path, content in shipped.items()
    }
    with pytest.raises(UserError, match="no finished runs there"):
        module.pack(tmp_path, tmp_path / "data")
