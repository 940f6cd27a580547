"""The one way specs are declared: frozen, keyword-only, closed pydantic dataclasses."""

from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def spec(cls: type[T]) -> type[T]:
    """Declare a configuration class: wrong types, ranges and unknown keys raise with the key named."""
    made: Any = dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)(cls)
    return made
