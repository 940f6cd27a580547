"""Self-speculation: the target without some of its layers drafts for the whole target, on the same keys and values."""

from __future__ import annotations

from pydantic import Field

from viasd.decode import Drafter, Readers
from viasd.drafting import ModelDrafter
from viasd.engine import EngineReaders
from viasd.spec import spec
from viasd.verification import SlimView


@spec
class SelfDrafter:
    """A slim view of the target drafts a chain, one token per forward (Draft & Verify, 2309.08168).

    With `cache: shared` it reads the target's keys and values where the target has read, and its own behind; what is
    committed gets the whole target's when that runs over the draft. Under a verifier that has slim views on that cache
    itself, the drafter's layers must be among those of the weakest: PairError.
    """

    slim: SlimView = Field(default_factory=SlimView)

    @property
    def roles(self) -> frozenset[str]:
        return self.slim.roles

    def open_drafter(self, readers: Readers) -> Drafter:
        return ModelDrafter(self.slim.open_reader(readers, "draft"))


def view_readers(readers: Readers) -> EngineReaders:
    """The readers, if they can show changing views of a model (tables of rows cannot)."""
    if not isinstance(readers, EngineReaders):
        raise TypeError("a drafter that changes its view of the target needs the readers of an engine")
    return readers
