"""The knobs of a method: what may be drawn, checked against the fields that the method has."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from experiments.config import make
from experiments.errors import USER_MISTAKE, UserError, config_folders, exit_code, near, one_line
from experiments.resolve import resolve_method
from viasd.method import Method
from viasd.models import Pair

DIGITS = 4  # significant digits of a float that is drawn, so that a yaml can be read
CORNERS = 1024  # combinations of ends that are built before anything is measured
ACCEPTED = "two whole numbers or two floats [LOW, HIGH], {choices: [...]}, {share: [LOW, HIGH], of: KNOB}"

Setting = Mapping[str, Any]  # knob -> value


@dataclass(frozen=True)
class Knob:
    """One field of a method by its dotted name. `low` and `high` are ints, floats, or None where there are `choices`.

    With `of`, what is drawn is the share of another knob's value.
    """

    name: str
    low: Any = None
    high: Any = None
    choices: tuple[Any, ...] = ()
    of: str | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.choices or (self.low, self.high)

    def has(self, value: Any) -> bool:
        """Whether this value could be drawn."""
        return value in self.choices if self.choices else self.low <= value <= self.high


def parse_space(node: Mapping[str, Any] | None, method: Method) -> list[Knob]:
    """The knobs of a space as composed, nested or with dotted names; those that are shares come last.

    Raises UserError for a method without a space, a field the method lacks, and a range of the wrong type.
    """
    entries = _flatten(node or {}, "")
    if not entries:
        raise UserError(
            f"method={method.name}: no knobs in space, nor a yaml in conf/tune_space{near(method.name, spaces())}"
        )
    knobs = [_parse(name, entry, _kinds(method, name)) for name, entry in entries.items()]
    free = {knob.name for knob in knobs if knob.of is None and not knob.choices}
    for knob in knobs:
        if knob.of is not None and knob.of not in free:
            raise UserError(f"space: {knob.name}: of={knob.of} is no knob with a range{near(knob.of, free)}")
    return sorted(knobs, key=lambda knob: knob.of is not None)


def spaces() -> list[str]:
    """Names of the yamls in conf/tune_space, and in tune_space/ of what `--config-dir` adds."""
    return sorted({path.stem for folder in config_folders() for path in (folder / "tune_space").glob("*.yaml")})


def _flatten(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, entry in node.items():
        if isinstance(entry, Mapping) and not {"choices", "share"} & set(entry):
            found.update(_flatten(entry, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = entry
    return found


def _parse(name: str, entry: Any, kinds: set[type]) -> Knob:
    if isinstance(entry, Mapping):
        if set(entry) == {"choices"} and _is_list(entry["choices"]) and all(map(_is_scalar, entry["choices"])):
            return Knob(name, choices=tuple(dict.fromkeys(entry["choices"])))
        if set(entry) == {"share", "of"} and float in kinds:
            low, high = _ends(name, entry["share"], entry, whole=False)
            if 0 <= low <= high <= 1:
                return Knob(name, low, high, of=str(entry["of"]))
        raise UserError(f"space: {name}={_plain(entry)}: accepted: {ACCEPTED}, shares from 0 to 1 of a float")
    if not kinds & {int, float}:
        raise UserError(f"space: {name}={_plain(entry)}: this field is no number; accepted: {{choices: [...]}}")
    return Knob(name, *_ends(name, entry, entry, whole=float not in kinds))


def _ends(name: str, ends: Any, entry: Any, whole: bool) -> tuple[Any, Any]:
    numbers = (int,) if whole else (int, float)
    if not _is_list(ends) or len(ends) != 2 or any(type(end) not in numbers or not math.isfinite(end) for end in ends):
        what = "two whole numbers" if whole else "two numbers"
        raise UserError(f"space: {name}={_plain(entry)}: accepted: {what} [LOW, HIGH], for this field")
    if ends[0] > ends[1]:
        raise UserError(f"space: {name}={_plain(entry)}: LOW exceeds HIGH")
    return (ends[0], ends[1]) if whole else (float(ends[0]), float(ends[1]))


def _is_list(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _plain(entry: Any) -> str:
    return str(dict(entry) if isinstance(entry, Mapping) else entry)


def _kinds(method: Method, name: str) -> set[type]:
    """The types that a field of the method may hold. Raises UserError, with near misses, if there is no such field."""
    part: Any = method
    *path, last = name.split(".")
    for place, key in enumerate([*path, last]):
        fields = [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
        if key not in fields:
            inside = ".".join(path[:place]) or f"method {method.name}"
            raise UserError(f"space: {name}: no knob {key!r} in {inside}{near(key, fields)}")
        owner, part = type(part), getattr(part, key)
    return set(_members(get_type_hints(owner)[last]))


def _members(hint: Any) -> Iterator[type]:
    """The types of a union, whatever is annotated about them."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


# --- settings -----------------------------------------------------------------------------------------------------


def resolve(knobs: Sequence[Knob], drawn: Setting) -> dict[str, Any]:
    """The values of the fields: shares multiplied, floats with few digits. Rounding never crosses a share's limit."""
    setting: dict[str, Any] = {}
    for knob in knobs:
        value = drawn[knob.name]
        if knob.of is not None:
            setting[knob.name] = _rounded(value * setting[knob.of])  # the other one is rounded already, and not less
        elif isinstance(value, float) and not knob.choices:
            setting[knob.name] = min(max(_rounded(value), knob.low), knob.high)
        else:
            setting[knob.name] = value
    return setting


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def apply(composed: Any, setting: Setting, name: str) -> Method:
    """The composed method under another name with these fields changed."""
    node = OmegaConf.create(composed)
    for key, value in {**setting, "name": name}.items():
        OmegaConf.update(node, key, value)
    return make(node, f"method={name}")


def check_corners(knobs: Sequence[Knob], composed: Any, name: str, pair: Pair) -> None:
    """Build the method at the ends of all knobs, so that no trial draws what the method refuses."""
    for ends in itertools.islice(itertools.product(*(knob.ends for knob in knobs)), CORNERS):
        setting = resolve(knobs, dict(zip((knob.name for knob in knobs), ends, strict=True)))
        try:
            resolve_method(apply(composed, setting, name), pair)
        except Exception as error:
            if exit_code(error) != USER_MISTAKE:
                raise
            raise UserError(f"space: {told(setting)}: method {name} refuses this: {one_line(error)}") from error


def own_values(knobs: Sequence[Knob], method: Method) -> dict[str, Any] | None:
    """What would have to be drawn to get the method as it stands; None where the knobs do not reach it.

    Empty where a field is null and means a value of its own: nothing can be drawn for it, but nothing rules it out.
    """
    drawn: dict[str, Any] = {}
    for knob in knobs:
        value: Any = method
        for key in knob.name.split("."):
            value = getattr(value, key)
        if knob.of in drawn and value is not None:
            value = value / drawn[knob.of] if drawn[knob.of] else 0.0
        if value is None and not knob.choices:
            continue
        if not knob.has(value):
            return None
        drawn[knob.name] = value
    return drawn if len(drawn) == len(knobs) else {}


def told(setting: Setting) -> str:
    """A setting as it would be typed."""
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in setting.items())
