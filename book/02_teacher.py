# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. A teacher
#
# *Section 4.1 of the paper: datasets, teachers, metrics.*
#
# Everything in this book starts from one trained model that somebody else has made. The paper takes published ones.
# Ours lie in the repository, in `book/models/`, each with a card that says how it was trained. This chapter trains one
# more, small and before your eyes, on real digits, so that you know what such a model is. It is thrown away after. From
# the next chapter on a data set is opened to score samples, or by a baseline that has one by definition, and for
# nothing else.
#
# **What you'll do.** Train a teacher, look at its samples and at those of the book's own, give both a score.
#
# **What you'll learn.** What the score means, where its floor is, and how a run is kept so that it is done once.
#
# **What you need.** [Chapter 1](01_diffusion.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import math
from itertools import islice

import torch

from dkdm_lab import networks
from dkdm_lab.data import load_images, to_uint8
from dkdm_lab.experiments import ledger, presets, runs
from dkdm_lab.losses import decoder_nll
from dkdm_lab.metrics import score
from dkdm_lab.notebook.explore import Sampler
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(preset, live=live, **changes)
small = settings.replace(pipeline=None, teacher_seed=None)  # to be trained here
diffusion = settings.diffusion()

# %% [markdown]
# ## The data, once
#
# Scikit-learn brings 1,797 handwritten digits, 8 by 8 pixels. They are real: 43 people wrote them.

# %%
images = load_images(settings.data, n=settings.reference_images)
print(
    f"{len(images):,} images of {images.shape[1]} x {images.shape[2]} x {images.shape[3]}, {images.dtype}"
)
figures.image_grid(images[:40], columns=20)

# %% [markdown]
# ## The network
#
# The paper's networks are ADM's U-Nets ([Dhariwal and Nichol, 2021](references.md)). In diffusers, `UNet2DModel` expresses them
# exactly. The table counts parameters; the first five are those of the paper's Table 8, to the last one.

# %% tags=["nbval-check-output"]
for name in (
    "cnn-57m",
    "cnn-44m",
    "cnn-32m",
    "cnn-24m",
    "cnn-14m",
    "digits-teacher",
    "digits-student",
):
    with torch.device("meta"):  # shapes only, no memory
        print(f"{name:15s}{networks.build(name).parameter_count:12,}")

# %% [markdown]
# Whatever the network, a `Denoiser` around it answers one question. Given noisy samples and their levels, it returns
# the noise and the variance output.

# %%
teacher_network = networks.build(settings.teacher)
x_t = torch.randn(2, *teacher_network.shape)
eps, v = teacher_network(x_t, torch.tensor([3, settings.T - 1]))
assert eps.shape == v.shape == x_t.shape

# %% [markdown]
# ## A training step
#
# Algorithm 2 trains it. Here it is, the whole loop of this book. A *source* yields batches of the four fields of
# [chapter 1](01_diffusion.ipynb); what the loop does with them never changes.


