"""Whatever goes wrong at W&B is one line, or a copy on disk, and no run waits for it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.launching.locks import Presence, lock_folder
from experiments.logged import post, session, teller
from experiments.logged.readback import Truncated, check_whole
from experiments.logged.session import TRACKED
from experiments.metrics import summarize
from experiments.patience import Hung
from experiments.run import main
from experiments.store import RunFolder, read_json
from experiments.tracking import LETTER, WandbTracking
from tests.commands import call
from tests.test_tracking import ROWS, stored
from tests.wandb_files import logs, read_log

STAGES = (
    "Settings", "init", "config", "summary", "Table", "Histogram", "line_series", "log", "Artifact", "log_artifact",
    "finish", "teardown",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _private_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(post, "LETTERS", [])
    monkeypatch.setattr(post, "TELLERS", [])


def hand_over(made: WandbTracking, folder: RunFolder) -> str | None:
    """What a run leaves for the process that tells W&B."""
    summary = summarize(ROWS, ["vanilla"], temperature=0.0)
    folder.rows_path.write_text("".join(row.to_json() + "\n" for row in ROWS))
    folder.write_summary(summary, 1, 1)
    return made.open(folder).log_run(summary, ROWS)


def letter(tmp_path: Path, **more: Any) -> Path:
    """A letter with something of everything."""
    folder = stored(tmp_path)
    assert hand_over(WandbTracking(**more), folder) is None
    (path,) = post.LETTERS
    content = json.loads(path.read_text())
    content["histograms"] = {"rounds/via/committed": {"counts": [1], "edges": [0.0, 1.0]}}
    content["lines"] = {"by_round/committed": {"title": "t", "over": "round", "arms": {"via": [1.0]}}}
    path.write_text(json.dumps(content))
    return path


# --- inside the process that tells W&B ----------------------------------------------------------------------------


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

    class Artifact(SimpleNamespace):
        def new_file(self, name: str, encoding: str) -> Any:
            return open(os.devnull, "w", encoding=encoding)

    made = SimpleNamespace(resumed=False, url="", dir="/somewhere/files")
    made.log, made.finish, made.define_metric = does("log"), does("finish"), does("define_metric")
    made.summary, made.config = SimpleNamespace(update=does("summary")), SimpleNamespace(update=does("config"))
    made.log_artifact = does("log_artifact")
    library = {"init": does("init", made), "Artifact": does("Artifact", Artifact())}
    library |= {name: does(name) for name in ("Settings", "Table", "Histogram", "teardown")}
    plot = SimpleNamespace(line_series=does("line_series"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**library, plot=plot))
    monkeypatch.setattr(teller, "check_whole", lambda place: None)
    monkeypatch.setattr(teller, "tell_offline", lambda path: "offline elsewhere")
    return calls


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [RuntimeError("no\nluck"), SystemExit(3)], ids=["error", "exit"])
def test_a_failing_stage_ends_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    calls = fake(monkeypatch, stage, raising(error))
    path = letter(tmp_path)
    answer, usable = teller.tell(path, None, None)
    reason = f"RuntimeError: {'no luck' if error.args != (3,) else 'SystemExit(3)'}"
    assert (answer["place"], answer["error"], usable) == ("offline elsewhere", reason, False)
    assert post.told(answer) == f"wandb: offline elsewhere ({reason})"
    assert calls.count(stage) == 1 and calls[-1] == "teardown"
    assert "Traceback" in (path.parent / "run.log").read_text()


@pytest.mark.parametrize("stage", ["init", "log", "finish"])
def test_a_hanging_stage_ends_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    calls = fake(monkeypatch, stage, raising(Hung("no answer in 30 s")))
    answer, usable = teller.tell(letter(tmp_path), None, None)
    assert (answer["error"], answer["place"]) == ("Hung: no answer in 30 s", "offline elsewhere") and not usable
    assert calls.count(stage) == 1 and ("finish" in calls) is (stage == "finish")  # it is not asked for anything more


def test_what_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = Event()
    fake(monkeypatch, "init", forever.wait)
    monkeypatch.setattr(session, "PATIENCE", 1.0)
    answer, _ = teller.tell(letter(tmp_path), None, None)
    forever.set()
    assert answer["error"].startswith("Hung: no answer in ") and answer["place"] == "offline elsewhere"


def test_after_a_failure_the_others_go_to_the_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = fake(monkeypatch, "init", raising(RuntimeError("no luck")))
    path = letter(tmp_path)
    other = path.with_name("other.json")
    other.write_text(path.read_text())
    teller.tell_all([path, other], None, None)
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(one["place"], one["error"]) for one in told] == [("offline elsewhere", "RuntimeError: no luck")] * 2
    assert calls.count("init") == 1 and not path.exists() and not other.exists()
    assert read_json(path.with_name(TRACKED)) == told[-1]


def test_a_copy_that_lies_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, "init", raising(RuntimeError("no luck")))
    path, place = letter(tmp_path, mode="online"), tmp_path / "log"
    before = {"run_id": "r", "digest": json.loads(path.read_text())["digest"], "place": f"offline in {place}"}
    path.with_name(TRACKED).write_text(json.dumps({**before, "error": "no network"}))
    assert teller.tell(path, None, None)[0]["place"] == "offline elsewhere"  # it was taken away
    place.mkdir()
    assert teller.tell(path, None, None)[0]["place"] == f"offline in {place}"
    assert calls.count("init") == 2  # the server is tried each time


def test_many_letters_are_told_however_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More paths than a pipe holds; the time that the process has begins again with each that is told."""
    monkeypatch.setenv("VIASD_LOCKS", str(tmp_path / "locks"))
    paths, sent = [letter(tmp_path), *(tmp_path / f"{place}{'x' * 90}" for place in range(999))], list[str]()
    somebody = Presence(lock_folder() / "jobs" / "somebody else.json")
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(post.Teller, "__post_init__", lambda self: setattr(self, "alive", True))
    monkeypatch.setattr(post.Teller, "send", lambda self, message: sent.append(json.dumps(message) + "\n"))
    post.Teller().end(paths)
    assert len(sent[0]) < 4096 and teller.paths_of(json.loads(sent[0])) == paths

    class Clock(SimpleNamespace):
        """A timer that never goes off."""

        def __init__(self, seconds: float, step: object) -> None:
            super().__init__(start=lambda: timers.append(self), cancel=lambda: stopped.append(self))

    timers: list[Clock] = []
    stopped: list[Clock] = []
    monkeypatch.setattr(teller, "Timer", Clock)
    monkeypatch.setattr(teller, "leave", lambda: None)
    monkeypatch.setattr(teller, "tell", lambda *_: (seen.append((somebody.others(), len(timers))), True))
    monkeypatch.setattr(teller, "reply", lambda *_, **__: None)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"letters": [str(paths[0])] * 3}) + "\n"))
    try:
        teller.FUSE.light()
        teller.main()
        assert [others for others, _ in seen] == [1] * 3 and somebody.others() == 0
        assert seen[0][1] < seen[1][1] < seen[2][1] < len(timers) and stopped == timers[:-1]
    finally:
        teller.FUSE.put_out()


