"""Measure the reference pair on held-out problems and write its model card.

    python -m experiments.probe pair=reference split=test prompts=40 method.verifier.slim.skip_ratio=0.45
    python scripts/describe_reference_pair.py --checkpoints DIR --probe results/probes/reference_ID/probe.json

Quality is measured here, by greedy answers in batches; agreement and step costs come from the probe, the course of the
training from the checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from reference_data import DRILL, DRILLED, LENGTH, MIX, POOL, ROWS, TASKS, VOCABULARY, greedy_answers  # noqa: E402
from train_reference_pair import DROP, LAYER_DROP, RATE, SHAPES  # noqa: E402

from experiments.tasks.base import LEVELS, Task  # noqa: E402

MEAN = "mean over tasks"
Scores = dict[int, list[float]]  # qualities by level
CARD = """# The reference pair

A Llama-shaped target, a draft model and one in between (`mid`), with one tokenizer (byte-level BPE of {vocabulary}
entries, single digits), in bfloat16, for first runs and tests without a network. They know the five procedural task
families of `experiments/tasks` and nothing else.

**Caveat.** The target was trained with stochastic depth: a small model without it has no layers to spare, and its
slim view would be useless. Large pretrained models have this redundancy without such training. What a slim verifier
gains here is therefore no evidence for a pretrained target; measure that one (`python -m experiments.probe`).

| model | layers x width | parameters | steps | minutes ({device}, {threads} threads) |
|---|---|---|---|---|
{models}

## Data

Each family makes problems by seed on three levels of difficulty; train, calibration and test are split by a hash of
the problem's content, so that no held-out problem was seen in other words. A fifth of the prompt templates and of
the names of people, places and things never occurs before the test (`task.wording=unseen`); some of these templates
hold words that occur in no training text. Completions follow from their prompts but for two to six points each where
equally good wordings are drawn with weights 4:3:2: there a draft model that differs does no harm, and the scorers
accept every wording. In qa everyone is the subject of one fact, so what has to be learned is to follow a chain of
people, not to tell relations apart.

## Quality

Greedy answers to held-out test problems, float32 from the bfloat16 weights; the score is the task's own. Seen
wording: first {seen} problems of each test split, by level of difficulty; unseen wording: first {unseen}.

{quality}

The same problems with the target in bfloat16: {bfloat16}.

## Agreement with the target

Share of the tokens of the target's own greedy answers that are the argmax of another reader (teacher-forced,
{prompts} test prompts per family, 95% bootstrap intervals over prompts for the mean of the families).

{agreement}

## Cost of a step

One token with {context} in the cache, on this project's engine ({timed_on}), relative to a step of the target:
{costs}.

## Heads

EAGLE heads on the target's features (`scripts/train_eagle.py`, docs/training.md), trained on the target's own greedy
answers to problems of the train split. Acceptance length: tokens per call of the target, greedy chains of 7 drafted
tokens, calibration prompts.

{heads}

## Recipe

`python scripts/train_reference_pair.py --seed {seed}`: {pool} training problems per family, drawn with weights
{mix}, packed into {rows} rows of {length} tokens a step without attention from one to another. `recitation` and
`drill` state the facts of a passage (of qa; of six people with one fact each) again in another order: they teach to
bind a fact to its person, are drawn by seeds of their own and are not split by content. From {first:.0%} to {last:.0%}
of the steps the drill has weight {drill:g}. Loss on completions only; Muon for the matrices of the layers, AdamW for
the rest, both with peak rate {rate}, short warm-up and cosine decay; bfloat16 autocast. On every other step of the
{dropped} each layer but the first and the last is left out with probability {drop}. The exported weights are those of
the last step. The draft stops early on purpose: trained for as long as the target it comes so close that a verifier
has little left to do (docs/LOG.md).

