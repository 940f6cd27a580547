"""Generated code stays in its process, its folder and its limits, and passes only by reaching its end."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.tasks import sandbox
from experiments.tasks.sandbox import ExecutionResult, run_program

OK = ExecutionResult(True, "ok")


def test_reaching_the_end_passes() -> None:
    assert run_program("def double(x):\n    return 2 * x\nassert double(2) == 4\n") == OK


def test_program_is_the_main_module() -> None:
    program = (
        "import dataclasses, typing\n"
        "@dataclasses.dataclass\n"
        "class Point:\n    x: int\n"
        "assert __name__ == '__main__'\n"
        "assert typing.get_type_hints(Point) == {'x': int}\n"
    )
    assert run_program(program) == OK


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def broken(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E()", "E"),
    ],
)
def test_failure_names_the_error(program: str, detail: str) -> None:
    assert run_program(program) == ExecutionResult(False, detail)


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)\n",
        "raise SystemExit",
        "import os\nos._exit(0)\n",
        "import atexit, os\natexit.register(os._exit, 0)\nassert False\n",
        "import sys\nsys.excepthook = lambda *error: None\nassert False\n",
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'ok\\n')\n    except OSError: pass\nos._exit(0)\n",
        "import os\nos.closerange(3, 64)\nos._exit(0)\n",
        "import os\nos._exit = lambda status: None\nassert False\n",
    ],
)
def test_ending_early_does_not_pass(program: str) -> None:
    assert not run_program(program).passed


def test_exit_handlers_cannot_undo_a_pass() -> None:
    assert run_program("import atexit, os\natexit.register(os._exit, 1)\n") == OK


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(60)", "while True: print('x' * 10_000)"]
)
def test_endless_programs_are_stopped(program: str) -> None:
    start = time.monotonic()
    assert run_program(program, seconds=0.5) == ExecutionResult(False, "timeout")
    assert time.monotonic() - start < 5


def test_memory_is_bounded() -> None:
    assert run_program("hog = bytearray(2**30)").detail == "MemoryError"
    assert run_program("hog = bytearray(2**28)") == OK
    assert not run_program("hog = bytearray(2**28)", memory_mib=128).passed


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import os\nos.system('true')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import threading\nthreading.Thread(target=print).start()",
        "import socket\nsocket.socket()",
        "import ctypes",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (60, 60))",
    ],
)
def test_ways_out_of_the_process_are_refused(program: str) -> None:
    result = run_program(program)
    assert not result.passed
    assert result.detail.startswith("PermissionError")


def test_limits_are_set_in_the_program() -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    names = ("CPU", "AS", "FSIZE", "NPROC", "NOFILE", "CORE")
    lines = ["import resource"]
    lines += [f"assert resource.getrlimit(resource.RLIMIT_{name})[1] != resource.RLIM_INFINITY" for name in names]
    assert run_program("\n".join(lines)) == OK
    assert resource.getrlimit(resource.RLIMIT_CPU) == before, "the parent keeps its own"


def test_files_are_bounded_in_size_and_number() -> None:
    assert run_program("open('small', 'w').write('x')\nassert open('small').read() == 'x'") == OK
    assert "File too large" in run_program("open('big', 'wb').write(bytes(2**24))").detail
    assert "too many files" in run_program("for i in range(1000): open(str(i), 'w').close()").detail
    assert not run_program("keep = [open('/dev/null') for i in range(1000)]").passed


def test_nothing_outside_the_folder_can_be_changed(tmp_path: Path) -> None:
    outside = tmp_path / "left.txt"
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    for statement in (
        f"open({str(outside)!r}, 'w')",
        f"os.open({str(outside)!r}, os.O_CREAT | os.O_WRONLY)",
        f"os.mkdir({str(outside)!r})",
        f"open({str(kept)!r}, 'a')",
        f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, 'mine')",
        f"open('mine', 'w').close(); os.rename('mine', {str(outside)!r})",
        f"os.symlink({str(tmp_path)!r}, 'link')",
        f"os.chdir({str(tmp_path)!r}); open('left.txt', 'w')",
        f"__import__('pathlib').Path({str(outside)!r}).write_text('x')",
    ):
        assert run_program(f"import os\n{statement}").detail.startswith("PermissionError"), statement
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "kept"


def test_folder_is_new_empty_and_removed() -> None:
    program = (
        "import os, tempfile\n"
        "assert os.listdir() == []\n"
        "os.mkdir('deep')\n"
        "open('deep/file', 'w').close()\n"
        "tempfile.NamedTemporaryFile(delete=False)\n"
        "os.chmod('deep', 0)\n"
        "raise ValueError(os.getcwd())\n"
    )
    folder = Path(run_program(program).detail.removeprefix("ValueError: "))
    assert folder.is_absolute()
    assert not folder.exists()


def test_environment_and_input_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    program = (
        "import os, sys\n"
        "assert 'SECRET_OF_THE_PARENT' not in os.environ and 'PATH' not in os.environ\n"
        "assert sys.stdin.read() == ''\n"
        "assert not any('site-packages' in path for path in sys.path)\n"
    )
    assert run_program(program) == OK


def test_set_order_is_repeatable() -> None:
    program = "raise ValueError(' '.join({'alpha', 'beta', 'gamma', 'delta', 'epsilon'}))"
    assert len({run_program(program).detail for _ in range(4)}) == 1


def test_odd_sources() -> None:
    assert not run_program("x = '\0'").passed
    assert run_program("x = '\udc80'") == OK
    assert run_program("") == OK
    assert run_program("x = 'é'\nassert len(x) == 1") == OK
    assert run_program("# " + "x" * 2**21) == OK
    assert not run_program("(" * 100_000).passed


def test_many_threads_can_call_at_once() -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: run_program(f"assert {i} % 3", seconds=20), range(24)))
    assert [result.passed for result in results] == [i % 3 != 0 for i in range(24)]
    assert threading.active_count() < 10
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_group_is_killed_with_its_leader() -> None:
    child = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    sandbox.kill_group(child)
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    for _ in range(100):  # whoever adopts the grandchild collects it a little later, or leaves it as a zombie
        stat = Path(f"/proc/{grandchild}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("a process of the group is still running")


def test_missing_limits_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(RuntimeError, match="resource limits"):
        run_program("x = 1")


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"memory_mib": -1}, {"seconds": float("nan")}])
def test_limits_must_be_positive(limits: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        run_program("x = 1", **limits)
