"""Trees of drafted tokens: what readers are told of their nodes, and how a verdict walks down from the root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from viasd.sampling import Draws

Siblings = Literal["top_k", "iid", "without_replacement"]
Acceptance = Literal["one_hot", "iid", "without_replacement"]
CHOSEN_FOR: dict[Acceptance, Siblings] = {
    "one_hot": "top_k",
    "iid": "iid",
    "without_replacement": "without_replacement",
}
"""How siblings must have been chosen for each rule. Under any other pairing the output law is not the target's."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of a tree that a reader is to read: `tokens` [m], which go to the slots behind `first` others of the tree.

    `depths` [first + m] (from 1) and `seen` [m, first + m] are of all of them: a node sees the text, its ancestors and
    itself. `parents` [m]: the place of each one's parent among all of them, -1 the last token of the text.
    """

    tokens: Tensor
    depths: Tensor
    seen: Tensor
    parents: Tensor
    first: int = 0


class Branch(NamedTuple):
    """What a forward is told: the text's ids from `start` to `length` - 1, then nodes, in slots up to `stop`."""

    start: int
    length: int
    stop: int
    nodes: Nodes

    def positions(self) -> Tensor:
        """Where the tokens stand [n]."""
        nodes = self.nodes
        own = nodes.depths[nodes.first :] + (self.length - 1)
        return torch.cat((torch.arange(self.start, self.length, device=own.device), own))

    @property
    def place(self) -> int:
        """The slot of the first token."""
        return self.start if self.start < self.length else self.length + self.nodes.first


@dataclass(frozen=True)
class Tree:
    """How the n tokens of a draft hang together. Parents stand before their children.

    `depths` [n] from 1, none above `deepest`; `seen` [n, n]: itself and its ancestors. `children` [n + 1, k]: those of
    the root (row 0) and of each node, in the order in which they were chosen, -1 for none. A drafted token of -1 is no
    node: the row there had no more ids.
    """

    siblings: Siblings
    depths: Tensor
    seen: Tensor
    deepest: int
    children: Tensor


class Walk(NamedTuple):
    """`path`: the nodes kept, from the root on. `tokens`: theirs and the one behind, in whose place `tested` says
    whether there were nodes. `deepest`: depth of the tree.
    """

    path: list[int]
    tokens: list[int]
    tested: bool
    deepest: int


def ancestors(parents: Tensor, deepest: int) -> Tensor:
    """`Tree.seen` [n, n] from the place of each node's parent [n], -1 for the root."""
    n = parents.shape[0]
    seen = torch.zeros(n, n + 1, dtype=torch.bool, device=parents.device)
    rows = torch.arange(n, device=parents.device)
    padded = torch.cat((torch.where(parents < 0, n, parents), parents.new_full((1,), n)))  # the root's parent: itself
    places = rows
    for _ in range(deepest):
        seen[rows, places] = True
        places = padded[places]
    return seen[:, :n]


def list_children(parents: Tensor, ranks: Tensor, most: int) -> Tensor:
    """`Tree.children` [n + 1, most] from each node's parent and its rank [n] among its siblings."""
    n = parents.shape[0]
    children = parents.new_full((n + 1, most), -1)
    children[parents + 1, ranks] = torch.arange(n, device=parents.device)
    return children


def walk_choices(tokens: Tensor, tree: Tree, choices: Tensor) -> Walk:
    """Down the tree while a child is what the target chose: `choices` [n + 1] at the root and behind each node.

    At temperature 0, where the choice is the first one of the row. One read of the host.
    """
    n, most = tokens.shape[0], tree.children.shape[1]
    host = torch.cat((tokens, tree.depths, choices, tree.children.flatten())).tolist()
    drafted, depths, chosen, kids = host[:n], host[n : 2 * n], host[2 * n : 3 * n + 1], host[3 * n + 1 :]
    path, at = list[int](), 0
    while True:
        below = [kid for kid in kids[at * most : (at + 1) * most] if kid >= 0 and drafted[kid] >= 0]
        kept = next((kid for kid in below if drafted[kid] == chosen[at]), None)
        if kept is None:
            deepest = max((depth for token, depth in zip(drafted, depths, strict=True) if token >= 0), default=0)
            return Walk(path, [*(drafted[node] for node in path), chosen[at]], bool(below), deepest)
        path.append(kept)
        at = kept + 1


