"""What a task is: examples in three disjoint splits, and a scorer; and what makes problems by seed."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

Name = Annotated[str, Field(min_length=1)]
Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
HELD_OUT_PERCENT = 6  # of all problems, for each of calibration and test
DRAWS_WITHOUT_NEWS = 20_000  # a family that finds nothing new for so long is exhausted
LEVELS = (1, 2, 3)
UNSEEN_EVERY = 5  # every fifth template and every fifth name is for test problems alone
FREE_WEIGHTS = (4, 3, 2)  # of equally good wordings: near ties, yet with a favorite that a model can learn
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One problem: the prompt a model reads and the completion it should write (end mark not included).

    `follows`: of a later turn of a conversation, the example before it; its prompt is then what this turn adds.
    """

    example_id: str
    prompt: str
    reference: str
    metadata: dict[str, Any]
    follows: str | None = None


# Made once in a process: by class and fields of the family, split, number.
HELD_OUT: dict[tuple[type, str, str, int], tuple[Example, ...]] = {}


@dataclass(frozen=True)
class Problem:
    """A drawn problem before it has a split; `content` is what makes it the same problem under other words."""

    content: tuple[Any, ...]
    prompt: str
    reference: str
    metadata: dict[str, Any]


class Author(random.Random):
    """The source of one family's problems: randomness, the level asked for, and which templates and names may be used.

    A pool that every problem must be understood through (templates of the prompt, names of people and things) is read
    with `template`, `entity` or `entities`: its items number 4, 9, 14, ... are never used before the test, so it needs
    five items or more. What needs no understanding (which operation, which numbers) is read with `choice`.
    """

    def __init__(self, seed: str, level: int | None = None, unseen: bool = False) -> None:
        super().__init__(seed)
        self._level, self._unseen = level, unseen

    def level(self) -> int:
        """The level asked for, or any one."""
        return self._level or self.choice(LEVELS)

    def template(self, pool: Sequence[T]) -> T:
        """One way of saying something in a prompt."""
        return self.choice(self._allowed(pool))

    def entity(self, pool: Sequence[T]) -> T:
        """One name of a person, place or thing."""
        return self.choice(self._allowed(pool))

    def entities(self, pool: Sequence[T], count: int) -> list[T]:
        """Distinct names."""
        return self.sample(self._allowed(pool), count)

    def wording(self, ways: Sequence[T]) -> T:
        """One of two or three equally good ways of saying something in a completion; nothing tells which one is next.

        So a draft model that differs from the target here does no harm, and a verifier can tell this from an error.
        """
        return self.choices(ways, FREE_WEIGHTS[: len(ways)])[0]

    def _allowed(self, pool: Sequence[T]) -> Sequence[T]:
        """The part of a pool that is for the test alone, or the rest of it."""
        assert len(pool) >= UNSEEN_EVERY, pool
        return [item for i, item in enumerate(pool) if (i % UNSEEN_EVERY == UNSEEN_EVERY - 1) == self._unseen]


