"""Replay methods on stored rows: the real decode loop, with readers that look rows up instead of running a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq

import torch
from torch import Tensor

from experiments.arms import lossless, vanilla
from experiments.costs import CostCurve
from experiments.probing.agreement import Forced
from experiments.probing.setup import ProbeJob
from viasd.blocks import DraftedBlock, TripTest, draft_by_steps
from viasd.decode import Decode, Generation, RowReader, Speculative
from viasd.drafting import FixedLength
from viasd.gates import DeferralGate
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Kept
from viasd.sampling import Draws, Sampling, SeededDraws
from viasd.taps import Taps

ORACLE = "oracle"


class StoredReader:
    """A reader whose row depends on the position alone: what it would say had every committed token been the target's.

    `rows` [n, V]: the first one follows the prompt's last token. Positions behind the last row repeat it; nothing that
    counts is decided there. `log` gets (role, tokens fed) of every call.
    """

    tapped: Taps | None = None

    def __init__(
        self, role: str, rows: Tensor, prompt: int, log: list[tuple[str, int]], stronger: RowReader | None = None
    ) -> None:
        self.role, self.stronger = role, stronger
        self.calls = self.fed = self._read = 0
        self._rows, self._prompt, self._log = rows, prompt, log

    @property
    def read(self) -> int:
        return self._read if self.stronger is None else max(self._read, self.stronger.read)

    def start(self) -> None:
        self._read = self.calls = self.fed = 0

    def rewind(self, length: int) -> None:
        self._read = min(self._read, length)

    def feed(self, ids: Tensor, stop: int, last: int) -> Tensor:
        """Rows [last, V] after ids[stop - last] to ids[stop - 1]; none of the prompt but its last."""
        fed = stop - self.read
        self._read = stop
        self.calls += 1
        self.fed += fed
        self._log.append((self.role, fed))
        places = torch.arange(stop - last, stop, device=self._rows.device) - self._prompt + 1
        return self._rows[places.clamp(max=self._rows.shape[0] - 1)]

    def draft_on(
        self, ids: Tensor, stop: int, steps: int, sampling: Sampling, draws: Draws, trip: TripTest | None = None
    ) -> DraftedBlock:
        return draft_by_steps(self, ids, stop, steps, sampling, draws, trip)


class StoredReaders:
    """The readers of one decoder over the rows of one output, by role; `slim` is the method's view."""

    def __init__(self, rows: Mapping[str, Tensor], prompt: int) -> None:
        self.log: list[tuple[str, int]] = []
        self._rows, self._prompt = rows, prompt
        self._readers: dict[str, StoredReader] = {}

    @property
    def device(self) -> torch.device:
        return self._rows["target"].device

    @property
    def vocabulary(self) -> int:
        return self._rows["target"].shape[-1]

    def get(self, role: str, name: str | None = None) -> StoredReader:
        return self._open(role, None)

    def slim(self, kept: Kept, cache: str, role: str = "slim", stronger: RowReader | None = None) -> StoredReader:
        return self._open("slim", self.get("target") if cache == "shared" else None)

    def opened(self) -> Sequence[RowReader]:
        return list(self._readers.values())

    def _open(self, role: str, stronger: StoredReader | None) -> StoredReader:
        if role not in self._readers:
            self._readers[role] = StoredReader(role, self._rows[role], self._prompt, self.log, stronger)
        return self._readers[role]


@dataclass(frozen=True)
class Replay:
    """What one replayed output came to. `steps` counts the calls by (role, tokens fed), the prompt's left out."""

    tokens: int
    rounds: int
    escalated: int  # rounds in which the target ran beside the slim verifier
    judged: int
    rejected: int
    equal: int  # committed tokens that are the target's first choice
    steps: Counter[tuple[str, int]]
    drafted: int

    def calls(self, role: str) -> int:
        return sum(count for (name, _), count in self.steps.items() if name == role)

    def seconds(self, costs: Mapping[str, CostCurve], role: str | None = None) -> float:
        """Seconds inside forward calls, of one role or of all, at isolated costs by role."""
        priced = ((name, costs[name].seconds(fed) * count) for (name, fed), count in self.steps.items())
        return sum(seconds for name, seconds in priced if role in (None, name))


