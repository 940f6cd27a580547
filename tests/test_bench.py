"""The bench: the library's loops do what ours do, bytes counted by hand, and the command itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call, check_mistake
from conftest import VOCABULARY, WINDOW, ModelFactory

from experiments.arms import sd, vanilla
from experiments.bench import main
from experiments.benching import usage
from experiments.benching.loops import LibraryLoop, at_median, open_twins, same_outputs
from experiments.benching.setup import TWINS
from experiments.benching.show import cells, value
from experiments.benching.steps import bytes_to_read, copy_bandwidth
from experiments.benching.usage import HELP, measure_startup, time_command
from experiments.errors import RunFailed
from experiments.records import Row
from viasd.decode import Decode, Generation, Speculative
from viasd.engine import Engine
from viasd.sampling import Sampling, SeededDraws

PROMPT = [5, 9, 2, 11, 7]
DRAFTED = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.costs.REPEATS", 1)
    monkeypatch.setattr("experiments.costs.FED", (1, 6))
    monkeypatch.setattr("experiments.measure.WARM_UP_TOKENS", 4)


# --- the library's loops ------------------------------------------------------------------------------------------


def fed_tokens(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[int]:
    """A list that grows by what each forward of the model is fed."""
    fed: list[int] = []
    forward = model.forward

    def watched(*args: Any, **options: Any) -> Any:
        fed.append(options["input_ids"].shape[1])
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", watched, raising=False)
    return fed


@pytest.mark.parametrize("mode", ["eager", "fused"])
def test_library_loops_write_what_ours_write(
    tiny: ModelFactory, variant: ModelFactory, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And end neither an output nor a draft early."""
    target = variant(tiny("llama"), "noisy", 0.0)  # the shared one keeps its own settings and weights
    engine = Engine({"target": target, "draft": variant(target, "noisy", 0.02)}, VOCABULARY, 64, mode)
    decode, draws = Decode(Sampling(), 30), SeededDraws(0, "x")
    ours = vanilla().open(engine).generate(PROMPT, decode, draws).token_ids
    assert sd(vanilla()).open(engine).generate(PROMPT, decode, draws).token_ids == ours
    for role in engine.models:  # marks at which the library would end
        engine.models[role].generation_config.eos_token_id = ours[4]
    twins = open_twins(engine, DRAFTED)
    assert list(twins) == list(TWINS.values()) and list(open_twins(engine, None)) == [TWINS["vanilla"]]
    assert twins["generate"].generate(PROMPT, decode, draws).token_ids == ours
    judged, drafted = (fed_tokens(monkeypatch, engine.models[role]) for role in ("target", "draft"))
    assert twins["assisted"].generate(PROMPT, decode, draws).token_ids == ours
    assert judged[0] == len(PROMPT) + DRAFTED and set(judged[1:-1]) == {DRAFTED + 1}
    assert 1 < len(judged) < 30 and len(drafted) >= DRAFTED * (len(judged) - 1)


def row(arm: str, example: str, ids: list[int], error: str | None = None) -> Row:
    return Row(example, arm, 0, error=error, token_ids=ids)


def test_same_outputs() -> None:
    rows = [row("a", "1", [1, 2]), row("b", "1", [1, 2]), row("a", "2", [1, 2]), row("b", "2", [1, 3])]
    rows += [row("a", "3", [1]), row("b", "3", [], error="no memory"), row("a", "4", [1])]
    assert same_outputs(rows, "a", "b") == [True, False] and same_outputs(rows, "a", "c") == []


def test_repeats_count_by_their_median() -> None:
    one = Row("1", "a", 0, decode_seconds=[3.0, 1.0, 9.0], prefill_seconds=[0.1, 0.3, 0.2])
    reduced = at_median(one)
    assert (reduced.decode_seconds, reduced.prefill_seconds, reduced.first_token_seconds) == ([3.0], [0.2], [])


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "seen"), [("llama", 20), ("tied", 20), ("mistral", WINDOW + 1)])
def test_bytes_to_read(tiny: ModelFactory, family: str, seen: int) -> None:
    """Two tokens up to the 20th, in float64: counted by hand from the shapes in conftest."""
    target = tiny(family)
    engine = Engine({"target": target}, VOCABULARY, 32, "eager")
    reader = engine.readers().get("target")
    reader.feed(torch.zeros(20, dtype=torch.long), 20, last=0)
    attention, mlp, norms = 32 * (32 + 16 + 16) + 32 * 32, 3 * 32 * 48, 2 * 32
    embedded = 0 if family == "tied" else 2 * 32
    weights = 4 * (attention + mlp + norms) + 32 + VOCABULARY * 32 + embedded
    assert bytes_to_read(reader, 2, 20) == 8 * (weights + 4 * seen * 2 * 2 * 8)


