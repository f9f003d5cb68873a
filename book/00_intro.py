# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 0. The question
#
# *The paper's introduction and Figs. 1 and 2.*
#
# A diffusion model learns from data. The best ones learn from billions of images. Suppose someone gives you
# such a model and not the images. Can you train a **new** model, of another size or another kind, from the old
# one alone?
#
# [Xiang et al. (2025)](references.md) call this *data-free knowledge distillation for diffusion models*, DKDM,
# and answer yes. This book rebuilds their answer from its first equation and checks it with numbers.
#
# **What you'll do.** Train a model from another model, without any data, in a few seconds.
#
# **What you'll learn.** What the three ways of training are, and where this book leads.
#
# **What you need.** Some Python and some PyTorch. No GPU and no download.

# %% tags=["parameters"]
iterations = 1500
seed = 0

# %%
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture
from dkdm_lab.experiments import presets
from dkdm_lab.metrics import energy_distance
from dkdm_lab.pools import DynamicPool
from dkdm_lab.system import figures
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(
    "toy"
)  # points in the plane, whatever the rest of the book runs on
diffusion = settings.diffusion()

# %% [markdown]
# ## Three ways to train
#
# A diffusion model trains on triples: a noisy sample $x^t$, its noise level $t$, and the noise $\epsilon$ that
# was added. The three ways below differ in one thing only: **where the triple comes from**.

# %%
figures.paradigms()

# %% [markdown]
# Read each row from left to right. *Data-based training* noises real samples. *Data-free training* first lets the
# old model, the **teacher**, generate a data set of its own, at the price of many denoising steps an image, and
# then goes on as if that were real. *DKDM* never finishes an image. The teacher takes a single denoising step, the
# new model, the **student**, learns from that step, and the half-denoised sample goes back to wait for its next
# turn.
#
# ## The whole book in one minute
#
# Here are the eight clusters that play the part of the data. The teacher knows them exactly: for a mixture of
# Gaussians the perfect denoiser can be written down. The student is a small neural network that has seen nothing.

# %%
data = GaussianMixture.ring()
teacher = data.denoiser(diffusion)
torch.manual_seed(seed)
student = networks.build(settings.student)

# %% [markdown]
# A *pool* holds noisy samples. At every turn the teacher denoises a random batch of them by one step, and the
# student is trained on what the teacher did. No sample of the data is touched from here on.

# %%
pool = DynamicPool(
    diffusion, teacher, settings.batch_size, rho=settings.rho, seed=seed
)
student, history = train(
    student, pool, diffusion, iterations, lr=settings.lr, ema=settings.ema
)
distilled = diffusion.sample(student, 1000, steps=50, seed=seed)

# %%
reference = data.sample(1000, seed=1)
figures.points(
    {
        "noise, the start": torch.randn(1000, 2),
        "distilled student": distilled,
        "teacher": diffusion.sample(teacher, 1000, steps=50),
    },
    reference=reference,
)

# %% [markdown]
# Grey: the data, drawn for your eyes only. Orange: samples. Student and teacher both start from noise like that on
# the left, and the student's points fall on all eight clusters, as the teacher's do. The energy distance to the data
# says in one number how near they come: for two sets of data it would be zero on average.

# %%
noise, after = (
    energy_distance(x, reference) for x in (torch.randn(1000, 2), distilled)
)
print(f"noise: {noise:.3f}   distilled student: {after:.3f}")
near = (torch.cdist(distilled, data.means) < 0.25).sum(0)  # three deviations
print("the student's points near each cluster:", *near.tolist())
assert after < noise / 10 and near.min() > 50

