"""CLaSp (2505.24196): the target without some layers drafts; which ones follows from its states of the last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from baselines.self_draft import view_readers
from viasd.blocks import TripTest
from viasd.decode import Draft, Drafter, Readers, State, Verdict
from viasd.drafting import ModelDrafter
from viasd.engine import EngineReaders
from viasd.forward import LayerStep
from viasd.models import PairError, even_mask, layer_count, skipped_count
from viasd.reader import Reader
from viasd.spec import spec
from viasd.taps import Taps
from viasd.views import ViewReader


@spec
class ClaspDrafter:
    """Drafts a chain through the layers that a dynamic programme keeps, chosen anew every `interval` rounds.

    It leaves out round(`skip_ratio` x layers) whole layers so that what leaves the last one stays as close in angle as
    it finds to what leaves the whole target's, for the last token that the target has verified. The target's own states
    of it come from the verification. The first round of a text drafts nothing: there the target reads the prompt's last
    token, whose states give the first layers, as in the paper. `keep_ends`: never leave out the first and last layer.

    Values: the paper's 50-60% of layers (0.5); an interval of 128, where its speed is best (its unit is not stated:
    rounds by the text of sect. 3.7). Ours: `keep_ends` (the paper leaves out any layer), and cells of the programme
    from which the full number of skips cannot be reached are not computed, which changes nothing. Calls of the reader
    `search` are runs of the programme; each is said to feed as many tokens as layers are left out, the most states
    that one packed pass holds.
    """

    skip_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    interval: Annotated[int, Field(ge=1)] = 128
    keep_ends: bool = False

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    def open_drafter(self, readers: Readers) -> Drafter:
        return _ClaspDrafter(self, view_readers(readers))


class _ClaspDrafter(ModelDrafter):
    reader: ViewReader

    def __init__(self, rules: ClaspDrafter, readers: EngineReaders) -> None:
        self._target: Reader = readers.get("target")
        self._layers = layer_count(self._target.model)
        even = even_mask(self._layers, rules.skip_ratio, rules.keep_ends)  # raises PairError where that is too many
        super().__init__(readers.changing(even, "draft"))
        self._search = readers.changing(None, "search")
        self._rules, self._skip = rules, skipped_count(self._layers, rules.skip_ratio)
        self._free = range(1, self._layers - 1) if rules.keep_ends else range(self._layers)
        if self._skip == self._layers:
            raise PairError(f"drafter.skip_ratio={rules.skip_ratio} leaves out every layer; accepted: a smaller one")

    def begin(self, state: State) -> None:
        self._ready, self._left = False, 1  # rounds until the layers are chosen
        self._target.tap(range(self._layers))

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        return super().propose(state, limit if self._ready else 0, trip)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        self._left -= 1
        if self._left <= 0 and verdict.taps is not None and state.finish_reason is None:
            with self._search.charge(self._skip):
                step = self._search.alone(verdict.taps.stop - 1, max(1, self._skip))
                kept, _ = choose_layers(step, last_states(verdict.taps), self._skip, self._free)
            self.reader.show(kept)
            self._ready, self._left = True, self._rules.interval
        self._target.tap(range(self._layers) if self._left <= 1 else None)


def last_states(taps: Taps) -> Tensor:
    """x_0 .. x_L [L + 1, width] of the last token: what entered each layer, and what left the last one."""
    return torch.stack([*(taps.streams[layer][-1] for layer in sorted(taps.streams)), taps.top[-1]])


def choose_layers(step: LayerStep, states: Tensor, skip: int, free: Sequence[int]) -> tuple[list[int], Tensor]:
    """The layers that remain when `skip` of the free ones are left out, and the state [width] that leaves the last.

    `states` [L + 1, width] are the whole model's, `step` runs one layer on several states of that position. Cell j of
    layer i holds the state behind it with j layers left out: of the one that ran the layer and the one that left it
    out, the closer in angle to the whole model's (2505.24196, sect. 3). One pass per layer; the host reads once.
    """
    layers = states.shape[0] - 1
    cells, low, choices = states[:1], 0, []  # cells [n, width] for low, low + 1, .. layers left out
    for layer in range(layers):
        still = sum(index > layer for index in free)
        first, last = max(0, skip - still), min(skip, sum(index <= layer for index in free))
        wanted = states[layer + 1]
        ran = _run_cells(step, layer, cells[max(first - low, 0) :], max(first, low), wanted)
        if layer not in free:
            cells = ran
            choices.append((first, torch.zeros(len(ran), dtype=torch.bool, device=states.device)))
            continue
        left_out = cells[max(first - 1 - low, 0) : last - low]  # for max(first, low + 1) .. last
        nothing = states.new_zeros(1, states.shape[1])
        ran = torch.cat((ran, nothing[: last - first + 1 - len(ran)]))
        left_out = torch.cat((nothing[: last - first + 1 - len(left_out)], left_out))
        skips = _closeness(left_out, wanted) > _closeness(ran, wanted)
        cells, low = torch.where(skips[:, None], left_out, ran), first
        choices.append((first, skips))
    return _backtrack(choices, skip), cells[0]


def _run_cells(step: LayerStep, layer: int, cells: Tensor, low: int, wanted: Tensor) -> Tensor:
    """Cells [n, width] for low, low + 1, .. layers left out, behind the layer; with none left out it is known."""
    if low > 0:
        return step(layer, cells) if len(cells) else cells
    return torch.cat((wanted[None], step(layer, cells[1:]))) if len(cells) > 1 else wanted[None]


def _closeness(cells: Tensor, wanted: Tensor) -> Tensor:
    """Cosines [n]; -inf for cells that do not exist, which are zero."""
    found = cosine_similarity(cells, wanted[None], dim=-1)
    return found.masked_fill((cells == 0).all(-1), -torch.inf)


def _backtrack(choices: Sequence[tuple[int, Tensor]], skip: int) -> list[int]:
    """The layers that ran on the way to the last cell."""
    told = torch.cat([skips for _, skips in choices]).tolist()
    rows, kept, place = [], [], 0
    for first, skips in choices:
        rows.append((first, told[place : place + len(skips)]))
        place += len(skips)
    for layer in reversed(range(len(rows))):
        first, row = rows[layer]
        if row[skip - first]:
            skip -= 1
        else:
            kept.append(layer)
    return kept[::-1]
