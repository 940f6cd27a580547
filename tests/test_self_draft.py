"""Self-speculation with a fixed view: the target's text and law, its cache after every round, and where blocks end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, ModelFactory
from doubles import TableReaders, Tables, enumerate_paths, largest_difference, law_of, spy_on
from test_cache import Watcher

from baselines.self_draft import SelfDrafter, view_readers
from baselines.stops.draft_exit import DraftExit, UnsureTrip
from experiments.config import CHECKOUT
from experiments.resolve import resolve_method
from viasd.blocks import DraftedBlock, cut_block
from viasd.decode import Decode
from viasd.drafting import FixedLength, NoDrafter
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Branches, Pair, PairError
from viasd.routing import RandomGate
from viasd.sampling import Sampling, SeededDraws
from viasd.verification import RuleVerifier, SlimView

PROMPT = torch.randint(3, VOCABULARY, (11,), generator=torch.Generator().manual_seed(2)).tolist()
VANILLA = Method(name="v", drafter=NoDrafter(), stop=FixedLength(length=0), verifier=RuleVerifier())
EXIT = DraftExit(threshold=0.5, max_length=5)
MASKS: dict[str, Any] = {"layers": [0, 2, 3], "branches": Branches(attention=(0, 1, 3), mlp=(0, 2, 3))}


def self_sd(mask: Any, cache: Any = "shared", stop: Any = EXIT, verifier: Any = None) -> Method:
    drafter = SelfDrafter(slim=SlimView(mask=mask, cache=cache))
    return Method(name="self_sd", drafter=drafter, stop=stop, verifier=verifier or RuleVerifier())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_vanillas_and_the_cache_the_targets(
    tiny: ModelFactory, family: str, cache: Any, mask: str
) -> None:
    engine = Engine({"target": tiny(family, exact=family == "gemma2")}, VOCABULARY, 64)
    decode = Decode(Sampling(), 30)
    expected = VANILLA.open(engine).generate(PROMPT, decode, SeededDraws(0, "a")).token_ids
    decoder = self_sd(MASKS[mask], cache).open(engine)
    watcher = Watcher(engine, decoder)
    watcher.readers = {role: one for role, one in watcher.readers.items() if mask == "layers" or role == "target"}
    generation = decoder.generate(PROMPT, decode, SeededDraws(0, "a"), watch=watcher)
    assert generation.token_ids == expected
    assert set(generation.calls) == {"target", "draft"} and generation.calls["target"] == len(generation.rounds)
    # each block's last token is not fed; what it drafted is what it was called for
    assert generation.calls["draft"] == sum(round_.drafted for round_ in generation.rounds)
    if cache == "shared":  # the target has read all but the last token when a block begins
        assert generation.fed["draft"] == generation.calls["draft"]


@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("stop", [FixedLength(length=2), DraftExit(threshold=0.4, max_length=3)], ids=["2", "exit"])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling(temperature=0.7, top_p=0.85)], ids=str)
def test_the_law_is_the_targets(cache: Any, stop: Any, sampling: Sampling) -> None:
    tables = Tables(3)
    law = law_of(enumerate_paths(self_sd([0], cache, stop), tables, sampling, 3))
    assert largest_difference(law, law_of(enumerate_paths(VANILLA, tables, sampling, 3))) < 1e-9


def test_the_exit_looks_at_raw_rows_and_keeps_the_token() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 0.1], [0.0, 3.0]])
    tokens, warm = torch.tensor([1, 1, 1]), Sampling(temperature=0.05)  # under which the second one is sure too
    block = (tokens, logits.softmax(-1), logits)
    drawn, top = (UnsureTrip(0.8, of, row_alone=of == "top") for of in ("drawn", "top"))
    assert cut_block(DraftedBlock(*block), warm, drawn).tokens.tolist() == [1, 1]
    assert top.trips(0, torch.tensor([0, 0, 0]), logits, warm).tolist() == [False, True, False]
    assert drawn.trips(0, torch.tensor([0, 0, 0]), logits, warm).tolist() == [True, True, True]
    stop = DraftExit(threshold=0.7, max_length=9, of="top").open_stop()
    assert stop.limit(None) == 9 and stop.trip == UnsureTrip(0.7, "top", row_alone=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["lossy", "exact"])
def test_under_a_slim_verifier_on_the_same_cache(tiny: ModelFactory, mode: Any) -> None:
    """The drafter leans on the weakest of its views, and may keep no layer that that one lacks."""
    engine = Engine({"target": tiny("llama")}, VOCABULARY, 64)
    gate = RandomGate(keep=0.5, rewrite=0.3, escalate=0.2)

    def over(kept: list[int], cache: Any = "shared") -> Any:
        verifier = Hierarchical(gate=gate, slim=SlimView(mask=[0, 2, 3], cache=cache), mode=mode, max_pending=6)
        return self_sd(kept, verifier=verifier).open(engine)

    for decoder in (over([0, 3]), over([0, 1, 3], "separate")):
        spy_on(decoder)
        watcher = Watcher(engine, decoder)
        generation = decoder.generate(PROMPT, Decode(Sampling(temperature=1.0), 30), SeededDraws(1, "a"), watch=watcher)
        assert len(generation.token_ids) == 30 and generation.calls["slim"] > 0
    opened = {reader.role: reader for reader in over([0, 3]).readers.opened()}
    assert opened["draft"].stronger is opened["slim"]  # type: ignore[attr-defined]
    with pytest.raises(PairError, match="draft: layer 1 is not one of the stronger slim verifier"):
        over([0, 1, 3])


def test_auto_takes_the_pairs_searched_mask() -> None:
    masks = ["viasd://reference/masks/skip_45.json"]
    pair = Pair(name="p", models={"target": "viasd://reference/target"}, masks=masks)
    drafter = SelfDrafter(slim=SlimView(mask="auto", skip_ratio=0.45))
    method = Method(name="m", drafter=drafter, stop=EXIT, verifier=RuleVerifier())
    settled, notice = resolve_method(method, pair)
    assert settled.drafter.slim.mask == [0, 4, 5, 7, 8, 10, 12, 13, 15] and notice is None  # type: ignore[attr-defined]
    uneven = SelfDrafter(slim=SlimView(mask="auto", skip_ratio=0.3))
    settled, notice = resolve_method(Method(name="m", drafter=uneven, stop=EXIT, verifier=RuleVerifier()), pair)
    assert notice is not None and "skip_ratio=0.3" in notice
    assert (CHECKOUT / "conf" / "method" / "self_sd.yaml").exists()


def test_tables_have_no_changing_views() -> None:
    with pytest.raises(TypeError, match="readers of an engine"):
        view_readers(TableReaders(Tables(0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("threshold", 1.5), ("max_length", 0), ("of", "second")])
def test_configuration_is_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        DraftExit(**{key: value})  # type: ignore[arg-type]
