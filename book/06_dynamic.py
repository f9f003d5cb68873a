# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Dynamic iterative distillation
#
# *Section 3.3 of the paper, third method, Algorithm 1 and Fig. 3.*
#
# The last trouble was that a batch meets itself again and again. The paper's final method holds many more samples than
# a batch needs and draws each batch from them at random.
#
# **What you'll do.** Run Algorithm 1, see the pool at work, and compare five ways to train a student.
#
# **What you'll learn.** What the large pool buys, and what it costs to fill.
#
# **What you need.** [Chapter 5](05_shuffled.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture, to_uint8
from dkdm_lab.experiments import ledger, presets, runs
from dkdm_lab.notebook.explore import PoolPlayer, watch
from dkdm_lab.pools import DynamicPool
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
teacher = runs.Run(settings, "teacher", seed).model()

# %% [markdown]
# ## Algorithm 1
#
# The enlarged set holds $|\hat{\mathcal B}^+| = \rho\, T\, b$ samples, where $b$ is the batch size. Each iteration:
#
# 1. select a batch $\hat{\mathcal B}^s_j$ from $\hat{\mathcal B}^+_j$ at random, without replacement;
# 2. the teacher takes one step on it, and the student trains on that step;
# 3. the denoised samples go back to their places, and $\hat{\mathcal B}^+_{j+1}$ is ready.
#
# What the student descends is
#
# $$L^\star_\text{simple} = \mathbb E_{(\hat x^t, t) \sim \hat{\mathcal B}^+}\,
# \|\epsilon_{\theta_T}(\hat x^t, t) - \epsilon_{\theta_S}(\hat x^t, t)\|^2 \tag{20}$$
#
# $$L^\star_\text{vlb} = \mathbb E_{(\hat x^t, t) \sim \hat{\mathcal B}^+}\,
# D_{KL}\big(p_{\theta_T}(\hat x^{t-1} \mid \hat x^t)\ \|\ p_{\theta_S}(\hat x^{t-1} \mid \hat x^t)\big) \tag{21}$$
#
# in one sum, with the $\lambda$ of [chapter 1](01_diffusion.ipynb):
#
# $$L^\star_\text{DKDM} = L^\star_\text{simple} + \lambda L^\star_\text{vlb}. \tag{19}$$
#
# The work in an iteration is $O(b)$, whatever $\rho$ is. Here is the algorithm as it stands in the paper.


# %%
@torch.no_grad()
def algorithm_1(x, t, generator, iterations, b):
    for _ in range(iterations):
        chosen = torch.randperm(len(x), generator=generator, device=x.device)[
            :b
        ]  # line 4
        x_t, t_chosen = x[chosen], t[chosen]
        eps, v = teacher(x_t, t_chosen)
        p = diffusion.p(x_t, t_chosen, eps, v, clip=diffusion.clip)
        yield x_t, t_chosen, eps, p  # lines 5 to 7 belong to the student
        noise = torch.randn(x_t.shape, generator=generator, device=x.device)
        fresh = torch.randn(x_t.shape, generator=generator, device=x.device)
        x_next = diffusion.step(p, t_chosen - 1, noise)
        done = t_chosen == 0
        x[chosen] = x_next  # line 8, and a fresh start where x_0 is reached
        x[chosen[done]] = fresh[done]
        t[chosen] = torch.where(done, diffusion.T - 1, t_chosen - 1)


# %% [markdown]
# `DynamicPool` is this loop. Give both the same filled pool and the same random numbers, and they yield the same
# batches, to the bit.

# %%
pool = DynamicPool(diffusion, teacher, 16, rho=0.1, seed=seed, device=device())
pool.fill()
generator = torch.Generator(device())
generator.set_state(pool.state_dict()["generator"])
mine = algorithm_1(pool.x.clone(), pool.t.clone(), generator, 30, b=16)
for (x_t, t, eps, p), batch in zip(mine, pool, strict=False):
    assert torch.equal(x_t, batch.x_t) and torch.equal(t, batch.t)
    assert torch.equal(eps, batch.eps) and torch.equal(p.mean, batch.target.mean)


# %% [markdown]
# ## See the pool (Fig. 3)
#
# First in the plane, with the exact teacher, where a pool is a cloud of points. Dark points are nearly clean, bright
# ones nearly noise. In JupyterLab, press play, or *step* for one turn. The orange circles are the batch, and the blue
# star is one sample: it stays where it is until its turn comes. Then choose the other two methods, and compare the
# histogram of $t$ and how much of a batch was in the one before.

# %%
plane = presets.get("toy").diffusion()
exact = GaussianMixture.ring().denoiser(plane)
PoolPlayer(plane, exact, 64, rho=0.25)

