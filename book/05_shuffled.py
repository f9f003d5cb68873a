# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Shuffled iterative distillation
#
# *Section 3.3 of the paper, second method.*
#
# Iterative distillation shows the student one level at a time. The repair is to let the samples start at different
# levels, so that every batch holds all of them.
#
# **What you'll do.** Denoise each sample of a batch for a random number of steps, and then go on as before.
#
# **What you'll learn.** That uniform levels cure the forgetting, and that one more trouble is left.
#
# **What you need.** [Chapter 4](04_iterative.ipynb).

# %% tags=["parameters"]
preset = "digits"
live = True  # sized for a laptop; False trains at the preset's full size
seed = 0
changes = {}  # settings other than the preset's own, as {"iterations": 1000}

# %%
import torch

from dkdm_lab import networks
from dkdm_lab.data import to_uint8
from dkdm_lab.experiments import ledger, presets, runs
from dkdm_lab.notebook.explore import watch
from dkdm_lab.pools import ShuffledPool
from dkdm_lab.system import figures
from dkdm_lab.system.provenance import device
from dkdm_lab.training import train

figures.use_style()
settings = presets.get(preset, live=live, **changes)
diffusion = settings.diffusion()
teacher = runs.Run(settings, "teacher", seed).model()

# %% [markdown]
# ## Shuffle denoise
#
# Draw a batch of noise $\hat{\mathcal B}_0^s = \{\hat x_i^T\}$. Draw a level $t_i$ for each sample, uniformly. Let the
# teacher walk each sample down to its own level:
#
# $$\hat{\mathcal B}_0^s = \{\hat x_i^T\}\ \to\ \hat{\mathcal B}_1^s = \{\hat x_i^{t_i}\},
# \qquad t_i \sim \text{uniform}.$$
#
# After that the turns are those of iterative distillation. A sample that reaches the clean end is replaced by fresh
# noise at the top, on its own, while the others walk on. If the levels were uniform once, they stay so.

# %%
run = runs.Run(settings, "shuffled", seed)
pool = run.source()
pool.fill()
before = pool.t.clone()
batch = next(pool)
assert torch.equal(pool.t, torch.where(before == 0, settings.T - 1, before - 1))
print(f"{len(before)} samples at {before.unique().numel()} different levels")

# %% [markdown]
# ## Watch it

