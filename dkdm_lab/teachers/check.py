"""What a teacher is, and whether it denoises at all: asked before a training that takes hours.

The questions have known answers. Let eps be the noise in ``x_t`` and ``e`` the teacher's answer. Near pure
noise eps is nearly ``x_t``. At middle levels the best answer is the mean of eps given ``x_t``, and a mean is
orthogonal to its error: with ``r = |e - eps|^2 / |eps|^2`` and ``b = <e, eps> / |eps|^2``, ``r + b = 1``. A
network that was trained with another schedule takes the noise for more or for less than it is, and the sum is
another. ``x_0`` are the teacher's own samples, for there are no data.

Measured on four teachers in book/models and on what becomes of them (8 samples, three seeds): near pure noise
the trained ones are off by 0.0005 to 0.0031, random weights by 1.0 to 1.3; ``r + b - 1`` is within 0.052 of 0
for the trained ones, and beyond 0.39 somewhere under another schedule, but for the linear one in the place of
the scaled linear, whose 0.10 passes; ``r`` at alpha_bar = 0.2 is at most 0.08, and 1.0 to 1.4 for random
weights. What weights cannot show is not noticed: another number of heads or another size left all of these as
they were.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.pools import STORAGES
from dkdm_lab.sources import Conditions
from dkdm_lab.system.seeds import numbered_noise
from dkdm_lab.teachers.pipelines import Pipeline

_NEAR_NOISE, _BLIND, _SLANTED = 0.1, 0.6, 0.2  # see above
_LEVELS = (0.9, 0.5, 0.2)  # alpha_bar, but for the top


@dataclasses.dataclass(frozen=True)
class Answers:
    """near_noise: ``|e - x_t|^2 / |x_t|^2`` at the top; r, b: of each of :data:`_LEVELS`; spread: of the
    teacher's samples."""

    near_noise: float
    r: tuple[float, ...]
    b: tuple[float, ...]
    spread: float

    @property
    def problems(self) -> list[str]:
        """What they say against the teacher, a sentence for each; none for a sound one."""
        found = []
        if not all(map(math.isfinite, (self.near_noise, *self.r, *self.b, self.spread))):
            return ["it answers with numbers that are not finite"]
        if self.near_noise > _NEAR_NOISE:
            found.append(
                f"near pure noise, where eps is nearly x_t, its eps is off by {self.near_noise:.2f} of it, "
                f"expected less than {_NEAR_NOISE:g}"
            )
        if self.r[-1] > _BLIND:
            found.append(
                f"at alpha_bar = {_LEVELS[-1]:g} it leaves {self.r[-1]:.2f} of the noise, expected less than "
                f"{_BLIND:g}: one step does not bring x_t nearer to x_0, as with random weights"
            )
        worst = max((r + b - 1 for r, b in zip(self.r, self.b, strict=True)), key=abs)
        if not found and abs(worst) > _SLANTED:
            found.append(
                f"it takes the noise for {'less' if worst > 0 else 'more'} than it is (r + b - 1 = "
                f"{worst:+.2f}, expected within {_SLANTED:g} of 0): was it trained with another schedule or "
                "size?"
            )
        return found


@torch.no_grad()
def answers(
    teacher: Pipeline, conditions: Conditions | None = None, n: int = 8, steps: int = 10, seed: int = 0
) -> Answers:
    """Ask a teacher: ``n * (steps + 4)`` evaluations, on the device where it is."""
    diffusion, denoiser = teacher.diffusion, teacher.denoiser
    device = next(denoiser.parameters()).device
    given = None
    if conditions is not None:
        given = conditions[torch.linspace(0, len(conditions) - 1, n).round().long()].to(device)
    top = torch.full((n,), diffusion.T - 1, device=device)
    noise = numbered_noise(seed, diffusion.T + 1, range(n), denoiser.shape, device)

    def ask(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, t, *(() if given is None else (given,)))[0]

    def mean(x: Tensor) -> float:  # on the CPU, for not every device has float64
        return float(x.cpu().double().mean())

    def share(x: Tensor, of: Tensor) -> float:
        return mean(x.square()) / mean(of.square())

    near_noise = share(ask(noise, top) - noise, noise)
    steps = min(steps, diffusion.T)
    x0 = diffusion.sample(denoiser, n, steps, condition=given, batch_size=n, seed=seed, device=device)
    x0, r, b = x0.to(device), [], []
    for alpha_bar in _LEVELS:
        t = torch.full_like(top, int(np.argmin(abs(diffusion.alpha_bar - alpha_bar))))
        eps = numbered_noise(seed + 1, int(t[0]), range(n), denoiser.shape, device)
        found = ask(diffusion.q_sample(x0, t, eps), t)
        r.append(share(found - eps, eps))
        b.append(mean(found * eps) / mean(eps.square()))
    return Answers(near_noise, tuple(r), tuple(b), float(x0.cpu().double().std()))


