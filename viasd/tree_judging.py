"""The target judges trees of drafted tokens, without loss."""

from __future__ import annotations

import torch
from torch import Tensor

from viasd.decode import Draft, NodeReader, Readers, RowReader, State, Verdict, Verifier
from viasd.rules import Lossless
from viasd.sampling import process
from viasd.spec import spec
from viasd.trees import CHOSEN_FOR, Acceptance, Nodes, Siblings, Walk, walk_choices, walk_draws
from viasd.verification import RuleJudge, audit, probabilities, unaudited_tokens


@spec
class TreeVerifier:
    """One target pass over a tree, and a walk down from its root (`viasd.trees.walk_draws`): the law is the target's.

    `acceptance` must be the rule for siblings as the drafter chooses them: `one_hot` for the most probable ones,
    `iid` and `without_replacement` for ones that are drawn so. At temperature 0 all three are the same. A chain is
    judged as by the ordinary lossless rule.
    """

    acceptance: Acceptance = "one_hot"

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target"})

    @property
    def lossless(self) -> bool:
        return True

    @property
    def siblings(self) -> Siblings:
        """How a drafter has to choose them."""
        return CHOSEN_FOR[self.acceptance]

    def open_verifier(self, readers: Readers) -> Verifier:
        return _TreeJudge(self.acceptance, readers)


def node_reader(reader: RowReader) -> NodeReader:
    """The reader, if it reads trees (stored rows do not)."""
    if not isinstance(reader, NodeReader):
        raise TypeError(f"the reader {reader.role!r} reads no trees")
    return reader


class _TreeJudge(RuleJudge):
    def __init__(self, acceptance: Acceptance, readers: Readers) -> None:
        super().__init__(readers.get("target"), Lossless(), "target")
        self._nodes, self._acceptance = node_reader(self.reader), acceptance

    def judge(self, state: State, draft: Draft) -> Verdict:
        tree, n = draft.tree, draft.length
        if tree is None:
            return super().judge(state, draft)
        unaudited = unaudited_tokens(state, self.reader) if state.detail else 0
        nodes = Nodes(draft.tokens.clamp(min=0), tree.depths, tree.seen, draft.parents)
        unread = state.length - self.reader.read
        logits = self._nodes.feed_nodes(state.ids, state.length, nodes, last=n + 1 + unaudited)
        walk, laws = self._walk(state, draft, logits[unaudited:])
        self._nodes.keep(state.length, walk.path)
        tokens = walk.tokens
        taps = self.reader.tapped
        if taps is not None:
            taps = taps.at(torch.tensor([*range(unread), *(unread + node for node in walk.path)], device=logits.device))
        return Verdict(
            tokens=tokens,
            sources=["target"] * len(tokens),
            kept=len(walk.path),
            tiers=["target"] * (len(walk.path) + walk.tested),
            target_ruled=len(tokens),
            laws=laws,
            audits=audit(state, logits[:unaudited]) if unaudited else None,
            taps=taps,
            depth=walk.deepest,
        )

    def _walk(self, state: State, draft: Draft, logits: Tensor) -> tuple[Walk, list[float] | None]:
        """The walk, and where laws are recorded those of its tokens, from the target's logits [n + 1, V]."""
        assert draft.tree is not None
        if state.greedy:
            walk = walk_choices(draft.tokens, draft.tree, logits.argmax(-1))
            return walk, [1.0] * (len(walk.path) + 1) if state.detail else None
        rows = process(logits, state.decode.sampling)
        walk = walk_draws(self._acceptance, draft.tokens, (rows, draft.rows), draft.tree, state.draws)
        laws = probabilities(rows[[0, *(node + 1 for node in walk.path)]], walk.tokens) if state.detail else None
        return walk, laws
