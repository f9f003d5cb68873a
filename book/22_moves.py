# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 22. Moves: variance, warm-ups and strides
#
# *Beyond the paper: its Algorithm 1 moves every sample of the pool by one step, and fills the pool the same way.*
#
# [Chapter 6](06_dynamic.ipynb) follows the paper. Its pool is large, and filling it costs as much as the whole
# distillation. Both can be had for a tenth, if a sample may go down by many levels at once. That is safe only with
# the right noise in each move.
#
# **What you'll do.** Fill and turn pools with exact teachers, and measure how much of its energy a pool keeps.
#
# **What you'll learn.** Which variance belongs to a long move, what a learned variance says, how to fill a pool with
# one evaluation per sample, and how small a pool may be.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = (
    True  # sized for a laptop; False has no effect here but on the trained teacher
)
seed = 0
changes = {}  # settings other than the preset's own

# %%
from itertools import islice

import torch

from dkdm_lab.data import GaussianMixture, LowRankGaussian, load_images, to_model
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import ledger, paper, presets, runs
from dkdm_lab.metrics import energy_distance
from dkdm_lab.pools import ShuffledPool
from dkdm_lab.system import figures

figures.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = GaussianDiffusion.cosine(100, clip=False)

# %% [markdown]
# ## What a move is
#
# One evaluation of the teacher gives $\epsilon$, and with it $\hat x^0$. So a sample at level $t$ need not stop at
# $t - 1$. It can go to any lower level $s$, as a respaced sampler would. The move has the posterior's mean,
#
# $$x^s = c_0\, \hat x^0 + c_t\, x^t + \sigma z, \qquad z \sim \mathcal N(0, I),$$
#
# where $c_0$ and $c_t$ are Eq. 7's coefficients for the jump from $t$ to $s$. What is $\sigma$? The posterior's own
# variance $\tilde\beta$ (Eq. 6) is right if $\hat x^0$ is right. But the teacher does not know $x^0$. It knows its
# mean, and what it cannot know is a variance of its own:
#
# $$\sigma^2 = \tilde\beta + c_0^2\, \mathrm{Var}[x^0 \mid x^t]. \tag{22.1}$$
#
# This is the variance of the best Gaussian step (Bao et al., Analytic-DPM, 2022). For steps of one the second term is
# small. Over a tenth of the levels it is most of the variance.
#
# To see it, take data whose truth is known. Let $x^0$ be Gaussian with variance $s^2$ in every direction. Then the
# mean energy of $x^t$ is $\bar\alpha_t s^2 + 1 - \bar\alpha_t$ per dimension, and the best teacher is a closed form.
# We fill a pool, turn it until every sample has come down once, and divide the pool's energy by the truth.


# %%
def energy_left(data, variance, stride=10, learned=False, n=1000):
    teacher = data.denoiser(diffusion, learned)
    pool = ShuffledPool(
        diffusion, teacher, n, stride=stride, variance=variance, seed=seed
    )
    way = diffusion.T // stride
    for _ in islice(pool, way):
        pass
    truth = data.energy(torch.as_tensor(diffusion.alpha_bar)).float()
    sums, counts = torch.zeros(2, diffusion.T)
    for batch in islice(pool, way):
        ratio = batch.x_t.square().mean(1) / truth[batch.t]
        sums.index_add_(0, batch.t, ratio)
        counts += batch.t.bincount(minlength=diffusion.T)
    return sums / counts


narrow = LowRankGaussian(torch.zeros(256), 0.25**0.5)
levels = range(diffusion.T)
kept = {
    f"{name}, {stride} at once": energy_left(narrow, name, stride)
    for name, stride in (
        ("small", 1),
        ("small", 10),
        ("large", 10),
        ("analytic", 10),
    )
}
lines = {name: (levels, ratio.tolist()) for name, ratio in kept.items()}
figures.curves(lines, "level t", "energy over its truth")

# %% [markdown]
# The line to look for is 1. Steps of one with the posterior's variance ("small") stay near it: the paper's way loses
# a few per cent. The same variance over ten levels leaves little more than half of the energy at the lowest levels, where
# images get their detail. The variance of the forward process ("large") errs to the other side. Eq. 22.1 ("analytic") is right
# at every level.

# %%
lowest = {name: float(ratio[:10].mean()) for name, ratio in kept.items()}
print({name: round(ratio, 2) for name, ratio in lowest.items()})
assert abs(lowest["analytic, 10 at once"] - 1) < 0.03
assert lowest["small, 10 at once"] < 0.7 and lowest["large, 10 at once"] > 1.1

