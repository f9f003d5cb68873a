# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 18. A ladder VAE
#
# *The second source: slides on data-free distillation of other generative models, and the papers behind them.*
#
# Diffusion models are not the only generative models, and not the only ones whose data nobody may have. The slides that
# this chapter and the next three follow ([Group 2, 2025](references.md)) want to distil *any model with a continuous latent space*
# without data. They show it on a VAE: let a diffusion model draw images for it, and distil with these. This chapter
# builds the VAE.
#
# **What you'll do.** Train a ladder VAE on half of the digits, and see what each of its levels is for.
#
# **What you'll learn.** How several layers of latents are stacked, why every one of them is a mean plus noise, and what
# the loss of such a model consists of.
#
# **What you need.** [Chapter 1](01_diffusion.ipynb), for Gaussians and their KL divergence.

# %% tags=["parameters"]
study = "digits"  # or "cifar10", the slides' size, where there is a GPU
seed = 0
adjust = {}  # settings other than the study's own, as {"teacher_iterations": 500}

# %%
import torch

from dkdm_lab.beyond.vae import LVAE, from_unit, merge, negative_elbo, sample_vae
from dkdm_lab.data import to_model
from dkdm_lab.diffusion import Gaussian
from dkdm_lab.experiments import studies
from dkdm_lab.metrics import compare
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device

figures.use_style()
settings = studies.get(study, **adjust)
part = studies.Part(settings, "vae-teacher", seed)
data = settings.split()

# %% [markdown]
# ## A model of its noise
#
# A variational autoencoder ([Kingma and Welling, 2014](references.md)) draws a latent $z$ from a standard normal distribution and decodes it.
# A *ladder* VAE ([Sønderby et al., 2016](references.md)) has a latent at each of $L$ levels, small ones at the top and large ones
# below, where each is drawn given the one above:
#
# $$p(x, z_1, \dots, z_L) = p(x \mid z_1) \prod_{l=1}^{L-1} p(z_l \mid z_{l+1})\; p(z_L),
# \qquad z_l = \mu_l + \sigma_l\, n_l, \quad n_l \sim \mathcal N(0, I).$$
#
# The second half is the *reparameterisation*: all that is random is noise without parameters. So a VAE is a function.
# Give it the noise $n_1, \dots, n_L$, and out comes the image. The next chapter stands on this sentence.
#
# The network is that of [Chen et al. (2023)](references.md). Its width sets its size:

# %% tags=["nbval-check-output"]
with torch.device("meta"):  # shapes alone
    sizes = {width: LVAE(width=width) for width in (128, 32, 8)}
for width, network in sizes.items():
    count = network.parameter_count
    print(f"width {width:3d}: {count:9,} parameters, {4 * count / 2**20:5.2f} MiB")
assert [n.parameter_count for n in sizes.values()] == [5_386_496, 366_656, 30_416]

# %% [markdown]
# For 32x32 images the first is the slides' "5.39M" with its 20.5 MB, which are MiB then. (Elsewhere they say "~5.6M" of
# it.) The others are *two* candidates for their student, of which they say "0.03M" and "1.44 MB": 30,416 parameters take
# 0.12 MiB, and the width whose size is nearest, 32, takes 1.40 and has 0.37M. No width is both. We come back to that in
# [chapter 19](19_unified_distillation.ipynb).
#
# Ours is a smaller one of the same kind:

# %%
vae = part.model()
print(f"{vae.parameter_count:,} parameters; latents, from the top:")
print(" ".join("x".join(map(str, shape)) for shape in vae.latent_shapes))

# %% [markdown]
# ## Whose data?
#
# In the study `digits`, the digits from 5 to 9 belong to this teacher, and to nobody else: the guide of
# [chapter 20](20_guided_synthesis.ipynb) will have seen those from 0 to 4 only. Every third image is held out for the
# scores. (`cifar10` has the test set for that, and the slides' guide.)

# %%
print(f"{len(data.train)} images to learn from, {len(data.test)} held out")
order = data.train_labels.argsort(stable=True)
chosen = order[torch.linspace(0, len(order) - 1, 40).long()]
figures.image_grid(data.train[chosen], columns=20)

