"""The one training loop. Data-based, data-free, iterative, shuffled, dynamic: only the source differs.

:func:`descend` is for what is no denoiser: VAEs and classifiers.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import nn

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.losses import dkdm_loss
from dkdm_lab.networks.denoiser import Denoiser, at_least_float32
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.budget import OutOfTime, Stopped
from dkdm_lab.system.checkpoint import Checkpoint, Checkpoints
from dkdm_lab.system.files import alone
from dkdm_lab.system.profile import section
from dkdm_lab.system.progress import progress_bar

# L_simple begins near 1, whatever the data. A mean above this has flown off and does not come back. (L_vlb
# may begin anywhere: an untrained network's variance can be off by any factor.)
LOSS_LIMIT = 1e6


@dataclass
class History:
    """What a training leaves behind: means over each logging interval, at the iteration that ends it."""

    iteration: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    simple: list[float] = field(default_factory=list)
    vlb: list[float] = field(default_factory=list)  # bits per dimension


def train(
    student: Denoiser,
    source,
    diffusion: GaussianDiffusion,
    iterations: int,
    *,
    lr: float = 1e-4,
    ema: float = 0.9999,
    vlb_weight: float = 1.0,
    weight_decay: float = 0.0,
    gradient_clip: float | None = None,
    mixed_precision: str = "no",
    compile: str | None = None,
    log_every: int = 10,
    callback: Callable[[int, Denoiser, History], None] | None = None,
    callback_at: tuple[int, ...] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    keep: int = 2,
    progress: bool = True,
    description: str = "training",
) -> tuple[Denoiser, History]:
    """Algorithm 2 and Algorithm 1, lines 2-9: descend L_hybrid or L_DKDM over the batches of ``source``.

    source: an endless iterator of ``Batch`` with ``state_dict`` / ``load_state_dict``: ``NoisedImages``
    or a pool. lr: AdamW's, constant, as in Tables 6-8. ema: rate of the averaged weights, warmed up as
    min(ema, (1 + step) / (10 + step)). mixed_precision: accelerate's, 'no', 'bf16' or 'fp16'. compile: a mode
    of `torch.compile` for the student, a pool's teacher and what the callback is given.
    callback: called as ``callback(iteration, averaged_student, history)`` after each iteration listed in
    ``callback_at``. checkpoint: a folder of :class:`~dkdm_lab.system.checkpoint.Checkpoints`, of which the
    last ``keep`` stay. What lies there is resumed, on a CPU to the last bit; it is written every
    ``checkpoint_every`` iterations, before each callback, and when the training is asked to stop.

    Under `accelerate launch` each rank calls this with a source of its own, whose batches are its share of
    the whole; gradients are averaged over ranks, and the main rank alone averages weights, calls back and
    reports.

    Returns the student with averaged weights, in eval mode, and the history. ``student`` itself is left
    with its last raw weights. Errors: :class:`~dkdm_lab.system.budget.Stopped` on SIGINT or SIGTERM, once
    all is saved; a second one stops at once. :class:`~dkdm_lab.system.budget.OutOfTime`, saved too, after
    the step in which a :func:`~dkdm_lab.system.budget.budget` ends. FloatingPointError for a loss that is
    not finite, or L_simple above :data:`LOSS_LIMIT`. RuntimeError where another process trains in
    ``checkpoint``; for a checkpoint that cannot be used see
    :meth:`~dkdm_lab.system.checkpoint.Checkpoints.newest`.
    """
    if getattr(source, "shape", student.shape) != student.shape:
        raise ValueError(f"shapes: the source yields {source.shape}, but the student takes {student.shape}")
    # accelerate caches mixed_precision per process; reset it so that each call can choose.
    AcceleratorState._reset_state(reset_partial_state=distributed.world_size() == 1)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=_on_cpu(source))
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    student.train()
    for network in (student, getattr(source, "teacher", None)):
        if compile is not None and isinstance(network, Denoiser):  # an exact teacher is none
            network.compile_network(compile)
    model, optimizer = accelerator.prepare(student, optimizer)
    state = _State(student, optimizer, source, accelerator, ema)
    snapshots = None
    if checkpoint is not None:
        asked = {
            "lr": lr,
            "ema": ema,
            "vlb_weight": vlb_weight,
            "weight_decay": weight_decay,
            "gradient_clip": gradient_clip,
            "mixed_precision": mixed_precision,
            "T": diffusion.T,
            "student": f"{student.parameter_count:,} parameters, {student.prediction}",
            "source": type(source).__name__,
            "batch_size": getattr(source, "batch_size", 0) * distributed.world_size(),
        }
        snapshots = Checkpoints(checkpoint, asked, keep)

    def refuse(problem: str | None) -> None:
        if problem:
            last = None if snapshots is None else snapshots.last()
            where = "nothing was saved" if last is None else f"the last good checkpoint is {last}"
            raise FloatingPointError(f"{problem}; {where}")

    def save(done: int) -> None:
        refuse(state.problem(state.means()))
        snapshots.write(done, *state.dicts())

    def call(done: int) -> None:
        def work() -> None:
            with requests.at_once():  # a score can be made again
                averaged = state.averaged()
                if compile is not None:
                    averaged.compile_network(compile)
                callback(done, averaged, state.history)
            student.train()

        distributed.done_by_main(work)

    hold = contextlib.nullcontext() if checkpoint is None else alone(Path(checkpoint), wait=False)
    with distributed.held_by_main(hold), _Requests() as requests:
        start = 0
        if snapshots is not None and (snapshot := snapshots.newest()):
            start = snapshot.iteration
            state.load(snapshot)
            if callback is not None and start in callback_at:  # perhaps it was stopped there
                call(start)
        steps = range(start, iterations)
        show = progress and distributed.rank() == 0
        bar = progress_bar(steps, desc=description, initial=start, total=iterations, show=show)
        for step in bar:
            with section("source"), accelerator.autocast():  # a pool's teacher computes as the student does
                batch = next(source)
            with section("forward"):
                with accelerator.autocast():
                    answer = model(batch.x_t, batch.t, batch.condition)
                eps, v = at_least_float32(answer)
                losses = dkdm_loss(diffusion, batch, eps, v, vlb_weight, student.prediction)
            with section("backward"):
                accelerator.backward(losses.total.mean())
            with section("update"):
                if gradient_clip is not None:
                    accelerator.clip_grad_norm_(student.parameters(), gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
                state.average()

            done = step + 1
            state.note(done, losses)
            logging = done % log_every == 0 or done == iterations
            if logging:  # the only moments that wait for the device
                refuse(state.log(done))
                bar.set_postfix(loss=f"{state.history.loss[-1]:.4f}")
            calling = callback is not None and done in callback_at
            due = bool(checkpoint_every) and done % checkpoint_every == 0 and done < iterations
            # Ranks must agree before one of them leaves; the first step comes after a pool's warm-up.
            asking = logging or distributed.world_size() == 1 or step == start
            leaving = state.agreed(requests.came, budget.over()) if asking else None
            if snapshots is not None and (due or calling or leaving):
                save(done)
            if leaving:
                where = "nothing was saved"
                if snapshots is not None:
                    where = f"saved in {snapshots.folder}, the same call goes on from there"
                why = f"{budget.used_up()}: " if leaving is OutOfTime else ""
                raise leaving(f"{why}stopped at iteration {done:,} of {iterations:,}; {where}")
            if calling:
                call(done)
        return state.averaged(share=True), state.history


def descend(
    model: nn.Module,
    loss: Callable[[int], torch.Tensor],
    iterations: int,
    *,
    lr: float,
    weight_decay: float = 0.0,
    progress: bool = True,
    description: str = "training",
) -> list[float]:
    """A plain training, of what is no denoiser: Adam on ``loss(step)``, a scalar, for step 0 and on.

    The model is in training mode meanwhile and left in eval mode. weight_decay: Adam's own, added to the
    gradient. Returns the loss of every step. FloatingPointError for one that is not finite.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    model.train()
    losses: list[torch.Tensor] = []
    for step in progress_bar(range(iterations), desc=description, show=progress):
        found = loss(step)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.detach())
        looking = step % 100 == 99 or step == iterations - 1  # which waits for the device
        if looking and not torch.isfinite(losses[-1]):
            raise FloatingPointError(f"loss: found {float(losses[-1])} at iteration {step + 1}")
    model.eval()
    return torch.stack(losses).tolist() if losses else []


