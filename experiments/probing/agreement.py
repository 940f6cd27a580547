"""How far other models and slim views agree with the target, teacher-forced on its own greedy outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from experiments.costs import open_slim
from experiments.probing.setup import ProbeJob, Prompt
from viasd.decode import Speculative
from viasd.engine import Engine
from viasd.reader import Reader
from viasd.sampling import SeededDraws


@dataclass(frozen=True)
class Distance:
    """One output's tokens, and sums over them: equal argmax, total variation, KL(target || other) in nats."""

    tokens: int
    equal: float
    tv: float
    kl: float


@dataclass(frozen=True)
class Sureness:
    """How sure a model is at each token of one output: entropy (nats) and probability of its first choice."""

    entropy: list[float]
    top: list[float]


@dataclass(frozen=True)
class Forced:
    """One target output under every reader, in raw logits.

    `rows` [length + tail + 1, V] of the target, the drafter and the method's slim view (`slim`): row i is the
    distribution of output token i. Behind the output stands a `tail` of what the drafter would go on with, which is
    what verifiers are shown when a draft reaches beyond the end.
    """

    prompt: Prompt
    length: int
    rows: dict[str, Tensor]
    distances: dict[str, Distance]  # by role or name of the view
    sureness: dict[str, Sureness]  # target and drafter


@torch.inference_mode()
def force(engine: Engine, job: ProbeJob, vanilla: Speculative, prompt: Prompt) -> Forced:
    """Let the target write, and every reader read what it wrote."""
    draws = SeededDraws(job.settings.seed, "probe", engine.device)
    output = vanilla.generate(prompt.ids, prompt.decode, draws).token_ids
    first, length = len(prompt.ids), len(output)
    end = first + length
    tail = min(max(job.settings.draft_lengths), prompt.decode.max_new_tokens - length) if job.drafter else 0
    ids = torch.zeros(end + tail, dtype=torch.long, device=engine.device)
    ids[:end] = torch.tensor([*prompt.ids, *output])
    readers = engine.readers()
    rows: dict[str, Tensor] = {}
    if job.drafter is not None:
        rows[job.drafter] = drafter_rows(readers.get(job.drafter), ids, first, end)
    target = readers.get("target")
    rows["target"] = read_rows(target, ids, first)
    own = rows["target"][:length]
    distances = {}
    for role in sorted(set(engine.models) - {"target"}):
        other = rows[role] if role in rows else read_rows(readers.get(role), ids[:end], first)
        distances[role] = compare(own, other[:length])
    target.rewind(first - 1)  # views lean on its keys and values of the prompt, and overwrite those behind
    for view in job.views:
        found = read_rows(open_slim(engine, view.kept, target), ids, first)
        distances[view.name] = compare(own, found[:length])
        if view is job.view:
            rows["slim"] = found
    sure = {role: sureness(rows[role][:length]) for role in ("target", job.drafter) if role is not None}
    return Forced(prompt, length, rows, distances, sure)


def read_rows(reader: Reader, ids: Tensor, first: int) -> Tensor:
    """Logits [n - first + 1, V] after ids[first - 1] to ids[n - 1]: the rows of the output and one behind it."""
    return reader.feed(ids, len(ids), last=len(ids) - first + 1)


def drafter_rows(reader: Reader, ids: Tensor, first: int, end: int) -> Tensor:
    """`read_rows` of the drafter up to `end`; ids[end:] become its own greedy continuation, with their rows."""
    rows = [reader.feed(ids, end, last=end - first + 1)]
    for place in range(end, len(ids)):
        ids[place] = rows[-1][-1].argmax()
        rows.append(reader.feed(ids, place + 1, last=1))
    return torch.cat(rows)


def compare(target: Tensor, other: Tensor) -> Distance:
    """Distance of logits [n, V] from the target's [n, V].

    An id that the other model lacks (-inf) has probability 0 in the total variation; the KL divergence, which would be
    infinite, is taken over the ids that both know, with the target's row renormalized to them.
    """
    p, q = target.softmax(-1), other.softmax(-1)
    known = other.isfinite()
    log_p = target.masked_fill(~known, -torch.inf).log_softmax(-1)
    gap = (log_p - other.log_softmax(-1)).masked_fill(~known, 0.0)
    return Distance(
        tokens=target.shape[0],
        equal=float((target.argmax(-1) == other.argmax(-1)).sum()),
        tv=float((p - q).abs().sum() / 2),
        kl=float((log_p.exp() * gap).sum()),
    )


def sureness(logits: Tensor) -> Sureness:
    """Entropy and first choice of rows [n, V] at temperature 1."""
    logs = logits.log_softmax(-1)
    rows = logs.exp()
    entropy = -(rows * logs.masked_fill(rows == 0, 0.0)).sum(-1)
    return Sureness(entropy.tolist(), rows.amax(-1).tolist())


def bins(longest: int) -> list[tuple[int, int]]:
    """Ranges of positions that double in width, [0, 4), [4, 8), [8, 16), ..., until `longest` is covered."""
    edges = [0, 4]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return list(pairwise(edges))


def by_position(outputs: Sequence[Sureness]) -> list[tuple[int, int, int, float, float]]:
    """(from, to, tokens, mean entropy, mean first-choice probability) of each range of positions, `to` excluded."""
    found = []
    for start, stop in bins(max((len(one.entropy) for one in outputs), default=0)):
        entropy = [value for one in outputs for value in one.entropy[start:stop]]
        top = [value for one in outputs for value in one.top[start:stop]]
        if entropy:
            found.append((start, stop, len(entropy), sum(entropy) / len(entropy), sum(top) / len(top)))
    return found