def test_a_view_reads_its_own_layers(tiny: ModelFactory) -> None:
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 32)
    target = engine.readers().get("target")
    target.feed(torch.zeros(20, dtype=torch.long), 20, last=0)
    readers = engine.readers()
    slim = readers.slim([0, 3], "shared")
    layers = bytes_to_read(target, 1, 20) - bytes_to_read(slim, 1, 20)  # type: ignore[arg-type]
    assert layers == 8 * 2 * (32 * 64 + 32 * 32 + 3 * 32 * 48 + 64 + 20 * 2 * 2 * 8)


def test_copy_bandwidth() -> None:
    assert 1e7 < copy_bandwidth(torch.device("cpu"), 4) < 1e13


# --- start-up -----------------------------------------------------------------------------------------------------


def test_startup_times_the_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(usage, "time_command", lambda arguments: float(called.append(list(arguments)) or len(called)))
    ticks: list[None] = []
    found = measure_startup(["pair=reference"], 3, lambda: ticks.append(None))
    first, *others = called
    assert found == {"no-op run": 4.0, "--help": 5.0} and len(ticks) == len(called) == 7
    assert "pair=reference" in first and first[-1].startswith("results_dir=")
    assert others == [first, list(HELP)] * 3
    assert measure_startup([], 0, lambda: None) == {}


def test_a_start_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="a warning\nerror: no room\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(RunFailed, match=r"^start-up: experiments.run --help: error: no room$"):
        time_command(HELP)


def test_help_is_timed() -> None:
    assert 0 < time_command(HELP) < 60


# --- the command --------------------------------------------------------------------------------------------------

