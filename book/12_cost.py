# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12. What a step costs
#
# *Section 10 of the paper, Table 9 and Fig. 7.*
#
# At each iteration of DKDM a teacher works too. The paper finds that this costs little: 6.5% more time on CIFAR-10
# (18.00 s and 19.17 s for 100 iterations), and a "relatively minor" amount of memory. This chapter measures both, and
# counts what ought to be.
#
# **What you'll do.** Time a training step, take it apart, and weigh the pool.
#
# **What you'll learn.** Where the time of a step goes, and how to judge a reported speed by counting.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
clock = False  # True measures this machine; False shows what the ledger has
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
from dkdm_lab import networks, pools
from dkdm_lab.experiments import ledger, paper, presets, speed
from dkdm_lab.notebook.explore import cost_calculator
from dkdm_lab.system import figures

figures.use_style()
settings = presets.get(preset, **changes)

# %% [markdown]
# ## One step, measured
#
# `speed.measure` runs the book's own training loop and takes the median of three measurements of a few steps each.
# Data-free training has the same steps as data-based training, so two methods are enough. A clock never says the same
# thing twice, so this page shows what the ledger has of it. Set `clock = True` above to measure your own machine.

# %%
measured = ledger.measured(preset)
if clock or not measured:
    measured = [speed.measure(settings, (settings.student,), seed)]
costs = [m["training"] for m in measured]
ratio = ledger.spread([cost["dynamic"]["time"] for cost in costs])
print(f"{measured[0]['made_with']['hardware']}, {ratio.n} measurements:")
print(f"a dynamic step takes {ratio} times as long as a data-based one")

# %% [markdown]
# And taken apart, in a run of its own with a clock around each part. *Source* is the work of getting a batch: noising
# images, or moving the pool. *Teacher* is the teacher's evaluation. *Forward*, *backward* and *update* belong to the
# student.

# %%
shares = {
    method: {
        part: ledger.spread([cost[method]["shares"][part] for cost in costs]).mean
        for part in costs[0][method]["shares"]
    }
    for method in ("data-based", "dynamic")
}
figures.shares(shares)

# %%
for method, parts in shares.items():
    named = [f"{part} {share:.0%}" for part, share in parts.items()]
    print(f"{method:11s}" + "   ".join(named))
dynamic = shares["dynamic"]
assert dynamic["teacher"] > 0.1 and dynamic["source"] < dynamic["teacher"]
assert shares["data-based"]["teacher"] == 0
print(
    f"by these shares a dynamic step takes {1 / (1 - dynamic['teacher']):.2f} times"
)
print(f"as long as the same step without a teacher; whole steps say {ratio}")

# %% [markdown]
# The bars have the same length, since each is a share of its own step. What a dynamic step adds is the teacher's
# evaluation, and little else. The last two numbers are meant to be one: if all other parts took the same time in both
# methods, the teacher's share alone would say how much longer a step takes. How far they are apart shows how far to
# trust a clock over a few steps, on a machine that may have been doing other work in one of these moments.
#
# ## One step, counted
#
# A step of the student counts as three evaluations, one forward and about two for the gradients, and the teacher adds
# one of its own. If only arithmetic mattered, a dynamic step would take longer by a factor of
#
# $$1 + \frac{F_T}{3 F_S},$$
#
# where $F_T$ and $F_S$ are the operations of one evaluation of the teacher and of the student.

# %% tags=["nbval-check-output"]
pairs = {
    "digits": ("digits-teacher", "digits-student"),
    "CIFAR-10, Table 6": ("cnn-57m", "cnn-14m"),
    "CIFAR-10, a student as its teacher": ("cnn-57m", "cnn-57m"),
    "CelebA": ("celeba-295m", "celeba-57m"),
}
for name, (teacher, student) in pairs.items():
    factor = 1 + networks.flops(teacher) / (3 * networks.flops(student))
    print(f"{name:36s}{factor:.2f}")

