# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. The DKDM objective
#
# *Section 3.2 of the paper: Eqs. 14 to 18.*
#
# The training objective of a diffusion model needs the data in two places. This chapter removes them one after the
# other, and measures at each step what the removal costs.
#
# **What you'll do.** Train a student on its teacher's answers, and watch a loss it is never shown go down.
#
# **What you'll learn.** Why imitating a good teacher is the same as learning from data, up to a constant that can be
# measured.
#
# **What you need.** [Chapter 1](01_diffusion.ipynb): the batch and its four fields.

# %% tags=["parameters"]
iterations = 800
seed = 0

# %%
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture
from dkdm_lab.experiments import presets
from dkdm_lab.losses import dkdm_loss
from dkdm_lab.metrics import energy_distance
from dkdm_lab.sources import Batch, NoisedImages
from dkdm_lab.system import figures
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(
    "toy"
)  # a teacher without error, so that what is exact can be seen to be exact
diffusion = settings.diffusion()
mixture = GaussianMixture.ring()
teacher = mixture.denoiser(diffusion)

# %% [markdown]
# ## Where the data hides
#
# Look at the term of the objective for one level $t$:
#
# $$\mathbb E_{x^0, \epsilon}\ D_{KL}\big(q(x^{t-1} \mid x^t, x^0)\ \|\ p_\theta(x^{t-1} \mid x^t)\big).$$
#
# It knows $x^0$ twice. The *posterior* $q(x^{t-1} \mid x^t, x^0)$ is the student's target. The *prior*
# $q(x^t \mid x^0)$ is where its input $x^t$ comes from.
#
# ## First, the posterior
#
# A trained teacher has minimised this very term. Its $p_{\theta_T}$ is therefore close to the posterior, as close as
# anything can be that does not know $x^0$. So let it be the target instead. The same goes for the noise. This is the
# DKDM objective:
#
# $$L_\text{DKDM} = L'_\text{simple} + \lambda L'_\text{vlb}, \tag{14}$$
#
# $$L'_\text{simple} = \mathbb E\, \|\epsilon_{\theta_T}(x^t, t) - \epsilon_{\theta_S}(x^t, t)\|^2, \tag{15}$$
#
# $$L'_\text{vlb} = \mathbb E\, D_{KL}\big(p_{\theta_T}(x^{t-1} \mid x^t)\ \|\ p_{\theta_S}(x^{t-1} \mid x^t)\big). \tag{16}$$
#
# In code only two fields of the batch change. The loss function stays what it was.


# %%
@torch.no_grad()
def taught(batch):
    eps, v = teacher(batch.x_t, batch.t)
    p = diffusion.p(batch.x_t, batch.t, eps, v)
    return Batch(batch.x_t, batch.t, eps, p)


class TaughtImages(NoisedImages):
    """x_t still from the data; both targets from the teacher (Eqs. 15 and 16)."""

    def __next__(self):
        return taught(super().__next__())


# %% [markdown]
# Does the student then learn what the data would have taught it? We train it on Eq. 14 and measure two pairs of
# numbers along the way, on the same held-out noisy points: the surrogates $L'$ of Eqs. 15 and 16, and the true losses
# of Eqs. 11 and 9, which take the posterior and thus the data.

# %%
points = mixture.sample(40_000, seed=11)
held_out = next(NoisedImages(diffusion, points, batch_size=40_000, seed=12))
inside = held_out.t > 0  # at t = 0 the posterior is a point and has no KL


@torch.no_grad()
def losses(model, batch):
    found = dkdm_loss(diffusion, batch, *model(batch.x_t, batch.t))
    return float(found.simple[inside].mean()), float(found.vlb[inside].mean())


measured = []


def measure(iteration, model, _):
    both = losses(model, held_out) + losses(model, taught(held_out))
    measured.append((iteration, *both))


# %%
torch.manual_seed(seed)
student = networks.build(settings.student)
source = TaughtImages(diffusion, mixture.sample(50_000), settings.batch_size)
every = iterations // 20
student, history = train(
    student, source, diffusion, iterations, lr=settings.lr, ema=settings.ema,
    callback=measure, callback_at=tuple(range(every, iterations + 1, every)),
)  # fmt: skip
columns = map(torch.tensor, zip(*measured, strict=True))
when, simple, vlb, simple_taught, vlb_taught = columns

