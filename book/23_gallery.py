# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 23. A gallery
#
# *Figs. 5 and 11 to 15 of the paper.*
#
# The paper's figures show samples that were selected. Here nothing is: each sheet has the first samples of the runs
# behind the ledger's numbers, in the order in which they were drawn. Each row is a model, each column one draw of noise.
#
# **What you'll do.** Look.
#
# **What you'll learn.** What a score cannot say: what is wrong with the images of a method that scores worse.
#
# **What you need.** [Chapter 7](07_baselines.ipynb), for what the rows are called.

# %% tags=["parameters"]
preset = "cifar16"
seeds = [0, 1, 2]

# %%
from IPython.display import display

from dkdm_lab.experiments import ledger, paper, presets
from dkdm_lab.system import figures

figures.use_style()
natural = presets.get(preset)
metric = natural.metric

# %% [markdown]
# ## Every method, from the same noise (Fig. 11)
#
# The photographs of `cifar16`, CIFAR-10 at half its side, of the first seed:

# %%
paper.sheet(preset, seed=seeds[0])

# %% [markdown]
# Two things to look for. Down a column: does a student turn the noise into what its teacher makes of it? Along a row: are
# there objects, or only colours that go well together?
#
# Their scores, of 2,500 samples each:

# %%
found = paper.scores(preset, metric)
for way, (mean, deviation) in sorted(found.items(), key=lambda row: row[1][0]):
    spread = f"± {deviation:.1f} over seeds" if deviation else "(one seed)"
    print(f"{way:18s}{metric} {mean:6.1f} {spread}")
print("" if found else "not run")

# %% [markdown]
# ## One method, other seeds
#
# A seed decides a student's first weights, its batches and the noise of these samples. The teacher is one for all.

# %%
dynamic = {"method": "dynamic"}
for seed in seeds[1:]:
    rows = {"teacher": {"method": "teacher"}, "dynamic": dynamic}
    display(paper.sheet(preset, rows, seed=seed))

# %% [markdown]
# ## Other pools, another architecture
#
# The paper's pool has $\rho = 0.4$. Smaller and larger ones, discarding half of the batches, and a transformer as the
# student:

# %%
rows = {"dynamic": dynamic}
rows |= {f"dynamic, rho = {rho}": dynamic | {"rho": rho} for rho in (0.05, 1.0)}
rows |= {"dynamic, p = 0.5": dynamic | {"discard": 0.5}}
rows |= {"dynamic, DiT": dynamic | {"student": paper.CAST[preset]["ViT"]}}
paper.sheet(preset, rows, seed=seeds[0])

# %% [markdown]
# ## At CIFAR-10's own size
#
# What minutes of a GPU make, `cifar10-short`:

# %%
paper.sheet("cifar10-short", seed=seeds[0])

# %%
shown = ledger.samples(preset, dynamic)
assert all(images.shape[1:] == (3, 16, 16) for images in shown.values())

# %% [markdown]
# ## Limits
#
# Twelve samples are an impression and no measurement. The paper's Figs. 12 to 15 show CelebA, ImageNet and two sets of
# faces at 256x256, which nobody has run here.
#
# ## Exercises
#
# 1. Cover the labels and sort the rows of the first sheet by quality. Does your order agree with the scores?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Here is the order of the scores. Twelve images tell two methods apart
# only where the scores are far from each other; compare neighbours with care.
print("from the best:", ", ".join(sorted(found, key=lambda way: found[way][0])))

# %% [markdown]
# 2. In which columns do all students agree with their teacher? What do those images have in common?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. Sorted by how near the students' images come to their teacher's, the
# nearest first. The left ones should be plain, with one ground and few edges, and
# the right ones full of detail: that is what students lose first.
kept = {m: ledger.samples(preset, {"method": m}) for m in ledger.WAYS}
kept = {m: x[seeds[0]][:12] for m, x in kept.items() if seeds[0] in x}
if "teacher" in kept and len(kept) > 1:
    own = kept.pop("teacher")
    gaps = [(x.float() - own.float()).flatten(1).norm(dim=1) for x in kept.values()]
    order = (sum(gaps) / len(gaps)).argsort()
    print("columns of the sheet:", *(order + 1).tolist())
    display(figures.image_grid(own[order], columns=12))
# %% [markdown]
# ## Further reading
#
# The paper's own samples ([Xiang et al., 2025](references.md)).