# %% [markdown]
# On CIFAR-10 the paper's factor is 1.07, on an A100. Counting gives 2.30 for its 14M student, and 1.33 even if the
# student were as large as the teacher (Table 9 does not name it). So if both runs were limited by the same arithmetic,
# the factor could not be 1.07; what else took the time, the paper does not say and we cannot tell from here.
#
# A step is not the whole bill: a pool is filled before the first one, and a synthetic set is painted. The calculator
# counts both, and starts with the numbers of `cifar10`. Type 500 for the warm-up, which is the paper's own walk, and
# see at which iteration the two break even then. Then make $\rho$ small, or the student as large as its teacher. (One
# MFLOP is a million operations.)

# %%
cost_calculator(presets.get("cifar10"))

# %% [markdown]
# ## Memory (Fig. 7)
#
# On top of what any training needs there is the pool, $\rho\,T\,b$ samples, and the teacher: its weights, and what one
# evaluation without gradients takes on the way. The first two can be counted:

# %% tags=["nbval-check-output"]
p = presets.get("cifar10")
for rho in (0.1, 0.4, 1.0):
    samples = round(rho * p.T) * p.batch_size
    print(
        f"rho = {rho}: {samples:7,} samples, {samples * 3 * 32 * 32 * 4 / 1e9:.2f} GB"
    )
weights = networks.build(p.teacher).parameter_count * 4 / 1e9
print(f"the teacher's weights: {weights:.2f} GB")

# %%
in_memory = costs[0]["dynamic"]["source_bytes"]
expected = round(settings.rho * settings.T) * settings.batch_size
print(f"{preset}, measured: {in_memory / 1e6:.1f} MB in {expected:,} samples")

# %% [markdown]
# ## A pool at rest
#
# Between two of its turns a sample only lies there, on average for $\rho\,T$ iterations. It can lie in 16 bits a number,
# which halves the pool and rounds each sample once a turn. Or it can lie in the host's memory, rounded by nothing, while
# a turn brings one batch to the GPU and takes it back. Here is what the GPU holds at the paper's three largest pools,
# and, from the ledger, what rounding does to the digits:

# %%
sides = {"cifar10": 32, "imagenet32": 32, "celeba64": 64}  # latents: Table 7
sides |= {"celebahq256": 64, "ffhq256": 64}
numbers = {}
for name, side in sides.items():
    p = presets.get(name)
    numbers[name] = round(p.rho * p.T) * p.batch_size * 3 * side**2
largest = sorted(numbers, key=numbers.get, reverse=True)[:3]

rows = []
for storage, dtype in pools.STORAGES.items():
    sizes = (numbers[name] * dtype.itemsize / 1e9 for name in largest)
    held = ["0" if storage == "host" else f"{size:.2f} GB" for size in sizes]
    rounded = {"storage": storage} if storage in paper.STORED else {}
    fid = ledger.cell("digits-pools", "digits-FID", {"method": "dynamic"} | rounded)
    rows.append([f"`{storage}`", *held, fid])
heads = [f"`{name}`, rho = {presets.get(name).rho:g}" for name in largest]
names = ["storage", *heads, "digits-FID"]
ledger.Table.of(names, rows)

# %%
whole = ledger.by_seed("digits-pools", "digits-FID", {"method": "dynamic"})
for storage in paper.STORED:
    where = {"method": "dynamic", "storage": storage}
    half = ledger.by_seed("digits-pools", "digits-FID", where)
    apart = [abs(half[s] - whole[s]) for s in half.keys() & whole.keys()]
    print(f"{storage}: at most {max(apart):.2f} from float32", end=" ")
    print(f"with the same seed, over {len(apart)} seeds")

# %% [markdown]
# In 16 bits a student of the digits comes out as it would in 32: the difference is far below that between seeds. So half
# the memory costs nothing that three seeds could show.
#
# The authors' pools are in float32, as the first line. What rests on the host is not rounded, so the first line's
# digits-FID stands for it too.
#
# For latent models the balance tips. Data-based training must encode every image at every step, DKDM never sees one.
# The paper's Table 9 has 68.77 s against 55.52 s there. [Chapter 15](15_latent_space.ipynb) counts what tips it.
#
# ## In the ledger

# %%
rows = []
for name in ("digits", "fashion", "cifar10"):
    found = ledger.measured(name)
    if not found:
        rows.append([f"`{name}`", "not run", "", ""])
        continue
    runs_of = [m["training"]["dynamic"] for m in found]
    times = str(ledger.spread([r["time"] for r in runs_of]))
    teacher = str(ledger.spread([r["shares"]["teacher"] for r in runs_of]))
    rows.append([f"`{name}`", times, teacher, found[0]["made_with"]["hardware"]])