def walk_draws(acceptance: Acceptance, tokens: Tensor, rows: tuple[Tensor, Tensor], tree: Tree, draws: Draws) -> Walk:
    """Down the tree by chance, so that what is output has the target's law.

    `rows`: the target's [n + 1, V] at the root and behind each node, and the drafter's [n, V] that each token was
    drawn from; all processed. On an accelerator the host is read once, on a CPU at each level.

    - `one_hot` (EAGLE-2/3): siblings are no chance, so child s is kept with the probability that the target gives it
      once those before it are ruled out. That is to draw one token and keep the child that equals it, if one does.
    - `without_replacement` (EAGLE-1, 2401.15077 Alg. 1): keep s with min(1, target(s) / draft(s)); else target <-
      max(0, target - draft) and draft <- draft without s, both normed again.
    - `iid` (SpecInfer, 2305.09781): the same, but the draft row stays as it is.
    """
    level = _Level(tokens, tree, *rows, draws)
    device = tokens.device
    at, alive = torch.zeros(1, dtype=torch.long, device=device), torch.ones(1, dtype=torch.bool, device=device)
    steps, last, end = list[Tensor](), tokens.new_zeros(1), at
    for _ in range(tree.deepest + 1):
        kid, token = level.draw(at, alive) if acceptance == "one_hot" else level.test(acceptance, at, alive)
        last, end = torch.where(alive & (kid < 0), token, last), torch.where(alive, at, end)
        steps.append(torch.where(alive, kid, -1))
        alive, at = alive & (kid >= 0), kid.clamp(min=0) + 1
        if device.type == "cpu" and not alive:
            break
    n = tokens.shape[0]
    below = tree.children.index_select(0, end)[0]
    tested = ((below >= 0) & (tokens[below.clamp(min=0)] >= 0)).any()
    host = torch.cat((last, tested[None], tokens, tree.depths, *steps)).tolist()
    behind, has_nodes, drafted, depths = host[0], host[1], host[2 : n + 2], host[n + 2 : 2 * n + 2]
    deepest = max((depth for one, depth in zip(drafted, depths, strict=True) if one >= 0), default=0)
    path = [kid for kid in host[2 * n + 2 :] if kid >= 0]
    return Walk(path, [*(drafted[node] for node in path), behind], bool(has_nodes), deepest)


class _Level(NamedTuple):
    """What one level of a walk looks at."""

    tokens: Tensor
    tree: Tree
    targets: Tensor
    drafts: Tensor
    draws: Draws

    def draw(self, at: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The child that is kept, -1 for none [1], and the token drawn [1], at node `at` [1] (0 the root)."""
        token = self.draws.draw(self.targets.index_select(0, at), "replacement", alive)
        kids = self.tree.children.index_select(0, at)[0]
        hit = (kids >= 0) & (self.tokens[kids.clamp(min=0)] == token)
        return torch.where(hit.any(), kids[hit.long().argmax()], -1)[None], token

    def test(self, acceptance: Acceptance, at: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The same by tests of one child after the other; the token [1] is drawn from what they leave."""
        kids = self.tree.children.index_select(0, at)[0]  # [k]
        names = self.tokens[kids.clamp(min=0)]
        there = (kids >= 0) & (names >= 0) & alive
        target, draft = self.targets.index_select(0, at)[0], self.drafts[kids[0].clamp(min=0)]
        numerators, denominators = [], []
        for place in range(kids.shape[0]):
            name = names[place].clamp(min=0)[None]
            numerators.append(target[name])
            denominators.append(draft[name])
            left = (target - draft).clamp(min=0)
            target = torch.where(there[place], _normed(left, target), target)
            if acceptance == "without_replacement":
                less = draft.index_fill(0, name, 0.0)
                draft = torch.where(there[place], _normed(less, less), draft)
        which = self.draws.first_accepted(torch.cat(numerators), torch.cat(denominators), there)  # []
        kept = which < kids.shape[0]
        kid = torch.where(kept, kids[which.clamp(max=kids.shape[0] - 1)], -1)[None]
        return kid, self.draws.draw(target[None], "replacement", alive & ~kept)


def _normed(row: Tensor, otherwise: Tensor) -> Tensor:
    """A row [V] that sums to 1; where there is nothing of it, the other one."""
    total = row.sum()
    return torch.where(total > 0, row / total.clamp(min=torch.finfo(row.dtype).tiny), otherwise)
