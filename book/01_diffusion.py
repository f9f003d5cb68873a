# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Diffusion, forward and back
#
# *Sections 2 and 7 of the paper: Eqs. 1 to 13, Algorithms 2 and 3.*
#
# A diffusion model is two processes. The forward one destroys a sample with noise, step by step, and has nothing
# to learn. The reverse one undoes a step at a time, and is the model.
#
# **What you'll do.** Noise real digits, write down the reverse step, and sample from an exact model.
#
# **What you'll learn.** What every symbol of the paper means in code, and which of them a network has to supply.
#
# **What you need.** Gaussians: their mean, their variance, and how to multiply two of them.

# %% tags=["parameters"]
T = 100  # diffusion steps; the paper's models have 1000
seed = 0

# %%
import torch

from dkdm_lab import data, sources
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks import Denoiser
from dkdm_lab.notebook.explore import ForwardProcess, frames
from dkdm_lab.system import figures
from dkdm_lab.system.paths import models_dir

figures.use_style()
diffusion = GaussianDiffusion.cosine(T)
generator = torch.Generator().manual_seed(seed)


def randn(*shape):
    return torch.randn(*shape, generator=generator)


# %% [markdown]
# ## One convention
#
# The paper counts steps from $1$ to $T$. The code counts from 0: **index `t` is the paper's step $t + 1$**. The
# clean image, the paper's step 0, is `s = -1`. Symbols mean the same in both; where the paper's print and the code
# differ otherwise, in two misprints and in the range of a network's output, the text below says so.
#
# ## Forward: noise
#
# One step shrinks the sample a little and adds Gaussian noise of variance $\beta_t$:
#
# $$q(x^t \mid x^{t-1}) = \mathcal N(x^t;\ \sqrt{1 - \beta_t}\, x^{t-1},\ \beta_t I). \tag{1}$$
#
# A whole way up is one such step after the other,
#
# $$q(x^{1:T} \mid x^0) = \prod_{t=1}^T q(x^t \mid x^{t-1}), \tag{2}$$
#
# and steps of this kind add up. With $\alpha_t = 1 - \beta_t$ and $\bar\alpha_t = \prod_{s \le t} \alpha_s$, any level
# can be reached at once from the clean sample $x^0$:
#
# $$x^t = \sqrt{\bar\alpha_t}\, x^0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I). \tag{4}$$
#
# So $\bar\alpha_t$ is the share of the signal's variance that is left. The paper uses two schedules for it. The linear
# one is older ([Ho et al., 2020](references.md)); the cosine one ([Nichol and Dhariwal, 2021](references.md)) destroys the image more evenly, and
# the paper's pixel models use it (Table 6). Its latent models have a linear one (Table 7).

# %%
steps = list(range(T))
schedules = {"cosine": diffusion, "linear": GaussianDiffusion.linear(T)}
lines = {name: (steps, d.alpha_bar) for name, d in schedules.items()}
figures.curves(lines, "t", r"$\bar\alpha_t$")

# %% [markdown]
# The linear schedule spends many of its last steps on samples that are already noise. The cosine one falls almost
# along a straight line in the middle.
#
# Now Eq. 4 on real digits, $x^0$ in the first row and $x^t$ in the second. The third row looks ahead: it is the clean
# image $\hat x^0$ that a trained network, the book's own teacher, finds in $x^t$. Move $t$ and see up to where the digits
# stay what they are. Then change the schedule at the same $t$.

# %%
teacher = Denoiser.from_pretrained(models_dir() / "digits-teacher")
x0 = data.to_model(data.load_images("digits", n=6))
ForwardProcess(x0, teacher, teacher.diffusion, t=30, seed=seed)

# %% [markdown]
# The signal-to-noise ratio (SNR), on the right, is $\bar\alpha_t / (1 - \bar\alpha_t)$. Above 0 decibels the signal has
# the larger variance, and the network repairs the image with little error. Far below, it answers with a grey blur: the
# mean of all digits that could have led to such noise, which are all of them. In between it earns its keep.

# %%
errors = {}
for level in (5, 50, 95):
    at = ForwardProcess(x0, teacher, teacher.diffusion, t=level, seed=seed)
    errors[level] = at.numbers["error"]
    print(f"t = {level:2d}: mean squared error {errors[level]:.3f}")
