"""The HTML report: its numbers are the CSV's, nothing that a model wrote becomes HTML, comparisons stay apart."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import call, check_mistake
from report_runs import ATTACK, HOSTILE, OTHER, REAL, SHOWN, Tables, csv_numbers, store, write_runs

from experiments.pages.browser import collect
from experiments.pages.cells import headline
from experiments.pages.page import build
from experiments.pages.render import PARTS, SCRIPTS, hashed
from experiments.pages.runs import choose, group
from experiments.pages.signs import visible
from experiments.records import Row
from experiments.report import main
from experiments.tables import MEAN, summaries


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_runs(folder)
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", "--results", str(results), "--out", str(results / "all.html")])
        patch.setenv("HF_HUB_OFFLINE", "1")
        main()
    return (results / "all.html").read_text(encoding="utf-8")


def answers(page: str) -> Any:
    (content,) = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', page, re.S)
    return json.loads(content)


def test_every_number_is_the_csv_s(results: Path, page: str) -> None:
    expected, checked = csv_numbers(results, REAL, HOSTILE), 0
    tables = Tables(page).tables
    for place in {task for task, _, _ in expected}:
        head, *rows = tables[f"Every metric, {place}"][: len(tables[f"Every metric, {place}"]) // twice(place)]
        arms = [text for text, _ in head[1:]]
        for (metric, _), *cells in rows:
            for arm, (_, attributes) in zip(arms, cells, strict=True):
                shown = re.findall(r"[^\s\[\],]+", attributes.get("title") or "")
                assert shown == expected.get((place, arm, metric), []), (place, arm, metric)
                checked += len(shown)
    assert checked == sum(map(len, expected.values())) > 1000


def twice(place: str) -> int:
    """The other comparison has this task's name, too, and its table follows."""
    return 2 if place == "summarization" else 1


def test_headline_shows_the_text_tables_cells(results: Path, page: str) -> None:
    from experiments.text_tables import headline_cells

    runs = [one.run for one in choose([REAL, HOSTILE], results)[0]]
    told, arms = summaries(runs)
    shown = Tables(page).tables[f"Headline numbers, {MEAN}"]
    for row, expected in zip(shown, headline_cells(told[MEAN], arms), strict=True):
        texts = [" ".join(text.split()) for text, _ in row]
        for text, cell in zip(texts, expected, strict=True):
            assert text.startswith(cell), (text, cell)
    table = headline(told[MEAN], arms)
    for (_, *cells), arm in zip(shown[1:], arms, strict=True):
        values = [attributes.get("data-value") for _, attributes in cells]
        assert values == [None if cell.value is None else str(cell.value) for cell in table.rows[arm]]