def stable_hash(*parts: object) -> str:
    """Return 16 hex digits that depend on the parts only (never on the process or the machine)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def split_of(family: str, content: tuple[Any, ...]) -> Split:
    """Assign a problem to its split by its content alone, so that no seed can move it to another one."""
    bucket = int(stable_hash(family, content), 16) % 100
    if bucket < HELD_OUT_PERCENT:
        return "test"
    return "calibration" if bucket < 2 * HELD_OUT_PERCENT else "train"


def check_split(split: str, count: int | None) -> None:
    """Raises ValueError for a split that no task has, or a negative count."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; accepted: {', '.join(SPLITS)}")
    if count is not None and count < 0:
        raise ValueError(f"count={count} must not be negative")


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Task(ABC):
    """What is decoded and how it is judged, in three disjoint splits.

    Fields: `seed` >= 0 orders the examples, and selects them where there are more than asked for; `max_new_tokens` >= 1
    bounds an answer; `too_long` says what becomes of a prompt that leaves no room for one in the models' context;
    `stop_strings` end an answer (may be empty).
    """

    quality_name: ClassVar[str] = ""

    name: Name
    seed: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=128, ge=1)
    too_long: Literal["error", "truncate_left", "skip"] = "error"
    stop_strings: tuple[str, ...] = ()

    @abstractmethod
    def examples(self, split: Split, count: int | None = None) -> list[Example]:
        """Return the first `count` examples of a split; a smaller count is a prefix of a larger one.

        Raises:
            ValueError: unknown split, negative count, or more examples asked for than there are.
        """

    @abstractmethod
    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Judge a completion by every scorer: 0 is useless, 1 is right; `quality_name` is among them.

        Empty where nothing can be said: without a reference an example has no quality.
        """

    def score(self, example: Example, text: str) -> float:
        """The quality of a completion: its score by `quality_name`."""
        return self.scores(example, text)[self.quality_name]

    def scorer(self) -> dict[str, str]:
        """What judges, with versions and settings, where the sources of this project do not say it all.

        Raises:
            ValueError: a scorer that is unknown, or whose package is missing.
        """
        return {}

    def notices(self) -> list[str]:
        """What a reader of the table must know about the task."""
        return []

    def go_on(self, before: str, answer: str, prompt: str) -> str:
        """A conversation in plain text: what was asked so far, the answer to it, the next turn."""
        return f"{before}{answer}\n{prompt}"

    def in_seen_wording(self) -> Self:
        """The same task told as in training: what is settled before a test is settled with it."""
        return self

    def in_chat(self) -> Self:
        """The same task as a chat model is asked, through its template."""
        return self


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Procedural(Task):
    """A family of problems that are made by seed.

    Fields beside those of every task: `test_size` >= 1 and `calibration_size` >= 1 are the default sizes of the splits
    that are held out; `level` 1 to 3 is their difficulty (None: all levels, mixed); `wording` says whether they are
    told by templates and names that the training problems use (`seen`), or only by others (`unseen`, split `test`
    alone).
    """

    test_size: int = Field(default=400, ge=1)
    calibration_size: int = Field(default=200, ge=1)
    level: int | None = Field(default=None, ge=min(LEVELS), le=max(LEVELS))
    wording: Literal["seen", "unseen"] = "seen"

    @abstractmethod
    def draw(self, author: Author) -> Problem:
        """Draw one problem; all of its randomness comes from `author`, and its metadata name its `level`."""

    def stream(self, split: Split) -> Iterator[Example]:
        """Yield the distinct problems of a split in their seeded order, until the family is exhausted.

        Raises:
            ValueError: unseen wording of another split than the test.
        """
        unseen = self.wording == "unseen"
        if unseen and split != "test":
            raise ValueError(f"wording='unseen' has no split={split!r}: its templates and names are for split='test'")
        family = type(self).__name__
        author = Author(f"{family}:{self.seed}:{split}:{self.level}:{self.wording}", self.level, unseen)
        seen: set[str] = set()
        idle = 0
        while idle < DRAWS_WITHOUT_NEWS:
            problem = self.draw(author)
            idle += 1
            if split_of(family, problem.content) != split:
                continue
            example_id = stable_hash(family, problem.prompt)
            if example_id in seen:
                continue
            seen.add(example_id)
            idle = 0
            yield Example(example_id, problem.prompt, problem.reference, problem.metadata)

    def in_seen_wording(self) -> Self:
        """The same task told as in training: what is settled before a test is settled with it."""
        return replace(self, wording="seen")

    def examples(self, split: Split, count: int | None = None) -> list[Example]:
        """Return the first `count` problems of a split; a smaller count is a prefix of a larger one.

        `count` defaults to the size of a held-out split; `train` has no size of its own and needs one.

        Raises:
            ValueError: unknown split, missing or negative count, or more problems asked for than the family has.
        """
        check_split(split, count)
        if count is None:
            sizes = {"test": self.test_size, "calibration": self.calibration_size}
            if split not in sizes:
                raise ValueError("count is required for split='train', which is generated without end")
            count = sizes[split]
        known = HELD_OUT.get((type(self), repr(self), split, count))
        if known is not None:
            return list(known)
        found = list(islice(self.stream(split), count))
        if len(found) < count:
            raise ValueError(f"task {self.name} has {len(found)} distinct {split} problems, {count} were asked for")
        if split != "train":  # of that there may be any number
            HELD_OUT[type(self), repr(self), split, count] = tuple(found)
        return found


def words(text: str) -> tuple[str, ...]:
    """Split a list of words written as running text."""
    return tuple(text.split())


# Few and short words, shared by the families: the tokenizer of the reference pair makes each of those seen in training
# one token where a space comes before it, and several tokens of the others.
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