# %%
watch(run.source(), iterations=settings.T, every=settings.T // 10)

# %% [markdown]
# The histogram stays near the dashed line at every turn, as near as a batch of this size can: the bar of the last
# chapter is gone. The samples are always a mixture, from noise (top left) to images (bottom right).
#
# ## Train on it
#
# The loop is that of [chapter 2](02_teacher.ipynb). Its source is the shuffled pool, and nothing else changes:

# %%
torch.manual_seed(seed)
novice = networks.build(settings.student)
source = ShuffledPool(
    diffusion, teacher, settings.batch_size, seed=seed, device=device()
)
novice, history = train(
    novice, source, diffusion, 20, lr=settings.lr, log_every=20, progress=False
)
print(f"L'simple after 20 iterations: {history.simple[-1]:.3f}")

# %% [markdown]
# And the run at its full length, beside the iterative one:

# %%
methods = ("shuffled", "iterative")
results = {method: runs.Run(settings, method, seed).result() for method in methods}
losses = {m: r["loss"] for m, r in results.items()}
lines = {m: (loss["iteration"], loss["simple"]) for m, loss in losses.items()}
figures.curves(lines, "iteration", "L'simple", log_y=True)

# %% [markdown]
# The shuffled loss is an average over all levels at each iteration, and has no teeth. What is left of ups and downs, the
# ratio of the largest to the smallest loss in the second half says:

# %%
half = len(losses["shuffled"]["simple"]) // 2
late = {method: loss["simple"][half:] for method, loss in losses.items()}
swing = {method: max(x) / min(x) for method, x in late.items()}
for method, value in swing.items():
    print(f"{method}: largest over smallest loss, second half: {value:.1f}")
if settings.iterations >= 2 * settings.T:  # a whole tooth lies in the second half
    assert swing["shuffled"] < swing["iterative"]

# %% [markdown]
# ## The score

# %%
of_teacher = runs.Run(settings, "teacher", seed).result()
level = ("teacher", of_teacher["metrics"][settings.curve_metric])
fid = {m: runs.curve(r, settings.curve_metric) for m, r in results.items()}
figures.curves(fid, "iteration", settings.curve_metric, log_y=True, level=level)

# %%
last = {m: scores[-1] for m, (_, scores) in fid.items()}
print(*(f"{m} {score:.1f}" for m, score in last.items()), f"teacher {level[1]:.1f}")
print(
    *(f"{m}: {r['teacher_evaluations']:,} evaluations" for m, r in results.items())
)
if settings.iterations >= 2 * settings.T:
    assert last["shuffled"] < last["iterative"]

# %%
student = run.model()
samples = diffusion.sample(student, 40, settings.steps, device=device())
figures.image_grid(to_uint8(samples), columns=20)

# %% [markdown]
# At equal iterations the shuffled student ends nearer to the teacher than the iterative one. What has changed is the
# order of the levels, and the few evaluations that the shuffle denoise takes before the first turn.
#
# ## What is left
#
# Look at one batch of the pool and at the next. They hold **the same samples**, one step further. In ordinary training
# two samples meet in a batch by chance and part again. Here they are bound to each other for as long as a walk lasts.
# We can measure how much of a batch is new.

# %%
pool = run.source()
first, second = next(pool).x_t, next(pool).x_t
first, second = first.flatten(1), second.flatten(1)
itself = torch.nn.functional.cosine_similarity(first, second).mean()
another = torch.nn.functional.cosine_similarity(first, second.flip(0)).mean()
print(
    f"similarity to itself one turn later: {itself:.2f}, to another: {another:.2f}"
)
assert itself > 0.8

# %% [markdown]
# One turn hardly changes a sample, so consecutive batches are nearly the same batch. This is the trouble that the next
# chapter is about.
#
# ## In the authors' code
#
# `train_util_kd.py` handles the shuffled method as the dynamic one with a pool of exactly one batch (`choice ==
# 'shffled_iterative_distillation'`), and so does `pools.py`. Their shuffle denoise (`denoise_fn.py`,
# `manage_denoise_fn`) walks every sample one step at a time. It draws the target from $1, \dots, T - 1$, so that no
# sample starts as pure noise; ours draws from all $T$ levels.
#
# ## The result beside the paper
#
# Fig. 4a of the paper puts the shuffled method between the iterative and the dynamic one. Ours, from the ledger:

# %%
ledger.table(preset, ["teacher", "iterative", "shuffled"])

# %%
of, over = (
    ledger.by_seed(preset, settings.metric, {"method": m})
    for m in ("shuffled", "iterative")
)
gains = [of[s] / over[s] for s in sorted(of.keys() & over.keys())]
print("its score over the iterative one's:", *(f"{x:.2f}" for x in gains))
print(f"better in {sum(x < 1 for x in gains)} of {len(gains)} seeds")

# %% [markdown]
# *Verdict:* for the shuffled method against the iterative one, the count of seeds above. The dynamic one joins them in
# [chapter 8](08_ablations.ipynb), where the claim of Fig. 4a has its verdict.
#
# ## Limits
#
# The presets' shuffle denoise is a cheap one (`warmup="harvest"`); [chapter 22](22_moves.ipynb) compares it with the paper's.
#
# ## Exercises
#
# 1. Let all samples start at one level and discard batches at random. Do the levels ever become uniform?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 1. Never. All samples take each turn together, shown or not, so they stay
# at one level. Discarding mixes what the student sees over time, not in a batch.
from dkdm_lab.pools import IterativePool

together = IterativePool(diffusion, teacher, 16, discard=0.5, device=device())
levels = [next(together).t.unique().tolist() for _ in range(20)]
print("levels of each batch:", *(level[0] for level in levels))
assert all(len(level) == 1 for level in levels)

# %% [markdown]
# 2. Give the shuffled pool a batch eight times as large. How similar are consecutive batches now?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 2. As similar as before: a batch is still the last one moved by a step.
# But a batch now has eight times as many samples, so what they have in common by
# chance is less, and the bond between batches binds the student to less.
b = settings.batch_size
large = ShuffledPool(diffusion, teacher, 8 * b, seed=seed, device=device())
pair = [next(large).x_t.flatten(1) for _ in range(2)]
now = torch.nn.functional.cosine_similarity(*pair).mean()
print(f"similarity to itself one turn later: {now:.2f}, before: {itself:.2f}")
assert abs(now - itself) < 0.05

# %% [markdown]
# 3. Derive how often a given sample is replaced, and from it how many different samples the student sees in all.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "hide-cell"]
# Solution 3. Every T turns. So after I iterations a batch of b has seen about I / T
# replacements a place: b (1 + I / T) samples in all, where training on data sees
# b I. Counted from a pool's levels: one at t is replaced after t + 1 turns.
turns, T = settings.iterations, settings.T
replaced = int(((turns + T - 1 - before) // T).sum())
print(f"counted {len(before) + replaced:,}", end=", ")
print(f"by the formula {len(before) * (1 + turns / T):,.0f}")
assert abs(replaced / len(before) - turns / T) < 0.5
# %% [markdown]
# ## Further reading
#
# Section 3.3 of the paper ([Xiang et al., 2025](references.md)).