def test_live_curves_that_fail_cost_nothing_but_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, "define_metric", raising(RuntimeError("no luck")))
    path = letter(tmp_path)
    live = teller.Session(json.loads(path.read_text()))
    live.begin_curves([{"live/example": 1}])
    live.draw({"live/example": 2})
    assert "log" not in calls
    assert teller.tell(path, None, live)[0]["place"] == "offline elsewhere" and calls[-2:] == ["finish", "teardown"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ImportError("no wandb"), Truncated("cut")])
def test_what_would_fail_again_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake(monkeypatch, "log", raising(error))
    answer, usable = teller.tell(letter(tmp_path), None, None)
    assert (answer["place"], usable) == (None, True)
    assert post.told(answer) == f"wandb: not logged ({type(error).__name__}: {error})"


def test_a_missing_wandb_and_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = letter(tmp_path)
    assert (teller.tell(path, None, None)[0]["error"] or "").startswith("ModuleNotFoundError")
    (tmp_path / "file").write_text("in the way")
    content = json.loads(path.read_text())
    content["address"]["where"] = str(tmp_path / "file" / "logs")
    path.write_text(json.dumps(content))
    answer, usable = teller.tell(path, None, None)
    assert (answer["error"] or "").startswith("NotADirectoryError") and answer["place"] is None and usable