# %% [markdown]
# ## The ladder
#
# To learn, a VAE needs to know which latents an image could have come from: the posterior $q(z \mid x)$. On the way up,
# an encoder looks at the image and gives a Gaussian for each level. On the way down, the level above has its own opinion,
# the prior $p(z_l \mid z_{l+1})$. The two are merged as independent measurements of one quantity are, by multiplying
# their densities. Precisions add up, and means are weighted by them:
#
# $$\frac{1}{\sigma_q^2} = \frac{1}{\sigma_u^2} + \frac{1}{\sigma_p^2}, \qquad
# \mu_q = \sigma_q^2 \left(\frac{\mu_u}{\sigma_u^2} + \frac{\mu_p}{\sigma_p^2}\right).$$

# %%
prior = Gaussian(torch.tensor(-1.0), torch.tensor(0.0))  # mean, log-variance
seen = Gaussian(torch.tensor(1.5), torch.tensor(-1.4))
both = merge(seen, prior)
names = {"prior, from above": prior, "seen in the image": seen, "posterior": both}
x = torch.linspace(-4, 4, 200)


def density(g):
    return torch.distributions.Normal(g.mean, torch.exp(g.log_variance / 2))


lines = {k: (x, density(g).log_prob(x).exp()) for k, g in names.items()}
figures.curves(lines, "z", "density")

# %% [markdown]
# The posterior lies between the two, nearer to the one that is surer of itself, and is surer than either. That it is
# their product, we check on logarithms, up to a constant:

# %%
log = {k: density(g).log_prob(x) for k, g in names.items()}
rest = log["prior, from above"] + log["seen in the image"] - log["posterior"]
assert rest.std() < 1e-3

# %% [markdown]
# ## The loss
#
# The negative evidence lower bound has a part for the image and a part for each level:
#
# $$-\log \mathcal N(x;\, \hat x, \sigma_x^2 I) + \beta \sum_l \mathrm{KL}\left(q_l \,\|\, p_l\right).$$
#
# $\sigma_x^2 = 0.05$ is fixed. Without it the first part would decide alone how much the second counts. $\beta$ grows
# from 0 to 1 over the first half of the training, so that levels are used before they are paid for; otherwise the upper
# ones tend to switch themselves off.

# %%
x = data.test.to(device()) / 255
with torch.no_grad():
    elbo = negative_elbo(vae, x, vae.noise(len(x)))
assert torch.allclose(elbo.total, elbo.reconstruction + elbo.kl.sum(0))
print(f"held-out images: {elbo.total.mean():.1f} nats, of which", end=" ")
print("KL, from the top:", *(f"{kl:.1f}" for kl in elbo.kl.mean(1)))

# %%
result = part.result()
loss = result["loss"]
step = settings.teacher_iterations / len(loss)
line = [(k + 1) * step for k in range(len(loss))], loss
figures.curves({"teacher": line}, "iteration", "loss, nats an image")

# %% [markdown]
# Up to the middle $\beta$ grows and the same latents become dearer, which holds the loss up while the VAE improves; from
# there on they are paid for in full. (The loss may be negative. A density can exceed 1.)
#
# ## What it draws
#
# Images of the data above, samples of the VAE below:

# %%
samples = sample_vae(vae, 40, seed=seed)
figures.image_grid(torch.cat([data.test[:40], samples]), columns=20)

# %% [markdown]
# They are soft, as a VAE's images are: the figure shows $\hat x$, the mean of $p(x \mid z_1)$, and the pixel noise that the
# model believes in is left out.
#
# The scores are those of Chen et al. and of the slides, for digits in the features of a digit classifier: the Fréchet distance
# and its square root, the earth mover's distance, the maximum mean discrepancy ([Gretton et al., 2012](references.md)), and the
# accuracy of a 1-nearest-neighbour classifier that tries to tell real from generated ([Lopez-Paz and Oquab, 2017](references.md)), for
# which 0.5 is best. Even a perfect model would not get all of them to their best, for the samples are finite. The images
# that the teacher learned from show how low one can get:

