"""Laws of row rules in plain Python, from the rows of two models, and the rules and settings they are checked for."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from doubles import PROMPT, VOCABULARY, Outcome
from test_laws import IDS, TOKENS, Law, Rows, mix, softmax

from baselines.rules.cactus import Cactus
from baselines.rules.cascades import Cascade, TokenCascade
from baselines.rules.fuzzy import Fuzzy
from baselines.rules.lenience import Lenience, LossySD
from baselines.rules.mixtures import Contrastive, Ensemble
from baselines.rules.truncation import Eta, MinP
from baselines.rules.typical import Typical
from viasd.decode import Generation
from viasd.rules import RowRule
from viasd.sampling import Sampling

Row = list[float]


class Raw(NamedTuple):
    """Rows before truncation: at temperature 1, and the draft model's at the temperature of the run."""

    target: Row
    draft: Row
    warm_draft: Row


LENGTH = 2  # drafted tokens of a block


def entropy(row: Row) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def distance(one: Row, other: Row) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def kl(one: Row, other: Row) -> float:
    return sum(a * math.log(a / b) if b else math.inf for a, b in zip(one, other, strict=True) if a)


def js(one: Row, other: Row) -> float:
    middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
    return (kl(one, middle) + kl(other, middle)) / 2


def normal(row: Row) -> Row:
    return [p / sum(row) for p in row]


def lenient(rule: Any, t: Row, d: Row) -> tuple[Row, Row]:
    """2607.26627, Eq. 10-11."""
    l = rule.l if isinstance(rule, Lenience) else 1 - rule.alpha  # noqa: E741
    share = (sum(abs(y - x / l) for x, y in zip(t, d, strict=True)) / 2 + 0.5 - 0.5 / l) / distance(t, d)

    def law(x: float, y: float) -> float:
        if y <= x:
            return share * x + (1 - share) * y
        return y if y < x / l else x / l

    return [min(y, x / l) for x, y in zip(t, d, strict=True)], [law(x, y) for x, y in zip(t, d, strict=True)]


def lossy(rule: LossySD, t: Row, d: Row) -> tuple[Row, Row]:
    """Two steps with a number for beta; with the normalizing one, that of the law, found by bisection."""
    kept = [min(y, x / (1 - rule.alpha)) for x, y in zip(t, d, strict=True)]
    if rule.beta == "normalizing":
        low, high = 1.0, 1e9
        for _ in range(200):
            beta = math.sqrt(low * high)
            total = sum(max(k, x / beta) for k, x in zip(kept, t, strict=True))
            low, high = (beta, high) if total > 1 else (low, beta)
        return kept, [max(k, x / low) for k, x in zip(kept, t, strict=True)]
    left = [max(0.0, x / rule.beta - y) for x, y in zip(t, d, strict=True)]
    left = normal(left if sum(left) > 0 else t)
    return kept, [k + (1 - sum(kept)) * r for k, r in zip(kept, left, strict=True)]


def cactus(rule: Cactus, t: Row, d: Row) -> tuple[Row, Row]:
    """Token by token: each drafted one has its own residual."""
    raised = [min(1.0, p + math.sqrt(2 * rule.alpha * p * (1 - p))) for p in t]
    kept = [min(g, y) for g, y in zip(raised, d, strict=True)]
    law = list(kept)
    for x in IDS:
        if d[x] > kept[x]:
            moved = [raised[x] if y == x else t[y] * (1 - raised[x]) / (1 - t[x]) for y in IDS]
            left = normal([max(0.0, m - p) for m, p in zip(moved, d, strict=True)])
            law = [p + (d[x] - kept[x]) * r for p, r in zip(law, left, strict=True)]
    return kept, law


def fuzzy(rule: Fuzzy, t: Row, d: Row, gate: tuple[Row, Row]) -> tuple[Row, Row]:
    apart = {
        "js": js(*gate),
        "kl_target_draft": kl(*gate),
        "kl_draft_target": kl(gate[1], gate[0]),
        "tv": distance(*gate),
    }[rule.divergence]
    law = d if apart <= rule.threshold and rule.threshold > 0 else t
    return (shared(law, d) if rule.reducible else d if law is d else [0.0] * VOCABULARY), law


def contrast(rule: Contrastive, t: Row, d: Row) -> Row:
    """From the processed target row and the draft row before truncation: constants of logits do not matter."""
    return normal([x * (x / y) ** rule.alpha if x else 0.0 for x, y in zip(t, d, strict=True)])


