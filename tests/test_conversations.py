"""Conversations: an example per turn, asked with what vanilla answered before in the same run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments import run
from experiments.config import CHECKOUT, build
from experiments.conversations import FRAME, Conversations, NoHistory
from experiments.errors import UserError
from experiments.measure import Bench, Prompt
from experiments.plan import prompt_room, read_prompts, settle
from experiments.records import Row
from experiments.store import RunFolder
from experiments.tasks.base import Example
from experiments.tasks.data import DataTask, Jsonl
from experiments.tasks.forms import Form
from experiments.tasks.sources import Source
from tests.commands import call, check_mistake

TALKS = [
    {"prompt": [f"Tom has {n} pens.", f"He gets {n} more.", "How many are there?"], "key": [None, None, str(2 * n)]}
    for n in range(3, 6)
]
REFERENCE = CHECKOUT / "viasd" / "reference"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A file of conversations of three turns, and one prompt that is none."""
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*TALKS, {"prompt": "Alone.", "key": "x"}]))
    return path


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def task(path: Path, **changes: Any) -> Jsonl:
    form = Form(prompt="Q: {prompt}\nA:", preamble="Talk. ", separator="\n")
    return Jsonl(name="talks", path=str(path), form=form, source=Source(), calibration_percent=0, **changes)


def settings(talks: Path, *more: str) -> list[str]:
    return [
        "task=jsonl", f"task.path={talks}", "task.max_new_tokens=8", "task.form.separator=' | '",
        "arms=[vanilla,sd]", "track=none", "engine.threads=1", f"results_dir={talks.parent / 'results'}", *more,
    ]  # fmt: skip


def measured(talks: Path) -> list[Row]:
    (path,) = (talks.parent / "results" / "runs").iterdir()
    return RunFolder(talks.parent / "results", path.name).read_rows()


def test_a_turn_is_an_example_and_its_conversation_stays_together(talks: Path) -> None:
    examples = task(talks).examples("test")
    assert len(examples) == 10 and len({one.example_id for one in examples}) == 10
    before: Example | None = None
    for one in examples:
        assert one.metadata.get("turn", 0) == 0 or before is not None
        if one.metadata.get("turn"):
            assert before is not None and one.follows == before.example_id and one.prompt.startswith("Q: ")
        else:
            assert one.follows is None and one.prompt.startswith("Talk. Q: ")
        before = one
    assert task(talks).examples("test", 5) == examples[:5]
    assert task(talks, turns=1).examples("test") == [one for one in examples if one.follows is None]
    with pytest.raises(UserError, match="task talks has 10 test examples, 11 were asked for"):
        task(talks).examples("test", 11)


def test_what_is_settled_before_a_test_uses_first_turns(talks: Path) -> None:
    held_out = task(talks, turns=2)
    object.__setattr__(held_out, "calibration_percent", 50)
    examples = held_out.examples("calibration")
    assert examples and all(one.follows is None for one in examples)


def test_references_of_each_turn_are_its_own(talks: Path) -> None:
    judged = task(talks, reference_field="key", metric="final_number")
    told = {(len(one.metadata["references"]), one.metadata.get("turn", 0)) for one in judged.examples("test")}
    assert told == {(0, 0), (0, 1), (1, 2), (1, 0)}  # the last: the prompt that is alone
    last = next(one for one in judged.examples("test") if one.metadata.get("turn") == 2)
    assert judged.scores(last, f"I say {last.metadata['references'][0]}.") == {"final_number": 1.0}


