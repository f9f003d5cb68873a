# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. Across architectures
#
# *Section 4.2 of the paper, Tables 5 and 10.*
#
# A student that copies its teacher's weights must be of its teacher's kind. A DKDM student copies only what the teacher
# says about noise, so it may be anything that maps a noisy image to a noise. The paper lets a convolutional network
# teach a transformer, and the other way round.
#
# **What you'll do.** Distil a transformer from a U-Net, and compare all four pairs.
#
# **What you'll learn.** What a diffusion transformer is, and how much the kinds matter.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
from dkdm_lab import networks
from dkdm_lab.data import to_uint8
from dkdm_lab.experiments import ledger, paper, presets, runs
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device

figures.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
vit = paper.CAST[preset]["ViT"]

# %% [markdown]
# ## A diffusion transformer
#
# A DiT ([Peebles and Xie, 2023](references.md)) cuts the image into patches, makes each a token, and lets attention and an MLP work
# on the tokens, block after block. The time $t$ does not join as a token. It scales, shifts and gates every block
# (adaLN-Zero). All gates start at zero, so at first every block passes its tokens through, and the network begins as a
# linear map of its patches.
#
# The module's `DiT` is Table 10's network by default. The digits' is smaller. Here both are beside the U-Nets:

# %% tags=["nbval-check-output"]
for name in (
    "cnn-57m",
    "vit-19m",
    "digits-teacher",
    "digits-student",
    "digits-vit",
):
    parameters = networks.build(name).parameter_count
    print(f"{name:15s}{parameters / 1e6:8.2f} M parameters", end="")
    print(f"{networks.flops(name) / 1e6:10,.0f} million operations an image")

# %% [markdown]
# The numbers of parameters say little about the work. A transformer spends each weight once a token, a U-Net spends its
# convolutions at every pixel.
#
# ## A transformer from a U-Net, live
#
# Nothing in the code knows which kind is which. The student's name is the only change:

# %%
run = runs.Run(settings.replace(student=vit), "dynamic", seed)
result = run.result()
student = run.model()
print(f"{settings.teacher} -> {vit}: {settings.metric}", end=" ")
print(f"{result['metrics'][settings.metric]:.1f}")

# %%
loss = result["loss"]
figures.curves(
    {
        "every 10 iterations": (loss["iteration"], loss["simple"]),
        "running mean": (loss["iteration"], figures.smoothed(loss["simple"])),
    },
    "iteration",
    "L'simple",
    log_y=True,
)

# %%
samples = diffusion.sample(student, 40, settings.steps, device=device())
figures.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# The loss falls as a U-Net's does. But so few iterations are little for a transformer: strokes are there, digits
# hardly. The ledger's students train longer.

# %%
assert type(student.network).__name__ == "DiT"
if live:
    assert loss["simple"][-1] < loss["simple"][0] / 3

# %% [markdown]
# ## All four pairs, from the ledger
#
# Each row is a teacher and one of its students, the last two columns are the methods, as in Table 5 turned on its side. Of
# the digits each seed has teachers of its own; the photographs of `cifar16` have one teacher, a CNN.

# %%
rows = []
for name in ("digits", "cifar16"):
    cast, metric = paper.CAST[name], presets.get(name).metric
    for teacher in ("CNN", "ViT"):
        for kind, network in (("CNN", cast["student"]), ("ViT", cast["ViT"])):
            pair = {"teacher": cast[teacher], "student": network}
            cells = [
                ledger.cell(name, metric, {"method": method, **pair})
                for method in ("data-free", "dynamic")
            ]
            if set(cells) != {"not run"}:
                rows.append([f"`{name}`", metric, teacher, kind, *cells])
names = ["preset", "metric", "teacher", "student", "data-free", "dynamic"]
ledger.Table.of(names, rows, "llllrr")

# %% [markdown]
# ## In the authors' code
#
# `guided_diffusion/dit.py` is the reference DiT, without classes; our outputs equal theirs exactly for the same weights.
# `diffusers` has a transformer of that name too, but it embeds the time anew in every block, so its parameters are not
# the paper's.
#
# ## The result beside the paper

# %%
paper.beside("Table 5", "cifar10")

# %%
paper.verdicts("10_cross_architecture")

# %% [markdown]
# In the paper's own table one pair is a tie: a ViT student of the CNN teacher has FID 17.11 by either method.
#
# ## Limits
#
# The paper's CNN student is as large as its teacher, ours at `digits` is the small one. The transformers have the
# training time of the U-Nets here and there; a transformer is known to want more. And an $8\times8$ digit has sixteen
# patches, which is hardly a sequence.
#
# ## Exercises
#
# 1. Start the transformer's gates at one instead of zero. What does the loss look like in its first hundred iterations?
# 2. Distil a transformer from a transformer and let the student start from the teacher's weights. Is it better at once?
# 3. With patches of one pixel the tokens are four times as many. Better? And the cost?
#
# ## Further reading
#
# Scalable diffusion models with transformers ([Peebles and Xie, 2023](references.md)); Section 4.2 of the paper
# ([Xiang et al., 2025](references.md)).
