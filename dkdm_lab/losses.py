"""The objectives: L_simple, L_vlb, and their sum, which is Eq. 13 and Eq. 19 both.

Whether a step trains on data or distils a teacher is not decided here, but by what the source has put into
the batch: the noise or the teacher's eps, the posterior or the teacher's p.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dkdm_lab.diffusion import Gaussian, GaussianDiffusion

if TYPE_CHECKING:
    from dkdm_lab.sources import Batch


class Losses(NamedTuple):
    """One value per sample, each ``[B]``: ``simple`` is a squared error, ``vlb`` is in bits per dimension."""

    simple: Tensor
    vlb: Tensor
    total: Tensor


def simple_loss(batch: Batch, eps: Tensor) -> Tensor:
    """L_simple, Eq. 11 (data) and Eq. 20 (teacher): the mean squared error of eps; ``[B]``."""
    return (batch.eps - eps).square().flatten(1).mean(1)


def vlb_loss(diffusion: GaussianDiffusion, batch: Batch, eps: Tensor, v: Tensor) -> Tensor:
    """L_vlb, Eq. 9 (data) and Eq. 21 (teacher): KL(target || student), bits per dimension; ``[B]``.

    The student's mean is held fixed (stop-gradient, Sec. 2): only its variance learns here. For batches of
    8-bit images the term at t = 0 is not a KL, but the negative logarithm of the 8-bit values' likelihood.
    ValueError for a batch without a target, which only L_simple can use.
    """
    target = batch.target
    if target is None:
        raise ValueError("batch.target: found None, expected the p that L_vlb compares with")
    student = diffusion.p(batch.x_t, batch.t, eps.detach(), v)
    bits = _bits(target.kl(student))
    if not batch.observed:
        return bits
    return torch.where(batch.t == 0, _bits(decoder_nll(target.mean, student)), bits)


def dkdm_loss(
    diffusion: GaussianDiffusion,
    batch: Batch,
    eps: Tensor,
    v: Tensor | None,
    weight: float = 1.0,
    prediction: str = "epsilon",
) -> Losses:
    """L_hybrid, Eq. 13 (data), and L_DKDM, Eq. 19 (teacher): ``simple + weight * vlb``.

    eps, v: the student's answer to ``batch.x_t``, in its shape. weight: the paper's lambda; 1, with L_vlb in
    bits per dimension and step, is ADM's and the authors'. Where there is no variance output (``v`` is None),
    or no target for it, ``vlb`` is zero and L_simple stands alone (Sec. 4.1). prediction: what the student
    predicts; ``simple`` is the squared error of that, see :meth:`GaussianDiffusion.prediction_weight`.
    """
    simple = simple_loss(batch, eps)
    if prediction != "epsilon":
        simple = simple * diffusion.prediction_weight(prediction, batch.t)
    if v is None or batch.target is None:
        return Losses(simple, torch.zeros_like(simple), simple)
    vlb = vlb_loss(diffusion, batch, eps, v)
    return Losses(simple, vlb, simple + weight * vlb)


def decoder_nll(x0: Tensor, p: Gaussian) -> Tensor:
    """-log p(x_0) in nats, element by element, where x_0 holds 8-bit values scaled to [-1, 1].

    It is the Gaussian's mass within half a grey level of each value; the first and the last level own the
    tails. The normal CDF is ADM's tanh approximation, so that numbers agree with theirs.
    """
    centred = x0 - p.mean
    inverse_std = torch.exp(-0.5 * p.log_variance)
    upper = _normal_cdf(inverse_std * (centred + 1 / 255))
    lower = _normal_cdf(inverse_std * (centred - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    first = torch.log(upper.clamp(min=1e-12))
    last = torch.log((1 - lower).clamp(min=1e-12))
    return -torch.where(x0 < -0.999, first, torch.where(x0 > 0.999, last, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)
