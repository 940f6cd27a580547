"""What the papers' own numbers and formulas say against each other, computed from them; the ledger lists the findings.

Each finding is one sentence with its numbers. tests/test_paper_contradictions.py holds what they rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.paper.values import Value, read_values, summary
from experiments.statistics import Array

LENGTH, SLIM = 5, 0.55  # the paper's gamma, and the cost of a verifier that keeps 55% of the layers (sec. 4.1)
SIZES = {  # billions of parameters by the models' cards: draft, target
    "Gemma2 2B->9B": (2.61, 9.24),
    "Gemma2 2B->27B": (2.61, 27.2),
    "LLaMA2 7B->13B": (6.74, 13.0),
    "LLaMA2 7B->70B": (6.74, 69.0),
    "Qwen 7B->14B": (7.72, 14.2),
    "Qwen 7B->72B": (7.72, 72.3),
}
SETTINGS = {"conservative": (0.4, 0.2), "default": (0.5, 0.3), "aggressive": (0.6, 0.4)}  # alpha1, alpha2 of Table 7
ADASD_RANGE = (1.26, 1.49)  # speed over SD, of its first version
SD, OURS, FASTER = "Speculative Decoding", "VIA-SD", "Faster Cascades"
Key = tuple[str, str, str]  # pair, task, temperature


def by_cell(name: str, method: str, metric: str) -> dict[Key, float]:
    """A method's values in a file, by pair, task and temperature."""
    return {
        (one.pair, one.task, one.temperature): one.value
        for one in read_values(name)
        if one.method == method and one.metric == metric
    }


# --- theory -------------------------------------------------------------------------------------------------------


def printed_rejection(target: Array, draft: Array, alpha: float) -> float:
    """Eq. 1: the sum over v of max(0, target - (1 - alpha) draft)."""
    return float(np.maximum(0, target - (1 - alpha) * draft).sum())


def rule_rejection(target: Array, draft: Array, alpha: float) -> float:
    """What the rule A.2 rejects: the sum over v of max(0, draft - target / (1 - alpha))."""
    return float(np.maximum(0, draft - target / (1 - alpha)).sum())


def tolerance_raises_rejection() -> str:
    """C-01."""
    rng = np.random.default_rng(0)
    target, draft = rng.dirichlet(np.ones(8), size=2)
    alphas = (0.0, 0.2, 0.5, 0.9)
    printed = "/".join(f"{printed_rejection(target, draft, alpha):.2f}" for alpha in alphas)
    ruled = "/".join(f"{rule_rejection(target, draft, alpha):.2f}" for alpha in alphas)
    return f"a random pair of rows at alpha 0/0.2/0.5/0.9: Eq. 1 gives {printed}, rule A.2 rejects {ruled}"


def rewrite_region(alpha1: float, alpha2: float) -> tuple[float, float]:
    """The share of the largest probability from which Algorithm 2 keeps (tau1), and escalates below (tau2)."""
    return 1 - alpha1, 1 - alpha2


def rewrite_region_is_empty() -> str:
    """C-02."""
    taus = {name: rewrite_region(*alphas) for name, alphas in SETTINGS.items()}
    empty = sum(keep <= escalate for keep, escalate in taus.values())
    keep, escalate = taus["default"]
    return (
        f"tau1 > tau2 with tau = 1 - alpha fails in {empty} of {len(taus)} settings; by default {keep:g} and "
        f"{escalate:g}, so nothing is rewritten"
    )


def ideal_speed(acceptance: float, cost: float, length: int = LENGTH) -> float:
    """Speed over autoregressive decoding of SD with a bonus token, if tokens are kept independently."""
    tokens = length + 1 if acceptance >= 1 else (1 - acceptance ** (length + 1)) / (1 - acceptance)
    return tokens / (length * cost + 1)


