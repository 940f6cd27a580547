"""What a task is: seeded problems in three disjoint splits, and a scorer."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

Name = Annotated[str, Field(min_length=1)]
Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
HELD_OUT_PERCENT = 6  # of all problems, for each of calibration and test
DRAWS_WITHOUT_NEWS = 20_000  # a family that finds nothing new for so long is exhausted


@dataclass(frozen=True)
class Example:
    """One problem: the prompt a model reads and the completion it should write (end mark not included)."""

    example_id: str
    prompt: str
    reference: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A drawn problem before it has a split; `content` is what makes it the same problem under other words."""

    content: tuple[Any, ...]
    prompt: str
    reference: str
    metadata: dict[str, Any]


def stable_hash(*parts: object) -> str:
    """Return 16 hex digits that depend on the parts only (never on the process or the machine)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def split_of(family: str, content: tuple[Any, ...]) -> Split:
    """Assign a problem to its split by its content alone, so that no seed can move it to another one."""
    bucket = int(stable_hash(family, content), 16) % 100
    if bucket < HELD_OUT_PERCENT:
        return "test"
    return "calibration" if bucket < 2 * HELD_OUT_PERCENT else "train"


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Task(ABC):
    """A family of problems.

    Fields: `seed` >= 0 orders and selects the problems; `test_size` >= 1 and `calibration_size` >= 1 are the default
    sizes of the held-out splits; `max_new_tokens` >= 1 bounds an answer; `too_long` says what becomes of a prompt that
    leaves no room for one in the models' context; `stop_strings` end an answer (may be empty).
    """

    quality_name: ClassVar[str] = ""

    name: Name
    seed: int = Field(default=0, ge=0)
    test_size: int = Field(default=400, ge=1)
    calibration_size: int = Field(default=200, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)
    too_long: Literal["error", "truncate_left", "skip"] = "error"
    stop_strings: tuple[str, ...] = ()

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem; all of its randomness comes from `rng`."""

    @abstractmethod
    def score(self, example: Example, text: str) -> float:
        """Judge a completion: 0 is useless, 1 is right."""

    def stream(self, split: Split) -> Iterator[Example]:
        """Yield the distinct problems of a split in their seeded order, until the family is exhausted."""
        family = type(self).__name__
        rng = random.Random(f"{family}:{self.seed}:{split}")
        seen: set[str] = set()
        idle = 0
        while idle < DRAWS_WITHOUT_NEWS:
            problem = self.draw(rng)
            idle += 1
            if split_of(family, problem.content) != split:
                continue
            example_id = stable_hash(family, problem.prompt)
            if example_id in seen:
                continue
            seen.add(example_id)
            idle = 0
            yield Example(example_id, problem.prompt, problem.reference, problem.metadata)

    def examples(self, split: Split, count: int | None = None) -> list[Example]:
        """Return the first `count` problems of a split; a smaller count is a prefix of a larger one.

        `count` defaults to the size of a held-out split; `train` has no size of its own and needs one.

        Raises:
            ValueError: unknown split, missing or negative count, or more problems asked for than the family has.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; accepted: {', '.join(SPLITS)}")
        if count is None:
            sizes = {"test": self.test_size, "calibration": self.calibration_size}
            if split not in sizes:
                raise ValueError("count is required for split='train', which is generated without end")
            count = sizes[split]
        if count < 0:
            raise ValueError(f"count={count} must not be negative")
        found = list(islice(self.stream(split), count))
        if len(found) < count:
            raise ValueError(f"task {self.name} has {len(found)} distinct {split} problems, {count} were asked for")
        return found


def words(text: str) -> tuple[str, ...]:
    """Split a list of words written as running text."""
    return tuple(text.split())


# Few and short words, shared by the families: the tokenizer of the reference pair makes each of them one token.
NAMES = words(
    """
    Ada Alan Amy Anna Ben Bob Carl Cora Dan Dora Ed Ella Emma Eric Eva Finn Fred Gina Hans Hugo Ida Igor Ivan Jack
    Jane Jim Joe Kate Ken Kim Lara Lee Leo Lily Lisa Liz Luca Mark Mary Max Mia Mona Nina Nora Olga Omar Owen Paul
    Pete Rita Rob Rosa Ruth Sam Sara Sue Tara Ted Tina Tom Uma Vera Will Zoe
    """
)
ITEMS = words(
    """
    apples bags balls beads bells books boxes cakes candles cards coins cups dolls drums eggs flags forks hats
    jars kites lamps lemons maps masks nuts pears pens pins plants plates plums pots rings roses seeds shells
    shoes spoons stamps stars stones tickets tiles toys
    """
)
PLACES = words(
    """
    Athens Berlin Boston Cairo Dallas Dublin Geneva Lima Lisbon London Madrid Miami Milan Oslo Paris Prague Quito
    Rome Seoul Sofia Tokyo Turin Vienna Warsaw
    """
)