# --- real servers that are none -----------------------------------------------------------------------------------


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that knows no key."""

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("server", ["mute", "refusing"])
def test_no_server_leaves_a_log_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, server: str
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(session, "PATIENCE", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    path = letter(tmp_path, mode="online")
    answer, _ = teller.tell(path, None, None)
    (place,) = logs(path.parent)
    assert answer["place"] == f"offline in {place}" and answer["error"] is not None
    assert read_log(place).summary["vanilla/n_timed"] == 2
    log = next(place.glob("*.wandb"))
    log.write_bytes(log.read_bytes()[:-100])
    with pytest.raises(Truncated):
        check_whole(place)


# --- what a run sees of it ----------------------------------------------------------------------------------------


def test_a_run_does_not_wait_for_what_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """wandb hangs from its import on: the run is done all the same, and again when it is called once more."""
    place = tmp_path / "hangs"
    place.mkdir()
    (place / "wandb.py").write_text(f"open({str(place / 'imported')!r}, 'w').close()\nimport time\ntime.sleep(1000)\n")
    monkeypatch.setenv("PYTHONPATH", str(place))
    tellers: list[post.Teller] = []
    monkeypatch.setattr(post.Teller, "wait", lambda self, seconds: tellers.append(self) or time.sleep(min(seconds, 1)))
    typed = ("limit=1", "task.max_new_tokens=4", "task.test_size=4", "arms=[vanilla,sd]", f"results_dir={tmp_path}")
    for live in ("false", "true"):
        code, out, err = call(capsys, main, *typed, f"track.live={live}")
        assert (code, err) == (0, "") and "wandb: goes on by itself; " in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert (read_json(folder / "run.json") or {})["status"] == "done" and (folder / LETTER).exists()
    for one in tellers:
        end = time.monotonic() + 60
        while not (place / "imported").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(one._process.pid, signal.SIGKILL)
        one._process.wait()
    assert (place / "imported").exists() and len(tellers) == 2


def test_a_process_that_cannot_start_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert hand_over(WandbTracking(), stored(tmp_path)) is None
    (line,) = post.deliver(100.0)
    assert line.startswith("wandb: not logged (its process could not be reached)")
    assert not WandbTracking(live=True).open(stored(tmp_path)).start([])


def test_a_message_that_nobody_takes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "MODULE", "time")  # runs and ends without reading
    one = post.Teller()
    for _ in range(100_000):
        one.send({"points": {"live/example": 1}})
    assert not one.alive
    one.end([])
    one._process.wait()


def test_a_letter_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    folder = stored(tmp_path)
    (folder.path / f"wandb.{os.getpid()}.tmp").mkdir()
    line = hand_over(WandbTracking(), folder)
    assert line is not None and line.startswith("wandb: not logged (UserError: ") and "wandb.json: cannot write" in line
    line = hand_over(WandbTracking(objective="sd/speed"), stored(tmp_path / "two"))
    assert line is not None and "track.objective=sd/speed: sd/speed is not in the summary" in line
    assert post.deliver(1.0) == []


def test_nothing_is_waited_for_beyond_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(post.Teller, "__post_init__", lambda self: None)
    monkeypatch.setattr(post.Teller, "wait", lambda self, seconds: waited.append(seconds))
    for seconds, sweep in ((60.0, None), (60.0, "abc")):
        if sweep is not None:
            monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
        hand_over(WandbTracking(), stored(tmp_path))
        post.deliver(seconds)
    assert waited[0] <= 0.02 * 60 and waited[1] == pytest.approx(post.PATIENCE_OF_AGENTS, abs=1)
