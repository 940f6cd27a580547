"""A method: a drafter, a stop rule and a verifier, as one frozen configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

from pydantic import Field

from viasd.blocks import check_trip
from viasd.decode import Decoder, Speculative
from viasd.drafting import DrafterSpec, NoDrafter, StopSpec
from viasd.sampling import Sampling
from viasd.spec import spec
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
        if self.verifier.lossless:
            check_trip(self.stop.open_stop().trip, sampling)

    def open(self, engine: Engine) -> Speculative:
        """The decoder. The verifier opens first: a view on the target's cache is prefilled through the target."""
        readers = engine.readers()
        verifier = self.verifier.open_verifier(readers)
        drafter = self.drafter.open_drafter(readers)
        return Speculative(drafter, self.stop.open_stop(), verifier, readers, lossless=self.verifier.lossless)
