"""One run as W&B sees it, through W&B's own library: the only file that calls it. Light to import; runs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PATIENCE = 30.0  # seconds to wait for a server before giving up
STEP = "live/example"  # what live curves are drawn over
TEXT_COLUMNS = ("text", "token_ids")  # of a stored row, from which its output could be read
TRACKED = "tracked.json"  # beside a run: where it was logged
SWEEP = "WANDB_SWEEP_ID"  # what `wandb agent` tells the runs that it starts
SERVICE = "WANDB_SERVICE"  # by which W&B's library finds a process of its own that runs already
OFFLINE = "offline in "  # begins the place of a log that is not uploaded
DATA = "WANDB_DATA_DIR"  # where W&B keeps the files of artifacts until they are uploaded


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a run is logged. `where`: the folder in which the folder `wandb/` is made."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None
    group: str
    job_type: str
    tags: Sequence[str]
    where: str
    run_id: str
    name: str


def open_wandb(address: Address, config: Mapping[str, Any]) -> Any:
    """W&B's own run under an id of ours; one that `wandb agent` starts goes by the agent's. Raises whatever it does."""
    if address.mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send reports of its own errors
    import wandb  # slow to import, and optional for everything else

    try:
        return wandb.init(
            mode=address.mode,
            project=address.project,
            entity=address.entity,
            group=address.group,
            job_type=address.job_type,
            tags=list(address.tags),
            dir=address.where,
            id=address.run_id,
            name=address.name,
            resume="allow",
            allow_val_change=True,
            config=dict(config),
            settings=_settings(wandb),
        )
    except BaseException:
        wandb.teardown()  # or its process would stay
        raise


def _settings(wandb: Any) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        init_timeout=PATIENCE,
        login_timeout=int(PATIENCE),
        finish_timeout=2 * PATIENCE,
        finish_timeout_raises=True,
    )


def finish_wandb(run: Any, exit_code: int) -> None:
    """End it. Raises whatever goes wrong there."""
    import wandb

    try:
        run.finish(exit_code=exit_code)
    finally:
        wandb.teardown()  # waits for its process to end: files are closed


def check_writable(folder: Path) -> None:
    """W&B would go on in the system's temporary folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{os.getpid()}"
    try:
        probe.write_bytes(b"1")
    finally:
        probe.unlink(missing_ok=True)


def keep_near(where: Path, given: str | None) -> None:
    """Files of artifacts wait beside the run's log, not in the user's home, unless the user has `given` a folder."""
    os.environ[DATA] = given or str(where / "wandb")


def place_of(run: Any, mode: str) -> str:
    """Where a run is: its page, or its folder."""
    return str(run.url) if mode == "online" else f"{OFFLINE}{Path(run.dir).parent}"


def begin_curves(run: Any) -> None:
    """Say what live curves are drawn over; the summary holds final numbers only."""
    run.summary.update({"live": True})
    run.define_metric(STEP, hidden=True, summary="none")
    run.define_metric("live/*", step_metric=STEP, summary="none")


def log_letter(run: Any, letter: Mapping[str, Any]) -> None:
    """Tell all there is to tell. Each log is whole, so the newest is the one that counts."""
    import wandb

    run.config.update(letter["config"], allow_val_change=True)
    run.summary.update(letter["summary"])
    points: dict[str, Any] = {
        name: wandb.Table(columns=told["columns"], data=told["data"]) for name, told in letter["tables"].items()
    }
    for name, told in letter["histograms"].items():
        points[name] = wandb.Histogram(np_histogram=(told["counts"], told["edges"]))
    for name, told in letter["lines"].items():
        xs = [list(range(len(values))) for values in told["arms"].values()]
        points[name] = wandb.plot.line_series(
            xs, list(told["arms"].values()), keys=list(told["arms"]), title=told["title"], xname=told["over"]
        )
    run.log({**points, **letter["objective"]})
    for described in letter["artifacts"]:
        run.log_artifact(make_artifact(described))


def make_artifact(described: Mapping[str, Any]) -> Any:
    """An artifact as experiments.logged.artifacts describes it. Its files are copied to where they wait for W&B."""
    import wandb

    artifact = wandb.Artifact(described["name"], described["type"], metadata=described["metadata"])
    for name, text in described.get("texts", {}).items():
        with artifact.new_file(name, encoding="utf-8") as file:
            file.write(text)
    if rows := described.get("rows"):
        with artifact.new_file("rows.jsonl", encoding="utf-8") as file, open(rows, encoding="utf-8") as stored:
            for line in stored:
                if line.endswith("\n"):  # another process may be writing the last one
                    file.write(line if described["metadata"]["texts"] else without_texts(line))
    if folder := described.get("folder"):
        artifact.add_dir(folder)
    return artifact


def without_texts(line: str) -> str:
    """A line of rows.jsonl from which the output cannot be read."""
    row = json.loads(line)
    kept = {name: value for name, value in row.items() if name not in TEXT_COLUMNS}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"
