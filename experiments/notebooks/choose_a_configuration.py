# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choose a configuration
#
# For *your* pair: which method, how many drafted tokens, which share of skipped layers, which thresholds, at the loss
# of fidelity that you accept? It reads stored runs and a probe:
#
# ```
# python -m experiments.probe pair=MINE
# python -m experiments.run experiment=draft_length size=full pair=MINE
# ```
#
# `MINE` is a yaml of conf/pair; any two models are a pair as `pair=local pair.models.target=... pair.models.draft=...`
# (docs/pairs.md). `size=full` times 40 prompts of each task; below 10 nothing is recommended.

# %%
RESULTS = None  # a results folder, as "results"; None: the shipped runs
RUNS = None  # run ids, one for each task; None: those that fit together and have the most rows
PAIR = None  # the name of your pair; None: of whatever has the most rows
TASK = None  # for this task alone; None: the mean over all
BOUND = 0.01  # the shortfall that you accept: 0.01 is one token in a hundred that is not the target's own choice

from experiments.choosing.recommend import cells, choose, explain
from experiments.figures import frontier, sweep_line
from experiments.figures.values import sweeps
from experiments.frontier_report import interval
from experiments.notebooks.reading import open_results, read_probe, read_runs, show, show_table

results = open_results(RESULTS)
runs = read_runs(results, RUNS, PAIR)
pair = runs[0].identity["pair"]["name"]
probe = read_probe(results, pair)
print(f"pair {pair}; tasks {', '.join(run.task for run in runs)}; {'a' if probe else 'no'} probe")

# %% [markdown]
# ## The recommendation
#
# An arm is within the bound if the upper end of its shortfall's interval is; it is recommended if the lower end of its
# speed over the fastest plain sd is above 1, and enough prompts were timed. Else nothing is to be recommended over sd,
# and that is said.

# %%
choice = choose(runs, BOUND, probe, TASK)
print(explain(choice))

# %% [markdown]
# ## At other bounds

# %%
table = [["shortfall at most", "recommended", "knobs", "over sd", "sure"]]
for bound in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
    found = choose(runs, bound, None, TASK)
    one = found.recommended or found.measured.baseline
    sure = "-" if found.recommended is None or found.sure is None else f"{found.sure:.0%}"
    table.append([f"{bound:g}", one.arm, str(one.knobs), interval(one.over_sd, 2), sure])
show_table(table)

# %% [markdown]
# ## All candidates
#
# *at most*: the largest shortfall that the data still allow: the end of the interval, or 3 / prompts where a lossy arm
# showed a loss in fewer than 3 prompts. *over coin* below 1: a coin between sd and unread drafting is faster at that
# fidelity.

# %%
show_table(cells(choice))

# %%
show(frontier.draw(runs, shown="mean", panel_height=4))

# %% [markdown]
# ## The cost model
#
# seconds = scale x isolated forward seconds + seconds per round x rounds, fitted to all arms whose calls the probe has
# costs of. How well it tells an arm that it was not fitted to says how far to trust what it predicts.

# %%
if choice.model is not None:
    print(f"scale {choice.model.scale:.2f}, {1e3 * choice.model.per_round:.2f} ms per round")
    show_table([["arm", "seconds per token, predicted over measured - 1"]] + [
        [name, f"{error:+.1%}"] for name, error in choice.model.errors.items()
    ])  # fmt: skip

# %% [markdown]
# ## Draft length, as measured and as predicted
#
# Lines: measured arms that differ in the draft length alone. The probe's own prediction for sd and the hierarchical
# method is in `probe.png`; with the harness's time per round from the fit, the best lengths are below.

# %%
lengths = sweeps(runs[0], "stop.length")
if lengths:
    show(sweep_line.draw(runs, lines=lengths, knob="stop.length", reference=["vanilla"]))
if probe is not None and choice.model is not None:
    table = [["arm", "drafts of", "tokens/s, predicted"]]
    for entry in probe["predicted"]:
        if entry["draft_length"] and entry["arm"] in ("sd", probe["method"]):
            speed, rounds = (
                entry[name]["mean over tasks"]["value"] for name in ("tokens_per_second", "tokens_per_round")
            )
            seconds = choice.model.seconds(1 / speed, 1 / rounds)
            table.append([entry["arm"], str(entry["draft_length"]), f"{1 / seconds:.0f}"])
    show_table(table)

# %% [markdown]
# ## What to measure next
#
# Settings that nobody measured, predicted to be faster than the choice within the bound: approximations, each from one
# measured arm. Measure them as arms of the next run (`{LABEL: KEY=VALUE ...}`) before you use one.

# %%
for variant in choice.variants:
    print(variant)
if not choice.variants:
    print("none")
