"""A check as text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.checking.facts import ModelFacts
from experiments.checking.verdicts import GB, Verdict
from experiments.text_tables import ABSENT, text_table
from viasd.models import Pair


def show(pair: Pair, facts: Sequence[ModelFacts], verdicts: Sequence[Verdict], dtype: torch.dtype) -> str:
    """The models, then the questions with their answers."""
    kind = str(dtype).removeprefix("torch.")
    cells = [["role", "model", "parameters", f"GB in {kind}", "to download"]]
    for one in facts:
        bits = pair.quantization.get(one.role)
        size = ABSENT if one.size is None else f"{one.size.weights(dtype.itemsize, bits) / GB:.2f}"
        count = ABSENT if one.size is None else f"{one.size.parameters:,}"
        fetch = ABSENT if one.download is None else f"{one.download / GB:.2f} GB" if one.download else "nothing"
        cells.append([one.role, one.name, count, f"{size} ({bits})" if bits else size, fetch])
    width = max(len(one.question) for one in verdicts)
    lines = [f"{one.question.ljust(width)}  {one.answer.ljust(7)}  {one.why}" for one in verdicts]
    note = f"\n{pair.about.note}" if pair.about.note else ""
    return f"pair {pair.name}\n{text_table(cells, lead=2)}\n\n" + "\n".join(lines) + note
