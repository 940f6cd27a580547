"""The content of probe.json as text. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.probing.summary import MEAN, best, number
from experiments.text_tables import ABSENT, text_table

Content = Mapping[str, Any]
PREDICTED = "predicted, without this harness's own time per round"
APPROXIMATION = (
    "sd's rounds follow exactly from the rows. {method}'s are an approximation: a kept token that differs from the "
    "target's\nis treated as if the context did not change, and the slim view reads the target's keys and values of "
    "the prompt alone.\noracle: {method} with a gate that escalates exactly where the slim view's first choice is not "
    "the target's. Modelled, no\nmethod: a bound, at fidelity 1, for gates that look at rows and not at the drafted "
    "token.\n"
    "ideal, specdec_oracle: sd with stop rules that know the target's rows, compared with sd at its best length: "
    "bounds, no\nmethods. Counts are real, seconds modelled, as all are here. ideal drafts exactly the tokens that are "
    "kept;\nspecdec_oracle is SpecDec++ with the true min(1, target/draft) for its head (above 0.3, 2 to 20 tokens)."
)


def show(content: Content) -> str:
    """All tables and the verdict, in the order of the parts."""
    parts = [vocabulary(content), costs(content), agreement(content), positions(content), predictions(content)]
    notices = "\n".join(f"note: {notice}" for notice in content["notices"])
    return "\n\n".join([*parts, *([notices] if notices else []), verdict(content)])


def vocabulary(content: Content) -> str:
    cells = [["tokenizer", "tokens", "same id", "target's missing", "not in target", "differing"]]
    for role, entry in content["vocabulary"].items():
        names = ("size", "shared", "missing", "extra", "differing")
        cells.append([role, *(str(entry[name]) for name in names)])
    return "Vocabulary\n" + text_table(cells)


def costs(content: Content) -> str:
    readers, context = content["costs"]["readers"], content["costs"]["context"]
    lengths = list(readers["target"])
    head = ["reader", *(f"{fed} fed" for fed in lengths)]
    times, relative = [head], [head]
    for name, steps in readers.items():
        times.append([name, *(_milliseconds(steps[fed]) for fed in lengths)])
        relative.append([name, *(f"{steps[fed]['over_target_step']:.2f}" for fed in lengths)])
    return (
        f"Step costs in ms behind {context} tokens: median±half the interquartile range of {content['repeats']}\n"
        f"{text_table(times)}\n\nRelative to a target step of 1 token\n{text_table(relative)}"
    )


def _milliseconds(cost: Mapping[str, float]) -> str:
    return f"{1e3 * cost['median']:.2f}±{500 * (cost['high'] - cost['low']):.2f}"


def agreement(content: Content) -> str:
    tasks = list(content["outputs"])
    cells = [["reader", "skipped", "agreement", "TV", "KL (nats)", *(f"agr. {task}" for task in tasks)]]
    for name, entry in content["agreement"].items():
        view = entry["view"]
        cells.append(
            [
                name,
                ABSENT if view is None else f"{view['skipped'] / view['layers']:.0%}",
                _cell(entry["agreement"][MEAN], 3),
                _cell(entry["tv"][MEAN], 3),
                _cell(entry["kl"][MEAN], 3),
                *(_cell(entry["agreement"][task], 3, interval=False) for task in tasks),
            ]
        )
    outputs = ", ".join(f"{task} {entry['tokens']}" for task, entry in content["outputs"].items())
    return (
        f"Agreement with the target, teacher-forced on its greedy outputs to {content['prompts']} {content['split']} "
        f"prompts per task\n(tokens: {outputs}); mean over tasks, 95% intervals over prompts\n{text_table(cells)}"
    )


def positions(content: Content) -> str:
    roles = list(content["positions"])
    cells = [["position", "tokens", *(f"{role} {what}" for role in roles for what in ("entropy", "top prob."))]]
    for rows in zip(*content["positions"].values(), strict=True):
        numbers = [f"{row[name]:.3f}" for row in rows for name in ("entropy", "top_probability")]
        cells.append([f"{rows[0]['from']}-{rows[0]['to'] - 1}", str(rows[0]["tokens"]), *numbers])
    return f"Entropy (nats) and probability of the first choice, by position in the output\n{text_table(cells)}"


def predictions(content: Content) -> str:
    tasks = list(content["outputs"])
    columns = ["tokens/s", "speedup", "over sd", "tokens/round", "drafted/token", "target calls", "escalating"]
    cells = [["arm", "drafted", *columns, *(f"tokens/s {task}" for task in tasks)]]
    fastest = [best(content["predicted"], entry["arm"]) for entry in content["predicted"]]
    for entry in content["predicted"]:
        speed, mark = entry["tokens_per_second"], "*" if entry in fastest and entry["draft_length"] else ""
        over = entry["over_sd"] and entry["arm"] != "sd"
        escalates = over and entry["draft_length"]
        cells.append(
            [
                entry["arm"],
                str(entry["draft_length"] or ABSENT),
                f"{number(speed[MEAN]):.0f}{mark}",
                _cell(entry["speedup"][MEAN], 2),
                _cell(entry["over_sd"][MEAN], 2) if over else ABSENT,
                _cell(entry["tokens_per_round"][MEAN], 2, interval=False),
                _cell(entry["drafted_per_token"][MEAN], 2, interval=False),
                _cell(entry["target_calls_per_token"][MEAN], 3, interval=False),
                _cell(entry["escalating_rounds"][MEAN], 2, interval=False) if escalates else ABSENT,
                *(f"{number(speed[task]):.0f}" for task in tasks),
            ]
        )
    title = (
        f"Tokens per second at temperature 0, {PREDICTED};\nmean over tasks, 95% intervals over prompts at the median "
        "step costs, * the best length"
    )
    note = f"\n{APPROXIMATION.format(method=content['method'])}" if len(content["predicted"]) > 1 else ""
    return f"{title}\n{text_table(cells, lead=2)}{note}"


def verdict(content: Content) -> str:
    """What it comes to in words; the break-even last."""
    method, facts = content["method"], content["break_even"]
    sd, ours = best(content["predicted"], "sd"), best(content["predicted"], method)
    if facts is None or sd is None or ours is None:
        return "Break-even: not known without a draft model."
    gain = number(sd["speedup"][MEAN])
    lead = number(ours["tokens_per_second"][MEAN]) / number(sd["tokens_per_second"][MEAN])
    holds = facts["sum"] < 1
    return (
        f"sd: {gain:.2f} of vanilla's speed at its best length {sd['draft_length']}, so the pair "
        f"{'suits' if gain > 1 else 'does not suit'} speculative decoding.\n"
        f"{method}: {number(ours['speedup'][MEAN]):.2f} of vanilla's speed at its best length {ours['draft_length']}, "
        f"{lead:.2f} of the best sd; what it costs in fidelity is for `python -m experiments.run` to say.\n"
        f"Break-even at draft length {facts['draft_length']}: t(slim)/t(target) = {1e3 * facts['slim_seconds']:.2f} / "
        f"{1e3 * facts['target_seconds']:.2f} ms = {facts['cost_ratio']:.2f}, plus {facts['escalating_rounds']:.2f} of "
        f"rounds that escalate, is {facts['sum']:.2f}: {'below 1, it holds' if holds else 'not below 1, it fails'}."
    )


def _cell(entry: Any, digits: int, interval: bool = True) -> str:
    if entry is None:
        return ABSENT
    text = f"{number(entry):.{digits}f}"
    if not interval or not isinstance(entry, Mapping):
        return text
    return f"{text} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
