"""Programs of foreign models stay behind walls that the kernel keeps, whatever they try, and say what held."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.tasks import confined, kernel
from experiments.tasks.confined import Confinement, Sandbox, try_way
from experiments.tasks.sandbox import ExecutionResult
from experiments.tasks.ways import SandboxError, Way, find_ways, run_in_jail

OK = ExecutionResult(True, "ok")
BOUNDS = (10.0, 2**29, 0)  # seconds, bytes, no guard
NAMESPACES = ("mount", "pid", "net", "ipc", "uts")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are of Linux")


def succeeds(*command: str) -> bool:
    """Whether a tool is there and does what it is asked."""
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


OFFERED = {
    "landlock": lambda: kernel.landlock_version() >= 3,  # an older one does not stop truncation
    "bubblewrap": lambda: succeeds("bwrap", "--unshare-pid", "--proc", "/proc", "--ro-bind", "/", "/", "true"),
    "namespaces": lambda: succeeds("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true"),
    # In a user namespace root is not free to become another user.
    "uid": lambda: os.geteuid() == 0 and capabilities() & 0b11000001 == 0b11000001 and "4294967295" in uid_map(),
}


def capabilities() -> int:
    """Of this process; bits 0, 6 and 7 are CHOWN, SETGID and SETUID."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))


def uid_map() -> str:
    """Which users there are in this process's user namespace."""
    return Path("/proc/self/uid_map").read_text()


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """The walls alone, without Python's guard, by each means of confining files."""
    if not OFFERED[request.param]():
        pytest.skip(f"{request.param} does not work here")
    wanted = request.param == "bubblewrap"
    found = next(try_way(way) for way in find_ways() if (way.bubblewrap is not None) == wanted)
    assert found is not None
    assert found.held.confines_files
    return replace(found, guarded=False)


def test_walls_stand_where_the_machine_offers_them(sandbox: Sandbox) -> None:
    walls = {wall.partition(":")[0] for wall in sandbox.held.walls}
    if OFFERED["landlock"]():
        assert {"landlock", "read_rules"} <= walls
        assert "reads" in sandbox.held.held
    if OFFERED["namespaces"]():
        assert walls >= set(NAMESPACES)
        assert {"network", "signals"} <= set(sandbox.held.held)
    if OFFERED["uid"]():
        assert "uid" in walls
    if OFFERED["uid"]() or os.geteuid() != 0:
        assert "processes" in sandbox.held.held
    assert ("sockets" in sandbox.held.held) == ("bwrap" in walls)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder where every user may do everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "kept").write_text("secret")
        (folder / "kept").chmod(0o666)
        yield folder
        assert [path.name for path in folder.iterdir()] == ["kept"], "nothing was added or removed"
        assert (folder / "kept").read_text() == "secret"


def need(sandbox: Sandbox, *guarantees: str) -> None:
    """Skip where something does not hold."""
    if missing := set(guarantees) - set(sandbox.held.held):
        pytest.skip(f"not held here: {', '.join(sorted(missing))} ({sandbox.held})")


def need_walls(sandbox: Sandbox, *walls: str) -> None:
    """Skip where a wall does not stand."""
    if missing := set(walls) - set(sandbox.held.walls):
        pytest.skip(f"not made here: {', '.join(sorted(missing))} ({sandbox.held})")


def fails(result: ExecutionResult, *errors: str) -> None:
    """The program did not pass, for one of these reasons."""
    assert not result.passed
    assert result.detail.startswith(errors), result.detail


def test_reaching_the_end_passes(sandbox: Sandbox) -> None:
    assert sandbox.run("def double(x):\n    return 2 * x\nassert double(2) == 4\n") == OK
    fails(sandbox.run("assert 1 == 2, 'one is not two'"), "AssertionError: one is not two")


def test_what_programs_need_works(sandbox: Sandbox) -> None:
    program = (
        "import os, sys, tempfile, datetime, decimal, hashlib, statistics, functools, heapq, zlib\n"
        "assert os.listdir() == [] and sys.stdin.read() == '' and set(os.environ) <= {'PYTHONHASHSEED', 'TMPDIR', "
        "'LC_CTYPE', 'PWD'}, os.environ\n"
        "os.mkdir('deep')\n"
        "with open('deep/file', 'w') as file: file.write('x')\n"
        "os.rename('deep/file', 'file')\n"
        "assert open('file').read() == 'x'\n"
        "with tempfile.NamedTemporaryFile() as file: file.write(b'x')\n"
        "assert 'experiments' not in sys.modules and not any('experiments' in path for path in sys.path)\n"
    )
    assert sandbox.run(program) == OK


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)", "while 1: print('x' * 10_000)"])
def test_endless_programs_and_output_are_stopped(sandbox: Sandbox, program: str) -> None:
    start = time.monotonic()
    assert sandbox.run(program, seconds=0.3) == ExecutionResult(False, "timeout")
    assert time.monotonic() - start < 5


