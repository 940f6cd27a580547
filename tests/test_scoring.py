"""Scoring in windows is what real readers would do, one window after the other."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from torch import Tensor

from viasd.engine import Engine
from viasd.models import Branches, Kept
from viasd.scoring import read_text, slim_rows

IDS = torch.randint(3, VOCABULARY, (61,), generator=torch.Generator().manual_seed(4)).tolist()
PROMPT, OUTPUT = IDS[:13], IDS[13:]
MASKS: dict[str, Kept] = {"layers": [0, 2, 3], "branches": Branches(attention=(0, 2), mlp=(0, 1, 3))}


def slow_rows(engine: Engine, kept: Kept, window: int, cache: str) -> Tensor:
    """The target reads up to where a window begins, the slim view reads the window; and so on."""
    readers = engine.readers()
    target, slim = readers.get("target"), readers.slim(kept, cache)
    target.start()
    slim.start()
    ids, first, rows = torch.tensor(IDS), len(PROMPT), []
    with torch.inference_mode():
        for start in range(first - 1, len(IDS) - 1, window):
            stop = min(start + window, len(IDS) - 1)
            if cache == "shared":
                slim.rewind(start)
            target.feed(ids, start, last=1)
            rows.append(slim.feed(ids, stop, last=stop - start))
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", [1, 5, 16, 100])
def test_windows_in_one_forward_are_those_of_real_readers(
    tiny: ModelFactory, family: str, mask: str, window: int
) -> None:
    """Contexts are longer than the sliding windows of the families that have one."""
    engine = Engine({"target": tiny(family, exact=family == "gemma2")}, VOCABULARY, 64, "eager")
    text = read_text(engine, PROMPT, OUTPUT)
    expected = slow_rows(engine, MASKS[mask], window, "shared")
    found = slim_rows(engine, MASKS[mask], text, "shared", window)
    assert found.shape == (len(OUTPUT), VOCABULARY)
    assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_rows_are_those_of_a_reader_with_its_own_cache(tiny: ModelFactory, family: str) -> None:
    engine = Engine({"target": tiny(family, exact=family == "gemma2")}, VOCABULARY, 64, "eager")
    text = read_text(engine, PROMPT, OUTPUT)
    separate = slim_rows(engine, [0, 2, 3], text, "separate")
    assert (separate - slow_rows(engine, [0, 2, 3], 7, "separate")).abs().max() < 1e-10
    assert (separate - slim_rows(engine, [0, 2, 3], text, "shared")).abs().max() > 0.01


def test_the_targets_own_rows(tiny: ModelFactory) -> None:
    """A view that keeps everything is the target, whatever the windows; and the text holds the target's rows."""
    model = tiny("qwen2")
    engine = Engine({"target": model}, VOCABULARY, 64)
    text = read_text(engine, PROMPT, OUTPUT)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
    assert (text.rows - expected).abs().max() < 1e-10
    for window in (1, 7, 16):
        assert (slim_rows(engine, range(4), text, "shared", window) - expected).abs().max() < 1e-10


def test_vocabulary_is_the_engines(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY - 8, 64)
    text = read_text(engine, PROMPT, OUTPUT)
    assert text.rows.shape == slim_rows(engine, [0, 3], text).shape == (len(OUTPUT), VOCABULARY - 8)


@pytest.mark.parametrize(("prompt", "output"), [([], [1]), ([1], [])])
def test_empty_texts(tiny: ModelFactory, prompt: list[int], output: list[int]) -> None:
    with pytest.raises(ValueError, match=r"a text of \d \+ \d tokens; accepted: a prompt and an output"):
        read_text(Engine({"target": tiny("llama")}, VOCABULARY, 8), prompt, output)
