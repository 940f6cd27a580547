"""Learn where a slim verifier may judge in the target's place, from what the target says on training prompts.

    python scripts/train_gate.py --pair reference --ratio 0.6 --out viasd/reference/gates/skip_60.json

Along the target's own greedy outputs, the slim verifier reads blocks of --block tokens on the target's cache as it does
in decoding; the features of viasd.gates are taken at each position, and what is learned from them is: whether the first
choices agree (logistic regression), the target's largest probability, and the TV distance of the two rows (linear).
Prompts are from the train or calibration split; every fourth is held out, and the file tells how well it goes there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from tqdm import tqdm

from experiments.config import CHECKOUT, EngineSpec, make, results_folder
from experiments.identity import digest, model_hash
from experiments.launching.locks import presence
from experiments.probing.setup import compose_tasks
from experiments.prompting import open_prompting
from experiments.resolve import describe_slim, resolve_mask
from experiments.threads import count_threads
from viasd.engine import Engine
from viasd.gates import DRAFT_FEATURES, SLIM_FEATURES, features
from viasd.routing import Evidence
from viasd.verification import SlimView

TASKS = "reasoning,qa,coding,summarization,translation"
HELD_OUT = 4  # every so many-th prompt tells how good the weights are
PENALTY = 1e-3  # on squared weights of standardized features
STEPS = 200


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="reference", help="name of a yaml in conf/pair")
    parser.add_argument("--tasks", default=TASKS, help="names of yamls in conf/task")
    parser.add_argument("--prompts", type=int, default=60, help="prompts of each task")
    parser.add_argument("--split", choices=("calibration", "train"), default="train", help="where prompts are from")
    parser.add_argument("--mask", default="auto", help="mask of the slim view, as in verifier.slim.mask")
    parser.add_argument("--ratio", type=float, default=0.6, help="share of layers to skip")
    parser.add_argument("--cache", choices=("shared", "separate"), default="shared")
    parser.add_argument("--block", type=int, default=6, help="tokens that the slim verifier reads at once")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    started = time.perf_counter()
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        pair = make(compose("config", [f"pair={options.pair}"])["pair"], "pair")
        tasks = list(compose_tasks(options.tasks.split(","), pair).values())
    torch.set_num_threads(count_threads(pair, EngineSpec(), results_folder(None)))
    view = SlimView(mask=options.mask, skip_ratio=options.ratio, cache=options.cache)
    kept, notice = resolve_mask(view, pair)
    view = SlimView(mask=kept, skip_ratio=options.ratio, cache=options.cache)
    tokenizer = open_prompting(pair)
    prompts = [
        (tokenizer(example.prompt).input_ids, task.max_new_tokens)
        for task in tasks
        for example in task.examples(options.split, options.prompts)
    ]
    slots = max(len(ids) + budget for ids, budget in prompts) + options.block
    engine = Engine.load(pair, ["target", "draft"], "auto", "auto", slots)
    seen = [
        read_along(engine, view, ids, budget, tokenizer.eos_token_id, options.block)
        for ids, budget in tqdm(prompts, desc="prompts", unit="prompt")
    ]
    train = [one for place, one in enumerate(seen) if place % HELD_OUT]
    test = [one for place, one in enumerate(seen) if place % HELD_OUT == 0]
    weights, bonus_weights = (learn(train, slim_only) for slim_only in (False, True))
    result = {
        "weights": weights,
        "bonus_weights": bonus_weights,
        "features": [*SLIM_FEATURES, *DRAFT_FEATURES],
        "target_hash": model_hash(pair.path("target")),
        "slim": describe_slim(view),
        "held_out": {"with_draft": report(test, weights["agree"]), "slim_alone": report(test, bonus_weights["agree"])},
        "prompts": {
            "tasks": options.tasks,
            "split": options.split,
            "each": options.prompts,
            "hash": digest([ids for ids, _ in prompts]),
        },
        "tokens": sum(one["agree"].shape[0] for one in seen),
        "block": options.block,
        "seconds": round(time.perf_counter() - started, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"notice": notice, **{name: result[name] for name in ("slim", "held_out", "tokens", "seconds")}}))


def read_along(
    engine: Engine, view: SlimView, prompt: list[int], budget: int, eos: int, block: int
) -> dict[str, Tensor]:
    """Features [n, F] and outcomes [n] at the positions of the target's greedy output, one per tensor."""
    readers = engine.readers()
    target, draft = readers.get("target"), readers.get("draft")
    slim = view.open_reader(readers)
    ids = torch.zeros(len(prompt) + budget + block, dtype=torch.long, device=engine.device)
    ids[: len(prompt)] = torch.tensor(prompt)
    for reader in (target, draft):
        reader.start()
    slim.start()
    for reader in (target, draft, slim):
        if reader.read < len(prompt) - 1:
            reader.feed(ids, len(prompt) - 1, last=0)
    length = write_output(target, ids, len(prompt), budget, eos)
    target.rewind(len(prompt) - 1)
    found: dict[str, list[Tensor]] = {}
    for start in range(len(prompt), length, block):
        count = min(block, length - start)
        stop = start + count - 1  # the row behind id i is the distribution of id i + 1
        rows = [reader.feed(ids, stop, last=count) for reader in (slim, draft, target)]
        for name, value in outcomes(*rows).items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def write_output(target: Any, ids: Tensor, length: int, budget: int, eos: int) -> int:
    """Append the target's greedy output to the ids; the length of the whole text."""
    for end in range(length, length + budget):
        ids[end] = target.feed(ids, end, last=1)[0].argmax()
        if ids[end] == eos:
            return end + 1
    return length + budget