# %% [markdown]
# Where does $\mathrm{Var}[x^0 \mid x^t]$ come from, if the teacher gives only $\epsilon$? From $\epsilon$ itself. Per dimension,
#
# $$\mathrm{Var}[x^0 \mid x^t] = \frac{1 - \bar\alpha_t}{\bar\alpha_t}\left(1 - \frac{\mathbb E\,\|\epsilon\|^2}{D}\right),$$
#
# because the noise that a teacher predicts is shorter than true noise by what it is unsure of. The pool sees
# $\epsilon$ at every turn, so a running mean per level costs nothing. `moves.AnalyticVariance` keeps it; it is part
# of the pool's state, and a resumed run goes on with it.
#
# ## What a learned variance says
#
# ADM's networks answer with a variance of their own. Eq. 12 writes it as a share $v$ between the logarithms of
# $\tilde\beta$ and $\beta$. IDDPM stretches a step by keeping $v$. But that share is right for the step it was learned
# for, not for a longer one. There is a better reading. The two bounds differ by exactly
#
# $$\beta - \tilde\beta = c_0^2\,(1 - \bar\alpha_t),$$
#
# for a step of any length. So if $f$ is the *linear* share of the learned variance between them, then
#
# $$\mathrm{Var}[x^0 \mid x^t] = f\,(1 - \bar\alpha_t), \qquad
# f = \frac{\sigma^2 - \tilde\beta}{\beta - \tilde\beta},$$
#
# and $f$ does not depend on where the move ends. A learned variance says what the teacher does not know, per pixel.

# %%
tight = LowRankGaussian(torch.zeros(256), 0.05**0.5)
names = {"stretched": "v is kept (IDDPM)", "learned": "f is kept"}
kept = {
    label: energy_left(tight, name, learned=True) for name, label in names.items()
}
lines = {name: (levels, ratio.tolist()) for name, ratio in kept.items()}
figures.curves(lines, "level t", "energy over its truth")

# %%
lowest = {name: float(ratio[:10].mean()) for name, ratio in kept.items()}
print({name: round(ratio, 2) for name, ratio in lowest.items()})
assert abs(lowest["f is kept"] - 1) < 0.03 and lowest["v is kept (IDDPM)"] < 0.9

# %% [markdown]
# With $v$ kept, a fifth of the energy at the lowest levels is gone; with $f$ kept, none. So this is what pools do when
# nothing else is said: a learned variance by its $f$, a fixed one by Eq. 22.1, and steps of one as in the paper.
#
# A trained teacher is neither exact nor Gaussian, and it clamps its $\hat x^0$. The same question for the teacher of
# digits, against real digits noised by Eq. 4:

# %%
trained = runs.Run(settings, "teacher", seed).model()
process = settings.diffusion()
images = to_model(load_images("digits"))
alpha_bar = torch.as_tensor(process.alpha_bar).float()
truth = alpha_bar * images.var(0).mean() + 1 - alpha_bar


