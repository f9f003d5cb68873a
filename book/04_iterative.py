# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Iterative distillation
#
# *Section 3.3 of the paper, first method.*
#
# The objective of the last chapter needs noisy samples from the teacher, and making them takes many denoising steps.
# The first idea is to waste none of those steps: **let the student learn from every one of them**.
#
# **What you'll do.** Watch a pool walk down from noise to images and start again, and train a student on the way.
#
# **What you'll learn.** Why this is cheap, and why it does not work well.
#
# **What you need.** [Chapter 3](03_dkdm_objective.ipynb), and the teacher of [chapter 2](02_teacher.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab import networks
from dkdm_lab.data import load_images, to_model, to_uint8
from dkdm_lab.experiments import ledger, presets, runs
from dkdm_lab.notebook.explore import watch
from dkdm_lab.pools import IterativePool
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
teacher = runs.Run(settings, "teacher", seed).model()

# %% [markdown]
# ## The pool
#
# A batch $\hat{\mathcal B}_1 = \{\hat x_i^T\}$ of pure noise is drawn. At every turn the teacher denoises it by one
# step, and the student trains on that step:
#
# $$\hat{\mathcal B}_1 = \{\hat x_i^T\}\ \to\ \hat{\mathcal B}_2 = \{\hat x_i^{T-1}\}\ \to\ \dots\ \to\
# \hat{\mathcal B}_T = \{\hat x_i^1\}\ \to\ \text{fresh noise.}$$
#
# The turn needs **one** evaluation of the teacher, for its answer has two uses. It is the student's target, and it
# moves the sample on. Written out:


# %%
@torch.no_grad()
def turn(x_t, t):
    eps, v = teacher(x_t, t)  # the one evaluation
    p = diffusion.p(x_t, t, eps, v, clip=diffusion.clip)
    x_next = diffusion.step(p, t - 1, torch.randn_like(x_t))
    return (x_t, t, eps, p), x_next  # what the student sees; where the pool goes


# %% [markdown]
# `IterativePool` is this turn in a loop, plus the restart. We can count what it asks of the teacher.

# %% tags=["nbval-check-output"]
pool = IterativePool(diffusion, teacher, 64, device=device())
batches = [next(pool) for _ in range(3)]
print("levels:", [sorted(set(batch.t.tolist())) for batch in batches])
print("teacher evaluations for three batches of 64:", pool.evaluations)
for k, batch in enumerate(batches):
    assert (batch.t == settings.T - 1 - k).all()
assert pool.evaluations == 3 * 64  # one for each sample and turn

# %% [markdown]
# All samples of a batch stand at the same level, and the level falls by one each turn.
#
# ## Watch it
#
# The pool never asks the student anything, so it can run alone. Left: samples of the pool. Right: how many samples
# stand at each level. Move the slider.

