"""Pools: the sources of Sec. 3.3. A pool holds noisy samples that the teacher denoises one step a turn.

The three methods of the paper are one procedure that differs in two choices: how many samples the pool
holds, and at which t they start. *Iterative*: one batch, all at T. *Shuffled*: one batch, uniform t.
*Dynamic* (Algorithm 1): rho * T batches, uniform t, and each turn a random batch of them.

One evaluation of the teacher on a batch gives both the student's target and the samples' next place.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dkdm_lab.diffusion import Gaussian, GaussianDiffusion
from dkdm_lab.moves import OF_THE_TEACHER, VARIANCES, AnalyticVariance
from dkdm_lab.networks.classifier_free_guidance import guide
from dkdm_lab.networks.denoiser import Answer, at_least_float32
from dkdm_lab.sources import NULL, Batch, Conditions
from dkdm_lab.system import budget
from dkdm_lab.system.profile import section
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import branch, mixed, restore

WARMUPS = ("full", "respaced", "harvest")
# How samples rest between two turns: in a precision, on the device; or in float32 in the host's memory.
STORAGES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "host": torch.float32,
}

_LEARNS_NONE = "variance: found {!r}, but the teacher learns none; expected small, large, analytic or ddim"


class Pool:
    """Noisy samples ``x`` ``[size, *shape]`` at levels ``t`` ``[size]``, and the turn that moves them.

    An endless iterator of :class:`Batch`. Use one of the three methods below. shape: of one sample,
    the teacher's own by default. discard: probability p that a turn's batch is not shown to the student
    (Sec. 11); the teacher denoises it all the same. evaluations: teacher evaluations so far, in samples.
    The pool fills itself at the first batch, or when :meth:`fill` is called.

    conditions: what a conditional teacher's samples are conditioned on. Each fresh sample draws one and
    keeps it on its way down. guidance: the scale of the teacher's classifier-free guidance while the samples
    move. The student is never shown guided targets: a batch has each sample's condition with the teacher's
    answer to it, or, for a share ``conditions.dropout`` of them, the null condition with the teacher's
    answer to that; so it can be guided as its teacher can.

    stride: by how many steps a turn moves its samples. One evaluation of the teacher gives the target, of a
    single step whatever the stride, and x_0 with it, so a sample can go as far at once as a respaced sampler
    would. Fresh samples begin at one of the last ``stride`` levels, which keeps t exactly uniform.

    variance: of a move, one of :data:`~dkdm_lab.moves.VARIANCES`. None: "learned" where the teacher learns
    one; else the process's fixed variance for steps of one, as in the paper, and the analytic one for longer
    moves, in strides and warm-ups: with a fixed one those would lose the samples' spread.

    storage: one of :data:`STORAGES`. A pool of 16 bits a number takes half the memory, and each turn rounds
    its samples; one on the "host" takes none of the device's, and sends each batch a turn ahead. Turns
    compute in float32 whatever it is.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher,
        batch_size: int,
        *,
        size: int,
        warmup: str | None,
        shape: tuple[int, ...] | None = None,
        discard: float = 0.0,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        stride: int = 1,
        variance: str | None = None,
        storage: str = "float32",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        if not 1 <= stride <= diffusion.T:
            raise ValueError(f"stride: found {stride}, expected 1 to {diffusion.T} steps")
        if storage not in STORAGES:
            raise ValueError(f"storage: found {storage!r}, expected one of {', '.join(STORAGES)}")
        if variance not in (None, *VARIANCES):
            raise ValueError(f"variance: found {variance!r}, expected None or one of {', '.join(VARIANCES)}")
        if variance in OF_THE_TEACHER and not getattr(teacher, "learns_variance", True):
            raise ValueError(_LEARNS_NONE.format(variance))
        native = getattr(teacher, "shape", None)
        if shape is not None and native is not None and tuple(shape) != tuple(native):
            raise ValueError(f"shape: found {tuple(shape)}, but the teacher's samples are {tuple(native)}")
        if shape is None and native is None:
            raise ValueError("shape: found None, expected the shape of one sample (the teacher names none)")
        if warmup is not None and warmup not in WARMUPS:
            raise ValueError(f"warmup: found {warmup!r}, expected one of {WARMUPS}")
        if not 0 <= discard < 1:
            raise ValueError(f"discard: found {discard}, expected a probability in [0, 1)")
        takes = getattr(teacher, "condition", None)
        if (conditions is None) != (takes is None):
            found = "None" if conditions is None else f"{len(conditions)} of them"
            raise ValueError(f"conditions: found {found}, but the teacher takes {takes or 'none'}")
        if guidance != 1 and (conditions is None or conditions.null is None):
            raise ValueError(f"guidance: found {guidance}, expected 1 where there is no null condition")
        self.diffusion, self.teacher = diffusion, teacher.eval()
        self.batch_size, self.size, self.warmup, self.discard = batch_size, size, warmup, discard
        self.shape, self.device = tuple(shape or native), torch.device(device)
        self.conditions = None if conditions is None else conditions.to(self.device)
        self.guidance, self.stride, self.variance = guidance, stride, variance
        self.analytic = AnalyticVariance(diffusion, self.device)
        self.evaluations = 0
        self.x: Tensor | None = None
        self.t: Tensor | None = None
        self.c: Tensor | None = None  # which condition each sample has
        self.storage = storage
        self._generator = torch.Generator(self.device).manual_seed(seed)
        # Where the samples rest on the host, it must know which are next without asking the device, and a
        # turn ahead, so that they are there in time.
        self._place = torch.device("cpu") if storage == "host" else self.device
        self._chooser = self._generator
        if storage == "host":
            self._chooser = torch.Generator().manual_seed(mixed(seed, 1))
        self._next: tuple[Tensor, Tensor] | None = None  # the next turn's: which samples, and they themselves
        self._chooser_before = self._chooser.get_state()  # they were chosen
        self._late: tuple[Tensor, Tensor, torch.cuda.Event] | None = None

    def __iter__(self) -> Pool:
        return self

    @torch.no_grad()
    def __next__(self) -> Batch:
        self.fill()
        while True:
            rows, x_t = self._next or self._choose()
            self._next = self._choose() if self.storage == "host" else None
            index = rows.to(self.device, non_blocking=True)
            t = self.t[index]
            c = None if self.c is None else self.c[index]
            shown, c, moved = self._answers(x_t, t, c)
            target = self._p(x_t, t, shown)
            s = (t - self.stride).clamp(min=-1)
            if self.stride == 1 and self.variance is None and moved is shown:  # the paper's way
                x_s = self.diffusion.step(target, s, self._noise(len(t)))
            else:
                x_s = self._move(x_t, t, s, moved, self.stride)
            self._replace(rows, index, x_s, s)
            if self.discard == 0 or self._uniform(()) >= self.discard:
                eps, v = shown
                condition = None if c is None else self.conditions[c]
                return Batch(x_t, t, eps, None if v is None else target, condition=condition)

    @torch.no_grad()
    def fill(self, progress: bool = False) -> None:
        """Draw the samples and bring them to their levels (the shuffle denoise), once."""
        if self.x is not None:
            return
        if self.conditions is not None:
            self.c = self._draw(self.size)
        if self.warmup is None:
            self._allocate()
            self._put_noise()
            self.t = self._top(self.size)
            return
        with progress_bar(desc=f"{self.warmup} warm-up", unit=" evaluations", show=progress) as bar:
            fill = {"full": self._fill_full, "respaced": self._fill_respaced, "harvest": self._fill_harvest}
            self._allocate()
            self.t = fill[self.warmup](bar)

    def state_dict(self) -> dict:
        """Everything that decides the next batches: samples, levels, conditions, what was seen of the
        teacher's variance, generators, count."""
        self._settle()
        return {
            **{
                name: None if value is None else value.clone()  # the pool changes its samples in place
                for name, value in (("x", self.x), ("t", self.t), ("c", self.c))
            },
            "variance": self.analytic.sums,  # never changed in place
            "generator": self._generator.get_state(),
            "chooser": self._chooser.get_state() if self._next is None else self._chooser_before,
            "evaluations": self.evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken; the sizes must agree."""
        keys = {"x", "t", "c", "variance", "generator", "chooser", "evaluations"}
        if state.keys() | {"variance"} != keys:  # older states have none
            raise ValueError(f"pool state: found {sorted(state)}, expected {sorted(keys)}")
        x = state["x"]
        expected = (self.size, *self.shape)
        if x is not None and tuple(x.shape) != expected:
            raise ValueError(f"pool state: found samples of shape {tuple(x.shape)}, expected {expected}")
        if x is not None and x.dtype != STORAGES[self.storage]:
            raise ValueError(f"pool state: found samples in {x.dtype}, expected {STORAGES[self.storage]}")
        if x is not None and (state["c"] is None) != (self.conditions is None):
            found, here = ("no" if given is None else "some" for given in (state["c"], self.conditions))
            raise ValueError(f"pool state: found {found} conditions, expected {here}")
        self.t, self.c = (
            None if value is None else value.to(self.device, copy=True) for value in (state["t"], state["c"])
        )
        seen = state.get("variance")
        self.analytic.sums = None if seen is None else seen.to(self.device)
        self.x = self._next = None
        if x is not None:
            self._allocate()
            self.x.copy_(x)
        restore(self._generator, state["generator"])
        restore(self._chooser, state["chooser"])
        self.evaluations = state["evaluations"]

    def load_shards(self, states: list[dict], rank: int, ranks: int) -> None:
        """Take this rank's part of all the samples of a training by another number of ranks, an equal share
        of what all have seen of the teacher's variance, and noise that none of them has drawn."""
        whole = {name: [state[name] for state in states] for name in ("x", "t", "c")}
        parts = {
            name: None if values[0] is None else torch.cat(values)[rank * self.size : (rank + 1) * self.size]
            for name, values in whole.items()
        }
        seen = [state["variance"] for state in states if state.get("variance") is not None]
        parts["variance"] = sum(seen) / ranks if seen else None
        evaluations = sum(state["evaluations"] for state in states) // ranks
        one = states[rank % len(states)]
        self.load_state_dict({**one, **parts, "evaluations": evaluations})
        branch(self._generator, rank)
        if self._chooser is not self._generator:
            branch(self._chooser, rank)

    # -- a turn ---------------------------------------------------------------------------------------

    def _select(self) -> Tensor:
        """Which samples take this turn, where they rest: all of them, but for the dynamic pool."""
        return torch.arange(self.size, device=self._place)

    def _choose(self) -> tuple[Tensor, Tensor]:
        """Which samples take a turn, and they themselves, on their way to the device."""
        self._chooser_before = self._chooser.get_state()
        rows = self._select()
        return rows, self._take(rows)

    def _allocate(self) -> None:
        """Room for the samples. A GPU copies from the host's memory faster where it is pinned."""
        pinned = self._place != self.device
        dtype = STORAGES[self.storage]
        self.x = torch.empty(self.size, *self.shape, dtype=dtype, device=self._place, pin_memory=pinned)

    def _take(self, rows: Tensor) -> Tensor:
        """Samples to work with, from where they rest."""
        self._settle()
        x = self.x[rows]
        if self._place != self.device:
            x = x.pin_memory()
        return x.to(self.device, torch.float32, non_blocking=True)

    def _put(self, rows: Tensor, x: Tensor) -> None:
        """Samples to where they rest. From a GPU to the host they come later: they are on their way while it
        works on, and arrive before the next ones are taken."""
        if self._place == self.device:
            self.x[rows] = x.to(self.x.dtype)
            return
        self._settle()
        on_their_way = torch.empty(x.shape, dtype=self.x.dtype, pin_memory=True)
        on_their_way.copy_(x, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._late = rows, on_their_way, arrived

    def _put_noise(self) -> None:
        for rows in torch.arange(self.size, device=self._place).split(4096):
            self._put(rows, self._noise(len(rows)))

    def _settle(self) -> None:
        """Wait for the samples that are on their way to the host."""
        if self._late is not None:
            rows, x, arrived = self._late
            arrived.synchronize()
            self.x[rows] = x
            self._late = None

    def _replace(self, rows: Tensor, index: Tensor, x: Tensor, t: Tensor) -> None:
        """Put denoised samples back; one that reached x_0 makes room for fresh noise at the top."""
        finished = t < 0
        x = torch.where(finished.view(-1, *[1] * (x.ndim - 1)), self._noise(len(t)), x)
        self._put(rows, x)
        if self._next is not None:  # taken before this turn: some of them have moved in it
            next_rows, next_x = self._next
            theirs, ours = (next_rows[:, None] == rows).nonzero(as_tuple=True)
            next_x[theirs.to(self.device)] = x[ours.to(self.device)]
        self.t[index] = torch.where(finished, self._top(len(t)), t)
        if self.c is not None:
            self.c[index] = torch.where(finished, self._draw(len(t)), self.c[index])

    def _answers(self, x_t: Tensor, t: Tensor, c: Tensor | None) -> tuple[Answer, Tensor | None, Answer]:
        """The teacher's answer to show, the conditions it belongs to, and the answer to move by.

        Without guidance and null condition they are one evaluation: target and next sample.
        """
        own = self._evaluate(x_t, t, c)
        if c is None or self.conditions.null is None:
            return own, c, own
        dropped = self._uniform(c.shape) < self.conditions.dropout
        asked = dropped if self.guidance == 1 else torch.ones_like(dropped)
        if not asked.any():  # networks with attention take no empty batch
            return own, c, own
        null = self._evaluate(x_t[asked], t[asked], torch.full_like(c[asked], NULL))
        moved = own if self.guidance == 1 else guide(own, null, self.guidance)
        shown = [None if output is None else output.clone() for output in own]
        for output, without in zip(shown, null, strict=True):
            if output is not None:
                output[dropped] = without[dropped[asked]]
        return tuple(shown), torch.where(dropped, NULL, c), moved

    def _evaluate(self, x_t: Tensor, t: Tensor, c: Tensor | None) -> Answer:
        self.evaluations += len(t)
        given = () if c is None else (self.conditions[c],)
        with section("teacher"):
            return at_least_float32(self.teacher(x_t, t, *given))

    def _p(self, x_t: Tensor, t: Tensor, answer: Answer) -> Gaussian:
        return self.diffusion.p(x_t, t, *answer, clip=self.diffusion.clip)

    def _move(self, x_t: Tensor, t: Tensor, s: Tensor, answer: Answer, steps: int) -> Tensor:
        """Samples at ``s``, ``steps`` levels below ``t`` or fewer, by an answer and the pool's variance."""
        eps, v = answer
        variance = self.variance or ("learned" if v is not None else "analytic" if steps > 1 else None)
        if variance in OF_THE_TEACHER and v is None:
            raise ValueError(_LEARNS_NONE.format(variance))
        if variance == "ddim":
            return self.diffusion.ddim(x_t, t, eps, s)
        if variance == "analytic":
            self.analytic.see(x_t, t, eps)
            variance = self.analytic.at(t)
        elif variance in OF_THE_TEACHER:  # as they are for a step of one, as in the paper
            variance = self.diffusion.x0_variance(t, v) if variance == "learned" and steps > 1 else None
        p = self.diffusion.p(x_t, t, eps, v, s, self.diffusion.clip, variance)
        return self.diffusion.step(p, s, self._noise(len(t)))

    def _draw(self, n: int) -> Tensor:
        """Fresh conditions, evenly from all there are."""
        return torch.randint(len(self.conditions), (n,), generator=self._generator, device=self.device)

    def _noise(self, n: int) -> Tensor:
        return torch.randn(n, *self.shape, generator=self._generator, device=self.device)

    def _top(self, n: int) -> Tensor:
        """Levels to begin at: the last one, or any of the last ``stride``."""
        T, options = self.diffusion.T, {"device": self.device}
        if self.stride == 1:
            return torch.full((n,), T - 1, **options)
        return torch.randint(T - self.stride, T, (n,), generator=self._generator, **options)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self.device)

    # -- the shuffle denoise --------------------------------------------------------------------------

    def _fill_full(self, bar) -> Tensor:
        """The paper's way: every sample walks down one step at a time to its own t."""
        return self._walk_down(range(self.diffusion.T - 1, -1, -1), bar)

    def _fill_respaced(self, bar, steps: int = 10) -> Tensor:
        """Walk down in respaced steps, the last one cut short to end at the sample's own t."""
        return self._walk_down(self.diffusion.timesteps(min(steps, self.diffusion.T))[::-1], bar)

    def _walk_down(self, levels, bar) -> Tensor:
        """From noise at the top through falling ``levels`` to a uniform t of each sample's own; returns t."""
        goal = torch.randint(self.diffusion.T, (self.size,), generator=self._generator, device=self.device)
        self._put_noise()
        for level, below in pairwise(levels):
            moving = (goal < level).nonzero()[:, 0]
            if len(moving) == 0:  # networks with attention take no empty batch
                break
            c = None if self.c is None else self.c[moving]
            rows = moving.to(self._place)
            s = goal[moving].clamp(min=below)
            self._put(rows, self._jump(self._take(rows), level, s, c, level - below, bar))
        return goal

    def _fill_harvest(self, bar, steps: int = 10) -> Tensor:
        """Few chains, every state of them used: one evaluation a sample.

        The levels are cut into ``steps`` intervals. A chain of respaced steps stops at the bottom of
        each, and its state there, noised forward (Eq. 4) to a uniform level of that interval, is one
        sample of the pool. A chain serves each interval once, so it takes size / steps chains.
        """
        T, n = self.diffusion.T, self.size
        edges = [round(T * k / steps) for k in range(steps + 1)] if T > steps else list(range(T + 1))
        # One uniform draw from each of n equal strata: uniform over all, and even over the intervals.
        strata = torch.arange(n, device=self.device)
        goal = ((strata + self._uniform((n,))) * T / n).long()
        goal = goal.clamp(max=T - 1)
        shares = [((goal >= low) & (goal < high)).nonzero()[:, 0] for low, high in pairwise(edges)]
        chains = self._noise(max(map(len, shares)))
        c = None if self.c is None else self._draw(len(chains))
        level = T - 1
        for low, share in zip(edges[-2::-1], shares[::-1], strict=True):
            s = torch.full((len(chains),), low, device=self.device)
            chains = self._jump(chains, level, s, c, level - low, bar)
            bottom = torch.full_like(share, low)
            x = self.diffusion.q_sample(chains[: len(share)], goal[share], self._noise(len(share)), bottom)
            self._put(share.to(self._place), x)
            if c is not None:
                self.c[share] = c[: len(share)]
            level = low
        return goal

    def _jump(self, x: Tensor, level: int, s: Tensor, c: Tensor | None, steps: int, bar) -> Tensor:
        """One respaced step of ``steps`` levels from ``level`` to each sample's ``s``, in large batches."""
        moved = []
        for rows in budget.each(torch.arange(len(x), device=self.device).split(1024)):
            t = torch.full((len(rows),), level, device=self.device)
            answer = self._evaluate(x[rows], t, None if c is None else c[rows])
            if self.guidance != 1:
                null = self._evaluate(x[rows], t, torch.full_like(rows, NULL))
                answer = guide(answer, null, self.guidance)
            moved.append(self._move(x[rows], t, s[rows], answer, steps))
            bar.update(len(t))
        return torch.cat(moved)


class IterativePool(Pool):
    """Iterative distillation: one batch of noise walks down from T together, then starts again.

    All samples of a batch share one t. Size: ``batch_size``. No warm-up.
    """

    def __init__(self, diffusion: GaussianDiffusion, teacher, batch_size: int, **options):
        super().__init__(diffusion, teacher, batch_size, size=batch_size, warmup=None, **options)

    def _top(self, n: int) -> Tensor:
        return super()._top(1).repeat(n)


class ShuffledPool(Pool):
    """Shuffled iterative distillation: one batch with uniform t, the same samples turn after turn."""

    def __init__(
        self, diffusion: GaussianDiffusion, teacher, batch_size: int, *, warmup: str = "harvest", **options
    ):
        super().__init__(diffusion, teacher, batch_size, size=batch_size, warmup=warmup, **options)


class DynamicPool(Pool):
    """Dynamic iterative distillation, Algorithm 1: a random batch of ``rho * T`` batches each turn.

    Selection is without replacement within a batch. Size: ``|B+| = rho * T * batch_size`` samples.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher,
        batch_size: int,
        *,
        rho: float,
        warmup: str = "harvest",
        **options,
    ):
        size = round(rho * diffusion.T) * batch_size
        if size < batch_size:
            raise ValueError(
                f"rho: found {rho}, which gives round({rho} * {diffusion.T}) = {round(rho * diffusion.T)} "
                f"batches; expected at least one batch of {batch_size} samples"
            )
        self.rho = rho
        super().__init__(diffusion, teacher, batch_size, size=size, warmup=warmup, **options)

    def _select(self) -> Tensor:
        return torch.randperm(self.size, generator=self._chooser, device=self._place)[: self.batch_size]


POOLS = {"iterative": IterativePool, "shuffled": ShuffledPool, "dynamic": DynamicPool}
