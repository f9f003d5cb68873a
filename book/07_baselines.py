# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Against the baselines
#
# *Sections 4.1 and 4.2 of the paper, Tables 2 and 4.*
#
# Is DKDM worth it? Someone with a teacher and no data could also let the teacher paint a data set and train on that.
# Someone with a little data could mix it in. The paper compares with both, at equal iterations. We also compare at
# equal cost, since a teacher that paints works long before the first iteration.
#
# **What you'll do.** Train a student in seven ways, and plot quality against everything that was computed for it.
#
# **What you'll learn.** What data-free and data-limited training are, what each costs, and which wins at which price.
#
# **What you need.** [Chapter 6](06_dynamic.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import math

from dkdm_lab import networks
from dkdm_lab.experiments import ledger, paper, presets, runs
from dkdm_lab.notebook.explore import TrainingDashboard
from dkdm_lab.system import figures

figures.use_style()
settings = presets.get(preset, live=live, **changes)
# Seven ways and three seeds are much for a laptop, but not in the plane.
sweep = presets.get("toy", live=True) if live else settings
seeds = (0, 1, 2) if live else (seed,)

# %% [markdown]
# ## The two baselines
#
# **Data-free training.** The teacher generates a data set $\mathcal D'$ as large as the one it was trained on. The
# student then trains on $\mathcal D'$ with Algorithm 2, as if it were real. Table 4 says how many images and with how
# many sampling steps:

# %% tags=["nbval-check-output"]
for name in ("cifar10", "celeba64", "imagenet32"):
    p = presets.get(name)
    evaluations = p.synthetic_images * p.synthetic_steps
    print(
        f"{name:11s}{p.synthetic_images:10,} images x {p.synthetic_steps:5,} steps",
        end="",
    )
    print(f" = {evaluations / 1e6:5.1f} million evaluations")

# %% [markdown]
# **Data-limited training.** A share of $\mathcal D'$ is replaced by real images: 5, 10, 15 or 20%. The size stays the
# same. In code the two differ from data-based training by one argument, the images:
#
# ```python
# data = synthetic                                  # data-free
# data = mix(real, synthetic, fraction=0.2)         # data-limited
# source = NoisedImages(diffusion, data, batch_size)
# ```
#
# ## Seven ways
#
# First in the plane, where the teacher is exact and a student takes seconds. Each method is trained from three seeds.

# %%
ways = {
    "data-based": {},
    **{f"data-limited {f:.0%}": {"real_fraction": f} for f in paper.FRACTIONS},
    "data-free": {},
    "dynamic": {},
}
scores = {}
for way, setting in ways.items():
    method = way.split(" ")[0]
    students = [runs.Run(sweep.replace(**setting), method, s) for s in seeds]
    found = [run.result()["metrics"][sweep.metric] for run in students]
    scores[way] = ledger.spread(found)
    print(f"{way:18s} {sweep.metric}", scores[way])

# %%
rows = {way: (s.mean, s.std) for way, s in scores.items()}
figures.spreads(rows, f"{sweep.metric}, mean and standard deviation")

# %% [markdown]
# This teacher is perfect, so its samples are as good as real ones, and it makes no difference how many of them are
# real. Nor is it the size of the set: data-based training has a hundred thousand points here, the others two thousand.
# Yet dynamic distillation is several times nearer. What differs is the *target*. Six of the seven train on the noise that
# was added, which is random, and must average it away by many steps. The teacher's answer is that average already.

# %%
if live:
    on_noise = [s.mean for way, s in scores.items() if way != "dynamic"]
    assert scores["dynamic"].mean < min(on_noise) / 3
    assert max(on_noise) < 2 * min(on_noise)

# %% [markdown]
# ## Digits, from the ledger
#
# Here the teacher is a trained network, with its errors.

# %%
paper.beside("Table 2", "cifar10", "FID")

# %%
numbers = [n for n in paper.NUMBERS if n.place == "Table 2" and n.metric == "FID"]
ours = {n.row: n.ours("digits") for n in numbers if n.preset == "cifar10"}
rows = {row: (s.mean, s.std) for row, s in ours.items() if s is not None}
figures.spreads(rows, "digits-FID over seeds (ledger)")

