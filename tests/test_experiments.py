"""The experiments by name: each composes, its arms derive on the reference pair, and its size changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from experiments.arms import Context, derive
from experiments.config import CHECKOUT, Job, build
from experiments.errors import CONF, UserError
from experiments.frontier import is_free
from experiments.identity import model_hash
from experiments.resolve import describe_slim, resolve_mask, resolve_method
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Pair, locate
from viasd.verification import SlimView

EXPERIMENTS = sorted(path.stem for path in (CHECKOUT / "conf" / "experiment").glob("*.yaml"))
SIZED = [name for name in EXPERIMENTS if name != "first_light"]
ASKED = {
    "tiers", "mask_search", "intermediate_source", "readings", "thresholds", "skip_ratio", "draft_length", "gates",
    "budget", "cache_sharing", "frontier", "stop_rules", "adasd", "lossy_frontier", "self_speculation",
    "eagle_versions", "tree_shape", "via_sd_compat", "vsd_ablation", "vsd_ablation_draft",
}  # fmt: skip
REQUESTS = 2400  # of a default size, at 0.25 seconds each ten minutes; a timed example is run three times
SETTLED: dict[str, dict[str, Method]] = {}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with every drafter that scripts/train_vsd.py trains: all of them the shipped ones."""
    made, config = tmp_path_factory.mktemp("results"), yaml.safe_load((CONF / "train_vsd.yaml").read_text())
    for drafter, arm, seed in product(("head", "draft"), config["arms"], config["seeds"]):
        folder = made / "training" / "vsd" / f"{drafter}_{arm}_{seed}"
        folder.mkdir(parents=True)
        (folder / "ablation.json").write_text("{}")
        for file in locate("viasd://reference/" + {"head": "eagle3", "draft": "draft"}[drafter]).iterdir():
            (folder / file.name).symlink_to(file)
    return made


@pytest.fixture(autouse=True)
def _hydra(results: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VIASD_RESULTS", str(results))
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The reference pair, with weights of a learned gate for the default slim view, whatever they are."""
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        job = build(compose("config"))
    assert isinstance(job.method.verifier, Hierarchical)
    slim = job.method.verifier.slim
    assert isinstance(slim, SlimView)
    owner = describe_slim(replace(slim, mask=resolve_mask(slim, job.pair)[0]))
    rows = {name: [0.0] * 9 for name in ("agree", "target_top", "distance")}
    content = {
        "target_hash": model_hash(job.pair.path("target")),
        "slim": owner,
        "weights": rows,
        "bonus_weights": rows,
    }
    path = tmp_path_factory.mktemp("gates") / "gate.json"
    path.write_text(json.dumps(content))
    return replace(job.pair, gates=[*job.pair.gates, str(path)])


@cache
def composed(name: str, *more: str) -> Any:
    return compose("config", [f"experiment={name}", *more], return_hydra_config=True)


def settled(name: str, pair: Pair) -> dict[str, Method]:
    """The arms of an experiment as they will run, masks and weights included."""
    if name not in SETTLED:
        job = build(composed(name))
        pair = replace(job.pair, gates=pair.gates)  # some have drafters of their own
        composition, shares = job.composed["method"], (0.5, 0.1, 0.4, 0.0)
        context = Context(job.method, composition, pair, lambda: shares, lambda arm: resolve_method(arm, pair)[0])
        SETTLED[name] = derive(job.settings.arms, context)[0]
    return SETTLED[name]


def jobs(name: str) -> int:
    """How many runs the product of the experiment's sweep has."""
    params = composed(name)["hydra"]["sweeper"]["params"]
    return prod(len(str(values).split(",")) for values in params.values())


def test_every_experiment_that_is_asked_for_is_there() -> None:
    assert set(EXPERIMENTS) >= ASKED


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arms_derive_on_the_reference_pair(name: str, pair: Pair) -> None:
    arms, asked = settled(name, pair), build(composed(name)).settings.arms
    labels = [arm if isinstance(arm, str) else next(iter(arm)) for arm in asked]
    assert len(labels) == len(set(labels)) == len(arms), "two arms have one label, or are one method"
    assert {"vanilla", "sd"} <= set(arms) and max(map(len, labels)) <= 17
    assert all(label.replace("@", "").replace(".", "").replace("_", "").isalnum() for label in labels)


@pytest.mark.parametrize("name", SIZED)
def test_sizes(name: str) -> None:
    """A product over the five tasks; the default size is small, and a size decides on nothing but the examples."""
    usual, full = build(composed(name)), build(composed(name, "size=full"))
    assert jobs(name) == 5
    timed, judged = usual.settings.limit, usual.settings.detail_limit
    assert (full.settings.limit, full.settings.quality_limit) == (40, 400) and timed < 40 and judged < 400
    assert len(usual.settings.arms) * jobs(name) * (2 * timed + judged) <= REQUESTS
    assert usual.settings.table_name == f"{name}_{timed}" and full.settings.table_name == f"{name}_40"
    same = replace(
        full.settings, limit=timed, quality_limit=usual.settings.quality_limit, table_name=usual.settings.table_name
    )
    assert same == usual.settings and identified(usual) == identified(full)


def identified(job: Job) -> list[Any]:
    """The parts of a job that a run's identity is made of."""
    return [job.method, job.pair, job.task, job.sampling, job.engine, job.settings.seed, job.settings.repeats]


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"size=ful: not found; did you mean 'full'\?; accepted: default, full"):
        build(composed("tiers", "size=ful"))
    assert build(composed("tiers", "limit=3")).settings.limit == 3


