"""Tracking says of a run what its folder says, offline, and whatever goes wrong there is one line and no more."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.utils import instantiate
from pydantic import ValidationError

from experiments import tracking
from experiments.logged import LIVE_NOTICE, Curves, columns, configuration, definitions, flatten, table
from experiments.measure import Bench, Prompt
from experiments.metrics import METRICS, Summary, find, in_order, summarize
from experiments.records import Row
from experiments.report import cell, full_table, headline_cells
from experiments.run import main
from experiments.store import RunFolder, read_json
from experiments.tracking import NoTracking, Tracking, WandbTracking

ROWS = [
    Row("a", "vanilla", 0, new_tokens=4, decode_seconds=[1.0, 3.0], token_loss=[0.0, 1.0], text="secret", rounds=4),
    Row("b", "vanilla", 1, error="RuntimeError: boom"),
    Row("c", "vanilla", 2, new_tokens=5, decode_seconds=[1.0], token_loss=[0.0, 0.0], rounds=5),
]
RUN = {
    "config": {"method": {"name": "sd"}, "pair": {"name": "p"}, "task": {"name": "t"}, "table": None},
    "identity": {"code_hash": "c0de", "device": "cpu", "versions": {"torch": "2"}},
    "provenance": [{"commit": "old"}, {"commit": "new"}],
    "notices": ["few examples"],
}
Command = Callable[..., tuple[list[str], RunFolder]]
SMALL = ["limit=2", "task.max_new_tokens=4", "task.test_size=6", "arms=[vanilla,sd]"]


@pytest.fixture(autouse=True)
def _private_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def stored(results: Path) -> RunFolder:
    folder = RunFolder(results, "run1")
    folder.create()
    folder.write_run(RUN)
    return folder


def log(made: Tracking, folder: RunFolder, rows: Sequence[Row] = ROWS, summary: Summary | None = None) -> str | None:
    """Everything the main job asks of a tracker; the first example was stored before."""
    tracker = made.open(folder)
    tracker.start(rows[:1])
    for row in rows[1:]:
        tracker.log_example([row])
    notice = tracker.log_run(summary or summarize(rows, ["vanilla"], temperature=0.0), rows)
    tracker.close()
    return notice


def records(place: Path) -> Iterator[Any]:
    """The records of an offline log: LevelDB's format behind a header of 7 bytes."""
    record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    (path,) = place.glob("*.wandb")
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        at += 32768 - at % 32768 if 32768 - at % 32768 < 7 else 0  # no header is cut by the end of a block
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record.FromString(whole)
            whole = b""


def read_log(place: Path) -> SimpleNamespace:
    """What an offline log says, later records over earlier ones."""
    told = SimpleNamespace(config={}, summary={}, history=[], run=None)
    for one in records(place):
        if one.HasField("run"):
            told.run = told.run or one.run
            told.config |= {item.key: json.loads(item.value_json) for item in one.run.config.update}
        told.config |= {item.key: json.loads(item.value_json) for item in one.config.update if item.key}
        told.summary |= {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.summary.update
        }
        if one.HasField("history"):
            told.history.append({item.nested_key[0]: json.loads(item.value_json) for item in one.history.item})
    return told


def logs(where: Path) -> list[Path]:
    return sorted((where / "wandb").glob("offline-run-*"))


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
        (rows,) = re.findall(r"^rows: (.*)$", out, re.MULTILINE)
        return out.splitlines(), RunFolder(results, Path(rows).parent.name)

    return command


# --- what is logged -----------------------------------------------------------------------------------------------


def test_nothing(tmp_path: Path) -> None:
    assert log(NoTracking(), RunFolder(tmp_path, "run1")) is None
    assert not list(tmp_path.iterdir())


def test_offline_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    folder = stored(tmp_path)
    summary = summarize(ROWS[:1], ["vanilla"], temperature=0.0)
    first = log(WandbTracking(tags=("one", "two"), entity="me"), folder, ROWS[:1], summary)
    again = log(WandbTracking(texts=True, dir=str(tmp_path / "all"), group="mine"), folder)
    assert capfd.readouterr() == ("", "")
    (one,), (two,) = logs(folder.path), logs(tmp_path / "all")
    assert (first, again) == (f"wandb: offline in {one}", f"wandb: offline in {two}")
    before, after = read_log(one), read_log(two)
    for told, limit in ((before, 1), (after, 2)):
        assert (told.run.run_id, told.run.resume, told.run.project) == ("run1", True, "viasd")
        assert told.config["identity"] == RUN["identity"] and told.config["method"] == {"name": "sd"}
        assert told.config["provenance"] == {"commit": "new"} and told.config["notices"] == ["few examples"]
        assert told.config["live"] is False and told.summary["live"] is False
        assert told.config["metrics"]["tokens_per_second"]["unit"] == find("tokens_per_second").unit
        assert told.summary["vanilla/n_timed"] == limit and len(told.history) == 1
    assert (before.run.entity, before.run.run_group, list(before.run.tags)) == ("me", "p-t", ["one", "two"])
    assert (after.run.entity, after.run.run_group, list(after.run.tags)) == ("", "mine", [])
    rows, told = {}, {}
    for place, into in ((one, rows), (two, told)):
        for path in (place / "files" / "media" / "table").iterdir():
            into[path.name.split("_")[0]] = json.loads(path.read_text())
    assert rows["rows"]["columns"] == columns(False) and "secret" not in json.dumps(rows)
    assert told["rows"]["columns"] == columns(True) and told["rows"]["data"] == table(ROWS, texts=True)
    whole = summarize(ROWS, ["vanilla"], temperature=0.0)
    assert [told["headline"]["columns"], *told["headline"]["data"]] == headline_cells(whole, ["vanilla"])


