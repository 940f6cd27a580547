"""Fidelity to the target, off the clock: one uncached target pass over prompt and output (DESIGN section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.records import Row
from viasd.engine import Engine
from viasd.sampling import Sampling, process, widen

# Two paths through the same model differ by rounding; a top-two margin (nats) below this decides nothing.
TIE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}


@torch.inference_mode()
def measure_fidelity(
    engine: Engine, prompt_ids: Sequence[int], row: Row, laws: Sequence[float] | None, sampling: Sampling
) -> None:
    """Fill the row's `token_loss` and, at temperature 0, its gaps and first divergence.

    Temperature 0: loss of a token is [it is not the target's argmax]. Above: max(0, 1 - target / law), where law is
    the probability of the token under the law that wrote it; without laws there is no loss to tell.
    """
    output = row.token_ids
    ids = torch.tensor([[*prompt_ids, *output]], device=engine.device)
    logits = engine.model("target")(input_ids=ids, use_cache=False, logits_to_keep=len(output) + 1).logits[0]
    rows = widen(logits, engine.vocabulary)[:-1]  # row i is the distribution of output token i
    chosen = torch.tensor(output, device=engine.device)[:, None]
    if sampling.temperature > 0:
        if laws is not None:
            target = process(rows, sampling).gather(1, chosen)[:, 0].double().tolist()
            row.token_loss = [_round(max(0.0, 1 - p / law)) for p, law in zip(target, laws, strict=True)]
        return
    top = rows.topk(2, dim=-1)
    gaps = (top.values[:, 0] - rows.gather(1, chosen)[:, 0]).double()
    differs = rows.argmax(-1) != chosen[:, 0]
    margins = (top.values[:, 0] - top.values[:, 1]).double()
    row.token_loss = differs.double().tolist()
    row.log_prob_gap = [_round(gap) for gap in gaps.tolist()]
    row.tie_flips = int((differs & (gaps <= TIE_TOLERANCE[engine.dtype])).sum())
    if bool(differs.any()):
        row.first_divergence = int(differs.long().argmax())
        row.divergence_margin = _round(float(margins[row.first_divergence]))


def _round(value: float) -> float:
    return float(f"{value:.6g}")
