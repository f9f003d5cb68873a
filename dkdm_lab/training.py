"""The one training loop. Data-based, data-free, iterative, shuffled, dynamic: only the source differs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from diffusers.training_utils import EMAModel

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.losses import Losses, dkdm_loss
from dkdm_lab.networks.denoiser import Denoiser, at_least_float32
from dkdm_lab.sources import Source, check_source
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.budget import OutOfTime, Stopped
from dkdm_lab.system.checkpoint import Checkpoint, Checkpoints, give_up, leave
from dkdm_lab.system.files import alone
from dkdm_lab.system.profile import section
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import random_states, restore_random_states

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


Callback = Callable[[int, Denoiser, History], None]


def check_tracker(name: str | None) -> None:
    """ValueError for a tracker of accelerate's that is not installed here."""
    if name is None:  # looking for all of them would delay every training
        return
    installed = [str(tracker) for tracker in get_available_trackers()]
    if name not in installed:
        raise ValueError(
            f"log_with: found {name}, which is not installed here, expected "
            f"{' or '.join(installed) or 'none'}"
        )


def _long(seconds: float) -> str:
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds:.0f} s"


def train(
    student: Denoiser, source: Source, diffusion: GaussianDiffusion, iterations: int, *,
    lr: float = 1e-4, ema: float = 0.9999, vlb_weight: float = 1.0, weight_decay: float = 0.0,
    gradient_clip: float | None = None, mixed_precision: str = "no", compile: str | None = None,
    accumulate: int = 1, log_every: int = 10, callback: Callback | None = None,
    callback_at: tuple[int, ...] = (), checkpoint: str | Path | None = None, checkpoint_every: int = 0,
    keep: int = 2, log_with: str | None = None, log_dir: str | Path | None = None, progress: bool = True,
    description: str = "training", report: Callable[[str], None] | None = None,
) -> tuple[Denoiser, History]:  # fmt: skip
    """Algorithm 1, lines 2 to 9, and Algorithm 2: descend L_DKDM or L_hybrid over the batches of ``source``.

    lr: of AdamW, constant, as in Tables 6 to 8. ema: the rate of the averaged weights, warmed up as
    min(ema, (1 + step) / (10 + step)). mixed_precision: that of accelerate, 'no', 'bf16' or 'fp16'. compile:
    a mode of `torch.compile` for the student and what the callback is given. accumulate: how many batches of
    the source make one step, whose gradient is their mean. callback: called as
    ``callback(iteration, averaged_student, history)`` after each iteration listed in ``callback_at``.
    log_with: one of accelerate's trackers that is told the losses too, in ``log_dir`` where it keeps files.
    report: is told once, in a line, how long a step takes and when the last will be done.

    checkpoint: a folder of :class:`~dkdm_lab.system.checkpoint.Checkpoints`, of which the last ``keep`` stay.
    What lies there is resumed, on a CPU to the last bit. It is written every ``checkpoint_every`` iterations,
    before each callback, and when the training is asked to stop.

    Under `accelerate launch` each rank calls this with a source of its own, whose batches are its share of
    the whole. Gradients are averaged over ranks; the main rank alone averages weights, calls back, reports.

    Returns the student with averaged weights, in eval mode, and the history; ``student`` itself is left with
    its last raw weights. Errors: TypeError for what is no source, ValueError for one of another shape, or a
    tracker that is not installed.
    :class:`~dkdm_lab.system.budget.Stopped` on SIGINT, SIGTERM or SIGHUP, once all is saved; a second signal
    stops at once. :class:`~dkdm_lab.system.budget.OutOfTime`, saved too, after the step in which a budget
    ends. FloatingPointError for a loss that is not finite, or an L_simple above :data:`LOSS_LIMIT`.
    RuntimeError where another process trains in ``checkpoint``. For a checkpoint that cannot be used see
    :meth:`~dkdm_lab.system.checkpoint.Checkpoints.newest`.
    """
    check_source(source)
    if source.shape != student.shape:
        raise ValueError(f"shapes: the source yields {source.shape}, but the student takes {student.shape}")
    if compile is not None:
        student.compile_network(compile)
    recipe = _Recipe(lr, ema, vlb_weight, weight_decay, gradient_clip, mixed_precision, accumulate)
    training = _Training(student, source, diffusion, recipe, log_with, log_dir)
    snapshots = None if checkpoint is None else Checkpoints(checkpoint, training.settings(), keep)
    hold = contextlib.nullcontext() if checkpoint is None else alone(Path(checkpoint), wait=False)
    loop = _Loop(
        training, iterations, snapshots, checkpoint_every, log_every, callback, callback_at, compile, report
    )
    with distributed.held_by_main(hold):
        try:
            loop.run(progress and distributed.rank() == 0, description)
        finally:
            for tracker in training.accelerator.trackers:  # end_training would end the processes' group too
                tracker.finish()
        return training.averaged(share=True), training.history


@dataclass(frozen=True)
class _Recipe:
    """What decides the weights beside the student, the source and the process: see :func:`train`."""

    lr: float
    ema: float
    vlb_weight: float
    weight_decay: float
    gradient_clip: float | None
    mixed_precision: str
    accumulate: int


