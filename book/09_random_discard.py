# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Throwing batches away
#
# *Section 11 of the paper, Fig. 8.*
#
# Iterative distillation suffers because one batch is so much like the next. There is a blunt remedy: let the teacher
# walk on, but show the student only some of the batches. The paper calls it *random discard*.
#
# **What you'll do.** Discard with probability $p$ in each of the three pools.
#
# **What you'll learn.** Where discarding helps, what it costs, and why the final method does without.
#
# **What you need.** [Chapter 4](04_iterative.ipynb) to [chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab.data import GaussianMixture
from dkdm_lab.experiments import ledger, paper, presets, runs
from dkdm_lab.pools import IterativePool
from dkdm_lab.system import figures

figures.use_style()
settings = presets.get(preset, live=live, **changes)
sweep = presets.get("toy", live=True) if live else settings
seeds = (0, 1, 2) if live else (seed,)

# %% [markdown]
# ## What the student no longer sees
#
# At each turn the teacher denoises its batch. With probability $p$ the turn ends there; else the student gets the
# batch. Here are the levels $t$ of forty batches of an iterative pool, with and without:

# %%
plane = presets.get("toy").diffusion()
exact = GaussianMixture.ring().denoiser(plane)
shown = {}
for p in (0.0, 0.5):
    torch.manual_seed(0)
    pool = IterativePool(plane, exact, 16, discard=p)
    levels = [int(next(pool).t[0]) for _ in range(40)]
    shown[f"p = {p}"] = (range(40), levels)
    print(f"p = {p}: {pool.evaluations:,} teacher evaluations for 40 batches of 16")
figures.curves(shown, "batch shown", "t of the batch")

# %% [markdown]
# Discarding lets the student stride through the levels instead of creeping. The price is on the printed lines: to show
# one batch the teacher must work on $1/(1-p)$ of them.

# %%
turns = pool.evaluations / 16
assert 1.4 < turns / 40 < 2.8  # 1 / (1 - p) = 2, give or take what 40 batches allow

# %% [markdown]
# ## Shuffled and dynamic, in the plane
#
# Iterative distillation is left to the digits. In the plane its students diverge at every $p$: nothing clips a sample
# that was badly denoised, and a distance to points that flew off says nothing.

# %%
methods = ("shuffled", "dynamic") if live else ("iterative", "shuffled", "dynamic")
scores = {}
for method in methods:
    for p in paper.DISCARDS:
        students = [runs.Run(sweep.replace(discard=p), method, s) for s in seeds]
        found = [run.result()["metrics"][sweep.metric] for run in students]
        scores[method, p] = ledger.spread(found)
        print(f"{method:10s}p = {p}: {sweep.metric}", scores[method, p])

# %%
lines = {
    m: (paper.DISCARDS, [scores[m, p].mean for p in paper.DISCARDS])
    for m in methods
}
label = f"{sweep.metric}, mean of {len(seeds)} seeds"
figures.curves(lines, "discard probability p", label, log_y=True)

# %% [markdown]
# Read the lines from left to right: a fall means that discarding helped. It helps the shuffled pool, whose next batch
# is the last one moved by a step. It does nothing for the dynamic pool, whose batches have little in common anyway.

# %%
if live:
    assert scores["shuffled", 0.5].mean < 0.8 * scores["shuffled", 0.0].mean

# %% [markdown]
# ## Digits, from the ledger

# %%
metric = presets.get("digits").metric
lines = {}
for method in ("iterative", "shuffled", "dynamic"):
    means = {}
    for p in paper.DISCARDS:
        where = {"method": method, "discard": p}
        spread = ledger.over_seeds("digits", metric, where)
        if spread:
            means[p] = spread.mean
            print(f"{method:10s}p = {p}: {metric} {spread} over {spread.n} seeds")
    lines[method] = (list(means), list(means.values()))
figures.curves(
    lines, "discard probability p", f"{metric}, mean over seeds", log_y=True
)

# %% [markdown]
# And photographs, `cifar16`, at $p = 0.5$ alone:

# %%
for method in ("iterative", "shuffled", "dynamic"):
    for p in (0.0, 0.5):
        where = {"method": method, "discard": p}
        found = ledger.cell("cifar16", presets.get("cifar16").metric, where)
        print(f"{method:10s}p = {p}: FID {found}")

# %% [markdown]
# ## In the authors' code
#
# In `train_util_kd.py` the parameter is `prob`, the probability of *keeping* a batch; their final configurations set it
# to 1. A discarded dynamic batch of theirs walks on until it is shown, where ours goes back and another is drawn. For
# the two smaller pools there is only one batch, and no difference.
#
# ## The result beside the paper

# %%
paper.verdicts("09_random_discard")

# %% [markdown]
# Fig. 8 has no numbers in the text, and Sec. 11 does not say which $p$ it shows. We take 0.25 and 0.5.
#
# ## Limits
#
# The comparison is at equal iterations of the student. At equal cost discarding would have to earn its keep: at
# $p = 0.5$ the teacher works twice as much.
#
# ## Exercises
#
# 1. At equal teacher evaluations, is a larger pool or a larger $p$ the better purchase?
# 2. Discard deterministically: show every fourth batch. Is chance needed?
#
# ## Further reading
#
# Section 11 of the paper's supplement ([Xiang et al., 2025](references.md)).