# %% [markdown]
# The dots are means over three seeds, each with its own teacher, and the whiskers one standard deviation. Dynamic
# distillation stands between data-based training and all that is built on a synthetic set.
#
# How do two of them get there? In JupyterLab, press *start*: both students train before your eyes, a piece at a time in
# turn, with a score after each. *Stop* takes effect at the end of a piece, *start* goes on from there. Choose two other
# methods and see which score falls first, and which ends lower. Where nobody can press a button, the slider shows the
# ledger's two runs of seed 0, at the preset's full size.

# %%
TrainingDashboard(presets.get("digits", live=True), "dynamic", "data-free")

# %% [markdown]
# The two losses are not to be compared: data-free training is measured against noise that nobody could predict, so its
# loss cannot come near zero however good the student is. The scores can.
#
# ## Natural images, from the ledger
#
# Digits are kind to everyone. The preset `cifar16` has CIFAR-10's photographs at half their side, the paper's process
# ($T = 1000$), Inception's FID, and one teacher for all seeds. A student sees 2,000 batches of 64, which is little, so
# read the order, not the level. The last row is the small pool with strides that `dkdm distill` takes
# ([chapter 22](22_moves.ipynb)). What has not been run yet says so.

# %%
natural = {m: paper.scores("cifar16", m) for m in ("FID", "sFID", "KID")}
natural |= {m: paper.scores("cifar16", m) for m in ("precision", "recall")}
rows = [
    [way, *[f"{mean:.4g}" for mean, _ in (natural[m][way] for m in natural)]]
    for way in sorted(natural["FID"], key=lambda way: natural["FID"][way])
]
ledger.Table.of(["cifar16", *natural], rows) if rows else ledger.Table("Not run.")

# %%
paper.sheet("cifar16")

# %% [markdown]
# Each row is a student of seed 0 or the teacher, each column one draw of noise. Look down a column: students that follow
# the teacher closely turn the same noise into the same picture.
#
# ## What each of them costs
#
# Count what is computed until the student is finished. One evaluation of the student, forward and backward, counts as
# three forward ones. Each evaluation of the teacher counts as one, whether it paints the synthetic set, fills the pool
# or sets a target. `runs.cost` adds this up in floating-point operations of the two networks.
#
# At the paper's sizes, with the cost of data-based training as the unit:

# %% tags=["nbval-check-output"]
for name in ("cifar10", "celeba64", "imagenet32"):
    p = presets.get(name)
    student, teacher = networks.flops(p.student), networks.flops(p.teacher)
    train = p.iterations * p.batch_size * 3 * student
    paint = p.synthetic_images * p.synthetic_steps * teacher
    targets = p.iterations * p.batch_size * teacher
    pool = round(p.rho * p.T) * p.batch_size
    walk = pool * (p.T - 1) / 2 * teacher  # the paper's warm-up, step by step
    print(
        f"{name:11s}data-free {1 + paint / train:.2f}   dynamic {1 + targets / train:.2f}",
        end="",
    )
    print(f"   with the paper's warm-up {1 + (targets + walk) / train:.2f}")

# %% [markdown]
# So equal iterations hide a difference, and not always the one that one would expect. On CIFAR-10, where the synthetic
# set is generated with all 1,000 steps, data-free training costs more than dynamic distillation with a cheap warm-up
# and as much as with the paper's. On CelebA the teacher is five times the student, and asking it at every iteration
# costs more than painting once.
#
# ## Quality against cost
#
# The ledger's digits once more, every score on the way of a training, at what had been spent until then.

# %%
metric = presets.get("digits").metric
unit = runs.cost(ledger.results("digits", {"method": "data-based"})[0])
lines = {}
for method in ("data-based", "data-free", "shuffled", "dynamic"):
    found = ledger.results("digits", {"method": method})
    iterations = [point["iteration"] for point in found[0]["curve"]]
    spent = [runs.cost(found[0], i) / unit for i in iterations]
    values = zip(
        *[[point[metric] for point in r["curve"]] for r in found], strict=True
    )
    lines[method] = (
        spent,
        [math.exp(sum(map(math.log, v)) / len(v)) for v in values],
    )
