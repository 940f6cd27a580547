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
# # Anatomy of a round
#
# What happens in a round: how many tokens are drafted, who judges them, what is kept, rewritten or escalated, which
# calls that takes, and what they cost. Everything is read from the traces of the profiled pass of a stored run.

# %%
RESULTS = None  # a results folder, as "results"; None: the shipped runs
RUNS = None  # run ids, one for each task; None: those that fit together and have the most rows
TASK = None  # a task's name; None: the first
EXAMPLE = 0  # of the timed ones
ARM = None  # an arm; None: the first whose tokens come from three models

from experiments.choosing.cost_model import prices, read_curves
from experiments.choosing.knobs import read_knobs
from experiments.figures import acceptance, adaptive, anatomy, colored_text
from experiments.figures.traces import adaptive_numbers, row_at, task_run, traced
from experiments.notebooks.reading import open_results, read_probe, read_runs, show, show_table

results = open_results(RESULTS)
runs = read_runs(results, RUNS)
run = task_run(runs, TASK)
with_trace = [name for name in run.arms if any(row.trace for row in run.rows if row.arm == name)]
by_three = [
    name for name in with_trace if all(row_at(run, name, EXAMPLE).sources.get(of) for of in ("draft", "slim", "target"))
]
arm = ARM or next(iter(by_three), with_trace[-1])
row = row_at(run, arm, EXAMPLE)
decode = colored_text.open_decode(run)
print(f"{run.task}, example {EXAMPLE}, arm {arm} ({read_knobs(run.identity['arms'][arm])})")

# %% [markdown]
# ## The answer, by source
#
# The same prompt by sd and by the arm. Of sd every token is the target's: a drafted token that passes the lossless rule
# is one that the target might have written.

# %%
beside = [name for name in with_trace if read_knobs(run.identity["arms"][name]).plain_sd][:1]
show(colored_text.draw([run], arms=[*beside, arm], example=EXAMPLE, decode=decode))

# %% [markdown]
# ## Round by round
#
# *judged* have a final verdict; *pending* are committed tokens that the target has not read yet, and has to read in its
# next call. *tiers*: one letter for each judged token, by the tier that ruled on it (draft: a gate kept it; slim;
# target). *calls*: tokens fed to each reader, one number for each call.

# %%
show_table(anatomy.table(row, decode, rounds=15))

# %% [markdown]
# ## What the calls cost
#
# With the isolated costs of the probe of this pair (`python -m experiments.probe`); without a probe, calls are as long
# as the tokens that they feed.

# %%
probe = read_probe(results, run.identity["pair"]["name"])
costs = None if probe is None else prices(probe, read_curves(probe), read_knobs(run.identity["arms"][arm]))
show(anatomy.draw([run], arm=arm, example=EXAMPLE, rounds=15, costs=costs, decode=decode))

# %%
show_table(anatomy.kinds(traced(run, arm)))

# %% [markdown]
# ## Time
#
# The profiled pass: seconds inside each reader's forwards, and the rest, which is sampling, gates, host reads, commits.

# %%
show_table(anatomy.times(row))

# %% [markdown]
# ## Which positions pass

# %%
show(acceptance.draw(runs, arms=[*beside, arm]))

# %% [markdown]
# ## What follows the text
#
# Methods that learn while they decode: their numbers after each round.

# %%
learning = [name for name in with_trace if adaptive_numbers(row_at(run, name, EXAMPLE))]
if learning:
    show(adaptive.draw([run], arms=learning[-1:], width=7))
