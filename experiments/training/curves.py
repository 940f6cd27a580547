"""Where a training tells how it goes: a file of JSON lines, and W&B on request. Tracking never fails a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from baselines.eagle.training import Measured
from experiments.errors import UserError
from experiments.logged.session import PATIENCE, Address, check_writable, finish_wandb, open_wandb, place_of
from experiments.patience import Hung, within
from experiments.store import whole_lines
from experiments.tracking import NoTracking, Tracking, WandbTracking


def name_points(measured: Measured, rate: float) -> dict[str, float]:
    """The points of one step: the total loss, loss and agreement of each step of the unrolled head, the rate."""
    own = {"train/loss": measured.total, "train/rate": rate}
    for step, (loss, agreement) in enumerate(zip(measured.losses, measured.agreements, strict=True)):
        own |= {f"train/loss_{step}": loss, f"train/agreement_{step}": agreement}
    return own


class Curves:
    """The points of a training by step, in `log.jsonl` of its folder and, where it is tracked, in W&B.

    What goes wrong in W&B ends the tracking; `close` returns it in one line.
    """

    def __init__(self, folder: Path, tracking: Tracking) -> None:
        if not isinstance(tracking, NoTracking | WandbTracking):
            raise UserError(f"track={type(tracking).__name__}: a training is tracked by none or wandb")
        self.path, self._folder, self._tracking = folder / "log.jsonl", folder, tracking
        self._run: Any = None
        self._error: Exception | None = None

    def open(self, step: int, training_id: str, group: str, config: Mapping[str, Any]) -> None:
        """Begin, or go on after `step` steps: what was told of later ones is told again."""
        points = [one for one in self.read() if one["step"] <= step]
        self.path.write_text("".join(json.dumps(one) + "\n" for one in points), encoding="utf-8")
        tracking = self._tracking
        if isinstance(tracking, WandbTracking):
            where = Path(tracking.dir).expanduser() if tracking.dir else self._folder
            self._attempt(lambda: check_writable(where))
            address = Address(
                mode=tracking.mode,
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group or group,
                job_type="training",
                tags=tracking.tags,
                where=str(where),
                run_id=training_id,
                name=training_id,
            )
            self._run = self._attempt(lambda: open_wandb(address, config), 2 * PATIENCE)
            self._attempt(self._define)

    def _define(self) -> None:
        self._run.define_metric("step")
        for curves in ("train/*", "validation/*"):
            self._run.define_metric(curves, step_metric="step")

    def tell(self, step: int, points: Mapping[str, float]) -> None:
        """Points after so many steps."""
        line = {"step": step, **points}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._run is not None:
            self._attempt(lambda: self._run.log(line))

    def read(self) -> list[dict[str, float]]:
        """All points told so far, in their order."""
        return [json.loads(line) for line in whole_lines(self.path.read_bytes())] if self.path.exists() else []

    def close(self, exit_code: int) -> str | None:
        """However it ended. Where it was tracked, or why it was not."""
        run, self._run = self._run, None
        if run is not None and not isinstance(self._error, Hung):
            place = place_of(run, "online" if run.url else "offline")
            self._attempt(lambda: finish_wandb(run, exit_code), 3 * PATIENCE)
            if self._error is None:
                return f"wandb: {place}"
        if self._error is not None:
            return "wandb: not logged ({}: {})".format(type(self._error).__name__, " ".join(str(self._error).split()))
        return None

    def _attempt(self, step: Callable[[], Any], patience: float = PATIENCE) -> Any:
        if self._error is None:
            try:
                return within(patience, step)
            except Exception as error:
                self._error = error
        return None
