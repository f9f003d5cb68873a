# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 21. A classifier without data
#
# *DiffDFKD, from which the slides have their pipeline.*
#
# The pipeline was made for classifiers ([Qi et al., 2025](references.md)). There it has more to hold on to than with a VAE. A classifier
# can be asked whether an image shows a given class, and images can be sought on which teacher and student disagree. In
# return, the student of a classifier has no noise to learn from: without images there is nothing to ask its teacher about.
#
# **What you'll do.** Distil a classifier of the digits 5 to 9 with images from a diffusion model that has only ever seen
# 0 to 4. (The study `cifar10` has other images and another guide; what is said of digits here is about `digits`.)
#
# **What you'll learn.** DiffDFKD's three losses, latent CutMix, and how far a teacher's answers to wrong images go.
#
# **What you need.** [Chapter 20](20_guided_synthesis.ipynb).

# %% tags=["parameters"]
study = "digits"  # or "cifar10", where there is a GPU
seed = 0
adjust = {}  # settings other than the study's own, as {"adversarial": 0.0}

# %%
import torch

from dkdm_lab.beyond.classifier import accuracy, tempered_kl
from dkdm_lab.beyond.loss_guided_synthesis import (
    ClassifierLosses,
    batch_norm_loss,
    synthesise,
)
from dkdm_lab.data import to_model
from dkdm_lab.experiments import studies
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device

figures.use_style()
settings = studies.get(study, **adjust)
data = settings.split()
classes = len(settings.classes)


def part(name):
    return studies.Part(settings, name, seed)


# %% [markdown]
# ## The teacher
#
# A small convolutional network with batch norm. It knows five classes, the digits from 5 to 9.

# %%
teacher = part("classifier-teacher").model()
right = accuracy(teacher, data.test, data.test_labels)
print(f"{teacher.parameter_count:,} parameters, held-out accuracy {right:.1%}")
assert right > 0.9

# %% [markdown]
# ## What it remembers
#
# A batch norm keeps the running mean and variance of what passed through it while it was trained. They are a summary of
# the data, channel by channel and layer by layer, and come with the model. $L_\text{bn}$ asks how far a batch of images
# is from it ([Yin et al., 2020](references.md)):
#
# $$L_\text{bn} = \sum_l \lVert \mu_l(x) - \bar\mu_l \rVert + \lVert \sigma^2_l(x) - \bar\sigma^2_l \rVert.$$


# %%
@torch.no_grad()
def remembered(images):
    with batch_norm_loss(teacher) as found:
        teacher(to_model(images).to(device()))
    return float(sum(found))


own = remembered(data.test)
noise = torch.randint(0, 256, data.test.shape, dtype=torch.uint8)
print(f"L_bn of its own digits {own:.2f}, of noise {remembered(noise):.2f}")
unguided = part("images-unguided").images()
print(f"of the guide's, unguided: {remembered(unguided[: len(data.test)]):.2f}")
assert own < remembered(unguided[: len(data.test)]) < remembered(noise)

# %% [markdown]
# ## What it is asked
#
# Two more losses complete DiffDFKD's. $L_\text{cls}$ is the cross-entropy with the class that the image is to show, so
# that all classes occur. $L_\text{adv}$ rewards images on which the student is still wrong, as far as the two agree on
# the class at all:
#
# $$\mathcal L = 0.1\, L_\text{bn} + L_\text{cls} + L_\text{adv}, \qquad
# L_\text{adv} = -\mathbb 1[\arg\max f_T = \arg\max f_S]\; \mathrm{KL}(f_T \,\|\, f_S).$$
#
# DiffDFKD alternates between drawing images and training the student. We take two rounds: the student of the first has
# learned from unguided images, and those of the second are drawn against it.

# %%
first = part("classifier-unguided").model()
weights = settings.class_batch_norm, settings.classification, settings.adversarial
losses = ClassifierLosses(teacher, first, *weights)
result = part("images-classes").result()
lines = {
    name: (range(len(values)), values)
    for name, values in result["losses"].items()
    if name != "batch-norm"
}
figures.curves(lines, "step", "loss, mean over images")

# %% [markdown]
# The cross-entropy falls, jumps up four times, and falls again. The jumps are CutMix, of which more below: each time a
# rectangle of another image has come into it. $L_\text{adv}$ is small: where teacher and student agree on the class, they
# differ little in their answers.
#
# The same without guidance, from the same noise: labels are asked for, and nobody listens.

# %%
guide = part("guide-unseen").model()
labels = torch.arange(60) % classes
drawn = {
    name: synthesise(
        guide, losses, 60, steps=settings.steps, step_size=size, labels=labels,
        resize=True, batch_size=settings.synthesis_batch_size, seed=seed,
    )
    for name, size in (("unguided", 0.0), ("guided", settings.class_step_size))
}  # fmt: skip
for name, found in drawn.items():
    shown = accuracy(teacher, found.images, labels)
    print(f"{name}: the teacher finds the class asked for in {shown:.0%}")
if settings.classification:
    assert accuracy(teacher, drawn["guided"].images, labels) > 0.5

# %%
order = labels.argsort(stable=True)
figures.image_grid(
    torch.cat([found.images[order] for found in drawn.values()]), columns=20
)

