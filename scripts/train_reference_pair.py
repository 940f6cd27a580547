"""Train the reference pair: a tokenizer, a target with stochastic depth, a small draft model and one in between.

    python scripts/train_reference_pair.py --out viasd/reference --checkpoints /path/for/checkpoints

Data come from the task generators (train split). Batches and dropped layers depend on (seed, step) only, so that a
resumed run (`--resume`) goes on exactly where the stopped one was. scripts/describe_reference_pair.py measures the
result and writes its card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by hand: the repository need not be installed

from reference_data import (  # noqa: E402
    IGNORED,
    JUDGED,
    LENGTH,
    TASKS,
    Batch,
    Document,
    draw_documents,
    encode,
    mean_quality,
    pack,
    train_tokenizer,
    training_pools,
)

from experiments.launching.locks import presence  # noqa: E402
from experiments.tasks.base import Example  # noqa: E402

DROP = 0.4
RATE = 3e-3
LOOKED_AT = 48  # held-out problems of each family in a look on the way
SHAPES = {
    "target": {"hidden_size": 224, "intermediate_size": 608, "num_hidden_layers": 16, "num_attention_heads": 4},
    "mid": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3},
    "draft": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2},
}
STEPS = {"target": 16000, "mid": 3000, "draft": 900}
LAYER_DROP = ("target",)  # the roles whose layers are left out at times


def ready_tokenizer(options: argparse.Namespace, pools: dict[str, list[Example]]) -> PreTrainedTokenizerFast:
    """Train the tokenizer, or take the one that belongs to the checkpoints."""
    folder = options.checkpoints / "tokenizer"
    if folder.exists():
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


def hidden_states(model: LlamaForCausalLM, batch: Batch, kept: list[int]) -> Tensor:
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


def completion_loss(model: LlamaForCausalLM, batch: Batch, kept: list[int]) -> Tensor:
    """Mean cross entropy over the completion tokens alone."""
    hidden, targets = hidden_states(model, batch, kept).flatten(0, 1), batch["targets"].flatten()
    # Always as many rows, completions first: sizes that change with each step fragment the memory by gigabytes.
    judged = torch.argsort((targets == IGNORED).int(), stable=True)[:JUDGED]
    return cross_entropy(model.lm_head(hidden[judged]).float(), targets[judged], ignore_index=IGNORED)


def kept_layers(layers: int, step: int, rng: random.Random) -> list[int]:
    """All layers on even steps; on odd ones each inner layer stays with probability 1 - DROP."""
    if step % 2 == 0:
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
        self.role, self.options, self.tokenizer = role, options, tokenizer
        self.device = torch.device(options.device)
        self.steps = options.steps or STEPS[role]
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

    def take_step(self, pools: dict[str, list[Document]]) -> float:
        """One update on the batch that belongs to this step."""
        rng = random.Random(f"{self.options.seed}:{self.role}:{self.step}")
        drawn = draw_documents(pools, rng, self.step / self.steps)
        batch = {key: value.to(self.device) for key, value in pack(drawn).items()}
        layers = self.model.config.num_hidden_layers
        kept = kept_layers(layers, self.step, rng) if self.role in LAYER_DROP else list(range(layers))
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

    def run(self, pools: dict[str, list[Document]]) -> None:
        """Train to the last step, with checkpoints and a look at each family on the way."""
        if not self.options.no_compile:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.role, mininterval=10.0, smoothing=0.05)
        last_save, average = time.monotonic(), None
        while self.step < self.steps:
            started = time.monotonic()
            loss = self.take_step(pools)
            self.seconds += time.monotonic() - started
            average = loss if average is None else 0.97 * average + 0.03 * loss
            bar.update()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            if self.step % self.options.look_every == 0 or self.step == self.steps:
                self.curve.append([self.step, round(average, 4), self.look()])
                tqdm.write(json.dumps({"role": self.role, "seconds": round(self.seconds), "curve": self.curve[-1]}))
            if time.monotonic() - last_save > self.options.save_seconds or self.step == self.steps:
                self.save()
                last_save = time.monotonic()
        bar.close()

    def look(self) -> dict[str, float]:
        """Quality of greedy answers to the first held-out problems of each family."""
        plain = plain_copy(self.model)  # compiled layers would be compiled again for each length
        return {
            task.name: round(mean_quality(plain, self.tokenizer, task, task.examples("calibration", LOOKED_AT)), 3)
            for task in TASKS
        }


def plain_copy(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same weights in a model that is not compiled, ready to answer greedily."""
    copy = LlamaForCausalLM(model.config).to(model.device).eval()
    copy.load_state_dict(model.state_dict())
    copy.generation_config.do_sample = False
    for mark in ("bos", "eos", "pad"):
        setattr(copy.generation_config, f"{mark}_token_id", getattr(model.config, f"{mark}_token_id"))
    return copy


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save an ordinary model folder in bfloat16, free of anything about this machine."""
    clone = plain_copy(model).to(torch.bfloat16)
    clone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        for key in ("_name_or_path", "_from_model_config", "is_local", "local_files_only"):
            config.pop(key, None)  # how it was loaded here says nothing about the pair
        (folder / name).write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "viasd" / "reference", help="folder of the pair")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "results" / "checkpoints", help="untracked folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, help=f"instead of {STEPS}")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--look-every", type=int, default=500, help="steps between looks at held-out problems")
    parser.add_argument("--save-seconds", type=float, default=180.0, help="seconds between checkpoints")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--only", choices=tuple(SHAPES), help="train one of them")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    parser.add_argument("--export-now", action="store_true", help="save the checkpoints as they are, train nothing")
    parser.add_argument("--no-compile", action="store_true", help="plain eager layers")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    """Tokenizer, then the models, smallest first."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    pools = {} if options.export_now else training_pools()
    tokenizer = ready_tokenizer(options, pools)
    documents = {name: encode(pool, tokenizer) for name, pool in pools.items()}
    for role in [options.only] if options.only else list(reversed(SHAPES)):
        training = Training(role, tokenizer, options)
        if (options.resume or options.export_now) and not training.load():
            print(f"no checkpoint at {training.path}; starting from step 0", file=sys.stderr)
        if not options.export_now:
            training.run(documents)
        export(training.model, tokenizer, options.out / role)


if __name__ == "__main__":
    with presence():  # runs that are timed beside it say so
        main()
