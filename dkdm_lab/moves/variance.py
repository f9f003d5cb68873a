"""With which variance a pool's samples move, where the teacher does not say.

A move from a level ``t`` to ``s`` has the posterior's mean, with the teacher's ``x_0``. The variance that
belongs to it is ``beta_tilde + coef_x0^2 Var[x_0 | x_t]``: the second term is what the teacher cannot know
of ``x_0``. Steps of one may leave it out, as "small" does. Over a stride it is most of the variance, and
samples without it lose their spread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dkdm_lab.diffusion import GaussianDiffusion

# None leaves the choice to the pool. "learned": the teacher's own; over a stride, by what it says of
# Var[x_0 | x_t]. "stretched": the teacher's own; over a stride it lies as far between the logarithms of the
# step's bounds as over one step (Nichol and Dhariwal). "small" and "large": those bounds, Eq. 6 and beta_t.
# "analytic": AnalyticVariance. "ddim": none, the step of Song et al. with eta = 0.
VARIANCES = ("learned", "stretched", "small", "large", "analytic", "ddim")
OF_THE_TEACHER = ("learned", "stretched")  # what only a teacher that learns its variance can give


class AnalyticVariance:
    """``Var[x_0 | x_t]`` per dimension at each level, from a teacher's answers (Bao et al., ICLR 2022).

    For the best denoiser it is ``(1 - E|eps|^2 / D) / SNR`` with ``SNR = alpha_bar / (1 - alpha_bar)``. Near
    the top that is a small difference over a small number, and the chance of a few samples would be all of
    it. So the 1, which is ``E[x_t . eps] / (D sqrt(1 - alpha_bar))``, is taken from the same samples: what
    they have too much or too little in energy then cancels. That leaves the ratio of two means,

        u = E[x_0 . eps] sqrt(SNR) / (E|eps|^2 SNR),        Var[x_0 | x_t] = u / (1 + SNR u),

    where u is the variance that isotropic Gaussian data would have to have: of those at every level the same,
    and of others nearly so at neighbouring levels. So each level's sums take in those around it, with a
    weight that falls off with the distance in log SNR, and few samples say enough even where T is 1000.

    Both sums begin at 1: u is 1 until something has been seen, and remains near it where the SNR is so low
    that there is nothing to see. Where x_0 is clipped, it and the noise that agrees with it are taken, and
    the variance is at most the square of the limit.

    sums: ``[T, 2]``, what was added to the two sums, or None before anything was seen.
    """

    # In log SNR. Levels of the cosine schedule are 0.1 apart at T = 100, and E|x_0 . eps| of natural images
    # changes by a fifth over so much.
    WIDTH = 0.25
    # Below this SNR data hardly show, and all levels count as one.
    LOWEST = 1e-2

    def __init__(self, diffusion: GaussianDiffusion, device: str | torch.device = "cpu"):
        self.diffusion, self.sums = diffusion, None
        log_alpha_bar = diffusion.log_alpha_bar(torch.arange(diffusion.T, device=device))
        self._snr = 1 / torch.expm1(-log_alpha_bar)
        self._place = torch.log(self._snr + self.LOWEST) / self.WIDTH

    def see(self, x_t: Tensor, t: Tensor, eps: Tensor) -> None:
        """Take in a teacher's answer ``eps`` to samples ``x_t`` ``[B, *shape]`` at levels ``t`` ``[B]``."""
        clip = self.diffusion.clip
        x0 = self.diffusion.predict_x0(x_t, t, eps, clip)
        if clip:
            eps = self.diffusion.agreeing_eps(x_t, t, x0)
        snr = self._snr[t]
        signal = (x0 * eps).flatten(1).sum(1, dtype=snr.dtype) * snr.sqrt()
        noise = eps.square().flatten(1).sum(1, dtype=snr.dtype) * snr
        weight = torch.exp(-0.5 * (self._place[:, None] - self._place[t]).square())
        # A product, not an addition at indices: that has no fixed order on a GPU.
        seen = weight @ torch.stack([signal, noise], dim=1)
        self.sums = seen if self.sums is None else self.sums + seen

    def at(self, t: Tensor) -> Tensor:
        """``Var[x_0 | x_t]`` per dimension at levels ``t``, in their shape."""
        if self.sums is None:
            u = torch.ones_like(self._snr[t])
        else:
            signal, noise = (1 + self.sums[t]).unbind(-1)
            u = (signal / noise).clamp(min=0)
        variance = u / (1 + self._snr[t] * u)
        return variance.clamp(max=float(self.diffusion.clip) ** 2) if self.diffusion.clip else variance