# %%
real = data.test[: settings.samples]
floor = compare(data.train[: len(real)], real, settings.features)
names = [f"{settings.prefix}{name}" for name in studies.SCORES]
for who, scores in (("training images", floor), ("teacher", result["metrics"])):
    print(f"{who:16s}", *(f"{name} {scores[name]:.3f}  " for name in names))

# %% [markdown]
# ## What each level holds
#
# Keep the noise of all levels but one, and draw that one anew. What changes in the image is what the level decides.

# %%
generator = torch.Generator().manual_seed(seed)
noise = [n.expand(20, -1, -1, -1) for n in vae.noise(1, generator)]
rows, changed = [], {}
with torch.no_grad():
    for level in range(settings.levels):
        other = vae.noise(20, generator)
        mixed = [other[k] if k == level else n for k, n in enumerate(noise)]
        mean = vae(mixed).mean
        rows.append(from_unit(mean))
        changed[level] = float(mean.var(0).sum())
figures.image_grid(torch.cat(rows), columns=20)

# %% [markdown]
# A row a level, from the top: in each, one level's noise differs from image to image. Where all images of a row look
# alike, the level says little. The variance over a row, summed over pixels, puts a number on it:

# %%
for level, variance in changed.items():
    side = vae.latent_shapes[level][-1]
    print(f"level of {side}x{side}: {variance:.2f}")
assert changed[0] >= changed[settings.levels - 1]

# %% [markdown]
# The levels do not share the work evenly: the top one changes more of the image than the lowest.
#
# ## What it sees
#
# The encoder matters as soon as the VAE is to say something about an image. Through its posteriors the VAE reconstructs
# what it is shown. Above are held-out images, below what comes back:

# %%
with torch.no_grad():
    back = vae([torch.zeros_like(n) for n in vae.noise(20)], x[:20]).mean
figures.image_grid(torch.cat([data.test[:20], from_unit(back)]), columns=20)

# %% [markdown]
# And what does it make of images that it has never seen, the other digits? If its losses are to tell a guide what the
# teacher's data look like, they should be larger there.

# %%
if settings.unseen is None:
    losses = studies.VAELosses(vae)
    means = {}
    for name, images in (("own", data.test), ("other", settings.others())):
        with torch.no_grad():
            terms = losses(to_model(images).to(device()))
        means[name] = {k: float(v.mean()) for k, v in terms.items()}
        print(name, "digits:", *(f"{k} {v:.2f}" for k, v in means[name].items()))
    assert means["own"]["reconstruction"] < means["other"]["reconstruction"]

# %% [markdown]
# Of digits they are. Whether by enough, [chapter 20](20_guided_synthesis.ipynb) will show.
#
# ## In the authors' code
#
# In the public code of the unified framework the teacher stays in training mode while it teaches, so its batch norm
# follows each batch of the student's; ours is put into eval mode, and a teacher that is not is refused. The last layer
# has twice as many outputs as an image has channels, and nothing reads the second half. We keep it, for the parameter
# count.
#
# ## The result beside the slides
#
# The teacher's size agrees with the slides' to the digits that they print, the student's with none of one network. Their
# scores of the teacher stand in the table of [chapter 19](19_unified_distillation.ipynb), beside ours where there are any.
#
# ## Limits
#
# Of the digits there are 597 images of 64 pixels to learn from, few for a generative model. The slides' five levels need
# 32 pixels a side. Nobody would use this model for its images; it is here because it is no diffusion model.
#
# ## Exercises
#
# 1. Train without the warm-up (`train_vae(..., warmup=1e-9)`). Which levels are still used?
# 2. Use one level (`adjust = {"levels": 1}`). It is an ordinary VAE now. Is it worse?
# 3. Sample with the pixel noise of $\sigma_x$ added. Do the scores get better or worse, and why?
#
# ## Further reading
#
# Variational autoencoders ([Kingma and Welling, 2014](references.md)); ladders ([Sønderby et al., 2016](references.md)); the framework of the next chapter
# ([Chen et al., 2023](references.md)).
