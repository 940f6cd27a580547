"""scripts/bench_gpu.sh with programs of ours in the place of Python and of nvidia-smi."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from experiments.config import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "bench_gpu.sh"
PASSES = "#!/bin/sh\nexit 0\n"


def call_script(folder: Path, programs: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """The script on a path with these programs of ours before all others; its PYTHON is `python` there."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": str(folder / "python"), **variables}
    return subprocess.run([str(SCRIPT)], env=known, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("programs", "variables", "told"),
    [
        ({}, {"PYTHON": "/no/python"}, "PYTHON=/no/python: no such program"),
        ({"python": PASSES}, {"SCALES": "1b 9b"}, "SCALES=9b: accepted: 1b 3b 7b"),
        ({"python": "#!/bin/sh\nexit 1\n", "nvidia-smi": PASSES}, {}, "has no torch"),
        (
            {"python": '#!/bin/sh\ncase "$2" in *cuda*) exit 1 ;; esac\n', "nvidia-smi": PASSES}, {},
            "no CUDA: the torch of PYTHON=",
        ),
    ],
)  # fmt: skip
def test_the_script_needs_cuda(tmp_path: Path, programs: dict[str, str], variables: dict[str, str], told: str) -> None:
    done = call_script(tmp_path / "bin", programs, RESULTS=str(tmp_path / "results"), **variables)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("bench_gpu: ") and told in line
    assert done.stdout == "" and not (tmp_path / "results").exists()


def test_the_script_goes_on_after_a_part_that_failed(tmp_path: Path) -> None:
    """A Python that notes how it is called; making 1b fails, and 3b is there."""
    results, out = tmp_path / "results", tmp_path / "out"
    pair = results / "pairs" / "reference_3b" / "target"
    pair.mkdir(parents=True)
    (pair / "config.json").write_text("{}")
    python = f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *widen*) echo no room; exit 1 ;; esac\n'
    done = call_script(
        tmp_path / "bin", {"python": python, "nvidia-smi": "#!/bin/sh\necho A GPU\n"}, RESULTS=str(results),
        OUT=str(out), SCALES="1b 3b",
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()[2:]  # after those that look for torch and for CUDA
    assert done.returncode == 1 and done.stderr == ""
    assert "FAILED pair_1b: exit code 1: no room" in done.stdout and "ok bench_3b" in done.stdout
    checks, widen, bench = calls
    assert "test_graphs.py" in checks and "--scale 1b --device cuda" in widen
    for part in ("pair.scale=3b", "engine.device=cuda", "engine.dtype=bfloat16", "methods=[sd_heuristic,"):
        assert part in bench
    assert "via_sd_paper" in bench and ",via_sd," not in bench  # via_sd is there anyway
    assert (out / "bench" / "logs" / "bench_3b.log").is_file()


def test_the_script_ends_what_takes_too_long(tmp_path: Path) -> None:
    slow = '#!/bin/sh\ncase "$*" in *pytest*) exec sleep 30 ;; esac\n'
    done = call_script(
        tmp_path / "bin", {"python": slow, "nvidia-smi": PASSES}, RESULTS=str(tmp_path / "results"), LIMIT="3"
    )
    assert done.returncode == 1 and "FAILED checks: not done after" in done.stdout
    assert "FAILED pair_7b: no time is left of LIMIT=3 s" in done.stdout and "4 parts failed" in done.stdout
