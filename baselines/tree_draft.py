"""Trees from a draft model of the pair, as SpecInfer (2305.09781) and EAGLE grow them from theirs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from baselines.trees import DynamicTree, TreeShape
from viasd.blocks import TripTest
from viasd.decode import Draft, Drafter, NodeReader, Part, Readers, State
from viasd.spec import spec
from viasd.tree_judging import node_reader
from viasd.trees import Siblings


@spec
class TreeDraft:
    """A model of the pair drafts a tree. The stop rule's length is its depth."""

    role: Annotated[str, Field(min_length=1)] = "draft"
    tree: TreeShape = Field(default_factory=DynamicTree)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    @property
    def siblings(self) -> Siblings | None:
        """How they are chosen."""
        return self.tree.siblings

    @property
    def nodes(self) -> int:
        """At most, and so many slots of a cache besides those of the text."""
        return self.tree.nodes

    def open_drafter(self, readers: Readers) -> Drafter:
        return TreeDrafter(node_reader(readers.get(self.role)), self.tree)


class TreeDrafter(Part):
    """Grows a tree with a reader."""

    def __init__(self, reader: NodeReader, tree: TreeShape) -> None:
        self.reader, self._tree = reader, tree

    def propose(self, state: State, limit: int, trip: TripTest | None = None) -> Draft:
        if limit == 0:
            return Draft.empty(state.ids.device)
        draft = self._tree.grow(self.reader, state, limit)
        return draft if draft.length else Draft.empty(state.ids.device)
