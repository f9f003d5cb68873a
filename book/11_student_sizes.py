# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. Students of five sizes
#
# *Section 9 of the paper, Table 8 and Fig. 6.*
#
# How small may a student be? The paper trains five, from the teacher's own size down to a quarter of it, and plots how
# good they are against how fast they sample.
#
# **What you'll do.** Build the five networks of Table 8, time them, and set quality against speed.
#
# **What you'll learn.** What a size buys, and that operations, parameters and seconds are three different things.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
from dkdm_lab import ledger, networks, paper, plots, presets, runs, timing
from dkdm_lab.data import to_uint8

plots.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
sizes = paper.CAST[preset]["sizes"]

# %% [markdown]
# ## The five of Table 8
#
# They are one architecture. Two numbers vary: the channels of the first level, and the residual blocks of each.

# %% tags=["nbval-check-output"]
for name in paper.CAST["cifar10"]["sizes"]:
    network = networks.build(name).network.config
    channels, blocks = network.block_out_channels[0], network.layers_per_block
    print(f"{name}: {channels:3} channels, {blocks} blocks", end="")
    print(f"{networks.flops(name) / 1e9:6.1f} billion operations an image")

# %% [markdown]
# The digits have five sizes too, made in the same way:

# %% tags=["nbval-check-output"]
for name in paper.CAST["digits"]["sizes"]:
    parameters = networks.build(name).parameter_count
    print(f"{name:15s}{parameters:8,} parameters", end="")
    print(f"{networks.flops(name) / 1e6:6.1f} million operations an image")

# %% [markdown]
# ## How fast they sample
#
# Fig. 6 measures the seconds for 256 images on an A100. Seconds differ from machine to machine, so here the largest is
# the unit:

# %%
seconds = {name: timing.sampling_seconds(name, n=32, steps=10) for name in sizes}
largest = sizes[0]
for name in sizes:
    work = networks.flops(name) / networks.flops(largest)
    print(
        f"{name:15s}time {seconds[name] / seconds[largest]:.2f}   work {work:.2f}"
    )

# %% [markdown]
# Time falls more slowly than work. Small networks leave a processor waiting: each layer costs something just for being
# there. A large GPU waits for the paper's five too. One H200, 32 images in 10 steps:

# %%
measured = ledger.on_gpu("measured-cifar10")
rows = []
for name in paper.CAST["cifar10"]["sizes"]:
    blocks = networks.build(name).network.config.layers_per_block
    work = networks.flops(name) / networks.flops("cnn-57m")
    rows.append(
        [
            name,
            f"{blocks}",
            f"{measured['sampling'][name]['time']:.2f}",
            f"{work:.2f}",
        ]
    )
names = ["", "blocks", "time", "work"]
ledger.Table.of(names, rows, before=measured["made_with"]["hardware"])

# %% [markdown]
# There depth counts for more than width: of two blocks, the 24M network is faster than the 14M one, which has three, and
# the 44M one faster than the 32M one. In the paper's Fig. 6 these last two are equally fast.

# %%
assert seconds[sizes[-1]] < seconds[largest]

# %% [markdown]
# ## The smallest one, live

# %%
run = runs.Run(settings.replace(student=sizes[-1]), "dynamic", seed)
found = run.result()["metrics"][settings.metric]
print(
    f"{sizes[-1]}: {settings.metric} {found:.1f} after {settings.iterations:,} iterations"
)
samples = diffusion.sample(run.model(), 40, settings.steps, device=runs.device())
plots.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# Read the digits with a generous eye: this network has a sixteenth of its teacher's parameters.
#
# ## Quality against size (Fig. 6), from the ledger

# %%
metric, lines = presets.get("digits").metric, {}
for method in ("data-free", "dynamic"):
    points = {}
    for name in paper.CAST["digits"]["sizes"]:
        where = {"method": method, "student": name}
        spread = ledger.over_seeds("digits", metric, where)
        if spread:
            points[networks.flops(name) / 1e6] = spread.mean
            print(f"{method:10s}{name:15s}{metric} {spread}")
    lines[method] = (list(points), list(points.values()))
plots.curves(
    lines, "million operations an image", f"{metric}, mean of 3 seeds", log_y=True
)

# %% [markdown]
# Each dot is a network, the smallest on the left. The lower line is the better method.
#
# ## In the authors' code
#
# `yaml/arch/` has one file a network. All of them train at the same learning rate and for as many iterations. Speeds
# come from `scripts/image_sample.py` with batches of 256.
#
# ## The result beside the paper

# %%
paper.verdicts("11_student_sizes")

# %% [markdown]
# The paper gives Fig. 6 as a picture. In its text, a 14M student samples twice as fast as the 57M model, at comparable
# quality.
#
# ## Limits
#
# Five sizes at one learning rate and one training time. The large ones have perhaps not converged in it, and a small
# one might want a larger rate. Times on a CPU order the networks otherwise than a GPU, where the small ones gain less; the
# H200's times are of one measurement, at a batch that does not fill it.
#
# ## Exercises
#
# 1. Which two sizes have the same number of operations but not of parameters, almost? Which samples faster here?
# 2. At equal *cost*, is a small student trained longer better than a large one trained briefly?
#
# ## Further reading
#
# Section 9 of the paper's supplement ([Xiang et al., 2025](references.md)); the networks are ADM's ([Dhariwal and Nichol, 2021](references.md)).
