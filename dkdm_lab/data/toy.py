"""Data whose every moment is known, and their exact teachers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dkdm_lab.diffusion import GaussianDiffusion, widest


@dataclass(frozen=True)
class GaussianMixture:
    """Equal isotropic Gaussians, ``means`` ``[K, D]`` and one ``std``: a distribution whose optimal
    denoiser is known in closed form, so that a teacher needs no training and has no error."""

    means: Tensor
    std: float

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, std: float = 0.08) -> GaussianMixture:
        """``modes`` Gaussians evenly on a circle in the plane."""
        angles = torch.arange(modes) * (2 * math.pi / modes)
        return cls(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact samples, ``[n, D]`` float32."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.means), (n,), generator=generator)
        return self.means[which] + self.std * torch.randn(n, self.means.shape[1], generator=generator)

    def denoiser(self, diffusion: GaussianDiffusion, learned: bool = True) -> MixtureDenoiser:
        """The exact teacher for this distribution. learned: whether it answers with a variance too."""
        return MixtureDenoiser(self, diffusion, learned)


@dataclass(frozen=True)
class LowRankGaussian:
    """``N(mean, std^2 I + sum_k w_k w_k^T)``: data whose every moment is known at every level.

    mean: of any shape, which is that of a sample. directions: the ``w_k``, ``[K, *shape]`` and at most as
    many as a sample has numbers; without any the Gaussian is isotropic.
    """

    mean: Tensor
    std: float
    directions: Tensor | None = None

    @property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """``U`` ``[D, K]``, orthonormal, and the covariance's eigenvalues along its columns ``[K]``, float64;
        across them it is ``std^2``."""
        D = self.mean.numel()
        if self.directions is None:
            return torch.zeros(D, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        U, scale, _ = torch.linalg.svd(self.directions.double().reshape(-1, D).T, full_matrices=False)
        return U, scale.square() + self.std**2

    def energy(self, alpha_bar: Tensor) -> Tensor:
        """``E|x_t|^2 / D`` of data that are noised to levels of ``alpha_bar``, in float64; its shape."""
        _, along = self.spectrum
        D = self.mean.numel()
        covariance = (along.sum() + (D - len(along)) * self.std**2) / D
        return alpha_bar.double() * (self.mean.double().square().mean() + covariance - 1) + 1

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact samples, ``[n, *shape]`` float32."""
        generator = torch.Generator().manual_seed(seed)
        x = self.mean + self.std * torch.randn(n, *self.mean.shape, generator=generator)
        if self.directions is not None:
            along = torch.randn(n, len(self.directions), generator=generator)
            x = x + torch.tensordot(along, self.directions, 1)
        return x

    def denoiser(self, diffusion: GaussianDiffusion, learned: bool = True) -> LowRankGaussianDenoiser:
        """The exact teacher for this distribution. learned: whether it answers with a variance too."""
        return LowRankGaussianDenoiser(self, diffusion, learned)


class ExactDenoiser(nn.Module):
    """The optimal denoiser of a known distribution: ``(x_t, t) -> eps, v``, the best that Eqs. 4 and 12 can
    say; v is None where it learns no variance.

    eps follows from E[x_0 | x_t] by Eq. 4. v follows from Var[x_0 | x_t]: the best diagonal Gaussian
    for ``x_{t-1}`` has the variance ``beta_tilde + coef_x0^2 Var[x_0 | x_t]``, solved for v in Eq. 12.
    That can be above Eq. 12's range: between a mixture's modes (on the ring by 1.5% on average where it is
    most, and far from all data without limit), and wherever data vary by more than 1. v ends at 1 there:
    respaced steps would magnify the rest.
    """

    def __init__(self, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__()
        self.diffusion, self.learns_variance = diffusion, learned

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """``E[x_0 | x_t]`` and each coordinate's ``Var[x_0 | x_t]`` for ``x_t`` ``[B, D]`` at ``[B, 1]``, in
        their dtype and on their device."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x_t.to(widest(x_t.device)).flatten(1)
        log_alpha_bar = self.diffusion.log_alpha_bar(t)[:, None]
        root, noise = torch.exp(0.5 * log_alpha_bar), -torch.expm1(log_alpha_bar)
        mean, variance = self.posterior(x, log_alpha_bar)
        eps = (x - root * mean) / noise.sqrt()
        if not self.learns_variance:
            return eps.view(x_t.shape).to(x_t.dtype), None
        c = self.diffusion.transition(t)
        low, high = c.log_beta_tilde[:, None], c.log_beta[:, None]
        best = torch.log(c.beta_tilde[:, None] + c.coef_x0[:, None] ** 2 * variance)
        # Where the two bounds meet, v has no effect and no definition.
        v = 2 * (best - low) / (high - low).clamp(min=1e-12) - 1
        return tuple(out.view(x_t.shape).to(x_t.dtype) for out in (eps, v.clamp(-1, 1)))


class MixtureDenoiser(ExactDenoiser):
    """The optimal denoiser of a mixture."""

    def __init__(self, mixture: GaussianMixture, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__(diffusion, learned)
        self.mixture = mixture
        self.register_buffer("means", mixture.means)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        root, noise = torch.exp(0.5 * log_alpha_bar), -torch.expm1(log_alpha_bar)
        means, data_variance = self.means.to(x.dtype), self.mixture.std**2
        total = torch.exp(log_alpha_bar) * data_variance + noise  # of x_t around each scaled mean
        offset = x[:, None] - root[:, :, None] * means  # [B, K, D]
        weight = torch.softmax(-0.5 * offset.square().sum(-1) / total, dim=1)[:, :, None]
        centre = means + (root * data_variance / total)[:, :, None] * offset  # E[x_0 | x_t, k]
        mean = (weight * centre).sum(1)
        variance = data_variance * noise / total + (weight * (centre - mean[:, None]).square()).sum(1)
        return mean, variance


class LowRankGaussianDenoiser(ExactDenoiser):
    """The optimal denoiser of one Gaussian: linear, with the same variance for every sample of a level."""

    def __init__(self, data: LowRankGaussian, diffusion: GaussianDiffusion, learned: bool = True):
        super().__init__(diffusion, learned)
        self.data = data
        # No buffers: they are float64, and would go to a device that has none.
        self.tables = data.mean.double().flatten(), *data.spectrum

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.mean.shape)

    def posterior(self, x: Tensor, log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        mean, U, eigenvalues = (table.to(x.dtype).to(x.device) for table in self.tables)
        root, alpha_bar, noise = (
            torch.exp(0.5 * log_alpha_bar),
            log_alpha_bar.exp(),
            -torch.expm1(log_alpha_bar),
        )
        # The covariance over that of x_t, across the directions [B, 1] and along them [B, K].
        across, along = (c / (alpha_bar * c + noise) for c in (self.data.std**2, eigenvalues))
        offset = x - root * mean
        variance = noise * (across + (along - across) @ U.square().T)
        return mean + root * (across * offset + ((along - across) * (offset @ U)) @ U.T), variance
