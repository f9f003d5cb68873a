"""What a teacher is, and whether it denoises at all: asked before a training that takes hours.

The questions have known answers. Let eps be the noise in ``x_t`` and ``e`` the teacher's answer. Near pure
noise eps is nearly ``x_t``. At middle levels the best answer is the mean of eps given ``x_t``, and a mean is
orthogonal to its error: with ``r = |e - eps|^2 / |eps|^2`` and ``b = <e, eps> / |eps|^2``, ``r + b = 1``. And
a network that is told another level than that of ``x_t`` errs more; if it errs less, then its schedule is
another. ``x_0`` are the teacher's own samples, for there are no data.

Measured on six trained teachers in book/models and on what becomes of them (two seeds or more each):

- Near pure noise the trained ones are off by 0.0006 to 0.012, random weights by 1.0 to 1.3.
- ``r`` at alpha_bar = 0.2 is at most 0.10, and 1.0 to 1.4 for random weights.
- ``|r + b - 1|`` is at most 0.05 at the levels looked at, and 0.21 or more under another schedule, but for
  the linear one in the place of the scaled linear, whose 0.12 passes.
- The trained ones err at most 1.4% more than where they are told the better of three levels, 4% of T apart;
  under another schedule 9.5% or more, the linear one in the place of the scaled linear included.

A file of weights alone leaves more to options, and there the same question is asked once more with others,
see :func:`other_options`. With q, k and v in the other order the trained ones are off 1.3 to 72 times as much
near pure noise; at half their size 4.3 to 13 times, at twice their size 0.9 to 3.7 times. The number of heads
cannot be told apart for sure: half, twice or four times as many channels a head change the error by -2% to
26%, and a network with a wrong number denoises what it draws itself as well as a right one. It is noticed
where another number does better by a tenth.

A teacher of few steps whose files look like any other's, as SD-Turbo's, is not noticed either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.pools import STORAGES
from dkdm_lab.sources import Conditions
from dkdm_lab.system.seeds import numbered_noise
from dkdm_lab.teachers.pipelines import Pipeline

_NEAR_NOISE, _BLIND, _SLANTED, _SLACK = 0.1, 0.6, 0.2, 0.05  # see above
_LEVELS = (0.95, 0.9, 0.5, 0.2, 0.1, 0.05)  # alpha_bar, but for the top
_ASIDE = 0.04  # of T, by which a network is told another level
_OF_R_AND_B = slice(1, 4)  # the levels at which r and b are looked at


@dataclasses.dataclass(frozen=True)
class Answers:
    """near_noise: ``|e - x_t|^2 / |x_t|^2`` at the top; r, b: of each of :data:`_LEVELS`; slack: how much
    more it errs than where it is told the better of three levels, as the mean of logarithms; spread: of the
    teacher's samples."""

    near_noise: float
    r: tuple[float, ...]
    b: tuple[float, ...]
    slack: float
    spread: float

    @property
    def problems(self) -> list[str]:
        """What they say against the teacher, a sentence for each; none for a sound one."""
        found = []
        if not all(map(math.isfinite, (self.near_noise, *self.r, *self.b, self.slack, self.spread))):
            return ["it answers with numbers that are not finite"]
        if self.near_noise > _NEAR_NOISE:
            found.append(
                f"near pure noise, where eps is nearly x_t, its eps is off by {self.near_noise:.2f} of it, "
                f"expected less than {_NEAR_NOISE:g}"
            )
        r, b = self.r[_OF_R_AND_B], self.b[_OF_R_AND_B]
        if r[-1] > _BLIND:
            found.append(
                f"at alpha_bar = {_LEVELS[_OF_R_AND_B][-1]:g} it leaves {r[-1]:.2f} of the noise, expected "
                f"less than {_BLIND:g}: one step does not bring x_t nearer to x_0, as with random weights"
            )
        worst = max((r + b - 1 for r, b in zip(r, b, strict=True)), key=abs)
        if not found and abs(worst) > _SLANTED:
            found.append(
                f"it takes the noise for {'less' if worst > 0 else 'more'} than it is (r + b - 1 = "
                f"{worst:+.2f}, expected within {_SLANTED:g} of 0): was it trained with another schedule or "
                "size?"
            )
        if not found and self.slack > _SLACK:
            found.append(
                f"it errs {math.expm1(self.slack):.0%} more than where it is told of a level {_ASIDE:.0%} of "
                f"T away, expected less than {_SLACK:.0%}: was it trained with another schedule?"
            )
        return found


@torch.no_grad()
def answers(
    teacher: Pipeline, conditions: Conditions | None = None, n: int = 16, steps: int = 10, seed: int = 0
) -> Answers:
    """Ask a teacher: ``n * (steps + 20)`` evaluations at most, on the device where it is, as many at once as
    its denoiser may."""
    diffusion, denoiser = teacher.diffusion, teacher.denoiser
    device = next(denoiser.parameters()).device
    given = _some(conditions, n, device)
    steps, aside = min(steps, diffusion.T), max(1, round(_ASIDE * diffusion.T))
    x0 = diffusion.sample(denoiser, n, steps, condition=given, batch_size=n, seed=seed, device=device)
    x0, r, b, slack = x0.to(device), [], [], []
    told_other = [_told(denoiser, by) for by in (-aside, aside)]
    for alpha_bar in _LEVELS:
        level = int(np.argmin(abs(diffusion.alpha_bar - alpha_bar)))
        t = torch.full((n,), level, device=device)
        eps = numbered_noise(seed + 1, level, range(n), denoiser.shape, device)
        x_t = diffusion.q_sample(x0, t, eps)
        found = _ask(denoiser, x_t, t, given)
        r.append(_share(found - eps, eps))
        b.append(_mean(found * eps) / _mean(eps.square()))
        others = [_share(_ask(other, x_t, t, given) - eps, eps) for other in told_other]
        slack.append(math.log(r[-1] / min(r[-1], *others)) if min(r[-1], *others) > 0 else 0.0)
    spread = float(x0.cpu().double().std())
    return Answers(near_noise(teacher, conditions), tuple(r), tuple(b), sum(slack) / len(slack), spread)