def typical(row: Row, eps: float, delta: float) -> list[bool]:
    return [p > min(eps, delta * math.exp(-entropy(row))) for p in row]


def cut(row: Row, allowed: list[bool]) -> Row:
    return normal([p * ok for p, ok in zip(row, allowed, strict=True)])


def cascade(rule: Cascade, t: Row, d: Row, gate: tuple[Row, Row]) -> Row:
    target, draft = gate
    alpha, price = rule.alpha, rule.alpha * distance(t, d)
    defers = {
        "chow": max(draft) < 1 - alpha,
        "chow_log": entropy(draft) > alpha,
        "diff": max(draft) < max(target) - alpha,
        "opt": max(draft) < max(target) - price,
        "opt_log": entropy(draft) > entropy(target) + price,
    }
    return t if defers[rule.defer] else d


def token_cascade(rule: TokenCascade, t: Row, d: Row, gate: tuple[Row, Row]) -> Row:
    target, draft = gate
    defers = {
        "v1": [p < max(target) - rule.alpha for p in draft],
        "v2": [p < max(target) - rule.alpha for p in target],
        "v3": [p < (1 - rule.alpha) * max(target) for p in target],
    }[rule.defer]
    spread = sum(p for p, bad in zip(d, defers, strict=True) if bad)
    return [y * (not bad) + spread * x for x, y, bad in zip(t, d, defers, strict=True)]


def shared(law: Row, d: Row) -> Row:
    """What an ordinary test keeps."""
    return [min(p, y) for p, y in zip(law, d, strict=True)]


def judged(rule: Any, t: Row, d: Row, raw: Raw) -> tuple[Row, Row]:
    """Per token: the probability that it was drafted and kept, and the law of a judged position."""
    gate = (raw.target, raw.draft) if getattr(rule, "gate_rows", "raw") == "raw" else (t, d)
    if isinstance(rule, Lenience) or (isinstance(rule, LossySD) and rule.beta == 1):
        return lenient(rule, t, d)
    if isinstance(rule, LossySD):
        return lossy(rule, t, d)
    if isinstance(rule, Cactus):
        return cactus(rule, t, d)
    if isinstance(rule, Fuzzy):
        return fuzzy(rule, t, d, gate)
    if isinstance(rule, Typical):
        ok = typical(t, rule.eps, rule.delta)
        kept = [y * inside for y, inside in zip(d, ok, strict=True)]
        written = bonus(rule, t, raw)
        return kept, [k + (1 - sum(kept)) * p for k, p in zip(kept, written, strict=True)]
    if isinstance(rule, MinP | Eta):
        law = bonus(rule, t, raw)
    elif isinstance(rule, Ensemble):
        law = [rule.draft_weight * y + (1 - rule.draft_weight) * x for x, y in zip(t, d, strict=True)]
    elif isinstance(rule, Contrastive):
        law = contrast(rule, t, raw.warm_draft)
    else:
        law = (cascade if isinstance(rule, Cascade) else token_cascade)(rule, t, d, gate)  # type: ignore[operator]
    return shared(law, d), law


def bonus(rule: Any, t: Row, raw: Raw) -> Row:
    """The row behind a kept block: the target's but for the truncations."""
    if isinstance(rule, MinP):
        gate = raw.target if rule.gate_rows == "raw" else t
        return cut(t, [p >= rule.p_base * max(gate) for p in gate])
    if isinstance(rule, Eta) or (isinstance(rule, Typical) and rule.replacement == "typical"):
        return cut(t, typical(t, rule.eps, rule.delta))
    return t


def rows_at(rows: Rows, prefix: Outcome) -> tuple[Row, Row, Raw]:
    """Processed rows of target and draft model, and those before."""
    raw_target, raw_draft = (softmax(rows.tables.logits(role, (*PROMPT, *prefix))) for role in ("target", "draft"))
    warm = Rows(rows.tables, Sampling(temperature=rows.sampling.temperature)).of("draft", prefix)
    return rows.of("target", prefix), rows.of("draft", prefix), Raw(raw_target, raw_draft, warm)


