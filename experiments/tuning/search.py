"""What to try next: optuna's tree-structured Parzen estimator under the fidelity bound, one draw at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments import identity
from experiments.errors import UserError
from experiments.tuning.setup import Tuned
from experiments.tuning.space import Knob, own_values, resolve
from experiments.tuning.trial import Trial, pooled


def load_optuna() -> Any:
    """The library, which is no requirement of the rest. Raises UserError where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("optuna is not installed; accepted: pip install viasd[tune]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def next_trial(tuned: Tuned, done: Sequence[Trial], min_fidelity: float, seed: int) -> Trial:
    """The next setting of a method, after those that were measured. The first is the method as it stands, if in reach.

    A pure function of its arguments: the study is told again what was measured, and every draw has a seed of its own.
    So a tuning that was killed goes on as if it had not been.
    """
    name, number = tuned.method.name, len(done)
    own = own_values(tuned.knobs, tuned.method) if number == 0 else None
    if own is not None:
        return Trial(name, number, own, resolve(tuned.knobs, own) if own else {})
    drawn = _draw(tuned.knobs, done, min_fidelity, int(identity.digest([seed, name, number], 4), 16))
    return Trial(name, number, drawn, resolve(tuned.knobs, drawn))


def _draw(knobs: Sequence[Knob], done: Sequence[Trial], min_fidelity: float, seed: int) -> dict[str, Any]:
    """Values of the knobs. A trial below the bound is infeasible to the sampler by as much as it lacks."""
    optuna = load_optuna()
    among = {knob.name: _distribution(knob) for knob in knobs}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for trial in done:
        if trial.drawn and trial.fidelity is not None:
            lacking = {"fidelity": min_fidelity - trial.fidelity}
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.drawn, distributions=among, value=trial.relative_speed, constraints=lacking
                )
            )
    drawn: dict[str, Any] = study.ask(among).params
    return {knob.name: drawn[knob.name] for knob in knobs}


def _distribution(knob: Knob) -> Any:
    distributions = load_optuna().distributions
    if knob.choices:
        return distributions.CategoricalDistribution(knob.choices)
    kind = distributions.IntDistribution if isinstance(knob.low, int) else distributions.FloatDistribution
    return kind(knob.low, knob.high)


def best(trials: Sequence[Trial], min_fidelity: float) -> Trial | None:
    """The fastest feasible setting; its numbers are means where it was tried more than once."""
    feasible = [trial for trial in pooled(trials) if trial.feasible(min_fidelity)]
    return max(feasible, key=lambda trial: trial.relative_speed or 0.0, default=None)