assert errors[5] < errors[50] < errors[95]

# %% [markdown]
# Is Eq. 4 really Eq. 1 many times over? Take one number, repeat Eq. 1 for 50 steps on many copies, and compare mean
# and variance with Eq. 4.

# %%
x = torch.full((200_000,), 0.7)
for beta in diffusion.betas[:50]:
    x = (1 - beta) ** 0.5 * x + beta**0.5 * randn(200_000)

alpha_bar = diffusion.alpha_bar[49]
assert abs(x.mean() - alpha_bar**0.5 * 0.7) < 0.01
assert abs(x.var() - (1 - alpha_bar)) < 0.01

# %% [markdown]
# ## Back: the posterior
#
# Suppose $x^t$ and $x^0$ are both known. Then the step before follows from Bayes' rule, and it is a Gaussian too:
#
# $$q(x^{t-1} \mid x^t, x^0) = \mathcal N(x^{t-1};\ \tilde\mu_t(x^t, x^0),\ \tilde\beta_t I), \tag{5}$$
#
# $$\tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\, \beta_t, \qquad
# \tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x^0 +
# \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x^t. \tag{6, 7}$$
#
# (The paper prints $\sqrt{\bar\alpha_t}$ in the last fraction of Eq. 7. The factor is $\sqrt{\alpha_t}$, without the
# bar, as in Ho et al. and in the authors' code.) We can test all three at once: draw $x^{t-1}$ forward from $x^0$,
# then $x^t$ from it, and the pair must obey Eq. 5 as a regression.

# %%
t = torch.full((200_000,), 40)
clean = torch.full((200_000, 1), 0.7)
before = diffusion.q_sample(clean, t - 1, randn(200_000, 1))
after = diffusion.q_sample(before, t, randn(200_000, 1), s=t - 1)
posterior = diffusion.q_posterior(clean, after, t)

residual = before - posterior.mean
assert abs(residual.mean()) < 1e-3
assert abs(residual.var() / posterior.log_variance[0].exp() - 1) < 0.02
assert abs((residual * after).mean()) < 1e-3  # nothing left for x_t to explain

# %% [markdown]
# ## Back: the model
#
# In generation $x^0$ is what we are after, so Eq. 5 cannot be used. A network stands in for it. It looks at $x^t$ and
# $t$ and predicts the noise, $\epsilon_\theta(x^t, t)$; Eq. 4 turns that into a guess of $x^0$, and Eq. 7 turns the
# guess into the mean of a Gaussian:
#
# $$p_\theta(x^{t-1} \mid x^t) = \mathcal N(x^{t-1};\ \mu_\theta,\ \Sigma_\theta I), \qquad
# \mu_\theta = \frac{1}{\sqrt{\alpha_t}} \Big( x^t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\, \epsilon_\theta \Big).
# \tag{8, 10}$$
#
# (Here too the paper prints $\sqrt{\bar\alpha_t}$ where Algorithm 3 has $\sqrt{\alpha_t}$. The code agrees with
# Algorithm 3, as the next lines show.) The network has a second output $v$, for the variance. It chooses a point
# between the smallest and the largest value that makes sense, on a logarithmic scale:
#
# $$\Sigma_\theta = \exp\big(v \log \beta_t + (1 - v) \log \tilde\beta_t\big). \tag{12}$$
#
# In code `v` runs from -1 to 1, as the authors' networks emit it, and is mapped to $[0, 1]$ inside.