def test_nothing_that_was_written_becomes_html(page: str) -> None:
    tags = Tables(page).tags
    assert [tag for tag, _ in tags].count("img") == 0 and ATTACK not in page
    scripts = [attributes for tag, attributes in tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "answers"}, {}]
    assert not [sign for sign in page if sign in "\x1b\u202e\u200f"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    (policy,) = [attributes["content"] for tag, attributes in tags if attributes.get("http-equiv")]
    own = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert policy and f"script-src '{hashed(own)}'" in policy and f"<script>{own}</script>" in page
    told = answers(page)
    texts = ["".join(pieces) for pieces in told["texts"]]
    assert f"{SHOWN} vanilla" in texts and len(set(texts)) == len(texts)
    rows = told["comparisons"]["c1"]["tasks"][1]["examples"][2]["rows"]
    assert [row["error"] for row in rows if "error" in row] == [f"ValueError: {SHOWN}"]


def test_page_needs_nothing_beside_it(page: str) -> None:
    tags = Tables(page).tags
    links = [attributes.get(name) or "" for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = {attributes.get("aria-labelledby") for _, attributes in tags} - {None}
    assert named and named <= set(ids)


def test_runs_that_do_not_mix_are_apart(results: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = group(choose([], results)[0])
    assert [[one.run_id for one in own] for own in found] == [[REAL, HOSTILE], [OTHER]]
    assert "these runs are not compared with those of comparison 1: they differ in device, sampling" in page
    again = choose([REAL, OTHER, REAL], results)[0]
    assert [one.run_id for one in again] == [REAL, OTHER]
    store(results / "twice", "one", lambda run: None, lambda row: None)
    store(results / "twice", "two", lambda run: None, lambda row: None)
    assert [len(own) for own in group(choose([], results / "twice")[0])] == [1, 1]


def test_a_run_counts_once_in_whatever_way_it_is_named(results: Path, tmp_path: Path) -> None:
    folder = results / "runs" / REAL
    found, notices = choose([REAL, str(folder), "a1", f"{folder}/", REAL], results)
    assert [one.run_id for one in found] == [REAL] and notices == []
    copy = tmp_path / "runs" / REAL
    shutil.copytree(folder, copy)
    found, notices = choose([REAL, str(copy)], results)
    assert [one.folder for one in found] == [folder.resolve()]
    assert notices == [f"left out: {copy.resolve()} is run {REAL} again, which is read from {folder.resolve()}"]


def test_a_run_is_of_the_day_of_its_last_row(tmp_path: Path) -> None:
    days = iter(range(1, 100))

    def date(row: dict[str, Any]) -> None:
        whole = dataclasses.asdict(Row(row["example_id"], row["arm"], row["index"])) | row  # every column of schema 2
        row.update(whole, measured_at=f"2001-02-{min(next(days), 9):02d}T03:04:05+00:00")

    store(tmp_path, "dated", lambda run: None, date)
    store(tmp_path, "undated", lambda run: None, lambda row: None)
    os.utime(tmp_path / "runs" / "undated" / "rows.jsonl", (0, 0))
    assert [one.written for one in choose(["dated", "undated"], tmp_path)[0]] == ["2001-02-09", "1970-01-01"]


def test_seeds_of_a_task_are_told_to_be_that(tmp_path: Path) -> None:
    for seed in (0, 1):
        store(tmp_path, f"seed{seed}", lambda run, seed=seed: run["identity"].update(seed=seed), lambda row: None)  # type: ignore[misc]
    page = build(group(choose([], tmp_path)[0]), [], 0)
    assert len(page.comparisons) == 2 and not [one for one in page.comparisons[0].notices if "seed" in one]
    told = page.comparisons[1].notices[0]
    assert told.startswith("these runs are the same as those of comparison 1 but for the seed (1 instead of 0)")

    def other(run: dict[str, Any]) -> None:
        run["identity"].update(seed=2, device="another")

    store(tmp_path, "seed2", other, lambda row: None)
    page = build(group(choose([], tmp_path)[0]), [], 0)
    assert page.comparisons[2].notices[0].endswith("comparison 1: they differ in device, seed")


def test_answers_are_told_token_by_token(results: Path, page: str) -> None:
    told = answers(page)
    tasks = told["comparisons"]["c1"]["tasks"]
    rows = {(row.example_id, row.arm): row for row in choose([REAL], results)[0][0].run.rows}
    arms = told["comparisons"]["c1"]["arms"]
    colored = 0
    for example in tasks[0]["examples"]:
        assert example["prompt"] and example["reference"]
        for shown in example["rows"]:
            row = rows[example["id"], arms[shown["arm"]]]
            pieces = told["texts"][shown["text"]]
            assert "".join(pieces) == visible(row.text) and len(pieces) == row.new_tokens == shown["tokens"]
            if row.trace and "sources" in shown:
                counts = {name: shown["sources"].count(name[0]) for name in row.sources}
                assert counts == row.sources
                colored += 1
    assert colored >= len(arms) - 1
    assert "prompt" not in tasks[1]["examples"][0] and "sources" not in tasks[1]["examples"][0]["rows"][0]
    assert "task hostile: prompts are not shown (ValueError: run.json has no task)" in page
    greedy = told["comparisons"]["c2"]["tasks"][0]["examples"][0]["rows"]
    assert {arms[row["arm"]]: row["differs"] for row in greedy}["via_sd"] == [9, 19, 29]


def test_a_foreign_class_of_a_stored_run_is_not_made(tmp_path: Path) -> None:
    def foreign(run: dict[str, Any]) -> None:
        run["config"] = {"task": {"_target_": "os.system"}, "pair": {"_target_": "viasd.models.Pair", "name": "x"}}

    store(tmp_path, "foreign", foreign, lambda row: None)
    _, notices = collect(group(choose([], tmp_path)[0]), None)
    assert any("os.system is not of this project" in notice for notice in notices)


def test_the_browser_of_examples_is_bounded(results: Path) -> None:
    groups = group(choose([REAL, HOSTILE], results)[0])
    for examples, room, expected in ((2, 10**9, 2), (None, 0, 1), (None, 10**9, 3), (0, 0, 0)):
        content, notices = collect(groups, examples, room)
        taken = [len(task["examples"]) for task in content["comparisons"]["c1"]["tasks"]]
        assert taken == [expected, expected]
        said = [notice for notice in notices if "the browser holds" in notice]
        assert len(said) == (0 if expected == 3 else 2)
        used = {row["text"] for task in content["comparisons"]["c1"]["tasks"] for one in task["examples"]
                for row in one["rows"] if "text" in row}  # fmt: skip
        assert used == set(range(len(content["texts"])))


def test_mistakes_are_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report(*typed: str) -> tuple[int, str, str]:
        return call(capsys, main, *typed)

    code, _, err = report("a", "--results", str(results))
    check_mistake(code, err, ["run a", "2 ids begin so", REAL, HOSTILE])
    code, _, err = report("a1reel", "--results", str(results))
    check_mistake(code, err, ["a1reel", f"did you mean '{REAL}'"])
    code, _, err = report("--results", str(tmp_path))
    check_mistake(code, err, [str(tmp_path), "no runs"])
    code, _, err = report("a1", "--results", str(results), "--out", str(results / "runs"))
    check_mistake(code, err, ["--out", "cannot write it"])
    store(tmp_path, "empty", lambda run: None, lambda row: None)
    (tmp_path / "runs" / "empty" / "rows.jsonl").write_text("")
    code, _, err = report("--results", str(tmp_path))
    check_mistake(code, err, ["run empty has no rows yet"])
    (tmp_path / "runs" / "empty" / "run.json").write_text("{}")
    code, _, err = report("empty", "--results", str(tmp_path))
    check_mistake(code, err, ["run empty", "cannot read it"])


def test_a_prefix_and_a_path_name_a_run(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b1", str(results / "runs" / OTHER)):
        out = tmp_path / "new" / "page.html"
        code, told, err = call(capsys, main, name, "--results", str(results), "--out", str(out), "--examples", "1")
        assert code == 0 and told.splitlines()[-1] == str(out), err
        shown = out.read_text(encoding="utf-8")
        assert f"run {OTHER}" in shown and f"run {REAL}" not in shown and "first 1 of 3 examples" in shown
        assert "c0ffee" in shown and "9.9" in shown
