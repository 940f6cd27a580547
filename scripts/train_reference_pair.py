"""Train the reference pair: a tokenizer, a target with stochastic depth and a small draft model.

    python scripts/train_reference_pair.py --out viasd/reference --checkpoints /path/for/checkpoints

Data come from the task generators (train split). Batches and dropped layers depend on (seed, step) only, so that a
resumed run (`--resume`) goes on exactly where the stopped one was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import ModuleList
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from experiments.tasks.base import Example, Task  # noqa: E402
from experiments.tasks.coding import Coding  # noqa: E402
from experiments.tasks.reasoning import Reasoning  # noqa: E402
from experiments.tasks.summarization import Summarization  # noqa: E402

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCABULARY = 1152
POOL = 60_000  # training problems per family
ROWS, LENGTH = 24, 256  # tokens of one step
JUDGED = 4096  # places for the completion tokens of one step, which are about 3200
DROP = 0.35
IGNORED = -100
QUALITY = "quality"
SKIPPED = 5  # layers of the target that the evaluated slim view leaves out
Row = dict[str, float]
Document = tuple[list[int], int]  # ids with marks, length of the prompt
SHAPES = {
    "target": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 12, "num_attention_heads": 4},
    "draft": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2},
}
TASKS: tuple[Task, ...] = (Reasoning(), Coding(), Summarization())
CARD = """# The reference pair

A Llama-shaped target and draft model with one tokenizer (byte-level BPE, single digits), in bfloat16, for first runs
and tests without a network. They know the three procedural task families of `experiments/tasks` and nothing else.

**Caveat.** The target was trained with stochastic depth: a small model without it has no layers to spare, and its slim
view would be useless. Large pretrained models have this redundancy without such training. What a slim verifier gains
here is therefore no evidence for a pretrained target; measure that one.

## Held-out problems

First {count} problems of each calibration split (never trained on), greedy answers. Quality is the task's own score;
agreement is the share of tokens of the target's own answers that equal the argmax of the draft model, or of a slim
view of the target with {skipped} of {layers} layers skipped at even distances (no searched mask).

{table}

## Recipe

`python scripts/train_reference_pair.py --seed {seed}`: {pool} training problems per family, packed into {rows} rows of
{length} tokens a step without attention from one to another; loss on completions only; Muon for the matrices of the
layers, AdamW for the rest, both with peak rate {rate}, short warm-up and cosine decay; bfloat16 autocast. On every
other step of the target each layer but the first and the last is left out with probability {drop}. The exported weights
are those of the last step. The draft stops early on purpose: trained as long as the target it comes so close to it that
a verifier has nothing left to do (docs/LOG.md). Splits are made by a hash of a problem's content, so that no held-out
problem was seen in other words; templates and names are shared by all splits.

## Training

`loss` is a moving average on training batches. `exact` is the share of 96 held-out completions of which every token is
the argmax.

{parts}"""


def train_tokenizer(corpus: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stay single, with a begin mark put in front of every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    marks = [(BOS, core.token_to_id(BOS))]
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def ready_tokenizer(pools: dict[str, list[Example]], options: argparse.Namespace) -> PreTrainedTokenizerFast:
    """Train the tokenizer, or take the one that belongs to the checkpoints."""
    folder = options.checkpoints / "tokenizer"
    if (options.resume or options.export_now) and folder.exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(e.prompt + e.reference for pool in pools.values() for e in pool[:20_000])
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(role: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make a freshly initialized model of the pair."""
    torch.manual_seed(seed)
    ids = {f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        attn_implementation="eager",  # as trained with explicit document masks
        **SHAPES[role],
        **ids,
    )
    return LlamaForCausalLM(config)