def test_memory_is_bounded(sandbox: Sandbox) -> None:
    fails(sandbox.run("hog = bytearray(10 * 2**30)"), "MemoryError")
    fails(sandbox.run("hog = bytearray(2**28)", memory_bytes=2**27), "MemoryError")


def test_processes_are_refused(sandbox: Sandbox) -> None:
    need(sandbox, "processes")
    for program in (
        "import os\nwhile True: os.fork()",
        "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    ):
        start = time.monotonic()
        fails(sandbox.run(program), "BlockingIOError", "RuntimeError: can't start", "PermissionError", "FileNotFound")
        assert time.monotonic() - start < 5


def test_no_other_program_can_take_its_place(sandbox: Sandbox) -> None:
    if not any(wall.startswith("landlock") for wall in sandbox.held.walls):
        pytest.skip("without Landlock another program may")
    counted = "BlockingIOError"  # where the same user runs something else, the limit of processes refuses it, too
    program = f"import os\nos.execv({sys.executable!r}, ['x', '-c', ''])"
    fails(sandbox.run(program), "PermissionError", "FileNotFound", counted)
    program = "import os\nopen('x', 'w').write('#!/bin/sh')\nos.chmod('x', 0o700)\nos.execv('x', ['x'])"
    fails(sandbox.run(program), "PermissionError", counted)


@pytest.mark.parametrize(
    "step",
    [
        "open(out + '/new', 'w')",
        "open(out + '/kept', 'a')",
        "os.truncate(out + '/kept', 0)",
        "os.remove(out + '/kept')",
        "os.rename(out + '/kept', 'mine')",
        "open('mine', 'w'); os.rename('mine', out + '/new')",
        "os.mkdir(out + '/new')",
        "os.mkfifo(out + '/new')",
        "shutil.rmtree(out)",
        "os.symlink('/', out + '/new')",
        "os.symlink(out, 'link'); open('link/new', 'w')",
        "os.symlink(out + '/kept', 'link'); open('link', 'w')",
        "os.link(out + '/kept', 'hard'); open('hard', 'w')",
        "os.chdir(out); open('new', 'w')",
        "open('/proc/self/root' + out + '/new', 'w')",
        "open('/proc/1/root' + out + '/new', 'w')",
        "open('/proc/self/cwd/../' + os.path.basename(out) + '/new', 'w')",
        "through_open_folders('new', os.O_CREAT | os.O_WRONLY)",
        "ctypes.CDLL(None).unshare(0x10020000); open(out + '/new', 'w')",
    ],
)
def test_nothing_outside_is_changed(sandbox: Sandbox, outside: Path, step: str) -> None:
    program = (
        f"import ctypes, os, shutil\nout = {str(outside)!r}\n"
        "def through_open_folders(name, flags):\n"
        "    for folder in range(64):\n"
        "        try: os.open('../' * 20 + out[1:] + '/' + name, flags, dir_fd=folder)\n"
        "        except (FileNotFoundError, NotADirectoryError, PermissionError): continue\n"
        "        except OSError as error:\n"
        "            if error.errno != 9: raise\n"
        "        else: return\n"
        "    raise PermissionError\n"
        f"{step}\n"
    )
    fails(sandbox.run(program), "PermissionError", "FileNotFoundError", "OSError")


@pytest.mark.parametrize(
    "step",
    [
        "open(out + '/kept').read()",
        "os.listdir(out)",
        "os.symlink(out + '/kept', 'link'); open('link').read()",
        "os.link(out + '/kept', 'hard'); open('hard').read()",
        "open('/etc/passwd').read()",
        "open('/proc/1/environ').read()",
        "open(f'/proc/{caller}/environ').read()",
        "os.listdir('/')",
    ],
)
def test_secrets_are_not_read(sandbox: Sandbox, outside: Path, step: str) -> None:
    need(sandbox, "reads")
    if step == "os.listdir('/')" and not any(wall.startswith("landlock") for wall in sandbox.held.walls):
        pytest.skip("bubblewrap shows its own root")
    program = f"import os\nout, caller = {str(outside)!r}, {os.getpid()}\n{step}"
    fails(sandbox.run(program), "PermissionError", "FileNotFoundError", "ProcessLookupError", "OSError")


def test_network_is_refused(sandbox: Sandbox) -> None:
    need(sandbox, "network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            step = f"socket.socket(socket.AF_INET, socket.{kind}).connect(('127.0.0.1', {port}))"
            fails(sandbox.run(f"import socket\n{step}"), "PermissionError", "OSError", "ConnectionRefused")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_abstract_sockets_are_refused(sandbox: Sandbox) -> None:
    need_walls(sandbox, "net")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0viasd-{os.getpid()}")
        server.listen()
        program = f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0viasd-{os.getpid()}')"
        fails(sandbox.run(program), "PermissionError", "ConnectionRefused")


@pytest.mark.parametrize("number", ["os.getppid()", "caller"])
def test_nobody_else_is_killed(sandbox: Sandbox, number: str) -> None:
    need(sandbox, "signals")
    kill = f"import os, time\ncaller = {os.getpid()}\nos.kill({number}, 9)"
    program = f"{kill}\ntime.sleep(0.2)\nraise ValueError('still here')"
    fails(sandbox.run(program, seconds=5.0), "ProcessLookupError", "PermissionError", "ValueError", "killed", "ended")
    assert sandbox.run("x = 1") == OK


def test_files_are_bounded(sandbox: Sandbox) -> None:
    fails(sandbox.run("open('big', 'wb').write(bytes(2**24))"), "OSError: [Errno 27] File too large")
    fails(sandbox.run("keep = [open('/dev/null') for _ in range(1000)]"), "OSError: [Errno 24]")
    need_walls(sandbox, "mount")
    fails(sandbox.run("for i in range(100_000): open(str(i), 'w').close()"), "OSError: [Errno 28] No space left")
    program = "data = bytes(2**22)\nfor i in range(100): open(str(i), 'wb').write(data)"
    fails(sandbox.run(program), "OSError: [Errno 28] No space left")


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)\nassert False",
        "import atexit, os\natexit.register(os._exit, 0)\nassert False",
        "import sys\nsys.excepthook = lambda *error: None\nassert False",
        "import os\nfor n in range(1, 64):\n    try: os.write(n, b'ok\\n')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor n in range(1, 64):\n    try: os.write(n, b'report ' + b'0' * 32)\n    except OSError: pass",
        "import os\nos.closerange(0, 64)\nos._exit(0)",
        "import os\nos._exit = lambda status: None\nassert False",
        "import builtins\nfor name in ('type', 'str', 'exec', 'compile', 'AssertionError', 'BaseException', 'len'):\n"
        "    setattr(builtins, name, lambda *args, **named: True)\nassert False",
        "import builtins, sys, os\nsys.modules.clear()\nbuiltins.__dict__.clear()\nassert False",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    ],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_ending_early_does_not_pass(sandbox: Sandbox, program: str, guarded: bool) -> None:
    assert not replace(sandbox, guarded=guarded).run(program, seconds=1.0).passed


