"""The recitations and drills of the reference pair's training: seen words alone, and the facts of their passages."""

from __future__ import annotations

import importlib
import random
import re
from pathlib import Path
from types import ModuleType

import pytest

from experiments.tasks.base import ITEMS, NAMES, PLACES, UNSEEN_EVERY, Example
from experiments.tasks.qa import ALL, FINAL, LINKING, pattern_of, read_fact

COUNT = 400
PEOPLE = 6  # of a passage, each with one fact
KINDS = {"recitation": ALL, "drill": FINAL}  # with the relations that they tell of
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def data() -> ModuleType:
    """The module under test; scripts are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        return importlib.import_module("reference_data")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of the function under test."""
    return str(request.param)


@pytest.fixture(scope="module")
def recited(data: ModuleType, kind: str) -> list[Example]:
    """The first examples of a kind."""
    return [getattr(data, kind)(number) for number in range(COUNT)]


def passage(example: Example) -> list[str]:
    """The sentences of a prompt in lower case."""
    match = re.fullmatch(r"Text: (.+)\.\nFacts:", example.prompt)
    assert match
    return match[1].lower().split(". ")


def facts(example: Example) -> list[str]:
    """The sentences of a reference in lower case."""
    match = re.fullmatch(r" (.+)\.", example.reference)
    assert match
    return match[1].lower().split(". ")


def test_only_seen_names_are_used(recited: list[Example]) -> None:
    told = {word for e in recited for word in re.findall(r"\w+", e.prompt + e.reference)}
    for pool in (NAMES, ITEMS, PLACES):
        assert told & set(pool) == set(pool) - set(pool[UNSEEN_EVERY - 1 :: UNSEEN_EVERY])


def test_only_seen_templates_are_used_and_all_of_them(recited: list[Example], kind: str) -> None:
    told = {sentence for example in recited for sentence in passage(example)}
    for relation in KINDS[kind]:
        used = [any(map(pattern_of(way).fullmatch, told)) for way in relation.facts]
        assert used == [i % UNSEEN_EVERY != UNSEEN_EVERY - 1 for i in range(len(used))]
    ways = [pattern_of(way) for relation in KINDS[kind] for way in relation.facts]
    assert all(any(pattern.fullmatch(sentence) for pattern in ways) for sentence in told)


def test_the_facts_of_the_passage_are_restated_in_canonical_words(recited: list[Example]) -> None:
    statements = [pattern_of(relation.statement) for relation in ALL]
    for example in recited:
        restated = facts(example)
        assert all(any(pattern.fullmatch(fact) for pattern in statements) for fact in restated)
        assert sorted(restated) == sorted(map(read_fact, passage(example)))


def test_the_facts_come_in_another_order(recited: list[Example]) -> None:
    kept = [list(map(read_fact, passage(example))) == facts(example) for example in recited]
    assert sum(kept) < COUNT / 50  # one in 720 by chance


def test_names_are_restated_letter_by_letter(recited: list[Example]) -> None:
    names = {*NAMES, *ITEMS, *PLACES}
    for example in recited:
        told, restated = (set(re.findall(r"\w+", text)) for text in (example.prompt, example.reference))
        assert told & names == restated & names


def test_a_number_always_gives_the_same_example(data: ModuleType, kind: str, recited: list[Example]) -> None:
    random.seed(1)
    assert [getattr(data, kind)(number) for number in reversed(range(COUNT))] == recited[::-1]
    assert len({example.prompt for example in recited}) == COUNT
    assert [example.example_id for example in recited] == [str(number) for number in range(COUNT)]


def test_six_people_have_one_fact_each_and_only_recitations_lead_from_one_to_another(
    recited: list[Example], kind: str
) -> None:
    between, final = ([pattern_of(r.statement) for r in relations] for relations in (LINKING, FINAL))
    for example in recited:
        matches = [match for fact in facts(example) for way in (*between, *final) if (match := way.fullmatch(fact))]
        assert len(matches) == len({match["who"] for match in matches}) == PEOPLE
        links = sum(match.re in between for match in matches)
        assert links == 0 if kind == "drill" else links >= 2


def test_both_kinds_are_among_the_training_documents(data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL", 3)
    pools = data.training_pools()
    for kind in KINDS:
        assert pools[kind] == [getattr(data, kind)(number) for number in range(3)]
    documents = {name: [(list(name.encode()), 1)] for name in pools}
    run = [data.draw_documents(documents, random.Random(0), tenth / 10) for tenth in range(10)]
    assert set(KINDS) <= {bytes(ids).decode() for drawn in run for ids, _ in drawn}
