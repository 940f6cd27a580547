"""Published tables: every yaml against stored texts, and what rows that are not as they should be look like."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from paper_rows import (
    GOLDEN,
    TABLES,
    arms_shown,
    lines_of,
    make_row,
    make_run,
    make_runs,
    read_table,
    texts_named,
    texts_of,
)

from experiments.config import CHECKOUT
from experiments.errors import UserError
from experiments.paper.agreement import FEW
from experiments.paper.build import build_table
from experiments.paper.drawing import find_function, write_figure
from experiments.paper.spec import Drawing, PaperRow, Table
from experiments.paper.values import Claimed, cells, claimed, read_values
from experiments.paper.write import write_table
from experiments.tables import MEAN, StoredRun


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def check_golden(name: str, text: str) -> None:
    """VIASD_GOLDEN=1 writes the stored text anew."""
    path = GOLDEN / name
    if os.environ.get("VIASD_GOLDEN"):
        path.write_text(text, encoding="utf-8", newline="")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs: look, then VIASD_GOLDEN=1"


@pytest.mark.parametrize("name", [name for name in TABLES if "figure" not in name])
def test_tables_are_as_stored(name: str) -> None:
    texts = texts_named(name)
    check_golden(f"{name}.md", texts["md"])
    if name == "viasd_2":
        check_golden("viasd_2.csv", texts["csv"])
        check_golden("viasd_2.tex", texts["tex"])


@pytest.mark.parametrize("name", TABLES)
def test_yamls_fit_their_experiments(name: str) -> None:
    """Every arm that is shown is run; every VIA-SD table has the paper's control flow, fidelity and controls."""
    published = read_table(name)
    assert published.name == name and (CITED := keys_of_bib()) and set(published.cite) <= CITED
    asked = compose("config", [f"experiment={published.experiment}"])
    run = {arm if isinstance(arm, str) else next(iter(arm)) for arm in asked.arms}
    run = (run - {"method"}) | ({asked.method.name} if "method" in run else set())
    assert set(arms_shown(published)) - {"sd"} <= run
    assert all((CHECKOUT / "conf" / "task" / f"{task}.yaml").is_file() for task in published.tasks)
    if isinstance(published, Table) and name.startswith("viasd"):
        assert {"vanilla", "sd", "via_sd", "via_sd_paper"} <= set(published.rows)
        assert "fidelity" in published.columns and {"accept_all", "coin_80", "slim_only"} <= set(published.controls)
    if name in ("viasd_3", "viasd_9"):
        assert published.not_comparable == "not comparable (encoder-decoder)"


