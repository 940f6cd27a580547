"""The target's own answers: written greedily in batches, stored once, gone on with where they were interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments import identity
from experiments.store import whole_lines
from experiments.training.documents import Document, Prompt


def answer_all(
    model: Any, ends: frozenset[int], prompts: Sequence[Prompt], path: Path, batch: int, room: int
) -> list[Document]:
    """Prompts [in their order] with the target's answers. `path` holds those that are written, batch by batch.

    Batches are of similar length, and always the same: with which others a prompt is answered may decide near ties.
    """
    order = sorted(range(len(prompts)), key=lambda one: (prompts[one].longest, len(prompts[one].ids)))
    groups = [order[start : start + batch] for start in range(0, len(order), batch)]
    done = _stored(path, [len(group) for group in groups])
    answers: dict[int, list[int]] = {}
    with tqdm(total=len(prompts), desc="answers", unit="prompt", leave=False, disable=None) as bar:
        for number, group in enumerate(groups):
            if number < len(done):
                found = done[number]
            else:
                found = write_answers(model, ends, [prompts[one] for one in group], room)
                _append(path, found)
            answers.update(zip(group, found, strict=True))
            bar.update(len(group))
    return [Document.of(prompt, answers[place]) for place, prompt in enumerate(prompts)]


@torch.inference_mode()
def write_answers(model: Any, ends: frozenset[int], prompts: Sequence[Prompt], room: int) -> list[list[int]]:
    """Greedy answers of one batch, filled up on the left, each up to its first end mark."""
    width = max(len(prompt.ids) for prompt in prompts)
    longest = min(prompts[0].longest, room - width)
    filler = min(ends, default=0)
    ids = torch.full((len(prompts), width), filler)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    written = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=filler,
    )
    return [list(_until_end(row, ends)) for row in written[:, width:].tolist()]


def _until_end(ids: Sequence[int], ends: frozenset[int]) -> Iterator[int]:
    for token in ids:
        yield token
        if token in ends:
            return


def end_marks(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config."""
    named = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return frozenset(token for token in found if token is not None)


def answers_name(target: str, prompts: Sequence[Prompt], batch: int, dtype: str) -> str:
    """A file name made of what decides the answers."""
    content = [target, [[one.ids, one.longest] for one in prompts], batch, dtype]
    return f"answers_{identity.digest([*content, identity.versions(('torch', 'transformers'))])}.jsonl"


def _stored(path: Path, sizes: Sequence[int]) -> list[list[list[int]]]:
    """The whole batches of the file; what is not whole is cut off."""
    if not path.exists():
        return []
    lines = whole_lines(path.read_bytes())[: len(sizes)]
    found = [json.loads(line) for line in lines]
    whole = next((place for place, (one, size) in enumerate(zip(found, sizes, strict=False)) if len(one) != size), None)
    found = found[:whole]
    path.write_text("".join(f"{line}\n" for line in lines[: len(found)]), encoding="utf-8")
    return found


def _append(path: Path, answers: list[list[int]]) -> None:
    """One line per batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(answers, separators=(",", ":")) + "\n")
