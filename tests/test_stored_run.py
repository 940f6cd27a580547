"""The refactor check on a stored run: the same job today gives the same token ids and counts.

`python tests/test_stored_run.py` measures the stored run anew, after a change that is meant to change rows (say so in
docs/LOG.md), or when the embedded pair or its tasks change.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).with_name("stored_run")
ARMS = "[vanilla,sd,method,via_sd_paper,slim_only,accept_all,random_gate,coin_mix@0.8,draft_only,sd_heuristic]"
JOB = ["task=summarization", "decode=sample", f"arms={ARMS}", "limit=1", "quality_limit=3", "task.max_new_tokens=32"]
# float64, so that no library's kernels decide a token.
FIXED = ["engine.dtype=float64", "engine.threads=1", "track=none", "task.test_size=6"]


def measure(results: Path) -> Path:
    """Run the job; return its folder."""
    command = [sys.executable, "-m", "experiments.run", *JOB, *FIXED, f"results_dir={results}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (folder,) = (results / "runs").iterdir()
    return folder


def test_a_stored_run_is_repeated(tmp_path: Path) -> None:
    folder = measure(tmp_path)
    command = [sys.executable, "-m", "experiments.compare", str(STORED), str(folder), "--counts-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ids and counts are identical in all 30 rows" in done.stdout
    rows = folder / "rows.jsonl"
    changed = [json.loads(line) for line in rows.read_text().splitlines()]
    changed[4]["token_ids"][-1] += 1
    changed[9]["tiers"] = {"draft": 1000}
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "differ in 2 of 30 rows" in done.stdout


def main() -> None:
    """Replace the stored run."""
    with tempfile.TemporaryDirectory() as place:
        folder = measure(Path(place))
        STORED.mkdir(exist_ok=True)
        shutil.copy(folder / "rows.jsonl", STORED)
        run = json.loads((folder / "run.json").read_text())
    kept = {key: run[key] for key in ("status", "identity", "notices")}
    kept["identity"]["device"] = "any"
    (STORED / "run.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
