# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 20. Guided synthesis
#
# *The slides' "Data Free Generation through Model Inference", and Section III of DiffDFKD.*
#
# A model remembers something of its data: what it reconstructs well, what its latents expect, the statistics in its batch
# norms. [Qi et al. (2025)](references.md) use that memory to steer a diffusion model that knows nothing of these data. While
# it denoises, its half-made image is shown to the teacher, and moved to where the teacher's losses are lower. The slides
# ([Group 2, 2025](references.md)) take the method from classifiers over to VAEs.
#
# **What you'll do.** Let a diffusion model of the digits 0 to 4 draw for a VAE that knows 5 to 9. (The study `cifar10` has
# the slides' guide in its place.)
#
# **What you'll learn.** How a gradient is taken through a guide, what guidance lowers, and what a guide cannot be talked
# into.
#
# **What you need.** [Chapter 18](18_lvae.ipynb), and DDIM from [chapter 15](15_latent_space.ipynb).

# %% tags=["parameters"]
study = "digits"  # or "cifar10", the slides' size, where there is a GPU
seed = 0
adjust = {}  # settings other than the study's own, as {"step_size": 0.1}

# %%
from itertools import pairwise

import torch

from dkdm_lab.beyond.loss_guided_synthesis import VAELosses, synthesise
from dkdm_lab.data import to_uint8
from dkdm_lab.experiments import studies
from dkdm_lab.metrics import compare
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device
from dkdm_lab.system.seeds import numbered_noise

figures.use_style()
settings = studies.get(study, **adjust)
data = settings.split()


def part(name):
    return studies.Part(settings, name, seed)


# %% [markdown]
# ## The guide
#
# *Data-free* would be an empty word if the guide had been trained on the teacher's data: it could simply repeat them. So
# our guide is a small diffusion model of the *other* digits, 0 to 4. Below it a second one that was trained on the
# teacher's own, as contrast. (The slides' guide is Stable Diffusion v1.5, steered by prompts as well. Whether anything of
# CIFAR-10 or CelebA-HQ was among the images it was trained on, they do not say.)

# %%
guides = {name: part(f"guide-{name}").model() for name in ("unseen", "seen")}
drawn = [part(f"images-unguided{end}").images()[:20] for end in ("", "-seen")]
figures.image_grid(torch.cat(drawn), columns=20)

# %% [markdown]
# ## One step
#
# At level $t$ the guide's answer $\epsilon$ gives an estimate of the finished image, $\hat x_0$ (by Eq. 4). The teacher's
# losses of it have a gradient with respect to the sample $z_t$, *through the guide*, and $z_t$ takes a step down:
#
# $$z_t \leftarrow z_t - \eta\, \nabla_{z_t} \mathcal L\big(\hat x_0(z_t)\big), \qquad
# \mathcal L_\text{VAE}(x) = \lVert x - \hat x \rVert^2 + \sum_l \mathrm{KL}(q_l \,\|\, p_l) + w\, L_\text{bn}(x).$$
#
# The slides name the first two terms for their VAEs. The third, DiffDFKD's, compares the statistics that pass through the encoder's
# batch norms with those it remembers ([chapter 21](21_classifier.ipynb)); below we see what it is worth. Then $\epsilon$ is asked for
# anew, and the usual step of DDIM ([Song et al., 2021](references.md)) follows. For a latent guide $\hat x_0$ passes through its
# decoder too.

# %%
teacher = part("vae-teacher").model()
losses = VAELosses(
    teacher, settings.reconstruction, settings.kl, settings.batch_norm
)
guide = guides["unseen"]
diffusion = guide.diffusion


def guided_step(z, t, s, step_size):
    """One step of a pixel guide, from level t to s; also what the losses were."""
    z = z.requires_grad_()
    eps, _ = guide.denoiser(z, t)
    terms = losses(diffusion.predict_x0(z, t, eps, diffusion.clip))
    total = sum(losses.weights[k] * v.sum() for k, v in terms.items())
    z = (z - step_size * torch.autograd.grad(total, z)[0]).detach()
    with torch.no_grad():
        eps, _ = guide.denoiser(z, t)
        return diffusion.ddim(z, t, eps, s), total.item()


# %% [markdown]
# Repeated from noise to image it is `synthesise` of the module, to the last grey level:


# %%
def drawn_by_hand(n, steps, step_size):
    z = numbered_noise(seed, diffusion.T, range(n), guide.denoiser.shape, device())
    levels = [*diffusion.timesteps(steps, "ddim")[::-1], -1]
    for level, below in pairwise(levels):
        t, s = (torch.full((n,), k, device=device()) for k in (level, below))
        z, _ = guided_step(z, t, s, step_size)
    return to_uint8(z.clamp(-1, 1)).cpu()


if guide.vae is None:
    options = {"steps": settings.steps, "step_size": settings.step_size}
    whole = synthesise(guide, losses, 20, seed=seed, **options)
    by_hand = drawn_by_hand(20, **options)
    assert (whole.images.int() - by_hand.int()).abs().max() <= 1

# %% [markdown]
# The public code of this method takes $\hat x_0$ without recording how it came about (more on that below). A gradient
# cannot pass there, whatever the losses say. Is ours a gradient? A small step along it must lower the losses, and by as much as it
# says:

# %%
z = numbered_noise(seed, diffusion.T, range(20), guide.denoiser.shape, device())
t = torch.full(
    (20,), diffusion.timesteps(settings.steps, "ddim")[-5], device=device()
)


def at(z):
    image = diffusion.predict_x0(z, t, guide.denoiser(z, t)[0], diffusion.clip)
    return sum(losses.weights[k] * v.sum() for k, v in losses(image).items())


if guide.vae is None:
    slope = torch.autograd.grad(at(z.requires_grad_()), z)[0]
    with torch.no_grad():
        step = 1e-3 / slope.norm()
        gained = (at(z + step * slope) - at(z - step * slope)) / 2
    expected = float(step * slope.square().sum())
    print(f"lowered by {float(gained):.4f}, the gradient says {expected:.4f}")
    assert abs(float(gained) - expected) < 0.2 * expected

# %% [markdown]
# ## What guidance lowers
#
# Each set was drawn twice, from the same noise: with guidance, and with the losses only measured. Here they are over the
# steps. (The slides have a figure "Batch Norm loss v/s timesteps" of DiffDFKD's synthesis; ours is the weighted sum of all
# three losses.)

# %%
lines = {}
for name in ("unguided", "guided", "unguided-seen", "guided-seen"):
    result = part(f"images-{name}").result()
    total = [
        sum(
            losses.weights[k] * values[step]
            for k, values in result["losses"].items()
        )
        for step in range(len(result["t"]))
    ]
    lines[name] = range(len(total)), total
figures.curves(lines, "step", "losses, mean over images")

# %%
ends = {name: values[-1] for name, (_, values) in lines.items()}
print(*(f"{name} {end:.2f}" for name, end in ends.items()), sep=", ")
assert ends["guided"] < ends["unguided"]
assert ends["guided-seen"] < ends["unguided-seen"]

# %% [markdown]
# From the same noise, guidance leads to lower losses than no guidance, with either guide. Without it the images of the
# guide that saw the teacher's data end lower than those of the other; how near guidance brings the other to that, the
# numbers say.
#
# ## What they look like
#
# As in the slides, synthetic images beside their nearest neighbour in the data. Four rows: unguided; the same noise, guided;
# the nearest of the *teacher's* images to the guided one; and the nearest of the *guide's* own data.

# %%
sets = {name: part(f"images-{name}").images() for name in ("unguided", "guided")}


def nearest(images, among):
    flat = (x.flatten(1).float() for x in (images, among))
    distance, which = torch.cdist(*flat).min(1)
    return among[which], distance


shown = [sets["unguided"][:20], sets["guided"][:20]]
shown.append(nearest(shown[1], data.train)[0])
if settings.unseen is None:
    shown.append(nearest(shown[1], settings.others())[0])
figures.image_grid(torch.cat(shown), columns=20)

# %%
if settings.unseen is None:
    for name, images in sets.items():
        to_own = nearest(images, data.train)[1]
        to_guides = nearest(images, settings.others())[1]
        share = (to_own < to_guides).float().mean()
        print(
            f"{name}: {share:.0%} are nearer to the teacher's data than to the guide's"
        )

# %%
away = {"guided": sets["guided"], "held-out": data.test}
for name, images in away.items():
    distance = nearest(images, data.train)[1]
    print(f"{name}: from the nearest of the teacher's images at least", end=" ")
    print(f"{distance.min():.0f}, on median {distance.median():.0f} grey levels")
assert nearest(sets["guided"], data.train)[1].min() > 0

