"""The modelled stop rules of the probe: what hindsight and SpecDec++'s oracle draft, counted again without the loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, ModelFactory
from test_probe import NearTables, job_of, table_forced

from experiments.arms import vanilla
from experiments.probing.agreement import Forced, Sureness, force
from experiments.probing.bounds import LONGEST, REJECTION, SHORTEST, Ideal, bounds
from experiments.probing.predict import replay
from experiments.probing.setup import Prompt, View
from viasd.decode import Decode
from viasd.drafting import DraftModel, FixedLength
from viasd.engine import Engine
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.routing import RatioGate
from viasd.sampling import Sampling
from viasd.verification import RuleVerifier, SlimView

TEXT = [5, 9, 2, 11, 7]


def test_hindsight_drafts_what_is_kept() -> None:
    """Runs of equal first choices, each ended by one that differs, which the target writes."""
    fewer = 0
    for seed in range(20):
        length = 12
        made = table_forced(NearTables(seed, vocabulary=5, spread=2.0), length, length, 4)
        forced = replace(made, sureness={role: Sureness([], []) for role in ("target", "draft")})
        equal = (forced.rows["draft"].argmax(-1) == forced.rows["target"].argmax(-1))[:length].tolist()
        method = Method(name="ideal", drafter=DraftModel(), stop=FixedLength(), verifier=RuleVerifier())
        found = replay(replace(method, stop=Ideal(forced)), forced)
        assert found.drafted == sum(equal) and found.rejected == 0 and found.tokens == found.equal == length
        assert found.rounds == found.calls("target") == equal.count(False) + equal[-1]
        assert found.calls("draft") == found.drafted
        fixed = [replay(replace(method, stop=FixedLength(length=n)), forced) for n in range(1, 7)]
        assert all(found.rounds <= one.rounds for one in fixed)
        fewer += all(found.rounds < one.rounds or found.drafted < one.drafted for one in fixed)
    assert fewer > 15


@pytest.fixture(scope="module")
def engine(tiny: ModelFactory, variant: ModelFactory) -> Engine:
    target = tiny("llama")
    return Engine({"target": target, "draft": variant(target, "noisy", 0.03)}, VOCABULARY, 80)


def test_specdec_oracle_counts_what_is_drafted(engine: Engine) -> None:
    everything = View("chosen", 0.0, [0, 1, 2, 3], 4)
    job = job_of(Hierarchical(gate=RatioGate(), slim=SlimView(mask=everything.kept)), everything)
    prompt = Prompt("any", TEXT, Decode(Sampling(), 50))
    forced = force(engine, job, vanilla().open(engine), prompt)
    found = bounds(engine, job, forced)
    assert list(found) == [("ideal", 0), ("specdec_oracle", 0)]
    oracle, hindsight = found["specdec_oracle", 0], found["ideal", 0]
    drafted = by_hand(engine, forced)
    assert len(set(drafted)) >= 3 and min(drafted[:-1]) >= SHORTEST
    assert (oracle.rounds, oracle.drafted, oracle.tokens, oracle.equal) == (len(drafted), sum(drafted), 50, 50)
    assert oracle.calls("target") == len(drafted) and oracle.calls("draft") == sum(drafted)
    fed = sum(size * count for (role, size), count in oracle.steps.items() if role == "target")
    assert fed == sum(drafted) + len(drafted)  # its own looks at the target are not among them
    assert hindsight.rounds <= oracle.rounds and hindsight.drafted <= oracle.drafted
    assert engine.probe.watch is None
    assert bounds(engine, replace(job, drafter=None), forced) == {}


def by_hand(engine: Engine, forced: Forced) -> list[int]:
    """Tokens drafted in each round, from whole forwards of both models."""
    ids, end, drafted = list(TEXT), len(TEXT) + forced.length, []
    while len(ids) < end:
        text, shares = list(ids), [1.0]  # the first judged token is one that was committed
        while len(text) - len(ids) < min(LONGEST, end - len(ids)):
            rows = {role: model(torch.tensor([text])).logits[0, -1] for role, model in engine.models.items()}
            token = int(rows["draft"].argmax())
            text.append(token)
            kept = torch.tensor(shares).prod()
            shares.append(min(1.0, float(rows["target"].softmax(-1)[token] / rows["draft"].softmax(-1)[token])))
            if len(text) - len(ids) >= SHORTEST and 1 - kept > REJECTION:
                break
        drafted.append(len(text) - len(ids))
        choices = engine.models["target"](torch.tensor([text])).logits[0].argmax(-1).tolist()
        while len(ids) < len(text) and choices[len(ids) - 1] == text[len(ids)]:
            ids.append(text[len(ids)])
        ids.append(choices[len(ids) - 1])
        del ids[end:]
    return drafted