names = ["preset", "dynamic / data-based", "of it the teacher", "hardware"]
ledger.Table.of(names, rows, "lrrl")

# %% [markdown]
# ## On a GPU
#
# The paper's two networks on one H200, 128 images a batch, taken apart by `benchmarks/step.py`. The factor is what a
# dynamic step would take beside a data-based one, if it took as long as its parts.

# %%
on_gpu = ledger.on_gpu("step-cifar10")
rows = []
of_pools = [row for row in on_gpu["results"] if row["method"] == "dynamic"]
for found in of_pools:
    teacher, student = (1000 * found[part] for part in ("teacher", "student"))
    peak = f"{found['peak_bytes'] / 1e9:.1f} GB"
    times = [f"{student:.0f} ms", f"{teacher:.0f} ms"]
    rows.append([found["switches"], *times, f"{1 + teacher / student:.2f}", peak])
names = ["", "student's step", "teacher's evaluation", "factor", "peak memory"]
ledger.Table.of(names, rows, before=on_gpu["made_with"]["hardware"])

# %% [markdown]
# The factor is not the counted 2.30, and half the precision does not make these steps faster: it is not arithmetic that
# limits them. What does, was not profiled. A likely cause is that PyTorch starts a step's many small kernels one by one.
# Then the number of layers would count, not their width, and the teacher's one pass has fewer kernels than the student's
# forward pass, backward pass and update. The paper's 1.07 is not reached here either.

# %%
factors = [1 + row["teacher"] / row["student"] for row in of_pools]
counted = 1 + networks.flops("cnn-57m") / (3 * networks.flops("cnn-14m"))
assert 1.07 < min(factors) and max(factors) < counted

# %% [markdown]
# ## In the authors' code
#
# `KDTeacherLoader` evaluates the teacher inside the data loader, in float16. `TrainLoop` then runs the student. The
# teacher's call is wrapped in `torch.no_grad`, as ours is; without that, memory would grow by all of its activations.
#
# ## The result beside the paper

# %%
paper.beside("Table 9", "cifar10")

# %%
paper.verdicts("12_cost")

# %% [markdown]
# ## Limits
#
# At `digits` the count says 2.32 and the ledger's clock less. Layers as small as these cost more than their arithmetic;
# the student, with its backward pass and its update, may pay that more often than the teacher, which was not measured.
# The H200's numbers are of one measurement on one machine, and without `torch.compile`, which starts fewer kernels.
#
# ## Exercises
#
# 1. Which student would make the factor 1.07 for a 57M teacher, by the count?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. 1 + F_T / (3 F_S) = 1.07 asks for F_S = F_T / 0.21: a student with
# nearly five times the operations of its teacher. Nobody distils into that.
F_T = networks.flops("cnn-57m")
F_S = F_T / (3 * 0.07)
print(f"F_S = {F_S / F_T:.1f} F_T; the 14M student has", end=" ")
print(f"{networks.flops('cnn-14m') / F_T:.2f} F_T")
assert abs(1 + F_T / (3 * F_S) - 1.07) < 1e-9 and F_S > 4 * F_T

# %% [markdown]
# 2. The teacher's part can be halved by asking it only every other iteration and training twice on each answer
#    (`replay=2`). What does that do to the score, in the plane?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. The added part of the count halves, as the evaluations show. The
# score changes little here: an answer that is shown twice teaches less than two
# answers, but not by much. Two seeds are few to say more.
from dkdm_lab.experiments import runs

for replay in (1, 2):
    plane = presets.get("toy", live=True, replay=replay)
    found = [runs.Run(plane, "dynamic", s).result() for s in (0, 1)]
    score = ledger.spread([r["metrics"][plane.metric] for r in found])
    print(f"replay = {replay}: {plane.metric} {score}")
    print(f"  teacher evaluations {found[0]['teacher_evaluations']:,}")
# %% [markdown]
# ## Further reading
#
# Section 10 of the paper's supplement ([Xiang et al., 2025](references.md)).
