"""Who is at work on a run, told from files alone: this machine's locks, other machines' files `alive`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import chaos
import pytest
from synthetic_runs import made_row, made_rows, store_run

from experiments.errors import CONF, UserError
from experiments.records import Row
from experiments.store import Line, RunFolder
from experiments.stored import living
from experiments.stored.catalog import entries, open_entry
from experiments.stored.living import Busy, Claim, is_living, read_owner

HOLDER = """
import sys, time
from pathlib import Path
from experiments.store import RunFolder
folder = RunFolder(Path(sys.argv[1]), sys.argv[2])
with folder.measuring():
    print("ready", flush=True)
    time.sleep(600)
"""
JOB = [
    "method=sd",
    "arms=[sd]",
    "track=none",
    "timing=off",
    "limit=3",
    "task.max_new_tokens=4",
    "task.test_size=3",
    "engine.threads=1",
]


def state(folder: RunFolder) -> str:
    entry = open_entry(folder)
    assert entry is not None
    return entry.state


@contextmanager
def held(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process measures the run; it is killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(folder.results), folder.run_id]
    process = subprocess.Popen(command, cwd=CONF.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def claim(folder: RunFolder, age: float, **changes: object) -> None:
    """A file `alive` that was touched `age` seconds ago, by a process elsewhere unless `changes` say otherwise."""
    content = {"host": "elsewhere", "kernel": "another boot", "pid": 1, "token": "theirs", **changes}
    path = folder.path / "alive"
    path.write_text(json.dumps(content))
    then = time.time() - age
    os.utime(path, (then, then))


def test_states_follow_the_end_and_the_process(tmp_path: Path) -> None:
    assert state(store_run(tmp_path)) == "done"
    assert state(store_run(tmp_path, seed=1, status="failed")) == "failed"
    for seed, status in enumerate(("interrupted", "measured", "running"), start=2):
        assert state(store_run(tmp_path, seed=seed, status=status)) == "stale"
    (tmp_path / "runs" / "begun").mkdir()
    assert state(RunFolder(tmp_path, "begun")) == "stale"


def test_running_until_the_process_is_killed(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    with held(folder) as process:
        assert state(folder) == "running"
        owner = read_owner(folder.path)
        assert owner is not None and owner.pid == process.pid and owner.here and owner.fresh
        with pytest.raises(Busy, match=f"another process, {process.pid} on .* is measuring it .*; accepted: wait"):
            folder.measuring().__enter__()
        assert state(folder) == "running"  # whoever was refused took nothing away
        process.kill()
        process.wait()
        assert state(folder) == "stale" and (folder.path / "alive").exists()
    with folder.measuring():
        assert state(folder) == "running"
    assert state(folder) == "stale" and not (folder.path / "alive").exists()


def test_a_run_that_goes_on_is_running_whatever_its_last_end_was(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    with folder.measuring():
        assert state(folder) == "running"
    assert state(folder) == "done"


def test_a_run_that_went_on_is_as_old_as_its_last_row(tmp_path: Path) -> None:
    folder = store_run(tmp_path)
    told = open_entry(folder).measured
    with folder.measuring():
        folder.append([made_row("sd", 9)])
    entry = open_entry(folder)
    written = folder.rows_path.stat().st_mtime
    assert told is not None and entry.measured is not None and entry.measured.timestamp() == int(written)
    assert entry.measured > told


def test_elsewhere_the_age_of_the_file_decides(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    claim(folder, age=60)
    assert state(folder) == "running"  # no lock is seen here
    with pytest.raises(Busy, match=r"1 on elsewhere.*if that machine was lost: in 9 min"):
        folder.measuring().__enter__()
    claim(folder, age=700)
    assert state(folder) == "stale"
    with folder.measuring():
        folder.append([made_row("sd", 9)])
    assert not (folder.path / "alive").exists()


@pytest.mark.parametrize("lost", [True, False])
def test_who_may_be_lost_is_waited_for_in_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    folder, looks = store_run(tmp_path, status="running"), list[float]()
    claim(folder, age=300)

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            claim(folder, age=700 if lost else 0)

    monkeypatch.setattr(living.time, "sleep", sleep)
    with nullcontext() if lost else pytest.raises(Busy, match="1 on elsewhere"), folder.measuring(patient=True):
        assert state(folder) == "running"
    assert looks == [living.LOOK] * 3
    assert "1 on elsewhere is measuring it and was not heard of for 300 s; waiting" in capsys.readouterr().err


def test_a_lock_that_a_lost_machine_holds_is_replaced_and_its_process_told(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    other = RunFolder(tmp_path, folder.run_id)
    with folder.measuring():
        claim(folder, age=700)  # as if this holder were on a machine that is not heard of any more
        assert state(folder) == "stale"
        with other.measuring():
            other.append([made_row("sd", 10)])
            with pytest.raises(Busy, match="took it over"):
                folder.append([made_row("sd", 11)])
    assert {row.index for row in folder.read_rows()} == {0, 1, 2, 3, 10}
    assert not (folder.path / "alive").exists()


def test_a_process_of_this_machine_keeps_its_run_however_long_it_slept(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    with folder.measuring():
        owner = read_owner(folder.path)
        assert owner is not None
        claim(folder, age=5000, kernel=owner.kernel, pid=os.getpid(), token=owner.token)
        assert state(folder) == "running"
        with pytest.raises(Busy):
            RunFolder(tmp_path, folder.run_id).measuring().__enter__()


def test_the_file_is_kept_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(living, "BEAT", 0.01)
    mine = Claim(tmp_path)
    mine.start()
    os.utime(tmp_path / "alive", (0, 0))
    ends = time.monotonic() + 30
    while time.monotonic() < ends and not ((owner := read_owner(tmp_path)) and owner.fresh):
        time.sleep(0.01)
    assert owner is not None and owner.fresh
    mine.end()
    assert not (tmp_path / "alive").exists()


def test_a_file_that_says_nothing_is_nobodys(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    for text in ("", '{"host": '):
        (folder.path / "alive").write_text(text)
        assert not is_living(folder.path) and state(folder) == "stale"
        with folder.measuring():
            assert state(folder) == "running"


def test_a_full_disk_leaves_no_word_of_a_process(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = store_run(tmp_path, status="running")
    before, limits = set(folder.path.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write there .*accepted: a writable folder with room"):
            folder.measuring().__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(folder.path.iterdir()) - before <= {folder.path / "lock"} and state(folder) == "stale"
    with folder.measuring():
        assert state(folder) == "running"


def test_looking_does_not_keep_anybody_out(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    script = (
        "import sys; from pathlib import Path; from experiments.stored.living import is_living\n"
        "print('ready', flush=True)\nwhile True: is_living(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    looker = subprocess.Popen(command, cwd=CONF.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert looker.stdout is not None and looker.stdout.readline() == "ready\n"
        for _ in range(50):
            with folder.measuring():
                pass
    finally:
        looker.kill()
        looker.wait()


def test_reading_beside_writers_never_fails(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthetic_runs import store_run
import itertools, shutil
print("ready", flush=True)
for seed in itertools.count():
    folder = store_run(Path(sys.argv[1]), seed=seed % 4)
    if seed % 3 == 2:
        shutil.rmtree(folder.path)
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    writer = subprocess.Popen(command, cwd=CONF.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        seen, ends = set(), time.monotonic() + 3
        while time.monotonic() < ends or not seen:
            for entry in entries(tmp_path):
                assert entry.problem is None
                entry.columns()
                entry.summary()
                seen.add(entry.state)
            assert time.monotonic() < ends + 60
    finally:
        writer.kill()
        writer.wait()


def test_a_killed_run_is_stale_and_the_same_command_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos.import_all()
    command, append = [*JOB, f"results_dir={tmp_path}"], RunFolder.append

    def append_and_stop(self: RunFolder, rows: Iterable[Line]) -> None:
        append(self, rows)
        os.kill(os.getpid(), signal.SIGSTOP)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append", append_and_stop)
        process = chaos.start(command, CONF.parent)
    try:
        assert os.WIFSTOPPED(os.waitpid(process, os.WUNTRACED)[1])
        (entry,) = entries(tmp_path)
        assert entry.state == "running"
    finally:
        os.kill(process, signal.SIGKILL)
        assert chaos.wait(process) == -signal.SIGKILL
    (entry,) = entries(tmp_path)
    assert entry.state == "stale" and entry.examples == 1
    assert chaos.wait(chaos.start(command, CONF.parent)) == 0
    (entry,) = entries(tmp_path)
    assert entry.state == "done" and entry.examples == 3
    assert len(entry.content["provenance"]) == 2
    assert all(row.measured_at is not None for row in entry.folder.read_rows())


def test_rows_of_a_claim_that_was_lost_stay_and_nothing_follows_them(tmp_path: Path) -> None:
    """The process slept while another one took the run over, ended it and went: no file says any more who that was."""
    folder = store_run(tmp_path, rows=made_rows(1), status="running")
    with folder.measuring():
        folder.append([Row("e5", "sd", 5)])
        (folder.path / "alive").unlink()
        before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != "lock"}
        for write in (
            lambda: folder.append([Row("e6", "sd", 6)]),
            lambda: folder.write_run({"status": "done"}),
            lambda: folder.write_summary({}, 0, 0),
        ):
            with pytest.raises(Busy, match=r"another process, which has ended since, took it over.*was deleted"):
                write()
        assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != "lock"} == before
    assert {row.index for row in folder.read_rows()} == {0, 5}
    folder.write_run({"status": "done"})  # who claims nothing is asked nothing


def test_a_summary_of_a_run_that_was_taken_over_is_the_takers(tmp_path: Path) -> None:
    folder = store_run(tmp_path, status="running")
    with folder.measuring():
        claim(folder, age=0)
        for write in (lambda: folder.write_run({"status": "done"}), lambda: folder.write_summary({}, 0, 0)):
            with pytest.raises(Busy, match="1 on elsewhere took it over"):
                write()
    assert state(folder) == "running" and (folder.path / "alive").exists()
