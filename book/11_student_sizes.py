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
# **What you'll do.** Build the five networks of Table 8, time smaller ones like them, and set quality against speed.
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
from dkdm_lab import networks
from dkdm_lab.data import to_uint8
from dkdm_lab.experiments import ledger, paper, presets, runs, speed
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device

figures.use_style()
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
seconds = {name: speed.sampling_seconds(name, n=32, steps=10) for name in sizes}
largest = sizes[0]
for name in sizes:
    work = networks.flops(name) / networks.flops(largest)
    print(
        f"{name:15s}time {seconds[name] / seconds[largest]:.2f}   work {work:.2f}"
    )

# %% [markdown]
# *Work* is the count of operations. Time does not follow it: of the smallest network's time the work explains only a
# part, since each layer costs something just for being there. The paper's five on a GPU, one H200, 32 images in 10
# steps:

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
# the 44M one faster than the 32M one. (The paper finds these last two similarly fast, at 256 images on an A100; it
# calls the 32M network of its Table 8 33M.)

# %%
smallest = sizes[-1]
work = networks.flops(smallest) / networks.flops(largest)
assert work < seconds[smallest] / seconds[largest] < 1

of = measured["sampling"]
assert of["cnn-24m"]["time"] < of["cnn-14m"]["time"]
assert of["cnn-44m"]["time"] < of["cnn-32m"]["time"]

# %% [markdown]
# ## The smallest one, live

# %%
run = runs.Run(settings.replace(student=sizes[-1]), "dynamic", seed)
found = run.result()["metrics"][settings.metric]
print(
    f"{sizes[-1]}: {settings.metric} {found:.1f} after {settings.iterations:,} iterations"
)
count = {
    name: networks.build(name).parameter_count
    for name in (settings.teacher, sizes[-1])
}
print(
    f"its teacher has {count[settings.teacher] / count[sizes[-1]]:.1f} times its parameters"
)
samples = diffusion.sample(run.model(), 40, settings.steps, device=device())
figures.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# What you see is one short run of a very small network; the next figure has the same one after the preset's full length.
#
# ## Quality against speed (Fig. 6), from the ledger
#
# Speed is the sampling time, measured as above once for each seed and kept in the ledger, with the largest network as
# unit.

# %%
metric, timed = presets.get(preset).metric, ledger.measured(preset)
lines, counts = {}, set()
for method in ("data-free", "dynamic"):
    points = {}
    for name in sizes:
        where = {"method": method, "student": name}
        spread = ledger.over_seeds(preset, metric, where)
        if spread and timed:
            time = ledger.spread([m["sampling"][name]["time"] for m in timed])
            points[time.mean] = spread.mean
            counts.add(spread.n)
            print(f"{method:10s}{name:15s}time {time}   {metric} {spread}")
    times = sorted(points)
    lines[method] = (times, [points[time] for time in times])
label = f"{metric}, mean over {'/'.join(map(str, sorted(counts)))} seeds"
x = "sampling time, the largest network's is 1"
figures.curves(lines, x, label, log_y=True) if counts else f"{preset}: not run"

# %% [markdown]
# Each dot is a network. The lower line is the better method. Networks that take nearly the same time are told apart by
# the deviations of both numbers, or not at all.
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
# The paper gives Fig. 6 as a picture. Its text says that a 14M student of DKDM samples twice as fast as the 57M model of
# data-free training, at competitive quality.
#
# ## Limits
#
# Five sizes at one learning rate and one training time: whether the large ones have converged in it, or the small ones
# want a larger rate, was not tried. The two times are of different networks on different machines, the digits' on a CPU
# and the paper's on one H200, and cannot be compared with each other. The H200's are of one measurement of 32 images,
# where the paper has 256.
#
# ## Exercises
#
# 1. The 24M network has more operations than the 14M one, and was faster on the H200. Count the residual blocks of both.
#    What would you expect at 256 images?
# 2. At equal *cost*, is a small student trained longer better than a large one trained briefly?
#
# ## Further reading
#
# Section 9 of the paper's supplement ([Xiang et al., 2025](references.md)); the networks are ADM's ([Dhariwal and Nichol, 2021](references.md)).
