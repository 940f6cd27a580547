"""Figures that another process writes while several tables are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.errors import UserError
from experiments.paper.rendering import Renderer


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def drawn() -> Figure:
    figure = Figure(figsize=(3.0, 2.0))
    figure.subplots().plot([1, 2, 3], [2, 1, 3])
    return figure


def test_another_process_writes_the_same_bytes(renderer: Renderer, tmp_path: Path) -> None:
    here = renderer.save(drawn(), tmp_path / "here", "one")
    renderer.beside()
    there = renderer.save(drawn(), tmp_path / "there", "one")
    renderer.finish()
    assert [path.name for path in there] == ["one.svg", "one.pdf", "one.png"]
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_what_cannot_be_written_is_told_at_the_end(renderer: Renderer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    renderer.beside()
    renderer.save(drawn(), tmp_path / "file", "one")
    with pytest.raises(UserError, match="accepted: a writable folder"):
        renderer.finish()
    renderer.finish()  # nothing is told twice
