"""Pools: the sources of Sec. 3.3. A pool holds noisy samples that the teacher denoises, one step per turn.

The three methods of the paper are one procedure that differs in two choices: how many samples the pool
holds, and at which t they start. *Iterative*: one batch, all at T. *Shuffled*: one batch, uniform t.
*Dynamic* (Algorithm 1): rho * T batches, uniform t, and each turn takes a random batch of them.

One evaluation of the teacher on a batch gives both the student's target and the samples' next place.
:meth:`Pool.__next__` is the algorithm. How samples are guided, moved and warmed up is in
:mod:`dkdm_lab.moves`; where they rest between two turns is in :mod:`dkdm_lab.system.storage`.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.moves import WARMUPS, GuidedTeacher, Mover, Teacher, fill_with_noise
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.sources import Batch, Conditions
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import branch, restore
from dkdm_lab.system.storage import STORAGES, Storage

__all__ = ["POOLS", "STORAGES", "WARMUPS", "DynamicPool", "IterativePool", "Pool", "ShuffledPool"]


class Pool:
    """Noisy samples ``x`` ``[size, *shape]`` at levels ``t`` ``[size]``, and the turn that moves them.

    A :class:`~dkdm_lab.sources.Source`. Use one of the three methods below. The pool fills itself at the
    first batch, or when :meth:`fill` is called. evaluations: how many samples the teacher has evaluated.

    shape: of one sample; the teacher's own unless given. warmup: how the pool fills itself, one of
    :data:`~dkdm_lab.moves.WARMUPS`. discard: the probability p that a turn's batch is not shown to the
    student (Sec. 11); the teacher denoises it all the same.

    conditions: what a conditional teacher's samples are conditioned on. Each fresh sample draws a condition,
    ``c`` ``[size]``, and keeps it on its way down. guidance: the scale of classifier-free guidance by which
    samples move; what the student is shown is never guided: see :class:`~dkdm_lab.moves.GuidedTeacher`.

    stride: by how many steps a turn moves its samples. The student's target is of a single step whatever the
    stride. The same evaluation gives x_0 too, so a sample can go as far at once as a respaced sampler would.
    Fresh samples begin at one of the last ``stride`` levels, which keeps t exactly uniform. variance: of a
    move, see :class:`~dkdm_lab.moves.Mover`. storage: see :class:`~dkdm_lab.system.storage.Storage`.
    Errors: ValueError for every option out of its range, and for a teacher that does not fit the others.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: Teacher,
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
        progress: bool = False,
    ):
        _check_options(diffusion.T, warmup, discard, stride)
        self.diffusion, self.batch_size, self.size = diffusion, batch_size, size
        self.warmup, self.discard, self.stride, self.progress = warmup, discard, stride, progress
        self.shape, self.device = _shape_of_samples(teacher, shape), torch.device(device)
        self.conditions = None if conditions is None else conditions.to(self.device)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self.guided = GuidedTeacher(teacher, self.conditions, guidance)
        self.mover = Mover(diffusion, self.guided, self.shape, variance, self._generator)
        self.storage = Storage(storage, size, self.shape, self.device, self._generator, seed)
        self.t = torch.empty(0, dtype=torch.int64, device=self.device)
        self.c: Tensor | None = None

    @property
    def x(self) -> Tensor | None:
        """The samples where they rest; None before the pool is filled."""
        return self.storage.x

    @property
    def teacher(self) -> Teacher:
        """The teacher itself, without guidance."""
        return self.guided.teacher

    @property
    def evaluations(self) -> int:
        """How many samples the teacher has evaluated so far."""
        return self.guided.evaluations

    def __iter__(self) -> Self:
        return self

    @torch.no_grad()
    def __next__(self) -> Batch:
        """A turn: lines 4 to 8 of Algorithm 1, of which 5 to 7 are the loop's. After a turn whose batch is
        discarded comes another."""
        self.fill()
        while True:
            rows, x_t = self.storage.draw(self._select)  # line 4
            index = rows.to(self.device, non_blocking=True)
            t, c = self.t[index], None if self.c is None else self.c[index]
            lesson = self.guided.teach(x_t, t, c, self._generator)  # the teacher's eps of Eq. 20
            p = self.diffusion.p(x_t, t, *lesson.shown, clip=self.diffusion.clip)  # its p of Eq. 21
            s = (t - self.stride).clamp(min=-1)
            by_p = p if lesson.moving is lesson.shown else None
            x_s = self.mover.move(x_t, t, s, lesson.moving, self.stride, by_p)  # in the paper a draw from p
            self._put_back(rows, index, x_s, s)  # line 8
            if self.discard == 0 or self._chance() >= self.discard:
                eps, v = lesson.shown
                return Batch(x_t, t, eps, None if v is None else p, condition=lesson.condition)

    def _select(self) -> Tensor:
        """Which samples take a turn, where they rest: all of them, but for the dynamic pool."""
        return torch.arange(self.size, device=self.storage.place)

    def _put_back(self, rows: Tensor, index: Tensor, x: Tensor, t: Tensor) -> None:
        """Samples to their places; one that has reached x_0 makes room for fresh noise at the top."""
        finished = t < 0
        fresh = self.mover.noise(len(t))
        self.storage.put(rows, torch.where(finished.view(-1, *[1] * (x.ndim - 1)), fresh, x))
        self.t[index] = torch.where(finished, self._top(len(t)), t)
        if self.c is not None and self.conditions is not None:
            drawn = self.conditions.draw(len(t), self._generator)
            self.c[index] = torch.where(finished, drawn, self.c[index])

    def _top(self, n: int) -> Tensor:
        """``[n]`` levels to begin at: the last one, or any of the last ``stride``."""
        T = self.diffusion.T
        if self.stride == 1:
            return torch.full((n,), T - 1, device=self.device)
        return torch.randint(T - self.stride, T, (n,), generator=self._generator, device=self.device)

    def _chance(self) -> Tensor:
        return torch.rand((), generator=self._generator, device=self.device)

    @torch.no_grad()
    def fill(self) -> None:
        """Draw the samples and bring them to their levels, once: the shuffle denoise, Algorithm 1, line 1."""
        if self.x is not None:
            return
        if self.conditions is not None:
            self.c = self.conditions.draw(self.size, self._generator)
        self.storage.allocate()
        if self.warmup is None:
            fill_with_noise(self.mover, self.storage)
            self.t = self._top(self.size)
            return
        with progress_bar(desc=f"{self.warmup} warm-up", unit=" evaluations", show=self.progress) as bar:
            self.t, self.c = WARMUPS[self.warmup](self.mover, self.storage, self.c, bar)

    def compile_teacher(self, mode: str) -> None:
        """Compile the teacher's network, in a mode of `torch.compile`; an exact teacher has none."""
        if isinstance(self.teacher, Denoiser):
            self.teacher.compile_network(mode)

    # -- going on -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next batches: the samples, their levels and conditions, what was seen
        of the teacher's variance, the generators, the count. Later turns do not change it."""
        x, chooser = self.storage.state()
        return {
            "x": x,
            "t": None if x is None else self.t.clone(),
            "c": None if self.c is None else self.c.clone(),
            "variance": self.mover.analytic.sums,  # never changed in place
            "generator": self._generator.get_state(),
            "chooser": chooser,
            "evaluations": self.evaluations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken. ValueError for the state of another pool."""
        _check_state(state, (self.size, *self.shape), self.storage.dtype, self.conditions is not None)
        t, self.c = (None if state[n] is None else state[n].to(self.device, copy=True) for n in ("t", "c"))
        self.t = self.t[:0] if t is None else t
        seen = state.get("variance")
        self.mover.analytic.sums = None if seen is None else seen.to(self.device)
        self.storage.load(state["x"])
        restore(self._generator, state["generator"])
        restore(self.storage.chooser, state["chooser"])
        self.guided.evaluations = state["evaluations"]

    def load_shards(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Go on after a training by another number of ranks: with this rank's part of all their samples, an
        equal share of what they have seen of the teacher's variance, and noise that none of them has drawn.
        """
        mine = slice(rank * self.size, (rank + 1) * self.size)
        parts = {
            name: None if states[0][name] is None else torch.cat([state[name] for state in states])[mine]
            for name in ("x", "t", "c")
        }
        seen = [state["variance"] for state in states if state.get("variance") is not None]
        parts["variance"] = sum(seen) / world_size if seen else None
        evaluations = sum(state["evaluations"] for state in states) // world_size
        self.load_state_dict({**states[rank % len(states)], **parts, "evaluations": evaluations})
        for generator in {self._generator, self.storage.chooser}:
            branch(generator, rank)


class IterativePool(Pool):
    """Iterative distillation: one batch of noise walks down from T together, then starts again.

    All samples of a batch have the same t. Size: ``batch_size``. No warm-up.
    """

    def __init__(self, diffusion: GaussianDiffusion, teacher: Teacher, batch_size: int, **options: Any):
        super().__init__(diffusion, teacher, batch_size, size=batch_size, warmup=None, **options)

    def _top(self, n: int) -> Tensor:
        return super()._top(1).repeat(n)


class ShuffledPool(Pool):
    """Shuffled iterative distillation: one batch with uniform t, the same samples turn after turn."""

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: Teacher,
        batch_size: int,
        *,
        warmup: str = "harvest",
        **options: Any,
    ):
        super().__init__(diffusion, teacher, batch_size, size=batch_size, warmup=warmup, **options)