@torch.no_grad()
def near_noise(
    teacher: Pipeline,
    conditions: Conditions | None = None,
    n: int = 32,
    seed: int = 0,
    side: int | None = None,
) -> float:
    """``|e - x_t|^2 / |x_t|^2`` of ``n`` samples at the top. side: of a sample, where not its own."""
    denoiser, T = teacher.denoiser, teacher.diffusion.T
    device = next(denoiser.parameters()).device
    shape = denoiser.shape if side is None else (denoiser.shape[0], side, side)
    noise = numbered_noise(seed, T + 1, range(n), shape, device)
    top = torch.full((n,), T - 1, device=device)
    return _share(_ask(denoiser, noise, top, _some(conditions, n, device)) - noise, noise)


def _some(conditions: Conditions | None, n: int, device: torch.device) -> Tensor | None:
    if conditions is None:
        return None
    return conditions[torch.linspace(0, len(conditions) - 1, n).round().long()].to(device)


def _ask(denoiser: Denoiser, x_t: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
    return denoiser(x_t, t, *(() if given is None else (given,)))[0]


def _mean(x: Tensor) -> float:
    return float(x.cpu().double().mean())  # on the CPU: not every device has float64


def _share(x: Tensor, of: Tensor) -> float:
    return _mean(x.square()) / _mean(of.square())


def _told(denoiser: Denoiser, by: int) -> Denoiser:
    """A denoiser whose network is told the level ``by`` higher than that of ``x_t``."""
    times, T = denoiser.terms.times, denoiser.diffusion.T
    times = torch.arange(T) if times is None else times
    terms = dataclasses.replace(denoiser.terms, times=times[(torch.arange(T) + by).clamp(0, T - 1)])
    other = Denoiser(
        denoiser.network, denoiser.diffusion, denoiser.prediction, denoiser.variance, terms
    ).to(next(denoiser.parameters()).device)  # fmt: skip
    other.at_once = denoiser.at_once
    return other


def require(teacher: Pipeline, conditions: Conditions | None = None, name: str | None = None) -> Answers:
    """ValueError for a teacher whose answers make no sense, in a sentence for each. name: what it is called
    there; None: its folder."""
    where = name or teacher.folder or "the teacher"
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


_HEADS_BETTER, _ORDER_BETTER = 1.1, 1.15  # how much less another option must err
_HALF, _TWICE = 2.0, 0.5  # what it errs at another size is more than this many times its own error
_TRAINED = 0.5  # near pure noise, of a network that the other order may set right
_PURE = 1e-3  # the most signal that the top of a process may have for this


def other_options(
    path: str | Path, teacher: Pipeline, conditions: Conditions | None, read: Callable[..., Pipeline],
    head_channels: int, new_attention_order: bool | None,
) -> str | None:  # fmt: skip
    """What a file of weights would answer near pure noise with another option, which weights cannot tell: a
    sentence where that is nearer to the truth, else None.

    read: reads it with other options, as :meth:`Pipeline.from_pretrained`. head_channels,
    new_attention_order: those it was read with; the order is None for a file that has one alone. Nothing is
    asked of random weights, nor where the top of the process is not pure noise, as Stable Diffusion's: there
    x_t is not the answer."""
    if teacher.diffusion.alpha_bar[-1] > _PURE:
        return None
    own = near_noise(teacher, conditions)
    if own > _TRAINED:
        return None
    begin = f"{path}: near pure noise its eps is off by {own:.2g}"

    def with_other(**options: Any) -> float:
        other = read(**options).to(next(teacher.denoiser.parameters()).device)
        other.denoiser.at_once = teacher.denoiser.at_once
        return near_noise(other, conditions)

    if new_attention_order is not None:
        other = with_other(new_attention_order=not new_attention_order)
        if other * _ORDER_BETTER < own:
            return (
                f"{begin}, and by {other:.2g} with q, k and v in the other order; expected "
                f"{'' if new_attention_order else 'no '}--legacy-attention"
            )
    if own > _NEAR_NOISE:  # more than a wrong size or number of heads does
        return None
    side = teacher.denoiser.shape[-1]
    for other_side, most, beyond in ((side // 2, _HALF, "less"), (2 * side, _TWICE, "more")):
        try:
            other = near_noise(teacher, conditions, side=other_side)
        except (RuntimeError, ValueError):  # its levels do not fit so few pixels
            continue
        if other < most * own:
            return (
                f"{begin} at the size {side}, and by {other:.2g} at {other_side}, expected at least "
                f"{most:g} times as much; expected --size {other_side} or {beyond}"
            )
    better = {}
    for channels in (head_channels // 4, head_channels // 2, 2 * head_channels, 4 * head_channels):
        try:
            better[channels] = with_other(head_channels=channels)
        except (ValueError, ZeroDivisionError):  # no number of heads of these networks
            continue
    best = min(better, key=better.__getitem__, default=None)
    if best is not None and better[best] * _HEADS_BETTER < own:
        return f"{begin}, and by {better[best]:.2g} with heads of {best}; expected --head-channels {best}"
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