def keys_of_bib() -> set[str]:
    return set(re.findall(r"^@\w+\{([\w-]+),", (CHECKOUT / "CITATIONS.bib").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_published_table_and_figure_is_there() -> None:
    wanted = {f"viasd_{number}" for number in range(1, 10)} | {f"viasd_figure_{number}" for number in range(4, 10)}
    assert wanted | {"adasd", "vsd"} <= set(TABLES)


def table_2() -> Table:
    published = read_table("viasd_2")
    assert isinstance(published, Table)
    return published


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    published = table_2()
    runs = make_runs(published)
    first = write_table(build_table(published, runs, "reference"), tmp_path / "a")
    again = write_table(build_table(published, make_runs(published), "reference"), tmp_path / "b")
    assert [path.suffix for path in first] == [".md", ".tex", ".csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    tex = first[1].read_text()
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule")) and r"via\_sd" in tex


def test_numbers_of_the_csv_by_hand() -> None:
    """The speed of a row over vanilla and over sd: totals of seconds per token of its rows."""
    published = table_2()
    arms = arms_shown(published)
    seconds = {
        arm: sum(make_row(arm, place, index).decode_seconds[0] for index in range(FEW))
        for place, arm in enumerate(arms)
    }
    found = {(line["row"], line["column"]): line for line in lines_of(texts_named("viasd_2")["csv"])}
    own = found["via_sd", "speed"]
    assert float(own["value"]) == pytest.approx(seconds["vanilla"] / seconds["via_sd"], rel=1e-5)
    assert float(found["via_sd", "gain"]["value"]) == pytest.approx(seconds["sd"] / seconds["via_sd"], rel=1e-5)
    assert float(own["low"]) < float(own["value"]) < float(own["high"]) and own["n_timed"] == str(FEW)
    assert found["sd", "gain"]["value"] == "" and found["vanilla", "speed"]["paper"] == ""
    speeds = [one.value for one in read_values("table2_qa_main") if (one.method, one.metric) == ("VIA-SD", "speedup")]
    assert (float(own["paper_low"]), float(own["paper_high"])) == (min(speeds), max(speeds)) and own[
        "paper_cells"
    ] == "18"


def test_error_rows_are_counted_and_leave_every_arm() -> None:
    published = table_2()
    (run,) = make_runs(published)
    failing = next(row for row in run.rows if row.arm == "via_sd")
    rows = [replace(row, error="CUDA out of memory") if row is failing else row for row in run.rows]
    text = texts_of(published, [replace(run, rows=rows)])
    assert "| 2, 1 failed |" in text["md"] and "failed examples, which leave every arm: via_sd 1." in text["md"]
    assert {line["n_timed"] for line in lines_of(text["csv"])} == {"2"}
    assert {line["failed"] for line in lines_of(text["csv"]) if line["row"] == "via_sd"} == {"1"}


def test_an_arm_that_always_failed_has_no_numbers() -> None:
    published = table_2()
    (run,) = make_runs(published)
    rows = [replace(row, error="no") if row.arm == "via_sd" else row for row in run.rows]
    line = next(one for one in texts_of(published, [replace(run, rows=rows)])["md"].splitlines() if "| via_sd |" in one)
    assert line.endswith("| 0, 3 failed |") and "| - | 2.33 (1.82 to 2.70) |" in line
    text = texts_of(published, [replace(run, rows=rows)])["md"]
    assert "qa: arms that failed on all examples, beside which the others stay: via_sd." in text
    assert "leave every arm" not in text


def test_few_prompts_agree_with_nothing() -> None:
    """Timed ones decide of speed, judged ones of rejection."""
    published = table_2()
    (run,) = make_runs(published)
    many = make_run("qa", arms_shown(published), examples=12)
    timed = replace(many, rows=[replace(row, decode_seconds=row.decode_seconds * (row.index < 9)) for row in many.rows])

    def told(run: StoredRun, column: str) -> set[str]:
        lines = lines_of(texts_of(published, [run])["csv"])
        return {line["agrees"] for line in lines if line["agrees"] and line["column"] == column}

    few = {"undecided (few prompts)"}
    assert told(run, "gain") == told(run, "drop") == told(timed, "gain") == few
    assert not few & (told(timed, "drop") | told(many, "gain"))


def test_how_ours_decodes_is_told_unless_the_paper_does_the_same() -> None:
    greedy = "Ours decodes greedily; the paper's values"
    assert greedy in texts_named("viasd_2")["md"] and greedy not in texts_named("viasd_9")["md"]


def test_a_fidelity_of_one_is_marked() -> None:
    published = table_2()
    (run,) = make_runs(published)
    text = texts_of(published, [run])["md"]
    assert "1.0000* |" in next(line for line in text.splitlines() if "| vanilla |" in line)
    assert "rule of three" in text and "0.9" in text and "[0.9" in text
    lossy = replace(run, rows=[replace(row, token_loss=[0.5, *row.token_loss[1:]]) for row in run.rows])
    assert "rule of three" not in texts_of(published, [lossy])["md"]


def test_a_missing_arm_is_named() -> None:
    published = table_2()
    arms = [arm for arm in arms_shown(published) if arm != "casc_opt"]
    text = texts_of(published, [make_run("qa", arms)])["md"]
    line = next(one for one in text.splitlines() if "| casc_opt |" in one)
    assert line.endswith("| no such arm |") and "qa: arms that were not run: casc_opt." in text


def test_mixed_devices_have_no_mean() -> None:
    published = replace(table_2(), tasks=["qa", "coding"])
    runs = [make_run("qa", arms_shown(published)), make_run("coding", arms_shown(published), device="another one")]
    text = texts_of(published, runs)
    assert MEAN not in text["md"] and "device differs (qa: a processor; coding: another one): no mean" in text["md"]
    assert {line["device"] for line in lines_of(text["csv"]) if line["task"] == "coding"} == {"another one"}
    alike = texts_of(published, make_runs(published))["md"]
    assert f"**{MEAN}**" in alike and "differs" not in alike


def test_one_example_decides_nothing() -> None:
    published = table_2()
    lines = lines_of(texts_of(published, [make_run("qa", arms_shown(published), examples=1)])["csv"])
    judged = [line for line in lines if line["agrees"] and line["column"] == "gain"]
    assert (
        judged
        and {line["agrees"] for line in judged} == {"undecided (few prompts)"}
        and {line["low"] for line in judged} == {""}
    )


def test_a_table_without_runs_says_what_comes_first() -> None:
    text = texts_of(read_table("vsd"), [])["md"]
    assert "Nothing measured: python scripts/train_vsd.py comes first." in text and "4.22" in text


def test_the_pair_is_that_of_the_runs() -> None:
    """An experiment may have a pair of its own, whatever the folder of the table is called."""
    published = read_table("viasd_2")
    run = make_run("qa", arms_shown(published), pair={"name": "trained", "models": {}})
    assert {line["pair"] for line in lines_of(texts_of(published, [run])["csv"])} == {"trained"}
    assert {line["pair"] for line in lines_of(texts_of(published, [])["csv"])} == {"reference"}


def test_dates_are_those_of_the_rows() -> None:
    published = table_2()
    (run,) = make_runs(published)
    assert "measured -, run" in texts_of(published, [run])["md"]
    for row, day in zip(run.rows, ("2026-11-23T10:00:00Z", "2026-11-21T10:00:00Z"), strict=False):
        object.__setattr__(row, "measured_at", day)
    assert "measured 2026-11-21 to 2026-11-23, run" in texts_of(published, [run])["md"]


@pytest.mark.parametrize("name", ["viasd_3", "viasd_9"])
def test_encoder_decoders_are_not_compared(name: str) -> None:
    told = {line["agrees"] for line in lines_of(texts_named(name)["csv"])}
    assert told == {"", "not comparable"}


def test_effects_of_the_paper_are_taken_cell_by_cell() -> None:
    published = table_2()
    column = published.columns["gain"]
    own, base = (
        cells(published, PaperRow(method=one), "speedup", ["qa"], "reference")
        for one in ("VIA-SD", "Speculative Decoding")
    )
    ratios = sorted(own[key] / base[key] for key in own)
    found = claimed(published, "via_sd", column, ["qa"], "reference")
    assert found == Claimed((ratios[8] + ratios[9]) / 2, ratios[0], ratios[-1], 18)
    assert claimed(published, "via_sd", column, ["qa"], "gemma2_2b_9b").cells == 3  # type: ignore[union-attr]
    assert claimed(published, "via_sd", column, ["reasoning"], "reference") is None
    assert claimed(published, "via_sd", column, ["trivia_qa"], "llama2_7b_70b").median == pytest.approx(2.45 / 1.60)  # type: ignore[union-attr]


def test_values_hold_together() -> None:
    counts = {
        "table1_tiers": 48,
        "table2_qa_main": 216,
        "table8_qa_all": 378,
        "table9_t5_all": 252,
        "adasd": 33,
        "vsd": 25,
    }
    assert {name: len(read_values(name)) for name in counts} == counts
    eight = {(v.pair, v.task, v.method, v.metric): v.value for v in read_values("table8_qa_all")}
    assert all(eight[v.pair, v.task, v.method, v.metric] == v.value for v in read_values("table2_qa_main"))
    with pytest.raises(UserError, match=r"values=table1_tier: not found; did you mean 'table1_tiers'"):
        read_values("table1_tier")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"baseline": "sdd"}, "baseline=sdd: accepted: one of its rows"),
        ({"rows": {"sd": {"label": "SD", "base": "sdd"}}}, "rows.sd.base=sdd: accepted: one of its rows, sd, "),
        ({"columns": {"x": {"metric": "speeed"}}}, "columns.x.metric: unknown metric 'speeed'"),
    ],
)
def test_mistakes_in_a_table_are_named(change: dict[str, object], told: str) -> None:
    published = table_2()
    fields = {name: getattr(published, name) for name in Table.__dataclass_fields__}
    with pytest.raises(UserError, match=re.escape(told)):
        build_table(Table(**{**fields, **change}), [], "reference")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in TABLES if "figure" in name])
