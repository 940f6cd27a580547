"""A sweep by several processes that are killed at random moments and started again, and what has to hold after it."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from experiments.launching.locks import lock_folder, presence
from experiments.records import is_reading
from experiments.run import main
from experiments.store import RunFolder, read_json
from experiments.stored.living import read_owner

AIM = 10.0  # seconds that a kill waits for its process to measure something
REFERENCE = Path(__file__).resolve().parents[1] / "viasd" / "reference"


def import_all() -> None:
    """Import what a run needs: forked processes would each take seconds for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("experiments.plan", "experiments.tables", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    AutoModelForCausalLM.from_pretrained(REFERENCE / "draft")
    AutoTokenizer.from_pretrained(REFERENCE / "draft")


def warm_up(typed: Sequence[str], folder: Path) -> None:
    """Import, compose and hash in this process what these jobs need, for forked ones; nothing is measured or stored."""
    import_all()
    arguments, place = sys.argv, Path.cwd()
    sys.argv = ["experiments.run", *typed, f"results_dir={folder}", "--plan"]
    os.chdir(folder)
    try:
        with redirect_stdout(io.StringIO()):
            main()
    finally:
        os.chdir(place)
        sys.argv = arguments


def start(typed: Sequence[str], folder: Path) -> int:
    """Start the main job in a forked process, which has everything imported; its id. It says nothing."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
            os.chdir(folder)
            sys.argv = ["experiments.run", *typed]
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)
    return process


def wait(process: int) -> int:
    """Exit code of a process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@dataclass
class Chaos:
    """`workers` processes at the same sweep; one is killed after each of `pauses` seconds, and started again.

    Every other kill waits until its process measures a run, so that not all of them hit processes that load.
    """

    typed: Sequence[str]
    folder: Path
    results: Path
    workers: int
    pauses: Sequence[float]
    seed: int = 0
    killed: int = 0

    def run(self, patience: float = 3600.0) -> None:
        """Until every pause had its kill and the workers found everything done. One that found a run taken begins anew.

        Raises TimeoutError after `patience` seconds.
        """
        dice, ends = random.Random(self.seed), time.monotonic() + patience
        alive = [start(self.typed, self.folder) for _ in range(self.workers)]
        try:
            while self.killed < len(self.pauses):
                time.sleep(self.pauses[self.killed])
                alive = [self._at_work(process) for process in alive]
                unlucky = dice.randrange(self.workers)
                if self.killed % 2 == 0:
                    self._aim(alive[unlucky])
                os.kill(alive[unlucky], signal.SIGKILL)
                code = wait(alive[unlucky])
                assert code in (-signal.SIGKILL, 0, 2)
                self.killed += code == -signal.SIGKILL  # it may have ended by itself just before
                alive[unlucky] = start(self.typed, self.folder)
            while alive:
                if time.monotonic() > ends:
                    raise TimeoutError(f"not done in {patience:g} s")
                process = alive.pop(0)
                if (code := wait(process)) == 2:
                    alive.append(start(self.typed, self.folder))
                else:
                    assert code == 0
        finally:
            for process in alive:
                os.kill(process, signal.SIGKILL)
                wait(process)

    def _aim(self, process: int) -> None:
        """Wait until a process measures a run, but not for one that has ended, and not for long."""
        ends = time.monotonic() + AIM
        while time.monotonic() < ends and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if any(is_measured_by(process, path) for path in self.results.glob("runs/*")):
                return
            time.sleep(0.005)

    def _at_work(self, process: int) -> int:
        """The process, or a new one where it has ended: done, or it found a run taken."""
        ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            return process
        assert os.waitstatus_to_exitcode(status) in (0, 2)
        return start(self.typed, self.folder)


def is_measured_by(process: int, run: Path) -> bool:
    """Whether a process is at a run whose models are loaded."""
    owner = read_owner(run)
    return owner is not None and owner.pid == process and (read_json(run / "run.json") or {}).get("status") == "running"


def begun_again(results: Path) -> int:
    """How many runs were measured by more than one process."""
    told = [read_json(path) or {} for path in results.glob("runs/*/run.json")]
    return sum(len(one["provenance"]) > 1 for one in told)


def plain_rows(results: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every run but for what a clock says. Each is stored once."""
    found = {}
    for path in sorted((results / "runs").iterdir()):
        folder = RunFolder(results, path.name)
        rows = folder.read_rows()
        lines = [json.loads(line) for line in folder.rows_path.read_text(encoding="utf-8").split("\n") if line]
        assert len(lines) == len(rows) == len({(row["example_id"], row["arm"]) for row in lines})
        assert (read_json(path / "run.json") or {})["status"] == "done" and folder.summary_path.exists()
        told = [{key: at for key, at in vars(row).items() if not is_reading(key)} for row in rows]
        found[path.name] = sorted(told, key=lambda row: (str(row["example_id"]), str(row["arm"])))
    return found


def is_installed(extra: str) -> bool:
    """Whether the plugin of an extra is here."""
    try:
        return find_spec(f"hydra_plugins.hydra_{extra}_launcher") is not None
    except ModuleNotFoundError:
        return False


def check_locks(results: Path) -> None:
    """Every lock can be had, and no job is said to be at work."""
    for path in [*results.rglob("lock"), *lock_folder().rglob("*.lock")]:
        with FileLock(path, timeout=0):
            pass
    with presence() as mine:
        assert mine.others() == 0
