"""Benchmarks of several groups of records, each with a scorer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as spec

from experiments.errors import near
from experiments.tasks.base import Example
from experiments.tasks.data import DataTask, judge
from experiments.tasks.files import Record
from experiments.tasks.forms import lookup
from experiments.tasks.scorers.registry import find_scorer


@spec(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Grouped(DataTask):
    """Records by the value of `group_field`: `groups` says which values make a group.

    `group` takes the records of one of them (None: of all). `metrics` names the scorer of a group; one without has no
    quality, and no references are read. The quality of all groups together is a mean over scorers that mean different
    things: the score of each stands beside it under its own name.
    """

    quality_name: ClassVar[str] = "group_score"  # type: ignore[misc]

    group_field: str
    groups: Mapping[str, tuple[str, ...]]
    group: str | None = None
    metrics: Mapping[str, str] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and self.group not in self.groups:
            raise ValueError(f"group={self.group}: no such group{near(self.group, self.groups)}, null for all")
        for group, metric in self.metrics.items():
            find_scorer(metric, f"metrics.{group}")

    def group_of(self, record: Record) -> str | None:
        """The group of a record; None where its value is in none."""
        value = lookup(record, self.group_field)
        return next((group for group, values in self.groups.items() if value in values), None)

    def keep(self, record: Record) -> bool:
        """Records of the chosen group, or of any."""
        group = self.group_of(record)
        return group is not None and self.group in (None, group)

    def references(self, record: Record) -> list[str]:
        """Of groups that are judged."""
        return super().references(record) if self.group_of(record) in self.metrics else []

    def details(self, record: Record) -> dict[str, Any]:
        """The group that decides about the scorer."""
        return {"group": self.group_of(record)}

    def scores(self, example: Example, text: str) -> dict[str, float]:
        """By the scorer of the example's group."""
        scored = judge(self.metrics.get(example.metadata["group"]), text, example.metadata["references"])
        return {self.quality_name: next(iter(scored.values())), **scored} if scored else {}

    def scorer(self) -> dict[str, str]:
        """Every group's metric and what its library says of it."""
        chosen = [metric for group, metric in sorted(self.metrics.items()) if self.group in (None, group)]
        return {metric: find_scorer(metric).signature() for metric in chosen}
