"""One prompt: the answer with its sources, safe to print, and mistakes in one line."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import call, check_mistake
from hub_layout import make_model, save_model

from experiments.ask import main
from experiments.asking.texts import clean, legend, paint, split_text
from viasd.models import Pair, load_tokenizer

PROMPT = "Ann has 3 apples and finds 4 more. How many apples has Ann?"


def answer(capsys: pytest.CaptureFixture[str], results: Path, *typed: str) -> tuple[int, str, str]:
    return call(capsys, main, *typed, "engine.threads=1", f"results_dir={results}")


def test_an_answer_of_the_reference_pair(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No terminal: sources in brackets. The table's numbers are those of the text."""
    code, out, err = answer(capsys, tmp_path, PROMPT, "max_new_tokens=24", "compare=true")
    assert code == 0, err
    text, _, rest = out.partition("\n\n[draft] drafted and kept")
    assert re.match(r"\[(draft|slim|target)\]", text) and "\x1b" not in out
    (line, vanilla) = re.findall(r"^(?:via_sd|vanilla) .*$", rest, re.M)
    _, tokens, _, rounds, each, _, tiers, _, speed = re.split(r" {2,}", line)
    assert float(each) == pytest.approx(int(tokens) / int(rounds), abs=0.005) and float(speed) > 0
    assert sum(map(float, tiers.split("/"))) == pytest.approx(1, abs=0.02)
    assert re.split(r" {2,}", vanilla)[3] == re.split(r" {2,}", vanilla)[1]  # a round for each token
    assert re.search(r"times as fast per token as vanilla; (the same|another) text", rest)


def test_colors_on_a_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))
    code, out, err = answer(capsys, tmp_path, "-", "method=sd", "max_new_tokens=8")
    assert code == 0, err
    assert "\x1b[32m" in out and "\x1b[36m" in out and "[draft]" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    code, plain, err = answer(capsys, tmp_path, PROMPT, "method=sd", "max_new_tokens=8")
    assert code == 0 and "\x1b" not in plain, err
    colored, bracketed = (text.split("\n\n")[0] for text in (out, plain))
    assert re.sub(r"\x1b\[\d*m", "", colored) == re.sub(r"\[(draft|target)\]", "", bracketed)


def test_folders_and_a_loop_of_the_library(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [f"pair.models.{role}={save_model(tmp_path / role, make_model('qwen3', seed=0, layers=layers))}"
              for role, layers in (("target", 3), ("draft", 2))]  # fmt: skip
    code, out, err = answer(
        capsys, tmp_path, PROMPT, "pair=local", *models, "method=hf_assisted", "max_new_tokens=6", "compare=true"
    )
    assert code == 0, err
    assert out.startswith("[target]") and "the same text" in out


MISTAKES = {
    "no prompt": ([], ["no prompt", "standard input"]),
    "an override first": (["method=sd"], ["method=sd", "the prompt comes first"]),
    "another role": ([PROMPT, "method.drafter.role=tiny"], ["role 'tiny'", "draft"]),
    "too long": ([PROMPT, "max_new_tokens=5000"], ["max_new_tokens=5000", "reads 512", "at most"]),
    "no number": ([PROMPT, "max_new_tokens=many"], ["max_new_tokens='many'", "integer"]),
    "an unknown pair": ([PROMPT, "pair=referense"], ["pair=referense", "'reference'"]),
    "an unknown key": ([PROMPT, "limit=3"], ["limit", "no such key"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(capsys: pytest.CaptureFixture[str], name: str) -> None:
    typed, named = MISTAKES[name]
    code, _, err = call(capsys, main, *typed)
    check_mistake(code, err, named)


# --- texts --------------------------------------------------------------------------------------------------------


def pieces_of(*texts: str) -> list[tuple[str, str]]:
    return [(("draft", "target")[at % 2], text) for at, text in enumerate(texts)]


MALICIOUS = {
    "colors": (["a\x1b[31mb"], "ab"),
    "a sequence over three tokens": (["a\x1b", "[3", "1;1Hb"], "ab"),
    "the title of a terminal": (["a\x1b]0;own", "ed\x07b"], "ab"),
    "a link": (["\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\"], "text"),
    "C1 controls": (["a\x9b31mb\x9d0;title\x9cc"], "abc"),
    "cursor and screen": (["\x1b[2J\x1b[Habc\x1bc\x1b(0"], "abc"),
    "bells, backspaces, carriage returns": (["a\x07\x08b\rc\x00\x7f"], "abc"),
    "a direction override": (["a\u202eb\u2066c"], "abc"),
    "a sequence without an end": (["abc\x1b[", "38;5"], "abc"),
    "line breaks and tabs": (["a\n\tb", "\u2028c"], "a\n\tbc"),
    "what looks like one": (["[31m \\x1b[31m"], "[31m \\x1b[31m"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_what_a_model_writes_cannot_reach_the_terminal(name: str) -> None:
    texts, shown = MALICIOUS[name]
    cleaned = clean(pieces_of(*texts))
    assert "".join(text for _, text in cleaned) == shown
    ours = re.compile(r"\x1b\[(32|33|36|0?)m")
    assert "\x1b" not in ours.sub("", paint(cleaned, colored=True)) and "\x1b" not in paint(cleaned, colored=False)


def test_each_character_keeps_its_source() -> None:
    assert clean([("draft", "a\x1b["), ("slim", "31"), ("target", "mb"), ("target", "c")]) == [
        ("draft", "a"),
        ("target", "bc"),
    ]
    assert paint([("draft", "a"), ("target", "b")], colored=False) == "[draft]a[target]b"
    assert all(word in legend(colored) for colored in (True, False) for word in ("draft", "slim", "target"))


def test_characters_of_several_tokens_go_to_the_last() -> None:
    tokenizer = load_tokenizer(Pair(name="p", models={"target": "viasd://reference/target"}))
    ids: Sequence[int] = tokenizer("héé €", add_special_tokens=False).input_ids
    sources = [("draft", "slim", "target")[at % 3] for at in range(len(ids))]
    pieces = split_text(ids, sources, tokenizer.decode)
    assert "".join(text for _, text in pieces) == "héé €" and len(pieces) < len(ids)
    assert pieces[-1][0] == sources[-1]
