"""The draft length that maximizes expected tokens per second, from calibrated call costs and learned acceptance."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.stops.acceptance import MEAN, Acceptance, Fading, bin_of
from viasd.decode import Draft, Memory, Part, State, StopRule, Verdict
from viasd.sampling import Sampling
from viasd.spec import spec

AHEAD = (1, 2, 4, 8)  # how many tokens further a decision looks
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of blocks that are drafted whole: few, so that recordings serve
FIRST = 12  # tokens of the first block, at most; later ones two more for each token that was kept
PROBING = 0.02  # share of the time that may be spent on drafts while they do not pay
CATCH_UP = 64  # tokens that a drafter did not read, beyond which reading them is taken to cost no more
RATE_WINDOW, RATE_PRIOR = 0.98, 10.0  # what older rounds weigh at each round; target steps that the prior counts for
GAIN_WINDOW, GAIN_PRIOR, GAIN = 0.95, 4.0, 1.0  # the same in rounds; tokens that a block gains before any was judged

Fed = Annotated[int, Field(ge=1)]
Costs = Annotated[dict[Fed, Annotated[float, Field(gt=0)]], Field(min_length=1)]


@spec
class CostAwareLength:
    """A block goes on as long as more tokens are expected to gain more than their time is worth (ours).

    Renewal reward: the speed is E[tokens] / E[cost] of a round, and the rule with the best speed maximizes
    E[tokens] - rate E[cost], with rate its own speed. Let S be the probability that all i tokens drafted so far are
    kept. Then k more tokens gain S (a + a^2 + ... + a^k), and the block goes on if for some k of AHEAD

        S (a + ... + a^k) > rate (k draft(1) + target(i + 1 + k) - target(i + 1)).

    S is the product of what was learned about tokens with such a top probability of their row (`Acceptance`), a the
    mean acceptance, rate the tokens per cost of late rounds, at least vanilla's. As S only falls, what does not pay now
    does not pay later (the monotone case of optimal stopping, where such a rule is optimal), unless the target's cost
    has a step: that is why it looks more than one token ahead. The token that was looked at stays: it is paid for.

    Whether to draft at all is asked of late rounds: the mean over blocks of tokens kept - (cost - target(1)) /
    target(1), which is what they gained over drafting nothing. Where that is not positive, nothing is drafted, but for
    single tokens in a share PROBING of the time; one that is kept is followed by another at once. So speculation comes
    back where it pays again. The first blocks are short (FIRST), whatever the draft model thinks of itself.

    Where blocks are drafted whole (accelerators) the length is chosen before, by the same sums with S = 1, and the test
    cuts off what the target had better not read.

    Costs by tokens fed, in any unit, linear in between; null: calibrated before a run, relative to a target step (a
    line through what was measured, one token apart). No clock is read. It knows past rounds, and of a block the rows so
    far: the output law does not depend on it.
    """

    max_length: Annotated[int, Field(ge=1, le=64)] = 40
    draft_cost: Costs | None = None
    target_cost: Costs | None = None
    memory: Literal["request", "run"] = "request"

    def open_stop(self) -> StopRule:
        if self.draft_cost is None or self.target_cost is None:
            raise ValueError(
                "stop.draft_cost=null, stop.target_cost=null: a run calibrates them (experiments.run); accepted here: "
                "costs by tokens fed, as in {1: 1.0, 8: 1.2}"
            )
        reach = self.max_length + 1 + AHEAD[-1]
        return _CostAware(self, spread(self.draft_cost, CATCH_UP), spread(self.target_cost, reach))


def spread(costs: Mapping[int, float], longest: int) -> list[float]:
    """Costs of 0 to `longest` tokens: linear between those known and beyond them, and never less than of fewer."""
    known, found = sorted(costs), [0.0]
    for fed in range(1, longest + 1):
        right = min(max(1, bisect_left(known, fed)), len(known) - 1)
        a, b = known[max(0, right - 1)], known[right]
        slope = (costs[b] - costs[a]) / (b - a) if b > a else 0.0
        found.append(max(found[-1], costs[a] + slope * max(0, fed - a)))
    return found


def expected_run(acceptance: float, drafted: int) -> float:
    """a + a^2 + ... + a^n: tokens kept of n, each kept with probability a where all before it were."""
    if acceptance == 1:
        return float(drafted)
    return acceptance * (1 - acceptance**drafted) / (1 - acceptance)


class _CostAware(Part):
    """The rule with what it has learned; it is its own trip test."""

    keep = row_alone = True

    def __init__(self, config: CostAwareLength, draft: list[float], target: list[float]) -> None:
        self._config, self._draft, self._target = config, draft, target
        self.trip = self
        self._yes, self._no = torch.tensor([True]), torch.tensor([False])
        self._reset()

    def _reset(self) -> None:
        target = self._target
        lengths = range(self._config.max_length + 1)
        speed = max((1 + expected_run(MEAN, n)) / (target[n + 1] + n * self._draft[1]) for n in lengths)
        self._acceptance = Acceptance()
        self._rate = Fading(speed, RATE_PRIOR * target[1], RATE_WINDOW)  # tokens per cost
        self._gain = Fading(GAIN, GAIN_PRIOR, GAIN_WINDOW)  # tokens per block
        self._kept = 0  # tokens ever
        self._credit = 0.0  # cost that probing may spend
        self._again = False  # the last probe was kept
        self._missed = 0  # tokens that the drafter has to read beside the last one
        self._begin_block(whole=False)

    def begin(self, state: State) -> None:
        if self._config.memory == "request":
            self._reset()
        self._missed = 0

    # --- before a block -------------------------------------------------------------------------------------------

    def limit(self, state: State) -> int:
        whole = state.ids.device.type != "cpu"
        self._begin_block(whole)
        if self._gain.value <= 0:
            self._probing = self._may_probe()
            return int(self._probing)
        most = min(self._config.max_length, FIRST + 2 * self._kept)
        if not whole:
            return most
        lengths = [length for length in LENGTHS if length <= most]
        return max(lengths, key=lambda n: expected_run(self._acceptance.mean, n) - self._price(0, n))

    def _begin_block(self, whole: bool) -> None:
        self._whole = whole  # its steps are taken, whatever is cut
        self._probing = False
        self._survival = 1.0
        self._places: list[int] = []  # bins of its tokens
        self._worth = max(self._rate.value, 1 / self._target[1])
        self._runs = [expected_run(self._acceptance.mean, k) for k in AHEAD]

    def _may_probe(self) -> bool:
        self._credit += PROBING * self._target[1]
        cost = self._first_step + self._target[2] - self._target[1]
        if self._again:
            return True
        if self._credit < cost:
            return False
        self._credit -= cost
        return True

    @property
    def _first_step(self) -> float:
        """Cost of the first step of a block, which reads what the drafter has missed."""
        return self._draft[min(1 + self._missed, CATCH_UP)]

    def _price(self, drafted: int, more: int, steps: bool = True) -> float:
        """Tokens that the time of drafting and judging so many more tokens is worth."""
        judging = self._target[drafted + 1 + more] - self._target[drafted + 1]
        return self._worth * (judging + more * self._draft[1] if steps else judging)

    # --- in a block -----------------------------------------------------------------------------------------------

    def trips(self, place: int, tokens: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
        if place == 0:
            self._survival, self._places = 1.0, []
        tops = logits.softmax(-1).amax(-1)
        if len(tokens) == 1 and not self._whole:
            return self._no if self._goes_on(tops.item(), steps=True) else self._yes
        return torch.tensor([not self._goes_on(top, steps=False) for top in tops.tolist()], device=logits.device)

    def _goes_on(self, top: float, steps: bool) -> bool:
        """Whether there is to be a token behind one whose row has this top probability."""
        place = bin_of(top)
        self._places.append(place)
        self._survival *= self._acceptance.of(place)
        drafted = len(self._places)
        ahead = zip(AHEAD, self._runs, strict=True)
        return drafted < self._config.max_length and any(
            self._survival * run > self._price(drafted, more, steps) for more, run in ahead
        )

    # --- after a round --------------------------------------------------------------------------------------------

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        steps, record = len(self._places), state.rounds[-1]
        judged = min(len(verdict.tiers), record.judged)  # what a stop cut does not count
        kept = min(verdict.kept, judged)
        for place, bin_ in enumerate(self._places[:judged]):
            self._acceptance.add(bin_, place < kept)
        if judged or not draft.length:
            self._learn_speed(steps, draft.length, kept)
        if self._probing:
            self._again = kept > 0
        self._missed = int(verdict.kept == steps) if steps else self._missed + record.committed

    def _learn_speed(self, steps: int, drafted: int, kept: int) -> None:
        drafting = self._first_step + (steps - 1) * self._draft[1] if steps else 0.0
        judging = self._target[drafted + 1]
        self._kept += kept
        self._rate.add(1 + kept, drafting + judging)
        if steps:
            self._gain.add(kept - (drafting + judging - self._target[1]) / self._target[1])

    # --- between requests -----------------------------------------------------------------------------------------

    def memory(self) -> Memory:
        if self._config.memory == "request":
            return {}
        learned = {"acceptance": self._acceptance.memory(), "rate": self._rate.stored, "gain": self._gain.stored}
        return {**learned, "kept": self._kept, "credit": self._credit, "again": self._again}

    def restore(self, memory: Memory) -> None:
        self._reset()
        if not memory:
            return
        self._acceptance.restore(memory["acceptance"])
        self._rate.stored, self._gain.stored = memory["rate"], memory["gain"]
        self._kept, self._credit, self._again = memory["kept"], memory["credit"], memory["again"]
