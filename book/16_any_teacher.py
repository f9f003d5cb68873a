# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16. Any teacher
#
# *Section 1 of the paper, and its authors' list of what is still to be done.*
#
# The paper's question is whether *existing* diffusion models can stand in for data. Those that exist lie on disks and on
# the Hub, trained by other people with other code. They predict noise or something else, with one schedule or another,
# in pixels or in latents, with labels, prompts or nothing. A pool should take any of them.
#
# **What you'll do.** Save three trained teachers of different kinds as others would, forget them, and distil each from
# its folder alone, by the same call.
#
# **What you'll learn.** What has to be known about a checkpoint, and in what form a student leaves.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb). [Chapter 15](15_latent_space.ipynb) and [chapter 17](17_conditions.ipynb) are about two of the kinds.

# %% tags=["parameters"]
seed = 0
iterations = 200  # of each distillation

# %%
import json

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import logging

from dkdm_lab.data import to_uint8
from dkdm_lab.experiments import ledger, presets, shipped_models
from dkdm_lab.system import figures
from dkdm_lab.system.paths import BOOK, cache_dir
from dkdm_lab.teachers.distill import Distillation, distill
from dkdm_lab.teachers.pipelines import Pipeline

figures.use_style()
logging.disable_progress_bar()  # diffusers' bars have no place on a page

# %% [markdown]
# ## What a checkpoint answers
#
# To this book a teacher is a function $(x^t, t) \mapsto \epsilon$, perhaps with a variance. Many networks predict
# something else: $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,x^0$ ([Salimans and Ho, 2022](references.md)), or
# $x^0$ itself. Since $x^t = \sqrt{\bar\alpha_t}\,x^0 + \sqrt{1 - \bar\alpha_t}\,\epsilon$, each can be turned into the
# others:
#
# $$\epsilon = \sqrt{\bar\alpha_t}\, v + \sqrt{1 - \bar\alpha_t}\, x^t, \qquad
# \epsilon = \frac{x^t - \sqrt{\bar\alpha_t}\, x^0}{\sqrt{1 - \bar\alpha_t}}.$$

# %%
diffusion = presets.get("digits").diffusion()
x0, eps = torch.randn(2, 64, 1, 8, 8)
t = torch.randint(diffusion.T, (64,))
x_t = diffusion.q_sample(x0, t, eps)
alpha_bar = diffusion.log_alpha_bar(t).exp().view(-1, 1, 1, 1)
v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
for prediction, output in (("v_prediction", v), ("sample", x0)):
    found = diffusion.predict_eps(prediction, x_t, t, output)
    assert torch.allclose(found.float(), eps, atol=1e-3)

# %% [markdown]
# Which of them it is stands in the configuration of the checkpoint's scheduler, together with its schedule of $\beta$,
# its number of steps, its variance and whether it clamps. `Denoiser.from_pretrained` reads all of it. A teacher whose
# variance is fixed has no $p$ of its own to learn from: its student has $L'_\text{simple}$ alone. If the folder has an
# autoencoder, the denoiser works on its latents; if the network takes labels or prompts, so will the pool.
#
# ## Three teachers
#
# A U-Net for digits in pixels, one for the latents of [chapter 15](15_latent_space.ipynb), and one that takes labels, from
# [chapter 17](17_conditions.ipynb). Their folders lie in `book/models/`, in the layout of diffusers.

# %%
kinds = ("digits", "digits-latent", "digits-classes")
folders = {kind: shipped_models.find(f"{kind}-teacher") for kind in kinds}
for kind, folder in folders.items():
    print(f"{kind:15s}", ", ".join(sorted(f.name for f in folder.iterdir())))

# %% [markdown]
# From here on only these folders are used. No data set, no settings of ours, not even the name of a network:

# %%
teachers = {kind: Pipeline.from_pretrained(folders[kind]) for kind in kinds}
for kind, teacher in teachers.items():
    denoiser, process = teacher.denoiser, teacher.diffusion
    print(f"{kind:15s}{denoiser.shape}, {denoiser.parameter_count:,}", end=" ")
    print(f"parameters, {process.schedule}, T = {process.T},", end=" ")
    print("learned" if denoiser.learns_variance else "fixed", "variance", end="")
    print(", decoded" if teacher.vae else "", end="")
    print(f", takes a {denoiser.condition}" if denoiser.condition else "")

# %% [markdown]
# ## One call
#
# A student is named in one of three ways: a network of this book, a `config.json`, or a factor, which is the teacher's own
# architecture at another width. We take half the width of each. `distill` is the loop of [chapter 6](06_dynamic.ipynb), with a pool
# that asks the pipeline for what it needs. The pool is the small one with strides of [chapter 22](22_moves.ipynb); the paper's is
# `rho=0.4, stride=1`. Stopped and called again, it goes on; a finished folder it leaves alone. One thing no folder tells:
# which label stands for none. Here it is the eleventh.


# %%
def student_of(kind):
    teacher = teachers[kind]
    options = {"batch_size": 64, "lr": 1e-3, "ema": 0.99}
    name = "-".join(f"{k}={v}" for k, v in options.items())
    out = cache_dir() / "pipelines" / kind / f"student-{iterations}-{name}-{seed}"
    settings = Distillation(kind, "x0.5", iterations, seed=seed, **options)
    if not (out / "README.md").is_file():  # which it writes in the end
        takes_labels = teacher.denoiser.condition == "class"
        labels = teacher.classes(null=10) if takes_labels else None
        distill(teacher, settings, out, labels)
    return out


