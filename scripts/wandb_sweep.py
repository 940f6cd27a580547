"""Write a W&B sweep whose runs are `python -m experiments.run`, or create it: `wandb agent` then drives them.

    python scripts/wandb_sweep.py method=via_sd task=reasoning --out sweep.yaml
    python scripts/wandb_sweep.py method=via_sd task=qa method.stop.length=3,5,8 --dry-run

KEY=VALUE is the same in all runs, KEY=A,B,C is a choice. Without any choice the knobs of the method are those of
conf/tune_space. Without --out and --dry-run the sweep is created on the server. Prompts are training prompts: what is
chosen on held-out ones proves nothing, and a run that an agent starts on them is refused. docs/tracking.md says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.entry import CONFIG_DIR, run_command  # noqa: E402
from experiments.errors import RunFailed, UserError  # noqa: E402

PROGRAM = "experiments.run"
DRAWS = "draws"  # a node for what is drawn as a share of another knob
SEARCHES = ("bayes", "random", "grid")
MEASURED = ("limit=12",)  # prompts of a run, unless a command says otherwise


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("typed", nargs="*", metavar="KEY=VALUE", help="keys of experiments.run; commas make a choice")
    parser.add_argument("--out", type=Path, help="write the sweep to this file, without network")
    parser.add_argument("--dry-run", action="store_true", help="print the sweep, without network")
    parser.add_argument("--search", choices=SEARCHES, help="default: bayes for ranges, grid for choices")
    parser.add_argument("--metric", default="method/speedup_over.sd", help="ARM/METRIC to maximize")
    parser.add_argument("--min-fidelity", type=float, default=0.99, help="of the metric's arm")
    parser.add_argument("--trials", type=int, default=30, help="runs at most (grid: all)")
    parser.add_argument("--project", default="viasd")
    parser.add_argument("--entity", help="user or team; default: W&B's own")
    return parser.parse_intermixed_args()


def make_sweep(asked: argparse.Namespace) -> dict[str, Any]:
    """The sweep as W&B takes it. Raises UserError for what the runs would refuse."""
    fixed, choices = split_choices(asked.typed)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        check_runs(fixed, choices)
        extra, parameters = ([], choices_of(choices)) if choices else knobs_of(fixed)
    ranges = [name for name, told in parameters.items() if "values" not in told]
    search = asked.search or ("bayes" if ranges else "grid")
    if search == "grid" and ranges:
        raise UserError(f"search=grid: {ranges[0]} is a range; accepted: bayes, random, or choices KEY=A,B,C")
    typed = [*MEASURED, "split=train", *fixed, *extra]
    track = ["track=wandb", "track.mode=online", f"track.objective={asked.metric}"]
    track.append(f"track.min_fidelity={asked.min_fidelity:g}")
    command = ["${env}", "${interpreter}", "-m", "${program}", *last_ones(typed), *track, "${args_no_hyphens}"]
    return {
        "program": PROGRAM,
        "project": asked.project,
        **({"entity": asked.entity} if asked.entity else {}),
        "method": search,
        "metric": {"name": "objective", "goal": "maximize"},
        **({} if search == "grid" else {"run_cap": asked.trials}),
        "parameters": parameters,
        "command": command,
    }


def split_choices(typed: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is the same in all runs, and the values of what is not, by key. Raises UserError for no KEY=VALUE."""
    fixed, choices = [], dict[str, list[str]]()
    for text, override in zip(typed, _parsed(typed), strict=True):
        if override.is_sweep_override():
            choices[text.partition("=")[0]] = [str(value) for value in override.sweep_string_iterator()]
        else:
            fixed.append(text)
        if override.key_or_group == "split" and "test" in text.partition("=")[2].split(","):
            raise UserError(f"{text}: settings chosen on held-out prompts prove nothing; accepted: train, calibration")
    return fixed, choices


