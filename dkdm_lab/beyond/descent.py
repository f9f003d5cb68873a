"""The training loop of networks that are not denoisers: VAEs, classifiers, autoencoders. It saves itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dkdm_lab.data.images import Shuffled
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.budget import OutOfTime, Stopped
from dkdm_lab.system.checkpoint import Checkpoint, Checkpoints, give_up, leave
from dkdm_lab.system.files import alone
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import random_states, restore_random_states


def descend(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    iterations: int,
    optimizer: Optimizer,
    *,
    settings: dict,
    schedule: LRScheduler | None = None,
    generator: torch.Generator | None = None,
    batches: Shuffled | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
    description: str = "training",
) -> list[float]:
    """Descend ``loss(step)``, a scalar, for step 0 and on; returns the loss of every step.

    The model is in training mode meanwhile and left in eval mode. generator, batches: what ``loss`` draws
    from beside torch's global generator. checkpoint: a folder of
    :class:`~dkdm_lab.system.checkpoint.Checkpoints`. What lies there is resumed, on a CPU to the last bit; it
    is written every ``checkpoint_every`` iterations and when the training is asked to stop. settings: what
    the training was asked, in plain values; a checkpoint of another is refused.

    Errors, as of :func:`~dkdm_lab.training.train`: FloatingPointError for a loss that is not finite; Stopped
    or OutOfTime where it was asked to stop or its time is over, once all is saved; RuntimeError where another
    process trains in ``checkpoint``.
    """
    state = _State(model, optimizer, schedule, generator, batches)
    hold, snapshots = contextlib.nullcontext(), None
    if checkpoint is not None:
        asked = {
            "model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters"
        }
        snapshots = Checkpoints(checkpoint, {**asked, "iterations": iterations, **settings})
        hold = alone(Path(checkpoint), wait=False)
    model.train()
    with distributed.by_itself(), hold, budget.Requests() as requests:
        start = 0
        if snapshots is not None and (snapshot := snapshots.newest()):
            start = snapshot.iteration
            state.load(snapshot)
        steps = range(start, iterations)
        for step in progress_bar(steps, desc=description, initial=start, total=iterations, show=progress):
            found = loss(step)
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
            state.losses.append(found.detach())
            done = step + 1
            leaving = Stopped if requests.came else OutOfTime if budget.over() else None
            due = done % checkpoint_every == 0 and done < iterations
            if (done % 100 == 0 or due or leaving or done == iterations) and not torch.isfinite(found):
                give_up(f"loss: found {float(found.detach())} at iteration {done}", snapshots)
            if snapshots is not None and (due or leaving):
                snapshots.write(done, *state.dicts())
            if leaving:
                leave(leaving, done, iterations, snapshots)
    model.eval()
    return torch.stack(state.losses).tolist() if state.losses else []


class _State:
    """All that changes in a training, to be saved and gone on with."""

    def __init__(self, model, optimizer, schedule, generator, batches):
        self.model, self.generator, self.batches = model, generator, batches
        self.parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": batches}
        self.parts = {name: part for name, part in self.parts.items() if part is not None}
        self.losses: list[Tensor] = []
        self.device = next(model.parameters()).device

    def dicts(self) -> tuple[dict, dict]:
        """What ranks would share, and what is this process's own."""
        shared = {name: part.state_dict() for name, part in self.parts.items()}
        generator = None if self.generator is None else self.generator.get_state()
        own = {"generator": generator, "random": random_states(self.device)}
        return {**shared, "losses": torch.stack(self.losses)}, own

    def load(self, snapshot: Checkpoint) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(snapshot.shared[name])
        self.losses = list(snapshot.shared["losses"].to(self.device))
        own = snapshot.own(0)
        if self.generator is not None:
            self.generator.set_state(own["generator"])
        restore_random_states(own["random"], self.device)
