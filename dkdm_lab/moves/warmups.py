"""The shuffle denoise of Algorithm 1, line 1: from noise to samples at uniformly drawn levels, in three ways.

Each is a function ``(mover, storage, c, bar) -> t, c``: it fills ``storage`` with samples and returns their
levels ``t`` ``[size]`` int64. c: the samples' conditions, ``[size]`` indices, or None; a way may give them
others. bar: a progress bar, moved on by each evaluation of the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from dkdm_lab.moves.mover import Mover
from dkdm_lab.system import budget
from dkdm_lab.system.storage import Storage

Filled = tuple[Tensor, Tensor | None]  # levels and conditions


def full(mover: Mover, storage: Storage, c: Tensor | None, bar: tqdm) -> Filled:
    """The paper's way: every sample walks down, one step at a time, to a level of its own."""
    return _walk_down(mover, storage, c, bar, range(mover.diffusion.T - 1, -1, -1))


def respaced(mover: Mover, storage: Storage, c: Tensor | None, bar: tqdm, steps: int = 10) -> Filled:
    """Every sample walks down in respaced steps; its last one is cut short, to end at a level of its own."""
    diffusion = mover.diffusion
    return _walk_down(mover, storage, c, bar, diffusion.timesteps(min(steps, diffusion.T))[::-1])


def harvest(mover: Mover, storage: Storage, c: Tensor | None, bar: tqdm, steps: int = 10) -> Filled:
    """A few chains, of which every state is used: about one evaluation per sample.

    The levels are cut into ``steps`` intervals. A chain of respaced steps stops at the bottom of each, and
    its state there, noised forward (Eq. 4) to a uniform level of that interval, is one sample of the pool. A
    chain serves each interval once, so there are size / steps chains; samples have their chain's condition.
    """
    diffusion, generator, n = mover.diffusion, mover.generator, storage.size
    T, device = diffusion.T, generator.device
    edges = [round(T * k / steps) for k in range(steps + 1)] if T > steps else list(range(T + 1))
    # One uniform draw from each of n equal strata: uniform over all levels, and even over the intervals.
    strata = torch.arange(n, device=device)
    goal = ((strata + torch.rand((n,), generator=generator, device=device)) * T / n).long().clamp(max=T - 1)
    shares = [((goal >= low) & (goal < high)).nonzero()[:, 0] for low, high in pairwise(edges)]
    chains = mover.noise(max(map(len, shares)))
    conditions = mover.teacher.conditions
    of_chains = None if conditions is None else conditions.draw(len(chains), generator)
    level = T - 1
    for low, share in zip(edges[-2::-1], shares[::-1], strict=True):
        s = torch.full((len(chains),), low, device=device)
        chains = _jump(mover, chains, level, s, of_chains, level - low, bar)
        bottom = torch.full_like(share, low)
        x = diffusion.q_sample(chains[: len(share)], goal[share], mover.noise(len(share)), bottom)
        storage.put(share.to(storage.place), x)
        if c is not None and of_chains is not None:
            c[share] = of_chains[: len(share)]
        level = low
    return goal, c


WARMUPS = {"full": full, "respaced": respaced, "harvest": harvest}


def fill_with_noise(mover: Mover, storage: Storage) -> None:
    """Standard normal samples, in parts that do not take the device's memory all at once."""
    for rows in torch.arange(storage.size, device=storage.place).split(4096):
        storage.put(rows, mover.noise(len(rows)))


def _walk_down(mover: Mover, storage: Storage, c: Tensor | None, bar: tqdm, levels: Iterable[int]) -> Filled:
    """From noise at the top, through falling ``levels``, to a uniformly drawn level of each sample's own."""
    generator, device = mover.generator, mover.generator.device
    goal = torch.randint(mover.diffusion.T, (storage.size,), generator=generator, device=device)
    fill_with_noise(mover, storage)
    for level, below in pairwise(levels):
        moving = (goal < level).nonzero()[:, 0]
        if len(moving) == 0:  # networks with attention take no empty batch
            break
        rows, s = moving.to(storage.place), goal[moving].clamp(min=below)
        own = None if c is None else c[moving]
        storage.put(rows, _jump(mover, storage.take(rows), level, s, own, level - below, bar))
    return goal, c


def _jump(mover: Mover, x: Tensor, level: int, s: Tensor, c: Tensor | None, steps: int, bar: tqdm) -> Tensor:
    """One respaced step of ``steps`` levels from ``level`` to each sample's ``s``, in large batches."""
    moved = []
    for rows in budget.each(torch.arange(len(x), device=x.device).split(1024)):
        t = torch.full((len(rows),), level, device=x.device)
        answer = mover.teacher(x[rows], t, None if c is None else c[rows])
        moved.append(mover.move(x[rows], t, s[rows], answer, steps))
        bar.update(len(t))
    return torch.cat(moved)