class _Training:
    """All that changes while a student trains, and the step that changes it."""

    def __init__(
        self, student: Denoiser, source: Source, diffusion: GaussianDiffusion, recipe: _Recipe,
        log_with: str | None = None, log_dir: str | Path | None = None,
    ):  # fmt: skip
        check_tracker(log_with)
        self.student, self.source, self.diffusion, self.recipe = student, source, diffusion, recipe
        # accelerate caches mixed_precision per process; reset it so that each call can choose.
        AcceleratorState._reset_state(reset_partial_state=distributed.world_size() == 1)
        on_cpu = torch.device(source.device).type == "cpu"
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision, cpu=on_cpu, log_with=log_with, project_dir=log_dir
        )
        if log_with is not None:
            self.accelerator.init_trackers(
                "dkdm", {key: str(value) for key, value in self.settings().items()}
            )
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        student.train()
        self.model, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.ema = None
        if distributed.rank() == 0:
            self.ema = EMAModel(student.parameters(), decay=recipe.ema, foreach=True)
            self.ema.to(self.accelerator.device)
        self.history = History()
        # Kept on the device: the sums of the three losses since the last log, and the first iteration whose
        # loss was not finite.
        self.sums, self.counted = torch.zeros(3, device=self.accelerator.device), 0
        self.bad = torch.tensor(math.inf, device=self.accelerator.device)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must have been begun with, in plain values."""
        recipe = dict(vars(self.recipe))
        if recipe["accumulate"] == 1:  # as in checkpoints of before there was more than one
            del recipe["accumulate"]
        return {
            **recipe,
            "T": self.diffusion.T,
            "student": f"{self.student.parameter_count:,} parameters, {self.student.prediction}",
            "source": type(self.source).__name__,
            "batch_size": self.source.batch_size * distributed.world_size(),
        }

    def step(self, number: int) -> None:
        """One gradient step: Algorithm 1, lines 4 to 8, or Algorithm 2, lines 2 to 6. number: from 1."""
        parts = self.recipe.accumulate
        for part in range(parts):
            last = part == parts - 1  # ranks average their gradients once
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                self._note(number, self._descend(parts))
        with section("update"):
            if self.recipe.gradient_clip is not None:
                self.accelerator.clip_grad_norm_(self.student.parameters(), self.recipe.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.step(self.student.parameters())

    def _descend(self, parts: int) -> Losses:
        """Add the gradient of the next batch, one of ``parts`` that make a step."""
        with section("source"), self.accelerator.autocast():  # a pool's teacher computes as the student does
            batch = next(self.source)
        with section("forward"):
            with self.accelerator.autocast():
                answer = self.model(batch.x_t, batch.t, batch.condition)
            eps, v = at_least_float32(answer)
            weight, prediction = self.recipe.vlb_weight, self.student.prediction
            losses = dkdm_loss(self.diffusion, batch, eps, v, weight, prediction)
        with section("backward"):
            self.accelerator.backward(losses.total.mean() / parts)
        return losses

    def _note(self, number: int, losses: Losses) -> None:
        """Add an iteration's losses to the sums, without waiting for the device."""
        total = losses.total.mean()
        self.sums += torch.stack([total, losses.simple.mean(), losses.vlb.mean()]).detach()
        self.counted += 1
        self.bad = torch.where(torch.isfinite(total), self.bad, self.bad.clamp(max=number))

    def averaged(self, share: bool = False) -> Denoiser:
        """A copy of the student with the averaged weights, in eval mode. share: on every rank."""
        network: Any = self.student.network  # diffusers': it is made anew from its configuration
        copy = self.student.around(type(network).from_config(network.config)).to(self.accelerator.device)
        copy.load_state_dict(self.student.state_dict())  # buffers too
        if self.ema is not None:
            self.ema.copy_to(copy.parameters())
        if share and distributed.world_size() > 1:
            for parameter in copy.parameters():
                torch.distributed.broadcast(parameter.data, 0)
        return copy.eval()

    def means(self) -> list[float]:
        """The three losses since the last log, over iterations and ranks."""
        count = max(1, self.counted) * distributed.world_size()
        means: list[float] = (distributed.reduce(self.sums, "SUM") / count).tolist()
        return means

    def problem(self, means: list[float]) -> str | None:
        """What is wrong with the losses so far, on any rank; None where nothing is."""
        first = float(distributed.reduce(self.bad, "MIN"))
        if math.isfinite(first):
            return f"loss: found a value that is not finite at iteration {first:.0f}"
        _, simple, _ = means
        if simple > LOSS_LIMIT:
            return f"L_simple: found {simple:.3g}, expected less than {LOSS_LIMIT:g}"
        return None

    def log(self, number: int) -> str | None:
        """Put the means since the last log into the history; or else say what is wrong with them."""
        means = self.means()
        if problem := self.problem(means):
            return problem
        self.history.iteration.append(number)
        of_losses = (self.history.loss, self.history.simple, self.history.vlb)
        for values, mean in zip(of_losses, means, strict=True):
            values.append(mean)
        self.accelerator.log(dict(zip(("loss", "simple", "vlb"), means, strict=True)), step=number)
        self.sums.zero_()
        self.counted = 0
        return None

    def dicts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state that all ranks share, and this rank's own."""
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
            "random": random_states(self.accelerator.device),
            "sums": self.sums,
            "counted": self.counted,
        }
        return shared, own

    def load(self, snapshot: Checkpoint) -> None:
        """Go on exactly where a snapshot was taken. With another number of ranks the sources' samples are
        dealt out anew, and the random numbers are others."""
        rank, world_size = distributed.rank(), distributed.world_size()
        self.student.load_state_dict(snapshot.shared["student"])
        self.optimizer.load_state_dict(snapshot.shared["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(snapshot.shared["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(snapshot.shared["scaler"])
        self.history = History(**snapshot.shared["history"])
        if snapshot.ranks != world_size:
            states = [snapshot.own(r)["source"] for r in range(snapshot.ranks)]
            self.source.load_shards(states, rank, world_size)
            return
        own = snapshot.own(rank)
        self.source.load_state_dict(own["source"])
        restore_random_states(own["random"], self.accelerator.device)
        self.sums, self.counted = own["sums"].to(self.accelerator.device), own["counted"]


@dataclass
class _Loop:
    """When a training takes its steps, reports, is saved, calls back and leaves."""

    training: _Training
    iterations: int
    snapshots: Checkpoints | None
    checkpoint_every: int
    log_every: int
    callback: Callback | None
    callback_at: tuple[int, ...]
    compile: str | None
    report: Callable[[str], None] | None = None
    _logged: tuple[int, float] | None = None  # the first time: after which iteration, and when

    def run(self, show: bool, description: str) -> None:
        """All steps from the newest snapshot on. show: whether there is a progress bar."""
        with distributed.together(), budget.Requests() as self.requests:
            start = self._resume()
            steps, total = range(start, self.iterations), self.iterations
            bar = progress_bar(steps, desc=description, initial=start, total=total, show=show)
            for step in bar:
                done = step + 1
                self.training.step(done)
                logging = done % self.log_every == 0 or done == self.iterations
                if logging:  # the only moments that wait for the device
                    self._refuse(self.training.log(done))
                    bar.set_postfix(loss=f"{self.training.history.loss[-1]:.4f}")
                    self._tell_speed(done)
                # Ranks must agree before one of them leaves; the first step comes after a pool's warm-up.
                asking = logging or distributed.world_size() == 1 or step == start
                self._between_steps(done, self._asked_to_leave() if asking else None)

    def _tell_speed(self, done: int) -> None:
        """Once: what a step takes between the first two moments that wait for the device, for what comes
        before, a pool's warm-up and a compiler, does not come again."""
        if self.report is None or done == self.iterations:
            return
        if self._logged is None:
            self._logged = done, time.monotonic()
            return
        first, then = self._logged
        seconds = (time.monotonic() - then) / (done - first)
        left = seconds * (self.iterations - done)
        end = time.strftime("%H:%M", time.localtime(time.time() + left))
        self.report(
            f"a step takes {seconds:.2g} s; the other {self.iterations - done:,} about {_long(left)}, until "
            f"{end}"
        )
        self.report = None

    def _resume(self) -> int:
        """Load the newest snapshot, if there is one; returns its iteration."""
        snapshot = None if self.snapshots is None else self.snapshots.newest()
        if snapshot is None:
            return 0
        self.training.load(snapshot)
        if self.callback is not None and snapshot.iteration in self.callback_at:
            self._call(self.callback, snapshot.iteration)  # perhaps it was stopped in this very call
        return snapshot.iteration

    def _between_steps(self, done: int, leaving: type[Stopped] | None) -> None:
        """Save, leave or call back after ``done`` iterations, where it is time for that."""
        calling = self.callback if done in self.callback_at else None
        due = bool(self.checkpoint_every) and done % self.checkpoint_every == 0 and done < self.iterations
        if self.snapshots is not None and (due or calling or leaving):
            self._refuse(self.training.problem(self.training.means()))
            self.snapshots.write(done, *self.training.dicts())
        if leaving:
            leave(leaving, done, self.iterations, self.snapshots)
        if calling:
            self._call(calling, done)

    def _asked_to_leave(self) -> type[Stopped] | None:
        """Why all ranks leave, where one of them has been asked to or has no time left."""
        why = 2 if self.requests.came else int(budget.over())
        if distributed.world_size() > 1:  # a single rank need not wait for the device
            found = torch.tensor(float(why), device=self.training.accelerator.device)
            why = int(distributed.reduce(found, "MAX"))
        return (None, OutOfTime, Stopped)[why]

    def _refuse(self, problem: str | None) -> None:
        if problem:
            give_up(problem, self.snapshots)

    def _call(self, callback: Callback, done: int) -> None:
        def work() -> None:
            with self.requests.at_once():  # a score can be made again
                averaged = self.training.averaged()
                if self.compile is not None:
                    averaged.compile_network(self.compile)
                callback(done, averaged, self.training.history)
            self.training.student.train()

        distributed.done_by_main(work)
