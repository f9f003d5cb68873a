"""Pools turn by turn: what the student is shown, where the samples go, which of them a batch takes again."""

from __future__ import annotations

import ipywidgets
import numpy as np
import torch
from IPython.display import HTML
from torch import Tensor, nn

from dkdm_lab.data.images import to_uint8
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.notebook.explore.look import (
    Control,
    Exploration,
    button,
    captioned,
    fragments_html,
    panels,
)
from dkdm_lab.pools import POOLS, Pool

RHOS = (0.02, 0.05, 0.1, 0.25, 0.4, 1.0)
STRIDES = (1, 2, 5, 10)
TURNS = (0, 1, 2, 3, 5, 10, 20, 50, 100)  # that the twin shows, as far as T goes
BATCH, FOLLOWED = "#D55E00", "#0072B2"


class Turns:
    """A pool that runs alone, and what was seen of it. It never asks the student anything, so what it does
    alone is what it does in training.

    turn: how many it has made. batch: the places ``[B]`` of the samples that the last one moved. overlaps:
    for each turn but the first, the share of its batch that was in the one before. One sample is followed
    from its first turn on: ``followed``, its place in the pool.
    """

    def __init__(self, pool: Pool):
        pool.fill()
        self.pool, self.turn, self.overlaps = pool, 0, []
        self.batch = torch.empty(0, dtype=torch.int64)
        self.followed: int | None = None

    def advance(self) -> None:
        before, last = self.pool.t.clone(), self.batch
        next(self.pool)
        # A turn moves each sample of its batch to another level, and no other sample.
        self.batch = (self.pool.t != before).nonzero()[:, 0].cpu()
        if self.turn:
            self.overlaps.append(float(torch.isin(self.batch, last).sum()) / max(1, len(self.batch)))
        else:
            self.followed = int(self.batch[0])
        self.turn += 1

    def view(self) -> str:
        pool, T = self.pool, self.pool.diffusion.T
        figure, (sheet, levels, overlap) = panels((3.4, 2.7, 2.5))
        x, t = pool.x.float().cpu(), pool.t.cpu()
        (_points if len(pool.shape) == 1 else _images)(sheet, x, t, T, self.batch, self.followed)
        heights, edges = np.histogram(t, bins=min(20, T), range=(0, T))
        of_batch, _ = np.histogram(t[self.batch], bins=edges)
        levels.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color="#bbbbbb", label="pool")
        levels.bar(edges[:-1], of_batch, np.diff(edges) * 0.9, align="edge", color=BATCH, label="batch")
        levels.axhline(len(t) / len(heights), color="black", linestyle="--", linewidth=1, label="uniform")
        levels.set(
            xlabel="t", ylabel="samples", ylim=(0, max(1.25 * heights.max(), 4 * len(t) / len(heights)))
        )
        levels.legend(frameon=False, fontsize=8, loc="upper right")
        overlap.plot(range(2, self.turn + 1), self.overlaps, color=BATCH, marker=".")
        share = pool.batch_size / pool.size
        overlap.axhline(share, color="black", linestyle="--", linewidth=1)
        overlap.set(xlabel="turn", title="of a batch, in the last one", ylim=(-0.04, 1.04))
        overlap.set_xlim(1, max(10, self.turn + 1))
        overlap.title.set_size(9)
        return captioned(figure, self.caption())

    def caption(self) -> str:
        pool = self.pool
        text = f"Turn {self.turn}: {pool.size:,} samples, {pool.evaluations:,} teacher evaluations."
        if self.turn:
            text += (
                f" Orange: the {len(self.batch)} of the last batch, at {len(pool.t[self.batch].unique())} "
                f"levels now. Blue: one sample, at t = {int(pool.t[self.followed])}."
            )
        if self.overlaps:
            text += f" {self.overlaps[-1]:.0%} of the batch were in the one before."
        return text


def watch(pool: Pool, iterations: int, every: int) -> HTML:
    """Let a pool run alone and show it every ``every`` iterations: points or images, the last batch and one
    sample marked, their t, and how much of a batch was in the one before."""
    turns, fragments, labels = Turns(pool), [], []
    for number in range(iterations + 1):
        if number % every == 0:
            fragments.append(turns.view())
            labels.append(f"iteration {number}")
        if number < iterations:
            turns.advance()
    return fragments_html(fragments, {"time": labels})