def ceiling(cost: float, length: int = LENGTH, bonus: bool = False) -> float:
    """Speed of VIA-SD if nothing is ever rejected and the target never runs: drafts and slim passes alone."""
    return (length + bonus) / (length * cost + SLIM)


def above_ceiling(bonus: bool = False) -> list[tuple[Key, float, float]]:
    """Cells of Table 2 whose speed is above what their cost ratio allows at zero rejection, with that ceiling."""
    found = []
    for key, speed in by_cell("table2_qa_main", OURS, "speedup").items():
        draft, target = SIZES[key[0]]
        most = ceiling(draft / target, bonus=bonus)
        if speed > most:
            found.append((key, speed, most))
    return found


def speeds_above_their_ceiling() -> str:
    """C-21."""
    cells = above_ceiling()
    told = []
    for pair in sorted({key[0] for key, *_ in cells}):
        own = [(speed, most) for key, speed, most in cells if key[0] == pair]
        told.append(f"{pair} {min(own)[0]:.2f} to {max(own)[0]:.2f} against {own[0][1]:.2f}")
    return (
        f"{len(cells)} cells of Table 2 are faster than drafts and slim passes alone would be, with nothing rejected "
        f"and the target never run: {'; '.join(told)} ({len(above_ceiling(bonus=True))} of them also with a sixth "
        "token a block)"
    )


def slower_by_their_ratio() -> str:
    """C-21, of SD."""
    rejection, speed = (by_cell("table2_qa_main", SD, metric) for metric in ("rejection_rate", "speedup"))
    slow = []
    for key, value in speed.items():
        draft, target = SIZES[key[0]]
        ideal = ideal_speed(1 - rejection[key], draft / target)
        if ideal < 1 < value:
            slow.append((ideal, value))
    ideals, printed = zip(*slow, strict=True)
    return (
        f"in {len(slow)} cells SD's own rejection and cost ratio give a slow-down ({min(ideals):.2f} to "
        f"{max(ideals):.2f}), printed are {min(printed):.2f} to {max(printed):.2f}"
    )


def rejection_counts_differ() -> str:
    """C-10: what the same decoding is counted as."""
    return f"at 0.10 by position, drafts of {LENGTH}: {counted_with_discarded(0.10):.2f} if discarded tokens count"


def counted_with_discarded(rejection: float, length: int = LENGTH) -> float:
    """Drafted tokens that are not accepted, over drafted ones, if each is rejected with this chance."""
    kept = sum((1 - rejection) ** place for place in range(1, length + 1))
    return 1 - kept / length


# --- tables against each other and against the text ---------------------------------------------------------------


def tables_3_and_9_disagree() -> str:
    """C-15."""
    pairs = [pair for metric in ("rejection_rate", "speedup", "bleu") for pair in twice_printed(metric)]
    differing = sum(one != other for one, other in pairs)
    rejections = twice_printed("rejection_rate")
    shift = summary([other - one for one, other in rejections])
    told = "" if shift is None else f"; rejection is {shift.low:.2f} to {shift.high:.2f} higher in Table 9"
    return f"{differing} of {len(pairs)} numbers on WMT14 at T=0 differ between Tables 3 and 9{told}"


def twice_printed(metric: str) -> list[tuple[float, float]]:
    """Numbers that Tables 3 and 9 both have for WMT14 at temperature 0."""
    found = []
    for one in read_values("table3_summarization_translation"):
        if one.metric == metric and one.task.startswith("WMT14") and one.temperature == "0":
            other = by_cell("table9_t5_all", one.method, metric).get((one.pair, one.task, "0"))
            found += [(one.value, other)] if other is not None else []
    return found


def random_masks() -> tuple[Value, Value]:
    """Speed of a random mask on WebQuestions, Gemma2 2B->27B: Table 5's and Table 6's."""
    return tuple(
        next(
            one
            for one in read_values(name)
            if (one.pair, one.task, one.metric) == ("Gemma2 2B->27B", "WebQuestions", "speedup")
            and one.setting.startswith("random")
        )
        for name in ("table5_intermediate_source", "table6_random_vs_dimr")
    )  # type: ignore[return-value]