# %% [markdown]
# Three rows without guidance, three with it, ordered by the class that was asked for. Do *you* see those classes in the
# lower ones? The teacher does, as often as printed: what guidance asks for is what moves the teacher's answer, and not
# what an image of the class looks like.
#
# ## Latent CutMix
#
# To get more variety from few images, DiffDFKD cuts a rectangle out of each latent and pastes in the same rectangle of
# another, four times on the way, and lets the guide repair the seams ([Yun et al., 2019](references.md)). Labels stay. Our guide has
# pixels for latents, and the mixing is the same.

# %%
figures.image_grid(part("images-classes").images()[:40], columns=20)

# %% [markdown]
# The figure shows images as the student gets them, the classes in turn.
#
# ## Learning from answers
#
# The student never sees a label. It is to answer as the teacher does, wherever it is asked, softly: at the temperature
# $T = 30$ the answers of both are nearly flat, and what counts is the order of *all* classes ([Hinton et al., 2015](references.md)),
#
# $$T^2\, \mathrm{KL}\big(\operatorname{softmax}(f_T / T)\,\|\,\operatorname{softmax}(f_S / T)\big).$$

# %%
x = to_model(data.test).to(device())
with torch.no_grad():
    theirs, ours = teacher(x), first(x)
soft = tempered_kl(ours, theirs).mean()
centred = (theirs - theirs.mean(1, keepdim=True)) - (
    ours - ours.mean(1, keepdim=True)
)
squares = centred.square().sum(1).mean() / (2 * classes)
print(
    f"tempered KL {soft:.3f}, half the mean squared distance of logits {squares:.3f}"
)
assert abs(soft / squares - 1) < 0.3

# %% [markdown]
# At such a temperature the loss is nearly a squared distance between logits. That is why an image need not show any digit
# of the teacher's for its answer to be worth something: five numbers say more than one name.
#
# ## Three students

# %%
found = {}
for name in studies.CLASSIFIERS:
    model = part(name).model()
    found[name] = accuracy(model, data.test, data.test_labels)
    print(
        f"{studies.NAMES[name]:24s}{found[name]:.1%}   {model.parameter_count:,} parameters"
    )
assert min(found.values()) > 1.5 / classes

# %% [markdown]
# The last two students have learned from images of a guide alone. Beside each other they say what guidance adds in this
# one seed; a difference of one point is three of the digits' held-out images.
#
# Which classes does the data-free student get wrong?

# %%
student = part("classifier-guided").model()
with torch.no_grad():
    said = student(x).argmax(1).cpu()
for k, digit in enumerate(settings.classes):
    of = data.test_labels == k
    print(
        f"{digit}: {(said[of] == k).float().mean():.0%} right, of {int(of.sum())}"
    )

# %% [markdown]
# ## In the ledger
#
# Each seed has its own teacher, guide and images.

# %%
studies.table(study, studies.CLASSIFIERS, ("accuracy", "parameters"))

# %%
of, over = (
    studies.by_seed(study, f"classifier-{name}", "accuracy")
    for name in ("guided", "unguided")
)
for s in sorted(of.keys() & over.keys()):
    print(f"seed {s}: unguided {over[s]:.1%}, guided {of[s]:.1%}")

# %% [markdown]
# ## In the authors' code
#
# Beside what [chapter 20](20_guided_synthesis.ipynb) says of `generate_images.py`: half-made images, at each fifth of the steps, go into
# the training set too. There, and in `distill.py`, the student is scored on the test set after every epoch and the best
# epoch is reported; that is a choice by held-out data, which a data-free experimenter does not have. We report the last
# iteration. Their students also learn to look where the teacher looks, by a term on class activation maps, which is left
# out here.
#
# ## The result beside the paper

# %%
studies.verdicts("21_classifier")

# %% [markdown]
# *Verdict, for the digits:* that a student without data is about as good as one with it is reproduced at this scale, in
# every seed. But what of it is the method's? The student of *unguided* images, zeros to fours, comes nearly as far. Whether
# guidance helps is undecided: it is ahead in one seed of three, level in one and behind in one, and its higher mean rests
# on one unguided student that did worse. So most of the work is done by the teacher's answers: about wrong images they
# still say how the classes lie to each other.

# %%
if study == "digits":
    signs = [(of[s] > over[s]) - (of[s] < over[s]) for s in sorted(of)]
    assert sorted(signs) == [-1, 0, 1]

# %% [markdown]
# DiffDFKD has ResNets on CIFAR-10 and CIFAR-100, with Stable Diffusion as guide. Nothing of that was run here, and none
# of its numbers is reproduced.
#
# ## Limits
#
# The digits of guide and teacher come from the same writers and the same scanner, so that strokes, sizes and grey levels
# agree before any guidance. Three hundred held-out images make a difference of one percentage point three images.
# `study = "cifar10"` takes this small network, not a ResNet, to the slides' guide.
#
# ## Exercises
#
# 1. Leave out one of the three losses at a time, as with `adjust = {"adversarial": 0.0}`. Does any of them matter by more
#    than the spread of the table above?
# 2. Distil from noise, uniform pixels. How far does a student get with a temperature of 30, and with one of 1?
# 3. Draw with `part("guide-seen").model()` in the place of the guide, and train a student on it. What is left of the gap?
#
# ## Further reading
#
# DiffDFKD ([Qi et al., 2025](references.md)); distillation ([Hinton et al., 2015](references.md)); the first without data ([Lopes et al., 2017](references.md)).