# %%
run = runs.Run(settings, "iterative", seed)
watch(run.source(), iterations=settings.T + 20, every=settings.T // 10)

# %% [markdown]
# The histogram is a single bar that marches to the left. It reaches the clean end after $T$ turns, jumps back to noise,
# and marches again. The dashed line is what ordinary training sees in *every* batch: all levels at once.
#
# ## Train on it
#
# The loop is that of [chapter 2](02_teacher.ipynb). Its source is the pool in the place of the data, and nothing else changes:

# %%
torch.manual_seed(seed)
novice = networks.build(settings.student)
source = IterativePool(
    diffusion, teacher, settings.batch_size, seed=seed, device=device()
)
novice, history = train(
    novice, source, diffusion, 20, lr=settings.lr, log_every=20, progress=False
)
print(f"L'simple after 20 iterations: {history.simple[-1]:.3f}")

# %% [markdown]
# Now the run at its full length, which keeps its curve and its score.

# %%
result = run.result()
loss = result["loss"]
figures.curves(
    {"iterative": (loss["iteration"], loss["simple"])},
    "iteration",
    "L'simple",
    log_y=True,
)

# %%
done = settings.iterations
last = settings.T - 1 - (done - 1) % settings.T
print(f"{done / settings.T:.1f} walks; the last iteration was at level {last}")

# %% [markdown]
# Over several walks the loss is a saw: one tooth is one walk of $T$ turns. Within a walk it falls and rises again, for
# images that are nearly clean are the hardest to imitate; and after the jump back to noise it starts high once more,
# though the student has been there before. The student is never asked about all levels at the same time. While it
# learns the small levels it is free to forget the large ones.
#
# What does that cost? Take the trained student and measure its error at each level. A number alone says little, since
# levels differ in difficulty. So beside it stands the student of the next chapter, which has the same teacher, network
# and number of iterations, and all levels in every batch.

# %%
students = {
    m: runs.Run(settings, m, seed).model() for m in ("iterative", "shuffled")
}
x0 = to_model(load_images(settings.data)[:256]).to(device())  # to measure with
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def error(model, level):
    t = torch.full((len(x0),), level, device=x0.device)
    x_t = diffusion.q_sample(x0, t, noise.to(x0.device))
    return float((model(x_t, t)[0] - teacher(x_t, t)[0]).square().mean())


# %%
levels = list(range(0, settings.T, max(1, settings.T // 20)))
errors = {
    m: [error(model, level) for level in levels] for m, model in students.items()
}
lines = {m: (levels, values) for m, values in errors.items()}
figures.curves(lines, "t", "squared difference from the teacher's eps", log_y=True)

# %%
times = [
    a / b for a, b in zip(errors["iterative"], errors["shuffled"], strict=True)
]
print("error of the iterative student over the shuffled one's:")
for level, ratio in list(zip(levels, times, strict=True))[::4]:
    print(f"  at t = {level:3d}: {ratio:.1f}")
mean = {m: sum(values) / len(values) for m, values in errors.items()}
if (
    settings.iterations >= 2 * settings.T
):  # in whole walks both have seen all levels
    assert mean["iterative"] > mean["shuffled"]

# %% [markdown]
# Errors are larger at small $t$, where imitation is hardest. The distance between the lines is the price of one level at
# a time. (How it spreads over the levels depends on where the last walk was broken off, and on the average over past
# weights that is measured here.)
#
# ## The score

# %%
of_teacher = runs.Run(settings, "teacher", seed).result()
level = ("teacher", of_teacher["metrics"][settings.curve_metric])
fid = {"iterative": runs.curve(result, settings.curve_metric)}
figures.curves(fid, "iteration", settings.curve_metric, log_y=True, level=level)

# %%
scores = fid["iterative"][1]
print(
    f"{settings.curve_metric} at first {scores[0]:.1f}, at last {scores[-1]:.1f};",
    end=" ",
)
print(f"the teacher's: {level[1]:.1f}")
if settings.iterations >= 2 * settings.T:
    assert scores[-1] > level[1]

# %%
student = students["iterative"]
samples = diffusion.sample(student, 40, settings.steps, device=device())
figures.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# The student does learn, and ends above the dashed line of its teacher. How far, the numbers say; what it means, the
# samples show. Compare them with the teacher's in [chapter 2](02_teacher.ipynb).
#
# ## In the authors' code
#
# `train_util_kd.py`, `KDTeacherLoader.iterative_distillation`, is the loop above. It discards a batch at random where
# asked to, which [chapter 9](09_random_discard.ipynb) studies; our pools take `discard` for it.
#
# ## The result beside the paper
#
# The paper shows iterative distillation in Figs. 4a and 8 only, on CIFAR-10; in Fig. 4a it is the worst of three methods.
# From the ledger, at the preset's full length:

# %%
ledger.table(preset, ["teacher", "iterative"])

# %%
of, over = (
    ledger.by_seed(preset, settings.metric, {"method": m})
    for m in ("iterative", "teacher")
)
lags = [of[s] / over[s] for s in sorted(of.keys() & over.keys())]
print("its score over its teacher's, for each seed:", *(f"{x:.1f}" for x in lags))

# %% [markdown]
# *Verdict:* where the ledger has seeds, each is a student that lags behind its own teacher by the factor printed above.
# That it is the worst of the three methods needs the other two; [chapter 8](08_ablations.ipynb) has them side by side.
#
# ## Limits
#
# The saw's teeth are $T$ turns long. With the paper's $T = 1000$ they are ten times longer than at the digits' $T = 100$,
# and the forgetting has ten times the time. That the student forgets is read off the loss and the distance between two
# students; the same student before and after a walk was not compared.
#
# ## Exercises
#
# 1. Average the loss over one whole tooth. Does it fall at all?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. It does, though one cannot see it in the saw: a walk asks about every
# level once, so means over whole walks can be compared.
walks = {}
for iteration, value in zip(loss["iteration"], loss["simple"], strict=True):
    walks.setdefault((iteration - 1) // settings.T, []).append(value)
whole = [w for w in walks if (w + 1) * settings.T <= settings.iterations]
means = [sum(walks[w]) / len(walks[w]) for w in whole]
print("mean loss of each walk:", *(f"{value:.3f}" for value in means))
assert len(means) < 2 or means[-1] < means[0]

# %% [markdown]
# 2. Discard nine batches of ten (`discard=0.9`). How far does a walk get between two batches that the student sees, and
#    what does it cost the teacher?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. About ten levels, so a walk is over in about ten batches and the
# student is back at noise before it has forgotten it. The teacher works ten
# times as much, for each batch shown stands for nine that were thrown away.
pool = IterativePool(diffusion, teacher, 4, discard=0.9, device=device())
shown = [int(next(pool).t[0]) for _ in range(30)]
print("levels shown:", *shown)
print(f"turns of the teacher for 30 batches: {pool.evaluations // 4}")
assert pool.evaluations > 3 * 4 * 30

# %% [markdown]
# 3. Reverse the roles: train on the batches of one walk in random order. What have you built?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. A data set of the teacher's answers: T batches, asked for once and
# used again and again. The levels come uniformly, over time if not in a batch.
# But the samples are always the same, and the student can learn them by heart;
# a pool never shows a sample twice at the same level.
pool = IterativePool(diffusion, teacher, 4, seed=seed, device=device())
walk = [next(pool) for _ in range(settings.T)]
order = torch.randperm(settings.T, generator=torch.Generator().manual_seed(seed))
levels_in_order = [int(walk[k].t[0]) for k in order]
print("levels in the new order:", *levels_in_order[:12], "...")
print(f"teacher evaluations, however long one trains: {pool.evaluations:,}")
assert sorted(levels_in_order) == list(range(settings.T))
# %% [markdown]
# ## Further reading
#
# Section 3.3 of the paper ([Xiang et al., 2025](references.md)).
