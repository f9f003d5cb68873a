"""Classifier-free guidance: a conditional answer carried away from the unconditional one."""

from __future__ import annotations

import torch
from torch import Tensor

from dkdm_lab.networks.denoiser import Answer, Denoiser


def guide(own: Answer, null: Answer, scale: float) -> Answer:
    """Classifier-free guidance: ``eps(null) + scale * (eps(own) - eps(null))``, and the v of ``own``."""
    return null[0] + scale * (own[0] - null[0]), own[1]


class Guided:
    """A denoiser under guidance, called as the one it wraps, with twice the cost. null: the condition that
    stands for none."""

    def __init__(self, denoiser: Denoiser, scale: float, null: Tensor):
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.shape = denoiser.shape

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        null = self.null.to(condition.device).expand_as(condition)
        eps, v = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition, null]))
        own, null = zip(eps.chunk(2), (None, None) if v is None else v.chunk(2), strict=True)
        return guide(own, null, self.scale)
