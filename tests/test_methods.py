"""The method yamls: each names every field of what it builds, and builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from baselines.hf import LibraryLoop
from baselines.rules.lenience import Lenience
from baselines.rules.typical import Typical
from experiments.arms import Context, derive
from experiments.choosing.knobs import read_knobs
from experiments.config import CHECKOUT, build, make
from experiments.errors import UserError, exit_code, one_line
from experiments.loading import describe
from viasd.hierarchical import Hierarchical
from viasd.method import Method
from viasd.models import Pair
from viasd.verification import PairModel, RuleVerifier

METHODS = sorted(path.stem for path in (CHECKOUT / "conf" / "method").glob("*.yaml"))
RULES = sorted(path.stem for path in (CHECKOUT / "conf" / "method" / "verifier" / "rule").glob("*.yaml"))
LOSSLESS = {
    "adasd_gen_only", "clasp", "cs_drafting", "cs_drafting_mid", "eagle1", "eagle2", "eagle3", "eagle3_chain",
    "hf_assisted", "hf_generate", "hf_lookup", "pearl", "prompt_lookup", "sd", "sd_adaedl", "sd_confidence",
    "sd_cost_aware", "sd_heuristic", "sd_svip", "sd_tree", "self_sd", "specinfer", "swift", "vanilla", "via_sd_exact",
}  # fmt: skip
TASKS = sorted(path.stem for path in (CHECKOUT / "conf" / "task").glob("*.yaml"))
GROUPS = {"pair": "reference", "decode": "greedy", "engine": "default", "track": "wandb"}
PAIR = Pair(name="p", models={"target": "t", "draft": "d", "mid": "m"})


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


def unnamed_fields(node: Any, key: str) -> list[str]:
    """Fields of the classes a yaml builds that it does not name."""
    if not isinstance(node, DictConfig):
        return []
    missing = []
    if "_target_" in node:
        fields = [field.name for field in dataclasses.fields(get_class(node["_target_"])) if field.init]
        missing = [f"{key}.{name}" for name in fields if name not in node]
    return missing + [one for name in node for one in unnamed_fields(node[name], f"{key}.{name!s}")]


@pytest.mark.parametrize("name", METHODS)
def test_method_yaml_names_every_field(name: str) -> None:
    node = compose("config", [f"method={name}"])["method"]
    assert unnamed_fields(node, "method") == []
    made = make(node, "method")
    assert made.name == name
    own = made.verifier.lossless if isinstance(made, Method) else LibraryLoop.lossless
    assert read_knobs(describe(made)).lossless == own == (name in LOSSLESS)


@pytest.mark.parametrize("rule", RULES)
def test_every_row_rule_is_chosen_by_name(rule: str) -> None:
    node = compose("config", ["method=sd", f"method/verifier/rule={rule}"])["method"]
    assert unnamed_fields(node, "method") == []
    chosen = make(node, "method").verifier.rule
    arms, _ = derived([{"arm": f"verifier/rule={rule}"}], "method=lenience", "method.verifier.rule.l=0.25")
    assert arms["arm"].verifier.rule == chosen  # type: ignore[attr-defined]


def test_a_knob_of_a_row_rule_is_an_override() -> None:
    node = compose("config", ["method=sd", "method/verifier/rule=lenience", "method.verifier.rule.l=0.25"])["method"]
    assert make(node, "method").verifier == RuleVerifier(rule=Lenience(l=0.25))
    arms, _ = derived([{"arm": "verifier/rule=typical verifier.rule.eps=0.2"}], "method=lenience")
    assert arms["arm"].verifier == RuleVerifier(rule=Typical(eps=0.2))
    arms, _ = derived(["lossless", "sd", "method"], "method=lenience", "method.verifier.rule.l=1")
    assert list(arms) == ["lossless", "lenience"] and arms["lenience"].verifier.lossless


@pytest.mark.parametrize("task", TASKS)
def test_other_yamls_name_every_field(task: str) -> None:
    config = compose("config", [f"task={task}"])
    assert [one for group in (*GROUPS, "task") for one in unnamed_fields(config[group], group)] == []
    assert build(config).task.name == task


def test_paper_preset_pins_the_papers_control_flow() -> None:
    paper = make(compose("config", ["method=via_sd_paper"])["method"], "method").verifier
    assert isinstance(paper, Hierarchical)
    assert (paper.bonus, paper.target_bonus, paper.max_pending) == ("none", False, None)
    assert (paper.after_escalation, paper.after_equal_rewrite, paper.slim.cache) == ("slim", "stop", "separate")


def derived(
    names: list[str | dict[str, str]], *overrides: str, pair: Pair = PAIR
) -> tuple[dict[str, Method], list[str]]:
    composed: Any = OmegaConf.to_container(compose("config", list(overrides))["method"])
    method = make(OmegaConf.create(composed), "method")
    return derive(names, Context(method, composed, pair, lambda: (0.5, 0.3, 0.2, 0.0)))


def test_controls_follow_the_methods_overrides() -> None:
    arms, _ = derived(
        ["sd", "method", "slim_only", "accept_all", "random_gate", "draft_only", "coin_mix@0.4", "coin_slim@0.3"],
        "method.stop.length=3",
        "method.verifier.max_pending=7",
        "method.verifier.slim.skip_ratio=0.3",
    )
    assert all(arm.stop.length == 3 for arm in arms.values())  # type: ignore[attr-defined]
    assert arms["accept_all"].verifier.max_pending == arms["random_gate"].verifier.max_pending == 7  # type: ignore[attr-defined]
    assert arms["slim_only"].verifier.slim.skip_ratio == 0.3  # type: ignore[attr-defined]
    assert arms["coin_mix@0.4"].verifier.p == 0.4  # type: ignore[attr-defined]
    coin = arms["coin_slim@0.3"].verifier
    assert (coin.p, coin.slim.skip_ratio) == (0.3, 0.3)  # type: ignore[attr-defined]


def test_slim_only_takes_a_skip_ratio_of_its_own() -> None:
    arms, _ = derived(["slim_only", "slim_only@0.2"], "method.verifier.slim.mask=[0,3]")
    assert arms["slim_only"].verifier.slim.mask == [0, 3]  # type: ignore[attr-defined]
    slim = arms["slim_only@0.2"].verifier.slim  # type: ignore[attr-defined]
    assert (slim.mask, slim.skip_ratio) == ("auto", 0.2)
    with pytest.raises(UserError, match="slim_only@2: accepted: slim_only@NUMBER"):
        derived(["slim_only@2"])


def test_equal_arms_run_once() -> None:
    arms, notices = derived(["vanilla", "sd", "method"], "method=sd")
    assert list(arms) == ["vanilla", "sd"] and notices == []
    arms, notices = derived(["vanilla", "sd", "lossless", "method"])
    assert list(arms) == ["vanilla", "sd", "via_sd"] and "lossless equals sd" in notices[0]


def test_sd_is_left_out_without_a_draft_model() -> None:
    arms, notices = derived(["vanilla", "sd"], "method=vanilla", pair=Pair(name="p", models={"target": "t"}))
    assert list(arms) == ["vanilla"] and "no draft model" in notices[0]


def test_a_changed_method_is_an_arm_of_its_own() -> None:
    strict = "verifier.gate.accept_ratio=1 verifier.gate.escalate_ratio=0.9"
    arms, _ = derived(["method", {"strict": strict}, {"short": "stop.length=2"}], "method.stop.length=3")
    assert list(arms) == ["via_sd", "strict", "short"]
    gate = arms["strict"].verifier.gate  # type: ignore[attr-defined]
    assert (gate.accept_ratio, gate.escalate_ratio) == (1.0, 0.9)
    assert [arm.stop.length for arm in arms.values()] == [3, 3, 2]  # type: ignore[attr-defined]
    assert arms["strict"].name == "strict"


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ({"a": "stop.length"}, "KEY=VALUE"),
        ({"a": ""}, "KEY=VALUE"),
        ({"a": "stop.length=2", "b": "stop.length=3"}, "one LABEL"),
        ({"a": "stop.size=3"}, "size"),
        ({"a": "method=via_s"}, "via_sd"),
        ({"a": "stop.length=-1"}, "length"),
    ],
    ids=str,
)
def test_a_changed_method_with_a_mistake_is_refused(arm: dict[str, str], told: str) -> None:
    with pytest.raises(Exception, match=told) as raised:
        derived([arm])
    assert told in one_line(raised.value) and exit_code(raised.value) == 2


def test_an_arm_may_begin_with_another_yaml() -> None:
    arms, _ = derived(["method", {"b": "method=via_sd_budget verifier.budget.share=0.1 stop.length=2"}])
    verifier = arms["b"].verifier
    assert isinstance(verifier, Hierarchical) and verifier.mode == "budget" and verifier.budget is not None
    assert verifier.budget.share == 0.1 and arms["b"].stop.length == 2 and arms["b"].name == "b"  # type: ignore[attr-defined]
    assert derived([{"same": "method=sd"}, "sd"])[0].keys() == {"same"}


def test_parts_of_a_verifier_are_chosen_by_name() -> None:
    two = "verifier/above=reference_45_25 verifier/gate=deferral verifier.gate.threshold=0.3"
    arms, _ = derived([{"mid": "verifier/slim=mid"}, {"two": two}])
    assert arms["mid"].verifier.slim == PairModel(role="mid")  # type: ignore[attr-defined]
    above = arms["two"].verifier.above  # type: ignore[attr-defined]
    assert len(above) == 2 and all(tier.gate == arms["two"].verifier.gate for tier in above)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="verifier/slim=min: not found; did you mean 'mid'"):
        derived([{"min": "verifier/slim=min"}])


@pytest.mark.parametrize("control", ["slim_only", "accept_all", "random_gate", "coin_slim"])
def test_gate_controls_need_a_gate(control: str) -> None:
    with pytest.raises(UserError, match=control):
        derived([control], "method=sd")