def test_closed_report_does_not_end_the_wait_for_nothing(sandbox: Sandbox) -> None:
    start = time.monotonic()
    result = sandbox.run("import os, time\nos.closerange(3, 64)\ntime.sleep(60)", seconds=0.3)
    assert result == ExecutionResult(False, "timeout")
    assert time.monotonic() - start < 5


def test_guard_tells_what_is_refused(sandbox: Sandbox) -> None:
    guarded = replace(sandbox, guarded=True)
    fails(guarded.run("import os\nos.fork()"), "PermissionError: os.fork is not allowed")
    fails(guarded.run("import ctypes"), "PermissionError: ctypes.dlopen is not allowed")


def test_another_user_without_groups(sandbox: Sandbox) -> None:
    need_walls(sandbox, "uid")
    program = (
        "import os\nassert os.getresuid() == os.getresgid() == (65534,) * 3\nassert not os.getgroups()\nos.setuid(0)"
    )
    fails(sandbox.run(program), "PermissionError", "OSError: [Errno 22]")


def test_new_privileges_are_out_of_reach(sandbox: Sandbox) -> None:
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.prctl(39, 0, 0, 0, 0) == 1, 'no_new_privs'\n"
        "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "assert libc.capget(header, data) == 0\nassert not any(data), list(data)\n"
    )
    assert sandbox.run(program) == OK