**The shipped weights are not one run of this script.** The target was trained in stages, by hand: while it ran, texts,
mix, drill, learning rate, rows of a step and layer drop were changed (docs/LOG.md has each of them and what it did),
and the tokenizer was trained on an earlier
form of the texts. The script holds what these stages led to. `draft` and `mid` are runs of the script on the final
texts.

## Training

`loss` is a moving average on training batches; then the quality of greedy answers to 48 calibration problems per
family.

{curves}"""


def main() -> None:
    """Measure, then write."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    probe = json.loads(options.probe.read_text())
    trained = {role: read_training(options.checkpoints / f"{role}.pt") for role in SHAPES}
    scores = measure_quality(options.out, options.seen, options.unseen)
    bfloat16 = measure_bfloat16(options.out, options.seen)
    numbers = {
        "vocabulary": VOCABULARY,
        "device": "CPU",
        "threads": trained["target"]["threads"],
        "models": model_table(options.out, trained),
        "seen": options.seen,
        "unseen": options.unseen,
        "quality": quality_table(scores),
        "bfloat16": ", ".join(f"{name} {mean(levels):.3f}" for name, levels in bfloat16.items()),
        "prompts": probe["prompts"],
        "agreement": agreement_table(probe["agreement"]),
        "context": probe["costs"]["context"],
        "timed_on": f"{probe['device']}, {probe['dtype']}, {probe['threads']} thread",
        "costs": cost_line(probe["costs"]["readers"]),
        "heads": heads_table(options.out),
        "seed": 0,
        "pool": POOL,
        "mix": ", ".join(f"{name} {weight:g}" for name, weight in MIX.items()),
        "drill": DRILL,
        "first": DRILLED[0],
        "last": DRILLED[1],
        "rows": ROWS,
        "length": LENGTH,
        "rate": RATE,
        "dropped": ", ".join(LAYER_DROP),
        "drop": DROP,
        "curves": "\n".join(curve(role, trained[role]) for role in SHAPES),
    }
    (options.out / "README.md").write_text(CARD.format(**numbers))
    print(numbers["quality"], numbers["bfloat16"], numbers["agreement"], numbers["costs"], sep="\n\n")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "viasd" / "reference", help="folder of the pair")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "results" / "checkpoints", help="of the training")
    parser.add_argument("--probe", type=Path, required=True, help="probe.json of this pair on test prompts")
    parser.add_argument("--seen", type=int, default=200, help="test problems per family in seen wording")
    parser.add_argument("--unseen", type=int, default=100, help="test problems per family in unseen wording")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read_training(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: state[key] for key in ("step", "seconds", "threads", "curve")}


def load(folder: Path, dtype: torch.dtype) -> Any:
    """One model for answering."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def measure_quality(folder: Path, seen: int, unseen: int) -> dict[tuple[str, str, str], Scores]:
    """Qualities by (role, family, wording)."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    sizes = {"seen": seen, "unseen": unseen}
    found = {}
    with tqdm(total=len(SHAPES) * len(TASKS) * len(sizes), desc="quality") as bar:
        for role in SHAPES:
            model = load(folder / role, torch.float32)
            for task in TASKS:
                for wording, count in sizes.items():
                    found[role, task.name, wording] = judge(model, tokenizer, worded(task, wording), count)
                    bar.update()
    return found