# %%
lines = {"Eq. 11, with the data": simple, "Eq. 15, without": simple_taught}
lines = {name: (when, values) for name, values in lines.items()}
figures.curves(lines, "iteration", "squared error")

# %% [markdown]
# The two curves fall together and keep their distance. That distance is not an accident. The perfect teacher predicts
# the mean of all noises that could have led to $x^t$, and for a mean the errors add up like the sides of a right
# triangle:
#
# $$\mathbb E\,\|\epsilon - \epsilon_{\theta_S}\|^2 = \mathbb E\,\|\epsilon - \epsilon_{\theta_T}\|^2 +
# \mathbb E\,\|\epsilon_{\theta_T} - \epsilon_{\theta_S}\|^2.$$
#
# The first term on the right does not know the student. It is the teacher's own loss, and no student can go below it.
# So minimising Eq. 15 minimises Eq. 11. The same holds for the KL: when the teacher's $p$ has the right mean and the
# right variance, then $D_{KL}(q \| p_S)$ exceeds $D_{KL}(q \| p_T)$ by $D_{KL}(p_T \| p_S)$ on average. (Eq. 12
# cannot express every variance, and between the clusters the teacher's is cut off a little. The numbers show how
# little that matters.)

# %%
own_simple, own_vlb = losses(teacher, held_out)
gap_simple, gap_vlb = simple - simple_taught, vlb - vlb_taught
print(
    f"squared error: gap {gap_simple[-1]:.4f}, teacher's own loss {own_simple:.4f}"
)
print(f"KL in bits:    gap {gap_vlb[-1]:.4f}, teacher's own loss {own_vlb:.4f}")
assert (gap_simple - own_simple).abs().max() < 0.01
assert abs(gap_vlb[-1] - own_vlb) < 0.01

# %%
lines = {"Eq. 9, with the data": (when, vlb), "Eq. 16, without": (when, vlb_taught)}
figures.curves(lines, "iteration", "bits per dimension", log_y=True)

# %% [markdown]
# The KL shows the same, on a logarithmic scale: Eq. 16 goes on falling where Eq. 9 has reached its floor, the
# teacher's own loss.
#
# This is also where a real teacher differs. It is not the exact mean, so the sides of the triangle are not at a right
# angle any more, and what the student inherits is the teacher's error.
#
# ## Then, the prior
#
# One use of the data is left: $x^t \sim q(x^t \mid x^0)$. The paper's answer is that a generative model can generate.
# Let $g$ be one reverse step of the teacher and $G(k)$ the result of $k$ of them from noise. Then
# $\hat x^t = G(T - t)$ takes the place of $x^t$:
#
# $$L'_\text{simple} = \mathbb E_{\hat x^t, t}\, \|\epsilon_{\theta_T}(\hat x^t, t) -
# \epsilon_{\theta_S}(\hat x^t, t)\|^2, \tag{17}$$
#
# $$L'_\text{vlb} = \mathbb E_{\hat x^t, t}\, D_{KL}\big(p_{\theta_T}(\hat x^{t-1} \mid \hat x^t)\ \|\
# p_{\theta_S}(\hat x^{t-1} \mid \hat x^t)\big). \tag{18}$$
#
# Nothing in them is data. But is $\hat x^t$ distributed like $x^t$? We walk 4,000
# points down from noise, and stop at several levels to compare them with real points noised to the same level. For
# the yardstick, real points noised again are compared with them too.


# %%
def noised(level, n, seed):
    noise = torch.randn(n, 2)
    return diffusion.q_sample(
        mixture.sample(n, seed), torch.full((n,), level), noise
    )


n, walked = 4000, {}
keep = lambda level, x: walked.update({level: x.clone()})  # noqa: E731
diffusion.sample(teacher, n, seed=seed, batch_size=n, callback=keep)
for level in (90, 60, 40, 20, 10, 0):
    distance = energy_distance(walked[level], noised(level, n, seed=21))
    floor = energy_distance(noised(level, n, seed=22), noised(level, n, seed=21))
    print(f"t = {level:2d}: walked {distance:+.5f}   noised again {floor:+.5f}")
    assert distance < 0.01

# %% [markdown]
# The distances are as small as those between two sets of real noised points. For this teacher the prior can go too.

