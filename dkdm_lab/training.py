"""The one training loop. Data-based, data-free, iterative, shuffled, dynamic: only the source differs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

from dkdm_lab.clock import part
from dkdm_lab.data import whole
from dkdm_lab.diffusion import GaussianDiffusion, progress_bar
from dkdm_lab.losses import dkdm_loss
from dkdm_lab.networks import Denoiser


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
    log_every: int = 10,
    callback: Callable[[int, Denoiser, History], None] | None = None,
    callback_at: tuple[int, ...] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    progress: bool = True,
    description: str = "training",
) -> tuple[Denoiser, History]:
    """Algorithm 2 and Algorithm 1, lines 2-9: descend L_hybrid or L_DKDM over the batches of ``source``.

    source: an endless iterator of ``Batch`` with ``state_dict`` / ``load_state_dict``: ``NoisedImages``
    or a pool. lr: AdamW's, constant, as in Tables 6-8. ema: rate of the averaged weights, warmed up as
    min(ema, (1 + step) / (10 + step)). mixed_precision: accelerate's, 'no', 'bf16' or 'fp16'.
    callback: called as ``callback(iteration, averaged_student, history)`` after each iteration listed in
    ``callback_at``. checkpoint: a file to resume from if it is there, written every
    ``checkpoint_every`` iterations.

    Returns the student with averaged weights, in eval mode, and the history. ``student`` itself is left
    with its last raw weights.
    """
    if getattr(source, "shape", student.shape) != student.shape:
        raise ValueError(f"shapes: the source yields {source.shape}, but the student takes {student.shape}")
    AcceleratorState._reset_state(reset_partial_state=True)  # else a process keeps its first precision
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=_on_cpu(source))
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    student.train()
    model, optimizer = accelerator.prepare(student, optimizer)
    average = EMAModel(student.parameters(), decay=ema, foreach=True)
    average.to(accelerator.device)
    history, start = History(), 0
    sums, counted = torch.zeros(3, device=accelerator.device), 0
    if checkpoint is not None and Path(checkpoint).exists():
        state = _read_checkpoint(checkpoint)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["ema"])
        average.to(accelerator.device)
        source.load_state_dict(state["source"])
        torch.set_rng_state(state["rng"])
        history, start = History(**state["history"]), state["iteration"]
        sums, counted = state["sums"].to(accelerator.device), state["counted"]

    steps = range(start, iterations)
    bar = progress_bar(steps, desc=description, initial=start, total=iterations, show=progress)
    for step in bar:
        with part("source"):
            batch = next(source)
        with part("forward"):
            with accelerator.autocast():
                eps, v = model(batch.x_t, batch.t, batch.condition)
            eps, v = (x if x is None or x.dtype == torch.float64 else x.float() for x in (eps, v))
            losses = dkdm_loss(diffusion, batch, eps, v, vlb_weight, student.prediction)
        with part("backward"):
            accelerator.backward(losses.total.mean())
        with part("update"):
            if gradient_clip is not None:
                accelerator.clip_grad_norm_(student.parameters(), gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            average.step(student.parameters())

        done = step + 1
        sums += torch.stack([losses.total.mean(), losses.simple.mean(), losses.vlb.mean()]).detach()
        counted += 1
        if done % log_every == 0 or done == iterations:  # the only moments that wait for the device
            total, simple, vlb = (sums / counted).tolist()
            if not math.isfinite(total):
                raise FloatingPointError(f"loss: found {total} at iteration {done}, expected a finite number")
            history.iteration.append(done)
            history.loss.append(total)
            history.simple.append(simple)
            history.vlb.append(vlb)
            sums.zero_()
            counted = 0
            bar.set_postfix(loss=f"{total:.4f}")
        if callback is not None and done in callback_at:
            callback(done, _averaged(student, average), history)
            student.train()
        if checkpoint is not None and checkpoint_every and done % checkpoint_every == 0 and done < iterations:
            _write_checkpoint(checkpoint, student, optimizer, average, source, history, done, sums, counted)
    return _averaged(student, average), history


def _on_cpu(source) -> bool:
    return torch.device(getattr(source, "device", "cpu")).type == "cpu"


def _averaged(student: Denoiser, average: EMAModel) -> Denoiser:
    """A copy of the student with the averaged weights, in eval mode."""
    network = type(student.network).from_config(student.network.config)
    copy = Denoiser(network, student.diffusion, student.prediction, student.variance)
    copy = copy.to(next(student.parameters()).device)
    copy.load_state_dict(student.state_dict())  # buffers too
    average.copy_to(copy.parameters())
    return copy.eval()


_CHECKPOINT = {"student", "optimizer", "ema", "source", "rng", "history", "iteration", "sums", "counted"}


def _write_checkpoint(path, student, optimizer, average, source, history, iteration, sums, counted) -> None:
    state = {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": average.state_dict(),
        "source": source.state_dict(),
        "rng": torch.get_rng_state(),  # dropout draws from it
        "history": vars(history),
        "iteration": iteration,
        "sums": sums,
        "counted": counted,
    }
    with whole(Path(path)) as scratch, scratch.open("wb") as file:  # Python's file: its errors name a cause
        torch.save(state, file)


def _read_checkpoint(path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: the checkpoint cannot be read ({error}); delete it to start again"
        ) from error
    if not (isinstance(state, dict) and state.keys() == _CHECKPOINT):
        found = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: found {found}, expected a checkpoint of a training: {sorted(_CHECKPOINT)}")
    return state
