"""Choose which layers a slim view skips: random search for agreement with the target on calibration prompts.

    python scripts/search_mask.py --pair reference --ratio 0.45 --out viasd/reference/masks/skip_45.json

Each mask is scored by the share of tokens, of the target's own greedy outputs, on which the view's argmax is the
target's (teacher-forced, one uncached pass). Even spacing is the first mask, the others are drawn without repetition;
test prompts are never read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from experiments.config import CHECKOUT, EngineSpec, make
from experiments.identity import digest, model_hash
from viasd.decode import Decode
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import even_mask, layer_count, load_tokenizer, skipped_count, weights_bytes
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

TASKS = "reasoning,qa,coding,summarization,translation"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="reference", help="name of a yaml in conf/pair")
    parser.add_argument("--tasks", default=TASKS, help="names of yamls in conf/task")
    parser.add_argument("--prompts", type=int, default=20, help="prompts of each task")
    parser.add_argument(
        "--split", choices=("calibration", "train"), default="calibration", help="where prompts are from"
    )
    parser.add_argument("--ratio", type=float, default=0.45, help="share of layers to skip")
    parser.add_argument("--trials", type=int, default=100, help="masks to score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        pair = make(compose("config", [f"pair={options.pair}"])["pair"], "pair")
        tasks = [make(compose("config", [f"task={name}"])["task"], "task") for name in options.tasks.split(",")]
    torch.set_num_threads(EngineSpec().thread_count(weights_bytes(pair.path("target"))))
    started = time.perf_counter()
    tokenizer = load_tokenizer(pair)
    prompts = [
        (tokenizer(example.prompt).input_ids, task.max_new_tokens)
        for task in tasks
        for example in task.examples(options.split, options.prompts)
    ]
    slots = max(len(ids) + budget for ids, budget in prompts)
    engine = Engine.load(pair, ["target"], "auto", "auto", slots)
    texts = continuations(engine, prompts, tokenizer.eos_token_id)
    layers = layer_count(engine.model("target"))
    even = even_mask(layers, options.ratio)
    drawn = candidates(layers, options.ratio, options.trials, options.seed)
    trials = []
    for kept in tqdm([even, *(kept for kept in drawn if kept != even)][: options.trials], desc="masks", unit="mask"):
        trials.append({"kept": kept, "agreement": agreement(engine, kept, texts)})
    even_agreement = trials[0]["agreement"]
    trials.sort(key=lambda trial: -trial["agreement"])
    result = {
        "kept": trials[0]["kept"],
        "agreement": trials[0]["agreement"],
        "even_agreement": even_agreement,
        "median_agreement": trials[len(trials) // 2]["agreement"],
        "objective": "argmax agreement with the target, teacher-forced on its greedy outputs",
        "skip_ratio": options.ratio,
        "layers": layers,
        "target_hash": model_hash(pair.path("target")),
        "prompts": {
            "tasks": options.tasks,
            "split": options.split,
            "each": options.prompts,
            "hash": digest([ids for ids, _ in prompts]),
        },
        "tokens": sum(len(output) for _, output in texts),
        "trials": len(trials),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps(
            {name: result[name] for name in ("kept", "agreement", "even_agreement", "median_agreement", "seconds")}
        )
    )


def continuations(engine: Engine, prompts: list[tuple[list[int], int]], eos: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, the target's greedy output) of each prompt."""
    vanilla = Method(name="vanilla", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier()).open(
        engine
    )
    texts = []
    for ids, budget in tqdm(prompts, desc="target outputs", unit="prompt"):
        decode = Decode(Sampling(), budget, frozenset({eos}))
        texts.append((ids, vanilla.generate(ids, decode, SeededDraws(0, "search", engine.device)).token_ids))
    return texts


def candidates(layers: int, ratio: float, trials: int, seed: int) -> list[list[int]]:
    """Distinct masks that keep the first and the last layer, in random order; all of them where there are few."""
    free, skip = range(1, layers - 1), skipped_count(layers, ratio)
    rng = random.Random(seed)
    if comb(len(free), skip) <= 20_000:
        skipped: list[Any] = list(combinations(free, skip))
        rng.shuffle(skipped)
        skipped = skipped[:trials]
    else:
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < trials:
            drawn.add(tuple(sorted(rng.sample(free, skip))))
        skipped = list(drawn)
    return [[index for index in range(layers) if index not in out] for out in skipped]


def agreement(engine: Engine, kept: list[int], texts: list[tuple[list[int], list[int]]]) -> float:
    """Share of output tokens that are the view's argmax."""
    view, equal, total = engine.view(kept), 0, 0
    for prompt, output in texts:
        ids = torch.tensor([prompt + output], device=engine.device)
        logits = view(input_ids=ids, use_cache=False, logits_to_keep=len(output) + 1).logits[0, :-1]
        equal += int((logits.argmax(-1) == ids[0, len(prompt) :]).sum())
        total += len(output)
    return equal / total


if __name__ == "__main__":
    main()