def measure_bfloat16(folder: Path, count: int) -> dict[str, Scores]:
    """Qualities of the target in bfloat16, by family."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "target"), load(folder / "target", torch.bfloat16)
    return {task.name: judge(model, tokenizer, task, count) for task in tqdm(TASKS, desc="bfloat16")}


def worded(task: Task, wording: str) -> Task:
    """The task in seen or unseen wording."""
    return dataclasses.replace(task, wording=wording)


def judge(model: Any, tokenizer: Any, task: Task, count: int) -> Scores:
    """Qualities of greedy answers to the first test problems."""
    found: Scores = {level: [] for level in LEVELS}
    examples = task.examples("test", count)
    for first in range(0, count, 100):
        part = examples[first : first + 100]
        texts = greedy_answers(model, tokenizer, [e.prompt for e in part], task.max_new_tokens)
        for example, text in zip(part, texts, strict=True):
            found[example.metadata["level"]].append(task.score(example, text))
    return found


def mean(levels: Scores) -> float:
    """Mean over all problems."""
    scores = [score for level in levels.values() for score in level]
    return sum(scores) / len(scores)


def model_table(folder: Path, trained: Mapping[str, Mapping[str, Any]]) -> str:
    """Shape, size and training of each model."""
    lines = []
    for role, shape in SHAPES.items():
        parameters = sum(p.numel() for p in load(folder / role, torch.bfloat16).parameters()) / 1e6
        layers, width = shape["num_hidden_layers"], shape["hidden_size"]
        steps, minutes = trained[role]["step"], trained[role]["seconds"] / 60
        lines.append(f"| {role} | {layers} x {width} | {parameters:.2f} M | {steps} | {minutes:.1f} |")
    return "\n".join(lines)


def quality_table(scores: Mapping[tuple[str, str, str], Scores]) -> str:
    """Families and models as rows; all levels, each level, unseen wording."""
    lines = ["| family | model | seen | level 1 | level 2 | level 3 | unseen |", "|---|---|--:|--:|--:|--:|--:|"]
    for task in TASKS:
        for role in SHAPES:
            seen, unseen = scores[role, task.name, "seen"], scores[role, task.name, "unseen"]
            cells = [mean(seen), *(sum(seen[level]) / len(seen[level]) for level in LEVELS), mean(unseen)]
            lines.append(f"| {task.name} | {role} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    return "\n".join(lines)


def agreement_table(agreement: Mapping[str, Any]) -> str:
    """Readers as rows: the mean of the families with its interval, then each family."""
    names = [task.name for task in TASKS]
    lines = ["| reader | mean | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for reader, entry in agreement.items():
        told, whole = entry["agreement"], entry["agreement"][MEAN]
        view = entry["view"]
        name = reader if view is None else f"{view['skipped']} of {view['layers']} skipped, {view['mask']}"
        cells = [f"{whole['value']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]"]
        cells += [f"{told[task]['value']:.3f}" for task in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_line(readers: Mapping[str, Any]) -> str:
    """Cost of one token in every reader, over the target's."""
    return ", ".join(
        f"{name} {steps['1']['over_target_step']:.3f}" for name, steps in readers.items() if name != "target"
    )


def heads_table(folder: Path) -> str:
    """The heads, from what their training wrote beside them."""
    lines = [
        "| head | parameters | documents | steps x batch | acceptance length | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("eagle*/training.json")):
        told = json.loads(path.read_text())
        settings, seconds = told["identity"]["settings"], sum(told["seconds"].values())
        length, documents = told["validation"]["validation/acceptance_length"], told["notices"][0].split()[0]
        lines.append(
            f"| {path.parent.name} | {told['parameters'] / 1e6:.2f} M | {documents} | {settings['steps']} x "
            f"{settings['batch']} | {length:.2f} | {seconds / 60:.1f} |"
        )
    return "\n".join(lines)


def curve(role: str, training: Mapping[str, Any]) -> str:
    """A model's course."""
    names = [task.name for task in TASKS]
    lines = [f"### {role}", "", "| step | loss | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for step, loss, seen in thinned(training["curve"]):
        lines.append(f"| {step} | {loss:.3f} | " + " | ".join(f"{seen[name]:.2f}" for name in names) + " |")
    return "\n".join(lines) + "\n"


def thinned(looks: Sequence[Any], most: int = 14) -> Sequence[Any]:
    """At most about so many looks, the last one among them."""
    every = -(-len(looks) // most)
    return looks[::-1][::every][::-1]


if __name__ == "__main__":
    main()