# %%
t = torch.tensor([5, 40, 95])
x_t, eps = randn(3, 1), randn(3, 1)
beta, bar = (
    torch.tensor(table[t], dtype=torch.float32)[:, None]
    for table in (diffusion.betas, diffusion.alpha_bar)
)
eq_10 = (x_t - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
p = diffusion.p(x_t, t, eps, v=torch.zeros(3, 1))
torch.testing.assert_close(p.mean, eq_10, atol=1e-5, rtol=1e-5)

# %% [markdown]
# Note that the three samples above had three different `t`. Ordinary samplers move a whole batch at one level. A
# pool does not, and this is why the reverse step is our own.
#
# How much freedom does $v$ have? The figure shows the two bounds.

# %%
bounds = diffusion.transition(torch.arange(1, T))
lines = {r"$\beta_t$": bounds.beta, r"$\tilde\beta_t$": bounds.beta_tilde}
lines = {name: (steps[1:], y) for name, y in lines.items()}
figures.curves(lines, "t", "variance of a step", log_y=True)

# %% tags=["nbval-check-output"]
ratio = (bounds.beta_tilde / bounds.beta).flatten()
for level in (1, 10, 25, 50):
    print(f"t = {level:2d}: the lower bound is {ratio[level - 1]:.2f} of the upper")
assert ratio[0] < ratio[T // 10] < ratio[T // 2]

# %% [markdown]
# The bounds are far apart only near $t = 0$ and approach each other from there on. With more steps they do so earlier.
# Nichol and Dhariwal find that the variance matters for the likelihood and for sampling in few steps, and little for
# the looks of samples otherwise.
#
# ## Training (Algorithm 2)
#
# The objective has two parts. $L_\text{simple}$ trains the noise, $L_\text{vlb}$ the variance:
#
# $$L_\text{simple} = \mathbb E\,\|\epsilon - \epsilon_\theta(x^t, t)\|^2, \tag{11}$$
#
# $$L_\text{vlb} = \mathbb E\, D_{KL}\big(q(x^{t-1} \mid x^t, x^0)\ \|\ p_\theta(x^{t-1} \mid x^t)\big), \tag{9}$$
#
# $$L_\text{hybrid} = L_\text{simple} + \lambda L_\text{vlb}. \tag{13}$$
#
# In $L_\text{vlb}$ the mean is held fixed, so that it does not disturb what $L_\text{simple}$ teaches. The paper leaves
# $\lambda$ open. Nichol and Dhariwal take 0.001 with the sum of the KL over all $T = 1000$ steps. Code draws one step
# for each sample instead of summing, so there it is $\lambda = 0.001 \cdot 1000 = 1$, with the KL in bits per dimension:
# ADM's weight, the authors', and ours. All that
# training needs from the data arrives in a *batch*, and a batch has four parts.

# %%
source = sources.NoisedImages(diffusion, data.load_images("digits"), batch_size=4)
batch = next(source)
print("x_t   ", tuple(batch.x_t.shape), "  noisy samples, Eq. 4")
print("t     ", batch.t.tolist(), "  their levels")
print("eps   ", tuple(batch.eps.shape), "  the noise: what the network predicts")
print("target", tuple(batch.target.mean.shape), "  the posterior, Eq. 5: for its p")

# %% [markdown]
# Keep this picture in mind. **The whole of DKDM is another way to fill these four fields.**
#
# ## Sampling (Algorithm 3)
#
# Start from noise. Then walk down: predict, form $p_\theta$, draw from it. At the last step no noise is added.
# This is Algorithm 3 as the paper prints it, and a test proves that `diffusion.sample` gives the same numbers.


# %%
@torch.no_grad()
def algorithm_3(denoiser, x):
    path = [x]
    for t in reversed(range(T)):
        t = torch.full((len(x),), t)
        p = diffusion.p(x, t, *denoiser(x, t), clip=diffusion.clip)
        x = diffusion.step(p, t - 1, randn(*x.shape))
        path.append(x)
    return path


# %% [markdown]
# A model to try it on: eight Gaussians on a circle. Their perfect denoiser is known in closed form (see
# `MixtureDenoiser`), so whatever the samples show is the sampler's doing alone. Points in the plane have no pixel
# range, so nothing is clamped.

# %%
diffusion = GaussianDiffusion.cosine(T, clip=False)
mixture = data.GaussianMixture.ring()
exact = mixture.denoiser(diffusion)
path = algorithm_3(exact, randn(1500, 2))
reference = mixture.sample(1500, seed=1)
shown = [*range(0, T, 10), T - 5, T]
pictures = [
    figures.points({f"after {k} of {T} steps": path[k]}, 2.5, reference)
    for k in shown
]
frames(pictures, [f"{k} steps" for k in shown], "denoising", start=len(shown) - 1)

# %% [markdown]
# The cloud shrinks at first, and it takes most of the way until the ring shows and breaks up into clusters. How
# sharp a sample becomes is decided at small $t$. In numbers, the share of points within three deviations of a cluster:

# %%
for k in (0, T // 2, T * 4 // 5, T * 9 // 10, T):
    near = (torch.cdist(path[k], mixture.means).min(1).values < 0.25).float().mean()
    print(f"after {k:3d} of {T} steps: {near:.0%}")

# %% [markdown]
# Fewer steps are possible. Respacing (IDDPM) takes the same formulas from level $t$ to any lower level $s$; DDIM
# ([Song et al., 2021](references.md)) does so without noise. The paper evaluates with 50 respaced steps.
# The numbers are energy distances to real samples; zero is as good as real.

# %%
from dkdm_lab.metrics import energy_distance

for method, count in [("ddpm", 100), ("ddpm", 50), ("ddpm", 10), ("ddim", 10)]:
    x = diffusion.sample(exact, 1500, count, method=method, seed=seed)
    print(f"{method}, {count:3d} steps: {energy_distance(x, reference):+.4f}")
floor = energy_distance(mixture.sample(1500, seed=2), reference)
print(f"two sets of real samples: {floor:+.4f}")
assert energy_distance(path[-1], reference) < 0.01

# %% [markdown]
# ## In the authors' code
#
# `guided_diffusion/gaussian_diffusion.py`, inherited from ADM ([Dhariwal and Nichol, 2021](references.md)), computes the same
# quantities from float64 tables. Our tests compare with arrays it produced: tables to $10^{-10}$, samples to
# $10^{-5}$. One habit is worth knowing. Reverse steps clamp the predicted $x^0$ to $[-1, 1]$; the loss never
# does so with the prediction that is being trained.
#
# ## The result beside the paper
#
# This chapter has no table of the paper to stand beside. What it claims, its asserts check.
#
# ## Limits
#
# Only pixel-space conventions appear here: noise prediction, learned variance, clamping. Latent-space teachers have
# a linear schedule and no learned variance.
#
# ## Exercises
#
# 1. Set `clip=True` for the plane and sample again. What happens to the circle, and why?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. The outer parts of four clusters are cut off. Clamping puts the
# predicted x0 into the square from -1 to 1. The circle has radius 1, so the
# clusters at 0, 90, 180 and 270 degrees lie half outside. The last step returns
# the prediction itself, so no point leaves the square.
clamped = GaussianDiffusion.cosine(T).sample(exact, 1500, seed=seed)
assert clamped.abs().max() <= 1 < path[-1].abs().max()
figures.points({"clamped": clamped, "as it is": path[-1]}, 1.4)

# %% [markdown]
# 2. Replace the step's noise by zero in `algorithm_3`. Where do the points go?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. Inside the circle. The mean of p is an average over all that the
# sample may still become, and an average of points on a circle lies inside it.
# The noise of each step is what pushes samples out again.
x = randn(1500, 2)
for level in reversed(range(T)):
    t = torch.full((1500,), level)
    x = diffusion.p(x, t, *exact(x, t)).mean
for name, points in (("without noise", x), ("with noise", path[-1])):
    print(f"{name:14s}median radius {points.norm(dim=1).median():.2f}")
assert x.norm(dim=1).median() < 0.95 < path[-1].norm(dim=1).median()

# %% [markdown]
# 3. Plot $\bar\alpha_t$ of the cosine schedule for ten steps, in a cell of your own. `GaussianDiffusion.linear(10)` is
#    refused: why?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. The linear schedule is made for 1000 steps, with beta from 0.0001 to
# 0.02. With ten steps each must do the work of a hundred, so beta would end at
# 2. But beta is the share of variance that is replaced, and no share exceeds 1.
try:
    GaussianDiffusion.linear(10)
except ValueError as refusal:
    print(refusal)
assert 0.02 * 1000 / 10 > 1
ten = GaussianDiffusion.cosine(10)
figures.curves({"cosine": (range(10), ten.alpha_bar)}, "t", r"$\bar\alpha_t$")
# %% [markdown]
# ## Further reading
#
# [Ho et al. (2020)](references.md) for Eqs. 1 to 11; [Nichol and Dhariwal (2021)](references.md) for the learned
# variance, the cosine schedule and respacing; [Song et al. (2021)](references.md) for DDIM.
