"""A method: a drafter, a stop rule and a verifier, as one frozen configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

from pydantic import Field

from viasd.blocks import check_trip
from viasd.decode import Decoder, Speculative
from viasd.drafting import DrafterSpec, FixedLength, NoDrafter, StopSpec
from viasd.sampling import Sampling
from viasd.spec import spec
from viasd.tree_judging import TreeVerifier
from viasd.trees import CHOSEN_FOR, Siblings
from viasd.verification import VerifierSpec

if TYPE_CHECKING:
    from viasd.engine import Engine


@runtime_checkable
class MethodSpec(Protocol):
    """Configuration of a decoder: a `Method`, or another loop that is measured beside those."""

    @property
    def name(self) -> str: ...
    @property
    def roles(self) -> frozenset[str]: ...
    def open(self, engine: Engine) -> Decoder: ...


@runtime_checkable
class Picky(Protocol):
    """Configuration of a part that does not decode in every way: `check` raises ValueError and says what it accepts."""

    def check(self, sampling: Sampling) -> None: ...


@runtime_checkable
class TreeDrafterSpec(Protocol):
    """Configuration of a drafter that may propose trees: `siblings` says how they are chosen, None: it is a chain."""

    @property
    def siblings(self) -> Siblings | None: ...
    @property
    def nodes(self) -> int: ...


def tree_nodes(method: MethodSpec) -> int:
    """How many slots of a cache a method's trees need besides those of the text."""
    drafter = method.drafter if isinstance(method, Method) else None
    return drafter.nodes if isinstance(drafter, TreeDrafterSpec) else 0


def check_tree(drafter: DrafterSpec, stop: StopSpec, verifier: VerifierSpec) -> None:
    """Raises ValueError for a tree beside a part that knows chains, or a rule that is not for siblings chosen so."""
    chosen = drafter.siblings if isinstance(drafter, TreeDrafterSpec) else None
    if chosen is None:
        return
    if not isinstance(stop, FixedLength):
        raise ValueError(
            f"method.stop: {type(stop).__name__} says how long a chain is, and the drafter proposes trees; accepted: "
            "stop=fixed (the tree's depth), or drafter.tree=null"
        )
    if not isinstance(verifier, TreeVerifier):
        raise ValueError(
            f"method.verifier: {type(verifier).__name__} reads chains, and the drafter proposes trees; accepted: "
            "verifier=tree, or drafter.tree=null"
        )
    if verifier.siblings != chosen:
        rule = next(rule for rule, siblings in CHOSEN_FOR.items() if siblings == chosen)
        raise ValueError(
            f"verifier.acceptance={verifier.acceptance}: the drafter chooses siblings by {chosen}, for which that rule "
            f"is not made; accepted: verifier.acceptance={rule}, or a fixed tree with siblings={verifier.siblings}"
        )


@spec
class Method:
    """What a method yaml builds. `open` makes its decoder on an engine."""

    name: Annotated[str, Field(min_length=1)]
    drafter: DrafterSpec = Field(default_factory=NoDrafter)
    stop: StopSpec
    verifier: VerifierSpec

    @property
    def roles(self) -> frozenset[str]:
        """Models of the pair that this method runs."""
        return self.drafter.roles | self.verifier.roles

    def check(self, sampling: Sampling) -> None:
        """Raises ValueError where a part does not decode so, or a lossless verifier would not be (`check_trip`)."""
        for part in (self.drafter, self.stop, self.verifier):
            if isinstance(part, Picky):
                part.check(sampling)
        check_tree(self.drafter, self.stop, self.verifier)
        if self.verifier.lossless:
            check_trip(self.stop.open_stop().trip, sampling)

    def open(self, engine: Engine) -> Speculative:
        """The decoder. The verifier opens first: a view on the target's cache is prefilled through the target."""
        readers = engine.readers()
        verifier = self.verifier.open_verifier(readers)
        drafter = self.drafter.open_drafter(readers)
        return Speculative(drafter, self.stop.open_stop(), verifier, readers, lossless=self.verifier.lossless)