def require(teacher: Pipeline, conditions: Conditions | None = None) -> Answers:
    """ValueError for a teacher whose answers make no sense, in a sentence for each."""
    where = teacher.folder or "the teacher"
    try:
        found = answers(teacher, conditions)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError) as error:  # torch's, of a network
        shape = " x ".join(map(str, teacher.denoiser.shape))
        raise ValueError(
            f"{where}: its network cannot be asked about samples of {shape} ({error})"
        ) from error
    if problems := found.problems:
        raise ValueError(f"{where}: {'; '.join(problems)} (--force distils it all the same)")
    return found


def other_order(
    path: str | Path, own: Answers, read: Callable[[bool], Pipeline], new_order: bool
) -> str | None:
    """What the other order of q, k and v says of an ADM file: a sentence where that is nearer to the truth by
    a third at least, for the weights themselves cannot tell. read: reads it with the new order, or not."""
    other = answers(read(not new_order), n=8, steps=1).near_noise
    if other * 1.5 < own.near_noise:
        return (
            f"{path}: near pure noise its eps is off by {own.near_noise:.2g}, and by {other:.2g} with q, k "
            f"and v in the other order; expected {'' if new_order else 'no '}--legacy-attention"
        )
    return None


# -- what will be done --------------------------------------------------------------------------------


def describe(
    teacher: Pipeline,
    student: Denoiser | None = None,
    conditions: Conditions | None = None,
    batch_size: int = 128,
    rho: float = 0.04,
    storage: str = "float32",
) -> list[str]:
    """What a teacher was recognised as, and what a distillation of it would take, a line for each."""
    denoiser, diffusion = teacher.denoiser, teacher.diffusion
    network, shape = denoiser.network, " x ".join(map(str, denoiser.shape))
    clean, noisy = diffusion.alpha_bar[0], diffusion.alpha_bar[-1]
    lines = [
        f"network: {type(network).__name__}, {denoiser.parameter_count:,} parameters, samples of {shape}",
        f"predicts: {denoiser.prediction}{', and a variance' if denoiser.learns_variance else ''}",
        f"process: {diffusion.schedule}, T = {diffusion.T:,}, alpha_bar from {clean:.4g} to {noisy:.2g}"
        + (f", x_0 clipped to {float(diffusion.clip):g}" if diffusion.clip else ""),
        f"conditions: {_conditions(denoiser, conditions)}",
    ]
    if teacher.vae is not None:
        lines.append(f"decoder: {type(teacher.vae).__name__}")
    if student is not None:
        own = student.parameter_count
        lines.append(
            f"student: {type(student.network).__name__}, {own:,} parameters "
            f"({own / denoiser.parameter_count:.0%}){_widths(student)}"
        )
    size = max(1, round(rho * diffusion.T)) * batch_size
    megabytes = size * math.prod(denoiser.shape) * STORAGES[storage].itemsize / 1e6
    lines.append(
        f"pool: {size:,} samples, {megabytes:,.1f} MB, at batch size {batch_size}; "
        f"about {size:,} evaluations of the teacher fill it"
    )
    return lines


def _conditions(denoiser: Denoiser, conditions: Conditions | None) -> str:
    if denoiser.condition is None:
        return "none"
    if denoiser.condition == "class":
        count = denoiser.network.config.get("num_class_embeds") or denoiser.network.config.num_embeds_ada_norm
        null = "" if conditions is None or conditions.null is None else f", {int(conditions.null)} for none"
        return f"{count:,} labels{null}"
    prompts = "" if conditions is None else f"{len(conditions):,} prompts, "
    return f"{prompts}as {', '.join(denoiser.family.text)}"


def _widths(student: Denoiser) -> str:
    config = student.network.config
    for name in ("block_out_channels", "num_attention_heads", "hidden_size", "width"):
        if config.get(name):
            value = config[name]
            return f", {name} {list(value) if isinstance(value, (list, tuple)) else value}"
    return ""