def spread_left(variance, stride=10, n=300):
    options = {"stride": stride, "variance": variance, "seed": seed}
    pool = ShuffledPool(process, trained, n, **options)
    for _ in islice(pool, 2 * process.T // stride):
        pass
    found, counts = torch.zeros(2, process.T)
    for batch in islice(pool, process.T // stride):
        mean = alpha_bar[batch.t].sqrt().view(-1, 1, 1, 1) * images.mean(0)
        square = (batch.x_t - mean).square().flatten(1).mean(1) / truth[batch.t]
        found.index_add_(0, batch.t, square)
        counts += batch.t.bincount(minlength=process.T)
    bands = ((0, 5), (5, 15), (15, 30), (30, process.T))
    return [float(found[a:b].sum() / counts[a:b].sum()) for a, b in bands]


rows = []
for name, stride in (
    ("learned", 1),
    ("stretched", 10),
    ("learned", 10),
    ("small", 10),
    ("analytic", 10),
):
    rows.append(
        [
            name,
            str(stride),
            *[f"{ratio:.2f}" for ratio in spread_left(name, stride)],
        ]
    )
bands = ["below 5", "5 to 15", "15 to 30", "above"]
ledger.Table.of(["variance", "stride", *bands], rows)

# %% [markdown]
# The cells are the per-pixel variance of the pool's samples over that of noised real digits, by level. The teacher's
# own steps of one lose a little too: it is small, and it clamps. What long moves lose beyond that is modest on digits,
# and least with $f$ kept.
#
# ## Warm-ups
#
# Before the first iteration every sample must be brought to its level. The authors walk each one down, a step at a time
# (`warmup="full"`). Two ways are cheaper. `"respaced"` walks in ten large steps, the last one cut short to end at the
# sample's own level. `"harvest"` goes further. It runs a few chains of ten large steps and uses *every* state on the
# way: a chain's state, noised forward by Eq. 4 to a random level of its interval, is one sample of the pool. That is
# one teacher evaluation per sample. What do the students make of it?

# %%
for warmup in ("full", "respaced", "harvest"):
    found = ledger.results(preset, {"method": "dynamic", "warmup": warmup})
    if found:
        first, scores = found[0], [r["metrics"][settings.metric] for r in found]
        cost = first["teacher_evaluations"] - first["student_evaluations"]
        print(f"{warmup:9s}{cost:9,} evaluations,", settings.metric, end=" ")
        print(ledger.spread(scores), "over", len(scores), "seeds (ledger)")

# %% [markdown]
# The three differ by less than their spread over seeds, so three seeds do not tell them apart. What they cost is plain.
# The cheapest, `"harvest"`, is this book's default; the paper's own way is one argument away. (The ledger's pools of
# digits were filled with $v$ kept.)
#
# ## Strides
#
# In the paper's CIFAR-10 run a sample of the pool has $200{,}000\,b / (\rho\,T\,b) = 500$ turns, half a walk from noise
# to image. Half of the samples never start anew, and the student sees few trajectories. A smaller pool walks more
# often, but then its batches meet each other again too soon.
#
# A sample can also walk *faster*: $k$ steps a turn, while the student's target stays that of a single step. Fresh
# samples begin at one of the last $k$ levels, drawn evenly, so that $t$ stays exactly uniform. This is
# `DynamicPool(..., stride=k)`; the paper's pool has $k = 1$, and so have all presets.
#
# The price is a coarser walk. With an exact teacher in the plane we can ask how coarse it may be. Large pools of
# points walk down twice. What then lies below $t = 10$ is compared with data noised by Eq. 4.

# %%
ring = GaussianMixture.ring()
exact = ring.denoiser(diffusion)


def astray(stride, n=4000, low=10):
    points = ShuffledPool(diffusion, exact, n, stride=stride, seed=seed)
    for _ in range(2 * diffusion.T // stride):
        next(points)
    x, t = points.x[points.t < low], points.t[points.t < low]
    data, noise = ring.sample(len(x), seed=5), torch.randn(len(x), 2)
    return energy_distance(x, diffusion.q_sample(data, t, noise))


torch.manual_seed(seed)
distances = {k: astray(k) for k in (1, 2, 5, 10, 20, 50)}
line = list(distances), list(distances.values())
figures.curves({"a pool of that stride": line}, "k", "energy distance")

# %%
print({k: round(distance, 3) for k, distance in distances.items()})
assert max(distances[k] for k in (1, 2, 5, 10)) < 0.01 < distances[50]

# %% [markdown]
# Up to $k = 10$, a tenth of $T$, the distance is what chance leaves between two sets of so few points. At 50 the pool
# has left the data. What does it mean for students? From the ledger of a small study, with the pool's size in rows and
# the stride in columns; what has not been run says so.

# %%
study = presets.get("digits-pools")


def students(rho, k):
    where = {"method": "dynamic", "rho": rho, "stride": k}
    return ledger.by_seed("digits-pools", "digits-FID", where)


rows = []
for rho in paper.SIZES:
    spreads = [students(rho, k) for k in paper.STRIDES]
    cells = [str(ledger.spread([*s.values()])) if s else "not run" for s in spreads]
    rows.append([f"{round(rho * study.T) * study.batch_size:,}", *cells])
ledger.Table.of(["samples", *[f"k = {k}" for k in paper.STRIDES]], rows)

# %%
of_paper, small, strided = (
    students(rho, k) for rho, k in ((0.4, 1), (0.04, 1), (0.04, 10))
)
for name, other in (("the paper's pool", of_paper), ("k = 1", small)):
    wins = [strided[s] < other[s] for s in strided.keys() & other.keys()]
    print(f"a tenth of the pool, k = 10: better than {name}", end=" ")
    print(f"for {sum(wins)} of {len(wins)} seeds")

# %% [markdown]
# What a tenth would be worth, at the paper's CelebA, for each way to fill the pool:

# %% tags=["nbval-check-output"]
large = presets.get("celeba64")
for rho in (large.rho, large.rho / 10):
    size = round(rho * large.T) * large.batch_size
    memory = size * 3 * 64 * 64 * 4 / 1e9
    print(f"{size:7,} samples, {memory:.2f} GB; evaluations:", end=" ")
    print(f"full {size * (large.T - 1) // 2:,}, harvest {size:,}")

# %% [markdown]
# At the paper's stride a smaller pool is a worse one. With strides of ten the size hardly matters, and the pool of a tenth
# is better than the paper's in every seed, at a tenth of the memory and of the warm-up. Which stride is best, three seeds
# do not tell: from 2 to 20 each is better on average than 1 at that size, and their spreads overlap. These pools moved
# with $v$ kept.
#
# Each sample of the paper's pool has 25 turns in this study. Do natural images agree? On `cifar16`, CIFAR-10 at half its
# size, the small pool with strides of a tenth of $T$ has been run with one seed:

# %%
for name, pool in {"the paper's pool": {}, "small, strides": paper.STRIDED}.items():
    where = {"method": "dynamic"} | pool
    fid = ledger.cell("cifar16", "FID", where)
    error = ledger.over_seeds("cifar16", "eps-error-1", where)
    error = "not run" if error is None else f"{1000 * error.mean:.1f}"
    print(f"{name}: FID {fid}, error at the least noise × 1,000: {error}")

# %% [markdown]
# They do not. The paper's pool wins by FID, and the student of the small one is further from its teacher. One seed is
# little, but both scores say the same. So the presets, which repeat the paper, keep its pool. `dkdm distill`
# ([chapter 16](16_any_teacher.ipynb)) takes the small pool and $k = T / 10$ unless told otherwise: it needs a tenth of
# the memory and of the warm-up. Where these do not matter, `--rho 0.4 --stride 1` is the paper's.
#
# ## Limits
#
# One variance per level is right where all directions of the data vary alike. Where a few vary much and the others
# little, it gives too little noise to the few, and the next moves take away what it gave the others. The exact Gaussian
# knows by how much: an eighth of the directions with variance 1 and the rest with 0.02, moved by tenths of $T$,

# %%
across = torch.linalg.qr(
    torch.randn(256, 32, generator=torch.Generator().manual_seed(3))
)[0].T
uneven = LowRankGaussian(torch.zeros(256), 0.02**0.5, 0.98**0.5 * across)
left = energy_left(uneven, "analytic")
print("below 2, 2 to 10, 10 to 30, above:", end=" ")
print(
    [
        round(float(left[a:b].mean()), 2)
        for a, b in ((0, 2), (2, 10), (10, 30), (30, 100))
    ]
)

# %% [markdown]
# A variance per direction would mend it, but no teacher tells its directions, and two of its evaluations per move
# (DPM-Solver-2) err by as much to the other side. Shorter strides help: the error falls with the length of the move.
# A learned variance also cannot say more than $f = 1$: data that vary by more than 1 lose some, while Eq. 22.1 has no
# such bound.
#
# ## Exercises
#
# 1. Set `stride=20` in the first figure. Which variances still keep the energy?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Only Eq. 22.1. What the other two leave out or add grows with the
# length of the move; Eq. 22.1 holds for a move of any length.
long = {
    name: energy_left(narrow, name, 20) for name in ("small", "large", "analytic")
}
for name, ratio in long.items():
    print(f"{name:9s}below t = 10: {float(ratio[:10].mean()):.2f}")
assert abs(float(long["analytic"][:10].mean()) - 1) < 0.05
assert abs(float(long["small"][:10].mean()) - 1) > 0.3

# %% [markdown]
# 2. Use `"ddim"`: no noise at all. Where does the energy go, and why is it not lost at the top?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. It goes little by little, on the way down: at the top samples are
# still fresh noise, whose energy is right, and each move from there adds no
# variance of its own. What a move does keep is the noise it predicts, so DDIM
# loses less than a small variance does.
still = energy_left(narrow, "ddim")
for name, part in (("below t = 10", still[:10]), ("above t = 80", still[80:])):
    print(f"{name}: {float(part.mean()):.2f}")
assert abs(float(still[80:].mean()) - 1) < 0.05

# %% [markdown]
# 3. With the trained teacher, try `"large"`. Would you trust a student of that pool at low noise?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. The spread at low levels says: where it is far from 1, the student
# learns from samples that have more noise than their t says.
large_moves = spread_left("large")
print("by level, from the lowest:", *(f"{ratio:.2f}" for ratio in large_moves))
# %% [markdown]
# ## Further reading
#
# Analytic-DPM ([Bao et al., 2022](references.md)) for Eq. 22.1; IDDPM ([Nichol and Dhariwal, 2021](references.md)) for the
# learned variance. `python benchmarks/moves.py` prints the whole table of variances, schedules and strides.