class DynamicPool(Pool):
    """Dynamic iterative distillation, Algorithm 1: each turn takes a random batch of ``rho * T`` batches.

    The selection is without replacement within a batch. Size: ``|B+| = rho * T * batch_size`` samples.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: Teacher,
        batch_size: int,
        *,
        rho: float,
        warmup: str = "harvest",
        **options: Any,
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
        chooser, place = self.storage.chooser, self.storage.place
        return torch.randperm(self.size, generator=chooser, device=place)[: self.batch_size]


POOLS = {"iterative": IterativePool, "shuffled": ShuffledPool, "dynamic": DynamicPool}


# -- what is refused ----------------------------------------------------------------------------------


def _check_options(T: int, warmup: str | None, discard: float, stride: int) -> None:
    if not 1 <= stride <= T:
        raise ValueError(f"stride: found {stride}, expected 1 to {T} steps")
    if warmup is not None and warmup not in WARMUPS:
        raise ValueError(f"warmup: found {warmup!r}, expected one of {', '.join(WARMUPS)}")
    if not 0 <= discard < 1:
        raise ValueError(f"discard: found {discard}, expected a probability in [0, 1)")


def _shape_of_samples(teacher: Teacher, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape asked for, or the teacher's own; they must not differ."""
    native: tuple[int, ...] | None = getattr(teacher, "shape", None)
    if shape is not None and native is not None and tuple(shape) != tuple(native):
        raise ValueError(f"shape: found {tuple(shape)}, but the teacher's samples are {tuple(native)}")
    found = native if shape is None else shape
    if found is None:
        raise ValueError("shape: found None, expected the shape of one sample (the teacher names none)")
    return tuple(found)


def _check_state(state: dict[str, Any], size: tuple[int, ...], dtype: torch.dtype, conditions: bool) -> None:
    """Refuse the state of a pool of another size, precision or kind of teacher."""
    keys = {"x", "t", "c", "variance", "generator", "chooser", "evaluations"}
    if state.keys() | {"variance"} != keys:  # older states have none
        raise ValueError(f"pool state: found {sorted(state)}, expected {sorted(keys)}")
    x = state["x"]
    if x is None:  # of a pool before it was filled
        return
    if tuple(x.shape) != size:
        raise ValueError(f"pool state: found samples of shape {tuple(x.shape)}, expected {size}")
    if x.dtype != dtype:
        raise ValueError(f"pool state: found samples in {x.dtype}, expected {dtype}")
    if (state["c"] is None) == conditions:
        found, here = ("some" if given else "no" for given in (not conditions, conditions))
        raise ValueError(f"pool state: found {found} conditions, expected {here}")
