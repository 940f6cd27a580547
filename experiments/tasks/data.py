"""Tasks of records that others made: a data set's, or any JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

from experiments.errors import UserError
from experiments.tasks.base import Example, Split, Task, check_split, stable_hash
from experiments.tasks.files import Record
from experiments.tasks.forms import Form, ask, fill, lookup
from experiments.tasks.qa import Qa
from experiments.tasks.scorers.registry import find_scorer
from experiments.tasks.sources import Source, read_split, ways

PLACE = "place_in_conversation"  # of a record made for one turn: its number from 0, and how many there are
Percent = Annotated[int, Field(ge=0, le=50)]


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DataTask(Task):
    """Records of a data set as examples.

    Fields beside those of every task: `path` is a file or folder instead of `source`; `form` makes prompts of records;
    `reference_field` (dots lead into objects and lists) is what an answer is judged by, by the scorer named `metric`;
    None for either: no quality. `test_size` bounds the test (None: all of its records), `train_rows` the records of the
    train split that are looked at. `calibration_percent` of the train split's are for calibration; where there is no
    such split, as much of the test's, which the test then never uses. 0: the test keeps all, and calibration prompts
    are those of the procedural task `qa`. `chat_stop_strings` are those of a chat model.

    Conversations: `turns_field` names the list of texts that a user says, each of which is {turn} in the templates. The
    test has an example for each of the first `turns` (None: of all); elsewhere only first turns are asked. Of as many
    references as there are turns each is for its turn; others are for the first one.

    Splits go by content, never by seed; what the train split has in common with the test or the shots is left out. The
    order of a split is the seed's.
    """

    path: str | None = None
    source: Source = Source()
    form: Form
    reference_field: str | None = None
    metric: str | None = None
    turns_field: str | None = None
    turns: int | None = Field(default=None, ge=1)
    test_size: int | None = Field(default=None, ge=1)
    train_rows: int = Field(default=20_000, ge=1)
    calibration_percent: Percent = 10
    chat_stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric is not None:
            find_scorer(self.metric)
        if self.source.test in (self.source.shots, self.source.train):
            raise ValueError(f"source: split {self.source.test!r} is the test's; accepted: others for train, shots")

    @property
    def quality_name(self) -> str:  # type: ignore[override]
        """The main score of the metric."""
        return "" if self.metric is None else find_scorer(self.metric).main

    def keep(self, record: Record) -> bool:
        """Whether a record belongs to the task."""
        return True

    def prepare(self, record: Record) -> Record:
        """The record as templates see it."""
        return record

    def references(self, record: Record) -> list[str]:
        """What an answer is compared with: each text in the reference field, however deep it lies in lists."""
        if self.reference_field is None:
            return []
        value, (turn, turns) = lookup(record, self.reference_field), record.get(PLACE, (0, 1))
        if turns > 1 and isinstance(value, list | tuple) and len(value) == turns:
            return flatten(value[turn])
        return flatten(value) if turn == 0 else []

    def details(self, record: Record) -> dict[str, Any]:
        """What else `scores` needs to know of a record."""
        return {}

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """Judge by the metric; nothing to say where there is no reference."""
        return judge(self.metric, text, example.metadata["references"])

    def scorer(self) -> dict[str, str]:
        """The metric and what its library says of it."""
        return {} if self.metric is None else {self.metric: find_scorer(self.metric).signature()}

    def go_on(self, before: str, answer: str, prompt: str) -> str:
        """As after a shot: the form's separator ends an answer."""
        gap = "" if before[-1:].isspace() else " "
        return f"{before}{gap}{answer}{self.form.separator}{prompt}"

    def in_chat(self) -> Self:
        """Asked as one message of a user, by `form.chat_prompt` where there is one."""
        prompt = self.form.chat_prompt
        form = self.form if prompt is None else replace(self.form, prompt=prompt, preamble="", shots=())
        return replace(self, form=form, stop_strings=self.chat_stop_strings)

    def examples(self, split: Split, count: int | None = None) -> list[Example]:
        """Return the first `count` examples of a split in the seed's order, or all of them.

        Raises:
            ValueError: unknown split, negative count, or more examples asked for than there are.
            UserError: the data is missing, broken, or lacks a field that is asked for.
        """
        check_split(split, count)
        if split == "calibration" and self._held_out is None:
            return Qa(seed=self.seed).examples(split, count)
        records = self._records(split)
        with self._named():
            each = [self._turns(record)[: self.turns if split == "test" else 1] for _, _, record in records]
            told = zip(records, each, strict=True)
            found = [one for (content, place, _), turns in told for one in self._examples(content, place, turns)]
        if count is not None and len(found) < count:
            raise UserError(f"task {self.name} has {len(found)} {split} examples, {count} were asked for")
        return found[:count]

    @cached_property
    def _test(self) -> list[tuple[str, int, Record]]:
        """The test split's records with their contents; `place` tells records of the same content apart."""
        found = self._read(self.source.test, None)
        if not found:
            raise UserError(f"task {self.name}: no record of split {self.source.test!r}; accepted: {ways(self.source)}")
        return found

    @cached_property
    def _train(self) -> list[tuple[str, int, Record]] | None:
        """Those of the train split that neither the test nor the shots know; None where there is no such split."""
        found = None if self.source.train is None else self._read(self.source.train, self.train_rows)
        known = {content for content, _, _ in self._test} | {self._content(shot) for shot in self._shots}
        return None if found is None else [one for one in found if one[0] not in known]

    @cached_property
    def _held_out(self) -> list[tuple[str, int, Record]] | None:
        """The records for calibration; None where none are held out."""
        if not self.calibration_percent:
            return None
        pool = self._test if self._train is None else self._train
        return [one for one in pool if self._is_held_out(one[0])]

    @cached_property
    def _shots(self) -> list[Record]:
        """The shots' records. Raises UserError where the split they come from lacks them, or the test has one."""
        named = [shot for shot in self.form.shots if isinstance(shot, int)]
        split = self.source.shots or self.source.train
        pool: list[Record] | None = []
        if named:
            pool = None if split is None else read_split(self.source, self.path, split, max(named) + 1)
        if pool is None or any(not 0 <= index < len(pool) for index in named):
            raise UserError(
                f"task.form.shots={list(named)}: split {split!r} of task {self.name} has {len(pool or [])} records; "
                f"accepted: {ways(self.source)} with a file of that split, records in place of numbers, or []"
            )
        shots = [self.prepare(pool[shot] if isinstance(shot, int) else shot) for shot in self.form.shots]
        tested = {content for content, _, _ in self._test}
        for place, shot in enumerate(shots):
            if self._content(shot) in tested:
                raise UserError(
                    f"task.form.shots.{place}: this record is in the test split of task {self.name}; accepted: others"
                )
        return shots

    def _records(self, split: Split) -> list[tuple[str, int, Record]]:
        if split == "test":
            own = [one for one in self._test if self._train is not None or not self._is_held_out(one[0])]
        elif split == "calibration":
            own = self._held_out or []
        else:
            own = [one for one in self._train or [] if not self._is_held_out(one[0])]
        found = sorted(own, key=lambda one: stable_hash(self.seed, split, one[0], one[1]))
        return found[: self.test_size] if split == "test" else found

    def _is_held_out(self, content: str) -> bool:
        return int(stable_hash("calibration", content), 16) % 100 < self.calibration_percent

    def _read(self, split: str, limit: int | None) -> list[tuple[str, int, Record]] | None:
        times: Counter[str] = Counter()
        found = []
        with self._named():
            records = read_split(self.source, self.path, split, limit)
            if records is None:
                return None
            for record in (self.prepare(record) for record in records if self.keep(record)):
                content = self._content(record)
                found.append((content, times[content], record))
                times[content] += 1
        return found

    def _content(self, record: Record) -> str:
        """What makes it the same problem under other shots."""
        return "".join(fill(self.form.prompt, turn) for turn in self._turns(record))

    def _turns(self, record: Record) -> list[Record]:
        """The record as templates see it, once for each turn."""
        if self.turns_field is None:
            return [record]
        return in_turns(record, "turn", lookup(record, self.turns_field), self.turns_field)

    def _examples(self, content: str, place: int, turns: Sequence[Record]) -> list[Example]:
        """The examples of a conversation, or the one of any other record."""
        found: list[Example] = []
        for turn, record in enumerate(turns):
            metadata = {"references": self.references(record), **self.details(record)}
            answer, known = fill(self.form.answer, record), (content, place)
            if not turn:
                prompt = ask(self.form, record, self._shots)
                found.append(Example(stable_hash("data", *known), prompt, answer, metadata))
            else:
                prompt, before = fill(self.form.prompt, record), found[-1].example_id
                told = {**metadata, "turn": turn}
                found.append(Example(stable_hash("data", *known, turn), prompt, answer, told, before))
        return found

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What goes wrong inside names the task."""
        try:
            yield
        except UserError as error:
            raise UserError(f"task {self.name}: {error}") from error


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Jsonl(DataTask):
    """Any file of records: `prompt_field` names the prompt, which is {prompt} in the form's templates.

    A list of texts is a conversation's turns, one after the other.
    """

    prompt_field: str = "prompt"

    def prepare(self, record: Record) -> Record:
        """The record with its prompt under that name."""
        if self.prompt_field == "prompt" and "prompt" in record:
            return record
        try:
            return {**record, "prompt": lookup(record, self.prompt_field)}
        except UserError as error:
            raise UserError(f"prompt_field={self.prompt_field}: {error}") from error

    def _turns(self, record: Record) -> list[Record]:
        """The record once for each of its prompts."""
        if self.turns_field is not None or not isinstance(record["prompt"], list | tuple):
            return super()._turns(record)
        return in_turns(record, "prompt", record["prompt"], f"prompt_field={self.prompt_field}")


def in_turns(record: Record, name: str, texts: Any, field: str) -> list[Record]:
    """The record once for each text, which stands under that name.

    Raises:
        UserError: anything but a list of texts.
    """
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) and one for one in texts):
        raise UserError(
            f"{field}: {str(texts)[:60]!r} is no conversation; accepted: a list of texts, one for each turn"
        )
    return [{**record, name: text, PLACE: (turn, len(texts))} for turn, text in enumerate(texts)]


def judge(metric: str | None, text: str, references: Sequence[str]) -> dict[str, float]:
    """A text's scores by the scorer of this name; none without a scorer, or without the references that it needs."""
    if metric is None:
        return {}
    scorer = find_scorer(metric)
    return scorer.score(text, references) if references or scorer.unanswerable else {}


def flatten(value: Any) -> list[str]:
    """The texts in a value of lists in lists; numbers as they are written, nothing for null."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for one in value for text in flatten(one)]
    return [str(value)]
