"""The lists say what the sources say, every yaml says what it is, and nothing waits for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import call

from experiments import arms as arms_module
from experiments.errors import CONF
from experiments.list import GROUPS, aligned, all_groups, arms, first_comment, main, metrics, yamls
from experiments.metrics import METRICS


def run(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *typed)


def test_metrics_are_those_of_the_registry() -> None:
    assert metrics() == [(metric.name, metric.unit, metric.description) for metric in METRICS]


def test_arms_are_the_controls_and_their_docstrings() -> None:
    told = dict(arms())
    assert set(told) == set(arms_module.CONTROLS)
    for name, line in told.items():
        assert line and getattr(arms_module, name).__doc__.startswith(line)


@pytest.mark.parametrize("folder", ["method", "pair", "task", "decode", "experiment"])
def test_every_yaml_says_what_it_is(folder: str) -> None:
    found = yamls(CONF / folder)
    assert [name for name, _ in found] == sorted(path.stem for path in (CONF / folder).glob("*.yaml"))
    for name, line in found:
        assert line, f"conf/{folder}/{name}.yaml should begin with a comment that says what it is"


def test_first_comment() -> None:
    assert first_comment("# @package _global_\n# What it is.\n# More.\nkey: 1\n") == "What it is."
    assert first_comment("key: 1\n# Of the next key.\n") == ""


def test_all_groups_fit_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    text = all_groups(80)
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[0] for line in text.splitlines() if line[:1].strip()][: len(GROUPS)] == list(GROUPS)
    assert "via_sd_paper" in text and "rejection_rate" in text
    code, out, _ = run(capsys)
    assert code == 0 and out.startswith("methods ")


def test_tables_of_the_results_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIASD_RESULTS", str(tmp_path))
    assert run(capsys, "tables") == (0, "none\n", "")
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("one.md", "one.csv", "other.md"):
        (folder / name).touch()
    _, out, _ = run(capsys, "tables")
    assert out.splitlines() == [f"one    {folder / 'one.csv'}, {folder / 'one.md'}", f"other  {folder / 'other.md'}"]


def test_columns_are_aligned() -> None:
    assert aligned([("a", "share", "x"), ("long", "s", "y")]) == "a     share  x\nlong  s      y"


def test_unknown_group_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "metric")
    (line,) = err.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and "'metrics'" in line and "tasks" in line


def test_a_list_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from experiments.list import GROUPS, one_group; told = [one_group(name) for name in GROUPS];"
        "print(*[name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], cwd=CONF.parent, text=True).strip() == ""
