"""Effects in published tables: what each is against, whether it agrees with the paper's, when a search is paid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hydra import compose, initialize_config_dir
from paper_rows import SEARCHES, arms_shown, lines_of, make_row, make_run, read_table, texts_named

from experiments.config import CHECKOUT
from experiments.paper.agreement import FEW, agree
from experiments.paper.search_cost import search_cells
from experiments.paper.values import Claimed
from experiments.statistics import Estimate
from experiments.tables import StoredRun


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("ours", "paper", "effect", "told"),
    [
        ((1.5, 1.3, 1.7), (1.4, 1.2, 1.6), "ratio", "yes"),
        ((1.3, 1.2, 1.35), (1.4, 1.2, 1.6), "ratio", "yes"),  # log 1.3 is 78% of log 1.4
        ((1.25, 1.2, 1.35), (1.4, 1.2, 1.6), "ratio", "sign (smaller)"),
        ((1.06, 1.055, 1.07), (1.05, 1.04, 1.06), "ratio", "yes"),
        (
            (1.15, 1.12, 1.18),
            (1.05, 1.04, 1.06),
            "ratio",
            "sign (larger)",
        ),  # within 10% of 1.05, three times its effect
        ((1.02, 1.01, 1.03), (1.05, 1.04, 1.06), "ratio", "sign (smaller)"),
        ((0.8, 0.78, 0.82), (0.82, 0.8, 0.85), "ratio", "yes"),
        ((1.1, 1.05, 1.2), (1.5, 1.2, 1.8), "ratio", "sign (smaller)"),
        ((2.1, 2.0, 2.2), (1.5, 1.2, 1.8), "ratio", "sign (larger)"),
        ((0.8, 0.7, 0.9), (1.5, 1.2, 1.8), "ratio", "no"),
        ((1.2, 0.9, 1.4), (1.5, 1.2, 1.8), "ratio", "undecided"),
        ((1.2, None, None), (1.5, 1.2, 1.8), "ratio", "undecided"),
        ((1.2, 1.1, 1.4), (1.5, 0.9, 1.8), "ratio", "none claimed: ours higher"),  # the paper's cells differ in sign
        ((-0.1, -0.2, -0.05), (0.0, -0.01, 0.01), "difference", "none claimed: ours lower"),
        ((-0.1, -0.2, -0.05), (0.0, 0.0, 0.0), "difference", "none claimed: ours lower"),  # the paper's is neutral
        ((-0.1, -0.2, 0.05), (0.0, -0.01, 0.01), "difference", "none claimed: ours undecided"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), "difference", "none claimed: ours undecided"),
        ((0.012, 0.011, 0.013), (0.01, 0.01, 0.02), "difference", "yes"),
        ((0.018, 0.016, 0.019), (0.01, 0.01, 0.02), "difference", "sign (larger)"),  # within 0.02 of any small effect
        ((0.003, 0.002, 0.005), (0.01, 0.01, 0.02), "difference", "sign (smaller)"),
        ((-0.09, -0.12, -0.05), (-0.10, -0.15, -0.07), "difference", "yes"),
        ((-0.30, -0.35, -0.25), (-0.10, -0.15, -0.07), "difference", "sign (larger)"),
        ((0.05, 0.02, 0.08), (-0.10, -0.15, -0.07), "difference", "no"),
    ],
)
def test_the_rule_of_agreement(
    ours: tuple[float, float | None, float | None], paper: tuple[float, float, float], effect: str, told: str
) -> None:
    assert agree(Estimate(*ours), Claimed(*paper, cells=3), effect, FEW).text == told  # type: ignore[arg-type]


def test_few_prompts_and_numbers_without_any() -> None:
    paper, ours, same = Claimed(1.5, 1.2, 1.8, cells=3), Estimate(1.5, 1.4, 1.6), Estimate(1.0, 1.0, 1.0)
    assert agree(ours, paper, "ratio", FEW - 1).text == "undecided (few prompts)"
    assert agree(ours, Claimed(1.5, 0.9, 1.8, 3), "ratio", 1).text == "none claimed: ours undecided (few prompts)"
    assert agree(ours, paper, "ratio", None).text == "yes"
    assert (agree(same, paper, "ratio", None).text, agree(same, paper, "ratio", FEW).text) == ("no effect", "undecided")


def searched(runs: Sequence[StoredRun]) -> dict[str, dict[str, str]]:
    """The cells of ours in viasd_4, by skip ratio."""
    header, *lines = search_cells(read_table("viasd_4"), runs, SEARCHES)
    return {line[1]: dict(zip(header, line, strict=True)) for line in lines if line[0].startswith("ours")}


def test_a_search_pays_by_what_it_gains_over_an_unsearched_mask() -> None:
    """By hand: seconds of the search over the seconds per token that its mask saves against the even one."""
    told = searched([make_run("qa", ["vanilla", "sd", "even", "via_sd", "slim_only"])])["0.6"]
    totals = {
        arm: sum(make_row(arm, place, index).decode_seconds[0] for index in range(3)) / 135
        for arm, place in (("even", 2), ("via_sd", 3), ("sd", 1))
    }
    tokens = {other: 32.4 / (totals[other] - totals["via_sd"]) for other in ("even", "sd")}
    assert float(told["tokens until paid"].split()[0]) == pytest.approx(tokens["even"], abs=0.5)
    assert float(told["tokens until paid over sd"].split()[0]) == pytest.approx(tokens["sd"], abs=0.5)
    assert told["speed over base"].startswith(f"{totals['even'] / totals['via_sd']:.2f}")
    assert told["predicted"] == "never" and "-" not in (told["fidelity"], told["fidelity of base"])
    assert told["fidelity of control"] != "-" and told["n"] == "3/3"


def test_never_and_undecided_are_told_of_numbers_alone() -> None:
    """A search that saves nothing is never paid; of what is missing there is a dash."""
    slow = searched([make_run("qa", ["vanilla", "via_sd", "even", "sd"])])  # the later, the faster
    assert slow["0.6"]["tokens until paid"] == slow["0.6"]["tokens until paid over sd"] == "never"
    assert slow["0.6"]["fidelity of control"] == "-"
    one = searched([make_run("qa", ["vanilla", "sd", "even", "via_sd"], examples=1)])["0.6"]
    assert one["tokens until paid"] == "undecided"
    lacking = searched([make_run("qa", ["vanilla", "sd", "via_sd"])])
    assert lacking["0.6"]["tokens until paid"] == lacking["0.6"]["speed over base"] == "-"
    assert lacking["0.6"]["tokens until paid over sd"] not in ("-", "never")
    assert set(list(lacking["0.45"].values())[5:]) == {"-"}, "no arm was run, and the record foretells nothing"
    assert set(list(searched([])["0.6"].values())[8:]) == {"-"}


def effects(name: str, column: str) -> dict[str, dict[str, str]]:
    return {line["row"]: line for line in lines_of(texts_named(name)["csv"]) if line["column"] == column}


@pytest.mark.parametrize(
    ("name", "row", "base"),
    [
        ("viasd_6", "via_sd", ["rnd_0", "rnd_1", "rnd_2"]),
        ("viasd_6", "via_sd_paper", ["paper_rnd_0", "paper_rnd_1", "paper_rnd_2"]),
        ("viasd_7", "cons", ["base_45"]),
        ("viasd_7", "d_cons", ["d_base"]),
        ("viasd_7", "d_aggr", ["d_base"]),
    ],
)
def test_rows_are_against_their_own_base(name: str, row: str, base: list[str]) -> None:
    published = read_table(name)
    arms = arms_shown(published)
    speeds = {
        arm: 1 / sum(make_row(arm, arms.index(arm), index).decode_seconds[0] for index in range(FEW)) for arm in arms
    }
    own = published.lines[row].arms or [row]
    expected = speeds[own[0]] / (sum(speeds[arm] for arm in base) / len(base))
    line = effects(name, "gain")[row]
    assert float(line["value"]) == pytest.approx(expected, rel=1e-5)
    assert (published.lines[line["base"]].arms or [line["base"]]) == base and line["agrees"]


def test_rows_and_bases_skip_as_many_layers_under_one_control_flow() -> None:
    """Masks alone differ in Table 6, settings alone in Table 7, and every row of ours has its control."""
    asked = compose("config", ["experiment=paper_slim"])
    given = {name: told for arm in asked.arms if not isinstance(arm, str) for name, told in arm.items()}
    for index in range(3):
        assert given[f"rnd_{index}"] == f"verifier.slim.mask=random verifier.slim.seed={index}"
        assert given[f"paper_rnd_{index}"] == f"method=via_sd_paper {given[f'rnd_{index}']}"
    assert given["even"] == "verifier.slim.mask=even"
    assert given["even_45"] == f"{given['base_45']} verifier.slim.mask=even"
    assert given["even_70"] == f"{given['auto_70']} verifier.slim.mask=even"
    ratios = {told.split("skip_ratio=")[1].split()[0] for told in given.values() if "skip_ratio=" in told}
    assert {f"slim_only@{ratio}" for ratio in ratios} <= set(filter(lambda arm: isinstance(arm, str), asked.arms))


def test_bases_are_told_below_the_table() -> None:
    text = texts_named("viasd_7")["md"]
    told = next(line for line in text.splitlines() if line.startswith("Baseline of"))
    rows = '"conservative (0.4, 0.2), 35%, direct" and "aggressive (0.6, 0.4), 55%, direct"'
    assert f'of {rows}: "default (0.5, 0.3), 45%, direct"' in told
    assert 'of the other rows: "default (0.5, 0.3), 45%, swapped"' in told
    assert next(line for line in text.splitlines() if "| d_base |" in line).count("| baseline |") == 2


@pytest.mark.parametrize("name", ["viasd_2", "viasd_5", "viasd_6", "viasd_8"])
def test_differences_in_accuracy_are_judged(name: str) -> None:
    found = effects(name, "accuracy_gain")["via_sd"]
    assert found["metric"] == "quality" and found["effect"] == "difference" and found["paper"]
    assert found["agrees"] and found["agrees"] != "-"