students = {kind: student_of(kind) for kind in kinds}
for kind, folder in students.items():
    result = json.loads((folder / "distillation.json").read_text(encoding="utf-8"))[
        "result"
    ]
    smaller = result["parameters"] / result["teacher_parameters"]
    print(f"{kind:15s}{smaller:.0%} of its teacher's parameters,", end=" ")
    print(f"L'simple {result['simple']:.3f} at the end")
    assert result["simple"] < 0.1

# %% [markdown]
# A student that always answered zero would have a loss of one.
#
# ## What diffusers makes of them
#
# A student is written as what its teacher was, so whoever could use the teacher can use it. Here is diffusers, without a
# line of this book, sampling teachers (upper rows) and students (lower rows).


# %%
def by_diffusers(folder, n=20):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 50, "output_type": "np"}
    generator = torch.Generator().manual_seed(seed)
    images = pipeline(batch_size=n, generator=generator, **options).images
    return to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1)


def side_by_side(kind, sample):
    rows = [sample(folders[kind]), sample(students[kind])]
    return figures.image_grid(torch.cat(rows), columns=20)


side_by_side("digits", by_diffusers)

# %%
side_by_side("digits-latent", by_diffusers)

# %% [markdown]
# The latent pair was sampled by `DDIMScheduler` from the same noise, and decoded by the teacher's autoencoder, which the
# student's folder has too. For a U-Net with labels diffusers has all the parts but no pipeline, so we write its loop:


# %%
def by_diffusers_with_labels(folder):
    network = UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(50)
    noise, labels = torch.Generator().manual_seed(seed), torch.arange(20) % 10
    x = torch.randn(20, 1, 8, 8, generator=noise)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = network(x, t, class_labels=labels).sample
        x = scheduler.step(output, t, x, generator=noise).prev_sample
    return to_uint8(x)


side_by_side("digits-classes", by_diffusers_with_labels)

# %% [markdown]
# Zero to nine, twice. These students were trained for a moment only; longer training is a larger number in the same call.
#
# ## The card
#
# Beside the weights lies a card, as the Hub shows it. It says from whom the student learned, how, and that no data set
# was used.

# %%
print((students["digits-classes"] / "README.md").read_text(encoding="utf-8"))

# %% [markdown]
# ## Without a line of code
#
# The same from a shell:
#
# ```
# dkdm distill TEACHER --student x0.5 --null-class 10 --out STUDENT \
#     --iterations 200 --batch-size 64 --lr 1e-3 --ema 0.99
# ```
#
# `TEACHER` is a folder as above, a name on the Hub, or a file of weights as the paper's teachers come. What a file does
# not tell, options do:
#
# ```
# dkdm distill google/ddpm-cat-256 --student x0.5 --out cats
# dkdm distill cifar10-57m.pt --student vit-19m --out transformer
# dkdm distill ldm-ffhq256/model.ckpt --student ldm-86m --rho 4 --stride 1 --out faces
# dkdm distill FOLDER --student x0.5 --prompts prompts.txt --guidance 7.5 --out painter
# ```
#
# The second is a pair of [chapter 10](10_cross_architecture.ipynb), an ADM file and a transformer; the third is Table 3's for FFHQ. The
# last one is text-to-image: each sample of the pool keeps one of the prompts, whose embeddings are computed once.
# `--evaluate 10000` compares as many images of the student with the teacher's, by FID', and puts it on the card. On a
# GPU, `--mixed-precision bf16 --compile` computes in 16 bits and compiles both networks.
#
# ## In the authors' code
#
# Pixels and latents are two code bases there, forks of `guided-diffusion` and of `latent-diffusion`, each with its own
# training loop and pool, and each reads the checkpoints of its kind. The README lists "Implementations on diffusers" and
# "Text-to-image generation" as to be done.
#
# ## The result beside the paper
#
# The paper has no numbers for this chapter. That the teacher's kind makes no difference is a property of the method, and
# a table of tests shows that it holds: for every combination of prediction, variance and schedule that diffusers
# offers, a student equal to its teacher has no loss, and a pool's samples go where diffusers' own schedulers would take
# them.
#
# ## Which teachers are read
#
# The tests make a small pipeline of every kind that is known, in every layout in which such pipelines are published:
# as diffusers saves them, in 16 bits alone, as pickles, in shards. Each is read and asked, and a student of it is saved
# and read again. These are the kinds:

# %% tags=["nbval-check-output"]
tried = json.loads((BOOK / "results" / "teachers.json").read_text(encoding="utf-8"))
rows = [[kind, *found.values()] for kind, found in tried["read"].items()]
ledger.Table.of(["teacher", "network", "predicts", "conditions", "decoder"], rows)

# %% [markdown]
# Flows and EDM's networks are the same process in other coordinates: what they predict is turned into $\epsilon$, on
# their own levels. What is not a denoiser of images from noise, or not in a way that can be known, is refused in a
# sentence before any work is done:

# %% tags=["nbval-check-output"]
rows = [[what, f"`{said}`"] for what, said in tried["refused"].items()]
ledger.Table.of(["found", "what `dkdm` says"], rows, align="ll")

# %% [markdown]
# ## Limits
#
# The four commands above have not been run for this book at their real size; each of these kinds is tested with
# networks of a few thousand weights. A file of bare weights cannot say what it was trained for: give it the wrong
# schedule and the student learns nonsense, faithfully.
#
# ## Exercises
#
# 1. Give the latent teacher a student by its `config.json`, with one number changed.
# 2. Change `beta_end` in a teacher's scheduler configuration by a fifth and distil it again. What do its students draw?
# 3. Which parts of `student_of` would change for a teacher on the Hub? Try one that is small.
#
# ## Further reading
#
# The paper ([Xiang et al., 2025](references.md)); v-prediction ([Salimans and Ho, 2022](references.md)); schedules that end in pure noise, and what
# goes wrong in those that do not ([Lin et al., 2024](references.md)).