@torch.inference_mode()
def replay(method: Method, forced: Forced, seed: int = 0) -> Replay:
    """Decode an output's length greedily with the method on its stored rows.

    The text ends where the target's own ended, not at an end mark: a kept token that differs changes neither the
    context nor the end. Drafts are bounded by the most tokens that a run would output.
    """
    readers = StoredReaders(forced.rows, len(forced.prompt.ids))
    verifier = method.verifier.open_verifier(readers)
    drafter = method.drafter.open_drafter(readers)
    decoder = Speculative(drafter, method.stop.open_stop(), verifier, readers)
    budget = forced.prompt.decode.max_new_tokens
    decode = Decode(Sampling(), budget, stop=lambda output: len(output) >= forced.length)
    generation = decoder.generate(
        forced.prompt.ids,
        decode,
        SeededDraws(seed, "probe", readers.device),
        watch=lambda event: readers.log.clear() if event == "prefilled" else None,
    )
    return summed_up(generation, Counter(readers.log), forced)


def summed_up(generation: Generation, steps: Counter[tuple[str, int]], forced: Forced) -> Replay:
    """What a generation of a prompt whose target rows are known came to."""
    return Replay(
        tokens=len(generation.token_ids),
        rounds=len(generation.rounds),
        escalated=sum(one.escalation is not None for one in generation.rounds),
        judged=sum(one.judged for one in generation.rounds),
        rejected=sum(one.rejected for one in generation.rounds),
        equal=sum(map(eq, generation.token_ids, forced.rows["target"].argmax(-1).tolist())),
        steps=steps,
        drafted=sum(one.drafted for one in generation.rounds),
    )


def oracle(method: Method) -> Method:
    """The method with a gate that lets the slim verifier judge where it is sure: for rows that `foresee` made."""
    assert isinstance(method.verifier, Hierarchical)
    verifier = replace(method.verifier, gate=DeferralGate(), mode="lossy", calls=None, budget=None)
    return replace(method, name=ORACLE, verifier=verifier)


def foresee(forced: Forced) -> Forced:
    """The slim rows as an oracle would have them: sure where the first choice is the target's, elsewhere flat.

    At temperature 0 only the first choice counts where the slim verifier judges, and it has not changed there. So the
    gate escalates exactly where the two differ: a bound at fidelity 1 for gates that look at rows and not at the
    drafted token, which no gate can reach. It is modelled, never measured: it reads target rows that nobody computed.
    """
    slim, target = forced.rows["slim"], forced.rows["target"]
    choice = slim.argmax(-1, keepdim=True)  # [n, 1]
    agrees = choice == target.argmax(-1, keepdim=True)
    sure = torch.full_like(slim, -torch.inf).scatter(1, choice, 0.0)
    return replace(forced, rows={**forced.rows, "slim": torch.where(agrees, sure, 0.0)})


def predicted_methods(job: ProbeJob) -> dict[tuple[str, int], Method]:
    """What is predicted, by (arm, draft length): vanilla; with a drafter also sd, the method and the oracle."""
    methods = {("vanilla", 0): vanilla()}
    if job.drafter is not None:
        for length in sorted(set(job.settings.draft_lengths)):
            method = replace(job.method, stop=FixedLength(length=length))
            methods["sd", length] = lossless(method)
            methods[job.method.name, length] = method
            methods[ORACLE, length] = oracle(method)
    return methods


def replay_all(methods: Mapping[tuple[str, int], Method], forced: Forced, seed: int) -> dict[tuple[str, int], Replay]:
    """Every method on one output; the oracle sees what it cannot know."""
    foreseen = foresee(forced) if "slim" in forced.rows else forced
    return {key: replay(method, foreseen if key[0] == ORACLE else forced, seed) for key, method in methods.items()}