SMALL = [
    "tasks=[reasoning]", "prompts=2", "new_tokens=12", "repeats=1", "exact_prompts=1", "contexts=[]", "step_repeats=1",
    "copy_mib=1", "startup_repeats=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """How wide the table is depends on how long things took: a narrow terminal gets it in two parts."""
    monkeypatch.setenv("COLUMNS", "300")


def run(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    return call(capsys, main, *SMALL, f"results_dir={results}", *overrides)


def stored(results: Path) -> tuple[dict[str, Any], str]:
    """What was written: the JSON and the Markdown."""
    (path,) = (results / "bench").glob("*/*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content, path.with_suffix(".md").read_text()


def named(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The table's lines by name."""
    return {one["name"]: one for one in content["lines"]}


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["engine.dtype=float64", "contexts=[16,600]", "methods=[slim_only]"]
    code, out, err = run(capsys, tmp_path, *asked)
    assert code == 0, err
    content, text = stored(tmp_path)
    (folder,) = (tmp_path / "bench").iterdir()
    assert [path.name for path in sorted(folder.iterdir())] == ["reference_float64.json", "reference_float64.md"]
    assert all(char.isalnum() or char in "_.-" for char in folder.name)
    lines = named(content)
    assert len(lines) == len(content["lines"])
    for own, twin in TWINS.items():
        assert lines[f"{own} = {twin}, float64"]["value"] == 1
        assert lines[f"{own} / {twin}"]["low"] <= lines[f"{own} / {twin}"]["value"] <= lines[f"{own} / {twin}"]["high"]
    assert content["exact"] == {"vanilla": [True, True], "sd": [True, True]}
    assert set(content["seconds"]) == {"vanilla", "sd", "via_sd", "slim_only", *TWINS.values()}
    assert 0 < lines["sd: other"]["value"] < 1 and lines["via_sd: speedup / ideal"]["value"] > 0
    check_steps(content, lines)
    assert lines["via_sd / (vanilla + draft)"]["value"] == 1
    assert content["draft_length"] == 5 and "versions" in content["provenance"]
    check_agreement(content, out, text)


def check_steps(content: dict[str, Any], lines: dict[str, dict[str, Any]]) -> None:
    """Every reader at every context, judges with a draft, too; what is more than the models read is marked."""
    readers = {(step["reader"], step["fed"]) for step in content["steps"]["steps"]}
    judges = {(name, fed) for name in ("target", "mid", "slim") for fed in (1, 6)}
    assert readers == {("draft", 1)} | judges
    assert lines["target, 6 at 16"]["low"] <= lines["target, 6 at 16"]["value"]
    assert "of copy, eager/auto" in lines["target, 6 at 16"]["beside"]
    assert "ms/token" in lines["target, 6 at 16"]["beside"]
    assert lines["slim, 6 at 600"]["value"] > 0
    assert [name for name, one in lines.items() if "cost only" in one["beside"]] == ["at 600"]
    assert not any(one["part"] == "cuda" for one in lines.values())
    assert content["steps"]["unread"] == [] and content["steps"]["copy_bandwidth"] > 0


def check_agreement(content: dict[str, Any], out: str, text: str) -> None:
    """The terminal and the Markdown tell every line as the JSON has it."""
    printed = [line.split() for line in out.splitlines()]
    for one, row in zip(content["lines"], cells(content)[1:], strict=True):
        assert row[2] == value(one)
        assert " ".join(row).split() in printed
        assert f"| {' | '.join(row)} |" in text.splitlines()
    assert content["headline"] in out and content["headline"] in text


def spoil(
    monkeypatch: pytest.MonkeyPatch, loop: type, which: Callable[[Any], bool], spoiled: Callable[..., Any]
) -> None:
    """Let some decoders of a class do something else to what they generate."""
    generate = loop.generate  # type: ignore[attr-defined]

    def changed(self: Any, *args: Any, **options: Any) -> Generation:
        found = generate(self, *args, **options)
        return spoiled(found) if which(self) else found

    monkeypatch.setattr(loop, "generate", changed)


def test_a_loop_that_writes_something_else_is_noticed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_changed(found: Generation) -> Generation:
        found.token_ids[-1] ^= 1
        return found

    spoil(monkeypatch, Speculative, lambda loop: len(loop.readers.opened()) == 2, last_changed)  # sd
    code, out, err = run(capsys, tmp_path)
    (line,) = err.strip().splitlines()
    assert code == 1 and line == "error: sd and assisted differ in float64 on 1 of 1 prompts"
    content, text = stored(tmp_path)
    shares = {name: one["value"] for name, one in named(content).items() if " = " in name}
    assert shares == {
        "vanilla = generate, float32": 1,
        "vanilla = generate, float64": 1,
        "sd = assisted, float32": 0,
        "sd = assisted, float64": 0,
    }
    assert "note: sd and assisted differ" in out and "note: sd and assisted differ" in text


def test_what_the_library_refuses_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(found: Generation) -> Generation:
        raise ValueError("no such pair")

    spoil(monkeypatch, LibraryLoop, lambda loop: loop._draft is not None, refuse)
    code, out, err = run(capsys, tmp_path)
    assert code == 0, err
    content, _ = stored(tmp_path)
    lines = named(content)
    assert lines["assisted"]["value"] is lines["sd / assisted"]["value"] is None
    assert lines["vanilla / generate"]["value"] > 0 and "sd = assisted, float64" not in lines
    assert "note: assisted failed on 2 prompts, which are left out: ValueError: no such pair" in out


def test_pair_without_draft(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path, "~pair.models.draft", "method=vanilla", "contexts=[8]", "engine.mode=eager")
    assert code == 0, err
    content, _ = stored(tmp_path)
    assert set(content["seconds"]) == {"vanilla", "generate"} and content["draft_length"] is None
    assert {(step["reader"], step["fed"]) for step in content["steps"]["steps"]} == {("target", 1), ("mid", 1)}
    assert "sd left out" in out and "auto/eager" in out


MISTAKES = {
    "tasks=[resoning]": ["resoning", "'reasoning'"],
    "methods=[vanila]": ["methods: 'vanila'", "'vanilla'"],
    "methods=[random_gate]": ["methods: random_gate", "accepted"],
    "methods=[{assisted: 'stop.length=3'}]": ["methods: assisted", "generate, assisted"],
    "method=nope": ["method=nope", "via_sd"],
    "pair=nope": ["pair=nope", "reference"],
    "~pair.models.draft": ["role 'draft'", "target"],
    "prompts=0": ["prompts=0", "greater than or equal to 1"],
    "new_tokens=1000": ["new_tokens=1000", "smaller"],
    "contexts=[6]": ["contexts: 6", "more than 6"],
    "contexts=[many]": ["contexts.0='many'", "integer"],
    "repeats=few": ["repeats='few'", "integer"],
    "seed=-1": ["seed=-1", "greater than or equal to 0"],
    "engine.dtype=float8": ["engine.dtype='float8'", "'float32'"],
    "colour=red": ["colour", "no such key"],
    "results_dir=/dev/null/x": ["results_dir=", "writable"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str) -> None:
    code, _, err = run(capsys, tmp_path, typed)
    check_mistake(code, err, MISTAKES[typed])
