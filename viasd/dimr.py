"""DIMR: search for the layers, or branches of layers, that a slim view skips (VIA-SD sec. 3.4, Eq. 12-13).

The paper leaves much open (reference, section 5). Given by it: a fixed number of skipped units, the objective, a random
mask at each step but every theta-th, where Bayesian optimization proposes one, and two stops. Ours: alpha 0 and beta 1,
the texts (the target's own outputs) and their windows, the cache mode of the run, even spacing as the first mask, no
mask twice, the ends kept, how a Gaussian process over [0, 1] per unit is turned into masks, theta and patience.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from viasd.models import Branches, PairError, skipped_count
from viasd.spec import spec

Unit = Literal["layer", "branch"]
Origin = Literal["even", "random", "bayesian", "enumerated"]
ENUMERATED: Origin = "enumerated"
Mask = tuple[int, ...]  # skipped units, ascending

MAXIMIZED = frozenset({"agreement", "tokens_per_second"})  # every other measure is better when it is smaller
LISTED = 50_000  # spaces up to this many masks are listed when drawing gets no untried one
DRAWS = 200
ENUMERABLE = 1_000_000


# --- masks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """All masks that skip round(ratio x units) units: of `layers` layers, or of their 2 x `layers` branches.

    Unit i is layer i, or 2 i the attention and 2 i + 1 the mlp of layer i. With `keep_ends` the first and the last
    layer stay whole. Raises PairError where more is to be skipped than may be.
    """

    layers: int
    skip_ratio: float
    unit: Unit = "layer"
    keep_ends: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.skip_ratio < 1:
            raise PairError(f"skip_ratio={self.skip_ratio}: accepted: 0 <= skip_ratio < 1")
        if self.skip > len(self.free):
            raise PairError(
                f"skip_ratio={self.skip_ratio} skips {self.skip} of {self.units} units; at most {len(self.free)} may be"
                + (
                    " skipped while the first and last layer are kept (keep_ends=true)"
                    if self.keep_ends
                    else " skipped"
                )
            )

    @property
    def parts(self) -> int:
        """Units of a layer."""
        return 1 if self.unit == "layer" else 2

    @property
    def units(self) -> int:
        return self.parts * self.layers

    @property
    def skip(self) -> int:
        """How many units every mask skips."""
        return skipped_count(self.units, self.skip_ratio)

    @property
    def free(self) -> range:
        """The units that may be skipped."""
        return range(self.parts, self.units - self.parts) if self.keep_ends else range(self.units)

    @property
    def size(self) -> int:
        """Number of masks."""
        return comb(len(self.free), self.skip)

    def even(self) -> Mask:
        """Evenly spaced among the free units; for layers that is `models.even_mask`."""
        step = len(self.free) / self.skip if self.skip else 0
        return tuple(self.free[int((index + 0.5) * step)] for index in range(self.skip))

    def all(self) -> Iterator[Mask]:
        """Every mask, in lexicographic order."""
        return combinations(self.free, self.skip)

    def kept(self, mask: Mask) -> list[int] | Branches:
        """What a view with this mask keeps."""
        if self.unit == "layer":
            return [index for index in range(self.layers) if index not in mask]
        kept = [index for index in range(self.units) if index not in mask]
        return Branches(
            attention=tuple(index // 2 for index in kept if index % 2 == 0),
            mlp=tuple(index // 2 for index in kept if index % 2 == 1),
        )


# --- search -------------------------------------------------------------------------------------------------------


@spec
class Plan:
    """How masks are chosen. `every`: each how many-th step is a Bayesian proposal (the paper's theta); 0: none.

    `search`: `guided`, or `enumerate`, which takes every mask once. `trials`: masks to score at most (the paper's S).
    `patience`: stop when that many masks in a row were no better than the best one (null: never).
    """

    search: Literal["guided", "enumerate"] = "guided"
    trials: Annotated[int, Field(ge=1)] = 100
    every: Annotated[int, Field(ge=0)] = 5
    patience: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Trial:
    """One scored mask. `seconds`: what choosing and scoring it took, by the caller's clock."""

    mask: Mask
    origin: Origin
    measures: dict[str, float]
    seconds: float = 0.0


class Log(Protocol):
    """Where trials are kept: `trials` are those of before, `append` has stored one when it returns."""

    @property
    def trials(self) -> Sequence[Trial]: ...
    def append(self, trial: Trial) -> None: ...


def run_search(
    space: Space,
    plan: Plan,
    objective: str,
    score: Callable[[Mask], Mapping[str, float]],
    log: Log,
    clock: Callable[[], float] = lambda: 0.0,
) -> list[Trial]:
    """Score masks until one of the plan's stops; returns all trials, those that the log held before first.

    Each step is a function of the plan and of the trials before it, whose seeds are its own: a search that was killed
    goes on from its log as if it had not been. `clock` gives seconds; nothing is decided by them. Raises ValueError for
    an objective that is not measured, and for more masks than can be enumerated.
    """
    if plan.search == "enumerate" and space.size > ENUMERABLE:
        raise ValueError(f"search=enumerate: {space.size} masks; accepted: at most {ENUMERABLE}, else search=guided")
    done = list(log.trials)
    every = list(space.all()) if plan.search == "enumerate" else []
    limit = len(every) or min(plan.trials, space.size)
    while len(done) < limit and not is_patience_over(done, plan, objective):
        started = clock()
        mask, origin = propose(space, plan, objective, done) if not every else (every[len(done)], ENUMERATED)
        trial = Trial(mask, origin, dict(score(mask)), round(clock() - started, 4))
        if objective not in trial.measures:
            raise ValueError(f"objective={objective}: accepted: {', '.join(sorted(trial.measures))}")
        log.append(trial)
        done.append(trial)
    return done


def best(trials: Sequence[Trial], objective: str) -> Trial:
    """The first of the best."""
    sign = -1 if objective in MAXIMIZED else 1
    return min(trials, key=lambda trial: sign * trial.measures[objective])


def is_patience_over(done: Sequence[Trial], plan: Plan, objective: str) -> bool:
    """Whether the last `patience` trials brought nothing better. Never, where everything is to be scored."""
    if plan.patience is None or plan.search == "enumerate" or len(done) <= plan.patience:
        return False
    return best(done, objective) in done[: -plan.patience]


def propose(space: Space, plan: Plan, objective: str, done: Sequence[Trial]) -> tuple[Mask, Origin]:
    """The next mask that was not tried: even spacing, then random ones and each `every`-th a Bayesian one (Eq. 13)."""
    step = len(done)
    if step == 0:
        return space.even(), "even"
    chance, tried = random.Random(f"{plan.seed}/{step}"), {trial.mask for trial in done}
    if plan.every and step % plan.every == 0:
        wishes = bayesian_wishes(space, objective, done, chance.randrange(2**31))
        return _nearest_untried(space, wishes, tried, chance), "bayesian"
    return draw_untried(space, tried, chance), "random"


def draw_untried(space: Space, tried: set[Mask], chance: random.Random) -> Mask:
    """A mask drawn uniformly from those not tried. Raises ValueError when there is none."""
    for _ in range(DRAWS):
        mask = tuple(sorted(chance.sample(space.free, space.skip)))
        if mask not in tried:
            return mask
    if space.size > LISTED:
        raise ValueError(f"{len(tried)} of {space.size} masks are tried; accepted: fewer trials")
    left = [mask for mask in space.all() if mask not in tried]
    if not left:
        raise ValueError(f"all {space.size} masks are tried; accepted: fewer trials")
    return chance.choice(left)


def bayesian_wishes(space: Space, objective: str, done: Sequence[Trial], seed: int) -> list[float]:
    """How much a Gaussian process wants each free unit skipped, from 0 to 1: the point of its largest acquisition.

    The process sees masks as corners of a cube, and its optimum in the cube's inside is rounded by the caller (ours).
    Raises PairError where optuna or what its sampler needs is not installed.
    """
    try:
        import optuna
        import scipy  # noqa: F401  (the sampler would fail late without it)
    except ImportError as error:
        raise PairError(
            f"every: {error.name} is not installed; accepted: pip install viasd[tune], or every=0"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    among: dict[str, Any] = {str(unit): optuna.distributions.FloatDistribution(0, 1) for unit in space.free}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)
    study = optuna.create_study(direction="maximize" if objective in MAXIMIZED else "minimize", sampler=sampler)
    for trial in done:
        corner = {str(unit): float(unit in trial.mask) for unit in space.free}
        study.add_trial(optuna.trial.create_trial(params=corner, distributions=among, value=trial.measures[objective]))
    wished = study.ask(among).params
    return [wished[str(unit)] for unit in space.free]


def _nearest_untried(space: Space, wishes: Sequence[float], tried: set[Mask], chance: random.Random) -> Mask:
    """The mask of the most wished units; where that was tried, one under a little noise, and ever more of it."""
    for attempt in range(DRAWS):
        noisy = [wish + attempt / 50 * chance.random() for wish in wishes]
        order = sorted(range(len(noisy)), key=lambda place: -noisy[place])
        mask = tuple(sorted(space.free[place] for place in order[: space.skip]))
        if mask not in tried:
            return mask
    return draw_untried(space, tried, chance)


# --- how far a search is from the optimum -------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A log that is kept nowhere else."""

    trials: list[Trial]

    def append(self, trial: Trial) -> None:
        self.trials.append(trial)


@dataclass(frozen=True)
class Regret:
    """How much worse than the best of all masks: the found value, its distance from the optimum in the measure's own
    unit, and the share of all masks that are better than it."""

    value: float
    regret: float
    better: float


def regret_of(value: float, table: Sequence[Trial], objective: str) -> Regret:
    """Regret of a value among all masks of the space."""
    sign = -1 if objective in MAXIMIZED else 1
    values = [sign * trial.measures[objective] for trial in table]
    better = sum(one < sign * value for one in values)
    return Regret(value, sign * value - min(values), better / len(values))


def search_regrets(
    space: Space, plan: Plan, objective: str, table: Sequence[Trial], seeds: Iterable[int]
) -> list[Regret]:
    """Regret of the plan's search with each seed, from a table of all masks of the space: no mask is scored again."""
    measures = {trial.mask: trial.measures for trial in table}
    found = []
    for seed in seeds:
        own = Plan(trials=plan.trials, every=plan.every, patience=plan.patience, seed=seed)
        trials = run_search(space, own, objective, measures.__getitem__, Memory([]))
        found.append(regret_of(best(trials, objective).measures[objective], table, objective))
    return found
