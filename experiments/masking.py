"""What a search for masks needs from the experiments: a log on disk, and replays that price a mask."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.arms import lossless, slim_only
from experiments.costs import CONTEXT, FED, REPEATS, Cost, CostCurve, open_readers, time_readers
from experiments.errors import UserError
from experiments.probing.agreement import Forced, drafter_rows
from experiments.probing.predict import replay
from experiments.probing.setup import Prompt
from experiments.store import whole_lines
from viasd.decode import Decode
from viasd.dimr import Trial
from viasd.drafting import DraftModel
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method, MethodSpec
from viasd.models import Kept
from viasd.routing import RatioGate
from viasd.sampling import Sampling, widen
from viasd.scoring import Text
from viasd.verification import SlimView

RATIOS = (0.5, 0.9, 1.0)  # of gates that keep or escalate, among which the fastest at a fidelity is chosen


class TrialLog:
    """Trials as JSON lines behind a first line that says what they are trials of.

    Raises UserError when the file holds another search. A line that a kill cut short is removed.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        known = read_header(path)
        if known is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_line(header))
        elif json.loads(_line(header)) != known:
            differing = sorted(key for key in {*known, *header} if known.get(key) != json.loads(_line(header)).get(key))
            raise UserError(f"log={path}: holds a search with another {', '.join(differing)}; accepted: another --log")
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
        lines = [json.loads(line) for line in whole_lines(content)[1:]]
        self.trials = [Trial(**{**line, "mask": tuple(line["mask"])}) for line in lines]

    def append(self, trial: Trial) -> None:
        """Store a trial; it has reached the disk when this returns."""
        with self._path.open("a") as file:
            file.write(_line(asdict(trial)))
            file.flush()
            os.fsync(file.fileno())


def read_header(path: Path) -> dict[str, Any] | None:
    """The first line of a log, None where there is none, or not a whole one."""
    lines = whole_lines(path.read_bytes()) if path.exists() else []
    return json.loads(lines[0]) if lines else None


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


# --- replays ------------------------------------------------------------------------------------------------------


def calibrate(engine: Engine, kept: Kept, seed: int = 0) -> dict[str, dict[int, float]]:
    """Seconds of a call by reader and tokens fed; every mask of a space has as many units as `kept`."""
    lengths = [fed for fed in FED if fed < engine.slots]
    context = max(1, min(CONTEXT, engine.slots - lengths[-1]))
    timed = open_readers(engine, "draft", {"slim": kept})
    curves = time_readers(engine, timed, lengths, context, REPEATS, seed=seed)
    return {name: {fed: cost.median for fed, cost in curve.steps.items()} for name, curve in curves.items()}


def curves_of(seconds: Mapping[str, Mapping[Any, float]]) -> dict[str, CostCurve]:
    """Cost curves of what `calibrate` found; keys that went through JSON are text."""
    return {
        name: CostCurve({int(fed): Cost(one, one, one) for fed, one in steps.items()})
        for name, steps in seconds.items()
    }


@dataclass(frozen=True)
class Worth:
    """What a method came to on all texts."""

    rejection: float  # rejected / judged
    fidelity: float
    seconds_per_token: float  # inside calls, at calibrated costs


class Replays:
    """More measures of a mask, from greedy decoding on stored rows (`experiments.probing.predict`).

    `rejection`: rejected / judged of the method as it stands. A low one is no merit in itself: a view that keeps every
    draft has none. `tokens_per_second`: inside calls, at calibrated costs, of the fastest setting whose fidelity is at
    least `min_fidelity`: the method, with ratio gates that keep or escalate at RATIOS, and slim_only. Where no setting
    is so good it is sd's speed, which always is, times 1 less what the best one lacks; so masks stay in order.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[Text],
        method: MethodSpec,
        min_fidelity: float,
        costs: Mapping[str, CostCurve],
    ) -> None:
        if (
            not isinstance(method, Method)
            or not isinstance(method.verifier, Hierarchical)
            or not isinstance(method.drafter, DraftModel)
        ):
            raise UserError(
                f"method={method.name}: accepted: a draft model under a hierarchical verifier, as in via_sd"
            )
        slim = SlimView(mask=[0])  # stored rows stand in for whatever view
        verifier = replace(method.verifier, slim=slim)
        self._method = replace(method, verifier=verifier)
        gates = [RatioGate(accept_ratio=ratio, escalate_ratio=ratio) for ratio in RATIOS]
        gated = [replace(method, verifier=replace(verifier, gate=gate)) for gate in gates]
        self._settings = [self._method, *gated, slim_only(self._method)]
        role = method.drafter.role
        self._texts = [force_draft(engine, text, role) for text in texts]
        self._min_fidelity, self._costs = min_fidelity, costs
        self.sd = self.worth(lossless(method), [text.rows for text in texts])  # no slim row is read

    def __call__(self, rows: Sequence[Tensor]) -> dict[str, float]:
        """Measures of the view whose rows [n, V] these are, one tensor per text."""
        worths = [self.worth(setting, rows) for setting in self._settings]
        good = [one.seconds_per_token for one in worths if one.fidelity >= self._min_fidelity]
        lack = self._min_fidelity - max(one.fidelity for one in worths)
        own = worths[0]
        return {
            "rejection": own.rejection,
            "fidelity": own.fidelity,
            "seconds_per_token": own.seconds_per_token,
            "tokens_per_second": 1 / min(good) if good else (1 - lack) / self.sd.seconds_per_token,
        }

    def worth(self, method: Method, rows: Sequence[Tensor]) -> Worth:
        """Replay one method on every text."""
        replays = [
            replay(method, replace(text, rows={**text.rows, "slim": slim}))
            for text, slim in zip(self._texts, rows, strict=True)
        ]
        tokens = sum(one.tokens for one in replays)
        return Worth(
            rejection=sum(one.rejected for one in replays) / max(1, sum(one.judged for one in replays)),
            fidelity=sum(one.equal for one in replays) / tokens,
            seconds_per_token=sum(one.seconds(self._costs) for one in replays) / tokens,
        )


@torch.inference_mode()
def force_draft(engine: Engine, text: Text, role: str) -> Forced:
    """A text with the rows of target and draft model. A draft that reaches beyond its end meets the last row again."""
    draft = drafter_rows(engine.readers().get(role), text.ids[:-1], text.first, len(text.ids) - 1)
    prompt = Prompt("search", text.ids[: text.first].tolist(), Decode(Sampling(), text.length))
    rows = {"target": widen(text.rows, text.rows.shape[1]), role: draft}
    return Forced(prompt, text.length, rows, {}, {})
