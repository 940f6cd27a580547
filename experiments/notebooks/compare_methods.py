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
# # Compare methods
#
# Which method is faster on this pair, by how much, and at what cost in fidelity and quality? The first cell points to a
# results folder; `None` reads the runs that come with the notebooks: the embedded pair, two tasks, 27 arms.

# %%
RESULTS = None  # a results folder, as "results"; None: the shipped runs
RUNS = None  # run ids, one for each task; None: those that fit together and have the most rows

from experiments.figures import acceptance, fractions, frontier, heat_map, predicted, rejection, sweep_line, time_shares
from experiments.figures.values import sweeps
from experiments.notebooks.reading import open_results, read_runs, show, show_table
from experiments.tables import MEAN, summaries
from experiments.text_tables import headline_cells

runs = read_runs(open_results(RESULTS), RUNS)
arms = runs[0].arms
print(f"{', '.join(run.task for run in runs)}: {len(arms)} arms on pair {runs[0].identity['pair']['name']}")
for notice in sorted({notice for run in runs for notice in run.notices}):
    print(f"note: {notice}")

# %% [markdown]
# ## The headline
#
# The mean over the tasks of each task's number. Speedups are ratios of totals over the same prompts, intervals are 95%
# bootstraps over prompts. A rejection rate or a speed alone proves nothing: read them beside the fidelity.

# %%
told, _ = summaries(runs)
show_table(headline_cells(told.get(MEAN, next(iter(told.values()))), arms))

# %% [markdown]
# ## Speed at equal fidelity
#
# The gray line is the free frontier: what a coin per round between sd and unread drafting gives. A method is worth its
# judgment where it is above that line; a *gate* where it is above the dashed one, if that was measured.

# %%
show(frontier.draw(runs, shown="mean", panel_height=4))

# %% [markdown]
# ## Who rules, who writes, where the time goes

# %%
show(fractions.draw(runs))
show(time_shares.draw(runs))

# %% [markdown]
# ## Rejection
#
# By task, then by position in the draft. The caption counts what has no number: an arm that judges nothing rejects
# nothing.

# %%
show(rejection.draw(runs, width=5))
judging = [name for name in arms if any(row.judged for run in runs for row in run.rows if row.arm == name)]
show(acceptance.draw(runs, arms=judging[:7], width=5))

# %% [markdown]
# ## Knobs
#
# Arms that differ in one key of the method only make a line.

# %%
for knob in ("stop.length", "verifier.slim.skip_ratio", "verifier.gate.threshold"):
    lines = sweeps(runs[0], knob)
    if lines:
        for metric in ("tokens_per_second", "fidelity"):
            show(sweep_line.draw(runs, lines=lines, knob=knob, metric=metric, reference=[arms[0]]))

# %% [markdown]
# ## By task
#
# Speed relative to sd's, task by task, of the arms that judge: a mean may hide that a method suits one task alone.

# %%
judged = [name for name in judging if name != "accept_all"]
base = "sd" if "sd" in arms else arms[0]
show(heat_map.draw(runs, arms=judged, metric="tokens_per_second", relative_to=base, width=5, intervals=False))

# %% [markdown]
# ## Does the cost of calls explain the speed?
#
# Predicted from each arm's calls, at the costs of calls in turn beside each example, and its loop's own time. An arm
# far from the line was disturbed, or does something that calls do not tell.

# %%
show(predicted.draw(runs, width=5, panel_height=4.2))
