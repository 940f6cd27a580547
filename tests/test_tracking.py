"""Tracking says of a run what its folder says: offline logs are read back by W&B's own messages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.utils import instantiate
from pydantic import ValidationError

from experiments.logged import post
from experiments.logged.facts import LIVE_NOTICE, definitions, flatten
from experiments.logged.session import TRACKED, without_texts
from experiments.logged.tables import columns, table
from experiments.measure import Bench, Prompt
from experiments.metrics import METRICS, Summary, find, in_order, summarize
from experiments.records import Row
from experiments.run import main
from experiments.store import RunFolder, read_json
from experiments.text_tables import cell, full_table, headline_cells
from experiments.tracking import LETTER, OPENING, NoTracking, Tracking, WandbTracking
from tests import wandb_files
from tests.wandb_files import logs, read_log

ROWS = [
    Row("a", "vanilla", 0, new_tokens=4, decode_seconds=[1.0, 3.0], token_loss=[0.0, 1.0], text="secret", rounds=4),
    Row("b", "vanilla", 1, error="RuntimeError: boom"),
    Row("c", "vanilla", 2, new_tokens=5, decode_seconds=[1.0], token_loss=[0.0, 0.0], rounds=5),
]
RUN = {
    "config": {"method": {"name": "sd"}, "pair": {"name": "p"}, "task": {"name": "t"}, "table_name": None},
    "identity": {
        "code_hash": "c0de", "device": "cpu", "dtype": "float32", "versions": {"torch": "2"}, "arms": {},
        "pair": {"models": {"target": "abc"}},
    },
    "provenance": [{"commit": "old"}, {"commit": "new"}],
    "notices": ["few examples"],
}  # fmt: skip
Command = Callable[..., tuple[list[str], RunFolder]]
SMALL = ["limit=2", "task.max_new_tokens=6", "task.test_size=6"]


@pytest.fixture(autouse=True)
def _private_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    for name in ("WANDB_DATA_DIR", "WANDB_MODE", "WANDB_DIR", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(post, "SHARE", 1e4)  # wait for W&B's process as long as it takes


def stored(results: Path) -> RunFolder:
    folder = RunFolder(results, "run1")
    folder.create()
    folder.write_run(RUN)
    return folder


def log(made: Tracking, folder: RunFolder, rows: Sequence[Row] = ROWS, summary: Summary | None = None) -> list[str]:
    """Everything the main job asks of a tracker; the first example was stored before. Returns what it prints."""
    summary = summary or summarize(rows, ["vanilla"], temperature=0.0)
    folder.rows_path.write_text("".join(row.to_json() + "\n" for row in rows))
    folder.write_summary(summary, 1, 1)
    tracker = made.open(folder)
    tracker.start(rows[:1])
    for row in rows[1:]:
        tracker.log_example([row])
    notice = tracker.log_run(summary, rows)
    tracker.close()
    return [*filter(None, [notice]), *post.deliver(1.0)]


def numbers(told: SimpleNamespace, arms: Sequence[str]) -> dict[str, float]:
    return {name: number for name, number in told.summary.items() if name.split("/")[0] in arms}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs, which differ in their seeds: what is calibrated is calibrated once."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def run(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The lines and the folder of a main job, which has to succeed and be silent but for them."""

    def command(*more: str) -> tuple[list[str], RunFolder]:
        monkeypatch.setattr(sys, "argv", ["experiments.run", *SMALL, f"results_dir={results}", *more])
        main()
        out, err = capsys.readouterr()
        assert err == ""
        *_, rows = re.findall(r"^rows: (.*)$", out, re.MULTILINE)
        return out.splitlines(), RunFolder(results, Path(rows).parent.name)

    return command


# --- what is logged -----------------------------------------------------------------------------------------------


def test_nothing(tmp_path: Path) -> None:
    made = NoTracking()
    assert (made.start([]), made.log_example([]), made.log_run({}, []), made.close()) == (False, None, None, None)
    assert made.open(RunFolder(tmp_path, "run1")) is made and not list(tmp_path.iterdir())


