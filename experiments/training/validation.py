"""What counts: the acceptance length that a drafter reaches in the real decode loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.training.documents import Prompt
from experiments.training.subjects import open_decoder
from viasd.decode import Decode, Round
from viasd.engine import Engine
from viasd.sampling import Sampling, SeededDraws


@dataclass(frozen=True)
class Acceptance:
    """`length`: committed tokens per call of the target. `places`: of drafted tokens that were judged, the share kept,
    by place in the block; nan where none was."""

    length: float
    places: list[float]
    tokens: int


def measure_acceptance(
    engine: Engine, drafter: Any, prompts: Sequence[Prompt], draft_length: int, ends: frozenset[int]
) -> Acceptance:
    """Greedy decoding of the prompts with chains of `draft_length` tokens that it drafts, off any clock."""
    decoder = open_decoder(engine, drafter, draft_length)
    rounds: list[Round] = []
    for number, prompt in enumerate(prompts):
        longest = min(prompt.longest, engine.slots - len(prompt.ids))
        decode = Decode(Sampling(), longest, ends)
        rounds += decoder.generate(prompt.ids, decode, SeededDraws(0, str(number), engine.device)).rounds
    return summarize(rounds, draft_length)


def summarize(rounds: Sequence[Round], draft_length: int) -> Acceptance:
    """Acceptance of rounds that the target ended one by one."""
    judged, kept = torch.zeros(draft_length), torch.zeros(draft_length)
    for one in rounds:
        for place, stood in one.judgments:
            judged[place] += 1
            kept[place] += stood
    tokens = sum(one.committed for one in rounds)
    return Acceptance(tokens / max(1, len(rounds)), (kept / judged).tolist(), tokens)
