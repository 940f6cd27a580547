"""Prompts through a chat template: which pairs have one, what is read, what is cut, what a task becomes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import CHECKOUT, build
from experiments.errors import UserError
from experiments.plan import read_prompts, settle
from experiments.prompting import ChatTokenizer, open_prompting, speaks_chat
from viasd.models import Pair, load_tokenizer

REFERENCE = CHECKOUT / "viasd" / "reference"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }} {{ date_string }}>{{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}<thinks>{% endif %}<answer>"
)
HEAD, TAIL = "<user 26 Jul 2024>", "\n<answer>"


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.fixture
def chat_target(tmp_path: Path) -> Path:
    """The reference target with a chat template."""
    folder = tmp_path / "target"
    shutil.copytree(REFERENCE / "target", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def pair(target: Path) -> Pair:
    return Pair(name="p", models={"target": str(target)})


def test_a_template_decides_unless_the_pair_does(chat_target: Path) -> None:
    assert speaks_chat(pair(chat_target)) and not speaks_chat(pair(REFERENCE / "target"))
    assert not speaks_chat(replace(pair(chat_target), chat="plain"))
    assert speaks_chat(replace(pair(chat_target), chat="chat"))
    with pytest.raises(UserError, match=r"pair\.chat=chat: .*no chat template.*accepted: plain"):
        speaks_chat(replace(pair(REFERENCE / "target"), chat="chat"))


def test_a_template_in_the_configuration_is_found(chat_target: Path) -> None:
    (chat_target / "chat_template.jinja").unlink()
    assert not speaks_chat(pair(chat_target))
    config = json.loads((chat_target / "tokenizer_config.json").read_text())
    (chat_target / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    assert speaks_chat(pair(chat_target))


def test_a_prompt_is_a_users_message_and_the_template_alone_frames_it(chat_target: Path) -> None:
    plain, asked = load_tokenizer(pair(chat_target)), open_prompting(pair(chat_target))
    told = plain(f"{HEAD}Hello there{TAIL}", add_special_tokens=False).input_ids
    assert isinstance(asked, ChatTokenizer) and asked("Hello there").input_ids == told
    assert plain("Hello there").input_ids[0] == plain.bos_token_id != told[0]
    assert asked.eos_token_id == plain.eos_token_id


def test_what_is_too_long_loses_the_oldest_text_and_keeps_its_frame(chat_target: Path) -> None:
    asked = open_prompting(pair(chat_target))
    text = " ".join(str(n) for n in range(100))
    room = len(asked(text).input_ids) - 60
    ids = asked.shorten(text, room)
    assert len(ids) <= room
    told = asked.decode(ids)
    assert told.startswith(HEAD) and told.endswith(f"98 99{TAIL}") and "<user 26 Jul 2024>0 1 2" not in told
    with pytest.raises(UserError, match="the chat template alone takes"):
        asked.shorten(text, 3)


def job(tmp_path: Path, target: Path, *more: str) -> Any:
    rows = "".join(json.dumps({"prompt": f"Add {n} and {n}. " * 12, "answer": str(2 * n)}) + "\n" for n in range(6))
    (tmp_path / "sums.jsonl").write_text(rows)
    overrides = [
        "task=jsonl", f"task.path={tmp_path / 'sums.jsonl'}", "task.reference_field=answer", "task.metric=final_number",
        "task.form.prompt='{prompt} ='", "task.form.chat_prompt='{prompt}'",
        "task.stop_strings=[STOP]", "task.chat_stop_strings=[END]", "task.too_long=truncate_left",
        f"pair.models.target={target}", f"results_dir={tmp_path / 'results'}", "arms=[vanilla]", "track=none", *more,
    ]  # fmt: skip
    return build(compose("config", overrides))


def test_a_chat_pair_is_asked_the_tasks_chat_prompt(tmp_path: Path, chat_target: Path) -> None:
    asked, plain = job(tmp_path, chat_target), job(tmp_path, REFERENCE / "target")
    assert (asked.task.stop_strings, plain.task.stop_strings) == (("END",), ("STOP",))
    plans = [settle(one, may_measure=True) for one in (asked, plain)]
    assert [plan.identity["chat"] for plan in plans] == [True, False]
    texts = [plan.tokenizer.decode(plan.prompts[0].ids) for plan in plans]
    assert texts[0].startswith(HEAD) and texts[0].endswith(TAIL) and "=" not in texts[0]
    assert texts[1].endswith(" =") and HEAD not in texts[1]
    again = settle(asked, may_measure=False)  # from the stored ids
    assert [one.ids for one in again.prompts] == [one.ids for one in plans[0].prompts]


def test_cut_prompts_of_a_chat_are_counted(tmp_path: Path, chat_target: Path) -> None:
    asked = job(tmp_path, chat_target, "task.max_new_tokens=440")
    plan = settle(asked)
    assert all(prompt.truncated and len(prompt.ids) <= 72 for prompt in plan.prompts)
    assert plan.tokenizer.decode(plan.prompts[0].ids).startswith(HEAD)
    assert any("6 of 6 test prompts are too long and lost their oldest text" in notice for notice in plan.notices)
    assert read_prompts(asked, asked.task.examples("test"), open_prompting(asked.pair))[1] == 0
