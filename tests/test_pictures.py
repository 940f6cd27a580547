"""What README and docs show: blocks are written anew from stored files, twice the same, and nothing else changes."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import call, check_mistake
from PIL import Image

from experiments.config import CHECKOUT
from experiments.pictures import main, write_pictures
from experiments.showing import kinds
from experiments.showing.blocks import Block, Skipped

MOST_PICTURES, MOST_BYTES = 6, 80_000
TABLE = """# title

**mean**

| arm | speed, ours | n |
| --- | --: | --: |
| sd | 2.0 | 8 |
| a\\|b | 1.0 | 8 |

| x |
"""
PRINTED = """```text
qa: 20 timed and 20 judged examples; run {run}
...
arm  tokens/s
---  --------
sd   1
rows: results/runs/{run}/rows.jsonl
```
"""


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No browser: its picture takes seconds, and test_report_browser.py has it."""

    def skip(block: Block) -> str:
        raise Skipped("no browser")

    monkeypatch.setitem(kinds.KINDS, "report", skip)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one stored table and a page without blocks."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "table.md").write_text(TABLE, encoding="utf-8")
    (tmp_path / "README.md").write_text("# Nothing shown\n", encoding="utf-8")
    return tmp_path


def show(root: Path, marker: str, body: str = "before\n") -> tuple[list[str], str]:
    """What was skipped, and what a block of a page of docs shows then."""
    page = root / "docs" / "page.md"
    page.write_text(f"above\n<!-- shown: {marker} -->\n{body}<!-- /shown -->\nbelow\n", encoding="utf-8")
    skipped = write_pictures(root)
    above, shown, below = re.split(r"<!-- /?shown.*?-->\n", page.read_text(encoding="utf-8"))
    assert (above, below) == ("above\n", "below\n")
    return skipped, shown


@pytest.mark.usefixtures("unseen")
def test_pages_are_as_they_are_written_anew(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "README.md", tmp_path)
    shutil.copytree(CHECKOUT / "docs", tmp_path / "docs")
    for name in ("results", "experiments"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    skipped = write_pictures(tmp_path)
    for page in (Path("README.md"), *(path.relative_to(CHECKOUT) for path in (CHECKOUT / "docs").glob("*.md"))):
        assert (tmp_path / page).read_text("utf-8") == (CHECKOUT / page).read_text("utf-8"), f"make pictures: {page}"
    before = contents(tmp_path)
    assert write_pictures(tmp_path) == skipped and contents(tmp_path) == before


def contents(root: Path) -> dict[str, bytes]:
    files = [root / "README.md", *(path for path in (root / "docs").rglob("*") if path.is_file())]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_pictures_are_few_small_and_shown() -> None:
    stored = {path.name: path.stat().st_size for path in (CHECKOUT / "docs" / "pictures").iterdir()}
    assert 0 < len(stored) <= MOST_PICTURES and max(stored.values()) <= MOST_BYTES
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    shown = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"^!\[.*?\]\((.*?)\)", page.read_text(encoding="utf-8"), re.M)
    }
    assert shown == {CHECKOUT / "docs" / "pictures" / name for name in stored}


def test_a_table_is_shown_whole_or_in_part(root: Path) -> None:
    first = "".join(f"{line}\n" for line in TABLE.splitlines()[4:8])
    assert show(root, "table stored/table.md") == ([], first)
    assert show(root, "table stored/table.md without=sd") == ([], first.replace("| sd | 2.0 | 8 |\n", ""))
    _, told = show(root, 'table stored/table.md "columns=speed, ours"')
    assert told.startswith("| arm | speed, ours |\n| --- | --: |\n| sd | 2.0 |\n| a\\|b | 1.0 |\n\n")
    assert told.endswith("[table.md](../stored/table.md).\n")


def test_what_is_not_stored_stays(root: Path) -> None:
    for marker in (
        "table stored/none.md",
        "picture stored/none.png",
        "make_run stored/none.json",
        "report stored/none",
    ):
        skipped, shown = show(root, marker)
        assert shown == "before\n" and skipped == [f"docs/page.md: {marker}: left as it is ({kept(marker)})"]