# %% [markdown]
# ## How to use this book
#
# Each chapter takes one idea of the paper, and goes: equation, short code, figure. What the idea stands on is said
# once more in code, by an `assert`: if it were wrong, the chapter would stop.
#
# | part | chapters | the paper |
# |---|---|---|
# | I. The idea | [1. Diffusion, forward and back](01_diffusion.ipynb), [2. A teacher](02_teacher.ipynb) | Secs. 2 and 7 |
# | II. The method | [3. The DKDM objective](03_dkdm_objective.ipynb), [4. Iterative distillation](04_iterative.ipynb), [5. Shuffled iterative distillation](05_shuffled.ipynb), [6. Dynamic iterative distillation](06_dynamic.ipynb) | Sec. 3 |
# | III. The experiments | [7. Against the baselines](07_baselines.ipynb) to [13. Two distributions](13_two_distributions.ipynb) | Secs. 4 and 9 to 12 |
# | all of it on one page | [14. The report](14_report.ipynb) | |
# | IV. Beyond pixels, | [15. Latent space](15_latent_space.ipynb), [16. Any teacher](16_any_teacher.ipynb), [17. Conditions](17_conditions.ipynb) | Table 3, and what the paper leaves open |
# | beyond diffusion | [18. A ladder VAE](18_lvae.ipynb) to [21. A classifier without data](21_classifier.ipynb) | a second source: VAEs and classifiers ([Group 2, 2025](references.md)) |
# | V. Beyond the paper's pool | [22. Moves](22_moves.ipynb) | cheaper pools, with a theory of their noise |
#
# There are **two kinds of numbers**. What a chapter computes while it runs is *live*: one seed, small networks,
# minutes on a laptop. Beside it stands the *ledger*, the folder `book/results/`: longer runs, most of them over
# several seeds, committed with their settings, versions and hardware. Where a chapter quotes the ledger, it says so.
#
# Most chapters run on scikit-learn's 1,797 handwritten digits, because they are real images and need no download.
# Digits are judged by *digits-FID*, a Fréchet distance in the features of a small digit classifier. It is not the
# FID of the paper and its values cannot be compared with it; their order can.
#
# In JupyterLab, change the cell tagged *parameters* and run again. From a shell,
# `dkdm run --preset cifar10` executes the same chapters at the paper's size, where there is a GPU and time.
# The last part has presets of its own, for latents and for labels, and *studies* for what is no diffusion model.
#
# ## Limits
#
# The teacher of this chapter is perfect and its world has two dimensions. Neither is true in practice. The next
# chapters give up both, one after the other.
#
# ## Exercises
#
# 1. Train another student for 50 iterations, in a cell of your own, and draw it. Does it miss clusters, or blur them?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. It blurs them: points lie everywhere, inside the ring and out, and no
# cluster is left without. The averaged weights (ema) would lag behind in so few
# iterations, so the last ones are drawn.
torch.manual_seed(seed)
novice = networks.build(settings.student)
pool = DynamicPool(diffusion, teacher, settings.batch_size, rho=settings.rho)
novice, _ = train(
    novice, pool, diffusion, 50, lr=settings.lr, ema=0.0, progress=False
)
blurred = diffusion.sample(novice, 1000, steps=50, seed=seed)
print(f"energy distance after 50: {energy_distance(blurred, reference):.3f}")
assert torch.cdist(blurred, data.means).argmin(1).unique().numel() == 8
figures.points({"50 iterations": blurred, "all": distilled}, 2.5, reference)

# %% [markdown]
# 2. Make the teacher's mixture `GaussianMixture.ring(16)`. Does the same student still suffice?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. Yes: it is as near to its data as before, and all sixteen clusters
# have about as many points.
many = GaussianMixture.ring(16)
torch.manual_seed(seed)
again = networks.build(settings.student)
pool = DynamicPool(
    diffusion, many.denoiser(diffusion), settings.batch_size, rho=settings.rho
)
again, _ = train(
    again,
    pool,
    diffusion,
    iterations,
    lr=settings.lr,
    ema=settings.ema,
    progress=False,
)
x = diffusion.sample(again, 1000, steps=50, seed=seed)
print(f"energy distance: {energy_distance(x, many.sample(1000, seed=1)):.3f}")
print(
    "points:", *torch.cdist(x, many.means).argmin(1).bincount(minlength=16).tolist()
)
figures.points({"sixteen clusters": x}, reference=many.sample(1000, seed=1))

# %% [markdown]
# 3. The pool's `rho` decides how many samples it holds. Make it so small that the pool is one batch. What changes?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. Each batch now has the same samples as the one before, a step further
# on. That is the shuffled method of chapter 5; chapter 8 measures what it costs.
small = DynamicPool(diffusion, teacher, 64, rho=1 / diffusion.T)
first, second = next(small), next(small)
nearest = torch.cdist(first.x_t, second.x_t).min(dim=1).values
print(f"{small.size} samples; the median one moved by {nearest.median():.2f}")
assert small.size == 64 and sorted(small.t.tolist()) == sorted(
    ((second.t - 1) % diffusion.T).tolist()
)
# %% [markdown]
# ## Further reading
#
# The paper ([Xiang et al., 2025](references.md)); knowledge distillation as it began ([Hinton et al., 2015](references.md)); diffusion models
# as they began ([Sohl-Dickstein et al., 2015](references.md)).
