"""Trees of drafted tokens: of fixed shape, or as the drafter's own confidence says; grown by any reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field, field_validator
from torch import Tensor

from viasd.decode import Draft, NodeReader, State
from viasd.sampling import process
from viasd.spec import spec
from viasd.trees import Nodes, Siblings, Tree, ancestors, list_children

Path = tuple[int, ...]
EAGLE_1 = [
    [0], [1], [2], [3], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2],
    [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1],
]  # fmt: skip
"""The tree of EAGLE-1's code: 25 nodes, 4, 8, 8, 3 and 2 by depth; named after Medusa's, which has 63."""


@runtime_checkable
class TreeShape(Protocol):
    """Configuration of a tree: how siblings are chosen, how many nodes there are at most, how to grow one."""

    @property
    def siblings(self) -> Siblings: ...
    @property
    def nodes(self) -> int: ...
    def grow(self, reader: NodeReader, state: State, deepest: int) -> Draft: ...


# --- fixed shape ----------------------------------------------------------------------------------------------------


@spec
class StaticTree:
    """The same tree each round: node [0, 2] is the third child of the first child of the root.

    Siblings are the most probable tokens (`top_k`), or drawn from the drafter's row, each with what is left of it
    (`without_replacement`, as EAGLE-1 does) or all from the whole row (`iid`, as SpecInfer does); at temperature 0 they
    are the most probable ones. The stop rule's length cuts the tree's depth. Default: the tree of EAGLE-1's code.
    """

    paths: list[list[Annotated[int, Field(ge=0)]]] = Field(default_factory=lambda: [list(path) for path in EAGLE_1])
    siblings: Siblings = "without_replacement"

    @field_validator("paths")
    @classmethod
    def _whole(cls, paths: list[list[int]]) -> list[list[int]]:
        known = {tuple(path) for path in paths}
        for path in known:
            if not path:
                raise ValueError("an empty path: the root is no node; accepted: paths such as [0] or [0, 2]")
            for needed in ((*path[:-1], path[-1] - 1) if path[-1] else (), path[:-1]):
                if needed and needed not in known:
                    raise ValueError(
                        f"{list(path)} is there and {list(needed)} is not: siblings are numbered from 0, and a "
                        "node needs its parent"
                    )
        return paths

    @property
    def nodes(self) -> int:
        return len({tuple(path) for path in self.paths})

    def grow(self, reader: NodeReader, state: State, deepest: int) -> Draft:
        """The tree behind the text, cut at `deepest` levels."""
        paths = tuple(sorted({tuple(path) for path in self.paths if len(path) <= deepest}, key=lambda p: (len(p), p)))
        plan = plan_static(paths, state.ids.device)
        chosen: list[Tensor] = []
        rows: list[Tensor] = []
        logits = reader.feed(state.ids, state.length, last=1)
        for level in plan.levels:
            if level.fed is not None:
                fed = torch.cat(chosen)[level.fed].clamp(min=0)
                nodes = Nodes(fed, level.depths, level.seen, level.parents, len(level.depths) - len(fed))
                logits = reader.feed_nodes(state.ids, state.length, nodes, last=len(fed))
            there = logits.new_ones(1, dtype=torch.bool) if level.fed is None else torch.cat(chosen)[level.fed] >= 0
            tokens, row = choose(logits, level.width, self.siblings, there, state)
            chosen.append(tokens[level.row, level.rank])
            rows.append(row[level.row])
        tree = Tree(self.siblings, plan.depths, plan.seen, len(plan.levels), plan.children)
        return Draft(torch.cat(chosen), torch.cat(rows), plan.parents, tree=tree)


@dataclass(frozen=True)
class Level:
    """One level of a fixed tree. `fed` [m]: the nodes above it that have children, None: the root; `depths`, `seen` and
    `parents` are what `Nodes` says of them. `row`, `rank` [k]: whose child each of the level is, and which one.
    """

    fed: Tensor | None
    depths: Tensor
    seen: Tensor
    parents: Tensor
    row: Tensor
    rank: Tensor
    width: int


@dataclass(frozen=True)
class Plan:
    """All that is known of a fixed tree before a token is."""

    parents: Tensor
    depths: Tensor
    seen: Tensor
    children: Tensor
    levels: list[Level]


@cache
def plan_static(paths: tuple[Path, ...], device: torch.device) -> Plan:
    """The plan of a tree whose paths ascend in depth, then in order."""

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    places = {path: place for place, path in enumerate(paths)}
    deepest = max((len(path) for path in paths), default=0)
    parents = tensor([places.get(path[:-1], -1) for path in paths])
    inner = [path for path in paths if (*path, 0) in places]  # those that are fed, in the order in which they are
    order = {path: place for place, path in enumerate(inner)}
    above = tensor([order.get(path[:-1], -1) for path in inner])
    seen_inner = ancestors(above, deepest)
    levels = []
    for depth in range(1, deepest + 1):
        own = [path for path in paths if len(path) == depth]
        fed = [path for path in inner if len(path) == depth - 1]
        until = sum(len(path) < depth for path in inner)
        rows = {path: place for place, path in enumerate(fed)} or {(): 0}
        levels.append(
            Level(
                fed=tensor([places[path] for path in fed]) if depth > 1 else None,
                depths=tensor([len(path) for path in inner[:until]]),
                seen=seen_inner[until - len(fed) : until, :until],
                parents=above[until - len(fed) : until],
                row=tensor([rows[path[:-1]] for path in own]),
                rank=tensor([path[-1] for path in own]),
                width=max(path[-1] for path in own) + 1,
            )
        )
    ranks = tensor([path[-1] for path in paths])
    most = max((path[-1] + 1 for path in paths), default=1)
    children = list_children(parents, ranks, most)
    return Plan(parents, tensor([len(path) for path in paths]), ancestors(parents, deepest), children, levels)


def choose(logits: Tensor, count: int, siblings: Siblings, there: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Children [m, count] of m nodes from the drafter's logits [m, V], and the rows they were drawn from [m, V].

    -1 where a row has no more ids, or a node is none (`there` [m]). The rows are empty where nothing is drawn.
    """
    sampling, draws = state.decode.sampling, state.draws
    if siblings == "top_k" or state.greedy:
        best = logits.topk(min(count, logits.shape[1]), dim=-1)
        tokens = torch.where((best.values > -torch.inf) & there[:, None], best.indices, -1)
        missing = count - tokens.shape[1]
        return torch.nn.functional.pad(tokens, (0, missing), value=-1), logits[:, :0]
    rows = left = process(logits, sampling)
    columns = []
    for _ in range(count):
        some = there & (left.sum(-1) > 0)
        token = draws.draw(left, "draft", some)
        columns.append(torch.where(some, token, -1))
        if siblings == "without_replacement":
            left = left.scatter(1, token[:, None], 0.0)
    return torch.stack(columns, dim=1), rows


