"""Search for what a slim view skips (DIMR), on the target's own outputs to calibration prompts.

    python scripts/search_mask.py --pair reference --ratio 0.45 --out viasd/reference/masks/skip_45.json

Masks of layers or of branches are scored in the run's cache mode by Eq. 12 or, for comparison, another objective; even
spacing first, then random masks and each `--every`-th a Bayesian proposal; test prompts are never read. Trials are kept
beside the result, and the same command goes on from them after a kill. List the file under `masks` of the pair's yaml
and `mask: auto` takes it. `--search enumerate` scores every mask; with `--regret` it then says how far from the best
of all each kind of search ends, with many seeds, without scoring a mask again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from experiments.arms import vanilla
from experiments.config import CHECKOUT, EngineSpec, compose_method, make, results_folder
from experiments.entry import BY_BUS, GPU_ORDER
from experiments.identity import digest, model_hash
from experiments.launching.locks import alone_on, device_names, presence
from experiments.masking import Replays, TrialLog, calibrate, curves_of, read_header
from experiments.probing.setup import compose_tasks
from experiments.prompting import open_prompting
from experiments.store import replace_json
from experiments.threads import count_threads
from viasd.decode import Decode
from viasd.dimr import MAXIMIZED, Plan, Regret, Space, Trial, best, regret_of, run_search, search_regrets
from viasd.engine import Engine
from viasd.models import Branches, Pair, layer_count
from viasd.sampling import Sampling, SeededDraws
from viasd.scoring import Scoring, Text, measure, read_text

TASKS = "reasoning,qa,coding,summarization,translation"
OBJECTIVES = {  # as typed: as measured
    "cost": "cost",
    "agreement": "agreement",
    "kl": "kl",
    "rejection": "rejection",
    "speed_at_fidelity": "tokens_per_second",
}
REPLAYED = ("rejection", "speed_at_fidelity")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="reference", help="name of a yaml in conf/pair")
    parser.add_argument("--tasks", default=TASKS, help="names of yamls in conf/task")
    parser.add_argument("--prompts", type=int, default=20, help="prompts of each task")
    parser.add_argument(
        "--split", choices=("calibration", "train"), default="calibration", help="where prompts are from"
    )
    parser.add_argument("--max-new-tokens", type=int, help="cut outputs there, and not where the task does")
    parser.add_argument("--ratio", type=float, default=0.45, help="share of units to skip")
    parser.add_argument("--unit", choices=("layer", "branch"), default="layer", help="what is skipped as one")
    parser.add_argument("--skip-ends", action="store_true", help="let the first and the last layer be skipped, too")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="cost")
    parser.add_argument("--cache", choices=("shared", "separate"), default="shared", help="cache mode of the runs")
    parser.add_argument("--window", type=int, default=16, help="tokens that the view reads on its own (shared)")
    parser.add_argument("--alpha", type=float, default=0.0, help="tolerance of Eq. 11")
    parser.add_argument("--beta", type=float, default=1.0, help="residual scale of Eq. 11")
    parser.add_argument("--search", choices=("guided", "enumerate"), default="guided")
    parser.add_argument("--trials", type=int, default=100, help="masks to score at most")
    parser.add_argument("--every", type=int, default=5, help="each how many-th mask is a Bayesian proposal; 0: none")
    parser.add_argument("--patience", type=int, help="stop after so many masks without a better one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="via_sd", help="method whose speed is predicted (the pair needs a draft)")
    parser.add_argument("--fidelity", type=float, default=0.97, help="bound of speed_at_fidelity")
    parser.add_argument("--regret", action="store_true", help="with --search enumerate: the regret of every search")
    parser.add_argument("--regret-seeds", type=int, default=20)
    parser.add_argument("--log", type=Path, help="the trials; by default beside --out")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


@dataclass(frozen=True)
class Setup:
    """What the search works on: settings as told, the pair, the engine with it, its outputs, seconds so far."""

    asked: dict[str, Any]
    pair: Pair
    engine: Engine
    texts: list[Text]
    space: Space
    seconds: float


def main() -> None:
    options = parse()
    if options.regret and options.search != "enumerate":
        raise SystemExit("--regret: accepted: with --search enumerate")
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        setup = prepare(options)
        method = compose_method(options.method) if "draft" in setup.pair.models else None
    plan = Plan(
        search=options.search,
        trials=options.trials,
        every=options.every,
        patience=options.patience,
        seed=options.seed,
    )
    scoring = Scoring(cache=options.cache, window=options.window, alpha=options.alpha, beta=options.beta)
    path = options.log or options.out.with_suffix(".trials.jsonl")
    asked = {**setup.asked, "scoring": asdict(scoring), "plan": asdict(plan)}
    started, costs = time.perf_counter(), (read_header(path) or {}).get("costs")
    if costs is None and method is not None:
        with alone_on(device_names(setup.engine.device), f"call costs of pair {setup.pair.name}"):
            costs = json.loads(json.dumps(calibrate(setup.engine, setup.space.kept(setup.space.even()))))
    log = TrialLog(path, {**asked, "costs": costs})
    replays = None
    if method is not None:
        replays = Replays(setup.engine, setup.texts, method, options.fidelity, curves_of(costs))
    spent = setup.seconds + time.perf_counter() - started
    objective = OBJECTIVES[options.objective]
    trials = search(setup, scoring, plan, objective, log, replays if options.objective in REPLAYED else None)
    result = describe(setup, asked, trials, objective, spent)
    result |= predict(setup, scoring, trials, objective, replays, result["seconds"])
    if options.regret:
        result["regret"] = regrets(setup.space, plan, trials, range(options.regret_seeds))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    replace_json(options.out, result)
    told = ("kept", "measures", "even", "median", "seconds", "predicted", "break_even_tokens", "regret")
    print(json.dumps({name: result[name] for name in told if name in result}, indent=1))


def prepare(options: argparse.Namespace) -> Setup:
    """Load the pair and let the target write."""
    from transformers.utils import logging as library

    library.disable_progress_bar()
    started = time.perf_counter()
    pair = make(compose("config", [f"pair={options.pair}"])["pair"], "pair")
    tasks = list(compose_tasks(options.tasks.split(","), pair).values())
    torch.set_num_threads(count_threads(pair, EngineSpec(), results_folder(None)))
    tokenizer = open_prompting(pair)
    prompts = [
        (tokenizer(example.prompt).input_ids, options.max_new_tokens or task.max_new_tokens)
        for task in tasks
        for example in task.examples(options.split, options.prompts)
    ]
    slots = max(128, *(len(ids) + budget for ids, budget in prompts))  # 128: for timed steps
    engine = Engine.load(pair, [role for role in ("target", "draft") if role in pair.models], "auto", "auto", slots)
    texts = write_texts(engine, prompts, tokenizer.eos_token_id)
    space = Space(layer_count(engine.model("target")), options.ratio, options.unit, not options.skip_ends)
    asked = {
        "objective": options.objective,
        "skip_ratio": options.ratio,
        "layers": space.layers,
        "unit": space.unit,
        "keep_ends": space.keep_ends,
        "cache": options.cache,
        "method": options.method,
        "min_fidelity": options.fidelity,
        "target_hash": model_hash(pair.path("target")),
        "prompts": {
            "tasks": options.tasks,
            "split": options.split,
            "each": options.prompts,
            "hash": digest([ids for ids, _ in prompts]),
        },
        "outputs_hash": digest([text.ids.tolist() for text in texts]),
        "tokens": sum(text.length for text in texts),
    }
    return Setup(asked, pair, engine, texts, space, time.perf_counter() - started)


def write_texts(engine: Engine, prompts: Sequence[tuple[list[int], int]], eos: int) -> list[Text]:
    """What the target writes greedily behind each prompt, with all that scoring needs of it."""
    decoder, texts = vanilla().open(engine), []
    for ids, budget in tqdm(prompts, desc="target outputs", unit="prompt"):
        decode = Decode(Sampling(), budget, frozenset({eos}))
        output = decoder.generate(ids, decode, SeededDraws(0, "search", engine.device)).token_ids
        texts.append(read_text(engine, ids, output))
    return texts


def search(
    setup: Setup, scoring: Scoring, plan: Plan, objective: str, log: TrialLog, replays: Replays | None
) -> list[Trial]:
    """All trials, those of an earlier, killed search included."""
    size = setup.space.size if plan.search == "enumerate" else min(plan.trials, setup.space.size)
    with tqdm(total=size, initial=len(log.trials), desc="masks", unit="mask") as bar:

        def score(mask: tuple[int, ...]) -> Mapping[str, float]:
            found = measure(setup.engine, setup.texts, setup.space.kept(mask), scoring, replays)
            bar.update()
            return found

        return run_search(setup.space, plan, objective, score, log, time.perf_counter)


def describe(
    setup: Setup, asked: dict[str, Any], trials: Sequence[Trial], objective: str, spent: float
) -> dict[str, Any]:
    """What the mask file holds."""
    found = best(trials, objective)
    kept = setup.space.kept(found.mask)
    even = next((trial.measures for trial in trials if trial.mask == setup.space.even()), None)
    searching = sum(trial.seconds for trial in trials)
    return {
        "kept": asdict(kept) if isinstance(kept, Branches) else kept,
        "measures": found.measures,
        "even": even,
        "median": statistics.median(trial.measures[objective] for trial in trials),
        **asked,
        "trials": len(trials),
        "found_by": found.origin,
        "found_at": trials.index(found) + 1,
        "seconds": round(spent + searching, 1),
        "seconds_of": {"preparation": round(spent, 1), "search": round(searching, 1)},
    }


def predict(
    setup: Setup,
    scoring: Scoring,
    trials: Sequence[Trial],
    objective: str,
    replays: Replays | None,
    seconds: float,
) -> dict[str, Any]:
    """Predicted seconds per token with the found mask, the even one and sd; tokens after which the search has paid."""
    if replays is None:
        return {}
    masks = {"mask": best(trials, objective).mask, "even": setup.space.even()}
    told = {
        name: measure(setup.engine, setup.texts, setup.space.kept(mask), scoring, replays)["seconds_per_token"]
        for name, mask in masks.items()
    }
    told["sd"] = replays.sd.seconds_per_token
    gains = {name: told[name] - told["mask"] for name in ("even", "sd")}
    return {
        "predicted": {"seconds_per_token": told},
        "break_even_tokens": {name: round(seconds / gain) if gain > 0 else None for name, gain in gains.items()},
    }


def regrets(space: Space, plan: Plan, table: Sequence[Trial], seeds: Sequence[int]) -> dict[str, Any]:
    """Regret by objective; and how the best mask under one objective ranks under another: the share that is better."""
    measured = [name for name in OBJECTIVES.values() if name in table[0].measures]
    chosen = {name: best(table, name).measures for name in measured}
    ranks = {
        name: {other: regret_of(found[other], table, other).better for other in measured}
        for name, found in chosen.items()
    }
    return {"searches": {name: regrets_by(space, plan, name, table, seeds) for name in measured}, "ranks": ranks}


def regrets_by(
    space: Space, plan: Plan, objective: str, table: Sequence[Trial], seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Distance from the best of all masks: even spacing, a random mask, and searches of `plan.trials` masks, means.

    Random searches in a table take no time and get ten times the seeds.
    """
    values = {trial.mask: trial.measures[objective] for trial in table}
    found: dict[str, list[Regret]] = {
        "even": [regret_of(values[space.even()], table, objective)],
        "one random mask": [regret_of(value, table, objective) for value in values.values()],
    }
    for name, every in (("random", 0), (f"bayesian every {plan.every}", plan.every), ("bayesian every 1", 1)):
        own = Plan(trials=plan.trials, every=every, patience=plan.patience)
        own_seeds = seeds if every else range(10 * len(seeds))
        found[name] = search_regrets(space, own, objective, table, tqdm(own_seeds, desc=f"{name}, {objective}"))
    span = max(values.values()) - min(values.values())
    told = {
        name: {
            "regret": statistics.fmean(one.regret for one in group),
            "of_span": statistics.fmean(one.regret for one in group) / span if span else 0.0,
            "better": statistics.fmean(one.better for one in group),
        }
        for name, group in found.items()
    }
    optimum = (max if objective in MAXIMIZED else min)(values.values())
    return {"optimum": {"value": optimum, "span": span, "masks": len(values), "trials": plan.trials}, **told}


if __name__ == "__main__":
    os.environ.setdefault(GPU_ORDER, BY_BUS)
    with presence():  # runs that are timed beside it say so
        main()