# %%
both = {
    "walked by the teacher": walked[20][:1500],
    "data, noised": noised(20, 1500, 3),
}
figures.points(both, reference=mixture.sample(1500))

# %% [markdown]
# Both pictures show $t = 20$: the same ring, blurred by the noise that is left, around the clusters (grey).
#
# ## What it costs
#
# Eq. 17 is free of data and far from free. For one batch of $b$ samples at uniform levels the teacher takes
# $b \cdot (T - 1) / 2$ steps on average, and at worst $b\, T$: the paper writes $O(Tb)$. Ordinary training takes none.
# For $T = 1000$ and $b = 128$:

# %% tags=["nbval-check-output"]
T, b = 1000, 128
print(f"naive: {b * (T - 1) // 2:,} evaluations a batch; one step a turn: {b}")

# %% [markdown]
# The next three chapters bring the first number down to the second.
#
# ## In the authors' code
#
# `gaussian_diffusion.py`, `training_losses_kd`: Eq. 15 compares raw network outputs, and the KL of Eq. 16 is taken at
# every level, also at the last one, where training on data uses the likelihood of the pixels instead. The teacher's
# $p$ comes from the step that moves the sample, so its mean is the clamped one; the student's mean is not clamped.
# Both parts have weight 1, with the KL in bits per dimension. Our `dkdm_loss` does the same, and equals their numbers.
#
# ## The result beside the paper
#
# The paper argues that the objective "indirectly minimises" the original one, without a figure. *Verdict:* reproduced,
# exactly for an exact teacher, with the constant measured above.
#
# ## Limits
#
# The teacher here is perfect and in two dimensions. How much of a real teacher's error a student inherits is a
# question for the digits, from the next chapter on.
#
# ## Exercises
#
# 1. Add a fixed error to the teacher's eps, say 0.05. What does a student converge to, and how far do the two curves keep
#    from each other then?


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. To the teacher with its error: nothing tells the student that it is
# one. Eq. 15 is then zero, and Eq. 11 is the teacher's own loss plus the error
# squared, 0.0025. So the distance of the curves grows by that.
def mistaken(x_t, t):
    eps, v = teacher(x_t, t)
    return eps + 0.05, v


grown = losses(mistaken, held_out)[0] - own_simple
print(f"the floor of Eq. 11 rises by {grown:.4f}")
assert abs(grown - 0.05**2) < 1e-3

# %% [markdown]
# 2. $L_\text{vlb}$ holds the student's mean fixed. Were it not, at which levels would the KL pull at eps most?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. At the lowest ones. There a step has little variance, so the same
# error in eps is many of its deviations. L_simple weighs all levels alike; a KL
# that pulled at eps too would drown the middle levels in the low ones.
t, x = torch.tensor([1, 5, 20, 50, 90]), torch.zeros(5, 2)
right = diffusion.p(x, t, torch.zeros(5, 2), torch.zeros(5, 2))
wrong = diffusion.p(x, t, torch.full((5, 2), 0.1), torch.zeros(5, 2))
pull = right.kl(wrong).mean(1) / 0.1**2
for level, weight in zip(t.tolist(), pull.tolist(), strict=True):
    print(f"t = {level:2d}: KL over squared error of eps {weight:.4f}")
assert (pull[1:3] < pull[:2]).all()

# %% [markdown]
# 3. In the last comparison replace 100 steps by 10. At which level does the walk leave the right distribution?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. At none by much: respaced steps are wide, and the exact teacher's
# mean and variance are still nearly right for them. Only at the lowest levels is
# the distance larger than between two sets that were both noised.
short = {}
keep = lambda level, x: short.update({level: x.clone()})  # noqa: E731
diffusion.sample(teacher, n, 10, seed=seed, batch_size=n, callback=keep)
for level, x in short.items():
    if level >= 0:
        there = noised(level, n, seed=21)
        print(f"t = {level:2d}: {energy_distance(x, there):+.5f}", end="   ")
        again = noised(level, n, seed=22)
        print(f"noised again {energy_distance(again, there):+.5f}")
# %% [markdown]
# ## Further reading
#
# Section 3.2 of the paper ([Xiang et al., 2025](references.md)); the original argument for soft targets ([Hinton et al., 2015](references.md)).