# %% [markdown]
# In the dynamic pool the dark points lie on the eight clusters at every turn and the bright ones around the origin, and
# the histogram stays near the dashed line. No batch ever changes the shape of the whole: the pool is a small, steady
# copy of all that the teacher knows. The iterative pool is at one level at a time. The shuffled one is at all of them,
# but each of its batches is the whole of the one before.
#
# Now with digits.

# %%
run = runs.Run(settings, "dynamic", seed)
watch(run.source(), iterations=100, every=20)

# %% tags=["nbval-check-output"]
pool = run.source()
pool.fill()
filled = pool.evaluations
next(pool)
rho, T, b = settings.rho, settings.T, settings.batch_size
print(f"{pool.size:,} samples = {rho} * {T} * {b}")
print(f"teacher evaluations an iteration: {pool.evaluations - filled}")

# %% [markdown]
# ## Train on it
#
# The loop is that of [chapter 2](02_teacher.ipynb). Its source is the pool of Algorithm 1, and nothing else changes:

# %%
torch.manual_seed(seed)
novice = networks.build(settings.student)
source = DynamicPool(
    diffusion,
    teacher,
    settings.batch_size,
    rho=settings.rho,
    seed=seed,
    device=device(),
)
novice, history = train(
    novice, source, diffusion, 20, lr=settings.lr, log_every=20, progress=False
)
print(f"L'simple after 20 iterations: {history.simple[-1]:.3f}")

# %% [markdown]
# And the run at its full length, beside the two others:

# %%
methods = ("dynamic", "shuffled", "iterative")
results = {method: runs.Run(settings, method, seed).result() for method in methods}
losses = {m: r["loss"] for m, r in results.items()}
lines = {m: (loss["iteration"], loss["simple"]) for m, loss in losses.items()}
figures.curves(lines, "iteration", "L'simple", log_y=True)

# %% [markdown]
# The dynamic loss is as smooth as the shuffled one, and hardly different from it. Each measures how well the student
# does on its own pool. The score, which is measured on new samples, tells the two apart.

# %%
of_teacher = runs.Run(settings, "teacher", seed).result()
level = ("teacher", of_teacher["metrics"][settings.metric])
fid = {m: runs.curve(r, settings.metric) for m, r in results.items()}
figures.curves(fid, "iteration", settings.metric, log_y=True, level=level)

# %%
student = run.model()
samples = diffusion.sample(student, 40, settings.steps, device=device())
figures.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# These digits come from a network that has never seen one, nor any image.

# %%
ratio = teacher.parameter_count / student.parameter_count
print(f"the student is {ratio:.1f} times smaller than its teacher")
assert fid["dynamic"][1][-1] < fid["iterative"][1][-1]

# %% [markdown]
# ## What it costs to fill the pool
#
# Before the first iteration every sample must be brought to its level. The authors walk each one down a step at a time
# (`warmup="full"`). At the paper's size that is about as many teacher evaluations as the whole distillation:

# %% tags=["nbval-check-output"]
large = presets.get("cifar10")
b = large.batch_size
size = round(large.rho * large.T) * b
print(f"teacher evaluations of the warm-up:      {size * (large.T - 1) // 2:,}")
print(f"teacher evaluations of the distillation: {large.iterations * b:,}")

# %% [markdown]
# This book fills its pools with one evaluation per sample (`warmup="harvest"`), and students do not tell the
# difference. How that works, and how a sample may move by more than one step at a time, is
# [chapter 22](22_moves.ipynb). The paper's own way is one argument away.
#
# ## Five ways to train a student
#
# From the ledger, at equal iterations. *Data-based* training (Algorithm 2) has the real images. *Data-free* training
# has the teacher's samples instead, as many as there are real ones. The others are the three pools.

# %%
ledger.table(preset)

# %%
found = ledger.summary(preset, settings.metric)
scores = {method: found[method] for method in ledger.WAYS if method in found}
figures.spreads(
    {m: (s.mean, s.std) for m, s in scores.items()},
    f"{settings.metric}, mean and standard deviation over seeds",
)

# %% [markdown]
# Dots show the mean, whiskers one standard deviation over seeds, on a logarithmic scale. Each seed has its own teacher,
# pool and first weights, so the whiskers hold everything that chance decides. A good teacher helps all of its students,
# so it is fairer to compare students of the same seed:

# %%
value = {
    method: ledger.by_seed(preset, settings.metric, {"method": method})
    for method in scores
}
for other in ("data-based", "data-free", "shuffled", "iterative"):
    seeds = value[other].keys() & value["dynamic"].keys()
    wins = sum(value["dynamic"][s] < value[other][s] for s in seeds)
    print(f"dynamic is better than {other} for {wins} of {len(seeds)} seeds")

