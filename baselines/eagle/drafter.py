"""EAGLE's drafter: a chain or a tree from a head on the target's features."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baselines.eagle.checkpoints import load_head
from baselines.eagle.fields import target_sizes
from baselines.eagle.head import EagleHead
from baselines.eagle.reader import HeadReader
from baselines.self_draft import view_readers
from baselines.tree_draft import TreeDrafter
from baselines.trees import DynamicTree, TreeShape
from viasd.blocks import TripTest
from viasd.decode import Draft, Drafter, Part, Readers, State, Verdict
from viasd.drafting import ModelDrafter
from viasd.engine import Engine
from viasd.reader import Reader
from viasd.spec import spec
from viasd.trees import Siblings


@spec
class EagleDrafter:
    """A head of the pair drafts: a chain without `tree`, else a tree. The stop rule's length is its depth.

    `head` is a name under `heads` of the pair; its weights say whether it is EAGLE-1/2's or EAGLE-3's. What the target
    confirms is encoded anew with the target's own features, in the first pass of the next round. A text of one token
    has no pair yet: its first round drafts nothing.

    Where slim views of the target judge, their streams stand for the target's (`viasd.taps.Taps`) until it catches up
    and the head reads those tokens again. Where an independent model judges, which has no such streams, the head goes
    on with its own outputs till then. (Ours: the VIA-SD paper, 2606.12243, has EAGLE under its verifier in Fig. 5 and
    does not say what the features are there.)
    """

    head: Annotated[str, Field(min_length=1)] = "eagle3"
    tree: TreeShape | None = Field(default_factory=DynamicTree)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({"target", self.head})

    @property
    def siblings(self) -> Siblings | None:
        """How they are chosen; None for a chain."""
        return None if self.tree is None else self.tree.siblings

    @property
    def nodes(self) -> int:
        """At most, and so many slots of a cache besides those of the text."""
        return 0 if self.tree is None else self.tree.nodes

    def open_drafter(self, readers: Readers) -> Drafter:
        known = view_readers(readers)
        reader = known.add("draft", self._open_reader)
        for view in known.views():  # not of the prompt, which the target has read
            view.tap(reader.layers, whole=False)
        inner = ModelDrafter(reader) if self.tree is None else TreeDrafter(reader, self.tree)
        return _EagleDrafter(reader, inner)

    def _open_reader(self, engine: Engine, target: Reader) -> HeadReader:
        def load(name: str) -> EagleHead:
            head = load_head(name, target_sizes(target.model.config), self.head)
            return head.to(engine.device, engine.dtype).settle()

        reader = HeadReader("draft", self.head, engine.head(self.head, load), target, engine)
        target.tap(reader.layers, prompt=True)
        return reader


class _EagleDrafter(Part):
    def __init__(self, reader: HeadReader, inner: ModelDrafter | TreeDrafter) -> None:
        self.reader, self._inner = reader, inner

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        return self._inner.propose(state, limit if state.length > 1 else 0, trip)

    def observe(self, state: State, draft: Draft, verdict: Verdict) -> None:
        if verdict.taps is not None:
            self.reader.learn(verdict.taps.before(state.length))  # an end of the text may have cut what was kept
