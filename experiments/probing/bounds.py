"""Bounds for stop rules: what rules that know the target's rows would draft. Counts are real, seconds are modelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.probing.agreement import Forced
from experiments.probing.predict import Replay, replay, summed_up
from experiments.probing.setup import ProbeJob
from viasd.decode import Part, Speculative, State, StopRule
from viasd.engine import Engine
from viasd.method import Method
from viasd.reader import Probe, Reader
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier

IDEAL, SPECDEC = "ideal", "specdec_oracle"
BOUNDS = (IDEAL, SPECDEC)
REJECTION, SHORTEST, LONGEST = 0.3, 2, 20  # of SpecDec++'s benchmark command


def bounds(engine: Engine, job: ProbeJob, forced: Forced) -> dict[tuple[str, int], Replay]:
    """Both bounds on one output, at draft length 0: none is fixed. Empty where the pair has no draft model."""
    if job.drafter is None:
        return {}
    hindsight = Method(name=IDEAL, drafter=job.method.drafter, stop=Ideal(forced), verifier=RuleVerifier())
    return {
        (IDEAL, 0): replay(hindsight, forced, job.settings.seed),
        (SPECDEC, 0): run_oracle(engine, job, forced),
    }


@dataclass(frozen=True)
class Ideal:
    """Hindsight at temperature 0: drafts exactly as many tokens as will be kept, on stored rows."""

    forced: Forced

    def open_stop(self) -> StopRule:
        rows, length = self.forced.rows, self.forced.length
        (draft,) = (role for role in self.forced.sureness if role != "target")
        equal = (rows[draft].argmax(-1) == rows["target"].argmax(-1))[:length].tolist()
        runs = [0]
        for is_equal in reversed(equal):
            runs.insert(0, runs[0] + 1 if is_equal else 0)
        return _Ideal(runs)


class _Ideal(Part):
    def __init__(self, runs: list[int]) -> None:
        self._runs = runs  # by output token: how many are alike from it on

    def limit(self, state: State) -> int:
        return self._runs[len(state.output)]


@torch.inference_mode()
def run_oracle(engine: Engine, job: ProbeJob, forced: Forced) -> Replay:
    """Decode a prompt with the models under `SpecDecOracle`, whose own looks at the target are not counted."""
    prompt, readers = forced.prompt, engine.readers()
    verifier = RuleVerifier().open_verifier(readers)
    drafter = job.method.drafter.open_drafter(readers)
    decoder = Speculative(drafter, SpecDecOracle(readers.get("target"), engine.probe), verifier, readers)
    log: list[tuple[str, int]] = []

    @contextmanager
    def record(role: str, *fed: int) -> Iterator[None]:
        log.extend((role, count) for count in fed)
        yield

    draws = SeededDraws(job.settings.seed, "probe", engine.device)
    engine.probe.watch = record
    try:
        generation = decoder.generate(
            prompt.ids, prompt.decode, draws, watch=lambda event: log.clear() if event == "prefilled" else None
        )
    finally:
        engine.probe.watch = None
    return summed_up(generation, Counter(log), forced)


class SpecDecOracle(Part):
    """SpecDec++ (2405.19715) with the true min(1, target/draft) of raw rows in place of its trained head's estimate.

    A block ends where the probability that one of its tokens is rejected exceeds REJECTION, with SHORTEST to LONGEST
    tokens. As in the released code, a token is judged with the step that reads it, so the newest one never is.
    """

    keep = row_alone = True  # it looks at the target, too: for a bound at temperature 0 alone

    def __init__(self, target: Reader, probe: Probe) -> None:
        self._target, self._probe = target, probe
        self.trip = self

    def begin(self, state: State) -> None:
        self._state = state

    def limit(self, state: State) -> int:
        return LONGEST

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        if place == 0:
            self._kept, self._pending = 1.0, 1.0  # that all tokens but the newest are kept; the newest one's share
        rows = self._look(place, len(tokens))
        at = tokens[:, None]
        ratio = (rows.log_softmax(-1).gather(1, at) - logits.log_softmax(-1).gather(1, at)).exp().clamp(max=1)
        answers = []
        for drafted, share in enumerate(ratio[:, 0].tolist(), place + 1):
            self._kept, self._pending = self._kept * self._pending, share
            answers.append(drafted >= SHORTEST and 1 - self._kept > REJECTION)
        return torch.tensor(answers, device=logits.device)

    def _look(self, place: int, count: int) -> Tensor:
        """The target's logits [count, V] for the tokens from `place` on, unseen by who watches."""
        target, watch = self._target, self._probe.watch
        read = target.read
        self._probe.watch = None
        rows = target.feed(self._state.ids, self._state.length + place + count - 1, last=count)
        self._probe.watch = watch
        target.rewind(read)
        return rows