# %% [markdown]
# ## In the authors' code
#
# `train_util_kd.py`, `KDTeacherLoader.dynamic_iterative_distillation`, selects with `random.sample` and keeps the pool
# on the GPU in float32. The warm-up is a script of its own, `scripts/dynamic_prepare.py`, which writes the pool to a
# pickle file. When random discard is on, a discarded dynamic batch walks on until it is shown, where ours draws a new
# one. And they keep the pool's $t$ one higher than ours between turns.
#
# ## The result beside the paper
#
# On CIFAR-10 (Table 2) the paper reports FID 9.56 for dynamic distillation, 12.06 for data-free and 7.84 for data-based
# training, with a teacher of 4.45, after 200K iterations with early stopping. Fig. 4a orders the pools: dynamic best,
# then shuffled, then iterative.
#
# On digits (ledger, digits-FID, three seeds): data-based 6.66 ± 1.51<!-- ledger: digits data-based digits-FID -->,
# dynamic 8.54 ± 1.45<!-- ledger: digits dynamic digits-FID -->,
# shuffled 13.5 ± 1.9<!-- ledger: digits shuffled digits-FID -->,
# data-free 13.9 ± 3.7<!-- ledger: digits data-free digits-FID -->,
# iterative 165 ± 57<!-- ledger: digits iterative digits-FID -->; the teacher has
# 5.40 ± 2.08<!-- ledger: digits teacher digits-FID -->.
#
# *Verdict:* reproduced at this scale. For each of the three seeds dynamic distillation is better than data-free training
# and than the two other pools, and for each data-based training is better still, as in Table 2. Between shuffled
# distillation and data-free training our numbers do not decide.
#
# ## Limits
#
# Equal iterations are not equal cost: the pools ask the teacher once for each sample that the student sees, data-based
# training never does, and data-free training pays in advance. [Chapter 7](07_baselines.ipynb) compares at equal cost. The
# digits are small, and the spread over three seeds is itself known only roughly.
#
# ## Exercises
#
# 1. Choose $\rho$ so that the pool is ten batches, and then so that every level has a batch of its own. Does the ledger's
#    score change by more than its spread?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. The pool is rho T batches, so ten batches are rho = 10 / T, and
# rho = 1 is a batch for each level. The ledger has 0.05, the preset's 0.4 and 1. The
# means get better as the pool grows, and no step is larger than their spread.
print(f"ten batches: rho = {10 / settings.T:g}")
for rho in (0.05, None, 1.0):
    where = {"method": "dynamic"} | ({"rho": rho} if rho else {})
    found = ledger.over_seeds("digits", "digits-FID", where)
    print(f"rho = {rho or presets.get('digits').rho:4}: digits-FID {found}")

# %% [markdown]
# 2. Select with replacement. How often does a sample now appear twice in one batch, and does it matter?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. Of b draws from N samples, b - N (1 - (1 - 1/N)^b) are repetitions on
# average, about b^2 / 2N. A repetition gives the student the same answer twice,
# and the sample still moves by one step. With N = rho T b this is 1 / (2 rho T)
# of a batch, and it does not grow with b.
b, N = settings.batch_size, pool.size
draws = torch.randint(N, (2000, b), generator=torch.Generator().manual_seed(seed))
again = b - torch.tensor([len(row.unique()) for row in draws]).float().mean()
expected = b - N * (1 - (1 - 1 / N) ** b)
print(f"{again:.2f} of {b} are repetitions; expected: {expected:.2f}")
assert abs(again - expected) < 0.2

# %% [markdown]
# 3. Select samples at small $t$ four times as rarely as the others. Which levels do the pool, and the batches, now have
#    more of? Would that be wise?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. The pool keeps more small levels, for samples wait there. The batches
# do not: each sample is shown once at each level on its way down, whatever the
# wait between. So it is not wise: nothing changes for the student. To show it
# more small levels, some of the noisy samples would have to be discarded.
levels, chance = 20, torch.Generator().manual_seed(seed)
t = torch.randint(levels, (400,), generator=chance)
shown, there = torch.zeros(levels), torch.zeros(levels)
for _ in range(4000):
    wish = torch.where(t < levels // 2, 0.25, 1.0)
    chosen = torch.multinomial(wish, 20, generator=chance)
    shown += torch.bincount(t[chosen], minlength=levels)
    there += torch.bincount(t, minlength=levels)
    t[chosen] = (t[chosen] - 1) % levels
for name, count in (("pool", there), ("batches", shown)):
    print(f"{name:8s}{count[: levels // 2].sum() / count.sum():.0%} at small t")
assert there[: levels // 2].sum() > 0.7 * there.sum()
assert abs(shown[: levels // 2].sum() / shown.sum() - 0.5) < 0.02
# %% [markdown]
# ## Further reading
#
# Algorithm 1 of the paper ([Xiang et al., 2025](references.md)); the data-free baseline's synthetic sets in its Table 4.