def test_group_is_the_experiment_or_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**RUN["config"], "table": "frontier_40"}  # type: ignore[dict-item]
    assert tracking.automatic_group(config) == "frontier_40"
    choices = SimpleNamespace(runtime=SimpleNamespace(choices={"experiment": "frontier"}))
    monkeypatch.setattr(tracking, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: choices))
    assert tracking.automatic_group(config) == "frontier"


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
    log(WandbTracking(), folder, summary=summary)
    folder.write_summary(summary)
    on_disk = (read_json(folder.summary_path) or {})["arms"]
    told = read_log(logs(folder.path)[0])
    assert numbers(told, list(summary)) == flatten(on_disk) and len(flatten(on_disk)) > 2 * 3 * 30
    assert set(told.config["metrics"]) == set(on_disk["vanilla"]) and len(on_disk["vanilla"]) == len(METRICS)
    assert told.config["metrics"] == definitions(on_disk)
    check_cells(full_table(summary, width=10_000), on_disk)


def check_cells(printed: str, on_disk: dict[str, Any]) -> None:
    """Each cell of a printed full table is that of the stored summary."""
    header, _, *lines = [re.split(" {2,}", line) for line in printed.splitlines()]
    assert header == ["metric", "unit", *on_disk]
    names = in_order(name for told in on_disk.values() for name in told)
    assert lines == [[name, find(name).unit, *(cell(on_disk[arm], name) for arm in on_disk)] for name in names]


# --- beside the main job ------------------------------------------------------------------------------------------


def test_live(run: Command) -> None:
    """Curves grow to the summary's numbers, over two starts; the flag stays with the run; all summaries agree."""
    pytest.importorskip("wandb")
    run("track=none", "limit=1")
    out, folder = run("track=wandb", "track.live=true", "limit=2")
    on_disk = (read_json(folder.summary_path) or {})["arms"]
    (place,) = logs(folder.path)
    told = read_log(place)
    assert f"note: {LIVE_NOTICE}" in out and f"wandb: offline in {place}" in out
    assert LIVE_NOTICE in (folder.read_run() or {})["notices"]
    assert told.config["live"] is True and told.summary["live"] is True and LIVE_NOTICE in told.config["notices"]
    assert numbers(told, list(on_disk)) == flatten(on_disk)
    text = "\n".join(out)
    check_cells(text[text.index("metric  ") : text.index("\narm  ")], on_disk)
    points = [point for point in told.history if "live/example" in point]
    assert [point["live/example"] for point in points] == [1, 2]
    for arm in ("vanilla", "sd"):
        for name in ("tokens_per_second", "fidelity"):
            assert points[-1][f"live/{arm}/{name}"] == pytest.approx(flatten(on_disk)[f"{arm}/{name}"])
    assert not any(name.startswith("live/") for name in told.summary)
    assert f"note: {LIVE_NOTICE}" in run("track=none", "limit=3")[0]
    assert LIVE_NOTICE in (folder.read_run() or {})["notices"]


