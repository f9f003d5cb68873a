# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Iterative distillation
#
# *Section 3.3 of the paper, first method.*
#
# The objective of the last chapter needs noisy samples from the teacher, and making them takes many denoising steps.
# The first idea is to waste none of those steps: **let the student learn from every one of them**.
#
# **What you'll do.** Watch a pool walk down from noise to digits and start again, and train a student on the way.
#
# **What you'll learn.** Why this is cheap, and why it does not work well.
#
# **What you need.** [Chapter 3](03_dkdm_objective.ipynb), and the teacher of [chapter 2](02_teacher.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab import ledger, plots, presets, runs
from dkdm_lab.data import load_images, to_model, to_uint8
from dkdm_lab.pools import IterativePool
from dkdm_lab.widgets import watch

plots.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
teacher = runs.Run(settings, "teacher", seed).model()

# %% [markdown]
# ## The pool
#
# A batch $\hat{\mathcal B}_1 = \{\hat x_i^T\}$ of pure noise is drawn. At every turn the teacher denoises it by one
# step, and the student trains on that step:
#
# $$\hat{\mathcal B}_1 = \{\hat x_i^T\}\ \to\ \hat{\mathcal B}_2 = \{\hat x_i^{T-1}\}\ \to\ \dots\ \to\
# \hat{\mathcal B}_T = \{\hat x_i^1\}\ \to\ \text{fresh noise.}$$
#
# The turn needs **one** evaluation of the teacher, for its answer has two uses. It is the student's target, and it
# moves the sample on. Written out:


# %%
@torch.no_grad()
def turn(x_t, t):
    eps, v = teacher(x_t, t)  # the one evaluation
    p = diffusion.p(x_t, t, eps, v, clip=diffusion.clip)
    x_next = diffusion.step(p, t - 1, torch.randn_like(x_t))
    return (x_t, t, eps, p), x_next  # what the student sees; where the pool goes


# %% [markdown]
# `IterativePool` is this turn in a loop, plus the restart. We can count what it asks of the teacher.

# %% tags=["nbval-check-output"]
pool = IterativePool(diffusion, teacher, 64, device=runs.device())
batches = [next(pool) for _ in range(3)]
print("levels:", [sorted(set(batch.t.tolist())) for batch in batches])
print("teacher evaluations for three batches of 64:", pool.evaluations)

# %% [markdown]
# All samples of a batch stand at the same level, and the level falls by one each turn.
#
# ## Watch it
#
# The pool never asks the student anything, so it can run alone. Left: samples of the pool. Right: how many samples
# stand at each level. Move the slider.

# %%
run = runs.Run(settings, "iterative", seed)
watch(run.source(), iterations=settings.T + 20, every=settings.T // 10)

# %% [markdown]
# The histogram is a single bar that marches to the left. It reaches the digits after $T$ turns, jumps back to noise,
# and marches again. The dashed line is what ordinary training sees in *every* batch: all levels at once.
#
# ## Train on it
#
# The same loop as for the teacher, with the pool in the place of the data.

# %%
result = run.result()
loss = result["loss"]
plots.curves(
    {"iterative": (loss["iteration"], loss["simple"])},
    "iteration",
    "L'simple",
    log_y=True,
)

# %% [markdown]
# The loss is a saw. One tooth is one walk of $T$ turns, from noise, where imitation is easy, to nearly clean digits,
# where it is hard. The student is never asked about all levels at the same time. While it learns the small levels it
# is free to forget the large ones.
#
# We can look at the forgetting directly. Take the trained student and measure its error at each level.

# %%
student = run.model()
x0 = to_model(load_images(settings.data)[:256]).to(runs.device())  # to measure with
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def error(model, level):
    t = torch.full((len(x0),), level, device=x0.device)
    x_t = diffusion.q_sample(x0, t, noise.to(x0.device))
    return float((model(x_t, t)[0] - teacher(x_t, t)[0]).square().mean())


# %%
levels = list(range(0, settings.T, 5))
lines = {"iterative": (levels, [error(student, level) for level in levels])}
plots.curves(lines, "t", "squared difference from the teacher's eps", log_y=True)

# %% [markdown]
# The error is largest at small $t$, where imitation is hardest. It rises again at large $t$: those levels the student
# left longest ago.
#
# ## The score

# %%
of_teacher = runs.Run(settings, "teacher", seed).result()
level = ("teacher", of_teacher["metrics"][settings.metric])
fid = {"iterative": runs.curve(result, settings.metric)}
plots.curves(fid, "iteration", settings.metric, log_y=True, level=level)

# %%
samples = diffusion.sample(student, 40, settings.steps, device=runs.device())
plots.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# Strokes can be made out, and hardly a digit, on a ground that should be black and is not. The curve stays far above the
# teacher's dashed line. A walk takes a hundred iterations, so each score comes after another walk, and it hardly falls.
#
# ## In the authors' code
#
# `train_util_kd.py`, `KDTeacherLoader.iterative_distillation`, is the loop above. It discards a batch at random where
# asked to, which [chapter 9](09_random_discard.ipynb) studies; our pools take `discard` for it.
#
# ## The result beside the paper
#
# The paper shows iterative distillation in Fig. 4a only, as the worst of its three methods on CIFAR-10. The ledger has
# ours, at several seeds and full length:

# %%
ledger.table(preset, ["teacher", "iterative"])

# %% [markdown]
# *Verdict:* the trend is reproduced. Iterative distillation trains, and lags far behind its teacher. The other methods
# follow in the next chapters.
#
# ## Limits
#
# The saw's teeth are $T$ turns long. With $T = 1000$ they are ten times longer than here, and the forgetting has ten
# times the time.
#
# ## Exercises
#
# 1. Average the loss over one whole tooth. Does it fall at all?
# 2. Use `discard = 0.9` in the preset. Which of the two troubles, the one in $t$ or the one in the samples, does it
#    help against?
# 3. Reverse the roles: train on the batches of one walk in random order. What have you built?
#
# ## Further reading
#
# Section 3.3 of the paper ([Xiang et al., 2025](references.md)).
