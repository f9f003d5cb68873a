# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Shuffled iterative distillation
#
# *Section 3.3 of the paper, second method.*
#
# Iterative distillation shows the student one level at a time. The repair is to let the samples start at different
# levels, so that every batch holds all of them.
#
# **What you'll do.** Denoise each sample of a batch for a random number of steps, and then go on as before.
#
# **What you'll learn.** That uniform levels cure the forgetting, and that one more trouble is left.
#
# **What you need.** [Chapter 4](04_iterative.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab import ledger, plots, presets, runs
from dkdm_lab.data import to_uint8
from dkdm_lab.widgets import watch

plots.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
teacher = runs.Run(settings, "teacher", seed).model()

# %% [markdown]
# ## Shuffle denoise
#
# Draw a batch of noise $\hat{\mathcal B}_0^s = \{\hat x_i^T\}$. Draw a level $t_i$ for each sample, uniformly. Let the
# teacher walk each sample down to its own level:
#
# $$\hat{\mathcal B}_0^s = \{\hat x_i^T\}\ \to\ \hat{\mathcal B}_1^s = \{\hat x_i^{t_i}\},
# \qquad t_i \sim \text{uniform}.$$
#
# After that the turns are those of iterative distillation. A sample that reaches the clean end is replaced by fresh
# noise at the top, on its own, while the others walk on. If the levels were uniform once, they stay so.

# %%
run = runs.Run(settings, "shuffled", seed)
pool = run.source()
pool.fill()
before = pool.t.clone()
batch = next(pool)
assert torch.equal(pool.t, torch.where(before == 0, settings.T - 1, before - 1))
print(f"{len(before)} samples at {before.unique().numel()} different levels")

# %% [markdown]
# ## Watch it

# %%
watch(run.source(), iterations=settings.T, every=settings.T // 10)

# %% [markdown]
# The histogram stays at the dashed line at every turn: the bar of the last chapter is gone. The samples are always a
# mixture, from noise (top left) to digits (bottom right).
#
# ## Train on it

# %%
methods = ("shuffled", "iterative")
results = {method: runs.Run(settings, method, seed).result() for method in methods}
losses = {m: r["loss"] for m, r in results.items()}
lines = {m: (loss["iteration"], loss["simple"]) for m, loss in losses.items()}
plots.curves(lines, "iteration", "L'simple", log_y=True)

# %% [markdown]
# No teeth. The shuffled loss is an average over all levels at each iteration, and it falls smoothly.

# %%
half = len(losses["shuffled"]["simple"]) // 2
late = {method: loss["simple"][half:] for method, loss in losses.items()}
swing = {method: max(x) / min(x) for method, x in late.items()}
for method, value in swing.items():
    print(f"{method}: largest over smallest loss, second half: {value:.0f}")
assert swing["shuffled"] < swing["iterative"]

# %% [markdown]
# ## The score

# %%
of_teacher = runs.Run(settings, "teacher", seed).result()
level = ("teacher", of_teacher["metrics"][settings.metric])
fid = {m: runs.curve(r, settings.metric) for m, r in results.items()}
plots.curves(fid, "iteration", settings.metric, log_y=True, level=level)

# %%
student = run.model()
samples = diffusion.sample(student, 40, settings.steps, device=runs.device())
plots.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# At equal iterations the shuffled student is far closer to the teacher than the iterative one. Nothing but the order
# of the levels has changed.
#
# ## What is left
#
# Look at one batch of the pool and at the next. They hold **the same samples**, one step further. In ordinary training
# two samples meet in a batch by chance and part again. Here they are bound to each other for as long as a walk lasts.
# We can measure how much of a batch is new.

# %%
pool = run.source()
first, second = next(pool).x_t, next(pool).x_t
first, second = first.flatten(1), second.flatten(1)
itself = torch.nn.functional.cosine_similarity(first, second).mean()
another = torch.nn.functional.cosine_similarity(first, second.flip(0)).mean()
print(
    f"similarity to itself one turn later: {itself:.2f}, to another: {another:.2f}"
)
assert itself > 0.8

# %% [markdown]
# One turn hardly changes a sample, so consecutive batches are nearly the same batch. This is the trouble that the next
# chapter removes.
#
# ## In the authors' code
#
# `train_util_kd.py` handles the shuffled method as the dynamic one with a pool of exactly one batch (`choice ==
# 'shffled_iterative_distillation'`), and so does `pools.py`. Their shuffle denoise (`denoise_fn.py`,
# `manage_denoise_fn`) walks every sample one step at a time. It draws the target from $1, \dots, T - 1$, so that no
# sample starts as pure noise; ours draws from all $T$ levels.
#
# ## The result beside the paper
#
# Fig. 4a of the paper puts the shuffled method between the iterative and the dynamic one. Ours, from the ledger:

# %%
ledger.table(preset, ["teacher", "iterative", "shuffled"])

# %% [markdown]
# *Verdict:* the trend is reproduced: shuffling helps by far more than the spread over seeds.
#
# ## Limits
#
# Our shuffle denoise is a cheap one (`warmup="harvest"`); [chapter 6](06_dynamic.ipynb) compares it with the paper's.
#
# ## Exercises
#
# 1. Let all samples start at one level and discard batches at random. After how many turns are the levels uniform?
# 2. Give the shuffled pool a larger batch. Does the similarity of consecutive batches matter less then?
# 3. Derive how often a given sample is replaced, and from it how many different samples the student sees in all.
#
# ## Further reading
#
# Section 3.3 of the paper ([Xiang et al., 2025](references.md)).