class PoolPlayer(Exploration):
    """The three pools of Sec. 3.3, played: method, rho and stride; play, pause, a single step, from anew.

    teacher: a denoiser of points in the plane or of images that takes no condition. rho counts for the
    dynamic pool only. Another choice fills a new pool. The twin shows each method with the first rho and
    stride after some turns.
    """

    title = "Pool player: which samples the student is shown"

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: nn.Module,
        batch_size: int,
        *,
        method: str = "dynamic",
        rho: float = 0.25,
        stride: int = 1,
        seed: int = 0,
    ):
        self.diffusion, self.teacher, self.batch_size, self.seed = diffusion, teacher, batch_size, seed
        T = diffusion.T
        rhos = sorted({rho, *(r for r in RHOS if round(r * T) >= 1)})
        strides = sorted({stride, *(s for s in STRIDES if s <= T // 2)})
        super().__init__(
            {
                "method": Control("method", list(POOLS), method),
                "rho": Control("rho", rhos, rho, [rho]),
                "stride": Control("stride", strides, stride, [stride]),
            }
        )
        self._play: ipywidgets.Play | None = None
        self._turns: Turns | None = None

    @property
    def turns(self) -> Turns:
        """The pool that runs, filled when it is first looked at."""
        if self._turns is None:
            method, rho, stride = (self.state[name] for name in ("method", "rho", "stride"))
            own = {"rho": rho} if method == "dynamic" else {}
            options = {"stride": stride, "seed": self.seed, **own}
            self._turns = Turns(POOLS[method](self.diffusion, self.teacher, self.batch_size, **options))
        return self._turns

    def go_to(self, turn: int) -> None:
        """Let the pool run to a turn; one that has passed begins anew."""
        if turn < self.turns.turn:
            self._turns = None
        while self.turns.turn < turn:
            self.turns.advance()
        self.refresh()

    def changed(self, names: set[str]) -> None:
        self._turns = None
        if self._play is not None:
            self._play.value = 0

    def view(self) -> str:
        return self.turns.view()

    def row(self) -> list[ipywidgets.Widget]:
        # The front end is the clock: it counts, and nothing runs in the kernel between two turns.
        self._play = ipywidgets.Play(value=0, min=0, max=100_000, interval=400, description="play")
        self._play.observe(lambda change: self.go_to(change["new"]), "value")

        def step() -> None:
            self._play.value = self.turns.turn + 1

        return [*super().row(), self._play, button("step", step)]

    def twin(self) -> HTML:
        first, fragments = dict(self.state), []
        shown = [turn for turn in TURNS if turn <= self.diffusion.T]
        for method in self.controls["method"].frames:
            self._turns = None
            self.set(method=method)
            for turn in shown:
                self.go_to(turn)
                fragments.append(self.view())
        self._turns = None
        self.set(**first)
        methods = list(self.controls["method"].frames)
        choices = {"method": methods, "turn": [str(turn) for turn in shown]}
        return fragments_html(fragments, choices, [methods.index(first["method"]), 0])


def _points(axis, x: Tensor, t: Tensor, T: int, batch: Tensor, followed: int | None, limit=2.6) -> None:
    order = t.argsort(descending=True)  # nearly clean points on top, where they can be seen
    axis.scatter(*x[order].T, c=t[order], s=5, cmap="viridis", vmin=0, vmax=T - 1, linewidths=0)
    axis.scatter(*x[batch].T, s=14, facecolors="none", edgecolors=BATCH, linewidths=0.7)
    if followed is not None:
        axis.plot(*x[followed], marker="*", color=FOLLOWED, markersize=13, markeredgecolor="white")
    axis.set(
        xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title="light: t = T - 1, dark: t = 0"
    )
    axis.title.set_size(9)


def _images(
    axis, x: Tensor, t: Tensor, T: int, batch: Tensor, followed: int | None, columns=8, rows=6
) -> None:
    """Some samples, each always in its place, so that the eye can follow it; the batch framed."""
    places = torch.linspace(0, len(x) - 1, min(len(x), columns * rows)).long()
    if followed is not None and followed not in places:
        places[0] = followed
    images = to_uint8(x[places]).permute(0, 2, 3, 1).numpy()
    if images.shape[-1] not in (1, 3):
        images = images[..., :1]
    height, width = images.shape[1:3]
    edge = max(1, height // 8)
    sheet = np.full((rows * (height + 2 * edge), columns * (width + 2 * edge), 3), 255, dtype=np.uint8)
    colours = {True: (213, 94, 0), False: (255, 255, 255)}
    for number, (place, image) in enumerate(zip(places.tolist(), images, strict=True)):
        top, left = number // columns * (height + 2 * edge), number % columns * (width + 2 * edge)
        frame = (0, 114, 178) if place == followed else colours[bool((batch == place).any())]
        sheet[top : top + height + 2 * edge, left : left + width + 2 * edge] = frame
        sheet[top + edge : top + edge + height, left + edge : left + edge + width] = image
    axis.imshow(sheet, interpolation="nearest")
    axis.axis("off")