def test_offline_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second log holds more rows, their texts, and goes elsewhere; a third one has nothing to say."""
    pytest.importorskip("wandb")
    folder, everything = stored(tmp_path), WandbTracking(texts=True, dir=str(tmp_path / "all"), group="mine")
    summary = summarize(ROWS[:1], ["vanilla"], temperature=0.0)
    first = log(WandbTracking(tags=("one", "two"), entity="me"), folder, ROWS[:1], summary)
    again = log(everything, folder)
    assert log(everything, folder) == []
    assert capfd.readouterr() == ("", "")
    (one,), (two,) = logs(folder.path), logs(tmp_path / "all")
    assert (first, again) == ([f"wandb: offline in {one}"], [f"wandb: offline in {two}"])
    answer = read_json(folder.path / TRACKED) or {}
    assert (answer["place"], answer["error"]) == (f"offline in {two}", None) and not (folder.path / LETTER).exists()
    before, after = read_log(one), read_log(two)
    for told, limit in ((before, 1), (after, 2)):
        assert (told.run.run_id, told.run.resume, told.run.project) == ("run1", True, "viasd")
        assert (told.run.job_type, told.run.display_name, told.ended) == ("t", "sd-t-run1", True)
        assert told.config["identity/versions/torch"] == "2" and told.config["method"] == {"name": "sd"}
        assert told.config["provenance"] == {"commit": "new"} and told.config["notices"] == ["few examples"]
        assert told.config["live"] is False and told.summary["live"] is False
        assert told.config["metrics"]["tokens_per_second"]["unit"] == find("tokens_per_second").unit
        assert told.summary["vanilla/n_timed"] == limit and len(told.history) == 1
    own = ["pair:p", "task:t", "method:sd", "device:cpu", "dtype:float32", "code:c0de"]
    assert (before.run.entity, before.run.run_group, list(before.run.tags)) == ("me", "p-t", [*own, "one", "two"])
    assert (after.run.entity, after.run.run_group, list(after.run.tags)) == ("", "mine", own)
    check_texts(one, before, False)
    check_texts(two, after, True)


def check_texts(place: Path, told: SimpleNamespace, texts: bool) -> None:
    """Rows hold the outputs only if they are asked for: in the table and in the artifact."""
    whole = ROWS if texts else ROWS[:1]
    rows = wandb_files.table(place, told.history[0]["rows"])
    assert (rows["columns"], rows["data"]) == (columns(texts), table(whole, texts))
    headline = wandb_files.table(place, told.history[0]["headline"])
    cells = headline_cells(summarize(whole, ["vanilla"], temperature=0.0), ["vanilla"])
    assert [headline["columns"], *headline["data"]] == cells
    (entry,) = told.artifacts["rows-run1"].manifest.contents
    kept = Path(entry.local_path).read_text().splitlines()
    assert Path(entry.local_path).is_relative_to(place.parent) and len(kept) == len(whole)
    assert json.loads(kept[0]).get("text") == ("secret" if texts else None)


def every_metric() -> Summary:
    """A summary that has each metric of the registry, families by one member, with numbers that are hard to write."""
    names = [metric.named({"arm": "sd", "position": "0"}.get(re.sub(".*<|>.*", "", metric.name), "slim"))
             for metric in METRICS]  # fmt: skip
    whole = {name for name in names if find(name).unit == "examples" or name == "tie_flips"}

    def hard(place: int) -> dict[str, float]:
        return {"value": place / 7, "low": 0.1 + 0.2 - place, "high": place * 1e-17 + 2 / 3}

    return {
        arm: {name: place if name in whole else hard(place) for place, name in enumerate(names, shift)} | {"failed": 0}
        for shift, arm in ((1, "vanilla"), (5, "coin_mix@0.8"))
    }


def test_summaries_agree_to_the_last_digit(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder, summary = stored(tmp_path), every_metric()
    log(WandbTracking(objective="coin_mix@0.8/speedup_over.sd"), folder, summary=summary)
    folder.write_summary(summary, 1, 1)
    on_disk = (read_json(folder.summary_path) or {})["arms"]
    told = read_log(logs(folder.path)[0])
    assert numbers(told, list(summary)) == flatten(on_disk) and len(flatten(on_disk)) > 2 * 3 * 30
    assert set(told.config["metrics"]) == set(on_disk["vanilla"]) and len(on_disk["vanilla"]) == len(METRICS)
    assert told.config["metrics"] == definitions(on_disk)
    assert told.summary["objective"] == on_disk["coin_mix@0.8"]["speedup_over.sd"]["value"]
    assert told.history[0]["objective"] == told.summary["objective"]
    check_cells(full_table(summary, width=10_000), on_disk)


def check_cells(printed: str, on_disk: dict[str, Any]) -> None:
    """Each cell of a printed full table is that of the stored summary."""
    header, _, *lines = [re.split(" {2,}", line) for line in printed.splitlines()]
    assert header == ["metric", "unit", *on_disk]
    names = in_order(name for told in on_disk.values() for name in told)
    assert lines == [[name, find(name).unit, *(cell(on_disk[arm], name) for arm in on_disk)] for name in names]


# --- beside the main job ------------------------------------------------------------------------------------------


def test_a_sweep_is_told_when_nothing_is_measured_any_more(
    run: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of one group: their rows, rounds, masks and heads are read back as they are in their folders."""
    pytest.importorskip("wandb")
    waiting, measure = [], Bench.measure

    def looking(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        assert "wandb" not in sys.modules and not post.TELLERS
        waiting.append(len(post.LETTERS))
        return measure(self, prompt, timed)

    monkeypatch.setattr(Bench, "measure", looking)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    typed = ["arms=[vanilla,sd,method,eagle3_chain]", "table_name=two", "seed=4", "limit=1"]
    out, _ = run(*typed, "task=reasoning,qa", "-m")
    assert waiting == [0, 1] and sum(line.startswith("wandb: offline in") for line in out) == 2
    told = {}
    for line in (line for line in out if line.startswith("wandb: ")):
        place = Path(line.removeprefix("wandb: offline in "))
        folder = RunFolder(results, place.parent.parent.name)
        one = told[folder.run_id] = read_log(place)
        check_run(place, one, folder)
    assert {one.run.run_group for one in told.values()} == {"two"}
    assert {one.run.job_type for one in told.values()} == {"reasoning", "qa"}
    mask, head = (
        {name: one.digest for told_one in told.values() for name, one in told_one.artifacts.items() if one.type == kind}
        for kind in ("mask", "head")
    )
    assert len(mask) == len(head) == 1  # the same name and, by content, the same version
    digests = [[one.artifacts[name].digest for one in told.values()] for name in (*mask, *head)]
    assert all(first == second for first, second in digests)


def check_run(place: Path, told: SimpleNamespace, folder: RunFolder) -> None:
    rows, run = folder.read_rows(), folder.read_run() or {}
    on_disk = (read_json(folder.summary_path) or {})["arms"]
    assert numbers(told, list(on_disk)) == flatten(on_disk)
    assert {"vanilla", "sd", "via_sd", "eagle3_chain"} == set(on_disk)
    assert told.config["identity/code_hash"] == run["identity"]["code_hash"]
    assert told.config["identity/pair/models/target"] == run["identity"]["pair"]["models"]["target"]
    assert wandb_files.table(place, told.history[0]["rows"])["data"] == table(rows, texts=False)
    check_histograms(told.history[0], rows)
    kept = told.artifacts[f"rows-{folder.run_id}"].manifest.contents[0]
    content = "".join(without_texts(line + "\n") for line in folder.rows_path.read_text().splitlines()).encode()
    assert (kept.digest, kept.size) == (md5(content), len(content))
    assert Path(kept.local_path).is_relative_to(folder.path)
    summary = told.artifacts[f"summary-{folder.run_id}"].manifest.contents[0]
    assert summary.digest == md5(folder.summary_path.read_bytes())
    slim = run["identity"]["arms"]["via_sd"]["verifier"]["slim"]
    mask = told.artifacts[f"mask-{run['identity']['pair']['models']['target']}-{slim['skip_ratio']:g}"]
    assert json.loads(Path(mask.manifest.contents[0].local_path).read_text())["kept"] == slim["mask"]
    head = told.artifacts["head-eagle3"]
    assert json.loads(Path(head.manifest.contents[0].local_path).read_text()) == {
        "head": "eagle3", "hash": run["identity"]["heads"]["eagle3"],
    }  # fmt: skip
    assert len(head.manifest.contents) == 1 and json.loads(head.metadata)["source"] == "viasd://reference/eagle3"


def check_histograms(points: dict[str, Any], rows: Sequence[Row]) -> None:
    """The histograms of rounds add up to the counts of the rows."""
    for arm in ("sd", "via_sd"):
        own = [row for row in rows if row.arm == arm]
        for name in ("committed", "drafted", "judged", "accepted"):
            told = points[f"rounds/{arm}/{name}"]
            middles = [(low + high) / 2 for low, high in zip(told["bins"], told["bins"][1:], strict=False)]
            assert sum(told["values"]) == sum(row.rounds for row in own)
            total = sum(middle * count for middle, count in zip(middles, told["values"], strict=True))
            of_rows = {"committed": lambda row: row.new_tokens, "accepted": lambda row: row.judged - row.rejected}
            assert total == sum(of_rows.get(name, attrgetter(name))(row) for row in own)
    assert "rounds/vanilla/committed" not in points and "examples/vanilla/time_share.target" in points


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_live(run: Command) -> None:
    """Curves grow to the summary's numbers, over two starts; the flag stays with the run; all summaries agree."""
    pytest.importorskip("wandb")
    run("track=none", "limit=1", "arms=[vanilla,sd]")
    out, folder = run("track=wandb", "track.live=true", "limit=2", "arms=[vanilla,sd]")
    on_disk = (read_json(folder.summary_path) or {})["arms"]
    (place,) = logs(folder.path)
    told = read_log(place)
    assert f"note: {LIVE_NOTICE}" in out and f"wandb: offline in {place}" in out
    assert LIVE_NOTICE in (folder.read_run() or {})["notices"]
    assert told.config["live"] is True and told.summary["live"] is True and LIVE_NOTICE in told.config["notices"]
    assert numbers(told, list(on_disk)) == flatten(on_disk)
    text = "\n".join(out)
    check_cells(text[text.index("metric  ") : text.index("\narm  ")], on_disk)
    assert not (folder.path / OPENING).exists()
    points = [point for point in told.history if "live/example" in point]
    assert [point["live/example"] for point in points] == [1, 2]
    for arm in ("vanilla", "sd"):
        for name in ("tokens_per_second", "fidelity"):
            assert points[-1][f"live/{arm}/{name}"] == pytest.approx(flatten(on_disk)[f"{arm}/{name}"])
    assert not any(name.startswith("live/") for name in told.summary)
    assert f"note: {LIVE_NOTICE}" in run("track=none", "limit=3", "arms=[vanilla,sd]")[0]
    assert LIVE_NOTICE in (folder.read_run() or {})["notices"]


def test_specs_are_checked() -> None:
    made = instantiate({"_target_": "experiments.tracking.WandbTracking", "mode": "online", "tags": ["a"]})
    assert made == WandbTracking(mode="online", tags=("a",)) and isinstance(made, Tracking)
    assert isinstance(instantiate({"_target_": "experiments.tracking.NoTracking"}), Tracking)
    with pytest.raises(ValidationError, match="'offline' or 'online'"):
        WandbTracking(mode="never")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="texs"):
        WandbTracking(texs=True)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match=r"tags[.\n]0"):
        WandbTracking(tags=("",))
    with pytest.raises(ValidationError, match="objective"):
        WandbTracking(objective="speedup")