# %%
def learn(student, source, iterations, lr):
    """Descend Eq. 13 over the batches of a source."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    student.train()
    for batch in islice(source, iterations):
        eps, v = student(batch.x_t, batch.t)
        simple = (batch.eps - eps).square()  # Eq. 11
        p = diffusion.p(batch.x_t, batch.t, eps.detach(), v)  # Eqs. 8 and 12
        kl = batch.target.kl(p)  # Eq. 9
        if (
            batch.observed
        ):  # at the lowest level x_0 is known: its likelihood instead
            nll = decoder_nll(batch.target.mean, p)
            kl = torch.where(batch.t.view(-1, 1, 1, 1) == 0, nll, kl)
        loss = simple.mean() + kl.mean() / math.log(2)  # Eq. 13, lambda = 1
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# %% [markdown]
# `train` in the module is this loop with what a long training needs: an average of the weights, checkpoints, several
# processes, a log. Let both take twenty steps from the same weights, on the same batches.


# %%
def beginner():
    torch.manual_seed(seed)
    network = networks.build(settings.student)
    return network, NoisedImages(diffusion, images, batch_size=32, seed=seed)


ours, source = beginner()
learn(ours, source, 20, lr=settings.lr)
theirs, source = beginner()
train(theirs, source, diffusion, 20, lr=settings.lr, progress=False)
apart = max(
    (a.cpu() - b.cpu()).abs().max().item()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
)
assert apart < 1e-4  # a step moves a weight by about lr = 1e-3

# %% [markdown]
# ## Train it, or load it
#
# A *run* is a preset, a method and a seed. It has a folder in `data_cache/runs/`. If it is finished, its result is
# read. If it was interrupted, it goes on. Otherwise it is trained now, by that loop.

# %%
run = runs.Run(small, "teacher", seed)
result = run.result()
teacher = run.model()
print(run.name)

# %%
history = result["loss"]
loss = {
    key: (history["iteration"], figures.smoothed(history[key]))
    for key in ("simple", "vlb")
}
figures.curves(loss, "iteration", "loss", log_y=True)

# %% [markdown]
# Both parts of the hybrid loss fall quickly and then slowly. They never reach zero: the noise that was added cannot
# be known from the noisy image. What is left is the irreducible part.
#
# ## Its samples

# %%
samples = to_uint8(
    diffusion.sample(teacher, 40, settings.steps, seed=seed, device=device())
)
figures.image_grid(samples, columns=20)

# %% [markdown]
# Some of these digits could pass for the ones above. Is one of them a copy? For each sample, the nearest real digit
# tells: the mean difference of a pixel's grey level to it, beside the same for one real digit and its nearest other.


# %%
def nearest(x, others, skip_itself=False):
    """Root mean squared difference of grey levels from each image to the nearest of the others."""
    distance = torch.cdist(x.flatten(1).float(), others.flatten(1).float())
    if skip_itself:
        distance.fill_diagonal_(float("inf"))
    return distance.min(dim=1).values / x[0].numel() ** 0.5


if settings.data == "digits":
    of_samples = nearest(samples, images)
    of_digits = nearest(images, images, skip_itself=True)
    for name, d in (("samples", of_samples), ("real digits", of_digits)):
        print(
            f"{name:12s} median {d.median():.0f}, least {d.min():.0f} of 255 grey levels"
        )
    assert of_samples.min() > 0  # none is a copy

# %% [markdown]
# ## The one in the box
#
# The book's own teacher was trained longer, and the card in its folder says how. It is what the next chapters distil.
# Here it is beside the small one, each column from the same noise:

# %%
boxed = runs.Run(settings, "teacher", seed)
rows = {"trained here": teacher, "in the box": boxed.model()}
rows = {
    name: to_uint8(
        diffusion.sample(model, 16, settings.steps, seed=seed, device=device())
    )
    for name, model in rows.items()
}
figures.sample_sheet(rows)

# %% [markdown]
# How many steps does a sample need? Here is the teacher in the box, always with the same noise. Go down from 100 steps:
# at which number do digits change into other ones, and at which do they fall apart? DDIM adds no noise on the way, so
# its digits should change less.

# %%
Sampler(boxed.model().to("cpu"), diffusion, seed=seed)

# %% [markdown]
# ## A score
#
# The *Fréchet distance* compares two sets of images. Pass both through a feature extractor, fit a Gaussian to each
# set of features, and measure how far apart the two Gaussians are:
#
# $$d^2 = \|\mu_1 - \mu_2\|^2 + \operatorname{tr}\big(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\big).$$
#
# With Inception's 2,048 features this is the FID ([Heusel et al., 2017](references.md)). Inception knows nothing of 8-by-8 digits, so
# here the features are the 64 of a small digit classifier. We call it **digits-FID**. Lower is better, and zero is
# reached by the data set itself only. *Precision* asks how many samples look like data, *recall* how much of the data
# the samples cover ([Kynkäänniemi et al., 2019](references.md)).

# %%
in_the_box = boxed.result()["metrics"]
print(f"{'':18s}{'trained here':>14s}{'in the box':>14s}")
for name, value in result["metrics"].items():
    print(f"{name:18s}{value:14.3f}{in_the_box[name]:14.3f}")

# %% [markdown]
# A number needs a yardstick. What does pure noise score? And what do real images score against other real ones? The
# second depends on how they are split, so here are six random splits into halves.


# %%
def halves(number):
    order = torch.randperm(
        len(images), generator=torch.Generator().manual_seed(number)
    )
    middle = len(images) // 2
    return images[order[:middle]], images[order[middle : 2 * middle]]


def distance(x, y):
    return score(x, y, settings.features, ("FID",))[settings.metric]


noise = torch.randint(
    0,
    256,
    images.shape,
    dtype=torch.uint8,
    generator=torch.Generator().manual_seed(seed),
)
floor = [distance(*halves(number)) for number in range(6)]
worst = distance(noise, images)
print(
    f"half against half: {min(floor):.1f} to {max(floor):.1f}   noise: {worst:.0f}"
)
if live:
    assert result["metrics"][settings.metric] < worst / 20

# %% [markdown]
# Two halves of the same data are not at distance zero, for a Fréchet distance is biased: the smaller the sets, the
# larger it comes out. Each half has half of the images; a teacher's samples meet all of them, and so can score *below*
# the halves. The lesson is a rule of this book: **a distance is quoted with its N, and only distances with the same N
# are compared.** And one split alone is no floor: the six differ.
#
# The small teacher got to its score like this:

# %%
figures.curves(
    {"teacher": runs.curve(result, settings.metric)},
    "iteration",
    settings.metric,
    log_y=True,
)

# %% [markdown]
# ## Kept in a format others read
#
# Both teachers are saved as diffusers pipelines. Plain diffusers, without this book, loads one and samples from it.

# %%
from diffusers import DDPMPipeline
from diffusers.utils import logging

logging.disable_progress_bar()

pipeline = DDPMPipeline.from_pretrained(run.folder / "model")
pipeline.set_progress_bar_config(disable=True)
pictures = pipeline(
    batch_size=1,
    num_inference_steps=settings.steps,
    generator=torch.Generator().manual_seed(seed),
)
print(
    type(pipeline.unet).__name__,
    pipeline.scheduler.config.variance_type,
    pictures.images[0].size,
)

# %% [markdown]
# ## In the authors' code
#
# The authors load `.pt` files of ADM and of DDPM-IP ([Ning et al., 2023](references.md); `scripts/image_kd.py`). `load_adm` reads
# such files, key by key, with nothing left over; the weights alone do not tell the order of queries, keys and values
# in the attention, so you say which. Two small checkpoints made with their code are part of our tests: same input,
# same output, to five digits.
#
# ## The result beside the paper
#
# The paper's CIFAR-10 teacher has 57M parameters and an FID of 4.45 at 50 steps over 50,000 samples (Table 2). The
# book's teacher of digits is seventy times smaller, for images sixteen times smaller. The ledger's runs train one for
# each seed; the one in the box is of seed 0. For natural images there is one teacher for all seeds, as in the paper:
# `cifar16`, CIFAR-10 at half its side.

# %%
ledger.table(preset, ["teacher"])

# %%
ledger.table("cifar16", ["teacher"])

# %% [markdown]
# *Verdict:* not comparable, and not meant to be. Whether a teacher is worth learning from is for the next chapters.
#
# ## Limits
#
# The classifier that defines digits-FID has seen the same 1,797 digits. It rewards what it can see and nothing else.
# The table's numbers come from longer training than the live run above.
#
# ## Exercises
#
# 1. Sample with 10 steps instead of the preset's. How much does the score suffer?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Much: a long step is a worse guess of where many short ones lead. Both
# scores are of as many samples as there are real images, from the same noise, so
# that only the steps differ.
for steps in (10, settings.steps):
    x = diffusion.sample(teacher, len(images), steps, seed=seed, device=device())
    print(
        f"{steps:3d} steps: {settings.metric} {distance(to_uint8(x), images):.1f}"
    )

# %% [markdown]
# 2. Which of the samples of the small teacher is nearest, in pixels, to a real digit? Show both.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. `nearest` gave the distance of each sample; its smallest is the one.
which = nearest(samples, images).argmin()
gaps = (images.float() - samples[which].float()).flatten(1).norm(dim=1)
assert gaps.min() > 0  # near, and yet no copy
figures.image_grid(torch.stack([samples[which].cpu(), images[gaps.argmin()]]))

# %% [markdown]
# 3. The ledger has a longer-trained teacher for each of three seeds. Do their scores differ by more than those of the six
#    splits into halves?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. Not by more, for the digits: chance in the choice of images moves a
# score as far as chance in a whole training. Compare spreads, not levels: a half
# has fewer images than a teacher's samples, so the levels have different N.
of_seeds = list(
    ledger.by_seed(preset, settings.metric, {"method": "teacher"}).values()
)
for name, found in (("teachers", of_seeds), ("splits", floor)):
    if found:
        print(f"{name:9s}{min(found):.1f} to {max(found):.1f}", end=", ")
        print(f"apart by {max(found) - min(found):.1f}")
# %% [markdown]
# ## Further reading
#
# FID ([Heusel et al., 2017](references.md)); KID, which has no bias in N ([Bińkowski et al., 2018](references.md)); precision and recall
# ([Kynkäänniemi et al., 2019](references.md)).