def stated(rows: Rows, rule: Any, tokens: int = TOKENS) -> Law:
    """The law of the whole text: a kept token goes on in its block, a replaced one starts a block anew."""

    def position(prefix: Outcome, left: int) -> Law:
        if len(prefix) == tokens:
            return {prefix: 1.0}
        t, d, raw = rows_at(rows, prefix)
        if left == 0:
            return mix((p, block((*prefix, y))) for y, p in enumerate(bonus(rule, t, raw)) if p > 0)
        kept, law = judged(rule, t, d, raw)
        goes_on = [(kept[y], position((*prefix, y), left - 1)) for y in IDS if kept[y] > 0]
        anew = [(law[y] - kept[y], block((*prefix, y))) for y in IDS if law[y] > kept[y]]
        return mix(goes_on + anew)

    def block(prefix: Outcome = ()) -> Law:
        return position(prefix, min(LENGTH, tokens - len(prefix)))

    return block()


def recorded(rows: Rows, rule: Any, generation: Generation) -> list[float]:
    """What the loop should have recorded as the law of each token of one path."""
    found: list[float] = []
    for round_ in generation.rounds:
        for place in range(round_.committed):
            prefix = tuple(generation.token_ids[: len(found)])
            t, d, raw = rows_at(rows, prefix)
            row = judged(rule, t, d, raw)[1] if place < round_.judged else bonus(rule, t, raw)
            found.append(row[generation.token_ids[len(found)]])
    return found


RULES: list[RowRule] = [
    Lenience(l=0.6),
    LossySD(alpha=0.3, beta=1),
    LossySD(alpha=0.3, beta="normalizing"),
    LossySD(alpha=0.4, beta=0.7),
    LossySD(alpha=0.4, beta=3),
    Cactus(alpha=0.02),
    Fuzzy(divergence="js", threshold=0.1),
    Fuzzy(divergence="kl_target_draft", threshold=0.5, reducible=True),
    Fuzzy(divergence="kl_draft_target", threshold=0.5, gate_rows="processed"),
    Fuzzy(divergence="tv", threshold=0.4, reducible=True, gate_rows="processed"),
    Ensemble(draft_weight=0.4),
    Contrastive(alpha=0.4),
    Typical(eps=0.4, delta=0.9),
    Typical(eps=0.4, delta=0.9, replacement="target"),
    MinP(p_base=0.5),
    MinP(p_base=0.5, gate_rows="processed"),
    Eta(eps=0.4, delta=0.9),
    Cascade(defer="chow", alpha=0.45),
    Cascade(defer="chow_log", alpha=0.9, gate_rows="processed"),
    Cascade(defer="diff", alpha=0.05),
    Cascade(defer="opt", alpha=-0.1),
    Cascade(defer="opt", alpha=0.4, gate_rows="processed"),
    Cascade(defer="opt_log", alpha=0.2),
    TokenCascade(defer="v1", alpha=0.3),
    TokenCascade(defer="v2", alpha=0.3, gate_rows="processed"),
    TokenCascade(defer="v3", alpha=0.5),
    TokenCascade(defer="v3", alpha=0.0, gate_rows="processed"),
]
EXACT_ENDS: list[RowRule] = [
    Lenience(l=1),
    LossySD(alpha=0, beta=1),
    LossySD(alpha=0, beta="normalizing"),
    Cactus(alpha=0),
    Fuzzy(threshold=0),
    Fuzzy(threshold=0, reducible=True),
    Ensemble(draft_weight=0),
    Contrastive(alpha=0),
    MinP(p_base=0),
    Eta(eps=0),
    Eta(delta=0),
    Cascade(defer="chow", alpha=-1e-9),
    Cascade(defer="chow_log", alpha=-1e-9),
    Cascade(defer="diff", alpha=-1),
    TokenCascade(defer="v1", alpha=-1),
    TokenCascade(defer="v2", alpha=-1e-9),
    TokenCascade(defer="v3", alpha=-1e-9),
]
NEARLY_EXACT: list[RowRule] = [
    Cascade(defer="opt", alpha=-1e9),
    Cascade(defer="opt_log", alpha=-1e9),
    Cascade(defer="chow", alpha=0),  # but for a draft model that is certain
    Cascade(defer="chow_log", alpha=0),
]
NEVER_EXACT: list[RowRule] = [
    TokenCascade(defer="v2", alpha=0),
    TokenCascade(defer="v3", alpha=0),
    *(Typical(eps=eps, delta=delta) for eps, delta in [(0, 0), (1, 1), (0.2, 0.5)]),
    *(Typical(eps=eps, delta=delta, replacement="target") for eps, delta in [(0, 0), (1, 1), (0.2, 0.5)]),
    LossySD(alpha=0, beta=2),
]