def test_turns_may_have_a_field_of_their_own_and_must_be_texts(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text(json.dumps({"said": ["One.", "Two."], "ref": "1"}) + "\n")
    form = Form(prompt="U: {turn} A:")
    made = {"name": "t", "path": str(path), "form": form, "reference_field": "ref", "calibration_percent": 0}
    examples = DataTask(**made, turns_field="said").examples("test")
    assert [one.prompt for one in examples] == ["U: One. A:", "U: Two. A:"]
    assert [one.metadata["references"] for one in examples] == [["1"], []]
    path.write_text(json.dumps({"said": ["One.", 2]}) + "\n")
    with pytest.raises(UserError, match=r"task t: said: .*accepted: a list of texts"):
        DataTask(**made, turns_field="said").examples("test")


def test_all_arms_read_what_vanilla_answered(
    talks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, Prompt] = {}
    measure = Bench.measure

    def watched(bench: Bench, prompt: Prompt, timed: bool) -> list[Row]:
        read[prompt.example.example_id] = prompt
        return measure(bench, prompt, timed)

    monkeypatch.setattr(Bench, "measure", watched)
    command = settings(talks, "limit=4", "quality_limit=10")
    code, out, err = call(capsys, run.main, *command)
    assert (code, err) == (0, "") and "6 later turns are asked with vanilla's answers before them" in out
    rows = {(row.example_id, row.arm): row for row in measured(talks)}
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        plan = settle(build(compose("config", command)))
    text = ""
    for prompt in plan.prompts:
        one = prompt.example
        text = one.prompt if one.follows is None else f"{text} | {one.prompt}"
        ids = plan.tokenizer(text).input_ids
        assert read[one.example_id].ids == ids
        assert {rows[one.example_id, arm].prompt_tokens for arm in plan.arms} == {len(ids)}
        assert {rows[one.example_id, arm].turn for arm in plan.arms} == {one.metadata.get("turn", 0)}
        text = f"{text} {rows[one.example_id, 'vanilla'].text.strip()}"
    check_resumed(talks, capsys, command, read)


def check_resumed(talks: Path, capsys: pytest.CaptureFixture[str], command: list[str], read: dict[str, Prompt]) -> None:
    """Without its last rows, and with more to time, a run goes on from stored answers."""
    (path,) = (talks.parent / "results" / "runs").glob("*/rows.jsonl")
    whole = {(row.example_id, row.arm): row for row in measured(talks)}
    prompts = {name: prompt.ids for name, prompt in read.items()}
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    read.clear()
    assert call(capsys, run.main, *command)[0] == 0
    assert len(read) == 1 and {name: prompt.ids for name, prompt in read.items()}.items() <= prompts.items()
    read.clear()
    assert call(capsys, run.main, *command, "limit=5")[0] == 0
    order = list(dict.fromkeys(row.example_id for row in sorted(whole.values(), key=lambda row: row.index)))
    turns = [whole[name, "vanilla"].turn for name in order]
    end = next((place for place in range(5, 10) if turns[place] == 0), 10)  # of the fifth example's conversation
    assert set(read) == set(order[4:end]) and all(read[name].ids == prompts[name] for name in read)
    for row in measured(talks):
        assert row.token_ids == whole[row.example_id, row.arm].token_ids


def test_where_vanilla_fails_later_turns_fail_in_every_arm(
    talks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detail = Bench._detail

    def fail(bench: Bench, row: Row, prompt: Prompt, timed: bool) -> None:
        if row.arm == "vanilla" and prompt.example.metadata.get("turn") == 1:
            raise RuntimeError("broken")
        detail(bench, row, prompt, timed)

    command = settings(talks, "limit=1", "quality_limit=10", "task.too_long=truncate_left")
    monkeypatch.setattr(Bench, "_detail", fail)
    code, _, err = call(capsys, run.main, *command)
    assert code == 1 and "6 examples failed (max_errors=0)" in err
    for row in measured(talks):
        told = {0: None, 1: "RuntimeError: broken" if row.arm == "vanilla" else None}
        if row.turn < 2:
            assert row.error == told[row.turn]
        else:
            assert row.error is not None and "vanilla has no answer to the turn before it" in row.error
    monkeypatch.setattr(Bench, "_detail", detail)
    assert call(capsys, run.main, *command)[0] == 0
    assert len(measured(talks)) == 20 and all(row.error is None for row in measured(talks))


def test_without_vanilla_one_line_says_what_is_accepted(talks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, run.main, *settings(talks, "arms=[sd]"))
    check_mistake(code, err, ["arms=sd", "accepted: arms with vanilla, or task.turns=1"])
    assert call(capsys, run.main, *settings(talks, "arms=[sd]", "task.turns=1", "limit=1"))[0] == 0


@pytest.mark.usefixtures("_hydra")
def test_the_longest_history_decides_what_is_too_long(talks: Path) -> None:
    def job(*more: str) -> Any:
        return build(compose("config", settings(talks, *more)))

    plain = job()
    tokenizer = settle(plain).tokenizer
    source = plain.task.examples("test")
    prompts, _ = read_prompts(plain, source, tokenizer)
    talk = next(place for place, one in enumerate(source) if one.metadata.get("turn") == 2)
    lengths = [len(tokenizer(one.prompt).input_ids) for one in source[talk - 2 : talk + 1]]
    assert prompts[talk].history == sum(lengths[:2]) + 2 * (8 + FRAME)
    with pytest.raises(UserError, match=r"a later turn may have \d+ tokens.*truncate_left or skip"):
        read_prompts(job("task.max_new_tokens=200"), source, tokenizer)
    skipping, count = read_prompts(job("task.max_new_tokens=200", "task.too_long=skip"), source, tokenizer)
    assert count == 3 and [one.example.metadata.get("turn", 0) for one in skipping].count(2) == 0
    cutting = job("task.max_new_tokens=200", "task.too_long=truncate_left")
    kept, count = read_prompts(cutting, source, tokenizer)
    assert count == 0 and max(len(one.ids) + one.history for one in kept) == prompt_room(cutting)[0]


def conversations(job: Any, room: int) -> tuple[Conversations, list[Prompt], Any]:
    plan = settle(job)
    return Conversations(job.pair, job.task, plan.tokenizer, room, job.task.examples("test")), plan.prompts, plan


@pytest.mark.usefixtures("_hydra")
def test_in_chat_answers_are_the_assistants_and_whole_exchanges_go_first(talks: Path, tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / "target", tmp_path / "target")
    (tmp_path / "target" / "chat_template.jinja").write_text(TEMPLATE)
    job = build(compose("config", settings(talks, f"pair.models.target={tmp_path / 'target'}")))
    told, prompts, plan = conversations(job, 400)
    third = next(prompt for prompt in prompts if prompt.example.metadata.get("turn") == 2)
    names = {one.example_id: one for one in job.task.examples("test")}
    second = names[third.example.follows or ""]
    first = names[second.follows or ""]
    with pytest.raises(NoHistory, match=first.example_id):
        told.complete(third)
    answers = [Row(example_id=one.example_id, arm="vanilla", index=0, text=" Yes. ") for one in (first, second)]
    told.learn([*answers, Row(example_id=first.example_id, arm="sd", index=0, text="No.")])
    whole = told.complete(third)
    said = (
        f"[user]{first.prompt}\n[assistant]Yes.\n[user]{second.prompt}\n[assistant]Yes.\n[user]{third.example.prompt}\n"
    )
    assert plan.tokenizer.decode(whole.ids) == f"{said}[assistant]" and whole.truncated == 0
    for room, kept in (
        (len(whole.ids) - 1, f"[user]{second.prompt}\n[assistant]Yes.\n[user]{third.example.prompt}\n[assistant]"),
        (len(third.ids), f"[user]{third.example.prompt}\n[assistant]"),
    ):
        less, _, _ = conversations(job, room)
        less.learn(answers)
        cut = less.complete(third)
        assert plan.tokenizer.decode(cut.ids) == kept and cut.truncated == len(whole.ids) - len(cut.ids)


@pytest.mark.usefixtures("_hydra")
def test_in_plain_text_the_oldest_text_goes(talks: Path) -> None:
    job = build(compose("config", settings(talks)))
    told, prompts, _ = conversations(job, 20)
    second = next(prompt for prompt in prompts if prompt.example.metadata.get("turn") == 1)
    told.learn([Row(example_id=str(second.example.follows), arm="vanilla", index=0, text="Yes it is so. " * 5)])
    cut = told.complete(second)
    assert len(cut.ids) == 20 and cut.truncated > 0 and cut.ids[-5:] == second.ids[-5:]