def outcomes(slim: Tensor, draft: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is learned from and what is learned, from raw logits [n, V]."""
    slim_row, target_row = slim.softmax(-1), target.softmax(-1)
    return {
        "seen": features(Evidence(slim, draft)),
        "agree": (slim.argmax(-1) == target.argmax(-1)).float(),
        "target_top": target_row.amax(-1),
        "distance": (slim_row - target_row).abs().sum(-1) / 2,
        "kept": (draft.argmax(-1) == target.argmax(-1)).float(),
    }


def learn(texts: list[dict[str, Tensor]], slim_only: bool) -> dict[str, list[float]]:
    """Intercept and weights of each outcome."""
    seen = torch.cat([one["seen"] for one in texts]).double()
    seen = seen[:, : len(SLIM_FEATURES)] if slim_only else seen
    mean, scale = seen.mean(0), seen.std(0).clamp(min=1e-6)
    inputs = (seen - mean) / scale
    learned = {}
    for name in ("agree", "target_top", "distance"):
        outcome = torch.cat([one[name] for one in texts]).double()
        weights = fit(inputs, outcome, logistic=name == "agree")
        slopes = weights[1:] / scale
        learned[name] = [float(f"{value:.6g}") for value in [weights[0] - (slopes * mean).sum(), *slopes]]
    return learned


@torch.inference_mode(False)
def fit(inputs: Tensor, outcome: Tensor, logistic: bool) -> Tensor:
    """Intercept and weights [1 + F] of least penalized loss."""
    inputs, outcome = inputs.clone(), outcome.clone()
    weights = torch.zeros(1 + inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        told = weights[0] + inputs @ weights[1:]
        value = (
            torch.nn.functional.binary_cross_entropy_with_logits(told, outcome)
            if logistic
            else ((told - outcome) ** 2).mean()
        )
        value = value + PENALTY * (weights[1:] ** 2).sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach()


def report(texts: list[dict[str, Tensor]], weights: list[float]) -> dict[str, float]:
    """On held-out prompts: the share of agreement, and the error left when the least sure 5, 10, 20% are deferred."""
    seen = torch.cat([one["seen"] for one in texts]).double()[:, : len(weights) - 1]
    agree = torch.cat([one["agree"] for one in texts])
    order = (seen @ torch.tensor(weights[1:], dtype=torch.double)).argsort()
    told = {"tokens": float(len(agree)), "differ": round(1 - float(agree.mean()), 5)}
    for share in (0.02, 0.05, 0.1, 0.2):
        left = agree[order[int(share * len(order)) :]]
        told[f"differ_beyond_{share:g}"] = round(float((1 - left).sum()) / len(agree), 5)
    return told


if __name__ == "__main__":
    with presence():  # runs that are timed beside it say so
        main()