label = f"{metric}, geometric mean over seeds"
figures.curves(lines, "cost, in data-based trainings", label, log_y=True)

# %% [markdown]
# Each line begins where its first score was taken. Data-free training starts late: its teacher has been painting.
# Data-based training is far to the left of all, which is what a data set is worth.

# %%
pair = {m: lines[m] for m in ("data-free", "dynamic")}
budget = min(spent[-1] for spent, _ in pair.values())
within = {}
for method, (spent, values) in pair.items():
    last = max(i for i, c in enumerate(spent) if c <= budget)
    within[method] = values[last]
    print(f"{method:10s}at cost {spent[last]:.2f}: {metric} {values[last]:.1f}")
assert within["dynamic"] < within["data-free"]

# %% [markdown]
# Of each method this is the last score within what both have spent. At equal cost, too, dynamic distillation leads.
#
# ## In the authors' code
#
# `datasets/mix.py` draws both parts of a mixed set without replacement and keeps its size, as our `mix` does.
# `scripts/image_sample.py` paints the synthetic sets. `image_datasets.py` mirrors half of the training images, real and
# synthetic, left to right; our presets for photographs do so too (`flip`), while a pool never mirrors. For CelebA the
# training images are cut from the centre, but `evaluations/celeba64_npz.py` squeezes whole photographs to 64x64 for the
# reference statistics. Our reference is the training set as it was trained on, so even a perfect copy of their CelebA
# numbers would come out different here.
#
# ## The result beside the paper

# %%
paper.verdicts("07_baselines")

# %% [markdown]
# The paper's text says that its students beat data-based training "by the IS score on CIFAR10". Its Table 2 has 8.60
# for the student and 8.73 for data-based training there; on ImageNet the sentence holds, with 10.50 against 9.99.
#
# ## Limits
#
# The cost counts operations, not seconds. A small network on a large GPU waits for other things than arithmetic, and
# [chapter 12](12_cost.ipynb) measures that. Nor does the cost count the teacher's own training, since this book starts where that is
# paid. The digits' synthetic set has 1,797 images, so little that data-free students can learn it by heart. On
# ImageNet, with over a million, that explanation would not do. The photographs are small and the students' trainings
# short.
#
# ## Exercises
#
# 1. Give data-free training twice as many synthetic images. Where does its line in the last figure start now?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Painting comes before the first iteration, so doubling it moves the
# whole line to the right by what painting cost once.
found = ledger.results("digits", {"method": "data-free"})[0]
p = presets.get("digits")
painted = p.synthetic_images * p.synthetic_steps * networks.flops(p.teacher) / unit
start = lines["data-free"][0][0]
print(f"it starts at {start:.2f}, and would at {start + painted:.2f}")
assert 0 < painted < start

# %% [markdown]
# 2. At which number of synthetic images does data-free training in the plane reach dynamic distillation?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. At none. Data-based training is data-free training with as many
# images as one could wish for: the exact teacher's samples are as good as data,
# and it has a hundred thousand. Its score is that of the two thousand. What keeps
# both back is the noise in their target, and no number of images removes it.
if live:
    of = {way: scores[way].mean for way in ("data-based", "data-free", "dynamic")}
    print(", ".join(f"{way} {mean:.3g}" for way, mean in of.items()))
    assert of["dynamic"] < of["data-based"] / 3

# %% [markdown]
# 3. `real_fraction = 0.5` is not in the paper. What do you expect in the plane, and what happens?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. Nothing, for the same reason: there synthetic and real points come
# from one distribution. Where the teacher errs it could matter; try the digits.
plane = presets.get("toy", live=True, real_fraction=0.5)
half = runs.Run(plane, "data-limited", 0).result()["metrics"][plane.metric]
print(f"data-limited 50% {plane.metric} {half:.3g}")
# %% [markdown]
# ## Further reading
#
# Section 4.2 of the paper ([Xiang et al., 2025](references.md)); the FID that all of this is measured with ([Heusel et al., 2017](references.md)).
