"""What has to be measured before a run that depends on it, and is stored: shares of a gate, costs of calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import combinations
from statistics import median
from typing import Any

from baselines.pearl import CostRatio
from baselines.stops import CostAwareLength
from experiments import identity
from experiments.arms import Shares
from experiments.config import Job
from experiments.costs import FED, CallCosts, calibrate
from experiments.errors import UserError
from experiments.launching.locks import alone_on, device_names
from experiments.loading import decode_settings, describe, load_for
from experiments.resolve import SHARE_PROMPTS, gate_shares
from experiments.store import create_folder, read_json, settle_json
from viasd.drafting import FixedLength
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method, MethodSpec
from viasd.verification import RuleVerifier

CALIBRATED = ("pair", "device", "dtype", "threads", "mode", "versions", "code_hash")  # what call costs belong to
NO_COST = 1e-6  # of a drafter that runs no model, relative to a target step
DEFAULT_BLOCK = 5  # drafted tokens of a block whose costs are told where no length is fixed


class NotMeasured(Exception):
    """A run depends on what was never measured and may not be measured now."""


def smooth(costs: Mapping[int, float]) -> dict[int, float]:
    """Costs of one token, of two and of the most: the first as measured, the others on the line through all but it.

    The line has the median slope of all pairs of points (Theil and Sen). Differences of single costs, which a stop rule
    weighs, are mostly what else the machine did: a rule that used them lost up to a third of its speed in a trial.
    """
    first, *more = sorted(costs)
    slope = max(0.0, median((costs[b] - costs[a]) / (b - a) for a, b in combinations(more, 2)))
    base = median(costs[fed] - slope * fed for fed in more)
    line = {fed: base + slope * fed for fed in (more[0], more[-1])}
    return {first: min(costs[first], line[more[0]]), **line}


@dataclasses.dataclass
class Beforehand:
    """Measures when asked. `longest`: tokens of the task's longest prompt; `who`: the surroundings of the run."""

    job: Job
    tokenizer: Any
    longest: int
    who: dict[str, Any]
    may_measure: bool
    engine: Engine | None = None  # loaded for it, of use to the run

    def gate_shares(self, method: MethodSpec) -> Shares:
        """How often the method's gate says each region, on calibration prompts. Raises NotMeasured."""
        job = self.job
        problems = job.task.in_seen_wording().examples("calibration", SHARE_PROMPTS)
        calibration = [self.tokenizer(one.prompt).input_ids for one in problems]
        asked = {
            **self.who,
            "method": describe(method),
            "sampling": describe(job.sampling),
            "max_new_tokens": job.task.max_new_tokens,
            "stop_strings": job.task.stop_strings,
            "prompts": calibration,
            "seed": job.settings.seed,
        }

        def measure() -> dict[str, Any]:
            engine = self._load(method, max(self.longest, *map(len, calibration)))
            decode = decode_settings(job, self.tokenizer)
            return {"shares": gate_shares(method, engine, calibration, decode, job.settings.seed)}

        keep, rewrite, escalate, judge = self._stored("gate", asked, measure)["shares"]
        return keep, rewrite, escalate, judge

    def priced(self, method: MethodSpec) -> MethodSpec:
        """The method with what its parts want to know of costs. Raises NotMeasured."""
        if not isinstance(method, Method):
            return method
        return self._price_stop(self._price_calls(self._with_cost_ratio(method)))

    def _with_cost_ratio(self, method: Method) -> Method:
        """The method with as many drafted tokens as take one step of the target, if that is what its stop rule says."""
        stop = method.stop
        if not isinstance(stop, CostRatio) or stop.length is not None:
            return method
        drafts = sorted(method.drafter.roles)
        if len(drafts) != 1:
            raise UserError(f"stop.length=null: {method.name} drafts with {len(drafts)} models; accepted: a number")
        asked = {**{key: self.who[key] for key in CALIBRATED}, "drafter": describe(method.drafter)}

        def measure() -> dict[str, Any]:
            costs, _ = self._calibrate(method)
            return {name: costs.seconds(method.name, role, 1) for name, role in (("draft", drafts[0]), ("target",) * 2)}

        found = self._stored("ratio", asked, measure)
        return dataclasses.replace(method, stop=stop.with_costs(found["draft"], found["target"]))

    def _price_calls(self, method: Method) -> Method:
        """With the costs of the call rule, relative to the target's. Raises NotMeasured."""
        verifier = method.verifier
        calls = verifier.calls if isinstance(verifier, Hierarchical) else None
        if calls is None or None not in (calls.draft_cost, calls.slim_cost, calls.target_cost):
            return method
        asked = {**{key: self.who[key] for key in CALIBRATED}, "method": describe(method)}

        def measure() -> dict[str, Any]:
            costs, drafters = self._calibrate(method)
            fed = 1 + (method.stop.length if isinstance(method.stop, FixedLength) else DEFAULT_BLOCK)
            target = costs.seconds(method.name, "target", fed)
            draft = costs.seconds(method.name, drafters[0], 1) if drafters else target
            return {"draft": draft / target, "slim": costs.seconds(method.name, "slim", fed) / target}

        found = self._stored("prices", asked, measure)
        relative = {f"{name}_cost": float(f"{value:.3g}") for name, value in {**found, "target": 1.0}.items()}
        told: dict[str, Any] = {name: value for name, value in relative.items() if getattr(calls, name) is None}
        verifier = dataclasses.replace(verifier, calls=dataclasses.replace(calls, **told))  # type: ignore[type-var]
        return dataclasses.replace(method, verifier=verifier)

    def _price_stop(self, method: Method) -> Method:
        """With the costs of a cost-aware stop rule, by tokens fed. Raises UserError where nothing is judged."""
        stop, verifier = method.stop, method.verifier
        if not isinstance(stop, CostAwareLength) or None not in (stop.draft_cost, stop.target_cost):
            return method
        judge = verifier.reader if isinstance(verifier, RuleVerifier) else "target"
        if "target" not in verifier.roles:
            raise UserError(
                f"arm {method.name}: its stop rule weighs drafting against the target's calls, and its verifier has "
                "none; accepted: another stop rule, or stop.draft_cost and stop.target_cost"
            )
        asked = {**{key: self.who[key] for key in CALIBRATED}, "method": describe(method)}

        def measure() -> dict[str, Any]:
            costs, drafters = self._calibrate(method)
            unit = costs.seconds(method.name, judge, 1)

            def curve(*roles: str) -> list[tuple[int, float]]:
                seconds = {fed: sum(costs.seconds(method.name, role, fed) for role in roles) for fed in FED}
                return [(fed, value / unit) for fed, value in smooth(seconds).items()]

            return {"draft": curve(*drafters), "target": curve(judge)}

        found = {
            name: {int(fed): max(float(f"{value:.3g}"), NO_COST) for fed, value in curve}
            for name, curve in self._stored("prices", asked, measure).items()
        }
        stop = dataclasses.replace(
            stop, draft_cost=stop.draft_cost or found["draft"], target_cost=stop.target_cost or found["target"]
        )
        return dataclasses.replace(method, stop=stop)

    def _calibrate(self, method: Method) -> tuple[CallCosts, list[str]]:
        """Costs of a method's readers, and the roles of those that its drafter opens of its own."""
        engine = self._load(method, self.longest)
        who = {key: self.who[key] for key in CALIBRATED}
        opened = dataclasses.replace(method, stop=FixedLength()).open(engine)  # its own stop rule may wait for them
        readers = engine.readers()
        method.drafter.open_drafter(readers)
        drafters = [reader.role for reader in readers.opened() if reader.role != "target"]
        with alone_on(device_names(engine.device), f"call costs of pair {self.job.pair.name}"):
            return calibrate(engine, {method.name: opened}, who, self.job.settings.results), drafters

    def _stored(self, kind: str, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        results = self.job.settings.results
        path = results / "settled" / f"{kind}_{identity.digest(asked)}.json"
        stored = read_json(path)
        if stored is None:
            if not self.may_measure:
                raise NotMeasured
            create_folder(path.parent, results)
            stored = settle_json(path, measure())
        return stored

    def _load(self, method: MethodSpec, longest: int) -> Engine:
        self.engine = load_for(self.job, [method], longest, self.engine)
        return self.engine