def test_figures_draw_what_they_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("experiments.figures.style", reason="experiments.figures is not there")
    drawing = read_table(name)
    assert isinstance(drawing, Drawing) and callable(find_function(drawing))
    tasks = drawing.tasks if name == "viasd_figure_7" else drawing.tasks[:1]
    runs = [make_run(task, [*arms_shown(drawing), "accept_all"]) for task in tasks]
    first = write_figure(drawing, runs, tmp_path / "a", "reference")
    if name in ("viasd_figure_4", "viasd_figure_6"):  # one of each kind
        again = write_figure(drawing, runs, tmp_path / "b", "reference")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert [path.suffix for path in first] == [".svg", ".pdf", ".png", ".md", ".csv"]
    text = first[3].read_text()
    assert f"![{drawing.title}]({name}.png)" in text and "| fidelity |" in text and "| accept_all |" in text


def test_a_figure_without_runs_or_function(tmp_path: Path) -> None:
    drawing = replace(read_table("viasd_figure_4"), draw="experiments.figures.nothing.draw")
    (path,) = write_figure(drawing, [], tmp_path, "reference")
    assert "Nothing measured." in path.read_text()
    with pytest.raises(UserError, match=r"draw=experiments\.figures\.nothing\.draw: not found"):
        write_figure(drawing, make_runs(drawing), tmp_path, "reference")
