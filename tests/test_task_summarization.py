"""The summarization family: summaries that follow from the report, and scorers that read free wordings alike."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product

import pytest

from experiments.tasks.base import LEVELS, NAMES, UNSEEN_EVERY, Example
from experiments.tasks.summarization import (
    CORRECTIONS,
    HEADINGS,
    LEAST,
    MOST,
    ORDER_PHRASES,
    REMARKS,
    SENTENCES,
    TOTAL,
    VERBS,
    Summarization,
)

COUNT = 150
LINES = " Ada, Oslo: sold 30 pens; Tom, Rome: sold 12 hats;"
SUMMARY = f" Summary of 2 facts:{LINES} most by Ada with 30 pens; total 30 + 12 = 42."
EXAMPLE = Example("0", "", SUMMARY, {"level": 1, "count": 2, "order": "told"})
GROUPS = {"who": r"(?P<who>[A-Z]\w+)", "place": r"(?P<place>[A-Z]\w+)", "n": r"(?P<n>\d+)", "item": r"(?P<item>\w+)"}


def judge(text: str, example: Example = EXAMPLE) -> tuple[float, float]:
    """Both scores of a completion."""
    scores = Summarization().scores(example, text)
    assert sorted(scores) == ["fact_f1", "rouge2"]
    return scores["fact_f1"], scores["rouge2"]


def find(templates: tuple[str, ...], prompt: str) -> list[dict[str, str]]:
    """What a prompt says by some templates, in its order."""
    verbs = f"(?:{'|'.join(VERBS)})"
    found = {}
    for template in templates:
        for match in re.finditer(rf"(?<![\w,] ){template.format(verb=verbs, **GROUPS)[:-1]}\.", prompt):
            found[match.start()] = match.groupdict()
    return [found[start] for start in sorted(found)]


def read_report(prompt: str) -> list[dict[str, str]]:
    """The facts of a prompt in the order told, corrected."""
    facts = find(SENTENCES, prompt)
    for change in find(CORRECTIONS, prompt):
        next(fact for fact in facts if fact["who"] == change["who"])["n"] = change["n"]
    return facts


def closing(example: Example, facts: list[dict[str, str]]) -> str:
    """The second closing fact, computed from the facts as they are listed."""
    if example.metadata["level"] == 2:
        fact = min(facts, key=lambda fact: int(fact["n"]))
        return LEAST[0].format(**fact)
    items = [fact["item"] for fact in facts]
    parts = [f for f in facts if example.metadata["level"] == 1 or items.count(f["item"]) == 2]
    item = f" {parts[0]['item']}" if example.metadata["level"] == 3 else ""
    return f"total {' + '.join(f['n'] for f in parts)} = {sum(int(f['n']) for f in parts)}{item}"


@pytest.mark.parametrize("wording", ["seen", "unseen"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_summary_follows_from_the_report(level: int, wording: str) -> None:
    task = Summarization(level=level, wording=wording)  # type: ignore[arg-type]
    for example in task.examples("test", COUNT):
        facts = read_report(example.prompt)
        assert len(facts) == example.metadata["count"]
        orders = [
            o for o, ways in ORDER_PHRASES.items() if any(re.search(rf" {w}(?! of|\w)", example.prompt) for w in ways)
        ]
        assert example.metadata["order"] in orders
        facts = {"told": facts, "reverse": facts[::-1], "name": sorted(facts, key=lambda fact: fact["who"])}[
            example.metadata["order"]
        ]
        verb = next(verb for verb in VERBS if f" {verb} " in example.prompt or f" {verb}." in example.prompt)
        lines = [f"{f['who']}, {f['place']}: {verb} {f['n']} {f['item']}" for f in facts]
        lines.append(MOST[0].format(**max(facts, key=lambda fact: int(fact["n"]))))
        assert judge(f" {'; '.join([*lines, closing(example, facts)])}.", example) == (1.0, 1.0)


def test_levels_rise() -> None:
    counts, lengths = [], []
    for level in LEVELS:
        examples = Summarization(level=level).examples("test", COUNT)
        assert {example.metadata["level"] for example in examples} == {level}
        counts.append({len(find(SENTENCES, example.prompt)) for example in examples})
        lengths.append(sum(len(example.prompt + example.reference) for example in examples))
        assert all(bool(find(CORRECTIONS, e.prompt)) == (level == 3) for e in examples)
        assert all(sum(remark in e.prompt for remark in REMARKS) == (level > 1) for e in examples)
    assert counts == [{2}, {3}, {3, 4}]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("level", LEVELS)
def test_all_free_wordings_score_one(level: int) -> None:
    example = Summarization(level=level).examples("test", 1)[0]
    *lines, _, last = re.sub(r"^ (Summary of \d facts|In short|Facts): ", "", example.reference)[:-1].split("; ")
    facts = read_report(example.prompt)
    most, least = (pick(facts, key=lambda fact: int(fact["n"])) for pick in (max, min))
    addition = last[last.index(" + ") - 2 :] if level != 2 else ""
    ends = [way.format(**least) for way in LEAST] if level == 2 else [way.format(addition=addition) for way in TOTAL]
    for heading, lead, end in product(HEADINGS, MOST, ends):
        text = f" {heading.format(count=len(facts))} {'; '.join([*lines, lead.format(**most), end])}."
        assert judge(text, example) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        (" I cannot tell.", 0.0),
        (" Ada leads with 30 pens.", 2 * 1 / (5 + 1)),
        (f" Facts:{LINES} Ada leads with 30 pens.", 2 * 4 / (5 + 4)),
        (SUMMARY.replace("Rome", "Lima"), 4 / 5),
        (SUMMARY.replace("sold 12", "made 12"), 4 / 5),
        (SUMMARY.replace("sold 12", "sold 13"), 4 / 5),
        (SUMMARY.replace("with 30", "with 12"), 4 / 5),
        (SUMMARY.replace("= 42", "= 43"), 4 / 5),
        (SUMMARY.replace("2 facts", "3 facts"), 3 / 5),  # the first line cannot be read, nor whose it is
        (
            " In short: Tom, Rome: sold 12 hats; Ada, Oslo: sold 30 pens; Ada leads with 30 pens; in all 30 + 12 = 42.",
            4 / 5,
        ),
    ],
    ids=["nothing", "nonsense", "one", "part", "place", "verb", "amount", "lead", "sum", "heading", "order"],
)
def test_facts_are_compared_whole(text: str, expected: float) -> None:
    assert judge(text)[0] == pytest.approx(expected)
    assert judge(text)[1] < 1.0


def test_extra_and_repeated_facts_cost() -> None:
    assert judge(SUMMARY) == (1.0, 1.0)
    for extra in (" Ada leads with 30 pens.", " Tom leads with 12 hats.", "\nReport: Ada made 3 pens."):
        assert judge(SUMMARY + extra)[0] == pytest.approx(2 * 5 / (5 + 6))
    another = judge(SUMMARY.replace(" most", " Eva, Lima: sold 20 bags; most"))[0]
    assert another == pytest.approx(2 * 4 / (5 + 6))  # the order of the people is another one, too


def test_rouge2_counts_pairs_of_words() -> None:
    # The heading and signs do not count, a number is one word; a wrong place breaks the two pairs it is in.
    words = re.findall(r"\w+", SUMMARY.partition(":")[2])
    pairs = len(words) - 1
    assert judge(SUMMARY.replace("Rome", "Lima"))[1] == pytest.approx((pairs - 2) / pairs)
    assert judge(" Facts: Ada, Oslo: sold 30 pens.")[1] == pytest.approx(2 * 4 / (pairs + 4))
    assert judge("")[1] == 0.0


def test_unseen_wording_shares_no_template_and_no_name() -> None:
    seen = Summarization(level=3).examples("test", COUNT)
    unseen = Summarization(level=3, wording="unseen").examples("test", COUNT)
    held_out = set(NAMES[UNSEEN_EVERY - 1 :: UNSEEN_EVERY])
    for examples, allowed in ((seen, set(NAMES) - held_out), (unseen, held_out)):
        assert {fact["who"] for example in examples for fact in read_report(example.prompt)} <= allowed
    for pool in (SENTENCES, CORRECTIONS):
        for i, template in enumerate(pool):
            is_unseen = i % UNSEEN_EVERY == UNSEEN_EVERY - 1
            told = [bool(find((template,), example.prompt)) for example in seen + unseen]
            assert any(told[:COUNT]) != is_unseen
            assert any(told[COUNT:]) == is_unseen


def test_drawing_does_not_load_the_library_of_the_scorer() -> None:
    code = (
        "import sys; from experiments.tasks.summarization import Summarization; Summarization().examples('test', 2);"
        "sys.exit('rouge_score' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