def _on_cpu(source) -> bool:
    return torch.device(getattr(source, "device", "cpu")).type == "cpu"


class _Requests:
    """The signals that ask a training to stop. The first is noted and answered after the step; a second one,
    and one that comes within :meth:`at_once`, interrupts."""

    def __init__(self):
        self.came, self._at_once, self._before = False, False, {}

    def __enter__(self) -> _Requests:
        if threading.current_thread() is threading.main_thread():  # Python hears signals nowhere else
            self._before = {n: signal.signal(n, self._hear) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame) -> None:
        if self.came or self._at_once:
            raise Stopped(f"stopped by {signal.Signals(number).name}")
        self.came = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


class _State:
    """All that changes while a student trains, to be saved and gone on with."""

    def __init__(self, student: Denoiser, optimizer, source, accelerator: Accelerator, ema: float):
        self.student, self.optimizer, self.source, self.accelerator = student, optimizer, source, accelerator
        self.ema = None
        if distributed.rank() == 0:
            self.ema = EMAModel(student.parameters(), decay=ema, foreach=True)
            self.ema.to(accelerator.device)
        self.history = History()
        # Kept on the device: sums of the three losses since the last log, and the first iteration whose loss
        # was not finite.
        self.sums, self.counted = torch.zeros(3, device=accelerator.device), 0
        self.bad = torch.tensor(math.inf, device=accelerator.device)

    def average(self) -> None:
        if self.ema is not None:
            self.ema.step(self.student.parameters())

    def averaged(self, share: bool = False) -> Denoiser:
        """A copy of the student with the averaged weights, in eval mode; ``share``: on every rank."""
        network = type(self.student.network).from_config(self.student.network.config)
        copy = self.student.around(network).to(self.accelerator.device)
        copy.load_state_dict(self.student.state_dict())  # buffers too
        if self.ema is not None:
            self.ema.copy_to(copy.parameters())
        if share and distributed.world_size() > 1:
            for parameter in copy.parameters():
                torch.distributed.broadcast(parameter.data, 0)
        return copy.eval()

    def agreed(self, asked: bool, over: bool) -> type[Stopped] | None:
        """Why all ranks leave, if some rank has been asked to or its time is over."""
        why = 2 if asked else int(over)
        if distributed.world_size() > 1:  # a single one need not wait for the device
            why = int(distributed.reduce(torch.tensor(float(why), device=self.accelerator.device), "MAX"))
        return (None, OutOfTime, Stopped)[why]

    def note(self, done: int, losses) -> None:
        """Take an iteration's losses along, without waiting for the device."""
        total = losses.total.mean()
        self.sums += torch.stack([total, losses.simple.mean(), losses.vlb.mean()]).detach()
        self.counted += 1
        self.bad = torch.where(torch.isfinite(total), self.bad, self.bad.clamp(max=done))

    def means(self) -> list[float]:
        """The three losses since the last log, over iterations and ranks."""
        return (
            distributed.reduce(self.sums, "SUM") / (max(1, self.counted) * distributed.world_size())
        ).tolist()

    def problem(self, means: list[float]) -> str | None:
        """What is wrong with the losses so far, if anything, of any rank."""
        first = float(distributed.reduce(self.bad, "MIN"))
        if math.isfinite(first):
            return f"loss: found a value that is not finite at iteration {first:.0f}"
        _, simple, _ = means
        if simple > LOSS_LIMIT:
            return f"L_simple: found {simple:.3g}, expected less than {LOSS_LIMIT:g}"
        return None

    def log(self, done: int) -> str | None:
        """Put the means since the last log into the history; or else say what is wrong with them."""
        means = self.means()
        if problem := self.problem(means):
            return problem
        self.history.iteration.append(done)
        of_losses = (self.history.loss, self.history.simple, self.history.vlb)
        for values, mean in zip(of_losses, means, strict=True):
            values.append(mean)
        self.sums.zero_()
        self.counted = 0
        return None

    def dicts(self) -> tuple[dict, dict]:
        """What all ranks share, and what is this one's own."""
        scaler = self.accelerator.scaler
        shared = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "history": vars(self.history),
        }
        own = {
            "source": self.source.state_dict(),
            "random": _random_states(self.accelerator.device),
            "sums": self.sums,
            "counted": self.counted,
        }
        return shared, own

    def load(self, snapshot: Checkpoint) -> None:
        """Go on exactly where a snapshot was taken; with another number of ranks the sources' samples are
        dealt out anew and the random numbers are others."""
        rank, number = distributed.rank(), distributed.world_size()
        self.student.load_state_dict(snapshot.shared["student"])
        self.optimizer.load_state_dict(snapshot.shared["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(snapshot.shared["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(snapshot.shared["scaler"])
        self.history = History(**snapshot.shared["history"])
        if snapshot.ranks != number:
            states = [snapshot.own(r)["source"] for r in range(snapshot.ranks)]
            self.source.load_shards(states, rank, number)
            return
        own = snapshot.own(rank)
        self.source.load_state_dict(own["source"])
        _set_random_states(own["random"], self.accelerator.device)
        self.sums, self.counted = own["sums"].to(self.accelerator.device), own["counted"]


def _random_states(device: torch.device) -> dict:
    """Every generator that a network's dropout or a source may draw from."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(), "numpy": numpy}


def _set_random_states(states: dict, device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(states["python"])
    numpy = states["numpy"]
    np.random.set_state(  # noqa: NPY002
        {**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}}
    )