def test_nothing_is_imported_before_the_last_timed_pass(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, measure, seen = tmp_path / "imported", Bench.measure, []
    (tmp_path / "wandb.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # remembers what to restore
    del sys.modules["wandb"]

    def looking(self: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        rows = measure(self, prompt, timed)
        seen.append(mark.exists())
        return rows

    monkeypatch.setattr(Bench, "measure", looking)
    out, _ = run("track=wandb", "seed=1")
    assert seen == [False, False] and mark.exists()
    assert any(line.startswith("wandb: not logged (AttributeError") for line in out)


# --- whatever goes wrong ------------------------------------------------------------------------------------------

STAGES = ("Settings", "init", "define_metric", "summary", "log", "config", "Table", "finish", "teardown")


def raising(error: BaseException) -> Callable[[], None]:
    def go_wrong() -> None:
        raise error

    return go_wrong


def fake(monkeypatch: pytest.MonkeyPatch, stage: str, go_wrong: Callable[[], Any]) -> list[str]:
    """Put a stand-in for wandb that goes wrong at one stage. Returns the list of its calls, which grows."""
    calls: list[str] = []

    def does(name: str, result: Any = None) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            calls.append(name)
            if name == stage:
                go_wrong()
            return result

        return call

    made = SimpleNamespace(resumed=False, url="", dir="/somewhere/files")
    made.log, made.finish, made.define_metric = does("log"), does("finish"), does("define_metric")
    made.summary, made.config = SimpleNamespace(update=does("summary")), SimpleNamespace(update=does("config"))
    library = {"init": does("init", made), **{name: does(name) for name in ("Settings", "Table", "teardown")}}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**library))
    return calls


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [RuntimeError("no\nluck"), SystemExit(3)], ids=["error", "exit"])
def test_a_failing_stage_is_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, live: bool, error: BaseException
) -> None:
    calls = fake(monkeypatch, stage, raising(error))
    notice = log(WandbTracking(live=live), stored(tmp_path))
    if stage not in calls:
        assert (stage, live) == ("define_metric", False) and notice == "wandb: offline in /somewhere"
        return
    assert notice == f"wandb: not logged (RuntimeError: {'no luck' if error.args != (3,) else 'SystemExit(3)'})"
    assert calls.count(stage) == 1 and calls[-1] == "teardown"


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("stage", ["init", "log", "finish"])
def test_a_hanging_stage_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, live: bool) -> None:
    forever = Event()
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    calls = fake(monkeypatch, stage, forever.wait)
    notice = log(WandbTracking(live=live), stored(tmp_path))
    forever.set()
    assert notice is not None and notice.startswith("wandb: not logged (Hung: no answer in 0.") and "\n" not in notice
    assert calls.count(stage) == 1


@pytest.mark.parametrize(("stage", "seed", "beside"), [("init", 2, False), ("log", 3, True)])
def test_the_run_is_done_all_the_same(
    run: Command, monkeypatch: pytest.MonkeyPatch, stage: str, seed: int, beside: bool
) -> None:
    """Live tracking that fails before the first example, or after it, leaves nothing but its line."""
    fake(monkeypatch, stage, raising(RuntimeError("no luck")))
    out, folder = run("track=wandb", "track.live=true", f"seed={seed}")
    assert out.count("wandb: not logged (RuntimeError: no luck)") == 1
    assert (folder.read_run() or {})["status"] == "done" and len(folder.read_rows()) == 4
    assert (LIVE_NOTICE in (folder.read_run() or {})["notices"]) is beside


def test_an_interrupted_live_run_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, "", lambda: None)
    tracker = WandbTracking(live=True).open(stored(tmp_path))
    assert tracker.start([]) and "finish" not in calls
    tracker.close()
    tracker.close()
    assert calls.count("finish") == 1 and calls[-1] == "teardown"


def test_live_tracking_that_cannot_begin_is_gone_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake(monkeypatch, "define_metric", raising(RuntimeError("no luck")))
    assert not WandbTracking(live=True).open(stored(tmp_path)).start([]) and calls[-2:] == ["finish", "teardown"]
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    forever = Event()
    fake(monkeypatch, "init", forever.wait)
    assert WandbTracking(live=True).open(stored(tmp_path)).start([])  # it may wake up while measuring
    forever.set()


def test_an_unwritable_folder_is_a_notice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    notice = log(WandbTracking(dir=str(tmp_path / "file" / "logs")), stored(tmp_path))
    assert notice is not None and notice.startswith("wandb: not logged (NotADirectoryError")
    assert "\n" not in notice and capfd.readouterr() == ("", "")


def test_a_missing_wandb_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    notice = log(WandbTracking(), stored(tmp_path))
    assert notice is not None and notice.startswith("wandb: not logged (ModuleNotFoundError")


# --- parts --------------------------------------------------------------------------------------------------------


def test_table_holds_scalars() -> None:
    lines = [dict(zip(columns(True), line, strict=True)) for line in table(ROWS, texts=True)]
    assert lines[0] | {"decode_seconds": 2.0, "fidelity": 0.5, "text": "secret", "rounds": 4} == lines[0]
    assert lines[1]["error"] == "RuntimeError: boom" and lines[1]["fidelity"] is None
    assert all(value is None or isinstance(value, str | int | float) for line in lines for value in line.values())


def test_flat_names() -> None:
    summary = {"sd": {"speedup": {"value": 2.0, "low": 1.0, "high": 3.0}, "n_timed": 4}}
    assert flatten(summary) == {"sd/speedup": 2.0, "sd/speedup/low": 1.0, "sd/speedup/high": 3.0, "sd/n_timed": 4}


def test_curves_leave_out_failures() -> None:
    curves = Curves()
    points = [curves.add([row]) for row in ROWS]
    assert points[0] == {"live/example": 1, "live/vanilla/tokens_per_second": 2.0, "live/vanilla/fidelity": 0.5}
    assert points[1] == {**points[0], "live/example": 2}
    assert points[2] == {"live/example": 3, "live/vanilla/tokens_per_second": 3.0, "live/vanilla/fidelity": 0.75}


def test_a_live_run_is_known_by_its_notice() -> None:
    assert configuration({**RUN, "notices": [LIVE_NOTICE]})["live"] and not configuration(RUN)["live"]


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