def random_mask_has_two_speeds() -> str:
    """C-18."""
    five, six = (one.value for one in random_masks())
    base = by_cell("table2_qa_main", SD, "speedup")["Gemma2 2B->27B", "WebQuestions", ""]
    return f"one run is {five:.2f} in Table 5 and {six:.2f} in Table 6, on either side of SD's {base:.2f}"


def drops() -> list[float]:
    """SD's rejection minus VIA-SD's, in every cell of Tables 8 and 9."""
    found = []
    for name in ("table8_qa_all", "table9_t5_all"):
        own, base = (by_cell(name, method, "rejection_rate") for method in (OURS, SD))
        found += [base[key] - own[key] for key in own]
    return found


def largest_drop_is_below_the_abstract() -> str:
    """C-17."""
    found = drops()
    return (
        f"against SD rejection falls by {min(found):.2f} to {max(found):.2f} in all {len(found)} cells of Tables 8 and "
        "9; 0.22, of the abstract, is in none"
    )


def gains_over_best() -> list[float]:
    """VIA-SD's speed over the fastest other method, in every cell of Tables 8 and 9."""
    found = []
    for name in ("table8_qa_all", "table9_t5_all"):
        speeds = by_cell(name, OURS, "speedup")
        others = sorted({one.method for one in read_values(name)} - {OURS})
        best = {key: max(by_cell(name, other, "speedup")[key] for other in others) for key in speeds}
        found += [speeds[key] / best[key] for key in speeds]
    return found


def speed_over_the_best() -> str:
    """C-17, of speed."""
    found, speeds = gains_over_best(), _of("speedup")
    return (
        f"{min(found) - 1:.0%} to {max(found) - 1:.0%} over the fastest baseline of each cell, where the text says 10 "
        f"to 20%; {min(speeds):.2f} to {max(speeds):.2f} times autoregressive decoding, where it says 2.5 to 3"
    )


def _of(metric: str) -> list[float]:
    return [value for name in ("table8_qa_all", "table9_t5_all") for value in by_cell(name, OURS, metric).values()]


def one_gpu_for_every_target() -> str:
    """C-20."""
    minutes, hours = (by_cell("table4_dimr_cost", "DIMR search", metric) for metric in ("wall_clock_min", "gpu_hours"))
    equal = sum(abs(hours[key] - minutes[key] / 60) < 0.005 + 1e-9 for key in hours)
    return (
        f"GPU-hours are minutes / 60 in {equal} of {len(hours)} rows: one GPU, also for 70 and 72 billion parameters, "
        "which in 16 bits take 140 GB"
    )


def lossy_beats_lossless() -> str:
    """C-22."""
    told = []
    for pair in ("T5 S->L", "T5 S->XL"):
        own, faster, base = (bleu_on_translation("table9_t5_all", pair, method) for method in (OURS, FASTER, SD))
        told.append(f"{pair} {own - base:.2f} ({OURS} {own:.2f}) and {faster - base:.2f} ({FASTER} {faster:.2f})")
    in_three = bleu_on_translation("table3_summarization_translation", "T5 S->L", FASTER)
    return (
        "on WMT14 at T=0 lossy methods exceed the BLEU of lossless SD, hence of the target itself: "
        f"{'; '.join(told)}; of {FASTER} on T5 S->L Table 3 prints {in_three:.2f} (C-15)"
    )


def bleu_on_translation(name: str, pair: str, method: str) -> float:
    """BLEU on WMT14 at temperature 0."""
    return by_cell(name, method, "bleu")[pair, "WMT14 En-De", "0"]