# --- by confidence ----------------------------------------------------------------------------------------------------


@spec
class DynamicTree:
    """EAGLE-2's tree: at each level the `top_k` most probable paths grow `top_k` children each, and of all that grew
    the `nodes` most probable ones are kept (2406.16858, sect. 4).

    A path's score is the sum of the drafter's log-probabilities, in float32 or wider. Of equal scores the node that
    came first wins, which is never a child before its parent: so what is kept hangs together. The stop rule's length
    is the number of levels (in EAGLE's code `depth` + 1), the drafter's passes of a round. Siblings are the most
    probable tokens, no chance, whatever the temperature. Default: top_k 10 and 59 nodes, as in EAGLE-2 and EAGLE-3.
    """

    nodes: Annotated[int, Field(ge=1, le=1024)] = 59
    top_k: Annotated[int, Field(ge=1, le=64)] = 10

    @property
    def siblings(self) -> Siblings:
        return "top_k"

    def grow(self, reader: NodeReader, state: State, deepest: int) -> Draft:
        """The tree behind the text, of at most `deepest` levels."""
        grown = _Growth(self.top_k, reader.feed(state.ids, state.length, last=1))
        for _ in range(1, deepest):
            nodes = grown.frontier()
            grown.add(reader.feed_nodes(state.ids, state.length, nodes, last=len(nodes.tokens)))
        return grown.prune(self.nodes)


class _Growth:
    """The candidates so far, in order of creation: k in the first level, then k * k. All of it stays on the device."""

    def __init__(self, top_k: int, logits: Tensor) -> None:
        self._k = k = min(top_k, logits.shape[1])
        best = _scores(logits).topk(k, dim=-1)
        device = logits.device
        self._tokens, self._scores = [best.indices[0]], [best.values[0]]
        self._parents = [torch.full((k,), -1, dtype=torch.long, device=device)]
        self._depths = [torch.ones(k, dtype=torch.long, device=device)]
        self._size = 0  # candidates before the last level
        self._front = torch.arange(k, device=device)  # the best of the last level, by place in it
        self._above = self._parents[0]  # of the front: the places of their parents among the nodes that were fed
        self._fed_depths = torch.zeros(0, dtype=torch.long, device=device)
        self._seen = torch.zeros(k, 0, dtype=torch.bool, device=device)  # what the front's parents see

    def frontier(self) -> Nodes:
        """The nodes of the last level that are to have children."""
        first, k = self._fed_depths.shape[0], self._k
        depths = torch.full_like(self._front, len(self._tokens))
        self._fed_depths = torch.cat((self._fed_depths, depths))
        own = torch.eye(k, dtype=torch.bool, device=self._front.device)
        self._seen = torch.cat((self._seen, own), dim=1)
        return Nodes(self._tokens[-1][self._front], self._fed_depths, self._seen, self._above, first)

    def add(self, logits: Tensor) -> None:
        """The children of the front, by the reader's logits [k, V] behind it."""
        k, fed = self._k, self._fed_depths.shape[0]
        best = _scores(logits).topk(k, dim=-1)
        scores = (self._scores[-1][self._front, None] + best.values).flatten()
        parents = (self._size + self._front).repeat_interleave(k)
        self._size += self._tokens[-1].shape[0]
        for store, new in zip(
            (self._tokens, self._scores, self._parents, self._depths),
            (best.indices.flatten(), scores, parents, torch.full_like(parents, len(self._tokens) + 1)),
            strict=True,
        ):
            store.append(new)
        self._front = scores.topk(k).indices
        above = self._front // k
        self._above, self._seen = above + (fed - k), self._seen[above]

    def prune(self, count: int) -> Draft:
        """The tree of the best candidates."""
        tokens, scores, parents, depths = map(torch.cat, (self._tokens, self._scores, self._parents, self._depths))
        order = scores.argsort(descending=True, stable=True)[:count]
        kept = order.sort().values
        places = torch.full_like(tokens, -1).scatter_(0, kept, torch.arange(len(kept), device=tokens.device))
        above = parents[kept]
        above = torch.where(above < 0, -1, places[above.clamp(min=0)])
        tokens = torch.where(scores[kept] > -torch.inf, tokens[kept], -1)
        deepest = len(self._tokens)
        children = list_children(above, kept % self._k, self._k)
        tree = Tree("top_k", depths[kept], ancestors(above, deepest), deepest, children)
        return Draft(tokens, scores.new_zeros(len(kept), 0), above, tree=tree)


def _scores(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)
