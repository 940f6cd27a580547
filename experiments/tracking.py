"""Where a finished run is logged besides its folder. Called after the last timed pass; never fails a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from experiments.records import Row
from viasd.spec import spec

PATIENCE = 30.0  # seconds to wait for a server before giving up
COUNTS = ("rounds", "drafted", "judged", "rejected", "unjudged", "discarded", "cut", "target_rejected", "tie_flips")
COLUMNS = (
    "example_id", "arm", "index", "error", "prompt_tokens", "new_tokens", "finish_reason", "quality", "fidelity",
    "decode_seconds", "prefill_seconds", *COUNTS,
)  # fmt: skip


@runtime_checkable
class Tracking(Protocol):
    """Configuration of a tracker. `log_run` returns a line that says where the run went or why it did not."""

    def log_run(
        self, *, run_id: str, config: dict[str, Any], summary: Mapping[str, Any], rows: Sequence[Row], folder: Path
    ) -> str | None: ...


@spec
class NoTracking:
    """The run folder is all there is."""

    def log_run(
        self, *, run_id: str, config: dict[str, Any], summary: Mapping[str, Any], rows: Sequence[Row], folder: Path
    ) -> str | None:
        return None


@spec
class WandbTracking:
    """Weights & Biases: config, summary and one table of rows, under the run's own id.

    `offline` writes files that `wandb sync` uploads later; `online` uploads them now. `dir`: the folder in which the
    folder `wandb/` is made (null: the run's own). `texts`: whether the table holds the output texts.
    """

    mode: Literal["offline", "online"] = "offline"
    project: str = "viasd"
    dir: str | None = None
    texts: bool = False

    def log_run(
        self, *, run_id: str, config: dict[str, Any], summary: Mapping[str, Any], rows: Sequence[Row], folder: Path
    ) -> str | None:
        where = Path(self.dir).expanduser() if self.dir else folder
        try:
            return self._log(run_id, config, flatten(summary), table(rows, self.texts), where)
        except Exception as error:  # whatever goes wrong there, the run itself is complete
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return f"wandb: not logged ({reason})"

    def _log(
        self, run_id: str, config: dict[str, Any], numbers: dict[str, float], rows: list[list[Any]], where: Path
    ) -> str:
        _check_writable(where)
        import wandb  # slow to import, and optional for everything else

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            init_timeout=PATIENCE,
            login_timeout=int(PATIENCE),
            finish_timeout=2 * PATIENCE,
        )
        try:
            run = wandb.init(
                mode=self.mode,
                project=self.project,
                dir=str(where),
                id=run_id,
                name=run_id,
                resume="allow",
                config=config,
                settings=settings,
            )
            try:
                run.summary.update(numbers)
                run.log({"rows": wandb.Table(columns=[*columns(self.texts)], data=rows)})
                place = run.url if self.mode == "online" else f"offline in {Path(run.dir).parent}"
            finally:
                run.finish()
        finally:
            wandb.teardown()  # waits for its process to end: files are whole, and nothing runs beside the next job
        return f"wandb: {place}"


def flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """`arm/metric`, and `arm/metric/low`, `arm/metric/high` where there is an interval."""
    numbers: dict[str, float] = {}
    for arm, metrics in summary.items():
        for name, entry in metrics.items():
            ends = entry if isinstance(entry, Mapping) else {"value": entry}
            for end, number in ends.items():
                numbers[f"{arm}/{name}" if end == "value" else f"{arm}/{name}/{end}"] = number
    return numbers


def columns(texts: bool) -> list[str]:
    """Columns of the table of rows."""
    return [*COLUMNS, "text"] if texts else list(COLUMNS)


def table(rows: Sequence[Row], texts: bool) -> list[list[Any]]:
    """One line per row, scalars only; seconds are means over repeats."""
    return [[_value(row, name) for name in columns(texts)] for row in rows]


def _value(row: Row, name: str) -> Any:
    if name == "fidelity":
        return 1.0 - sum(row.token_loss) / len(row.token_loss) if row.token_loss else None
    value = getattr(row, name)
    if isinstance(value, list):
        return sum(value) / len(value) if value else None
    return value


def _check_writable(folder: Path) -> None:
    """W&B would go on in the system's temporary folder."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