def kept(marker: str) -> str:
    return "it is not there" if marker.startswith("report") else "it is not stored"


def test_a_picture_is_made_small_and_keeps_its_colors(root: Path) -> None:
    drawn = Image.effect_noise((2000, 1000), 80).convert("RGBA")
    drawn.save(root / "stored" / "noise.png")
    skipped, shown = show(root, "picture stored/noise.png")
    assert shown == "before\n" and "more than 80000" in skipped[0] and not (root / "docs" / "pictures").exists()
    plain = Image.new("RGBA", (3000, 600), (255, 255, 255, 0))
    plain.paste((200, 30, 30, 255), (100, 100, 160, 160))
    plain.save(root / "stored" / "dot.png")
    for _ in range(2):
        assert show(root, 'picture stored/dot.png alt="a dot"') == ([], "![a dot](pictures/dot.png)\n")
        content = (root / "docs" / "pictures" / "dot.png").read_bytes()
        with Image.open(io.BytesIO(content)) as small:
            assert small.size == (kinds.WIDTHS[0], 280) and small.convert("RGB").getpixel((60, 60)) == (200, 30, 30)
            assert small.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_looks_the_same_is_kept() -> None:
    def png(gray: int, size: int = 40) -> bytes:
        content, image = io.BytesIO(), Image.new("RGB", (size, size), "white")
        image.putpixel((3, 4), (gray, gray, gray))
        image.save(content, "png")
        return content.getvalue()

    assert kinds.look_alike(png(100), png(100 + kinds.UNSEEN))
    assert not kinds.look_alike(png(100), png(101 + kinds.UNSEEN)) and not kinds.look_alike(png(100), png(100, 41))


def test_the_output_of_make_run_takes_the_stored_numbers(root: Path) -> None:
    def number(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    arms: dict[str, Any] = {"sd": {"speedup": number(2.5), "fidelity": 1.0, "n_timed": 4, "n_quality": 9}}
    (root / "stored" / "run.json").write_text(json.dumps({"run_id": "b" * 16, "arms": arms}), encoding="utf-8")
    before = PRINTED.format(run="a" * 16)
    skipped, shown = show(root, "make_run stored/run.json", before)
    assert skipped == [] and "a" * 16 not in shown and shown.count("b" * 16) == 2 and "4 timed and 9 judged" in shown
    assert "2.50 [2.40, 2.60]" in shown and shown.index("arm ") < shown.index("sd ") < shown.index("rows: ")
    assert show(root, "make_run stored/run.json", shown) == ([], shown)


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("", ["accepted: KIND SOURCE"]),
        ('table "stored', ["No closing quotation", "accepted: KIND SOURCE"]),
        ("tabel stored/table.md", ["tabel: not a kind", "did you mean 'table'"]),
        ("table", ["accepted: table SOURCE KEY=VALUE"]),
        ("table stored/table.md without", ["accepted: table SOURCE KEY=VALUE"]),
        ("table stored/table.md without=sdd", ["without=sdd: not there", "did you mean 'sd'"]),
        ("table stored/table.md columns=speed", ["columns=speed: not there"]),
        ("table README.md", ["no table in it"]),
    ],
)
def test_mistakes_are_one_line(root: Path, capsys: pytest.CaptureFixture[str], marker: str, told: list[str]) -> None:
    page = root / "docs" / "page.md"
    page.write_text(f"<!-- shown: {marker} -->\nold\n<!-- /shown -->\n", encoding="utf-8")
    code, _, err = call(capsys, main, "--root", str(root))
    check_mistake(code, err, told)
    assert "\nold\n" in page.read_text(encoding="utf-8")


def test_a_marker_without_its_other_is_a_mistake(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("<!-- shown: table stored/table.md -->\n", "<!-- /shown -->\n"):
        (root / "docs" / "page.md").write_text(text, encoding="utf-8")
        code, _, err = call(capsys, main, "--root", str(root))
        check_mistake(code, err, ["page.md", "a marker without its other"])
    (root / "docs" / "page.md").write_text("of `<!-- shown: KIND -->` one may speak\n", encoding="utf-8")
    assert write_pictures(root) == []
