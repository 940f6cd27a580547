"""`python -m experiments.claims`: where its numbers come from, what they decide, and what is said beside them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import call, check_mistake
from hydra import compose, initialize_config_dir
from pydantic import ValidationError

from experiments import claims
from experiments.config import CHECKOUT
from experiments.errors import UserError, one_line
from experiments.paper.agreement import FEW
from experiments.paper.claim import VERDICTS, Claim, Evidence, Found, decide, read_claims
from experiments.paper.contradictions import CONTRADICTIONS
from experiments.paper.ledger import INTRO, companion, ledger, look_up, widest
from experiments.paper.stored import OF_TRAININGS, Examples, read_stored
from experiments.statistics import Estimate
from experiments.tables import MEAN
from experiments.trainings import MEASURES

PUBLISHED = "task,row,column,metric,effect,value,low,high,n_timed,n_judged,pair"
MANY = Examples(40, 80, {"timed": 20, "judged": 40})
Cells = Mapping[tuple[str, str], str]  # arm and metric -> "value,low,high"
CELLS: Cells = {
    ("a", "speedup_over.sd"): "1.3,1.2,1.4",
    ("sd", "speedup_over.sd"): "1,1,1",
    ("a", "rejection_rate"): "0.1,0.08,0.12",
    ("sd", "rejection_rate"): "0.2,0.17,0.22",
    ("a", "quality"): "0.9,0.8,1.0",
    ("vanilla", "quality"): "0.95,0.9,1.0",
    ("a", "quality_delta"): "-0.05,-0.08,-0.02",
    ("vanilla", "quality_delta"): "0,0,0",
    ("a", "fidelity"): "0.98,0.97,0.99",
    ("a", "speedup_over_coin"): "0.9,0.8,0.95",
    ("a", "memory_ratio"): "1.03,,",
    ("vanilla", "memory_ratio"): "1,,",
    ("a", "tie_flips"): "3,,",
    ("sd", "tie_flips"): "0,,",
}


def store(results: Path, cells: Cells = CELLS, timed: int = 20, judged: int = 40) -> None:
    """A table `some` of one task and the mean of two, each with these numbers of examples."""
    (results / "tables").mkdir(parents=True, exist_ok=True)
    lines = ["task,arm,metric,value,low,high"]
    for task, times in (("qa", 1), ("coding", 3), (MEAN, 4)):
        counts = {(arm, "n_timed"): f"{times * timed},," for arm, _ in cells}
        counts |= {(arm, "n_quality"): f"{times * judged},," for arm, _ in cells}
        lines += [f"{task},{arm},{metric},{told}" for (arm, metric), told in [*cells.items(), *counts.items()]]
    (results / "tables" / "some.csv").write_text("\n".join(lines) + "\n")
    (results / "tables" / "some.md").write_text("Pair reference, temperature 0; a processor.\n")
    read_stored.cache_clear()


def publish(results: Path, *lines: str) -> None:
    """A published table `shown`."""
    folder = results / "published" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shown.csv").write_text("\n".join([PUBLISHED, *lines]) + "\n")
    read_stored.cache_clear()


def evidence(metric: str = "speedup_over.sd", **more: Any) -> Evidence:
    named = {} if {"against", "minus", "over"} & set(more) else {"against": "sd"}
    where = {} if "published" in more else {"table": "some"}
    return Evidence(**{**where, "arm": "a", "metric": metric, **named, **more})


def claim(*measured: Evidence, effect: str = "ratio", **more: Any) -> Claim:
    bound = {} if {"at_least", "at_most"} & set(more) else {"at_least": 1.1}
    said = {"paper": "VIA-SD", "source": "Abstract", "claim": "it is so", "quantity": "x"}
    return Claim(**{**said, "effect": effect, "measured": list(measured or [evidence()]), **bound, **more})


def verdict(results: Path, one: Claim) -> str:
    found = look_up(one.measured[0], results, "reference", one.neutral)
    told, why = decide(one, found)
    return f"{told} ({why})" if why else told


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ((1.3, 1.2, 1.4), ("supported", "")),
        ((1.3, 1.0, 1.4), ("undecided", "")),
        ((1.0, 0.9, 1.05), ("contradicted", "")),
        ((1.05, 1.01, 1.09), ("contradicted", "same sign")),
        ((0.8, 0.7, 0.9), ("contradicted", "")),
        ((1.3, None, None), ("undecided", "no interval")),
        ((1.3, 1.3, 1.3), ("undecided", "no spread")),
        (None, ("not measured", "")),
    ],
)
def test_verdicts(number: tuple[float, float, float] | None, told: tuple[str, str]) -> None:
    found = None if number is None else Estimate(*number)
    assert decide(claim(), Found(found, "timed", MANY)) == told
    if number is not None and number[1] is not None:  # mirrored about no effect, the verdict is the same
        mirrored = Estimate(1 - number[0], 1 - number[2], 1 - number[1])
        down = claim(evidence("rejection_rate", minus="sd"), effect="difference", at_most=-0.1)
        assert decide(down, Found(mirrored, "timed", MANY)) == told


@pytest.mark.parametrize("behind", ["timed", "judged"])
def test_few_prompts_bear_no_verdict(behind: str) -> None:
    """The fewest of any task count, of the kind that the quantity follows from."""
    number = Estimate(1.3, 1.2, 1.4)
    for fewest, told in ((FEW - 1, "undecided"), (FEW, "supported")):
        counts = {"timed": 99, "judged": 99} | {behind: fewest}
        assert decide(claim(), Found(number, behind, Examples(200, 400, counts)))[0] == told  # type: ignore[arg-type]
    assert decide(claim(), Found(number, behind, None)) == ("undecided", "few prompts")  # type: ignore[arg-type]
    assert decide(claim(), Found(number, "none", None)) == ("supported", "")


def test_what_no_prompt_can_change_may_have_no_effect() -> None:
    """Of memory: exactly that of SD. The same of prompts is one that all of them happen to have."""
    same, most = Estimate(1.0, 1.0, 1.0), claim(at_most=1.045)
    assert decide(most, Found(same, "none", None)) == ("supported", "no effect")
    assert decide(most, Found(same, "judged", MANY)) == ("undecided", "no spread")


def test_the_prompts_of_the_smallest_task_count(tmp_path: Path) -> None:
    rejection = claim(evidence("rejection_rate", over="sd"), at_most=0.8)
    store(tmp_path, timed=FEW)
    assert verdict(tmp_path, claim()) == "supported"
    store(tmp_path, timed=FEW - 1)
    assert verdict(tmp_path, claim()) == "undecided (few prompts)" and verdict(tmp_path, rejection) == "supported"
    store(tmp_path, judged=FEW - 1)
    assert verdict(tmp_path, claim()) == "supported" and verdict(tmp_path, rejection) == "undecided (few prompts)"


def test_a_paired_number_decides_where_an_unpaired_one_does_not(tmp_path: Path) -> None:
    store(tmp_path)
    paired = claim(evidence("quality_delta", against="vanilla"), effect="difference", at_least=0)
    unpaired = claim(evidence("quality", minus="vanilla"), effect="difference", at_least=0)
    assert verdict(tmp_path, paired) == "contradicted" and verdict(tmp_path, unpaired) == "undecided"
    text = ledger([paired, unpaired], tmp_path, "reference")
    assert "| a | vanilla | -0.050 [-0.080, -0.020] | **contradicted** |" in text
    assert "| a | vanilla, unpaired | -0.050 [-0.200, 0.100] | **undecided** |" in text


@pytest.mark.parametrize(
    ("metric", "base", "missing"),
    [
        ("quality_delta", "vanilla", ""),
        ("quality_delta", "a", "quality_delta is not against a"),
        ("quality_delta", "sd", "quality_delta is not against sd"),
        ("speedup_over.sd", "sd", ""),
        ("speedup_over.sd", "vanilla", "speedup_over.sd is not against vanilla"),
        ("rejection_rate", "sd", "rejection_rate is not against sd"),
    ],
)
def test_a_paired_number_is_taken_against_its_own_base_alone(
    tmp_path: Path, metric: str, base: str, missing: str
) -> None:
    store(tmp_path)
    neutral = 1.0 if metric.startswith("speedup") else 0.0
    found = look_up(evidence(metric, against=base), tmp_path, "reference", neutral)
    assert found.missing == missing and (found.number is None) == bool(missing)


def test_only_what_follows_from_no_examples_is_its_own_interval(tmp_path: Path) -> None:
    store(tmp_path, timed=1, judged=1)
    assert verdict(tmp_path, claim(evidence("memory_ratio", against="vanilla"), at_most=1.045)) == "supported"
    store(tmp_path)
    assert verdict(tmp_path, claim(evidence("tie_flips", minus="sd"), effect="difference", at_least=0)) == (
        "undecided (no interval)"
    )
    publish(tmp_path, "qa,a,memory,memory_ratio,ratio,1.2,,,1,1,reference", "qa,sd,memory,memory_ratio,ratio,,,,1,1,r")
    memory = claim(evidence("memory", published="shown", task="qa"), at_most=1.045)
    assert verdict(tmp_path, memory) == "contradicted"


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"published": "shwn"}, "no table shwn"),
        ({"task": "few"}, "no task few"),
        ({"arm": "b"}, "no arm b"),
        ({"metric": "gian"}, "no column gian"),
        ({"metric": "speed"}, "speed is blank"),
        ({"against": "vanilla"}, "gain is not against vanilla"),
        ({"against": None, "over": "b"}, "no arm b"),
        ({"against": None, "over": "sd"}, "gain is blank"),
    ],
)
def test_what_a_table_lacks_is_not_measured(tmp_path: Path, change: dict[str, Any], missing: str) -> None:
    gain = "gain,speedup,ratio"
    publish(
        tmp_path,
        f"qa,a,{gain},1.3,1.2,1.4,40,80,reference",
        f"qa,sd,{gain},,,,40,80,reference",
        f"qa,vanilla,{gain},0.5,0.4,0.6,40,80,reference",
        "qa,a,speed,speedup,none,,,,40,80,reference",
    )
    whole = {"published": "shown", "task": "qa", "metric": "gain", "against": "sd"}
    assert verdict(tmp_path, claim(evidence(**whole))) == "supported"
    told = claim(evidence(**{**whole, **change}))
    assert verdict(tmp_path, told) == "not measured"
    assert f"| - ({missing}) | **not measured** |" in ledger([told], tmp_path, "reference")


def test_a_table_without_lines_is_not_measured_and_another_file_no_table(tmp_path: Path) -> None:
    publish(tmp_path)
    asked = evidence("gain", published="shown", task="qa")
    assert look_up(asked, tmp_path, "reference", 1.0).missing == "no task qa"
    path = tmp_path / "published" / "reference" / "shown.csv"
    for text, named in (
        ("task,arm\n", "no column high, low"),
        (PUBLISHED + "\nqa,a,gain,speedupp,ratio,1,1,1,4,4,r\n", "speedupp"),
    ):
        path.write_text(text)
        read_stored.cache_clear()
        with pytest.raises(UserError, match=rf"shown\.csv: .*{named}"):
            look_up(asked, tmp_path, "reference", 1.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": "speedup_ovr.sd"}, "unknown metric 'speedup_ovr.sd'"),
        ({"minus": "sd"}, "accepted: exactly one of them"),
        ({"published": "shown", "table": "some"}, "accepted: one of them"),
        ({"arms": ["a_0"]}, "accepted: with rows"),
    ],
)
def test_claims_that_are_not_well_formed(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Evidence(**{"table": "some", "arm": "a", "metric": "speedup", "against": "sd", **change})
    assert named in one_line(raised.value)


def test_an_effect_is_taken_as_the_claim_has_it() -> None:
    with pytest.raises(ValidationError, match="minus where it is a difference"):
        claim(evidence("quality", minus="sd"), effect="ratio")
    with pytest.raises(ValidationError, match="at_least or at_most"):
        claim(at_least=1.1, at_most=1.2)


def test_what_a_number_costs_stands_beside_it_and_controls_below(tmp_path: Path) -> None:
    more = {("accept_all", "rejection_rate"): "0.01,0,0.02", ("accept_all", "fidelity"): "0.6,0.5,0.7"}
    store(tmp_path, {**CELLS, **more})
    own = evidence("rejection_rate", minus="sd")
    control = evidence("rejection_rate", arm="accept_all", minus="sd")
    stated = claim(own, effect="difference", at_most=-0.1, controls=[control])
    text = ledger([stated], tmp_path, "reference")
    assert text == ledger([stated], tmp_path, "reference")
    rows = [line for line in text.splitlines() if line.startswith(("| a |", "| accept_all |"))]
    costs = "0.9800 [0.9700, 0.9900] | 0.90 [0.80, 0.95] | -0.050 [-0.080, -0.020]"
    where = "80/160 | reference, T=0, mean of qa, coding | [some](tables/some.csv) |"
    assert rows[0] == f"| a | sd, unpaired | -0.100 [-0.140, -0.050] | **undecided** | {costs} | {where}"
    assert "[-0.220, -0.150] | control (meets the bound) | 0.6000 [0.5000, 0.7000] | - | - |" in rows[1]
    overview = next(line for line in text.splitlines() if line.startswith("| it is so |"))
    assert overview == "| it is so | VIA-SD | - | - | 1 | - |"
    assert all(one.test in text and one.find().replace("|", r"\|") in text for one in CONTRADICTIONS)


def test_quality_beside_a_published_number(tmp_path: Path) -> None:
    """Tables that store no paired difference have an unpaired one; the column may have any name."""
    publish(
        tmp_path,
        "qa,a,score,quality,none,0.9,0.8,1.0,40,80,reference",
        "qa,vanilla,score,quality,none,0.95,0.9,1.0,40,80,reference",
        "qa,a,quality,quality,difference,0.5,0.4,0.6,40,80,reference",
    )
    asked = evidence("score", published="shown", task="qa")
    assert companion(asked, "quality_delta", 3, tmp_path, "reference") == "-0.050 [-0.200, 0.100], unpaired"
    assert companion(asked, "fidelity", 4, tmp_path, "reference") == "-"


def test_of_several_trainings_the_lowest_fidelity_is_told(tmp_path: Path) -> None:
    store(tmp_path, {("n_0", "fidelity"): "0.99,0.98,1", ("n_1", "fidelity"): "0.97,0.96,1"})
    lines = ["task,kind,metric,value,low,high", f"{MEAN},new,tokens_per_second_ratio,1.2,1.15,1.3"]
    lines.append(f"{MEAN},plain,tokens_per_second_ratio,1,1,1")
    (tmp_path / "tables" / "kinds.csv").write_text("\n".join(lines) + "\n")
    more = {"table": "kinds", "rows": "some", "arm": "new", "against": "plain", "arms": ["n_0", "n_1"]}
    asked = evidence("tokens_per_second_ratio", **more)
    assert verdict(tmp_path, claim(asked)) == "supported"
    assert companion(asked, "fidelity", 4, tmp_path, "reference") == "0.9700 [0.9600, 1.0000]"
    store(tmp_path, {("n_0", "fidelity"): "1,1,1"}, timed=FEW - 1)
    assert verdict(tmp_path, claim(asked)) == "undecided (few prompts)"
    assert set(OF_TRAININGS) == set(MEASURES)


def test_a_published_table_is_read_by_row_and_column(tmp_path: Path) -> None:
    folder = tmp_path / "published" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests" / "golden" / "viasd_2.csv", folder)
    asked = evidence("gain", published="viasd_2", task="qa", arm="via_sd")
    found = look_up(asked, tmp_path, "reference", 1.0)
    assert found.number is not None and found.number.low is not None and str(found.examples) == str(FEW)
    assert found.number.low < found.number.value and found.behind == "timed"


def test_a_row_that_names_its_base_is_against_that_one(tmp_path: Path) -> None:
    """Though the base itself is against another one, as three tiers are against SD."""
    folder = tmp_path / "published" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests" / "golden" / "viasd_2.csv", folder)
    head, *lines = (folder / "viasd_2.csv").read_text().splitlines()
    moved = [line.replace(",ratio,sd,", ",ratio,via_sd,") if ",casc_opt," in line else line for line in lines]
    (folder / "viasd_2.csv").write_text("\n".join([head, *moved]) + "\n")
    read_stored.cache_clear()
    for base, missing in (("via_sd", ""), ("sd", "gain is not against sd")):
        asked = evidence("gain", published="viasd_2", task="qa", arm="casc_opt", against=base)
        assert look_up(asked, tmp_path, "reference", 1.0).missing == missing


def test_the_widest_interval() -> None:
    own, base = Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.3, 0.5)
    ratio, difference = widest(own, base, is_ratio=True), widest(own, base, is_ratio=False)
    assert ratio is not None and (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.2, 1.0))
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.2, -0.4, 0.0))
    assert widest(own, Estimate(0.4), is_ratio=True) == Estimate(0.5)
    assert widest(own, Estimate(0.4, 0.0, 0.5), is_ratio=True) == Estimate(0.5)
    assert widest(own, Estimate(0.0, 0.0, 0.0), is_ratio=True) is None


def test_over_nothing_there_is_no_ratio(tmp_path: Path) -> None:
    store(tmp_path, {**CELLS, ("sd", "rejection_rate"): "0,0,0"})
    found = look_up(evidence("rejection_rate", over="sd"), tmp_path, "reference", 1.0)
    assert found.number is None and found.missing == "rejection_rate of sd is 0"


# --- the claims themselves ----------------------------------------------------------------------------------------


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
def test_every_column_that_a_claim_names_is_one_of_its_table() -> None:
    asked = [one for stated in read_claims() for one in [*stated.measured, *stated.controls] if one.published]
    tables = {name: compose("publish", [f"table={name}"]).table for name in {one.published for one in asked}}
    for one in asked:
        assert one.metric in tables[one.published].columns, one
        effect = tables[one.published].columns[one.metric].get("effect", "none")
        assert one.is_paired == (effect != "none"), one


def test_what_the_tracked_tables_have_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All three papers stand there, every stored number is found, and the words are those that the head defines."""
    shutil.copytree(CHECKOUT / "results" / "tables", tmp_path / "tables")
    code, out, err = call(capsys, claims.main, "--results", str(tmp_path))
    assert code == 0, err
    text = Path(out.strip()).read_text()
    stated = read_claims()
    assert {one.paper for one in stated} == {"VIA-SD", "AdaSD", "VSD"}
    for one in stated:
        assert f"| {one.claim} |" in text
        for named in [*one.measured, *one.controls]:
            found = look_up(named, tmp_path, "reference", one.neutral)
            assert named.published or not found.missing, (named, found.missing)
    assert all(f"**{word}**" in " ".join(INTRO) for word in VERDICTS)


def test_greedy_sd_has_vanillas_quality_where_a_claim_says_so() -> None:
    stored = read_stored(CHECKOUT / "results" / "tables" / "headline_40.csv")
    assert stored.measured(MEAN, "sd", "quality_delta") == Estimate(0.0, 0.0, 0.0)


def test_a_folder_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, claims.main, "--results", str(tmp_path / "absent"))
    check_mistake(code, err, ["results=", "cannot write there"])