def lossy_equals_lossless() -> str:
    """C-22, of BiLD."""
    pairs = list(_paired("BiLD", ("accuracy", "rouge2", "bleu")))
    equal = sum(own == base for own, base in pairs)
    return f"BiLD, which is lossy, has SD's quality to the last digit in {equal} of {len(pairs)} cells"


def _paired(method: str, metrics: Sequence[str]) -> Iterator[tuple[float, float]]:
    for name in ("table8_qa_all", "table9_t5_all"):
        for metric in metrics:
            own, base = by_cell(name, method, metric), by_cell(name, SD, metric)
            yield from ((own[key], base[key]) for key in own)


# --- AdaSD and VSD ------------------------------------------------------------------------------------------------


def adasd_is_slower_than_its_range() -> str:
    """AdaSD's range of speeds leaves its own MMLU out."""
    cells = {key: value for key, value in by_cell("adasd", "AdaSD", "speedup_vs_vanilla_sd").items() if key[1]}
    told = [f"{task} {value:.2f} ({pair})" for (pair, task, _), value in cells.items() if value < ADASD_RANGE[0]]
    return f"below {ADASD_RANGE[0]} are: {', '.join(told)}; {ADASD_RANGE[1]} is one cell's, the fastest"


def vsd_length_has_two_values() -> str:
    """Two summaries of VSD disagree on its mean acceptance length."""
    cells = [one for one in read_values("vsd") if one.pair == "4 LLM targets"]
    found = sorted(one.value for one in cells if one.metric == "accept_length_gain_pct")
    of_table = [
        max(one.value for one in read_values("vsd") if one.method == method and one.metric == "accept_length")
        for method in ("VSD", "EAGLE-3")
    ]
    return (
        f"summaries of it have {' and '.join(f'{value:g}%' for value in found)} for the same mean; its ablation, on "
        f"one model, has {of_table[0]:.2f} over {of_table[1]:.2f}, {of_table[0] / of_table[1] - 1:.1%}"
    )


@dataclass(frozen=True)
class Contradiction:
    """One finding: its number in docs and tests, what the paper says, and how it is computed."""

    key: str
    says: str
    find: Callable[[], str]
    paper: str = "VIA-SD"

    @property
    def test(self) -> str:
        """The test that shows it."""
        return f"tests/test_paper_contradictions.py::test_{self.find.__name__}"


CONTRADICTIONS = (
    Contradiction("C-01", "Eq. 1 is the rejection rate of rule A.2", tolerance_raises_rejection),
    Contradiction("C-02", "three regions with tau = 1 - alpha, alpha1 > alpha2, tau1 > tau2", rewrite_region_is_empty),
    Contradiction("C-10", "a rejection rate, never defined", rejection_counts_differ),
    Contradiction("C-15", "WMT14 at T=0 in Tables 3 and 9", tables_3_and_9_disagree),
    Contradiction("C-17", "rejection lower by 0.10 to 0.22 (abstract)", largest_drop_is_below_the_abstract),
    Contradiction("C-17", "10 to 20% over strong baselines, 2.5 to 3 times non-drafting", speed_over_the_best),
    Contradiction("C-18", "one random mask in Tables 5 and 6", random_mask_has_two_speeds),
    Contradiction("C-20", "minutes and GPU-hours of Table 4", one_gpu_for_every_target),
    Contradiction("C-21", "VIA-SD's speeds of Table 2", speeds_above_their_ceiling),
    Contradiction("C-21", "SD's speeds of Table 2", slower_by_their_ratio),
    Contradiction("C-22", "lossless methods have the target's quality (Table 9)", lossy_beats_lossless),
    Contradiction("C-22", "quality of BiLD in Tables 8 and 9", lossy_equals_lossless),
    Contradiction("A-01", "1.26 to 1.49 times as fast as SD", adasd_is_slower_than_its_range, "AdaSD"),
    Contradiction("V-01", "accepts 6.8% more tokens a round than EAGLE-3", vsd_length_has_two_values, "VSD"),
)
