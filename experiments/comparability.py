"""In what runs must agree to stand in one table, and how a table tells what it mixes on request."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.differences import flatten
from experiments.errors import UserError, near

if TYPE_CHECKING:
    from experiments.tables import StoredRun

# Parts of a run's identity that must be the same in all runs of a table; beside them:
# settings: of the method and the arms, as they were composed; prompts: the examples of the runs on one task;
# seed: the seeds of each task's runs.
IDENTICAL = (
    "code_hash", "device", "dtype", "threads", "mode", "versions", "optional", "pair", "heads", "chat", "sampling",
)  # fmt: skip
COMPARABLE = (*IDENTICAL, "settings", "prompts", "seed")
MIXABLE = tuple(key for key in COMPARABLE if key != "sampling")  # at another temperature the metrics are others
MOST = 6  # leaves of a nested value that are told
Mixed = dict[str, dict[str, list[str]]]  # key -> value as it is told -> the runs that have it


def check_comparable(runs: Sequence[StoredRun], mix: Collection[str] = ()) -> None:
    """Raises UserError for runs that do not mix; `mix` names the keys that may differ."""
    parse_mix(tuple(mix))
    for run in runs[1:]:
        if run.arms != runs[0].arms:
            raise UserError(
                f"runs on {runs[0].task} and {run.task} are not comparable: they differ in arms "
                f"({', '.join(runs[0].arms)}; {', '.join(run.arms)})"
            )
    refused = {key: values for key, values in mixed(runs).items() if key not in mix}
    if refused:
        keys = [key for key in refused if key in MIXABLE]
        flag = f"; accepted: runs that agree in them, or --mix {','.join(keys)}" if len(keys) == len(refused) else ""
        where, why = ", ".join(dict.fromkeys(run.task for run in runs)), "; ".join(told(refused))
        raise UserError(f"runs on {where} are not comparable: they differ in {', '.join(refused)} ({why}){flag}")


def parse_mix(texts: Sequence[str], known: Collection[str] = MIXABLE) -> tuple[str, ...]:
    """`KEY,KEY` of each flag -> the keys. Raises UserError for others than the known ones."""
    keys = tuple(key for text in texts for key in text.split(","))
    for key in keys:
        if key not in known:
            raise UserError(f"--mix {key}: not a key that may differ{near(key, known)}")
    return keys


def mixed(runs: Sequence[StoredRun]) -> Mixed:
    """The keys in which runs differ, in the order of COMPARABLE, with each value and the runs that have it."""
    found: Mixed = {}
    for key in COMPARABLE:
        values = [value_of(run, key, runs) for run in runs]
        if all(value == values[0] for value in values):
            continue
        found[key] = {}
        for run, text in zip(runs, texts(values), strict=True):
            found[key].setdefault(text, []).append(label(run, runs))
    return found


def value_of(run: StoredRun, key: str, runs: Sequence[StoredRun]) -> Any:
    """What a run has of a key, such that runs of a table that do not mix have equal ones."""
    if key == "settings":
        return run.settings
    if key == "seed":
        return ", ".join(str(seed) for seed in sorted({one.identity.get("seed", 0) for one in same_task(run, runs)}))
    if key == "prompts":
        tasks = [one.identity["task"] for one in same_task(run, runs)]
        return run.identity["task"] if any(task != tasks[0] for task in tasks) else "the same"
    return run.identity.get(key)


def same_task(run: StoredRun, runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs on the task of one of them, itself included."""
    return [one for one in runs if one.task == run.task]


def label(run: StoredRun, runs: Sequence[StoredRun]) -> str:
    """The task of a run, with its seed where several runs are on it."""
    return run.task if len(same_task(run, runs)) == 1 else f"{run.task} seed {run.identity.get('seed', 0)}"


def texts(values: Sequence[Any]) -> list[str]:
    """Each value in a few words, equal ones in equal words: of nested ones only leaves in which they differ."""
    distinct: list[Any] = []
    for value in values:
        distinct += [] if value in distinct else [value]
    nested = any(isinstance(value, Mapping) for value in distinct)
    words = _leaves_that_differ(distinct) if nested else ["none" if one is None else str(one) for one in distinct]
    if len(set(words)) < len(words):  # what differs was left out
        words = [f"{text} [{place}]" for place, text in enumerate(words, start=1)]
    return [words[distinct.index(value)] for value in values]


def _leaves_that_differ(values: Sequence[Any]) -> list[str]:
    leaves = [{} if value is None else flatten(value) for value in values]
    names = dict.fromkeys(name for one in leaves for name in one)
    differing = [name for name in names if any(one.get(name) != leaves[0].get(name) for one in leaves)]
    parts = [[f"{name} {one[name]}".strip() for name in differing if name in one] for one in leaves]
    left = [f" and {len(part) - MOST} more" if len(part) > MOST else "" for part in parts]
    return [(", ".join(part[:MOST]) or "none") + more for part, more in zip(parts, left, strict=True)]


def told(found: Mixed) -> list[str]:
    """`device: A (reasoning, qa), B (coding)` for each key."""
    return [f"{key}: {', '.join(_with_runs(*one) for one in values.items())}" for key, values in found.items()]


def _with_runs(value: str, runs: Sequence[str]) -> str:
    return f"{value} ({', '.join(runs)})"


def footer(runs: Sequence[StoredRun]) -> list[str]:
    """One line that tells all that a table mixes; none where it mixes nothing."""
    found = mixed(runs)
    return [f"Mixed on request: {'; '.join(told(found))}. Ratios are within a run, means over unlike runs."] * bool(
        found
    )


def columns(runs: Sequence[StoredRun]) -> dict[str, dict[str, str]]:
    """For a CSV: the value of each mixed key by task; several where a task has several."""
    found: dict[str, dict[str, str]] = {}
    for key, values in mixed(runs).items():
        value = {who: text for text, own in values.items() for who in own}
        own_values = {run.task: [value[label(one, runs)] for one in same_task(run, runs)] for run in runs}
        found[key] = {task: " | ".join(dict.fromkeys(own)) for task, own in own_values.items()}
    return found


def cells(more: Mapping[str, Mapping[str, str]], task: str) -> list[str]:
    """The cells of those columns in the lines of a task; in lines of a mean every value."""
    return [of.get(task) or " | ".join(dict.fromkeys(of.values())) for of in more.values()]


def notes(runs: Sequence[StoredRun]) -> list[str]:
    """What the footer of a table says below where it was measured: what it mixes, and the notices of its runs."""
    return [*footer(runs), *(f"Note: {notice}." for notice in sorted({one for run in runs for one in run.notices}))]


def measured_where(runs: Sequence[StoredRun]) -> str:
    """What all runs share; the rest is told by `notes`."""
    identity, differing = runs[0].identity, mixed(runs)
    told = {
        "pair": f"pair {identity['pair']['name']}",
        "sampling": f"temperature {identity['sampling']['temperature']:g}",
        "device": identity["device"],
        "dtype": identity["dtype"],
        "mode": f"mode {identity['mode']}" if "mode" in identity else "",
        "threads": f"{identity['threads']} thread(s)",
        "versions": ", ".join(f"{name} {number}" for name, number in identity["versions"].items()),
        "code_hash": f"code {identity['code_hash']}",
    }
    text = ", ".join(one for key, one in told.items() if one and key not in differing)
    return f"{text[:1].upper()}{text[1:]}."
