"""What a job's prompts become when they leave no room for an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from experiments.config import CHECKOUT, Job, build
from experiments.errors import UserError
from experiments.measure import Prompt
from experiments.plan import read_prompts, size_notices
from viasd.models import load_tokenizer

CONTEXT = 512  # of the reference pair
ROOM = 60  # tokens left for a prompt, less than some have


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def job(room: int, too_long: str) -> Job:
    """A job whose prompts may have `room` tokens."""
    overrides = ["task=qa", "task.test_size=30", f"task.max_new_tokens={CONTEXT - room}", f"task.too_long={too_long}"]
    return build(compose("config", overrides))


def read(room: int, too_long: str) -> tuple[list[list[int]], list[Prompt], int]:
    """The ids of all prompts, those that were read, and the number skipped."""
    asked = job(room, too_long)
    tokenizer, source = load_tokenizer(asked.pair), asked.task.examples("test")
    return [tokenizer(one.prompt).input_ids for one in source], *read_prompts(asked, source, tokenizer)


def test_an_error_names_the_ways_out() -> None:
    with pytest.raises(UserError, match=r"task\.max_new_tokens=452.*truncate_left or skip"):
        read(ROOM, "error")


def test_truncation_keeps_the_begin_mark_and_the_newest_text() -> None:
    whole, prompts, skipped = read(ROOM, "truncate_left")
    assert skipped == 0 and [prompt.index for prompt in prompts] == list(range(30))
    assert {len(prompt.ids) for prompt in prompts if prompt.truncated} == {ROOM}
    assert any(prompt.truncated for prompt in prompts) and not all(prompt.truncated for prompt in prompts)
    for ids, prompt in zip(whole, prompts, strict=True):
        assert prompt.truncated == max(0, len(ids) - ROOM)
        assert prompt.ids[0] == ids[0] and prompt.ids[1:] == ids[1 + prompt.truncated :]


def test_cut_prompts_are_counted_in_a_notice() -> None:
    asked = job(ROOM, "truncate_left")
    tokenizer, source = load_tokenizer(asked.pair), asked.task.examples("test")
    prompts, skipped = read_prompts(asked, source, tokenizer)
    cut = sum(len(tokenizer(one.prompt).input_ids) > ROOM for one in source)
    notices = size_notices(asked, len(source), prompts, skipped)
    assert f"task qa: {cut} of 30 test prompts are too long and lost their oldest text" in notices


def test_skipped_prompts_are_counted_and_leave_no_gap() -> None:
    whole, prompts, skipped = read(ROOM, "skip")
    assert [prompt.ids for prompt in prompts] == [ids for ids in whole if len(ids) <= ROOM]
    assert skipped == 30 - len(prompts) > 0
    assert [prompt.index for prompt in prompts] == list(range(len(prompts)))
    with pytest.raises(UserError, match="all 30 prompts"):
        read(10, "skip")