# %% [markdown]
# Guidance moves images towards the teacher's data, as the shares say. Does it copy them? The guide never had them, and no
# guided image *is* one of them. The distances, Euclidean over all pixels, tell more: those of real images that neither the
# teacher nor the guide has seen are the measure.
#
# ## Which losses, and how large a step?
#
# A short trial, a hundred images each. The distance to the teacher's data is what a data-free experimenter could *not*
# look at. We chose the step and the weight of $L_\text{bn}$ by it, on a seed that is in no table.

# %%
real = data.test[: settings.samples]
eta, w = settings.step_size, settings.batch_norm
trials = {
    "unguided": (0.0, 0.0),
    "the slides' two losses": (eta, 0.0),
    "L_bn too": (eta, w),
    "L_bn too, four times the step": (4 * eta, w),
}
options = {"steps": settings.steps, "batch_size": settings.synthesis_batch_size}
options |= {"resize": True, "seed": seed}
name, pictures, distances = f"{settings.prefix}sqrt-FID", [], []
for title, (step, weight) in trials.items():
    asked = VAELosses(teacher, settings.reconstruction, settings.kl, weight)
    images = synthesise(guide, asked, 100, step_size=step, **options).images
    pictures.append(images[:20])
    distances.append(compare(images, real, settings.features)[name])
    print(f"{title:30s} {name} {distances[-1]:.1f}")
figures.image_grid(torch.cat(pictures), columns=20)

# %% [markdown]
# The rows are in the order of the lines. One seed and a hundred images are a coarse measure, so only large differences
# count. For the digits the slides' two losses help, and $L_\text{bn}$ helps more. At four times the step the images turn
# into black and white blots, at which the distance takes little offence. Look at images, not only at numbers.
#
# ## Is it worth it?
#
# Sets of images are a means. What counts are their students, who learn at the same number of iterations from guided and
# from unguided images ([chapter 19](19_unified_distillation.ipynb)). From the ledger:

# %%
sets_of_images = [
    name
    for name in studies.PARTS
    if name.startswith("images") and "classes" not in name
]
studies.table(study, sets_of_images, ("sqrt-FID", "EMD", "MMD", "1-NN"))

# %%
students = [f"vae-{name}" for name in ("real", "unguided", "guided", "guided-seen")]
studies.table(study, students, ("sqrt-FID", "reconstruction"))

# %%
studies.verdicts("20_guided_synthesis")

# %% [markdown]
# *Verdict, for the digits:* guidance works. In every seed it lowers the distance between the guide's images and data that
# this guide never saw, on average to half. That is still above the distance of a guide that did see them, unguided. It
# helps a student's encoder in every seed too: guided images of the unseen guide are about as good for it as those of the
# other one. Neither is as good as the data. That it helps the *generator* is not reproduced, for what noise can teach is not learned from images ([chapter 19](19_unified_distillation.ipynb)).
#
# ## In the authors' code
#
# DiffDFKD's `generate_images.py` computes $\hat x_0$ (`pred_original_sample`) inside `torch.no_grad()`, and then asks for
# the gradient of the loss with respect to the latents. No path leads from the one to the other. It also imports an
# options module that is not in the repository. Its README says that the original code was lost and this one written
# anew; so the paper's numbers were made with something else.
#
# ## The result beside the slides
#
# The slides give no number for this step. Under "Data-synthesis (paper's)", that is by DiffDFKD's pipeline, they have the
# figure "Batch Norm loss v/s timesteps" and some generations taken from DiffDFKD's paper; under their own pipeline,
# synthesized images beside their closest matches in CIFAR-10. A falling loss alone would be no evidence of guidance: it
# falls without it too, as the figure above shows, because noise becomes an image. The evidence is the distance between
# two lines from the same noise.
#
# ## Limits
#
# Our guide is tiny and knows five digits, and its digits and the teacher's are drawn by the same hands. Between Stable
# Diffusion and CIFAR-10 the gap is of another kind, and was not tried here. One gradient step a level is the published
# method; more would cost more.
#
# ## Exercises
#
# 1. Let the statistics of the batch norms guide alone (`adjust = {"reconstruction": 0.0, "kl": 0.0}`). What is lost?
# 2. Keep the gradient from the guide: detach $\epsilon$ in a copy of `guided_step`. What is left of the effect?
# 3. Guide by the reconstruction alone, with a step four times as large. What does a VAE reconstruct best?
#
# ## Further reading
#
# DiffDFKD ([Qi et al., 2025](references.md)); images from a network's own batch statistics ([Yin et al., 2020](references.md)); guidance by a
# classifier, of which this is a relative ([Dhariwal and Nichol, 2021](references.md)).