DAEMON = (
    "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        os.closerange(0, 64)\n"
    "        time.sleep(60)\n"
    "    os._exit(0)\n"
    "os.wait()\n"
    "raise ValueError(os.getcwd())\n"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's program can start no process that could survive")
@pytest.mark.parametrize("walls", [(), NAMESPACES], ids=["subreaper", "pid namespace"])
@pytest.mark.parametrize("before", ["", "import os\nos.kill(os.getppid(), 9)\n"], ids=["", "keeper killed"])
def test_daemons_do_not_survive(walls: tuple[str, ...], before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="daemons-") as own:  # other tests have programs of their own
        os.chmod(own, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", own)
        try:
            _, result = run_in_jail(Way(None, False), walls, before + DAEMON, (2.0, 2**29, 0))
        except SandboxError as error:
            pytest.skip(str(error))
        if not before:  # else what the program reports may be lost with the keeper
            fails(result, f"ValueError: {own}/")
        assert not [told for told in command_lines() if own in told]


def command_lines() -> Iterator[str]:
    """Of all processes; a child that was forked and runs nothing else has its parent's."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


def test_folders_and_descriptors_are_not_left(sandbox: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    detail = sandbox.run(
        "import os\nopen('left', 'w').close()\nos.mkdir('deep', 0)\nraise ValueError(os.getcwd())"
    ).detail
    folder = Path(detail.removeprefix("ValueError: "))
    assert folder.is_absolute()
    assert not folder.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_can_run_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: sandbox.run(f"assert {i} % 3", seconds=20), range(9)))
    assert [result.passed for result in results] == [i % 3 != 0 for i in range(9)]


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"memory_bytes": -1}, {"seconds": float("nan")}])
def test_limits_must_be_positive(limits: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Sandbox(Confinement((), ()), None).run("x = 1", **limits)


def test_program_is_not_run_behind_fewer_walls_than_before(sandbox: Sandbox, outside: Path) -> None:
    more = replace(sandbox, held=Confinement(sandbox.held.held, (*sandbox.held.walls, "landlock:99")))
    with pytest.raises(SandboxError, match=r"was not run.*landlock:99"):
        more.run("x = 1")


def test_trying_tells_walls_from_their_absence(sandbox: Sandbox) -> None:
    """What holds is what was tried: fewer walls hold less."""
    way = Way(None, True)
    bare = try_way(way, ())
    assert bare is not None
    assert not {"files", "reads", "network", "sockets", "signals"} & set(bare.held.held)
    assert str(bare.held).endswith("by rlimits")
    if any(wall.startswith("landlock") for wall in sandbox.held.walls):
        alone = try_way(way, tuple(wall for wall in sandbox.held.walls if wall.startswith(("landlock", "read"))))
        assert alone is not None
        assert {"files", "reads"} <= set(alone.held.held)
        assert {"mount", "pid", "uid"}.isdisjoint(alone.held.walls)


def test_bubblewrap_confines_files_by_itself(sandbox: Sandbox) -> None:
    assert sandbox.way is not None
    if sandbox.way.bubblewrap is None:
        pytest.skip("of bubblewrap alone")
    alone = try_way(sandbox.way, ())
    assert alone is not None
    assert {"files", "reads", "sockets"} <= set(alone.held.held)
    assert not any(wall.startswith("landlock") for wall in alone.held.walls)


def test_most_confined_way_is_taken() -> None:
    found = Sandbox.open(allow_unconfined=True)
    tried = [one for one in map(try_way, find_ways()) if one is not None]
    assert tried
    assert found.held == tried[0].held


def open_without(monkeypatch: pytest.MonkeyPatch, ways: Callable[[], list[Way]]) -> None:
    """Let the machine have other ways."""
    monkeypatch.setattr(confined, "find_ways", ways)
    monkeypatch.setattr(confined, "find_sandbox", confined.find_sandbox.__wrapped__)


def test_unconfined_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    open_without(monkeypatch, list)
    with pytest.raises(UserError, match=r"allow_code_execution.*bubblewrap.*task\.allow_unconfined=true") as told:
        Sandbox.open()
    assert "\n" not in str(told.value)
    sandbox = Sandbox.open(allow_unconfined=True)
    assert str(sandbox.held) == "nothing by rlimits"
    assert sandbox.run("assert True") == OK
    fails(sandbox.run("while True: pass", seconds=0.3), "timeout")


def test_broken_bubblewrap_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    false = tmp_path / "bwrap"
    false.write_text("#!/bin/sh\nexit 1\n")
    false.chmod(0o755)
    rest = [way for way in find_ways() if way.bubblewrap is None]
    open_without(monkeypatch, lambda: [Way(str(false), True), *rest])
    found = Sandbox.open(allow_unconfined=True)
    assert "bwrap" not in found.held.walls


def test_text_is_stable() -> None:
    held = Confinement(("files", "network"), ("uid", "landlock:3", "pid", "rlimits"))
    assert str(held) == "files network by uid landlock:3 pid rlimits"
    assert held.confines_files
    assert not Confinement(("reads",), ()).confines_files
