# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14. The report
#
# *Every claim and every number of the paper's experiments.*
#
# This page is generated. Its rows are the paper's sentences and numbers, written down once in `dkdm_lab/experiments/paper.py`. What
# stands beside them comes from the ledger, `book/results/`, at every preset that has been run. To fill a cell that says
# "not run", run it: `dkdm run --preset cifar10`.
#
# **What you'll do.** Nothing but read.
#
# **What you'll learn.** What of the paper holds here, and what nobody has tried here yet.
#
# **What you need.** Any of the other chapters, for what the words mean.

# %% tags=["parameters"]
places = ["Table 2", "Table 3", "Table 5", "Table 9", "Table 11"]

# %%
from dkdm_lab.experiments import ledger, paper, presets
from dkdm_lab.notebook.explore import LedgerExplorer
from dkdm_lab.system import figures

figures.use_style()

# %% [markdown]
# ## Claims
#
# A verdict compares two runs of the same seed, the same teacher and the same preset:
#
# - *reproduced at this scale*: the claim holds for every seed;
# - *undecided*: it holds for some seeds and not for others;
# - *not reproduced*: it holds for none;
# - *not run*: a result is missing.
#
# How many seeds there are stands beside it, and one seed is one seed.
#
# A claim is about pixels or about latents, and stands empty in the columns of the other kind.

# %%
paper.claims()

# %% [markdown]
# ## Numbers
#
# A number can be reproduced only where the paper's own experiment is run, data set, sizes and all. The columns of the
# small presets are for orientation: there the same method ran on other images, with other networks, and digits are
# judged by another metric. They stand beside the first data set of each table. Rows that nobody has run are folded into
# one line.
#
# ### Table 2: the main result

# %%
paper.numbers("Table 2")

# %% [markdown]
# ### Table 3: in latent space
#
# The latent models of [chapter 15](15_latent_space.ipynb). Digits are judged by digits-FID alone, so the column has no sFID.

# %%
paper.numbers("Table 3", small=["digits-latent"])

# %% [markdown]
# ### Table 5: across architectures

# %%
paper.numbers("Table 5")

# %% [markdown]
# ### Table 9: speed
#
# Seconds for 100 iterations on an A100. What we measured are ratios, in [chapter 12](12_cost.ipynb).

# %%
paper.numbers("Table 9")

# %% [markdown]
# ### Table 11: two distributions

# %%
paper.numbers("Table 11")

# %% [markdown]
# ## Curves
#
# The paper's figures come without numbers. What each curve shows is a claim above; here is which run of ours draws it.

# %%
paper.curves()

# %% [markdown]
# ## Every number behind it
#
# The tables show means. Here is every run of the ledger. Open a seed to see how its number was made: how many samples,
# in how many steps, on which hardware, with which versions. In JupyterLab, choose another metric and see whether the
# order of the methods stays; choose *all* settings, and the ablations come in. On the site only the preset can be chosen.

# %%
LedgerExplorer("digits")

# %% [markdown]
# ## How the cells are filled
#
# All runs behind these tables, and what each of them stands on, are one graph of files. `make sweep PRESET=cifar10` makes
# those that the ledger misses, side by side where they can be. This is its shape for one seed:

# %%
runs = [run for run, _ in paper.sweep(presets.get("cifar10"), (0,)).values()]
figures.graph(runs)

# %% [markdown]
# Each box says how many runs there are of a method. An arrow leads to the runs that need it first.

# %%
rows = [n for n in paper.NUMBERS if n.place in places]
print(
    f"{len(rows)} numbers, {len(paper.CLAIMS)} claims, {len(paper.figure_curves('digits'))} curves"
)
assert {n.place for n in paper.NUMBERS} == set(places)

# %% [markdown]
# ## Limits
#
# A verdict counts seeds and knows nothing of the size of an effect. Three seeds that agree are worth less than
# they look: by chance alone they would do so in one of four cases, either way. Where a claim is about a difference that
# the figure shows to be small, read the figure.
#
# ## Exercises
#
# 1. Choose a claim, write down what result would refute it, and look it up.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Chosen: a student of the dynamic pool is better than one of a
# synthetic set, at equal iterations (Table 2). A seed for which data-free
# training has the lower digits-FID would speak against it, and three would refute.
dynamic, free = (
    ledger.by_seed("digits", "digits-FID", {"method": method})
    for method in ("dynamic", "data-free")
)
for s in sorted(dynamic.keys() & free.keys()):
    print(f"seed {s}: dynamic {dynamic[s]:.1f}, data-free {free[s]:.1f}")
assert all(dynamic[s] < free[s] for s in dynamic.keys() & free.keys())

# %% [markdown]
# 2. Which of the claims would you run at full size first, if you had one GPU for one day?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. Table 2's on CIFAR-10, dynamic against data-free, for the others
# build on it. Here is what each run of that sweep computes, the cheapest first,
# in 10^18 operations. A GPU that does 10^14 a second does 8.6 of these in a day.
costly = {run.name: run.remaining_operations() / 1e18 for run in runs}
for name in sorted(costly, key=costly.get):
    print(f"{costly[name]:8.2f}  {name}")
# %% [markdown]
# ## Further reading
#
# The paper ([Xiang et al., 2025](references.md)), with this page beside it.
