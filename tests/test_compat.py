"""VIA-SD over every drafter of chains: what can be composed writes the target's text, what cannot says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from doubles import spy_on
from hydra import compose, initialize_config_dir
from test_exact import check_totals

from experiments.arms import vanilla
from experiments.config import CHECKOUT, Job, build
from experiments.resolve import resolve_method
from viasd.decode import Decode, Generation
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import PairError, load_tokenizer
from viasd.sampling import Sampling, SeededDraws

DRAFTERS = sorted(path.stem for path in (CHECKOUT / "conf" / "method" / "drafter").glob("*.yaml"))
TREES = {"draft_tree"}
DECODE = Decode(Sampling(), 24)
SEPARATE = "method.verifier.slim.cache=separate"
RANDOM = "method.drafter.every=0"  # SWIFT's other candidates need a package that is not always there
NEEDED: dict[str, list[str]] = {  # beside a hierarchical verifier
    "eagle": ["method.drafter.tree=null"],
    "self": ["method.drafter.slim.cache=separate"],  # on one cache its layers would have to be nested
    "swift": [SEPARATE, RANDOM],  # these change their layers on the target's cache
    "clasp": [SEPARATE, "method.drafter.interval=2"],
    "cascade": ["method.stop.length=6"],
    "cascade_mid": ["method.stop.length=6"],
}
GATES: dict[str, list[str]] = {
    "exact": ["method=via_sd_exact", "method.verifier.calls=null", "method.verifier.max_pending=7"],
    "escalating": [
        "method=via_sd",
        "method/verifier/gate=random",
        "method.verifier.gate.keep=0",
        "method.verifier.gate.escalate=1",
    ],
}


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def job_of(gate: str, drafter: str, *more: str) -> Job:
    return build(compose("config", [*GATES[gate], f"method/drafter={drafter}", *more]))


def method_of(gate: str, drafter: str, *more: str) -> Method:
    job = job_of(gate, drafter, *more)
    settled, _ = resolve_method(job.method, job.pair)
    assert isinstance(settled, Method)
    settled.check(Sampling())
    return settled


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The reference pair in float64, with all that any drafter runs."""
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        pair = build(compose("config")).pair
    return Engine.load(pair, ["target", "draft", "mid"], "cpu", "float64", 192)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """A question whose answer repeats words of it, so that looking up finds some."""
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        job = build(compose("config", ["task=summarization", "task.test_size=4"]))
    ids: list[int] = load_tokenizer(job.pair)(job.task.examples("test", 1)[0].prompt).input_ids
    return ids


@pytest.fixture(scope="module")
def expected(engine: Engine, prompt: list[int]) -> list[int]:
    return vanilla().open(engine).generate(prompt, DECODE, SeededDraws(0, "a")).token_ids


def decoded(method: Method, engine: Engine, prompt: list[int]) -> tuple[Generation, Any]:
    decoder = method.open(engine)
    spy = spy_on(decoder)
    generation = decoder.generate(prompt, DECODE, SeededDraws(0, "a"))
    check_totals(generation, spy.drafts) if generation.rounds[0].held is None else None
    return generation, spy


@torch.inference_mode()
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("drafter", sorted(set(DRAFTERS) - TREES))
def test_the_text_is_the_targets(
    engine: Engine, prompt: list[int], expected: list[int], drafter: str, gate: str
) -> None:
    method = method_of(gate, drafter, *NEEDED.get(drafter, []))
    generation, spy = decoded(method, engine, prompt)
    assert generation.token_ids == expected
    drafted = sum(map(len, spy.drafts))
    assert (drafted == 0) == (drafter == "none")
    assert drafter == "none" or generation.calls["slim"] > 0
    if gate == "exact" and drafter != "none":
        assert any(one.committed == 0 for one in generation.rounds)  # provisional


@pytest.mark.parametrize("drafter", sorted(TREES) + ["eagle"])
def test_trees_are_refused(drafter: str) -> None:
    with pytest.raises(ValueError, match=r"method\.verifier: Hierarchical reads chains.*drafter\.tree=null") as raised:
        method_of("exact", drafter)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("drafter", "told"),
    [
        ("swift", "slim: a drafter changes its layers on the target's cache; accepted: cache=separate"),
        ("clasp", "slim: a drafter changes its layers on the target's cache; accepted: cache=separate"),
        (
            "self",
            "draft: layer .* is not one of the stronger slim verifier.*accepted.*nested masks, else cache=separate",
        ),
    ],
)
def test_what_cannot_be_composed_says_what_can(engine: Engine, drafter: str, told: str) -> None:
    with pytest.raises(PairError, match=told) as raised:
        method_of("exact", drafter, *[RANDOM] * (drafter == "swift")).open(engine)
    assert "\n" not in str(raised.value)
