"""Measure the rows that come with the notebooks anew, and pack them into experiments/notebooks/data.

    python scripts/notebook_runs.py --results results/notebooks              # half an hour, one core
    python scripts/notebook_runs.py --results results/notebooks --pack-only  # of rows that are there
    python -m experiments.notebooks.execute

What is packed says nothing of the commit or the load: a run's identity, notices and rows, and the probe's numbers.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.entry import run_command  # noqa: E402
from experiments.errors import UserError  # noqa: E402
from experiments.notebooks.reading import SHIPPED  # noqa: E402
from experiments.store import read_json  # noqa: E402

PAIR, TASKS = "reference", "reasoning,qa"
RUN = ("schema_version", "run_id", "status", "identity", "notices", "memory")  # what is kept of run.json
LEFT_OUT = ("config", "provenance", "identity")  # of probe.json
DEFERRAL = "verifier/gate=deferral verifier.gate.threshold"
ARMS: dict[str, str] = {
    "sd_3": "method=sd stop.length=3",
    "sd_5": "method=sd stop.length=5",
    "sd_12": "method=sd stop.length=12",
    "a1_e1": "verifier.gate.accept_ratio=1 verifier.gate.escalate_ratio=1",
    "a1_e0.5": "verifier.gate.accept_ratio=1 verifier.gate.escalate_ratio=0.5",
    "a0.9_e0.9": "verifier.gate.accept_ratio=0.9 verifier.gate.escalate_ratio=0.9",
    "a0.9_e0.5": "verifier.gate.accept_ratio=0.9 verifier.gate.escalate_ratio=0.5",
    "d_0.6": f"{DEFERRAL}=0.6",
    "d_0.8": f"{DEFERRAL}=0.8",
    "d_0.95": f"{DEFERRAL}=0.95",
    "d_0.8_4": f"{DEFERRAL}=0.8 stop.length=4",
    "d_0.8_skip_0.45": f"{DEFERRAL}=0.8 verifier.slim.skip_ratio=0.45",
    "lr_0.05": "method=via_sd_learned stop.length=8",
    "exact": "method=via_sd_exact stop.length=8",
    "budget": "method=via_sd_budget stop.length=8",
}
LAST = (
    "adasd", "via_sd_paper", "slim_only", "slim_only@0.45", "accept_all", "draft_only", "coin_mix@0.9", "coin_mix@0.8",
    "coin_slim@0.5",
)  # fmt: skip


def measure(results: Path) -> None:
    """Run the arms on both tasks and probe the pair; what is stored is not measured again."""
    changed = [f'{{{name}: "{keys}"}}' for name, keys in ARMS.items()]
    common = [f"pair={PAIR}", "engine.threads=1", f"results_dir={results}"]
    arms = f"arms=[{','.join(['vanilla', 'sd', 'method', *changed, *LAST])}]"
    run = ["-m", f"task={TASKS}", "method=via_sd", "method.stop.length=8", "limit=12", "quality_limit=32", arms]
    for command in (["experiments.run", *run, "track=none"], ["experiments.probe", f"tasks=[{TASKS}]"]):
        subprocess.run([sys.executable, "-m", *command, *common], cwd=ROOT, check=True)


def pack(results: Path, folder: Path) -> list[Path]:
    """Replace what `folder` holds by the finished runs and probes of a results folder.

    Raises UserError where there are no finished runs.
    """
    runs = {path.parent: read_json(path) or {} for path in sorted((results / "runs").glob("*/run.json"))}
    done = {path: run for path, run in runs.items() if run.get("status") == "done"}
    if not done:
        raise UserError(f"--results {results}: no finished runs there; accepted: a results folder")
    shutil.rmtree(folder, ignore_errors=True)
    written = []
    for path, run in done.items():
        kept = {key: run[key] for key in RUN if key in run}
        written.append(write(folder / "runs" / path.name / "run.json.gz", in_json(kept)))
        written.append(write(folder / "runs" / path.name / "rows.jsonl.gz", (path / "rows.jsonl").read_bytes()))
    for path in sorted((results / "probes").glob("*/probe.json")):
        kept = {key: value for key, value in (read_json(path) or {}).items() if key not in LEFT_OUT}
        written.append(write(folder / "probes" / path.parent.name / "probe.json.gz", in_json(kept)))
    return written


def in_json(content: dict[str, Any]) -> bytes:
    """As the files of a results folder are written."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def write(path: Path, content: bytes) -> Path:
    """Pack a file; the same content gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 9, mtime=0))
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="a results folder of its own")
    parser.add_argument("--pack-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    results = options.results.resolve()
    if not options.pack_only:
        measure(results)
    for path in pack(results, SHIPPED):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    run_command(main)