def _parsed(typed: Sequence[str]) -> list[Any]:
    if wrong := [text for text in typed if "=" not in text.strip("=")]:
        raise UserError(f"{wrong[0]!r}: accepted: KEY=VALUE, KEY=A,B,C")
    return OverridesParser.create().parse_overrides(list(typed))


def check_runs(fixed: Sequence[str], choices: dict[str, list[str]]) -> None:
    """Compose and check a run with the first of all choices, and with each other one in its place."""
    from experiments.config import build

    first = {key: values[0] for key, values in choices.items()}
    build(compose("config", overrides=[*fixed, *(f"{key}={value}" for key, value in first.items())]))
    for key, values in choices.items():
        for value in values[1:]:
            given = {**first, key: value}
            build(compose("config", overrides=[*fixed, *(f"{name}={one}" for name, one in given.items())]))


def choices_of(choices: dict[str, list[str]]) -> dict[str, Any]:
    """Parameters of a sweep; numbers as numbers, everything else as it was typed."""
    return {key: {"values": [_number(text) for text in values]} for key, values in choices.items()}


def _number(text: str) -> Any:
    value = yaml.safe_load(text)
    return value if isinstance(value, int | float) and str(value) == text else text


def knobs_of(fixed: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The knobs of the method in conf/tune_space: what the command line needs for them, and the parameters."""
    from experiments.config import make
    from experiments.tuning.space import check_corners, parse_space

    config = compose("config", overrides=list(fixed))
    chosen = [text for text in fixed if text.startswith("method=")]
    space = compose("tune", overrides=chosen).get("space")
    method = make(config["method"], "method")
    knobs = parse_space(OmegaConf.to_container(space, resolve=True) if space else None, method)  # type: ignore[arg-type]
    composed = OmegaConf.to_container(config["method"], resolve=True)
    check_corners(knobs, composed, method.name, make(config["pair"], "pair"))
    extra, parameters = [], dict[str, Any]()
    for knob in knobs:
        if knob.choices:
            parameters[f"method.{knob.name}"] = {"values": ["null" if one is None else one for one in knob.choices]}
            continue
        drawn = f"method.{knob.name}"
        if knob.of is not None:
            drawn = f"{DRAWS}.{knob.name}"
            value = f"${{share:${{{drawn}}},${{method.{knob.of}}}}}"
            extra += [f"+{drawn}={knob.low}", f"method.{knob.name}='{value}'"]  # quoted for Hydra: braces in braces
        kind = "int_uniform" if isinstance(knob.low, int) else "uniform"
        parameters[drawn] = {"distribution": kind, "min": knob.low, "max": knob.high}
    return extra, parameters


def last_ones(typed: Sequence[str]) -> list[str]:
    """Of several values of a key the last one, where it stands."""
    places = {text.partition("=")[0]: place for place, text in enumerate(typed)}
    return [text for place, text in enumerate(typed) if places[text.partition("=")[0]] == place]


def create(sweep: dict[str, Any], entity: str | None) -> str:
    """Create it on the server. Returns its path, as `wandb agent` takes it. Raises RunFailed where that fails."""
    from experiments.logged.session import PATIENCE
    from experiments.patience import within

    def ask() -> str:
        import wandb

        sweep_id = wandb.sweep(sweep, entity=entity, project=sweep["project"])
        return "/".join(filter(None, [entity, sweep["project"], sweep_id]))

    try:
        return within(2 * PATIENCE, ask)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
    raise RunFailed(f"the sweep was not created ({line}); --out FILE writes it without network")


def main() -> None:
    """Entry point."""
    asked = parse()

    def job() -> None:
        sweep = make_sweep(asked)
        text = yaml.safe_dump(sweep, sort_keys=False, width=1000)
        if asked.dry_run:
            print(text, end="")
        if asked.out is not None:
            asked.out.write_text(text, encoding="utf-8")
            print(f"sweep: {asked.out}; create it by `wandb sweep {asked.out}`")
        if asked.out is None and not asked.dry_run:
            print(f"use: wandb agent {create(sweep, asked.entity)}")

    run_command(job)


if __name__ == "__main__":
    main()