def test_tiers_are_nested(pair: Pair) -> None:
    arms = settled("tiers", pair)
    for label, tiers in (("t3", 1), ("t4", 2), ("t5", 3), ("t5_def", 3)):
        verifier = arms[label].verifier
        assert isinstance(verifier, Hierarchical) and len(verifier.tiers) == tiers
        masks = [set(tier.slim.mask) for tier in verifier.tiers]  # type: ignore[attr-defined]
        assert all(weak < strong for weak, strong in pairwise(masks))
        assert all(tier.gate == verifier.gate for tier in verifier.tiers)
    assert arms["t5"].verifier.gate != arms["t5_def"].verifier.gate  # type: ignore[attr-defined]


def test_gates_has_every_gate_on_one_slim_view(pair: Pair) -> None:
    arms = settled("gates", pair)
    yamls = {path.stem for path in (CHECKOUT / "conf" / "method" / "verifier" / "gate").glob("*.yaml")}
    assert yamls - {"ratio", "random"} <= set(arms) and {"via_sd", "random_gate"} <= set(arms)
    slims = {str(arms[name].verifier.slim) for name in yamls & set(arms)}  # type: ignore[attr-defined]
    assert slims == {str(arms["via_sd"].verifier.slim)}  # type: ignore[attr-defined]


def test_compat_has_each_drafter_under_the_same_verifiers(pair: Pair) -> None:
    """The paper's settings are those of via_sd_paper, the lossless ones those of via_sd_exact; every chain has 5."""
    arms: dict[str, Any] = settled("via_sd_compat", pair)
    paper, exact = arms["sd_paper"].verifier, arms["sd_exact"].verifier
    assert (paper.slim.skip_ratio, paper.slim.cache, exact.mode) == (0.45, "separate", "exact")
    assert all(arms[name].verifier == paper for name in ("e1_paper", "e3_paper"))
    assert all(arms[name].verifier == exact for name in ("e1_exact", "e3_exact"))
    pearl = arms["pearl_paper"].verifier
    assert {field.name for field in fields(paper) if getattr(pearl, field.name) != getattr(paper, field.name)} == set()
    for name in ("e1", "e3"):
        drafters = [arms[label].drafter for label in (name, f"{name}_paper", f"{name}_exact")]
        assert drafters[0] == drafters[1] == drafters[2] and drafters[0].tree is None
    assert arms["coin_slim@0.5"].verifier.slim == arms["slim_only"].verifier.slim == paper.slim
    assert all(arm.stop.length == 5 for name, arm in arms.items() if name != "vanilla")


def test_the_frontier_has_both_curves_and_every_mode(pair: Pair) -> None:
    arms = settled("frontier", pair)
    assert sum(is_free(name) for name in arms) == 7 and sum(is_free(name, "slim") for name in arms) == 6
    slims = [arms[name].verifier.slim for name in ("coin_slim@0.5", "slim_only", "via_sd")]  # type: ignore[attr-defined]
    assert slims[0] == slims[1] == slims[2] and isinstance(slims[0].mask, list)
    modes = {arm.verifier.mode for arm in arms.values() if isinstance(arm.verifier, Hierarchical)}
    assert modes == {"lossy", "exact", "budget"}
