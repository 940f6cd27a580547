"""Row pairs: what target, draft model and slim view say after the same prefixes, computed once and stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.probing.agreement import read_rows
from experiments.probing.setup import Prompt
from viasd.decode import Speculative
from viasd.engine import Engine
from viasd.sampling import SeededDraws
from viasd.verification import Intermediate

Rows = dict[str, Tensor]  # target, draft and, where there is one, slim: raw logits [n, V]


class RowStore:
    """One file for each prompt, named by its task and its place in the list of prompts."""

    def __init__(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        self.paths = [folder / f"{prompt.task}_{place}.safetensors" for place, prompt in enumerate(prompts)]

    @property
    def missing(self) -> list[int]:
        """Places of the prompts without rows."""
        return [place for place, path in enumerate(self.paths) if not path.exists()]

    def write(self, place: int, rows: Rows) -> None:
        """Store the rows of one prompt, whole or not at all."""
        path = self.paths[place]
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({role: one.cpu().contiguous() for role, one in rows.items()}, beside)
        beside.replace(path)

    def read(self, place: int, device: torch.device) -> Rows:
        """The rows of one prompt."""
        return load_file(self.paths[place], device=str(device))


@torch.inference_mode()
def compute_rows(
    engine: Engine, prompt: Prompt, vanilla: Speculative, drafter: str, slim: Intermediate | None, seed: int
) -> Rows:
    """Let the target answer, and every model read the answer: row i is the distribution of its token i.

    The draft model's ids that it lacks have -inf. A slim view on the target's cache reads the target's keys and values
    of the prompt, and writes its own behind.
    """
    output = vanilla.generate(prompt.ids, prompt.decode, SeededDraws(seed, "law error", engine.device)).token_ids
    ids, first = torch.tensor([*prompt.ids, *output[:-1]], device=engine.device), len(prompt.ids)
    readers = engine.readers()
    target = readers.get("target")
    rows = {"target": read_rows(target, ids, first), "draft": read_rows(readers.get(drafter, "draft"), ids, first)}
    if slim is not None:
        target.rewind(first - 1)
        rows["slim"] = read_rows(slim.open_reader(readers), ids, first)  # type: ignore[arg-type]
    # A model in 16 bits says no more than 16 bits hold.
    return {role: one.to(engine.dtype) if engine.dtype == torch.bfloat16 else one for role, one in rows.items()}


def fill(store: RowStore, prompts: Sequence[Prompt], compute: Callable[[Prompt], Rows]) -> Iterator[None]:
    """Compute and store what is missing; yields after each prompt."""
    for place in store.missing:
        store.write(place, compute(prompts[place]))
        yield