def encode(examples: list[Example], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Return the ids of prompt, completion and end mark, and the length of the prompt, of each example."""
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    completions = tokenizer([e.reference for e in examples], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [(p + c + end, len(p)) for p, c in zip(prompts, completions, strict=True)]


def pack(documents: list[Document], rng: random.Random) -> dict[str, Tensor]:
    """Fill ROWS x LENGTH tokens with randomly drawn documents, longest first, each where it fits first."""
    drawn = [rng.choice(documents) for _ in range(ROWS * LENGTH // 60)]
    expected = 0
    for last, (ids, _) in enumerate(drawn, start=1):
        expected += len(ids)
        if expected > ROWS * LENGTH:
            drawn = drawn[:last]
            break
    ids_, targets = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.full((ROWS, LENGTH), IGNORED)
    owner, positions = torch.arange(LENGTH).neg().repeat(ROWS, 1) - 1, torch.zeros(ROWS, LENGTH, dtype=torch.long)
    used = [0] * ROWS
    for number, (ids, prompt) in enumerate(sorted(drawn, key=lambda d: -len(d[0])), start=1):
        row = next((r for r in range(ROWS) if used[r] + len(ids) <= LENGTH), None)
        if row is None:
            continue
        start, end = used[row], used[row] + len(ids)
        used[row] = end
        ids_[row, start:end] = torch.tensor(ids)
        targets[row, start + prompt - 1 : end - 1] = torch.tensor(ids[prompt:])
        owner[row, start:end], positions[row, start:end] = number, torch.arange(len(ids))
    return {"ids": ids_, "targets": targets, "owner": owner, "positions": positions}


def hidden_states(model: LlamaForCausalLM, batch: dict[str, Tensor], kept: list[int]) -> Tensor:
    """Run the kept layers over packed documents; no document sees another one. Returns (rows, length, hidden)."""
    inner, owner = model.model, batch["owner"]
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=owner.device).tril()
    allowed = (owner[:, :, None] == owner[:, None, :]) & causal
    mask = torch.zeros(allowed.shape, dtype=torch.bfloat16, device=owner.device)
    mask = mask.masked_fill(~allowed, float("-inf"))[:, None]  # (rows, 1, length, length)
    hidden = inner.embed_tokens(batch["ids"])
    rotary = inner.rotary_emb(hidden, batch["positions"])
    for index in kept:
        hidden = inner.layers[index](hidden, attention_mask=mask, position_embeddings=rotary)
    return inner.norm(hidden)


def completion_loss(model: LlamaForCausalLM, batch: dict[str, Tensor], kept: list[int]) -> Tensor:
    """Mean cross entropy over the completion tokens alone."""
    hidden, targets = hidden_states(model, batch, kept).flatten(0, 1), batch["targets"].flatten()
    # Always as many rows, completions first: sizes that change with each step fragment the memory by gigabytes.
    judged = torch.argsort((targets == IGNORED).int(), stable=True)[:JUDGED]
    return cross_entropy(model.lm_head(hidden[judged]).float(), targets[judged], ignore_index=IGNORED)


def kept_layers(layers: int, step: int, rng: random.Random) -> list[int]:
    """All layers on even steps; on odd ones each inner layer stays with probability 1 - DROP."""
    if step % 2 == 0 or layers <= 2:
        return list(range(layers))
    return [i for i in range(layers) if i in (0, layers - 1) or rng.random() >= DROP]


def build_optimizers(model: LlamaForCausalLM, rates: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers." in n)]
    muon = torch.optim.Muon(matrices, lr=rates[0], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=rates[1], betas=(0.9, 0.95), weight_decay=0.0)]


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps (or a tenth), then a cosine down to 2%."""
    warm = min(100, steps // 10 + 1)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Training:
    """One model's training: everything that a checkpoint holds."""

    def __init__(self, role: str, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
        self.role, self.options = role, options
        self.device = torch.device(options.device)
        self.steps = options.steps_target if role == "target" else options.steps_draft
        self.model = build_model(role, tokenizer, options.seed).to(self.device)
        self.rates = (options.rate, options.rate)
        self.optimizers = build_optimizers(self.model, self.rates)
        self.step, self.seconds, self.threads, self.curve = 0, 0.0, options.threads, []
        self.path = options.checkpoints / f"{role}.pt"

    def save(self) -> None:
        """Store model, optimizers, progress and generator state."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "threads": self.threads,
            "curve": self.curve,
            "rng": torch.get_rng_state(),
        }
        save_atomically(state, self.path)

    def load(self) -> bool:
        """Take up the last checkpoint, if there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.threads, self.curve = (state[k] for k in ("step", "seconds", "threads", "curve"))
        torch.set_rng_state(state["rng"].cpu())
        return True

    def take_step(self, documents: list[Document]) -> float:
        """One update on the batch that belongs to this step."""
        rng = random.Random(f"{self.options.seed}:{self.role}:{self.step}")
        batch = {key: value.to(self.device) for key, value in pack(documents, rng).items()}
        kept = kept_layers(self.model.config.num_hidden_layers, self.step, rng)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(self.step, self.steps)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = completion_loss(self.model, batch, kept)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()  # gradients to None: a dropped layer is not moved by its old momentum
        self.step += 1
        return loss.item()

    def run(self, documents: list[Document], held_out: dict[str, list[Document]]) -> None:
        """Train to the last step, with checkpoints and a look at each family on the way."""
        if not self.options.no_compile:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.role, mininterval=10.0, smoothing=0.05)
        last_save, average = time.monotonic(), None
        while self.step < self.steps:
            started = time.monotonic()
            loss = self.take_step(documents)
            self.seconds += time.monotonic() - started
            average = loss if average is None else 0.95 * average + 0.05 * loss
            bar.update()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            if self.step % self.options.look_every == 0 or self.step == self.steps:
                self.curve.append([self.step, average, look(self.model, held_out)])
                tqdm.write(json.dumps({"role": self.role, "seconds": round(self.seconds), "curve": self.curve[-1]}))
            if time.monotonic() - last_save > self.options.save_seconds or self.step == self.steps:
                self.save()
                last_save = time.monotonic()
        bar.close()


@torch.inference_mode()
def look(model: LlamaForCausalLM, held_out: dict[str, list[Document]]) -> dict[str, list[float]]:
    """Return [loss per completion token, share of completions whose every argmax is right] per family."""
    result = {}
    layers, device = list(range(model.config.num_hidden_layers)), model.device
    for family, documents in held_out.items():
        losses, exact = [], []
        for first in range(0, len(documents), ROWS):
            batch = pack_one_per_row(documents[first : first + ROWS], device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model.lm_head(hidden_states(model, batch, layers)).float()
            targets = batch["targets"]
            losses.append(cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item())
            exact += ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(-1).tolist()[: len(documents) - first]
        result[family] = [round(sum(losses) / len(losses), 4), round(sum(exact) / len(exact), 4)]
    return result


def pack_one_per_row(documents: list[Document], device: torch.device) -> dict[str, Tensor]:
    """Lay out one document per row, in the fixed shape of a training batch."""
    ids, targets = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.full((ROWS, LENGTH), IGNORED)
    for row, (tokens, prompt) in enumerate(documents):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, prompt - 1 : len(tokens) - 1] = torch.tensor(tokens[prompt:])
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    batch = {"ids": ids, "targets": targets, "owner": torch.zeros_like(ids), "positions": positions}
    return {key: value.to(device) for key, value in batch.items()}


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save an ordinary model folder in bfloat16, free of anything about this machine."""
    clone = LlamaForCausalLM(model.config)
    clone.load_state_dict(model.state_dict())
    clone.to(torch.bfloat16)
    clone.generation_config.do_sample = False
    for mark in ("bos", "eos", "pad"):
        setattr(clone.generation_config, f"{mark}_token_id", getattr(tokenizer, f"{mark}_token_id"))
    clone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        for key in ("_name_or_path", "_from_model_config", "is_local", "local_files_only"):
            config.pop(key, None)  # how it was loaded here says nothing about the pair
        (folder / name).write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def evenly_skipped(layers: int, count: int) -> list[int]:
    """Return `count` inner layers at even distances; the first and the last are never among them."""
    return [round(1 + i * (layers - 3) / max(1, count - 1)) for i in range(count)]


@contextmanager
def skipping(model: LlamaForCausalLM, skipped: list[int]) -> Iterator[None]:
    """Let the model run without some layers for a while; without a cache the layer indices do not matter."""
    layers, count = model.model.layers, model.config.num_hidden_layers
    model.model.layers = ModuleList(layer for i, layer in enumerate(layers) if i not in skipped)
    model.config.num_hidden_layers = count - len(skipped)
    try:
        yield
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count


@torch.inference_mode()
def answer(model: LlamaForCausalLM, inputs: dict[str, Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """Write greedy answers; return (sequences, mask of the prompt and of the answer up to its end mark)."""
    sequences = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    written = sequences[:, inputs["input_ids"].shape[1] :]
    ends = (written == model.config.eos_token_id).int()
    return sequences, torch.cat([inputs["attention_mask"], (ends.cumsum(-1) - ends == 0).long()], dim=1)


@torch.inference_mode()
def agreement(model: LlamaForCausalLM, sequences: Tensor, mask: Tensor, prompt: int) -> tuple[int, int]:
    """Count the answer tokens that equal this model's argmax after the tokens before them, and all answer tokens."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    rows = model(input_ids=sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits
    same = (rows[:, prompt - 1 : -1].argmax(-1) == sequences[:, prompt:]) & mask[:, prompt:].bool()
    return int(same.sum()), int(mask[:, prompt:].sum())


def evaluate_task(pair: dict[str, LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast, task: Task, count: int) -> Row:
    """Measure both models and a slim view on held-out problems of one family."""
    examples = task.examples("calibration", count)
    inputs = dict(tokenizer([e.prompt for e in examples], return_tensors="pt", padding=True).to(pair["target"].device))
    prompt, row = inputs["input_ids"].shape[1], {}
    for role in ("draft", "target"):
        sequences, mask = answer(pair[role], inputs, task.max_new_tokens)
        texts = tokenizer.batch_decode(sequences[:, prompt:], skip_special_tokens=True)
        scores = [task.score(e, text) for e, text in zip(examples, texts, strict=True)]
        row[f"{role} {QUALITY}"] = sum(scores) / len(scores)
    same, total = agreement(pair["draft"], sequences, mask, prompt)
    row["draft agreement"] = same / total
    layers = pair["target"].config.num_hidden_layers
    with skipping(pair["target"], evenly_skipped(layers, SKIPPED)):
        row["slim agreement"] = agreement(pair["target"], sequences, mask, prompt)[0] / total
    return row | {"answer tokens": total / len(examples)}


def evaluate(folder: Path, device: str, count: int) -> dict[str, Row]:
    """Measure the saved pair, family by family, in float32 from its bfloat16 weights."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    pair = {r: AutoModelForCausalLM.from_pretrained(folder / r, dtype=torch.float32).to(device).eval() for r in SHAPES}
    result = {}
    for task in tqdm(TASKS, desc="evaluation"):
        result[task.name] = evaluate_task(pair, tokenizer, task, count)
        tqdm.write(f"{task.name}: {json.dumps(result[task.name])}")
    return result


def as_table(rows: dict[str, Row]) -> str:
    """Lay out numbers by family as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = ["| family | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def as_curve(training: Training) -> str:
    """Lay out a model's course: step, training loss, and per family held-out loss and share of perfect answers."""
    names = [task.name for task in TASKS]
    lines = ["| step | loss | " + " | ".join(f"{name}: loss, exact" for name in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    every = max(1, len(training.curve) // 12)
    for step, loss, seen in training.curve[every - 1 :: every]:
        cells = [f"{seen[name][0]:.3f}, {seen[name][1]:.2f}" for name in names]
        lines.append(f"| {step} | {loss:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_card(options: argparse.Namespace, trainings: list[Training], rows: dict[str, Row]) -> None:
    """Write the model card from what was measured."""
    parts = []
    for training in sorted(trainings, key=lambda t: t.role, reverse=True):
        parameters = sum(p.numel() for p in training.model.parameters())
        shape = SHAPES[training.role]
        parts.append(
            f"### {training.role}: {shape['num_hidden_layers']} layers x {shape['hidden_size']}, "
            f"{parameters / 1e6:.2f} M parameters\n\n{training.step} steps in {training.seconds / 60:.1f} minutes "
            f"({options.device}, threads: {training.threads}).\n\n{as_curve(training)}\n"
        )
    numbers = {"count": options.evaluate, "table": as_table(rows), "parts": "\n".join(parts), "drop": DROP}
    numbers |= {"pool": POOL, "rows": ROWS, "length": LENGTH, "rate": options.rate, "seed": options.seed}
    numbers |= {"skipped": SKIPPED, "layers": SHAPES["target"]["num_hidden_layers"]}
    (options.out / "README.md").write_text(CARD.format(**numbers))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "viasd" / "reference", help="folder of the pair")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "results" / "checkpoints", help="untracked folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps-target", type=int, default=3000)
    parser.add_argument("--steps-draft", type=int, default=500)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--look-every", type=int, default=250, help="steps between looks at held-out problems")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--only", choices=("target", "draft"), help="train one of the two")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    parser.add_argument("--export-now", action="store_true", help="save the checkpoints as they are, train nothing")
    parser.add_argument("--evaluate", type=int, default=60, metavar="N", help="held-out problems per family (0: none)")
    parser.add_argument("--no-compile", action="store_true", help="plain eager layers")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    """Tokenizer, draft, target, evaluation, card."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    pools = {} if options.export_now else {task.name: task.examples("train", POOL) for task in TASKS}
    tokenizer = ready_tokenizer(pools, options)
    documents = [d for pool in pools.values() for d in encode(pool, tokenizer)]
    held_out = {task.name: encode(task.examples("calibration", 96), tokenizer) for task in TASKS}
    trainings = []
    for role in [options.only] if options.only else ["draft", "target"]:
        training = Training(role, tokenizer, options)
        trainings.append(training)
        if (options.resume or options.export_now) and not training.load():
            print(f"no checkpoint at {training.path}; starting from step 0", file=sys.stderr)
        if not options.export_now:
            training.run(documents, held_out)
        export(training.model, tokenizer, options.out / role)
    if options.evaluate and len(trainings) == len(SHAPES):
        write_card(options, trainings, evaluate(options.out, options.device, options.evaluate))


if __name__ == "__main__":
    main()
